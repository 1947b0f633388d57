//! Port classes and port sets.
//!
//! A *choice* is what one rule says about ports: ranges of each protocol, or everything. Ports that no
//! choice in use tells apart are one class, and a set of classes is a set of bits in the kernel.
//!
//! Classes are split in place, under the eyes of packets: the new class first gets, in every set that
//! a packet can meet, the bit of the class that it comes from; only then ports move to it. They merge
//! only where every such set already treats both alike. See [`crate::tables::Delta`].

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use fairlead_common::maps::{
    CLASS_FIRST, CLASS_SCTP, CLASS_TCP, CLASS_UDP, CLASSES, PortSet, SET_ALL, SET_FIRST, SET_NONE,
};
use hashbrown::HashTable;

use super::intern::Interner;
use super::ranges::{Range, Ranges, gaps, normal};
use super::{Limits, Resource};
use crate::model::Protocol;
use crate::tables::{Class, PortClass, SetId};

/// Id of a choice in use.
pub(super) type Choice = u32;

/// The choice of everything: every port, ICMP and all other protocols.
pub(super) const EVERYTHING: Choice = 0;

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const BASES: [Class; 3] = [CLASS_TCP, CLASS_UDP, CLASS_SCTP];

/// Choices, classes and sets in use.
#[derive(Debug)]
pub(super) struct Ports {
    class_limit: Class,
    set_ids: SetId,
    /// Something did not fit that will once ids have settled.
    starved: bool,
    choices: Interner<Ranges>,
    /// By choice: its classes.
    choice_bits: Vec<PortSet>,
    choice_released: bool,
    /// By protocol: first port of each stretch → class. Neighbours differ.
    stretches: [BTreeMap<u16, Class>; 3],
    /// By class: how many ports it has. 0 for those that are not in use.
    sizes: Vec<u32>,
    free_classes: Vec<Class>,
    next_class: Class,
    retired: Vec<(u64, Class)>,
    retired_bits: PortSet,
    sets: Vec<Set>,
    table: HashTable<SetId>,
    hasher: RandomState,
    free_sets: Vec<SetId>,
    zombies: Vec<(u64, SetId)>,
    dirty: Vec<SetId>,
    moved: Vec<Range>,
}

#[derive(Clone, Copy, Debug)]
struct Set {
    /// Bits of the classes in use.
    content: PortSet,
    /// As the kernel has it; `None` where what it has does not matter.
    written: Option<PortSet>,
    references: u32,
}

impl Ports {
    /// Only the reserved classes and sets.
    pub(super) fn new(limits: Limits) -> Self {
        let mut choices = Interner::default();
        choices.acquire(Ranges::from([]));
        let fixed = |content| Set { content, written: Some(content), references: 1 };
        let mut sizes = vec![0; CLASSES];
        for base in BASES {
            sizes[usize::from(base)] = 1 << 16;
        }
        Self {
            class_limit: limits.classes.min(CLASSES as u16),
            set_ids: limits.set_ids(),
            starved: false,
            choices,
            choice_bits: vec![PortSet::ALL],
            choice_released: false,
            stretches: BASES.map(|base| BTreeMap::from([(0, base)])),
            sizes,
            free_classes: Vec::new(),
            next_class: CLASS_FIRST,
            retired: Vec::new(),
            retired_bits: PortSet::NONE,
            sets: vec![fixed(PortSet::NONE), fixed(PortSet::ALL)],
            table: HashTable::new(),
            hasher: RandomState::new(),
            free_sets: Vec::new(),
            zombies: Vec::new(),
            dirty: Vec::new(),
            moved: Vec::new(),
        }
    }

    /// Classes in use, the reserved ones included.
    pub(super) fn class_count(&self) -> usize {
        usize::from(self.next_class) - self.free_classes.len() - self.retired.len()
    }

    /// Sets in use, the reserved ones not counted.
    pub(super) fn set_count(&self) -> usize {
        self.sets.len() - SET_FIRST as usize - self.free_sets.len() - self.zombies.len()
    }

    /// The classes of a choice.
    pub(super) fn bits(&self, choice: Choice) -> &PortSet {
        &self.choice_bits[choice as usize]
    }

    /// The classes of a set.
    pub(super) fn content(&self, set: SetId) -> &PortSet {
        &self.sets[set as usize].content
    }

