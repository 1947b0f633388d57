//! Policy for all connections at once, as tables, incrementally.
//!
//! Objects are told to the compiler one by one as they change; [`Compiler::commit`] makes of all
//! changes since the last commit one step for the datapath. Work is in proportion to what the changes
//! touch.

mod admit;
mod atoms;
mod commit;
mod features;
mod few;
mod fill;
mod ids;
mod intern;
mod limits;
mod overflow;
mod partition;
mod ports;
mod prefix;
mod ranges;
mod report;
mod rows;
mod rules;
mod signatures;
mod vocabulary;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_common::maps::EndpointPolicy;

pub use self::limits::{Instead, Isolation, Limits, Problem, Resource, Stats, Work};

use self::atoms::Atoms;
use self::features::Features;
use self::few::Few;
use self::overflow::Overflow;
use self::partition::Partition;
use self::ports::Ports;
use self::prefix::{Prefix, Tree};
use self::rows::Rows;
use self::rules::StoredPolicy;
use self::signatures::Signatures;
use self::vocabulary::Block;
use self::world::{Group, PodId, Subject, World, each_once};
use crate::model::{Namespace, NetworkPolicy, ObjectKey, Pod};
use crate::oracle::Direction;
use crate::tables::{Atom, SetId, Signature, Slot};

/// The compiler and all it knows.
#[derive(Debug)]
pub struct Compiler {
    limits: Limits,
    serial: u64,
    /// Something was told since the last commit that may change what fits.
    changed: bool,
    overflow: Overflow,
    work: Work,
    world: World,
    features: Features,
    /// Groups of pods by the features in use.
    groups: Partition,
    tree: Tree,
    /// Prefixes by the blocks that cover them.
    regions: Partition,
    /// Blocks in use with the signatures that use them.
    blocks: BTreeMap<Block, Vec<Signature>>,
    ports: Ports,
    signatures: Signatures,
    atoms: Atoms,
    rows: Rows,
    peers: BTreeMap<IpAddr, PeerState>,
    /// Entries of `peers4` and `peers6`.
    peer_counts: [usize; 2],
    /// By place in the tree.
    prefix_atoms: Vec<Option<Atom>>,
    sides: BTreeMap<Slot, [SideState; 2]>,
    /// Endpoints as last handed out.
    written: BTreeMap<Slot, EndpointPolicy>,
    dirty_endpoints: BTreeSet<Slot>,
    dirty_addresses: Vec<IpAddr>,
    /// Groups of which it has changed whether rules look at them.
    revealed: Vec<Group>,
    journal: Journal,
}

/// An address that pods of claimed groups have.
#[derive(Debug, Default)]
struct PeerState {
    pods: Few,
    /// `None` where it has no exact entry.
    atom: Option<Atom>,
}

/// One direction of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SideState {
    /// Not isolated.
    Open,
    /// The pod is not known yet.
    Unknown,
    /// Isolated.
    Rules(Signature),
    /// Isolated, by the rules of before, because those of now do not fit.
    Older(Signature, Resource),
    /// Isolated and closed, because its rules do not fit.
    Unfit(Resource),
}

