//! What the Kubernetes API says about one new connection, rule by rule.
//!
//! This is the measure for everything else, so it is written to be compared with the API reference
//! (`networking.k8s.io/v1`, quoted below) and not to be fast. It judges one direction of one local
//! endpoint; a connection between two isolated pods needs both of its ends to allow it: "In order for
//! a connection from a source pod to a destination pod to be allowed, both the egress policy on the
//! source pod and the ingress policy on the destination pod need to allow the connection."
//!
//! Not here: replies (conntrack), a pod's traffic with itself and with its own node (always allowed);
//! the datapath sees to these.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::model::{
    Namespace, NetworkPolicy, Node, ObjectKey, Peer, Pod, PortRule, PortSpec, Protocol, Rule,
    canonical_network,
};
use crate::tables::Slot;

/// The state of the world that policy depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Pods by namespace and name.
    pub pods: BTreeMap<ObjectKey, Pod>,
    /// Policies by namespace and name.
    pub policies: BTreeMap<ObjectKey, NetworkPolicy>,
    /// Nodes by name. They are peers only by their addresses, that is through `ipBlock`.
    pub nodes: BTreeMap<String, Node>,
    /// Local endpoints by slot.
    pub endpoints: BTreeMap<Slot, LocalEndpoint>,
}

/// An attachment on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// The pod; `None` for an attachment that is not Kubernetes', which no policy selects.
    pub pod: Option<ObjectKey>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A direction of traffic from the judged pod's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// What reaches the pod.
    Ingress,
    /// What leaves the pod.
    Egress,
}

/// What a connection is made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A port of a protocol that has ports.
    Port(Protocol, u16),
    /// ICMP or ICMPv6.
    Icmp,
    /// Any other protocol.
    Other,
}

/// What the state of the world says about one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// No policy selects the pod for this direction: everything is allowed.
    NotIsolated,
    /// A rule allows it.
    Allowed,
    /// The pod is isolated and no rule allows it.
    Denied,
    /// The pod's object or its namespace is not known yet: denied until it is.
    Unknown,
}

/// The other end of a connection, as rules see it.
#[derive(Clone, Debug)]
pub struct Opposite<'a> {
    /// Its address; `None` for a pod that has none yet. No `ipBlock` matches that.
    pub address: Option<IpAddr>,
    /// The pods that stand behind it: what a selector, and a named port on egress, looks at.
    pub identities: Vec<&'a Pod>,
}

impl Verdict {
    /// Whether the connection passes.
    pub fn passes(self) -> bool {
        matches!(self, Self::NotIsolated | Self::Allowed)
    }
}

impl Cluster {
    /// Judges a new connection between the endpoint in `slot` and `peer`, in one direction.
    pub fn verdict(&self, slot: Slot, direction: Direction, peer: IpAddr, target: Target) -> Verdict {
        let Some(endpoint) = self.endpoints.get(&slot) else { return Verdict::Unknown };
        let Some(key) = &endpoint.pod else { return Verdict::NotIsolated };
        let (Some(pod), true) = (self.pods.get(key), self.namespaces.contains_key(&key.namespace)) else {
            return Verdict::Unknown;
        };
        let mut isolated = false;
        let peer = self.opposite(peer);
        for policy in self.policies_of(pod, direction) {
            isolated = true;
            let rules = rules(policy, direction).unwrap_or_default();
            if rules.iter().any(|rule| self.rule_allows(policy, rule, pod, direction, &peer, target)) {
                return Verdict::Allowed;
            }
        }
        if isolated { Verdict::Denied } else { Verdict::NotIsolated }
    }

