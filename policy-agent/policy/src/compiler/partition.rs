//! Members told apart by exactly the features that they have.
//!
//! A class is all members with the same features. A feature that comes or goes splits or merges only
//! the classes that it cuts; where it takes in a class whole, the class stays and its key changes.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

/// A thing to be told apart.
pub(super) type Member = u32;
/// What members differ in.
pub(super) type Feature = u32;
/// All members with the same features.
pub(super) type Class = u32;

/// The class of members without any feature. It is always there.
pub(super) const PLAIN: Class = 0;

const NOWHERE: Class = u32::MAX;

/// Members and their classes.
#[derive(Debug)]
pub(super) struct Partition {
    places: Vec<Place>,
    classes: Vec<ClassState>,
    table: HashTable<Class>,
    hasher: RandomState,
    free: Vec<Class>,
    /// Ids of classes dissolved since [`Partition::recycle`].
    retired: Vec<Class>,
    holders: Vec<Vec<Class>>,
    moved: Vec<Member>,
    /// Classes whose features have changed while their members stayed.
    rekeyed: Vec<Class>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    class: Class,
    position: u32,
}

#[derive(Debug, Default)]
struct ClassState {
    key: Box<[Feature]>,
    members: Vec<Member>,
}

impl Default for Partition {
    fn default() -> Self {
        let mut partition = Self {
            places: Vec::new(),
            classes: Vec::new(),
            table: HashTable::new(),
            hasher: RandomState::new(),
            free: Vec::new(),
            retired: Vec::new(),
            holders: Vec::new(),
            moved: Vec::new(),
            rekeyed: Vec::new(),
        };
        partition.class_of_key(&[]);
        partition
    }
}

impl Partition {
    /// The class of a member; [`PLAIN`] where it is none.
    pub(super) fn class(&self, member: Member) -> Class {
        match self.places.get(member as usize) {
            Some(place) if place.class != NOWHERE => place.class,
            _ => PLAIN,
        }
    }

    /// The features of a class, sorted.
    pub(super) fn key(&self, class: Class) -> &[Feature] {
        &self.classes[class as usize].key
    }

    /// The members of a class.
    pub(super) fn members(&self, class: Class) -> &[Member] {
        &self.classes[class as usize].members
    }

    /// The classes that have a feature.
    pub(super) fn holders(&self, feature: Feature) -> &[Class] {
        self.holders.get(feature as usize).map_or(&[], Vec::as_slice)
    }

    /// Classes whose features have changed since the last [`Partition::take_moved`] while their members
    /// stayed; some may be gone by now.
    pub(super) fn rekeyed(&self) -> &[Class] {
        &self.rekeyed
    }

    /// Members that changed class since the last call, unsorted, some of them more than once.
    pub(super) fn take_moved(&mut self) -> Vec<Member> {
        self.rekeyed.clear();
        std::mem::take(&mut self.moved)
    }

    /// How many ids of classes there are, in use or not.
    #[cfg(test)]
    pub(super) fn ids(&self) -> usize {
        self.classes.len()
    }

    /// Ids of dissolved classes may be used again.
    pub(super) fn recycle(&mut self) {
        self.free.append(&mut self.retired);
    }

    /// Puts a member where its features, sorted, belong.
    pub(super) fn place(&mut self, member: Member, key: &[Feature]) {
        let class = self.class_of_key(key);
        self.transfer(member, class);
    }

    /// Takes a member out.
    pub(super) fn remove(&mut self, member: Member) {
        let Some(place) = self.places.get(member as usize).filter(|p| p.class != NOWHERE).copied() else {
            return;
        };
        self.detach(place);
        self.places[member as usize].class = NOWHERE;
        self.moved.push(member);
        self.dissolve_if_empty(place.class);
    }