    /// A reference to the choice of `ranges`, which are not none.
    pub(super) fn acquire(&mut self, ranges: &Ranges) -> Result<Choice, Resource> {
        if let Some(choice) = self.choices.find(ranges) {
            self.choices.retain(choice);
            return Ok(choice);
        }
        let bits = self.cut(ranges)?;
        let (choice, _) = self.choices.acquire(ranges.clone());
        if self.choice_bits.len() <= choice as usize {
            self.choice_bits.resize(choice as usize + 1, PortSet::NONE);
        }
        self.choice_bits[choice as usize] = bits;
        Ok(choice)
    }

    /// One reference more to a choice.
    pub(super) fn retain(&mut self, choice: Choice) {
        self.choices.retain(choice);
    }

    /// Gives a choice's reference back.
    pub(super) fn release(&mut self, choice: Choice) {
        if self.choices.release(choice).is_some() {
            self.choice_bits[choice as usize] = PortSet::NONE;
            self.choice_released = true;
        }
    }

    /// Splits classes until `ranges` is a union of classes; which ones.
    fn cut(&mut self, ranges: &[Range]) -> Result<PortSet, Resource> {
        // How many ports of each class are within.
        let mut inside = BTreeMap::<Class, u32>::new();
        for range in ranges {
            for (part, class) in self.parts(*range) {
                *inside.entry(class).or_default() += part.size();
            }
        }
        let splits = inside.iter().filter(|&(&class, &count)| count < self.size(class)).count();
        if splits > self.free_classes.len() + usize::from(self.class_limit.saturating_sub(self.next_class)) {
            self.starved |= !self.retired.is_empty();
            return Err(Resource::Classes);
        }
        let mut bits = PortSet::NONE;
        for (class, count) in inside {
            let total = self.size(class);
            if count == total {
                bits.insert(class);
                continue;
            }
            let fresh = self.split_off(class);
            let protocol = self.protocol(class, ranges);
            let all = Range { protocol, first: 0, last: u16::MAX };
            let mine = |r: &&Range| r.protocol == protocol;
            // The smaller part moves.
            let moving: Vec<_> = if count <= total - count {
                bits.insert(fresh);
                ranges.iter().filter(mine).flat_map(|&r| self.parts(r)).collect()
            } else {
                bits.insert(class);
                gaps(ranges.iter().filter(mine), all).into_iter().flat_map(|r| self.parts(r)).collect()
            };
            for (part, of) in moving {
                if of == class {
                    self.assign(part, fresh);
                }
            }
        }
        Ok(bits)
    }

    fn size(&self, class: Class) -> u32 {
        self.sizes[usize::from(class)]
    }

    /// The protocol of a class that has ports in `ranges`.
    fn protocol(&self, class: Class, ranges: &[Range]) -> Protocol {
        let has = |r: &&Range| self.parts(**r).iter().any(|&(_, of)| of == class);
        ranges.iter().find(has).map_or(Protocol::Tcp, |r| r.protocol)
    }

    /// A new class that every choice and set treats as `class`. There is room for it.
    fn split_off(&mut self, class: Class) -> Class {
        let fresh = self.free_classes.pop().unwrap_or_else(|| {
            self.next_class += 1;
            self.next_class - 1
        });
        for bits in &mut self.choice_bits {
            if bits.contains(class) {
                bits.insert(fresh);
            }
        }
        for id in SET_FIRST..self.sets.len() as SetId {
            let set = &mut self.sets[id as usize];
            let holds = set.content.contains(class);
            // Content is the key of the table.
            if holds {
                leave(&mut self.table, &self.hasher, &self.sets, id);
                self.sets[id as usize].content.insert(fresh);
                enter(&mut self.table, &self.hasher, &self.sets, id);
            }
            if self.sets[id as usize].written.is_some_and(|w| w.contains(fresh) != holds) {
                self.dirty.push(id);
            }
        }
        fresh
    }

    /// The stretches of classes that make up `range`.
    fn parts(&self, range: Range) -> Vec<(Range, Class)> {
        let stretches = &self.stretches[range.protocol as usize];
        let before = stretches.range(..range.first).next_back().map(|(_, &class)| (range.first, class));
        let mut starts: Vec<_> = before.into_iter().collect();
        for (&first, &class) in stretches.range(range.first..=range.last) {
            if first == range.first {
                starts.clear();
            }
            starts.push((first, class));
        }
        let ends = starts.iter().skip(1).map(|&(first, _)| first - 1).chain([range.last]);
        starts
            .iter()
            .zip(ends)
            .map(|(&(first, class), last)| (Range { first, last, ..range }, class))
            .collect()
    }

