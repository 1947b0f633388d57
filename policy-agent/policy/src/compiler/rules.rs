//! Policies as they are kept, and what they come to for one endpoint.

use super::ranges::{Range, Ranges, normal};
use super::vocabulary::{Block, Selector, Text, Vocabulary};
use super::world::NamespaceId;
use crate::model::{NetworkPolicy, ObjectKey, Peer, PortRule, PortSpec, Protocol, Rule};
use crate::oracle::Direction;

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredPolicy {
    pub(super) subjects: Selector,
    ingress: Option<Box<[StoredRule]>>,
    egress: Option<Box<[StoredRule]>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct StoredRule {
    peers: Box<[StoredPeer]>,
    /// `None`: everything.
    ports: Option<StoredPorts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoredPeer {
    Own(Selector),
    Matching(Selector, Selector),
    Block(Block),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct StoredPorts {
    ranges: Ranges,
    named: Box<[(Text, Protocol)]>,
}

/// Where a peer selector looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope {
    /// In one namespace.
    Own(NamespaceId),
    /// In those that a selector matches.
    Matching(Selector),
}

/// Peers of a clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum PeerShape {
    Everyone,
    Pods(Scope, Selector),
    Block(Block),
}

/// Ports of a clause.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum PortShape {
    Everything,
    Ranges(Ranges),
    /// The number that the peer's containers give the name.
    Named(Text, Protocol),
}

/// One peer with the ports that are open to it.
pub(super) type Clause = (PeerShape, PortShape);

impl StoredPolicy {
    /// Takes over a policy's content.
    pub(super) fn new(policy: &NetworkPolicy, vocabulary: &mut Vocabulary) -> Self {
        let subjects = vocabulary.acquire_selector(&policy.subjects);
        let mut rules = |rules: &Option<Vec<Rule>>| {
            Some(rules.as_ref()?.iter().map(|rule| StoredRule::new(rule, vocabulary)).collect())
        };
        Self { subjects, ingress: rules(&policy.ingress), egress: rules(&policy.egress) }
    }

    /// Gives back what it refers to.
    pub(super) fn release(self, vocabulary: &mut Vocabulary) {
        vocabulary.release_selector(self.subjects);
        for rule in self.ingress.into_iter().chain(self.egress).flatten() {
            for peer in rule.peers {
                match peer {
                    StoredPeer::Own(pods) => vocabulary.release_selector(pods),
                    StoredPeer::Matching(namespaces, pods) => {
                        vocabulary.release_selector(namespaces);
                        vocabulary.release_selector(pods);
                    }
                    StoredPeer::Block(block) => {
                        vocabulary.blocks.release(block);
                    }
                }
            }
            for (name, _) in rule.ports.into_iter().flat_map(|p| p.named) {
                vocabulary.texts.release(name);
            }
        }
    }

    /// Whether it isolates its subjects in a direction.
    pub(super) fn isolates(&self, direction: Direction) -> bool {
        self.rules(direction).is_some()
    }

    fn rules(&self, direction: Direction) -> Option<&[StoredRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Adds what the policy, of namespace `own`, allows in `direction` to a subject whose containers'
    /// named ports are `ports`. Whether it isolates in that direction.
    pub(super) fn add_clauses(
        &self,
        direction: Direction,
        own: NamespaceId,
        ports: &[(Text, Protocol, u16)],
        clauses: &mut Vec<Clause>,
    ) -> bool {
        let Some(rules) = self.rules(direction) else { return false };
        for rule in rules {
            let shapes = rule.port_shapes(direction, ports);
            for peer in rule.peer_shapes(own) {
                clauses.extend(shapes.iter().map(|shape| (peer, shape.clone())));
            }
        }
        true
    }

    /// The policy as the model has it; equal in meaning to what was stored.
    pub(super) fn decode(&self, key: ObjectKey, vocabulary: &Vocabulary) -> NetworkPolicy {
        let rules = |direction| {
            Some(self.rules(direction)?.iter().map(|rule| rule.decode(vocabulary)).collect::<Vec<_>>())
        };
        NetworkPolicy {
            key,
            subjects: vocabulary.decode_selector(self.subjects),
            ingress: rules(Direction::Ingress),
            egress: rules(Direction::Egress),
        }
    }
}

impl StoredRule {
    fn new(rule: &Rule, vocabulary: &mut Vocabulary) -> Self {
        let mut peer = |peer: &Peer| match peer {
            Peer::Pods { namespaces: None, pods } => StoredPeer::Own(vocabulary.acquire_selector(pods)),
            Peer::Pods { namespaces: Some(namespaces), pods } => StoredPeer::Matching(
                vocabulary.acquire_selector(namespaces),
                vocabulary.acquire_selector(pods),
            ),
            Peer::IpBlock { cidr, except } => StoredPeer::Block(vocabulary.acquire_block(*cidr, except)),
        };
        let peers = rule.peers.iter().map(&mut peer).collect();
        let ports = (!rule.ports.is_empty()).then(|| StoredPorts::new(&rule.ports, vocabulary));
        Self { peers, ports }
    }