    /// A feature that no member has so far comes to `members`, each named once.
    pub(super) fn add_feature(&mut self, feature: Feature, mut members: Vec<Member>) {
        members.retain(|&m| self.places.get(m as usize).is_some_and(|p| p.class != NOWHERE));
        members.sort_unstable_by_key(|&m| (self.places[m as usize].class, m));
        let mut rest = &*members;
        while let Some(&first) = rest.first() {
            let class = self.class(first);
            let count = rest.partition_point(|&m| self.class(m) <= class);
            let (these, others) = rest.split_at(count);
            rest = others;
            let mut key = self.key(class).to_vec();
            let Err(at) = key.binary_search(&feature) else { continue };
            key.insert(at, feature);
            let whole = class != PLAIN && these.len() == self.classes[class as usize].members.len();
            if whole && self.find(&key).is_none() {
                self.rekey(class, key.into());
                hold(&mut self.holders, feature, class);
            } else {
                let target = self.class_of_key(&key);
                for &member in these {
                    self.transfer(member, target);
                }
            }
        }
    }

    /// A feature goes from every member that has it.
    pub(super) fn remove_feature(&mut self, feature: Feature) {
        let Some(holders) = self.holders.get_mut(feature as usize).map(std::mem::take) else { return };
        for class in holders {
            let key: Box<[_]> = self.key(class).iter().copied().filter(|&f| f != feature).collect();
            match self.find(&key) {
                None => self.rekey(class, key),
                Some(twin) => {
                    let size = |class: Class| self.classes[class as usize].members.len();
                    // The smaller one moves, so that few addresses change.
                    if twin == PLAIN || size(twin) >= size(class) {
                        self.merge(class, twin);
                    } else {
                        self.merge(twin, class);
                        self.rekey(class, key);
                    }
                }
            }
        }
    }

    fn merge(&mut self, from: Class, into: Class) {
        for member in self.classes[from as usize].members.clone() {
            self.transfer(member, into);
        }
    }

    fn find(&self, key: &[Feature]) -> Option<Class> {
        self.table.find(self.hasher.hash_one(key), |&c| *self.classes[c as usize].key == *key).copied()
    }

    fn class_of_key(&mut self, key: &[Feature]) -> Class {
        if let Some(class) = self.find(key) {
            return class;
        }
        let class = self.free.pop().unwrap_or_else(|| {
            self.classes.push(ClassState::default());
            (self.classes.len() - 1) as Class
        });
        self.classes[class as usize].key = key.into();
        self.enter(class);
        for &feature in key {
            hold(&mut self.holders, feature, class);
        }
        class
    }

    fn enter(&mut self, class: Class) {
        let (classes, hasher) = (&self.classes, &self.hasher);
        let hash = |&c: &Class| hasher.hash_one(&*classes[c as usize].key);
        self.table.insert_unique(hash(&class), class, hash);
    }

    fn leave(&mut self, class: Class) {
        let hash = self.hasher.hash_one(&*self.classes[class as usize].key);
        if let Ok(entry) = self.table.find_entry(hash, |&c| c == class) {
            entry.remove();
        }
    }

    fn rekey(&mut self, class: Class, key: Box<[Feature]>) {
        self.rekeyed.push(class);
        self.leave(class);
        self.classes[class as usize].key = key;
        self.enter(class);
    }

    fn transfer(&mut self, member: Member, class: Class) {
        if self.places.len() <= member as usize {
            self.places.resize(member as usize + 1, Place { class: NOWHERE, position: 0 });
        }
        let place = self.places[member as usize];
        if place.class == class {
            return;
        }
        if place.class != NOWHERE {
            self.detach(place);
        }
        let members = &mut self.classes[class as usize].members;
        self.places[member as usize] = Place { class, position: members.len() as u32 };
        members.push(member);
        self.moved.push(member);
        if place.class != NOWHERE {
            self.dissolve_if_empty(place.class);
        }
    }

    fn detach(&mut self, place: Place) {
        let members = &mut self.classes[place.class as usize].members;
        members.swap_remove(place.position as usize);
        if let Some(&member) = members.get(place.position as usize) {
            self.places[member as usize].position = place.position;
        }
    }

