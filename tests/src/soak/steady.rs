//! Pods that mutations never touch, the policies that hold for them, and what flows between them.

use std::net::IpAddr;

use serde_json::json;

use super::sockets::Netns;
use crate::world::{self, Object};

/// Their namespace.
pub(super) const NAMESPACE: &str = "steady";
/// First of the ports on which everything is always allowed; each flow has its own.
pub(super) const ALLOWED: u16 = 7000;
/// A port that the receiver's ingress never allows, though the sender's egress does.
pub(super) const CLOSED_BY_INGRESS: u16 = 7900;
/// A port that the sender's egress never allows, though the receiver's ingress does.
pub(super) const CLOSED_BY_EGRESS: u16 = 7901;
/// Pods and their nodes: two on one node, one on the other.
pub(super) const PODS: [(&str, &str); 3] = [("s0", "node-a"), ("s1", "node-a"), ("s2", "node-b")];

/// The steady pods, in the order of [`PODS`].
#[derive(Debug)]
pub(super) struct Steady {
    pub(super) pods: Vec<(Netns, [IpAddr; 2])>,
}

/// Namespace and policies.
pub(super) fn objects() -> Vec<Object> {
    let ports = |closed: u16| {
        json!([
            {"port": ALLOWED, "endPort": ALLOWED + 199, "protocol": "TCP"},
            {"port": ALLOWED, "endPort": ALLOWED + 199, "protocol": "UDP"},
            {"port": closed, "protocol": "TCP"},
            {"port": closed, "protocol": "UDP"},
        ])
    };
    let peers = json!([{"podSelector": {}}]);
    vec![
        world::namespace(NAMESPACE, json!({"steady": "yes"})),
        world::policy(
            NAMESPACE,
            "flows",
            json!({
                "podSelector": {},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": peers, "ports": ports(CLOSED_BY_EGRESS)}],
                "egress": [{"to": peers, "ports": ports(CLOSED_BY_INGRESS)}],
            }),
        ),
    ]
}

/// A policy that allows more, but nothing that flows here: it makes the nodes judge every flow again.
pub(super) fn noise(number: usize) -> Object {
    world::policy(
        NAMESPACE,
        "noise",
        json!({
            "podSelector": {},
            "ingress": [{"from": [{"ipBlock": {"cidr": format!("192.0.2.{}/32", number % 256)}}]}],
        }),
    )
}
