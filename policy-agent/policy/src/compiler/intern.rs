//! Values stored once and named by small numbers, as long as somebody refers to them.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashTable;

/// Interned values with reference counts. Ids of values that are gone are used again.
#[derive(Debug)]
pub(super) struct Interner<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    // Randomly seeded: labels come from whoever may create a pod. The order of a hash never shows.
    table: HashTable<Entry>,
    hasher: RandomState,
}

/// An id with its value's hash: a table that grows need not look at the values, which are all over the heap.
#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u32,
    id: u32,
}

impl Entry {
    /// What the table goes by: its top and its lowest bits.
    fn spread(self) -> u64 {
        u64::from(self.hash) << 32 | u64::from(self.hash)
    }
}

#[derive(Debug)]
struct Slot<T> {
    value: Option<T>,
    references: u32,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), table: HashTable::new(), hasher: RandomState::new() }
    }
}

impl<T> Interner<T> {
    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// The value of `id`.
    #[expect(clippy::expect_used, reason = "ids are handed out here and held with a reference")]
    pub(super) fn get(&self, id: u32) -> &T {
        self.slots[id as usize].value.as_ref().expect("an id in use has a value")
    }

    /// How many references there are to `id`.
    pub(super) fn references(&self, id: u32) -> u32 {
        self.slots[id as usize].references
    }

    /// One reference more to `id`.
    pub(super) fn retain(&mut self, id: u32) {
        self.slots[id as usize].references += 1;
    }

    /// Ids and values, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.slots).filter_map(|(id, slot)| Some((id, slot.value.as_ref()?)))
    }
}

impl<T: Hash + Eq> Interner<T> {
    /// Id of a value that is there.
    pub(super) fn find<Q>(&self, value: &Q) -> Option<u32>
    where
        T: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hash(value);
        let is = |id: u32| self.slots[id as usize].value.as_ref().is_some_and(|v| v.borrow() == value);
        let found = self.table.find(Entry { hash, id: 0 }.spread(), |e| e.hash == hash && is(e.id));
        found.map(|entry| entry.id)
    }

    fn hash<Q: Hash + ?Sized>(&self, value: &Q) -> u32 {
        self.hasher.hash_one(value) as u32
    }

    /// A reference to `value`, and whether it is new.
    pub(super) fn acquire(&mut self, value: T) -> (u32, bool) {
        match self.find(&value) {
            Some(id) => {
                self.retain(id);
                (id, false)
            }
            None => (self.add(value), true),
        }
    }

    /// Stores a value that is not there yet, with one reference.
    fn add(&mut self, value: T) -> u32 {
        let hash = self.hash(&value);
        let slot = Slot { value: Some(value), references: 1 };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        let entry = Entry { hash, id };
        self.table.insert_unique(entry.spread(), entry, |entry| entry.spread());
        id
    }

    /// One reference less to `id`; the value, when it was the last.
    pub(super) fn release(&mut self, id: u32) -> Option<T> {
        let slot = &mut self.slots[id as usize];
        slot.references -= 1;
        if slot.references > 0 {
            return None;
        }
        let value = slot.value.take()?;
        let entry = Entry { hash: self.hash(&value), id };
        if let Ok(entry) = self.table.find_entry(entry.spread(), |e| e.id == id) {
            entry.remove();
        }
        self.free.push(id);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_id_for_equal_values_until_the_last_reference_goes() {
        let mut strings = Interner::<Box<str>>::default();
        let (a, new) = strings.acquire("a".into());
        assert!(new);
        let (b, _) = strings.acquire("b".into());
        assert_eq!(strings.acquire("a".into()), (a, false));
        assert_ne!(a, b);
        assert_eq!(strings.find("a"), Some(a));
        assert_eq!(strings.release(a), None);
        assert_eq!(strings.release(a).as_deref(), Some("a"));
        assert_eq!(strings.find("a"), None);
        assert_eq!(strings.acquire("c".into()), (a, true));
        assert_eq!((&**strings.get(a), strings.len()), ("c", 2));
    }

    #[test]
    fn growth_keeps_every_value_findable() {
        let mut numbers = Interner::<u64>::default();
        let ids: Vec<_> = (0..1000).map(|n| numbers.acquire(n).0).collect();
        assert!((0..1000).all(|n| numbers.find(&n) == Some(ids[n as usize])));
        for n in (0..1000).step_by(2) {
            assert_eq!(numbers.release(ids[n]), Some(n as u64));
        }
        assert_eq!(numbers.len(), 500);
        assert!((0..1000).all(|n| numbers.find(&n).is_some() == (n % 2 == 1)));
    }
}
