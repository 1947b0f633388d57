//! Atoms: addresses that no rule in use tells apart.

use std::collections::{BTreeSet, HashMap};

use fairlead_common::maps::{ATOM_FIRST, ATOM_WORLD};

use super::few::Few;
use super::ids::Ids;
use super::partition::{Class, PLAIN};
use crate::tables::Atom;

/// What an atom's addresses have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// Classes of the pods that stand behind the address, [`PLAIN`] left out.
    pub(super) classes: Few,
    /// Class of the nearest prefix: the blocks that cover the address.
    pub(super) region: Class,
}

#[derive(Debug, Default)]
struct State {
    key: Key,
    references: u32,
}

/// Atoms in use. The world's is not among them.
#[derive(Debug)]
pub(super) struct Atoms {
    ids: Ids,
    states: Vec<State>,
    table: HashMap<Key, Atom>,
    by_class: BTreeSet<(Class, Atom)>,
    by_region: BTreeSet<(Class, Atom)>,
    idle: Vec<Atom>,
    fresh: Vec<Atom>,
}

impl Default for Atoms {
    fn default() -> Self {
        Self {
            ids: Ids::new(ATOM_FIRST),
            states: vec![State::default()],
            table: HashMap::new(),
            by_class: BTreeSet::new(),
            by_region: BTreeSet::new(),
            idle: Vec::new(),
            fresh: Vec::new(),
        }
    }
}

impl Atoms {
    /// Number of atoms.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// What an atom's addresses have in common.
    pub(super) fn key(&self, atom: Atom) -> &Key {
        &self.states[atom as usize].key
    }

    /// Whether the id is in use.
    pub(super) fn is_live(&self, atom: Atom) -> bool {
        self.states[atom as usize].references > 0
    }

    /// A reference to the atom of `key`.
    pub(super) fn acquire(&mut self, key: Key) -> Atom {
        if key == Key::default() {
            return ATOM_WORLD;
        }
        if let Some(&atom) = self.table.get(&key) {
            self.states[atom as usize].references += 1;
            return atom;
        }
        let atom = self.ids.take();
        if self.states.len() <= atom as usize {
            self.states.resize_with(atom as usize + 1, State::default);
        }
        for &class in key.classes.as_slice() {
            self.by_class.insert((class, atom));
        }
        self.by_region.insert((key.region, atom));
        self.table.insert(key.clone(), atom);
        self.states[atom as usize] = State { key, references: 1 };
        self.fresh.push(atom);
        atom
    }

    /// Gives a reference back; the atom goes at the next [`Atoms::take_idle`] unless it is acquired
    /// again before.
    pub(super) fn release(&mut self, atom: Atom) {
        if atom == ATOM_WORLD {
            return;
        }
        let state = &mut self.states[atom as usize];
        state.references -= 1;
        if state.references == 0 {
            self.idle.push(atom);
        }
    }

    /// Forgets atoms without references and tells which.
    pub(super) fn take_idle(&mut self, serial: u64) -> Vec<Atom> {
        let mut idle = std::mem::take(&mut self.idle);
        idle.sort_unstable();
        idle.dedup();
        idle.retain(|&atom| self.states[atom as usize].references == 0);
        for &atom in &idle {
            let key = std::mem::take(&mut self.states[atom as usize].key);
            for &class in key.classes.as_slice() {
                self.by_class.remove(&(class, atom));
            }
            self.by_region.remove(&(key.region, atom));
            self.table.remove(&key);
            self.ids.free(serial, atom);
        }
        idle
    }

    /// The next atom, if any, whose rows have not been made. It stays first until
    /// [`Atoms::done_fresh`].
    pub(super) fn next_fresh(&self) -> Option<Atom> {
        self.fresh.last().copied()
    }

    /// The rows of [`Atoms::next_fresh`] are made.
    pub(super) fn done_fresh(&mut self) {
        self.fresh.pop();
    }

    /// Atoms of a class of pods.
    pub(super) fn of_class(&self, class: Class) -> impl Iterator<Item = Atom> + '_ {
        self.by_class.range((class, 0)..=(class, Atom::MAX)).map(|&(_, atom)| atom)
    }

    /// Atoms of a region other than that without blocks.
    pub(super) fn of_region(&self, region: Class) -> impl Iterator<Item = Atom> + '_ {
        debug_assert_ne!(region, PLAIN);
        self.by_region.range((region, 0)..=(region, Atom::MAX)).map(|&(_, atom)| atom)
    }

    /// Ids freed by commits up to `serial` may be used again.
    pub(super) fn settled(&mut self, serial: u64) {
        self.ids.settled(serial);
    }
}
