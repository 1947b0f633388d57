//! (signature, atom) → port set, found from either side.

use std::collections::BTreeMap;

use crate::tables::{Atom, SetId, Signature};

/// Rows in use.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// By signature.
    sets: Vec<BTreeMap<Atom, SetId>>,
    /// By atom: the signatures that have a row for it, in no order.
    signatures: Vec<Vec<Signature>>,
    count: usize,
}

impl Rows {
    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing is kept, not even by atoms.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
            && self.sets.iter().all(BTreeMap::is_empty)
            && self.signatures.iter().all(Vec::is_empty)
    }

    /// The set of a row.
    pub(super) fn get(&self, signature: Signature, atom: Atom) -> Option<SetId> {
        self.sets.get(signature as usize)?.get(&atom).copied()
    }

    /// Adds a row that is not there yet.
    pub(super) fn insert(&mut self, signature: Signature, atom: Atom, set: SetId) {
        at(&mut self.sets, signature).insert(atom, set);
        at(&mut self.signatures, atom).push(signature);
        self.count += 1;
    }

    /// Takes all rows of a signature out, by atom.
    pub(super) fn take_signature(&mut self, signature: Signature) -> BTreeMap<Atom, SetId> {
        let taken = self.sets.get_mut(signature as usize).map(std::mem::take).unwrap_or_default();
        for &atom in taken.keys() {
            let signatures = &mut self.signatures[atom as usize];
            if let Some(at) = signatures.iter().position(|&s| s == signature) {
                signatures.swap_remove(at);
            }
        }
        self.count -= taken.len();
        taken
    }

    /// Takes all rows for an atom out.
    pub(super) fn take_atom(&mut self, atom: Atom) -> Vec<(Signature, SetId)> {
        let signatures = self.signatures.get_mut(atom as usize).map(std::mem::take).unwrap_or_default();
        let set = |signature| Some((signature, self.sets.get_mut(signature as usize)?.remove(&atom)?));
        let taken: Vec<_> = signatures.into_iter().filter_map(set).collect();
        self.count -= taken.len();
        taken
    }
}

/// The place of an id, made if need be.
fn at<T: Default>(places: &mut Vec<T>, id: u32) -> &mut T {
    if places.len() <= id as usize {
        places.resize_with(id as usize + 1, T::default);
    }
    &mut places[id as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_and_forgotten_from_both_sides() {
        let mut rows = Rows::default();
        for (signature, atom) in [(2, 1), (2, 7), (3, 7)] {
            rows.insert(signature, atom, signature * 10 + atom);
        }
        let found = [(2, 1), (2, 7), (3, 7), (3, 1), (9, 9)].map(|(s, a)| rows.get(s, a));
        assert_eq!((rows.len(), found), (3, [Some(21), Some(27), Some(37), None, None]));
        assert_eq!(rows.take_signature(2), BTreeMap::from([(1, 21), (7, 27)]));
        assert_eq!(rows.signatures.concat(), [3]);
        assert_eq!(rows.take_atom(7), [(3, 37)]);
        assert!(rows.is_empty());
        assert!(rows.take_signature(9).is_empty() && rows.take_atom(9).is_empty());
    }
}
