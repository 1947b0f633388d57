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
mod partition;
mod ports;
mod prefix;
mod report;
mod rules;
mod signatures;
mod vocabulary;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_common::maps::EndpointPolicy;

use self::atoms::Atoms;
use self::features::Features;
use self::few::Few;
use self::partition::Partition;
use self::ports::Ports;
use self::prefix::{Prefix, Tree};
use self::rules::StoredPolicy;
use self::signatures::Signatures;
use self::vocabulary::Block;
use self::world::{Group, PodId, Subject, World};
use crate::model::{Namespace, NetworkPolicy, ObjectKey, Pod};
use crate::oracle::Direction;
use crate::tables::{Atom, SetId, Signature, Slot};

/// Sizes of the kernel's tables. What does not fit is denied for the endpoints whose rules need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Ids of port sets, the two reserved ones included.
    pub sets: u32,
    /// Port classes, the reserved ones included; at most [`fairlead_common::maps::CLASSES`].
    pub classes: u16,
    /// Entries of `rows`.
    pub rows: u32,
    /// Entries of each of `peers4` and `peers6`.
    pub peers: u32,
    /// Entries of each of `cidrs4` and `cidrs6`.
    pub cidrs: u32,
    /// Signatures in use at a time.
    pub signatures: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sets: 16384, classes: 1024, rows: 1 << 20, peers: 1 << 18, cidrs: 1 << 16, signatures: 8192 }
    }
}

/// Rules that could not be put into the tables: the endpoint's direction is closed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The endpoint.
    pub slot: Slot,
    /// Its pod.
    pub pod: ObjectKey,
    /// The direction that is closed.
    pub direction: Direction,
    /// What ran out.
    pub resource: Resource,
    /// The policies whose rules, taken together, did not fit.
    pub policies: Vec<ObjectKey>,
}

/// What can run out, see [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Resource {
    /// [`Limits::sets`].
    #[error("port sets")]
    Sets,
    /// [`Limits::classes`].
    #[error("port classes")]
    Classes,
    /// [`Limits::rows`].
    #[error("rows")]
    Rows,
    /// [`Limits::peers`].
    #[error("peer addresses")]
    Peers,
    /// [`Limits::cidrs`].
    #[error("CIDR prefixes")]
    Cidrs,
    /// [`Limits::signatures`].
    #[error("signatures")]
    Signatures,
}

/// How much there is of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Namespaces known.
    pub namespaces: usize,
    /// Pods known.
    pub pods: usize,
    /// Policies known.
    pub policies: usize,
    /// Local endpoints.
    pub endpoints: usize,
    /// Peer selectors in use.
    pub selectors: usize,
    /// `ipBlock`s in use.
    pub blocks: usize,
    /// Atoms.
    pub atoms: usize,
    /// Signatures.
    pub signatures: usize,
    /// Port sets, the reserved ones not counted.
    pub sets: usize,
    /// Port classes, the reserved ones included.
    pub classes: usize,
    /// Rows.
    pub rows: usize,
    /// Exact addresses, both families.
    pub peers: usize,
    /// CIDR prefixes, both families.
    pub cidrs: usize,
}

/// Which directions of an endpoint some policy isolates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// A policy selects it for ingress.
    pub ingress: bool,
    /// A policy selects it for egress.
    pub egress: bool,
}

/// The compiler and all it knows.
#[derive(Debug)]
pub struct Compiler {
    limits: Limits,
    serial: u64,
    /// Something was told since the last commit that may change what fits.
    changed: bool,
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
    rows: BTreeMap<(Signature, Atom), SetId>,
    rows_by_atom: BTreeSet<(Atom, Signature)>,
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
    /// Isolated, but its rules do not fit.
    Unfit(Resource),
}

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// What was in force before this commit changed it; the first entry of a key counts.
#[derive(Debug, Default)]
struct Journal {
    rows: Vec<((Signature, Atom), Option<SetId>)>,
    peers: Vec<(IpAddr, Option<Atom>)>,
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
            world: World::default(),
            features: Features::default(),
            groups: Partition::default(),
            tree: Tree::default(),
            regions: Partition::default(),
            blocks: BTreeMap::new(),
            ports: Ports::new(limits.classes, limits.sets),
            signatures: Signatures::default(),
            atoms: Atoms::default(),
            rows: BTreeMap::new(),
            rows_by_atom: BTreeSet::new(),
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
                let subjects = old.subjects;
                let same = old == stored;
                self.touch_subjects(namespace, &[subjects, stored.subjects]);
                old.release(&mut self.world.vocabulary);
                if same {
                    return;
                }
                return self.note_change();
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
    pub fn set_endpoint(&mut self, slot: Slot, pod: Option<ObjectKey>, mut addresses: Vec<IpAddr>) {
        addresses.sort_unstable();
        addresses.dedup();
        self.remove_endpoint(slot);
        let id = pod.as_ref().and_then(|key| self.world.find_pod(key));
        self.change_claims(id, |world| world.attach(slot, pod.as_ref(), addresses.clone()));
        self.dirty_addresses.extend(addresses);
    }