impl SideState {
    /// The signature in force.
    fn signature(self) -> Option<Signature> {
        match self {
            Self::Rules(signature) | Self::Older(signature, _) => Some(signature),
            Self::Open | Self::Unknown | Self::Unfit(_) => None,
        }
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// What was in force before this commit changed it; the first entry of a key counts.
#[derive(Debug, Default)]
struct Journal {
    rows: Vec<((Signature, Atom), Option<SetId>)>,
    /// With what it was changed to: to look them all up again would be a good part of a wide change's cost.
    peers: Vec<(IpAddr, Option<Atom>, Option<Atom>)>,
    cidrs: Vec<(Prefix, Option<Atom>)>,
    endpoints: BTreeSet<Slot>,
}

impl Compiler {
    /// A compiler that knows nothing and whose tables are empty.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            serial: 0,
            changed: false,
            overflow: Overflow::default(),
            work: Work::default(),
            world: World::default(),
            features: Features::default(),
            groups: Partition::default(),
            tree: Tree::default(),
            regions: Partition::default(),
            blocks: BTreeMap::new(),
            ports: Ports::new(limits),
            signatures: Signatures::default(),
            atoms: Atoms::default(),
            rows: Rows::default(),
            peers: BTreeMap::new(),
            peer_counts: [0; 2],
            prefix_atoms: Vec::new(),
            sides: BTreeMap::new(),
            written: BTreeMap::new(),
            dirty_endpoints: BTreeSet::new(),
            dirty_addresses: Vec::new(),
            revealed: Vec::new(),
            journal: Journal::default(),
        }
    }

    /// The sizes it keeps to.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A namespace is there, or has changed.
    pub fn set_namespace(&mut self, namespace: &Namespace) {
        if let Some(id) = self.world.set_namespace_labels(&namespace.name, Some(&namespace.labels)) {
            // An endpoint waits for its namespace.
            let endpoints = &self.world.namespaces[id as usize].endpoints;
            self.dirty_endpoints.extend(endpoints.iter().map(|&(_, slot)| slot));
            self.changed = true;
        }
    }

    /// A namespace is gone.
    pub fn remove_namespace(&mut self, name: &str) {
        if let Some(id) = self.world.set_namespace_labels(name, None) {
            let endpoints = &self.world.namespaces[id as usize].endpoints;
            self.dirty_endpoints.extend(endpoints.iter().map(|&(_, slot)| slot));
            self.world.tidy_namespace(id);
            self.changed = true;
        }
    }

    /// A pod is there, or has changed.
    pub fn set_pod(&mut self, pod: &Pod) {
        let namespace = self.world.namespace_id(&pod.key.namespace);
        if let Some(id) = self.world.find_pod(&pod.key) {
            self.unclaim(id);
        }
        let id = self.world.store_pod(namespace, pod);
        self.claim(id);
        self.touch_pod(id);
    }

    /// A pod is gone.
    pub fn remove_pod(&mut self, key: &ObjectKey) {
        let Some(namespace) = self.world.find_namespace(&key.namespace) else { return };
        if let Some(id) = self.world.find_pod(key) {
            self.unclaim(id);
            self.touch_pod(id);
            self.world.drop_pod(namespace, &key.name);
        }
        self.world.tidy_namespace(namespace);
    }

    /// A policy is there, or has changed.
    pub fn set_policy(&mut self, policy: &NetworkPolicy) {
        let namespace = self.world.namespace_id(&policy.key.namespace);
        let stored = StoredPolicy::new(policy, &mut self.world.vocabulary);
        let policies = &mut self.world.namespaces[namespace as usize].policies;
        let name = policy.key.name.as_str().into();
        let selectors = match policies.insert(name, stored.clone()) {
            Some(old) => {
                if old != stored {
                    self.touch_subjects(namespace, &[old.subjects, stored.subjects]);
                    self.note_change();
                }
                return old.release(&mut self.world.vocabulary);
            }
            None => [stored.subjects],
        };
        self.world.policy_count += 1;
        self.touch_subjects(namespace, &selectors);
        self.note_change();
    }

    /// A policy is gone.
    pub fn remove_policy(&mut self, key: &ObjectKey) {
        let Some(namespace) = self.world.find_namespace(&key.namespace) else { return };
        if let Some(old) = self.world.namespaces[namespace as usize].policies.remove(&*key.name) {
            self.touch_subjects(namespace, &[old.subjects]);
            old.release(&mut self.world.vocabulary);
            self.world.policy_count -= 1;
            self.note_change();
        }
        self.world.tidy_namespace(namespace);
    }

    fn note_change(&mut self) {
        self.changed = true;
    }