    /// The policies that isolate `pod` in `direction`.
    ///
    /// "By default, a pod is non-isolated … A pod is isolated for ingress if there is any NetworkPolicy
    /// that both selects the pod and has 'Ingress' in its policyTypes", whether it has rules or not.
    /// `spec.podSelector`: "Selects the pods to which this NetworkPolicy object applies … selects pods
    /// in the same namespace as the policy itself. An empty selector matches all pods in the policy's
    /// namespace." hostNetwork pods have the node's identity; no policy applies to them.
    pub fn policies_of<'a>(
        &'a self,
        pod: &'a Pod,
        direction: Direction,
    ) -> impl Iterator<Item = &'a NetworkPolicy> + 'a {
        self.policies.values().filter(move |policy| {
            !pod.host_network
                && policy.key.namespace == pod.key.namespace
                && policy.subjects.matches(&pod.labels)
                && rules(policy, direction).is_some()
        })
    }

    /// Whether one rule allows the connection: "traffic must match both `ports` and `from`/`to`".
    pub fn rule_allows(
        &self,
        policy: &NetworkPolicy,
        rule: &Rule,
        subject: &Pod,
        direction: Direction,
        peer: &Opposite<'_>,
        target: Target,
    ) -> bool {
        let ports = |destination: Option<&Pod>| ports_match(&rule.ports, destination, target);
        match direction {
            // A named port is the destination's: on ingress the subject's own containers.
            Direction::Ingress => ports(Some(subject)) && self.peer_matches(policy, rule, peer, |_| true),
            // On egress the number that the peer pod's own containers give the name.
            Direction::Egress => self.peer_matches(policy, rule, peer, ports),
        }
    }

    /// Whether `from`/`to` matches the peer under an identity whose ports match.
    fn peer_matches(
        &self,
        policy: &NetworkPolicy,
        rule: &Rule,
        peer: &Opposite<'_>,
        ports: impl Fn(Option<&Pod>) -> bool,
    ) -> bool {
        // Under any of its identities, or as a bare address, which has no named ports.
        let any_identity = || peer.identities.iter().any(|pod| ports(Some(pod))) || ports(None);
        if rule.peers.is_empty() {
            // "If this field is empty or missing, this rule matches all sources (traffic not restricted
            // by source)."
            return any_identity();
        }
        // "Items in this list are combined using a logical OR operation."
        rule.peers.iter().any(|p| match p {
            Peer::Pods { namespaces, pods } => peer.identities.iter().any(|identity| {
                let namespace_matches = match namespaces {
                    // "… podSelector … selects the pods matching podSelector in the policy's own
                    // namespace."
                    None => identity.key.namespace == policy.key.namespace,
                    // "If podSelector is also set, then the NetworkPolicyPeer as a whole selects the
                    // pods matching podSelector in the namespaces selected by namespaceSelector."
                    Some(selector) => self
                        .namespaces
                        .get(&identity.key.namespace)
                        .is_some_and(|namespace| selector.matches(&namespace.labels)),
                };
                namespace_matches && pods.matches(&identity.labels) && ports(Some(identity))
            }),
            Peer::IpBlock { cidr, except } => {
                peer.address.is_some_and(|address| block_matches(cidr, except, address)) && any_identity()
            }
        })
    }

    /// What an address is to rules.
    pub fn opposite(&self, address: IpAddr) -> Opposite<'_> {
        Opposite { address: Some(address), identities: self.identities(address) }
    }

    /// The pods that `address` stands for.
    ///
    /// A pod has the addresses of its status and, on its own node, those of its endpoint. A finished
    /// pod's address may be another's, a hostNetwork pod's is its node's: neither has an identity. A
    /// local endpoint is certain where the status of another pod may be out of date: its address is its
    /// pod's alone, unless that pod has finished.
    pub fn identities(&self, address: IpAddr) -> Vec<&Pod> {
        let owners: Vec<_> = self
            .endpoints
            .values()
            .filter(|endpoint| endpoint.addresses.contains(&address))
            .map(|endpoint| endpoint.pod.as_ref())
            .collect();
        let finished = |owner: &Option<&ObjectKey>| {
            owner.and_then(|key| self.pods.get(key)).is_some_and(|pod| pod.finished)
        };
        let settled = !owners.iter().all(finished);
        self.pods
            .values()
            .filter(|pod| has_identity(pod))
            .filter(|pod| if settled { owners.contains(&Some(&pod.key)) } else { pod.ips.contains(&address) })
            .collect()
    }
}

/// Whether selectors match a pod as a peer.
pub fn has_identity(pod: &Pod) -> bool {
    !pod.finished && !pod.host_network
}

/// The rules of `policy` for one direction, `None` where it does not isolate in it.
pub fn rules(policy: &NetworkPolicy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// `ipBlock`: "describes a particular CIDR … that is allowed to the pods matched by a NetworkPolicy's
/// podSelector. The except entry describes CIDRs that should not be included within this rule."
fn block_matches(cidr: &IpNetwork, except: &[IpNetwork], address: IpAddr) -> bool {
    canonical_network(*cidr).contains(address)
        && !except.iter().any(|except| canonical_network(*except).contains(address))
}

/// `ports`: "If this field is empty or missing, this rule matches all ports (traffic not restricted by
/// port). If this field is present and contains at least one item, then this rule allows traffic only
/// if the traffic matches at least one port in the list." Ports belong to TCP, UDP and SCTP, so a rule
/// with ports allows nothing of any other protocol.
fn ports_match(ports: &[PortRule], destination: Option<&Pod>, target: Target) -> bool {
    if ports.is_empty() {
        return true;
    }
    let Target::Port(protocol, number) = target else { return false };
    ports.iter().filter(|rule| rule.protocol == protocol).any(|rule| match &rule.port {
        // "If this field is not provided, this matches all port names and numbers."
        PortSpec::Any => true,
        // "endPort … indicates that the range of ports from port to endPort … inclusive"
        PortSpec::Range { first, last } => (*first..=*last).contains(&number),
        // "This can either be a numerical or named port on a pod": without a pod it is nothing.
        PortSpec::Named(name) => destination.is_some_and(|pod| {
            pod.ports.iter().any(|p| p.name == *name && p.protocol == protocol && p.port == number)
        }),
    })
}
