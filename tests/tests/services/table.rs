//! The table: under these policies, this client, this way to a Service, this verdict.
//!
//! Each row holds in both families, for TCP and UDP, in both of kube-proxy's modes.

use fairlead_tests::proxy::Protocol;
use fairlead_tests::world::{self, Object};
use serde_json::{Value, json};

use crate::scene::{NS, PUSHED, REJECTED, SERVED, TARGET};

/// Who opens the flow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Client {
    /// A pod, by name.
    Pod(&'static str),
    /// A process of a node, or a pod with its network (`hostNetwork`).
    Node(&'static str),
    /// A host in the world.
    Outside,
}

/// The way to a Service.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The Service's ClusterIP.
    ClusterIp(&'static str),
    /// A node's address, the Service's port there.
    NodePort(&'static str, &'static str),
    /// The Service's external IP.
    External(&'static str),
    /// The Service's load balancer's IP.
    Balancer(&'static str),
}

/// From a pod's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The reason of what policy drops in this direction.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Ingress => "ingress_denied",
            Self::Egress => "egress_denied",
        }
    }
}

/// Under which address the backend sees the client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen {
    /// Its own.
    Itself,
    /// A node's: masqueraded, or the node's own traffic.
    Node(&'static str),
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    /// This backend answers; on its other port, its ICMP error comes back.
    Open(&'static str, Seen),
    /// Policy: dropped once, counted at this pod in this direction.
    Denied(&'static str, Direction),
    /// kube-proxy rejects it: no backend.
    Refused,
    /// kube-proxy drops it: no backend on this node.
    Nothing,
}

impl Expect {
    /// Whether nothing is to be heard, and nobody counts.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) from: Client,
    pub(crate) to: Target,
    pub(crate) expect: Expect,
}

/// Who may be at the other end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Peer {
    Nobody,
    Pods(&'static str),
    Blocks([&'static str; 2]),
    /// On every port.
    Hosts([&'static str; 2]),
}

/// A policy for one direction of one pod, on the backends' ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) subject: &'static str,
    pub(crate) direction: Direction,
    pub(crate) peer: Peer,
}

/// Policies, and rows under them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) policies: &'static [Policy],
    pub(crate) rows: &'static [Row],
}

impl Policy {
    pub(crate) fn object(&self) -> Object {
        let peers: Vec<Value> = match self.peer {
            Peer::Nobody => Vec::new(),
            Peer::Pods(app) => vec![json!({"podSelector": {"matchLabels": {"app": app}}})],
            Peer::Blocks(blocks) | Peer::Hosts(blocks) => {
                blocks.iter().map(|b| json!({"ipBlock": {"cidr": b}})).collect()
            }
        };
        let ports: Vec<Value> = Protocol::ALL
            .iter()
            .flat_map(|p| {
                [SERVED, REJECTED, PUSHED].map(|n| json!({"protocol": p.kind(), "port": n + TARGET}))
            })
            .collect();
        let (kind, rules, ends) = match self.direction {
            Direction::Ingress => ("Ingress", "ingress", "from"),
            Direction::Egress => ("Egress", "egress", "to"),
        };
        let every = matches!(self.peer, Peer::Hosts(_));
        let rules_of =
            |peers| if every { json!([{ends: peers}]) } else { json!([{ends: peers, "ports": ports}]) };
        let list = if peers.is_empty() { json!([]) } else { rules_of(peers) };
        let spec = json!({
            "podSelector": {"matchLabels": {"app": self.subject}}, "policyTypes": [kind], rules: list,
        });
        world::policy(NS, &format!("{}-{rules}", self.subject), spec)
    }
}

use Client::{Node, Outside, Pod};
use Direction::{Egress, Ingress};
use Expect::{Denied, Nothing, Open, Refused};
use Peer::{Blocks, Hosts, Nobody, Pods};
use Seen::Itself;
use Target::{Balancer, ClusterIp, External, NodePort};

const fn row(from: Client, to: Target, expect: Expect) -> Row {
    Row { from, to, expect }
}

const fn policy(subject: &'static str, direction: Direction, peer: Peer) -> Policy {
    Policy { subject, direction, peer }
}

const A1: Client = Pod("a1");
const NODE_A: Seen = Seen::Node("node-a");
const NODE_B: Seen = Seen::Node("node-b");
const WORLD: Peer = Blocks(["203.0.113.0/24", "2001:db8:113::/48"]);
const NODES: Peer = Blocks(["172.20.0.0/24", "fd20::/64"]);
const SECOND_NODE: Peer = Blocks(["172.20.0.12/32", "fd20::12/128"]);
const CLUSTER_IPS: Peer = Blocks(["10.96.0.0/16", "fd10:96::/112"]);
const PODS_B: Peer = Blocks(["10.244.2.0/24", "fd10:244:0:2::/64"]);

pub(crate) const GROUPS: &[Group] = &[
    Group {
        name: "no policies",
        policies: &[],
        rows: &[
            row(A1, ClusterIp("local"), Open("a2", Itself)),
            row(A1, ClusterIp("remote"), Open("b1", Itself)),
            row(A1, ClusterIp("own"), Open("a1", NODE_A)),
            row(A1, ClusterIp("none"), Refused),
            row(A1, NodePort("node-a", "local"), Open("a2", NODE_A)),
            row(A1, NodePort("node-a", "remote"), Open("b1", NODE_A)),
            row(A1, NodePort("node-a", "own"), Open("a1", NODE_A)),
            row(A1, NodePort("node-a", "none"), Refused),
            row(A1, NodePort("node-b", "local"), Open("a2", NODE_B)),
            row(A1, NodePort("node-b", "remote"), Open("b1", NODE_B)),
            row(A1, NodePort("node-a", "near"), Open("b1", Itself)),
            row(A1, NodePort("node-b", "near"), Open("b1", Itself)),
            row(A1, External("local"), Open("a2", NODE_A)),
            row(A1, Balancer("remote"), Open("b1", NODE_A)),
            row(A1, External("none"), Refused),
            row(Outside, NodePort("node-a", "local"), Open("a2", NODE_A)),
            row(Outside, NodePort("node-a", "remote"), Open("b1", NODE_A)),
            row(Outside, NodePort("node-b", "near"), Open("b1", Itself)),
            row(Outside, NodePort("node-a", "near"), Nothing),
            row(Outside, NodePort("node-a", "none"), Refused),
            row(Outside, External("local"), Open("a2", NODE_A)),
            row(Outside, Balancer("remote"), Open("b1", NODE_A)),
            row(Outside, Balancer("near"), Nothing),
            row(Outside, Balancer("none"), Refused),
            row(Node("node-a"), ClusterIp("local"), Open("a2", NODE_A)),
            row(Node("node-a"), ClusterIp("remote"), Open("b1", NODE_A)),
            row(Node("node-a"), ClusterIp("none"), Refused),
            row(Node("node-a"), NodePort("node-a", "local"), Open("a2", NODE_A)),
            row(Node("node-a"), NodePort("node-b", "remote"), Open("b1", NODE_B)),
            row(Node("node-a"), External("local"), Open("a2", NODE_A)),
        ],
    },
    Group {
        name: "servers' ingress from a1, by podSelector",
        policies: &[policy("a2", Ingress, Pods("a1")), policy("b1", Ingress, Pods("a1"))],
        rows: &[
            row(A1, ClusterIp("local"), Open("a2", Itself)),
            row(A1, ClusterIp("remote"), Open("b1", Itself)),
            row(A1, ClusterIp("own"), Open("a1", NODE_A)),
            row(Pod("a3"), ClusterIp("local"), Denied("a2", Ingress)),
            row(Pod("a3"), ClusterIp("remote"), Denied("b1", Ingress)),
            row(Pod("b2"), ClusterIp("local"), Denied("a2", Ingress)),
            row(Pod("b2"), ClusterIp("remote"), Denied("b1", Ingress)),
            row(A1, NodePort("node-a", "local"), Denied("a2", Ingress)),
            row(A1, NodePort("node-a", "remote"), Denied("b1", Ingress)),
            row(A1, NodePort("node-b", "remote"), Denied("b1", Ingress)),
            row(A1, NodePort("node-a", "near"), Open("b1", Itself)),
            row(A1, NodePort("node-b", "near"), Open("b1", Itself)),
            row(Pod("a3"), NodePort("node-b", "near"), Denied("b1", Ingress)),
            row(A1, External("local"), Denied("a2", Ingress)),
            row(A1, Balancer("remote"), Denied("b1", Ingress)),
            row(Outside, NodePort("node-a", "local"), Denied("a2", Ingress)),
            row(Outside, NodePort("node-a", "remote"), Denied("b1", Ingress)),
            row(Outside, NodePort("node-b", "near"), Denied("b1", Ingress)),
            row(Outside, External("local"), Denied("a2", Ingress)),
            row(Outside, Balancer("remote"), Denied("b1", Ingress)),
            row(Node("node-a"), ClusterIp("local"), Open("a2", NODE_A)),
            row(Node("node-a"), NodePort("node-a", "local"), Open("a2", NODE_A)),
            row(Node("node-a"), ClusterIp("remote"), Denied("b1", Ingress)),
            row(Node("node-b"), ClusterIp("local"), Denied("a2", Ingress)),
            row(Node("node-b"), ClusterIp("remote"), Open("b1", NODE_B)),
        ],
    },
    Group {
        name: "servers' ingress from the world, by ipBlock",
        policies: &[policy("a2", Ingress, WORLD), policy("b1", Ingress, WORLD)],
        rows: &[
            row(Outside, NodePort("node-b", "near"), Open("b1", Itself)),
            row(Outside, NodePort("node-a", "local"), Denied("a2", Ingress)),
            row(Outside, NodePort("node-a", "remote"), Denied("b1", Ingress)),
            row(Outside, External("local"), Denied("a2", Ingress)),
            row(Outside, Balancer("remote"), Denied("b1", Ingress)),
            row(A1, ClusterIp("local"), Denied("a2", Ingress)),
        ],
    },
    Group {
        name: "servers' ingress from nodes, by ipBlock",
        policies: &[policy("a2", Ingress, NODES), policy("b1", Ingress, NODES)],
        rows: &[
            row(Outside, NodePort("node-a", "local"), Open("a2", NODE_A)),
            row(Outside, NodePort("node-a", "remote"), Open("b1", NODE_A)),
            row(Outside, NodePort("node-b", "near"), Denied("b1", Ingress)),
            row(Outside, External("local"), Open("a2", NODE_A)),
            row(Outside, Balancer("remote"), Open("b1", NODE_A)),
            row(A1, NodePort("node-a", "local"), Open("a2", NODE_A)),
            row(A1, NodePort("node-b", "local"), Open("a2", NODE_B)),
            row(A1, External("local"), Open("a2", NODE_A)),
            row(A1, ClusterIp("local"), Denied("a2", Ingress)),
            row(A1, NodePort("node-b", "near"), Denied("b1", Ingress)),
            row(Node("node-b"), ClusterIp("local"), Open("a2", NODE_B)),
        ],
    },
    Group {
        name: "servers' ingress from ClusterIPs, by ipBlock",
        policies: &[policy("a2", Ingress, CLUSTER_IPS), policy("b1", Ingress, CLUSTER_IPS)],
        rows: &[
            row(A1, ClusterIp("local"), Denied("a2", Ingress)),
            row(A1, ClusterIp("remote"), Denied("b1", Ingress)),
        ],
    },
    Group {
        name: "a1's egress to a2, by podSelector",
        policies: &[policy("a1", Egress, Pods("a2"))],
        rows: &[
            row(A1, ClusterIp("local"), Open("a2", Itself)),
            row(A1, ClusterIp("remote"), Denied("a1", Egress)),
            row(A1, ClusterIp("own"), Open("a1", NODE_A)),
            row(A1, ClusterIp("none"), Refused),
            row(A1, NodePort("node-a", "local"), Open("a2", NODE_A)),
            row(A1, NodePort("node-a", "remote"), Denied("a1", Egress)),
            row(A1, NodePort("node-a", "near"), Denied("a1", Egress)),
            row(A1, NodePort("node-b", "local"), Denied("a1", Egress)),
            row(A1, External("local"), Open("a2", NODE_A)),
            row(A1, External("remote"), Denied("a1", Egress)),
            row(A1, Balancer("local"), Open("a2", NODE_A)),
            row(A1, Balancer("remote"), Denied("a1", Egress)),
            row(Outside, NodePort("node-a", "own"), Open("a1", NODE_A)),
            row(Outside, NodePort("node-b", "own"), Open("a1", NODE_B)),
            row(Pod("b2"), ClusterIp("own"), Open("a1", Itself)),
        ],
    },
    Group {
        name: "a1's egress to ClusterIPs, by ipBlock",
        policies: &[policy("a1", Egress, CLUSTER_IPS)],
        rows: &[
            row(A1, ClusterIp("local"), Denied("a1", Egress)),
            row(A1, ClusterIp("remote"), Denied("a1", Egress)),
            row(A1, External("local"), Denied("a1", Egress)),
        ],
    },
    Group {
        name: "a1's egress to node-b's pods, by ipBlock",
        policies: &[policy("a1", Egress, PODS_B)],
        rows: &[
            row(A1, ClusterIp("remote"), Open("b1", Itself)),
            row(A1, ClusterIp("local"), Denied("a1", Egress)),
            row(A1, NodePort("node-a", "remote"), Open("b1", NODE_A)),
            row(A1, Balancer("remote"), Open("b1", NODE_A)),
            row(A1, NodePort("node-b", "remote"), Denied("a1", Egress)),
        ],
    },
    Group {
        name: "a1's egress to node-b on every port, by ipBlock",
        policies: &[policy("a1", Egress, Hosts(["172.20.0.12/32", "fd20::12/128"]))],
        rows: &[
            row(A1, NodePort("node-b", "remote"), Open("b1", NODE_B)),
            row(A1, NodePort("node-b", "local"), Open("a2", NODE_B)),
            row(A1, NodePort("node-b", "near"), Open("b1", Itself)),
            row(A1, ClusterIp("remote"), Denied("a1", Egress)),
            row(A1, NodePort("node-a", "remote"), Denied("a1", Egress)),
        ],
    },
    Group {
        name: "a1's egress to node-b on the servers' ports, by ipBlock",
        policies: &[policy("a1", Egress, SECOND_NODE)],
        rows: &[
            // The policies' ports are the backends': a NodePort is none of them.
            row(A1, NodePort("node-b", "remote"), Denied("a1", Egress)),
            row(A1, ClusterIp("remote"), Denied("a1", Egress)),
            row(A1, NodePort("node-a", "remote"), Denied("a1", Egress)),
        ],
    },
    Group {
        name: "a1's egress to a2 and a2's ingress from a1",
        policies: &[policy("a1", Egress, Pods("a2")), policy("a2", Ingress, Pods("a1"))],
        rows: &[
            row(A1, ClusterIp("local"), Open("a2", Itself)),
            row(A1, ClusterIp("remote"), Denied("a1", Egress)),
            row(A1, NodePort("node-a", "local"), Denied("a2", Ingress)),
            row(Pod("a3"), ClusterIp("local"), Denied("a2", Ingress)),
            row(Pod("a3"), ClusterIp("remote"), Open("b1", Itself)),
        ],
    },
    Group {
        name: "servers isolated both ways, nothing allowed",
        policies: &[
            policy("a2", Ingress, Nobody),
            policy("a2", Egress, Nobody),
            policy("b1", Ingress, Nobody),
            policy("b1", Egress, Nobody),
        ],
        rows: &[
            row(Node("node-a"), ClusterIp("local"), Open("a2", NODE_A)),
            row(Node("node-b"), ClusterIp("remote"), Open("b1", NODE_B)),
            row(Node("node-a"), ClusterIp("remote"), Denied("b1", Ingress)),
            row(A1, ClusterIp("local"), Denied("a2", Ingress)),
            row(A1, ClusterIp("remote"), Denied("b1", Ingress)),
            row(Pod("a2"), ClusterIp("local"), Open("a2", NODE_A)),
            row(Pod("b1"), ClusterIp("remote"), Open("b1", NODE_B)),
            row(Pod("a2"), ClusterIp("own"), Denied("a2", Egress)),
            row(Outside, NodePort("node-b", "near"), Denied("b1", Ingress)),
        ],
    },
    Group {
        name: "servers' egress isolated: answers are none",
        policies: &[policy("a2", Egress, Nobody), policy("b1", Egress, Nobody)],
        rows: &[
            row(A1, ClusterIp("local"), Open("a2", Itself)),
            row(A1, ClusterIp("remote"), Open("b1", Itself)),
            row(A1, NodePort("node-a", "local"), Open("a2", NODE_A)),
            row(A1, NodePort("node-b", "local"), Open("a2", NODE_B)),
            row(Outside, NodePort("node-a", "local"), Open("a2", NODE_A)),
            row(Outside, NodePort("node-b", "near"), Open("b1", Itself)),
            row(Node("node-b"), ClusterIp("local"), Open("a2", NODE_B)),
        ],
    },
    Group {
        name: "a1 isolated both ways, nothing allowed",
        policies: &[policy("a1", Ingress, Nobody), policy("a1", Egress, Nobody)],
        rows: &[
            row(A1, ClusterIp("own"), Open("a1", NODE_A)),
            row(A1, NodePort("node-a", "own"), Open("a1", NODE_A)),
            row(A1, ClusterIp("local"), Denied("a1", Egress)),
            row(A1, ClusterIp("remote"), Denied("a1", Egress)),
            row(Pod("a3"), ClusterIp("own"), Denied("a1", Ingress)),
            row(Pod("b2"), ClusterIp("own"), Denied("a1", Ingress)),
            row(Outside, NodePort("node-a", "own"), Denied("a1", Ingress)),
        ],
    },
];