    /// Gives all ports of `range`, which is within one stretch, to `class`.
    fn assign(&mut self, range: Range, class: Class) {
        let stretches = &mut self.stretches[range.protocol as usize];
        let Some((_, &old)) = stretches.range(..=range.first).next_back() else { return };
        if old == class {
            return;
        }
        if range.last < u16::MAX {
            stretches.entry(range.last + 1).or_insert(old);
        }
        stretches.insert(range.first, class);
        // Neighbours of one class are one stretch.
        if range.last < u16::MAX && stretches.get(&(range.last + 1)) == Some(&class) {
            stretches.remove(&(range.last + 1));
        }
        if stretches.range(..range.first).next_back().is_some_and(|(_, &c)| c == class) {
            stretches.remove(&range.first);
        }
        self.sizes[usize::from(old)] -= range.size();
        self.sizes[usize::from(class)] += range.size();
        self.moved.push(range);
    }

    /// Whether [`Ports::collect`] has something to look at.
    pub(super) fn mergeable(&self) -> bool {
        self.choice_released && self.class_count() * 2 > usize::from(self.class_limit)
    }

    /// Merges classes that nothing tells apart any more, when many are in use. To be called before
    /// anything of a commit is done: choices are those in force, and packets meet what sets are written.
    pub(super) fn collect(&mut self, serial: u64) {
        if !self.mergeable() {
            return;
        }
        self.choice_released = false;
        let testers: Vec<PortSet> = (self.choices.iter().map(|(id, _)| self.choice_bits[id as usize]))
            .chain(self.sets.iter().filter(|s| s.written.is_some()).map(|s| s.content))
            .collect();
        for (protocol, base) in PROTOCOLS.into_iter().zip(BASES) {
            let mut groups = BTreeMap::<Vec<u64>, Vec<Class>>::new();
            let mut classes: Vec<_> = self.stretches[protocol as usize].values().copied().collect();
            classes.sort_unstable();
            classes.dedup();
            for class in classes {
                let mut column = vec![0u64; testers.len().div_ceil(64)];
                for (i, tester) in testers.iter().enumerate() {
                    column[i / 64] |= u64::from(tester.contains(class)) << (i % 64);
                }
                groups.entry(column).or_default().push(class);
            }
            for alike in groups.into_values() {
                // The base class stays; else the one with the most ports.
                let keep = alike.iter().copied().max_by_key(|&c| (c == base, self.size(c), u16::MAX - c));
                for class in alike {
                    if Some(class) != keep
                        && let Some(keep) = keep
                    {
                        self.merge(class, keep, protocol, serial);
                    }
                }
            }
        }
    }

    fn merge(&mut self, class: Class, into: Class, protocol: Protocol, serial: u64) {
        for (part, of) in self.parts(Range { protocol, first: 0, last: u16::MAX }) {
            if of == class {
                self.assign(part, into);
            }
        }
        for (choice, bits) in self.choice_bits.iter_mut().enumerate() {
            if choice != EVERYTHING as usize {
                bits.remove(class);
            }
        }
        for id in SET_FIRST..self.sets.len() as SetId {
            if self.sets[id as usize].content.contains(class) {
                leave(&mut self.table, &self.hasher, &self.sets, id);
                self.sets[id as usize].content.remove(class);
                enter(&mut self.table, &self.hasher, &self.sets, id);
            }
        }
        // Packets under way may still carry the class: its bits stay as written until it has settled.
        self.retired.push((serial, class));
        self.retired_bits.insert(class);
    }

