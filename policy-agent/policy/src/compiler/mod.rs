//! Policy for all connections at once, as tables, incrementally.
//!
//! Objects are told to the compiler one by one as they change; [`Compiler::commit`] makes of all
//! changes since the last commit one step for the datapath. Work is in proportion to what the changes
//! touch.

use std::net::IpAddr;

use crate::explain::{Explanation, Party};
use crate::model::{Namespace, NetworkPolicy, ObjectKey, Pod};
use crate::oracle::{Cluster, Direction, LocalEndpoint, Target};
use crate::tables::{Delta, Slot};

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
    world: Cluster,
    serial: u64,
}

impl Compiler {
    /// A compiler that knows nothing and whose tables are empty.
    pub fn new(limits: Limits) -> Self {
        Self { limits, world: Cluster::default(), serial: 0 }
    }

    /// The sizes it keeps to.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A namespace is there, or has changed.
    pub fn set_namespace(&mut self, namespace: &Namespace) {
        self.world.namespaces.insert(namespace.name.clone(), namespace.clone());
    }

    /// A namespace is gone.
    pub fn remove_namespace(&mut self, name: &str) {
        self.world.namespaces.remove(name);
    }

    /// A pod is there, or has changed.
    pub fn set_pod(&mut self, pod: &Pod) {
        self.world.pods.insert(pod.key.clone(), pod.clone());
    }

    /// A pod is gone.
    pub fn remove_pod(&mut self, key: &ObjectKey) {
        self.world.pods.remove(key);
    }

    /// A policy is there, or has changed.
    pub fn set_policy(&mut self, policy: &NetworkPolicy) {
        self.world.policies.insert(policy.key.clone(), policy.clone());
    }

    /// A policy is gone.
    pub fn remove_policy(&mut self, key: &ObjectKey) {
        self.world.policies.remove(key);
    }

    /// A local endpoint is there, or has changed. `pod` is `None` for an attachment that is not
    /// Kubernetes': no policy ever selects it. Until the pod's object and namespace are known the
    /// endpoint is closed.
    pub fn set_endpoint(&mut self, slot: Slot, pod: Option<ObjectKey>, addresses: Vec<IpAddr>) {
        self.world.endpoints.insert(slot, LocalEndpoint { pod, addresses });
    }

    /// A local endpoint is gone.
    pub fn remove_endpoint(&mut self, slot: Slot) {
        self.world.endpoints.remove(&slot);
    }

    /// The step from the state of the last commit to what is known now.
    pub fn commit(&mut self) -> Delta {
        self.serial += 1;
        Delta { serial: self.serial, ..Delta::default() }
    }

    /// The datapath has put commit `serial` in force and no packet is judged by an older one any more:
    /// ids that it or its predecessors freed may be used again.
    pub fn settled(&mut self, serial: u64) {
        let _ = serial;
    }

    /// Rules that could not be put into the tables, by slot and direction.
    pub fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// How much there is of what, as of the last commit.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Which directions of an endpoint are isolated; `None` where there is no such endpoint or its pod
    /// is not known.
    pub fn isolation(&self, slot: Slot) -> Option<Isolation> {
        let _ = slot;
        None
    }

    /// Explains a new connection by the objects known now.
    pub fn explain(&self, from: &Party, to: &Party, target: Target) -> Explanation {
        self.world.explain(from, to, target)
    }
}
