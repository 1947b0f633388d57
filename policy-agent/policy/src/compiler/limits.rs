//! Sizes, what runs out, and how much there is.

use fairlead_common::maps::SET_FIRST;

use crate::model::ObjectKey;
use crate::oracle::Direction;
use crate::tables::Slot;

/// How much there may be of what in the state that a commit leads to. See docs/decisions/0009 for what
/// happens to rules that do not fit.
///
/// The kernel's tables must hold twice as much: what a change takes away is still there beside what it
/// brings, until no packet can meet it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Port sets, the two reserved ones not counted. Their ids are below [`Limits::set_ids`].
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
        Self { sets: 8192, classes: 1024, rows: 1 << 18, peers: 1 << 18, cidrs: 1 << 16, signatures: 8192 }
    }
}

impl Limits {
    /// Ids of port sets are below this: those of the state before and after a change, and the two
    /// reserved ones.
    pub fn set_ids(&self) -> u32 {
        self.sets.saturating_mul(2).saturating_add(SET_FIRST)
    }
}

/// Rules that could not be put into the tables as they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The endpoint.
    pub slot: Slot,
    /// Its pod.
    pub pod: ObjectKey,
    /// The direction that is concerned.
    pub direction: Direction,
    /// What is in force instead.
    pub instead: Instead,
    /// What ran out.
    pub resource: Resource,
    /// The policies whose rules, taken together, did not fit.
    pub policies: Vec<ObjectKey>,
}

/// What is in force where rules do not fit. None of it allows what neither the rules nor those before
/// them allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instead {
    /// The rules that were in force before.
    Older,
    /// Nothing: it is closed. There was no policy before, or no pod.
    Closed,
    /// The rules, but some peers that came since have less than they allow.
    Part,
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
    /// Exact addresses, IPv4 and IPv6.
    pub peers: [usize; 2],
    /// CIDR prefixes, IPv4 and IPv6.
    pub cidrs: [usize; 2],
}

/// Which directions of an endpoint some policy isolates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// A policy selects it for ingress.
    pub ingress: bool,
    /// A policy selects it for egress.
    pub egress: bool,
}

/// Work done so far, in things touched: what a change costs, whatever the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Selectors evaluated against the labels of a pod, a group of pods or a namespace.
    pub evaluations: u64,
    /// Endpoints whose rules were put together anew.
    pub endpoints: u64,
    /// Signatures made.
    pub signatures: u64,
    /// Addresses whose atom was looked up anew.
    pub addresses: u64,
    /// Pairs of a signature and an atom whose port set was worked out.
    pub rows: u64,
}

impl std::ops::Sub for Work {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            evaluations: self.evaluations - before.evaluations,
            endpoints: self.endpoints - before.endpoints,
            signatures: self.signatures - before.signatures,
            addresses: self.addresses - before.addresses,
            rows: self.rows - before.rows,
        }
    }
}
