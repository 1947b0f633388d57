//! Dropped packets as events: lines of the answer of `GET /v1/drops`.
//!
//! Query: `follow=true` goes on for ever after the history, `pod=NAMESPACE/NAME` (either end) and
//! `reason=NAME` choose. The answer is a JSON object a line (`application/x-ndjson`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::status::{DirectionExplanation, ObjectName};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DropLine {
    /// A dropped packet.
    Event(Box<DropEvent>),
    /// The reader was too slow for some.
    Skipped {
        /// Events that this reader has not been sent.
        skipped: u64,
    },
}

/// A dropped packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropEvent {
    /// When the agent read of it: RFC 3339, UTC, milliseconds.
    pub time: String,
    /// Name of the reason.
    pub reason: String,
    /// From the point of view of the endpoint that dropped it: `ingress` or `egress`.
    pub direction: String,
    /// Index of the interface concerned on the host.
    pub ifindex: u32,
    /// Where it came from.
    pub source: End,
    /// Where it was going.
    pub destination: End,
    /// `tcp`, `udp`, `sctp`, `icmp`, the number of another IP protocol, or `ether 0x…` for what is not IP.
    pub protocol: String,
    /// Drops of the same interface before this one that have no event.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u32,
    /// What the policies of that endpoint say, where they decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<DirectionExplanation>,
    /// Whose side of the flow's opening that is about: the `ingress` of who was called, or the `egress` of
    /// who called. Not the direction of the packet where a revoked flow's reply was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_direction: Option<String>,
    /// A step of policy was put in force between the drop and the explanation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub policy_changed: bool,
}

/// One end of a dropped packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// The pod, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<ObjectName>,
    /// The address; absent where the packet could not be parsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The port; absent where the protocol has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl DropEvent {
    /// Whether one of its ends is this pod.
    pub fn concerns(&self, pod: &ObjectName) -> bool {
        [&self.source, &self.destination].into_iter().any(|end| end.pod.as_ref() == Some(pod))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}
