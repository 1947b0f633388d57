//! Watches everything and says what it sees.

use std::collections::BTreeMap;
use std::time::Duration;

use fairlead_index::{Batch, Event, Kind, Problem};
use fairlead_policy::model::ObjectKey;
use futures_util::stream::{BoxStream, FuturesUnordered, SelectAll, select_all};
use futures_util::{FutureExt as _, StreamExt as _};
use kube::{Api, Client};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior};

use crate::client::{Access, AccessError};
use crate::merge::Merge;
use crate::object::{self, Seen, Typed, Watched};
use crate::watch::{Step, said, watch};

/// Steps that are taken together at most.
const TOGETHER: usize = 1000;
/// How often is looked whether credentials have changed.
const ROTATION: Duration = Duration::from_secs(10);
/// Longest time for one GET, and between two for the same object.
const GET: (Duration, Duration) = (Duration::from_secs(3), Duration::from_millis(250));

/// The API server as a source.
pub struct Source {
    access: Access,
    fingerprint: u64,
    client: Client,
    /// Pods that somebody waits for.
    wanted: UnboundedReceiver<ObjectKey>,
    /// How long somebody waits.
    patience: Duration,
    /// Time between two looks at the files with credentials.
    look_every: Duration,
    merges: BTreeMap<Kind, Merge>,
    failing: BTreeMap<Kind, String>,
    credentials: Option<String>,
    told_problems: Vec<Problem>,
    told_synced: bool,
}

type Steps = SelectAll<BoxStream<'static, (Kind, Step)>>;

impl Source {
    /// A source that has not asked for anything yet. What comes out of `wanted` is fetched at once, and
    /// tried for as long as `patience` where the API server does not answer.
    ///
    /// # Errors
    /// Where there are no credentials that could be tried.
    pub async fn new(
        access: Access,
        wanted: UnboundedReceiver<ObjectKey>,
        patience: Duration,
    ) -> Result<Self, AccessError> {
        Ok(Self {
            fingerprint: access.fingerprint(),
            client: access.client().await?,
            access,
            wanted,
            patience,
            look_every: ROTATION,
            merges: Kind::ALL.into_iter().map(|kind| (kind, Merge::new(kind))).collect(),
            failing: BTreeMap::new(),
            credentials: None,
            told_problems: Vec::new(),
            told_synced: false,
        })
    }

    /// Watches for ever; ends when `tell` says that nobody listens any more (`false`).
    pub async fn run(mut self, mut tell: impl FnMut(Event) -> bool) {
        let mut steps = self.watches();
        let mut fetches = FuturesUnordered::new();
        let mut rotation = tokio::time::interval(self.look_every);
        rotation.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut wanted_open = true;
        loop {
            tokio::select! {
                Some((kind, step)) = steps.next() => {
                    self.take(kind, step);
                    for _ in 1..TOGETHER {
                        let Some(Some((kind, step))) = steps.next().now_or_never() else { break };
                        self.take(kind, step);
                    }
                }
                key = self.wanted.recv(), if wanted_open => match key {
                    Some(key) => fetches.push(fetch(self.client.clone(), key, self.patience)),
                    None => wanted_open = false,
                },
                Some(found) = fetches.next(), if !fetches.is_empty() => {
                    for (kind, seen) in found {
                        if let Some(merge) = self.merges.get_mut(&kind) {
                            merge.fetched(seen);
                        }
                    }
                }
                _ = rotation.tick() => {
                    if self.rotate().await {
                        steps = self.watches();
                    }
                }
            }
            if !self.say(&mut tell) {
                return;
            }
        }
    }

    fn watches(&self) -> Steps {
        let client = || self.client.clone();
        select_all([
            watch::<object::Node>(client()),
            watch::<object::Namespace>(client()),
            watch::<object::Pod>(client()),
            watch::<object::NetworkPolicy>(client()),
            watch::<object::Service>(client()),
            watch::<object::EndpointSlice>(client()),
        ])
    }

    /// Takes new credentials where there are any; what is watched is then listed again.
    async fn rotate(&mut self) -> bool {
        let fingerprint = self.access.fingerprint();
        if fingerprint == self.fingerprint {
            return false;
        }
        match self.access.client().await {
            Ok(client) => {
                tracing::info!("the credentials for the API server have changed");
                (self.client, self.fingerprint, self.credentials) = (client, fingerprint, None);
                true
            }
            // In the midst of being written, perhaps.
            Err(e) => {
                self.credentials = Some(said(&e));
                false
            }
        }
    }

    fn take(&mut self, kind: Kind, step: Step) {
        let Some(merge) = self.merges.get_mut(&kind) else { return };
        if let Step::Failed(error) = step {
            self.failing.insert(kind, error);
            return;
        }
        self.failing.remove(&kind);
        match step {
            Step::ListBegins => merge.list_begins(),
            Step::Listed(seen) => merge.listed(seen),
            Step::ListEnds => merge.list_ends(),
            Step::Applied(seen) => merge.applied(seen),
            Step::Deleted(seen) => merge.deleted(seen),
            Step::Failed(_) => {}
        }
    }

    fn say(&mut self, tell: &mut impl FnMut(Event) -> bool) -> bool {
        let mut changes = Vec::new();
        for merge in self.merges.values_mut() {
            changes.append(&mut merge.take());
        }
        let problems = self.problems();
        if !changes.is_empty() || problems != self.told_problems {
            self.told_problems.clone_from(&problems);
            if !tell(Event::Batch(Batch { changes, problems })) {
                return false;
            }
        }
        if !self.told_synced && self.merges.values().all(Merge::is_synced) {
            self.told_synced = true;
            return tell(Event::Synced);
        }
        true
    }

    fn problems(&self) -> Vec<Problem> {
        let problem = |message| Problem { message, ..Problem::default() };
        let credentials =
            self.credentials.iter().map(|e| problem(format!("new credentials: {e}; the old ones are used")));
        let failing = self.failing.iter().map(|(kind, error)| {
            problem(format!(
                "API server: watching {}: {error}; what it said before stays in force",
                kind.name()
            ))
        });
        let unreadable = self.merges.values().flat_map(Merge::problems).cloned();
        credentials.chain(failing).chain(unreadable).collect()
    }
}

/// A pod and its namespace, as far as they are there.
async fn fetch(client: Client, key: ObjectKey, patience: Duration) -> Vec<(Kind, Seen)> {
    let until = Instant::now() + patience;
    let namespace = get::<object::Namespace>(Api::all(client.clone()), &key.namespace, until);
    let pod = get::<object::Pod>(Api::namespaced(client, &key.namespace), &key.name, until);
    let (namespace, pod) = tokio::join!(namespace, pod);
    let namespace = namespace.map(|seen| (Kind::Namespace, seen));
    namespace.into_iter().chain(pod.map(|seen| (Kind::Pod, seen))).collect()
}

async fn get<K: Watched>(api: Api<Typed<K>>, name: &str, until: Instant) -> Option<Seen> {
    loop {
        match tokio::time::timeout(GET.0, api.get_opt(name)).await {
            // That it is not there yet is not for ever: the watch will say when it is.
            Ok(Ok(found)) => return found.map(|object| object.seen),
            Ok(Err(e)) => tracing::debug!(kind = K::KIND.name(), name, "{}", said(&e)),
            Err(_) => tracing::debug!(kind = K::KIND.name(), name, "no answer"),
        }
        if Instant::now() + GET.1 >= until {
            return None;
        }
        tokio::time::sleep(GET.1).await;
    }
}

#[cfg(test)]
mod tests;
