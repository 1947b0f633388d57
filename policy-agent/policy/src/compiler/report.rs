//! What the compiler can tell about its state.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::features::Shape;
use super::world::{PodId, Subject};
use super::{Compiler, DIRECTIONS, Instead, Isolation, Problem, SideState, Stats};
use crate::explain::{Explanation, Party};
use crate::model::ObjectKey;
use crate::oracle::{Cluster, Direction, LocalEndpoint, Target};
use crate::tables::Slot;

impl Compiler {
    /// Rules that could not be put into the tables as they are, by slot and direction, as of the last
    /// commit.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (&slot, sides) in &self.sides {
            for (&side, direction) in sides.iter().zip(DIRECTIONS) {
                let (instead, resource) = match side {
                    SideState::Older(_, resource) => (Instead::Older, resource),
                    SideState::Unfit(resource) => (Instead::Closed, resource),
                    SideState::Rules(signature) => match self.overflow.short.get(&signature) {
                        Some(&resource) => (Instead::Part, resource),
                        None => continue,
                    },
                    SideState::Open | SideState::Unknown => continue,
                };
                if let Some((namespace, name)) =
                    self.world.attachments.get(&slot).and_then(|a| a.pod.as_ref())
                {
                    let namespace = &*self.world.namespaces[*namespace as usize].name;
                    let pod = ObjectKey::new(namespace, &**name);
                    let policies = self.policies_of(slot, direction);
                    problems.push(Problem { slot, pod, direction, instead, resource, policies });
                }
            }
        }
        problems
    }

    /// The policies that isolate an endpoint in a direction, by the objects known now.
    pub fn policies_of(&self, slot: Slot, direction: Direction) -> Vec<ObjectKey> {
        let Some(attachment) = self.world.attachments.get(&slot) else { return Vec::new() };
        let Subject::Pod(pod) = self.world.subject(attachment) else { return Vec::new() };
        let shape = self.world.shape_of(pod);
        let labels = self.world.vocabulary.labels(shape.labels);
        let namespace = &self.world.namespaces[shape.namespace as usize];
        let selected = namespace.policies.iter().filter(|(_, policy)| {
            policy.isolates(direction) && self.world.vocabulary.matches(policy.subjects, labels)
        });
        selected.map(|(name, _)| ObjectKey::new(&*namespace.name, &**name)).collect()
    }

    /// Which directions of an endpoint are isolated, as of the last commit; `None` where there is no
    /// such endpoint or its pod is not known.
    pub fn isolation(&self, slot: Slot) -> Option<Isolation> {
        let sides = self.sides.get(&slot).filter(|sides| !sides.contains(&SideState::Unknown))?;
        let [ingress, egress] = sides.map(|side| side != SideState::Open);
        Some(Isolation { ingress, egress })
    }

    /// How much there is of what, as of the last commit.
    pub fn stats(&self) -> Stats {
        Stats {
            namespaces: self.world.namespace_count(),
            pods: self.world.pod_count,
            policies: self.world.policy_count,
            endpoints: self.world.attachments.len(),
            selectors: self.features.count(|shape| matches!(shape, Shape::Select(..))),
            blocks: self.blocks.len(),
            atoms: self.atoms.len(),
            signatures: self.signatures.len(),
            sets: self.ports.set_count(),
            classes: self.ports.class_count(),
            rows: self.rows.len(),
            peers: self.peer_counts,
            cidrs: [self.tree.len(false), self.tree.len(true)],
        }
    }

    /// Explains a new connection by the objects known now.
    pub fn explain(&self, from: &Party, to: &Party, target: Target) -> Explanation {
        self.excerpt(&[from, to]).explain(from, to, target)
    }

    /// The pods that have one of some addresses, by their objects or by their endpoints.
    fn sharers(&self, addresses: &BTreeSet<IpAddr>) -> Vec<(ObjectKey, PodId)> {
        let slots = self.world.attachments.values();
        let local: BTreeSet<PodId> = slots
            .filter(|attachment| attachment.addresses.iter().any(|a| addresses.contains(a)))
            .filter_map(|attachment| self.world.pod_of(attachment))
            .collect();
        // One pass over all pods without allocating: an index by address would cost every node memory
        // for what only people ask.
        let shares = |pod: PodId| {
            let state = &self.world.pods[pod as usize];
            state.addresses.as_slice().iter().any(|a| addresses.contains(a)) || local.contains(&pod)
        };
        let mut sharers = Vec::new();
        for id in self.world.namespace_ids() {
            let namespace = &self.world.namespaces[id as usize];
            for (name, &pod) in namespace.pods.iter().filter(|&(_, &pod)| shares(pod)) {
                sharers.push((ObjectKey::new(&*namespace.name, &**name), pod));
            }
        }
        sharers
    }

    /// What the compiler knows that concerns some parties: they, the pods that share an address with
    /// them, and the policies of their namespaces.
    pub fn excerpt(&self, parties: &[&Party]) -> Cluster {
        let mut addresses = BTreeSet::new();
        let mut cluster = Cluster::default();
        for party in parties {
            match party {
                Party::Ip(address) => {
                    addresses.insert(*address);
                }
                Party::Pod(key) => {
                    if let Some(pod) = self.world.find_pod(key) {
                        addresses.extend(&*self.world.addresses_of(pod));
                        cluster.pods.insert(key.clone(), self.world.decode_pod(key.clone(), pod));
                    }
                }
            }
        }
        for (key, pod) in self.sharers(&addresses) {
            let decoded = self.world.decode_pod(key.clone(), pod);
            cluster.pods.insert(key, decoded);
        }
        for (&slot, attachment) in &self.world.attachments {
            let pod = attachment.pod.as_ref().map(|(namespace, name)| {
                ObjectKey::new(&*self.world.namespaces[*namespace as usize].name, &**name)
            });
            let concerned = pod.as_ref().is_some_and(|key| cluster.pods.contains_key(key));
            if concerned || attachment.addresses.iter().any(|a| addresses.contains(a)) {
                let addresses = attachment.addresses.to_vec();
                cluster.endpoints.insert(slot, LocalEndpoint { pod, addresses });
            }
        }
        let names: BTreeSet<&str> = cluster.pods.keys().map(|key| &*key.namespace).collect();
        for id in names.into_iter().filter_map(|name| self.world.find_namespace(name)) {
            let namespace = &self.world.namespaces[id as usize];
            for (name, policy) in &namespace.policies {
                let key = ObjectKey::new(&*namespace.name, &**name);
                let policy = policy.decode(key.clone(), &self.world.vocabulary);
                cluster.policies.insert(key, policy);
            }
            if let Some(namespace) = self.world.decode_namespace(id) {
                cluster.namespaces.insert(namespace.name.clone(), namespace);
            }
        }
        cluster
    }
}
