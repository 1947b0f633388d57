//! `GET /v1/drops`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use fairlead_api::drops::{DropEvent, DropLine};
use fairlead_api::status::ObjectName;
use fairlead_common::reason::DropReason;
use fairlead_policy::explain::Party;
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::{Failure, Service, invalid, party};

#[derive(Deserialize)]
pub(super) struct Question {
    #[serde(default)]
    follow: bool,
    pod: Option<String>,
    reason: Option<String>,
}

/// Which events are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those with this pod at either end.
    pub pod: Option<ObjectName>,
    /// Those with this reason.
    pub reason: Option<&'static str>,
}

impl Filter {
    /// Reads a pod as `namespace/name` and a reason's name.
    ///
    /// # Errors
    /// Names the word that is wrong, and says what it should have been.
    pub fn new(pod: Option<&str>, reason: Option<&str>) -> Result<Self, (&'static str, String)> {
        let pod = pod.map(|text| match party(text) {
            Ok(Party::Pod(key)) => Ok(ObjectName { namespace: key.namespace, name: key.name }),
            _ => Err(("pod", format!("{text:?} is not a pod as namespace/name"))),
        });
        let reason = reason.map(|text| {
            let names = || DropReason::ALL.iter().map(|r| r.name());
            names().find(|name| *name == text).ok_or_else(|| {
                ("reason", format!("{text:?} is none of {}", names().collect::<Vec<_>>().join(", ")))
            })
        });
        Ok(Self { pod: pod.transpose()?, reason: reason.transpose()? })
    }

    fn wants(&self, event: &DropEvent) -> bool {
        self.pod.as_ref().is_none_or(|pod| event.concerns(pod))
            && self.reason.is_none_or(|reason| event.reason == reason)
    }
}

pub(super) async fn drops(
    State(service): State<Service>,
    question: Result<Query<Question>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Failure> {
    let Query(question) = question.map_err(|e| invalid(e.body_text()))?;
    let filter = Filter::new(question.pod.as_deref(), question.reason.as_deref())
        .map_err(|(field, e)| invalid(format!("{field}: {e}")))?;
    let (mut history, events) = service.drops.subscribe();
    history.retain(|event| filter.wants(event));
    let following = question.follow.then_some(events);
    let lines = Lines { history: history.into(), following, filter };
    let body = Body::from_stream(futures_util::stream::unfold(lines, async |mut lines| {
        Some((Ok::<_, Infallible>(lines.next().await?), lines))
    }));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// What one reader is still to be sent.
struct Lines {
    history: VecDeque<Arc<DropEvent>>,
    following: Option<Receiver<Arc<DropEvent>>>,
    filter: Filter,
}

impl Lines {
    async fn next(&mut self) -> Option<String> {
        let line = loop {
            if let Some(event) = self.history.pop_front() {
                break DropLine::Event(Box::new(DropEvent::clone(&event)));
            }
            match self.following.as_mut()?.recv().await {
                Ok(event) if self.filter.wants(&event) => {
                    break DropLine::Event(Box::new(DropEvent::clone(&event)));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(skipped)) => break DropLine::Skipped { skipped },
                Err(RecvError::Closed) => return None,
            }
        };
        let mut line = serde_json::to_string(&line).ok()?;
        line.push('\n');
        Some(line)
    }
}