    /// A reference to the set with this content, made of [`Ports::bits`].
    pub(super) fn acquire_set(&mut self, content: &PortSet) -> Result<SetId, Resource> {
        if *content == PortSet::NONE {
            return Ok(SET_NONE);
        }
        if *content == PortSet::ALL {
            return Ok(SET_ALL);
        }
        let sets = &self.sets;
        let hash = self.hasher.hash_one(content);
        if let Some(&id) = self.table.find(hash, |&id| sets[id as usize].content == *content) {
            let set = &mut self.sets[id as usize];
            if set.references == 0 {
                self.zombies.retain(|&(_, zombie)| zombie != id);
                if set.written.is_none() {
                    self.dirty.push(id);
                }
            }
            set.references += 1;
            return Ok(id);
        }
        let set = Set { content: *content, written: None, references: 1 };
        let id = match self.free_sets.pop() {
            Some(id) => {
                self.sets[id as usize] = set;
                id
            }
            None if self.sets.len() < self.set_ids as usize => {
                self.sets.push(set);
                (self.sets.len() - 1) as SetId
            }
            None => {
                self.starved |= !self.zombies.is_empty();
                return Err(Resource::Sets);
            }
        };
        enter(&mut self.table, &self.hasher, &self.sets, id);
        self.dirty.push(id);
        Ok(id)
    }

    /// Gives a set's reference back in commit `serial`.
    pub(super) fn release_set(&mut self, id: SetId, serial: u64) {
        if id < SET_FIRST {
            return;
        }
        let set = &mut self.sets[id as usize];
        set.references -= 1;
        if set.references == 0 {
            // Packets under way may still meet it: it is kept up until it has settled.
            self.zombies.push((serial, id));
        }
    }

    /// Ids freed by commits up to `serial` may be used again.
    pub(super) fn settled(&mut self, serial: u64) {
        let (done, waiting) = self.zombies.iter().partition::<Vec<_>, _>(|&&(at, _)| at <= serial);
        self.zombies = waiting;
        for (_, id) in done {
            leave(&mut self.table, &self.hasher, &self.sets, id);
            self.sets[id as usize] = Set { content: PortSet::NONE, written: None, references: 0 };
            self.free_sets.push(id);
        }
        let (done, waiting) = self.retired.iter().partition::<Vec<_>, _>(|&&(at, _)| at <= serial);
        self.retired = waiting;
        for (_, class) in done {
            self.retired_bits.remove(class);
            self.free_classes.push(class);
        }
        // Low ids first, whatever the order in which they came back.
        self.free_sets.sort_unstable_by(|a, b| b.cmp(a));
        self.free_classes.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// Whether a set with this content is in use.
    pub(super) fn has_set(&self, content: &PortSet) -> bool {
        let sets = &self.sets;
        *content == PortSet::NONE
            || *content == PortSet::ALL
            || self
                .table
                .find(self.hasher.hash_one(content), |&id| sets[id as usize].content == *content)
                .is_some_and(|&id| sets[id as usize].references > 0)
    }

    /// Whether, since the last call, something did not fit that will once ids have settled.
    pub(super) fn take_starved(&mut self) -> bool {
        std::mem::take(&mut self.starved)
    }

    /// What is to be written since the last call.
    pub(super) fn take_writes(&mut self) -> (Vec<(SetId, PortSet)>, Vec<PortClass>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        let mut sets = Vec::new();
        for id in dirty {
            let set = &mut self.sets[id as usize];
            let mut value = set.content;
            match set.written {
                // Made and given up again before anybody saw it.
                None if set.references == 0 => continue,
                None => {}
                Some(written) => {
                    for (word, (old, keep)) in
                        value.0.iter_mut().zip(written.0.iter().zip(&self.retired_bits.0))
                    {
                        *word |= old & keep;
                    }
                }
            }
            if set.written != Some(value) {
                set.written = Some(value);
                sets.push((id, value));
            }
        }
        let mut ports: Vec<PortClass> = Vec::new();
        for range in &*normal(std::mem::take(&mut self.moved)) {
            for (Range { protocol, first, last }, class) in self.parts(*range) {
                ports.push(PortClass { protocol, first, last, class });
            }
        }
        (sets, ports)
    }
}

fn enter(table: &mut HashTable<SetId>, hasher: &RandomState, sets: &[Set], id: SetId) {
    let hash = |&id: &SetId| hasher.hash_one(sets[id as usize].content);
    table.insert_unique(hash(&id), id, hash);
}

fn leave(table: &mut HashTable<SetId>, hasher: &RandomState, sets: &[Set], id: SetId) {
    if let Ok(entry) = table.find_entry(hasher.hash_one(sets[id as usize].content), |&other| other == id) {
        entry.remove();
    }
}

#[cfg(test)]
mod tests;
