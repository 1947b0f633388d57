//! What happens to rules that do not fit. See docs/decisions/0009.
//!
//! Rules that are new give way to those in force, newest first: the endpoint keeps its older ones, or is
//! closed where it had none. Where it is the world that has grown, rules in force stay, and what does
//! not fit is left out of them: a missing row, entry or number always means less than is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::atoms::Key;
use super::rules::Clause;
use super::{Compiler, Resource, SideState};
use crate::tables::{Signature, Slot};

/// How often a commit that failed for want of ids that are resting is tried again when they have settled.
const RETRIES: u8 = 2;

/// What does not fit.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    /// Signatures in force in part, and for want of what.
    pub(super) short: BTreeMap<Signature, Resource>,
    /// Addresses that have no exact entry for want of room, with the atom that they would have.
    pub(super) left_out: BTreeMap<IpAddr, Key>,
    /// Rules that this commit has replaced, by slot and direction.
    older: BTreeMap<(Slot, usize), Older>,
    /// Slots that have been another pod's since the last commit: its rules are nobody's.
    other_pod: BTreeSet<Slot>,
    /// Order of the newest signature before this commit.
    before: u64,
    /// Something failed for want of ids that are resting.
    starved: bool,
    /// They have settled: there is something to commit.
    pub(super) retry: bool,
    retries: u8,
}

/// Rules that were in force, with references to what they name.
#[derive(Debug)]
struct Older {
    clauses: Arc<[Clause]>,
    order: u64,
}

impl Overflow {
    /// The slot is given to another pod, or to none.
    pub(super) fn other_pod(&mut self, slot: Slot) {
        self.other_pod.insert(slot);
    }
}

impl Compiler {
    /// A commit begins: what was left out is tried again.
    pub(super) fn begin_overflow(&mut self) {
        self.overflow.before = self.signatures.last_order();
        self.overflow.retries = if self.changed { 0 } else { self.overflow.retries.saturating_add(1) };
        for name in self.features.fit_numbers(&mut self.ports) {
            for signature in self.features.name_signatures(name).to_vec() {
                self.forget_rows(signature);
                self.signatures.fresh.insert(signature);
            }
        }
        let short = &mut self.overflow.short;
        let again: Vec<_> = short.extract_if(.., |_, resource| *resource != Resource::Peers).collect();
        self.signatures.fresh.extend(again.into_iter().map(|(signature, _)| signature));
    }

    /// A commit ends.
    pub(super) fn end_overflow(&mut self) {
        for older in std::mem::take(&mut self.overflow.older).into_values() {
            self.release_clauses(&older.clauses);
        }
        if self.overflow.left_out.is_empty() {
            self.overflow.short.retain(|_, resource| *resource != Resource::Peers);
        }
        self.overflow.other_pod.clear();
        // Classes that only what is gone told apart merge at the next commit.
        self.overflow.starved =
            self.ports.take_starved() || (self.ports.mergeable() && self.lacks(Resource::Classes));
        self.overflow.retry = false;
    }

    /// Ids have settled.
    pub(super) fn settle_overflow(&mut self) {
        if std::mem::take(&mut self.overflow.starved) {
            self.overflow.retry |= self.overflow.retries < RETRIES;
        }
    }

    fn lacks(&self, resource: Resource) -> bool {
        let lacking = |side: &SideState| match *side {
            SideState::Older(_, lacking) | SideState::Unfit(lacking) => lacking == resource,
            SideState::Rules(_) | SideState::Open | SideState::Unknown => false,
        };
        self.sides.values().flatten().any(lacking) || self.overflow.short.values().any(|&r| r == resource)
    }

