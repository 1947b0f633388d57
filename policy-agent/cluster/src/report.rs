//! What is said to the API server: events on objects that cannot be honoured, and that a node is ready.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use fairlead_index::{Kind, Problem};
use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::client::Access;
use crate::watch::said;

/// Taint of nodes that are not to get pods before their agent is ready.
pub const TAINT: &str = "fairlead.dev/agent-not-ready";
/// `reason` of events.
const REASON: &str = "FairleadProblem";
/// Longest message of an event that the API server takes, in bytes.
const LONGEST: usize = 1024;

/// Says things to the API server, in the name of a node.
#[derive(Debug)]
pub struct Reporter {
    access: Access,
    node: String,
    /// Problems that were told and hold still.
    told: BTreeSet<Problem>,
}

impl Reporter {
    /// One that has told nothing.
    pub fn new(access: Access, node: &str) -> Self {
        Self { access, node: node.to_owned(), told: BTreeSet::new() }
    }

    /// Makes an event of each problem with an object that was not told yet. All agents give the event of
    /// one problem the same name, so that there is one, however many nodes there are.
    ///
    /// # Errors
    /// The first that the API server refuses; it is tried again the next time.
    pub async fn report(&mut self, problems: &[Problem]) -> Result<(), String> {
        self.told.retain(|problem| problems.contains(problem));
        let new: Vec<_> = problems.iter().filter(|problem| !self.told.contains(*problem)).cloned().collect();
        if new.is_empty() {
            return Ok(());
        }
        // A client for this once: problems are rare, and it has the credentials of this moment.
        let client = self.access.client().await.map_err(|e| said(&e))?;
        for problem in new {
            if let Some(event) = self.event(&problem) {
                let namespace =
                    event.involved_object.namespace.clone().unwrap_or_else(|| "default".to_owned());
                let api = Api::<Event>::namespaced(client.clone(), &namespace);
                match api.create(&PostParams::default(), &event).await {
                    Ok(_) => {}
                    // Told by another agent, or by this one before it was restarted; or the namespace is
                    // gone, and the object with it.
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(e) => return Err(said(&e)),
                }
            }
            self.told.insert(problem);
        }
        Ok(())
    }

    fn event(&self, problem: &Problem) -> Option<Event> {
        let (kind, key) = problem.object.as_deref()?.split_once(' ')?;
        let kind = Kind::from_name(kind)?;
        let (namespace, name) = match key.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, key),
        };
        // Of other nodes their own agents tell.
        if kind == Kind::Node && name != self.node {
            return None;
        }
        let mut message = problem.field.as_ref().map_or_else(String::new, |field| format!("{field}: "));
        message.push_str(&problem.message);
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        let end = message.floor_char_boundary(LONGEST);
        message.truncate(end);
        let short: String = name.chars().take(200).collect();
        let now = Some(Time(Timestamp::now()));
        Some(Event {
            metadata: ObjectMeta {
                name: Some(format!("{short}.fairlead-{:016x}", hasher.finish())),
                namespace: Some(namespace.clone().unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(kind.api_version().to_owned()),
                kind: Some(kind.name().to_owned()),
                namespace,
                name: Some(name.to_owned()),
                ..ObjectReference::default()
            },
            reason: Some(REASON.to_owned()),
            message: Some(message),
            type_: Some("Warning".to_owned()),
            count: Some(1),
            first_timestamp: now.clone(),
            last_timestamp: now,
            source: Some(EventSource {
                component: Some("fairlead".to_owned()),
                host: Some(self.node.clone()),
            }),
            reporting_component: Some("fairlead.dev/agent".to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        })
    }

    /// Takes [`TAINT`] from the node, where it has it; returns whether it had.
    ///
    /// # Errors
    /// What the API server says; also where somebody else has changed the node meanwhile.
    pub async fn remove_taint(&self) -> Result<bool, String> {
        let client = self.access.client().await.map_err(|e| said(&e))?;
        let api = Api::<Node>::all(client);
        let node = api.get(&self.node).await.map_err(|e| said(&e))?;
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let kept: Vec<_> = taints.iter().filter(|taint| taint.key != TAINT).collect();
        if kept.len() == taints.len() {
            return Ok(false);
        }
        // With the revision that was read, so that no other taint is lost.
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": kept},
        });
        api.patch(&self.node, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(|e| said(&e))?;
        Ok(true)
    }
}
