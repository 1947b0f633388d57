//! Who claims what.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;

/// Claimants of each of many things. Nearly all have one, which takes no more than in a map; there may be any number.
#[derive(Clone, Debug)]
pub struct Claims<K, C> {
    first: BTreeMap<K, C>,
    /// Those after the first, of what has several.
    others: BTreeMap<K, BTreeSet<C>>,
}

impl<K, C> Default for Claims<K, C> {
    fn default() -> Self {
        Self { first: BTreeMap::new(), others: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, C: Ord> Claims<K, C> {
    /// Somebody claims something; that they do already is no error.
    pub fn claim(&mut self, key: K, claimant: C) {
        match self.first.entry(key) {
            Entry::Vacant(entry) => drop(entry.insert(claimant)),
            Entry::Occupied(entry) if *entry.get() == claimant => {}
            Entry::Occupied(mut entry) => {
                let key = entry.key().clone();
                let other = if claimant < *entry.get() { entry.insert(claimant) } else { claimant };
                self.others.entry(key).or_default().insert(other);
            }
        }
    }

    /// Somebody claims something no longer; that they did not is no error.
    pub fn release(&mut self, key: &K, claimant: &C) {
        let others = self.others.get_mut(key);
        if self.first.get(key) == Some(claimant) {
            match others.and_then(BTreeSet::pop_first) {
                Some(next) => drop(self.first.insert(key.clone(), next)),
                None => drop(self.first.remove(key)),
            }
        } else if let Some(others) = others {
            others.remove(claimant);
        }
        if self.others.get(key).is_some_and(BTreeSet::is_empty) {
            self.others.remove(key);
        }
    }

    /// The least of those that claim it.
    pub fn first(&self, key: &K) -> Option<&C> {
        self.first.get(key)
    }

    /// All that claim it, the least first.
    pub fn all<'a>(&'a self, key: &K) -> impl Iterator<Item = &'a C> + use<'a, K, C> {
        self.first.get(key).into_iter().chain(self.others.get(key).into_iter().flatten())
    }

    /// What is claimed, with the least claimant of each.
    pub fn range(&self, range: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &C)> {
        self.first.range(range)
    }

    /// What has several claimants, with those after the least.
    pub fn disputed(&self) -> impl Iterator<Item = (&K, &BTreeSet<C>)> {
        self.others.iter()
    }

    /// Whether it has several claimants.
    pub fn is_disputed(&self, key: &K) -> bool {
        self.others.contains_key(key)
    }

    /// Whether nobody claims anything.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.others.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn everybody_who_claims_is_known_in_order(
            steps in vec((0..4_u8, 0..4_u8, any::<bool>()), 0..60),
        ) {
            let mut claims = Claims::default();
            let mut all: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
            for (key, claimant, claimed) in steps {
                if claimed {
                    claims.claim(key, claimant);
                    all.entry(key).or_default().insert(claimant);
                } else {
                    claims.release(&key, &claimant);
                    all.entry(key).or_default().remove(&claimant);
                }
                for key in 0..4 {
                    let expected: Vec<u8> = all.get(&key).into_iter().flatten().copied().collect();
                    prop_assert_eq!(claims.all(&key).copied().collect::<Vec<_>>(), expected.clone());
                    prop_assert_eq!(claims.first(&key), expected.first());
                    prop_assert_eq!(claims.is_disputed(&key), expected.len() > 1);
                }
                let claimed = all.iter().filter(|(_, claimants)| !claimants.is_empty());
                let first: Vec<(u8, u8)> = claimed.clone().map(|(key, all)| (*key, *all.first().unwrap())).collect();
                prop_assert_eq!(claims.range(..).map(|(k, c)| (*k, *c)).collect::<Vec<_>>(), first);
                let disputed = claimed.filter(|(_, all)| all.len() > 1).map(|(key, _)| key);
                prop_assert!(claims.disputed().map(|(key, _)| key).eq(disputed));
                prop_assert_eq!(claims.is_empty(), all.values().all(BTreeSet::is_empty));
            }
        }
    }
}