    /// A local endpoint is there, or has changed. `pod` is `None` for an attachment that is not
    /// Kubernetes': no policy ever selects it. Until the pod's object and namespace are known the
    /// endpoint is closed.
    pub fn set_endpoint(&mut self, slot: Slot, pod: Option<ObjectKey>, addresses: Vec<IpAddr>) {
        let addresses = each_once(&addresses);
        self.remove_endpoint(slot);
        let id = pod.as_ref().and_then(|key| self.world.find_pod(key));
        self.change_claims(id, |world| world.attach(slot, pod.as_ref(), addresses.clone()));
        self.dirty_addresses.extend(addresses);
    }

    /// A local endpoint is gone.
    pub fn remove_endpoint(&mut self, slot: Slot) {
        self.changed = true;
        self.dirty_endpoints.insert(slot);
        self.overflow.other_pod(slot);
        let Some(attachment) = self.world.attachments.get(&slot) else { return };
        self.dirty_addresses.extend(&attachment.addresses);
        let id = self.world.pod_of(attachment);
        self.change_claims(id, |world| world.detach(slot));
    }

    fn change_claims(&mut self, pod: Option<PodId>, change: impl FnOnce(&mut World)) {
        if let Some(pod) = pod {
            self.unclaim(pod);
        }
        change(&mut self.world);
        if let Some(pod) = pod {
            self.claim(pod);
        }
    }

    /// Enters a pod's addresses into the table of peers, if its group is there.
    fn claim(&mut self, pod: PodId) {
        let state = &self.world.pods[pod as usize];
        if state.is_peer() && self.world.group_states[state.group as usize].claimed {
            self.enter_peers(pod);
        }
    }

    fn enter_peers(&mut self, pod: PodId) {
        for &address in &*self.world.addresses_of(pod) {
            self.peers.entry(address).or_default().pods.insert(pod);
            self.dirty_addresses.push(address);
        }
    }

    /// Takes a pod's addresses out of the table of peers, if its group is there.
    fn unclaim(&mut self, pod: PodId) {
        let state = &self.world.pods[pod as usize];
        if state.is_peer() && self.world.group_states[state.group as usize].claimed {
            self.leave_peers(pod);
        }
    }

    fn leave_peers(&mut self, pod: PodId) {
        for &address in &*self.world.addresses_of(pod) {
            if let Some(peer) = self.peers.get_mut(&address) {
                peer.pods.remove(pod);
                self.dirty_addresses.push(address);
            }
        }
    }

    /// A pod has changed: its endpoints' rules, and whether they settle whose an address is.
    fn touch_pod(&mut self, pod: PodId) {
        self.changed = true;
        for slot in self.world.slots_of(pod) {
            self.dirty_endpoints.insert(slot);
            if let Some(attachment) = self.world.attachments.get(&slot) {
                self.dirty_addresses.extend(&attachment.addresses);
            }
        }
    }

    /// A policy with one of these subject selectors has changed.
    fn touch_subjects(&mut self, namespace: u32, selectors: &[u32]) {
        for &(_, slot) in &self.world.namespaces[namespace as usize].endpoints {
            let Some(attachment) = self.world.attachments.get(&slot) else { continue };
            let Subject::Pod(pod) = self.world.subject(attachment) else { continue };
            let labels = self.world.vocabulary.labels(self.world.shape_of(pod).labels);
            if selectors.iter().any(|&selector| self.world.vocabulary.matches(selector, labels)) {
                self.dirty_endpoints.insert(slot);
            }
        }
    }

    /// Whether [`Compiler::commit`] has something to do: an object has changed, or ids that were waited
    /// for have come free.
    pub fn is_dirty(&self) -> bool {
        self.changed || self.overflow.retry
    }

    /// Work done since the beginning.
    pub fn work(&self) -> Work {
        Work { evaluations: self.world.vocabulary.evaluations(), ..self.work }
    }
}

#[cfg(test)]
mod tests;
