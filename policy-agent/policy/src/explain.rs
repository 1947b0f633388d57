//! Which policies and rules decide about a connection.

use std::net::IpAddr;

use serde::Serialize;

use crate::model::ObjectKey;
use crate::oracle::{Cluster, Direction, Target, rules};

/// One end of a connection that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Party {
    /// A pod, local or not.
    Pod(ObjectKey),
    /// An address: whatever pods it stands for, or none.
    Ip(IpAddr),
}

/// Answer about one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Whether both directions allow it.
    pub allowed: bool,
    /// The egress rules of the pod it comes from; `None` where that is not a pod.
    pub egress: Option<DirectionExplanation>,
    /// The ingress rules of the pod that it goes to; `None` where that is not a pod.
    pub ingress: Option<DirectionExplanation>,
}

/// Answer about one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionExplanation {
    /// The pod whose rules are asked.
    pub subject: ObjectKey,
    /// The address under which its peer is judged; `None` where the peer has none yet.
    pub peer: Option<IpAddr>,
    /// What the rules say.
    pub verdict: crate::oracle::Verdict,
    /// The policies that isolate the subject in this direction.
    pub isolated_by: Vec<ObjectKey>,
    /// Every rule that allows it, by policy and index.
    pub allowed_by: Vec<RuleReference>,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleReference {
    /// The policy.
    pub policy: ObjectKey,
    /// Index in `spec.ingress` or `spec.egress`, from 0.
    pub rule: usize,
}

impl Cluster {
    /// Explains a new connection `from` → `to`.
    pub fn explain(&self, from: &Party, to: &Party, target: Target) -> Explanation {
        let egress = self.explain_direction(from, Direction::Egress, to, target);
        let ingress = self.explain_direction(to, Direction::Ingress, from, target);
        let passes = |d: &Option<DirectionExplanation>| d.as_ref().is_none_or(|d| d.verdict.passes());
        Explanation { allowed: passes(&egress) && passes(&ingress), egress, ingress }
    }

    fn explain_direction(
        &self,
        _subject: &Party,
        _direction: Direction,
        _peer: &Party,
        _target: Target,
    ) -> Option<DirectionExplanation> {
        let _ = rules;
        None
    }
}
