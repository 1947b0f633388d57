//! What the agent says of itself: answers of `GET /v1/status` and `GET /v1/explain`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::EndpointStatus;

/// Something that the agent was told and could not do as told. What was in force stays in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// File that it stands in, relative to the directory of manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line in that file at which the document starts, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Object, as `Kind namespace/name` or `Kind name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Field of the object, as `spec.ingress[0].from[1].ipBlock.cidr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, and what holds instead.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}")?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            write!(f, ": ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Answer of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Whether the state of the world is known and enforced.
    pub ready: bool,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// Name of the node.
    pub node: String,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Interface towards the other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// Number of the last state of policy that was put in force.
    pub policy_serial: u64,
    /// How much there is of what in policy and its tables, by name.
    pub counts: std::collections::BTreeMap<String, u64>,
    /// Endpoints on this node.
    pub endpoints: Vec<EndpointStatus>,
    /// What could not be done as told.
    pub problems: Vec<Problem>,
}

/// Answer of `GET /v1/explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Whether both directions allow it.
    pub allowed: bool,
    /// The egress rules of the pod that it comes from; `None` where that is not a pod.
    pub egress: Option<DirectionExplanation>,
    /// The ingress rules of the pod that it goes to; `None` where that is not a pod.
    pub ingress: Option<DirectionExplanation>,
}

/// Answer about one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionExplanation {
    /// The pod whose rules are asked.
    pub subject: ObjectName,
    /// The address under which its peer is judged; `None` where the peer has none yet.
    pub peer: Option<IpAddr>,
    /// What the rules say.
    pub verdict: Verdict,
    /// The policies that isolate the subject in this direction.
    pub isolated_by: Vec<ObjectName>,
    /// Every rule that allows it.
    pub allowed_by: Vec<RuleName>,
}

/// What the rules of one direction say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// No policy selects the pod for this direction.
    NotIsolated,
    /// A rule allows it.
    Allowed,
    /// The pod is isolated and no rule allows it.
    Denied,
    /// The pod's object or namespace is not known.
    Unknown,
}

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// Namespace of the object.
    pub namespace: String,
    /// Name within the namespace.
    pub name: String,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleName {
    /// The policy.
    pub policy: ObjectName,
    /// Index in `spec.ingress` or `spec.egress`, from 0.
    pub rule: usize,
}