    fn dissolve_if_empty(&mut self, class: Class) {
        let state = &self.classes[class as usize];
        if class == PLAIN || !state.members.is_empty() {
            return;
        }
        self.leave(class);
        let state = std::mem::take(&mut self.classes[class as usize]);
        for feature in state.key {
            if let Some(holders) = self.holders.get_mut(feature as usize)
                && let Some(at) = holders.iter().position(|&c| c == class)
            {
                holders.swap_remove(at);
            }
        }
        self.retired.push(class);
    }
}

fn hold(holders: &mut Vec<Vec<Class>>, feature: Feature, class: Class) {
    if holders.len() <= feature as usize {
        holders.resize_with(feature as usize + 1, Vec::new);
    }
    holders[feature as usize].push(class);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Place(Member, BTreeSet<usize>),
        Remove(Member),
        Feature(Feature, BTreeSet<Member>),
        NoFeature(Feature),
    }

    fn step() -> impl Strategy<Value = Step> {
        let members = prop::collection::btree_set(0..12u32, 0..12);
        prop_oneof![
            2 => (0..12u32, prop::collection::btree_set(0..6usize, 0..4)).prop_map(|(m, k)| Step::Place(m, k)),
            1 => (0..12u32).prop_map(Step::Remove),
            2 => (0..6u32, members).prop_map(|(f, m)| Step::Feature(f, m)),
            2 => (0..6u32).prop_map(Step::NoFeature),
        ]
    }

    proptest! {
        /// Two members share a class exactly when they have the same features; who changed class is
        /// told, and a class in use never changes its meaning behind the back of one that stays.
        #[test]
        fn classes_are_equal_features(steps in prop::collection::vec(step(), 0..40)) {
            let mut partition = Partition::default();
            let mut model = BTreeMap::<Member, BTreeSet<Feature>>::new();
            let mut live = BTreeSet::<Feature>::new();
            for step in steps {
                let before: Vec<_> = (0..12).map(|m| partition.class(m)).collect();
                match step {
                    Step::Place(m, picks) => {
                        let live: Vec<_> = live.iter().copied().collect();
                        let key: BTreeSet<_> = picks.iter().filter_map(|&i| live.get(i).copied()).collect();
                        partition.place(m, &key.iter().copied().collect::<Vec<_>>());
                        model.insert(m, key);
                    }
                    Step::Remove(m) => {
                        partition.remove(m);
                        model.remove(&m);
                    }
                    Step::Feature(f, members) => {
                        if live.insert(f) {
                            for (m, key) in &mut model {
                                if members.contains(m) {
                                    key.insert(f);
                                }
                            }
                            partition.add_feature(f, members.into_iter().collect());
                        }
                    }
                    Step::NoFeature(f) => {
                        live.remove(&f);
                        for key in model.values_mut() {
                            key.remove(&f);
                        }
                        partition.remove_feature(f);
                    }
                }
                let moved: BTreeSet<_> = partition.take_moved().into_iter().collect();
                for m in 0..12 {
                    let expected: Vec<_> = model.get(&m).into_iter().flatten().copied().collect();
                    prop_assert_eq!(partition.key(partition.class(m)), expected);
                    prop_assert!(moved.contains(&m) || before[m as usize] == partition.class(m));
                }
                let distinct: BTreeSet<_> = model.values().filter(|k| !k.is_empty()).collect();
                prop_assert_eq!(partition.table.len(), distinct.len() + 1);
                for f in 0..6 {
                    let expected: BTreeSet<_> = model.iter().filter(|(_, k)| k.contains(&f)).map(|(&m, _)| partition.class(m)).collect();
                    let got: BTreeSet<_> = partition.holders(f).iter().copied().collect();
                    prop_assert_eq!(got, expected);
                }
                partition.recycle();
            }
        }
    }
}
