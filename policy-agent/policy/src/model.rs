//! The objects that policy looks at, reduced to the fields that matter.
//!
//! They are made by the index from Kubernetes objects that it has validated; what cannot be said in
//! these types cannot reach the compiler.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::{IpNetwork, Ipv4Network};
use serde::Serialize;

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

/// `namespace/name` of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectKey {
    /// Namespace of the object.
    pub namespace: String,
    /// Name within the namespace.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels, `kubernetes.io/metadata.name` included.
    pub labels: Labels,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// `status.addresses` that are IP addresses, InternalIP first, in the object's order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNetwork>,
}

/// Nodes that are there anew or otherwise than before, by name; `None` for those that are gone.
pub type NodeChanges = BTreeMap<Arc<str>, Option<Arc<Node>>>;

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`; empty where the source has none.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// `status.podIPs`; a local endpoint's addresses come to the compiler separately.
    pub ips: Vec<IpAddr>,
    /// `spec.nodeName`, once scheduled.
    pub node: Option<String>,
    /// `spec.hostNetwork`: neither subject nor selector peer.
    pub host_network: bool,
    /// Phase Succeeded or Failed: it has stopped and its address may be another pod's.
    pub finished: bool,
    /// The named container ports (those without a name are irrelevant to policy).
    pub ports: Vec<NamedPort>,
}

/// A named port of one of a pod's containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// `name`.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `containerPort`.
    pub port: u16,
}

/// Transport protocols that a policy port can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// SCTP, IP protocol 132.
    Sctp,
}

/// A `NetworkPolicy` of networking.k8s.io/v1 with its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `spec.podSelector`: the subjects.
    pub subjects: LabelSelector,
    /// Ingress rules, `None` where `policyTypes` does not hold Ingress. Empty: nothing is allowed.
    pub ingress: Option<Vec<Rule>>,
    /// Egress rules, `None` where `policyTypes` does not hold Egress. Empty: nothing is allowed.
    pub egress: Option<Vec<Rule>>,
}

/// One entry of `spec.ingress` or `spec.egress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `from` or `to`; empty: every peer.
    pub peers: Vec<Peer>,
    /// `ports`; empty: every port of every protocol, ICMP included.
    pub ports: Vec<PortRule>,
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `podSelector` and/or `namespaceSelector`.
    Pods {
        /// `namespaceSelector`; `None`: the policy's own namespace.
        namespaces: Option<LabelSelector>,
        /// `podSelector`; the empty selector where it is absent.
        pods: LabelSelector,
    },
    /// `ipBlock`.
    IpBlock {
        /// `cidr`, host bits cleared.
        cidr: IpNetwork,
        /// `except`, host bits cleared, each within `cidr`.
        except: Vec<IpNetwork>,
    },
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRule {
    /// `protocol`, TCP where absent.
    pub protocol: Protocol,
    /// `port` and `endPort`.
    pub port: PortSpec,
}

/// The ports of a [`PortRule`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortSpec {
    /// No `port`: every port of the protocol.
    Any,
    /// A number, or `port` to `endPort`, both included.
    Range {
        /// First port.
        first: u16,
        /// Last port, not below `first`.
        last: u16,
    },
    /// A container port's name.
    Named(String),
}

/// A label selector. The empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelector {
    /// `matchLabels` and `matchExpressions` together, all of which must hold.
    pub requirements: Vec<Requirement>,
}

/// One requirement of a [`LabelSelector`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What must hold for it.
    pub operator: Operator,
}

/// The operators of a label selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key is there with one of these values, sorted.
    In(Vec<String>),
    /// The key is absent or has none of these values, sorted.
    NotIn(Vec<String>),
    /// The key is there.
    Exists,
    /// The key is not there.
    DoesNotExist,
}

/// `network` with its host bits cleared, and an IPv4-mapped IPv6 block (`::ffff:10.0.0.0/104`) as the
/// IPv4 block that it means.
pub fn canonical_network(network: IpNetwork) -> IpNetwork {
    let plain = match network {
        IpNetwork::V6(v6) if v6.prefix() >= 96 => v6
            .ip()
            .to_ipv4_mapped()
            .and_then(|ip| Ipv4Network::new(ip, v6.prefix() - 96).ok())
            .map_or(network, IpNetwork::V4),
        _ => network,
    };
    without_host_bits(plain)
}

/// `network` with its host bits cleared, which mean nothing.
pub fn without_host_bits(network: IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_reduced_to_one_form() {
        for (written, meant) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
            ("::ffff:0:0/95", "::fffe:0:0/95"),
            ("fd00::1/64", "fd00::/64"),
            ("1.2.3.4/0", "0.0.0.0/0"),
        ] {
            let written: IpNetwork = written.parse().unwrap();
            assert_eq!(canonical_network(written), meant.parse().unwrap(), "{written}");
        }
    }
}
