//! Signatures: compiled rules of one direction, shared by the endpoints with the same rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_common::maps::{PortSet, SIGNATURE_FIRST};

use super::features::Name;
use super::ids::Ids;
use super::partition::Feature;
use super::ports::Choice;
use super::rules::Clause;
use super::vocabulary::Block;
use crate::tables::{SetId, Signature};

/// Peers of a clause in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Everyone,
    Pods(Feature),
    Block(Block),
}

/// Ports of a clause in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Choice(Choice),
    Name(Name),
}

/// A signature in use.
#[derive(Debug)]
pub(super) struct State {
    /// By what it is found.
    pub(super) key: Arc<[Clause]>,
    /// The same with ids of what is in use, sorted.
    pub(super) clauses: Box<[(Who, What)]>,
    /// Ports that are open to everyone.
    pub(super) default_set: SetId,
    /// Sides of endpoints that have it.
    pub(super) references: u32,
    /// Counts up: who came later.
    pub(super) order: u64,
}

impl State {
    /// The distinct peers.
    pub(super) fn peers(&self) -> impl Iterator<Item = Who> + '_ {
        self.clauses.chunk_by(|a, b| a.0 == b.0).map(|chunk| chunk[0].0)
    }

    /// The distinct named ports.
    pub(super) fn names(&self) -> Vec<Name> {
        self.names_for(|_| true)
    }

    /// The distinct named ports of clauses that do not select pods.
    pub(super) fn broad_names(&self) -> Vec<Name> {
        self.names_for(|who| !matches!(who, Who::Pods(_)))
    }

    fn names_for(&self, wanted: impl Fn(Who) -> bool) -> Vec<Name> {
        let mut names: Vec<_> = self
            .clauses
            .iter()
            .filter_map(|&(who, what)| match what {
                What::Name(name) if wanted(who) => Some(name),
                _ => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Signatures in use.
#[derive(Debug)]
pub(super) struct Signatures {
    ids: Ids,
    states: Vec<Option<State>>,
    table: BTreeMap<Arc<[Clause]>, Signature>,
    orders: u64,
    /// Signatures whose rows have not been made.
    pub(super) fresh: BTreeSet<Signature>,
}

impl Default for Signatures {
    fn default() -> Self {
        Self {
            ids: Ids::new(SIGNATURE_FIRST),
            states: Vec::new(),
            table: BTreeMap::new(),
            orders: 0,
            fresh: BTreeSet::new(),
        }
    }
}

impl Signatures {
    /// Number of signatures.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// The signature of a list of clauses.
    pub(super) fn find(&self, key: &[Clause]) -> Option<Signature> {
        self.table.get(key).copied()
    }

    /// A signature's state.
    pub(super) fn get(&self, signature: Signature) -> Option<&State> {
        self.states.get(signature as usize)?.as_ref()
    }

    /// A signature's state.
    pub(super) fn get_mut(&mut self, signature: Signature) -> Option<&mut State> {
        self.states.get_mut(signature as usize)?.as_mut()
    }

    /// When a signature came; 0 for one that is gone.
    pub(super) fn order(&self, signature: Signature) -> u64 {
        self.get(signature).map_or(0, |s| s.order)
    }

    /// The order of the signature that came last.
    pub(super) fn last_order(&self) -> u64 {
        self.orders
    }

    /// All ids in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = Signature> + '_ {
        (0..).zip(&self.states).filter_map(|(id, state)| state.as_ref().map(|_| id))
    }

    /// An id for a signature that is being made.
    pub(super) fn take_id(&mut self) -> Signature {
        self.ids.take()
    }

    /// Stores a signature with one reference; `order` is that of one that comes back.
    pub(super) fn insert(
        &mut self,
        signature: Signature,
        key: Arc<[Clause]>,
        mut clauses: Vec<(Who, What)>,
        default_set: SetId,
        order: Option<u64>,
    ) {
        clauses.sort_unstable();
        let order = order.unwrap_or_else(|| {
            self.orders += 1;
            self.orders
        });
        self.table.insert(key.clone(), signature);
        if self.states.len() <= signature as usize {
            self.states.resize_with(signature as usize + 1, || None);
        }
        let state = State { key, clauses: clauses.into(), default_set, references: 1, order };
        self.states[signature as usize] = Some(state);
        self.fresh.insert(signature);
    }

    /// Takes a signature out.
    pub(super) fn remove(&mut self, signature: Signature, serial: u64) -> Option<State> {
        let state = self.states.get_mut(signature as usize)?.take()?;
        self.table.remove(&state.key);
        self.ids.free(serial, signature);
        self.fresh.remove(&signature);
        Some(state)
    }

    /// Ids freed by commits up to `serial` may be used again.
    pub(super) fn settled(&mut self, serial: u64) {
        self.ids.settled(serial);
    }
}

/// Adds the classes of `more` to `set`.
pub(super) fn unite(set: &mut PortSet, more: &PortSet) {
    for (word, more) in set.0.iter_mut().zip(&more.0) {
        *word |= more;
    }
}