    fn peer_shapes(&self, own: NamespaceId) -> Vec<PeerShape> {
        if self.peers.is_empty() {
            return vec![PeerShape::Everyone];
        }
        let shape = |peer: &StoredPeer| match *peer {
            StoredPeer::Own(pods) => PeerShape::Pods(Scope::Own(own), pods),
            StoredPeer::Matching(namespaces, pods) => PeerShape::Pods(Scope::Matching(namespaces), pods),
            StoredPeer::Block(block) => PeerShape::Block(block),
        };
        self.peers.iter().map(shape).collect()
    }

    fn port_shapes(&self, direction: Direction, subject: &[(Text, Protocol, u16)]) -> Vec<PortShape> {
        let Some(ports) = &self.ports else { return vec![PortShape::Everything] };
        let mut ranges = ports.ranges.clone();
        let mut shapes = Vec::new();
        if direction == Direction::Egress {
            shapes.extend(ports.named.iter().map(|&(name, protocol)| PortShape::Named(name, protocol)));
        } else if !ports.named.is_empty() {
            // On ingress the destination is the subject itself.
            let own = subject.iter().filter(|(name, protocol, _)| ports.named.contains(&(*name, *protocol)));
            let own = own.map(|&(_, protocol, port)| Range { protocol, first: port, last: port });
            ranges = normal(ranges.iter().copied().chain(own).collect());
        }
        if !ranges.is_empty() {
            shapes.push(PortShape::Ranges(ranges));
        }
        shapes
    }

    fn decode(&self, vocabulary: &Vocabulary) -> Rule {
        let peer = |peer: &StoredPeer| match *peer {
            StoredPeer::Own(pods) => Peer::Pods { namespaces: None, pods: vocabulary.decode_selector(pods) },
            StoredPeer::Matching(namespaces, pods) => Peer::Pods {
                namespaces: Some(vocabulary.decode_selector(namespaces)),
                pods: vocabulary.decode_selector(pods),
            },
            StoredPeer::Block(block) => {
                let block = vocabulary.blocks.get(block);
                let except = block.except.iter().map(|&prefix| prefix.into()).collect();
                Peer::IpBlock { cidr: block.cidr.into(), except }
            }
        };
        let numbers = |range: &Range| PortRule {
            protocol: range.protocol,
            port: PortSpec::Range { first: range.first, last: range.last },
        };
        let named = |&(name, protocol): &(Text, Protocol)| PortRule {
            protocol,
            port: PortSpec::Named(vocabulary.text(name).to_owned()),
        };
        let ports = |ports: &StoredPorts| -> Vec<_> {
            if ports.ranges.is_empty() && ports.named.is_empty() {
                // Ports, but none that exists: not the same as no `ports`.
                return vec![PortRule {
                    protocol: Protocol::Tcp,
                    port: PortSpec::Range { first: 1, last: 0 },
                }];
            }
            ports.ranges.iter().map(numbers).chain(ports.named.iter().map(named)).collect()
        };
        Rule {
            peers: self.peers.iter().map(peer).collect(),
            ports: self.ports.as_ref().map(ports).unwrap_or_default(),
        }
    }
}

impl StoredPorts {
    fn new(ports: &[PortRule], vocabulary: &mut Vocabulary) -> Self {
        let mut ranges = Vec::new();
        let mut named = Vec::new();
        for &PortRule { protocol, ref port } in ports {
            match port {
                PortSpec::Any => ranges.push(Range { protocol, first: 0, last: u16::MAX }),
                &PortSpec::Range { first, last } if first <= last => {
                    ranges.push(Range { protocol, first, last })
                }
                // Holds no port; the model's maker does not let it through.
                PortSpec::Range { .. } => {}
                PortSpec::Named(name) => named.push((vocabulary.acquire_text(name), protocol)),
            }
        }
        Self { ranges: normal(ranges), named: named.into() }
    }
}

/// Brings clauses into the one form by which equal rules are recognised.
pub(super) fn canonical(mut clauses: Vec<Clause>) -> Vec<Clause> {
    clauses.sort_unstable();
    clauses.dedup();
    let open_to_everyone: Vec<PortShape> = clauses
        .iter()
        .take_while(|(peer, _)| *peer == PeerShape::Everyone)
        .map(|(_, ports)| ports.clone())
        .collect();
    if open_to_everyone.contains(&PortShape::Everything) {
        return vec![(PeerShape::Everyone, PortShape::Everything)];
    }
    let mut result: Vec<Clause> = Vec::with_capacity(clauses.len());
    for (peer, ports) in clauses {
        if peer != PeerShape::Everyone && open_to_everyone.contains(&ports) {
            continue;
        }
        match (result.last_mut(), &ports) {
            // `Everything` sorts first: what follows for that peer says nothing more.
            (Some((last, PortShape::Everything)), _) if *last == peer => {}
            // One choice for each peer: fewer things that tell ports apart.
            (Some((last, PortShape::Ranges(before))), PortShape::Ranges(ranges)) if *last == peer => {
                *before = normal(before.iter().chain(&**ranges).copied().collect());
            }
            _ => result.push((peer, ports)),
        }
    }
    result
}