    /// Slots with rules that do not fit.
    pub(super) fn unfit_slots(&self) -> impl Iterator<Item = Slot> + '_ {
        let unfit = |side: &SideState| matches!(side, SideState::Older(..) | SideState::Unfit(_));
        self.sides.iter().filter(move |(_, sides)| sides.iter().any(unfit)).map(|(&slot, _)| slot)
    }

    /// The side that a slot's endpoint, if it is still the same, had so far.
    pub(super) fn side_before(&self, slot: Slot, direction: usize) -> Option<Signature> {
        let sides = self.sides.get(&slot).filter(|_| !self.overflow.other_pod.contains(&slot))?;
        sides[direction].signature()
    }

    /// Keeps in mind the rules of a side that is about to have others.
    pub(super) fn remember(&mut self, slot: Slot, direction: usize, signature: Signature) {
        let Some(state) = self.signatures.get(signature) else { return };
        let older = Older { clauses: state.key.clone(), order: state.order };
        self.retain_clauses(&older.clauses);
        self.overflow.older.insert((slot, direction), older);
    }

    /// Takes a signature that this commit has made back from all sides that have it.
    pub(super) fn give_way(&mut self, signature: Signature, resource: Resource) {
        let users: Vec<(Slot, usize)> = self
            .sides
            .iter()
            .flat_map(|(&slot, sides)| [(slot, 0, sides[0]), (slot, 1, sides[1])])
            .filter(|(.., side)| side.signature() == Some(signature))
            .map(|(slot, direction, _)| (slot, direction))
            .collect();
        for (slot, direction) in users {
            let mut instead = SideState::Unfit(resource);
            if let Some(older) = self.overflow.older.remove(&(slot, direction)) {
                if let Ok(kept) = self.acquire_signature(&older.clauses, Some(older.order)) {
                    instead = SideState::Older(kept, resource);
                }
                self.release_clauses(&older.clauses);
            }
            if let Some(sides) = self.sides.get_mut(&slot) {
                sides[direction] = instead;
            }
            self.journal.endpoints.insert(slot);
            self.release_signature(signature);
        }
    }

    /// The last of those signatures that this commit has made.
    pub(super) fn newest_of_commit(
        &self,
        signatures: impl IntoIterator<Item = Signature>,
    ) -> Option<Signature> {
        let order = |&signature: &Signature| self.signatures.order(signature);
        signatures.into_iter().filter(|s| order(s) > self.overflow.before).max_by_key(order)
    }

    /// The signature is in force but for what there is no room for.
    pub(super) fn cut_short(&mut self, signature: Signature, resource: Resource) {
        self.overflow.short.entry(signature).or_insert(resource);
    }

    /// The addresses of peers fit, or some that came with this commit are left out.
    pub(super) fn check_peers(&mut self) -> Result<(), (Signature, Resource)> {
        for v6 in [false, true] {
            let excess = self.peer_counts[usize::from(v6)].saturating_sub(self.limits.peers as usize);
            if excess == 0 {
                continue;
            }
            let mut old = BTreeMap::new();
            for &(address, atom, _) in self.journal.peers.iter().filter(|(a, ..)| a.is_ipv6() == v6) {
                old.entry(address).or_insert(atom);
            }
            old.retain(|address, atom| {
                atom.is_none() && self.peers.get(address).is_some_and(|peer| peer.atom.is_some())
            });
            let atoms: BTreeSet<_> = old.keys().filter_map(|address| self.peers.get(address)?.atom).collect();
            let looking = atoms.into_iter().flat_map(|atom| self.relevant(self.atoms.key(atom)));
            if let Some(newest) = self.newest_of_commit(looking) {
                return Err((newest, Resource::Peers));
            }
            for &address in old.keys().rev().take(excess) {
                self.leave_out(address);
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, address: IpAddr) {
        let Some(atom) = self.peers.get_mut(&address).and_then(|peer| peer.atom.take()) else { return };
        self.peer_counts[usize::from(address.is_ipv6())] -= 1;
        self.journal.peers.push((address, Some(atom), None));
        let key: Key = self.atoms.key(atom).clone();
        for signature in self.relevant(&key) {
            self.cut_short(signature, Resource::Peers);
        }
        self.atoms.release(atom);
        self.overflow.left_out.insert(address, key);
    }

    /// A signature that comes after an address was left out allows it less, too, if it looks at it.
    pub(super) fn miss_left_out(&mut self, signature: Signature) {
        let keys: BTreeSet<&Key> = self.overflow.left_out.values().collect();
        if keys.into_iter().any(|key| self.relevant(key).contains(&signature)) {
            self.cut_short(signature, Resource::Peers);
        }
    }

    /// Gives addresses that were left out their entries, as far as there is room.
    pub(super) fn enter_left_out(&mut self) {
        for v6 in [false, true] {
            let room = (self.limits.peers as usize).saturating_sub(self.peer_counts[usize::from(v6)]);
            let left_out = self.overflow.left_out.keys().filter(|a| a.is_ipv6() == v6);
            let entering: Vec<_> = left_out.take(room).copied().collect();
            for address in entering {
                self.place_address(address);
            }
        }
    }
}
