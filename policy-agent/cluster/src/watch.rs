//! The watch of one kind, for ever: lists as a stream where the server can, in pages where not, and
//! begins again after errors, at growing intervals.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use fairlead_index::Kind;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};

use crate::object::{Seen, Typed, Watched};

/// First and longest time between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Longest silence within a list that is streamed: a server that does not know of such lists never ends
/// them (before Kubernetes 1.27).
const LIST_SILENCE: Duration = Duration::from_secs(10);

/// What a watch says.
#[derive(Debug)]
pub(crate) enum Step {
    /// A list begins.
    ListBegins,
    /// It names an object.
    Listed(Seen),
    /// It has ended.
    ListEnds,
    /// An object is there or has changed.
    Applied(Seen),
    /// An object is gone.
    Deleted(Seen),
    /// It is interrupted, and tries again.
    Failed(String),
}

struct Watch<K: Watched> {
    client: Client,
    events: BoxStream<'static, watcher::Result<watcher::Event<Typed<K>>>>,
    streaming: bool,
    listing: bool,
    /// Waited for before the next attempt.
    delay: Option<Duration>,
    next_delay: Duration,
}

/// All that the API server says of a kind.
pub(crate) fn watch<K: Watched>(client: Client) -> BoxStream<'static, (Kind, Step)> {
    let watch = Watch::<K> {
        events: events(&client, true),
        client,
        streaming: true,
        listing: true,
        delay: None,
        next_delay: BACKOFF.0,
    };
    stream::unfold(watch, async |mut watch| {
        let step = watch.next().await;
        Some(((K::KIND, step), watch))
    })
    .boxed()
}

fn events<K: Watched>(
    client: &Client,
    streaming: bool,
) -> BoxStream<'static, watcher::Result<watcher::Event<Typed<K>>>> {
    let config = watcher::Config::default();
    let config = if streaming { config.streaming_lists() } else { config };
    watcher(Api::<Typed<K>>::all(client.clone()), config).boxed()
}

impl<K: Watched> Watch<K> {
    async fn next(&mut self) -> Step {
        loop {
            if let Some(delay) = self.delay.take() {
                tokio::time::sleep(delay).await;
            }
            let event = if self.streaming && self.listing {
                tokio::time::timeout(LIST_SILENCE, self.events.next()).await
            } else {
                Ok(self.events.next().await)
            };
            let error = match event {
                Ok(Some(Ok(event))) => {
                    self.next_delay = BACKOFF.0;
                    return self.step(event);
                }
                Ok(Some(Err(error))) => error,
                Ok(None) => {
                    self.restart();
                    continue;
                }
                Err(_) => {
                    tracing::info!(
                        kind = K::KIND.name(),
                        "the API server streams no lists; listing in pages"
                    );
                    self.streaming = false;
                    self.restart();
                    continue;
                }
            };
            if self.streaming && self.listing && is_refusal(&error) {
                tracing::debug!(kind = K::KIND.name(), "listing in pages: {error}");
                self.streaming = false;
                self.restart();
                continue;
            }
            if is_gone(&error) {
                self.restart();
            }
            // So that the agents of all nodes do not come back at the same instant: half to all of it.
            let random = u128::from(RandomState::new().hash_one(0)) % 512;
            let part = 512 + u32::try_from(random).unwrap_or_default();
            self.delay = Some(self.next_delay * part / 1024);
            self.next_delay = (self.next_delay * 2).min(BACKOFF.1);
            return Step::Failed(said(&error));
        }
    }

    fn restart(&mut self) {
        self.events = events(&self.client, self.streaming);
        self.listing = true;
    }

    fn step(&mut self, event: watcher::Event<Typed<K>>) -> Step {
        match event {
            watcher::Event::Init => {
                self.listing = true;
                Step::ListBegins
            }
            watcher::Event::InitApply(object) => Step::Listed(object.seen),
            watcher::Event::InitDone => {
                self.listing = false;
                Step::ListEnds
            }
            watcher::Event::Apply(object) => Step::Applied(object.seen),
            watcher::Event::Delete(object) => Step::Deleted(object.seen),
        }
    }
}

/// The server does not want lists to be streamed.
fn is_refusal(error: &watcher::Error) -> bool {
    let watcher::Error::WatchStartFailed(kube::Error::Api(status)) = error else { return false };
    matches!(status.code, 400 | 422)
}

/// The revision to go on from is too old. Where the stream says so itself, kube's watcher lists again;
/// where the request is answered so, it would ask for the same again.
fn is_gone(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// The error with its causes: an API server that cannot be reached is no more than "client error"
/// without them.
pub(crate) fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