    /// A local endpoint is gone.
    pub fn remove_endpoint(&mut self, slot: Slot) {
        self.changed = true;
        self.dirty_endpoints.insert(slot);
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
        for address in self.world.addresses_of(pod) {
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
        for address in self.world.addresses_of(pod) {
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
        self.changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LabelSelector, Labels, NamedPort, PortRule, PortSpec, Protocol, Rule};

    fn pod(name: &str, address: &str, port: u16) -> Pod {
        Pod {
            key: ObjectKey::new("a", name),
            uid: String::new(),
            labels: Labels::new(),
            ips: vec![address.parse().unwrap()],
            node: None,
            host_network: false,
            finished: false,
            ports: vec![NamedPort { name: "http".to_owned(), protocol: Protocol::Tcp, port }],
        }
    }

    fn told(limits: Limits) -> Compiler {
        let mut compiler = Compiler::new(limits);
        compiler.set_namespace(&Namespace { name: "a".to_owned(), labels: Labels::new() });
        compiler.set_pod(&pod("local", "10.0.0.1", 80));
        compiler.set_endpoint(1, Some(ObjectKey::new("a", "local")), vec![]);
        let ports = vec![PortRule { protocol: Protocol::Tcp, port: PortSpec::Named("http".to_owned()) }];
        compiler.set_policy(&NetworkPolicy {
            key: ObjectKey::new("a", "n"),
            subjects: LabelSelector::default(),
            ingress: None,
            egress: Some(vec![Rule { peers: vec![], ports }]),
        });
        compiler
    }

    /// Numbers, classes, sets, atoms come and go for ever within small limits.
    #[test]
    fn churn_of_named_numbers_leaks_nothing() {
        let mut compiler = told(Limits { classes: 14, sets: 8, ..Limits::default() });
        for number in 1..1000 {
            compiler.set_pod(&pod("remote", "10.0.1.1", number));
            let delta = compiler.commit();
            assert_eq!(compiler.problems(), []);
            assert!(delta.peers.iter().all(|&(_, atom)| atom.is_none_or(|atom| atom < 8)), "{delta:?}");
            compiler.settled(delta.serial);
        }
        assert_eq!((compiler.stats().rows, compiler.stats().atoms, compiler.stats().sets), (2, 2, 2));
    }

    /// What is told twice, or told and taken back, is no step.
    #[test]
    fn nothing_new_is_nothing_to_write() {
        let mut compiler = told(Limits::default());
        assert!(!compiler.commit().is_empty());
        assert!(!compiler.is_dirty());
        let same = told(Limits::default());
        assert_eq!(same.limits(), compiler.limits());
        compiler.set_pod(&pod("local", "10.0.0.1", 80));
        compiler.set_pod(&pod("remote", "10.0.1.1", 8080));
        compiler.remove_pod(&ObjectKey::new("a", "remote"));
        compiler.set_endpoint(1, Some(ObjectKey::new("a", "local")), vec![]);
        assert!(compiler.commit().is_empty());
    }

    /// The same story gives the same tables, id for id.
    #[test]
    fn output_is_deterministic() {
        let story = || {
            let mut compiler = told(Limits::default());
            for n in 0..50u8 {
                compiler.set_pod(&pod(&format!("p{n}"), &format!("10.0.2.{n}"), u16::from(n % 7) + 1));
            }
            let first = compiler.commit();
            compiler.remove_pod(&ObjectKey::new("a", "p3"));
            [first, compiler.commit()]
        };
        assert_eq!(story(), story());
    }
}
