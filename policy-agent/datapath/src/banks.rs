//! Values of which one bank is in force while another is prepared.
//!
//! An element is *settled* when all of its banks say the same, which is the case for all but those
//! that the last few commits touched. Only unsettled ones are remembered here; the rest is read back
//! from the kernel when it changes.

use std::collections::HashMap;
use std::hash::Hash;

use fairlead_common::maps::{ABSENT, BANKS, Banked};

use crate::map::{Map, MapError};
use crate::sys::Plain;

/// What an unsettled element holds in the kernel.
#[derive(Clone, Copy)]
struct Unsettled {
    banks: Banked,
    /// What is in force, [`ABSENT`] for nothing.
    current: u32,
    /// What is in force once the commit under way is.
    next: u32,
}

/// A map of [`Banked`] values.
pub(crate) struct BankedMap<K> {
    map: Map<K, Banked>,
    /// At least as many elements as the kernel holds.
    present: usize,
    unsettled: HashMap<K, Unsettled>,
}

/// One change of a commit: the value that the bank under preparation gets.
#[derive(Clone, Copy)]
pub(crate) struct Change<K> {
    pub(crate) key: K,
    /// What the element means from now on, [`ABSENT`] where it is to go.
    pub(crate) next: u32,
    /// What the prepared bank says while the element still exists; differs from `next` only for
    /// removed prefixes, which then say what the enclosing prefix says.
    pub(crate) value: u32,
    /// What the other banks say if the element is new.
    pub(crate) before: u32,
}

impl<K: Plain + Copy + Eq + Hash> BankedMap<K> {
    pub(crate) fn new(map: Map<K, Banked>) -> Self {
        Self { map, present: 0, unsettled: HashMap::new() }
    }

    /// Writes the first state into a map that nothing looks into yet.
    pub(crate) fn fill(&mut self, changes: &[Change<K>]) -> Result<(), MapError> {
        // What an attempt that failed has left there.
        changes.iter().filter(|c| c.next == ABSENT).try_for_each(|c| self.map.remove(&c.key))?;
        let present = || changes.iter().filter(|c| c.next != ABSENT);
        let keys: Vec<K> = present().map(|c| c.key).collect();
        let values: Vec<Banked> = present().map(|c| [c.next; BANKS]).collect();
        self.present = keys.len();
        self.map.set_many(&keys, &values)
    }

    /// Whether `more` elements may not fit beside those that are there and those that are leaving.
    pub(crate) fn is_full(&self, more: usize) -> bool {
        self.present + more > self.map.max_entries() as usize
    }

    /// Prepares a bank: the changes, and whatever earlier commits left unsettled.
    ///
    /// `in_force` is the bank in force. `may_exist` is false for keys that the kernel surely does not
    /// have: a lookup in a trie answers with the enclosing prefix. After an error nothing in force has changed, and the next
    /// preparation, whose changes include these, mends what this one began.
    pub(crate) fn prepare(
        &mut self,
        changes: &[Change<K>],
        in_force: usize,
        bank: usize,
        may_exist: impl Fn(&K) -> bool,
    ) -> Result<(), MapError> {
        for unsettled in self.unsettled.values_mut() {
            unsettled.next = unsettled.current;
        }
        let mut values = HashMap::with_capacity(changes.len());
        for change in changes {
            let entry = match self.unsettled.get(&change.key) {
                Some(unsettled) => Unsettled { next: change.next, ..*unsettled },
                None => match self.read(&change.key, &may_exist)? {
                    Some(banks) => Unsettled { banks, current: banks[in_force], next: change.next },
                    None if change.next == ABSENT => continue,
                    None => {
                        self.present += 1;
                        Unsettled { banks: [change.before; BANKS], current: ABSENT, next: change.next }
                    }
                },
            };
            self.unsettled.insert(change.key, entry);
            values.insert(change.key, change.value);
        }
        let mut keys = Vec::with_capacity(self.unsettled.len());
        let mut written = Vec::with_capacity(self.unsettled.len());
        for (key, unsettled) in &self.unsettled {
            let value = values.get(key).copied().unwrap_or(unsettled.next);
            let changed = values.contains_key(key);
            if changed || unsettled.banks[bank] != value {
                let mut banks = unsettled.banks;
                banks[bank] = value;
                keys.push(*key);
                written.push(banks);
            }
        }
        self.map.set_many(&keys, &written)?;
        // Not before: what was not written after all must be by the next preparation.
        for (key, banks) in keys.iter().zip(written) {
            if let Some(unsettled) = self.unsettled.get_mut(key) {
                unsettled.banks = banks;
            }
        }
        Ok(())
    }

    fn read(&self, key: &K, may_exist: impl Fn(&K) -> bool) -> Result<Option<Banked>, MapError> {
        if may_exist(key) { self.map.get(key, [ABSENT; BANKS]) } else { Ok(None) }
    }

    /// The prepared bank is in force.
    pub(crate) fn commit(&mut self) {
        for unsettled in self.unsettled.values_mut() {
            unsettled.current = unsettled.next;
        }
    }

    /// No packet looks into any bank but the one in force: makes all banks say the same, and removes
    /// what is gone.
    pub(crate) fn settle(&mut self) -> Result<(), MapError> {
        let mut keys = Vec::new();
        let mut values = Vec::new();
        let mut gone = 0;
        for (key, unsettled) in &self.unsettled {
            if unsettled.current == ABSENT {
                self.map.remove(key)?;
                gone += 1;
            } else if unsettled.banks != [unsettled.current; BANKS] {
                keys.push(*key);
                values.push([unsettled.current; BANKS]);
            }
        }
        self.map.set_many(&keys, &values)?;
        self.present -= gone;
        self.unsettled.clear();
        Ok(())
    }

    /// Keys that are gone in the state in force but still there in the kernel.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = K> + '_ {
        self.unsettled.iter().filter(|(_, u)| u.current == ABSENT).map(|(key, _)| *key)
    }
}
