//! One step from the last commit to what is known now.

use fairlead_common::maps::{EndpointPolicy, Side};

use super::partition::PLAIN;
use super::rules::{Clause, canonical};
use super::world::Subject;
use super::{Compiler, DIRECTIONS, SideState};
use crate::tables::{Delta, Slot};

/// What an endpoint's direction should be.
enum Wanted {
    Open,
    Unknown,
    Rules(Vec<Clause>),
}

impl Compiler {
    /// The step from the state of the last commit to what is known now.
    pub fn commit(&mut self) -> Delta {
        self.serial += 1;
        self.ports.collect(self.serial);
        let dirty = self.is_dirty();
        if dirty {
            self.begin_overflow();
        }
        self.place_groups();
        self.judge_endpoints(dirty);
        while let Err((signature, resource)) = self.fill() {
            self.give_way(signature, resource);
        }
        self.features.sweep_numbers(&mut self.groups, &mut self.ports);
        if dirty {
            self.end_overflow();
        }
        self.changed = false;
        self.emit()
    }

    /// The datapath has put commit `serial` in force and no packet is judged by an older one any more:
    /// ids that it or its predecessors freed may be used again.
    pub fn settled(&mut self, serial: u64) {
        if serial >= self.serial {
            self.settle_overflow();
        }
        self.ports.settled(serial);
        self.signatures.settled(serial);
        self.atoms.settled(serial);
    }

    /// Puts groups that are new, gone, or in a changed namespace where their features belong.
    fn place_groups(&mut self) {
        let mut gone = Vec::new();
        for group in self.world.take_dirty_groups() {
            if self.world.index_group(group) {
                let shape = *self.world.groups.get(group);
                let key = self.features.key_of(shape, &self.world, &mut self.ports);
                self.groups.place(group, &key);
                self.world.release_group(group);
            } else {
                gone.push(group);
            }
        }
        // Last, so that a class whose only pod goes from one group to another keeps its id, and with it
        // atoms and rows.
        for group in gone {
            self.groups.remove(group);
            self.world.release_group(group);
        }
    }

    /// Gives endpoints whose policies or pod have changed their rules; and those whose rules did not fit,
    /// because now they may.
    fn judge_endpoints(&mut self, retry: bool) {
        let mut dirty = std::mem::take(&mut self.dirty_endpoints);
        if retry {
            dirty.extend(self.unfit_slots());
        }
        let mut old = Vec::new();
        for slot in dirty {
            self.work.endpoints += 1;
            self.journal.endpoints.insert(slot);
            old.extend(match self.wanted(slot) {
                Some([ingress, egress]) => {
                    let sides = [self.judge_side(slot, 0, ingress), self.judge_side(slot, 1, egress)];
                    self.sides.insert(slot, sides)
                }
                None => self.sides.remove(&slot),
            });
        }
        // Only now, so that what both need stays as it is.
        for signature in old.into_iter().flatten().filter_map(SideState::signature) {
            self.release_signature(signature);
        }
    }

    fn judge_side(&mut self, slot: Slot, direction: usize, wanted: Wanted) -> SideState {
        let clauses = match wanted {
            Wanted::Open => return SideState::Open,
            Wanted::Unknown => return SideState::Unknown,
            Wanted::Rules(clauses) => clauses,
        };
        let before = self.side_before(slot, direction);
        match (self.acquire_signature(&clauses, None), before) {
            (Ok(signature), before) => {
                if let Some(before) = before.filter(|&before| before != signature) {
                    self.remember(slot, direction, before);
                }
                SideState::Rules(signature)
            }
            (Err(resource), Some(before)) => {
                self.retain_signature(before);
                SideState::Older(before, resource)
            }
            (Err(resource), None) => SideState::Unfit(resource),
        }
    }

    /// What an endpoint should have by the policies known now; `None` where it is gone.
    fn wanted(&self, slot: Slot) -> Option<[Wanted; 2]> {
        let attachment = self.world.attachments.get(&slot)?;
        let pod = match self.world.subject(attachment) {
            Subject::Free => return Some([Wanted::Open, Wanted::Open]),
            Subject::Unknown => return Some([Wanted::Unknown, Wanted::Unknown]),
            Subject::Pod(pod) => pod,
        };
        let shape = self.world.shape_of(pod);
        let labels = self.world.vocabulary.labels(shape.labels);
        let ports = self.world.port_lists.get(shape.ports);
        let policies = self.world.namespaces[shape.namespace as usize].policies.values();
        let policies: Vec<_> =
            policies.filter(|policy| self.world.vocabulary.matches(policy.subjects, labels)).collect();
        Some(DIRECTIONS.map(|direction| {
            let mut clauses = Vec::new();
            let mut isolated = false;
            for policy in &policies {
                isolated |= policy.add_clauses(direction, shape.namespace, ports, &mut clauses);
            }
            if isolated { Wanted::Rules(canonical(clauses)) } else { Wanted::Open }
        }))
    }

    /// What has changed since the last commit.
    fn emit(&mut self) -> Delta {
        self.groups.recycle();
        self.regions.recycle();
        debug_assert!(self.groups.key(PLAIN).is_empty() && self.regions.key(PLAIN).is_empty());
        let journal = std::mem::take(&mut self.journal);
        let (sets, ports) = self.ports.take_writes();
        let rows = changes(journal.rows, |key| self.rows.get(key.0, key.1));
        let mut peers = journal.peers;
        // Stable: a key's first entry says what it was, its last one what it is.
        peers.sort_by_key(|&(address, ..)| address);
        let peers = peers.chunk_by(|a, b| a.0 == b.0).filter_map(|steps| {
            let (&(address, old, _), &(.., new)) = (steps.first()?, steps.last()?);
            debug_assert_eq!(new, self.peers.get(&address).and_then(|peer| peer.atom));
            (new != old).then_some((address, new))
        });
        let peers = peers.collect();
        let cidrs = changes(journal.cidrs, |&prefix| self.prefix_atoms[self.tree.find(prefix)? as usize]);
        let cidrs = cidrs.into_iter().map(|(prefix, atom)| (prefix.into(), atom)).collect();
        let mut endpoints = Vec::new();
        for slot in journal.endpoints {
            let new = self.sides.get(&slot).map(|sides| self.policy_of(sides));
            let old = match new {
                Some(new) => self.written.insert(slot, new),
                None => self.written.remove(&slot),
            };
            if old != new {
                endpoints.push((slot, new));
            }
        }
        Delta { serial: self.serial, sets, ports, rows, peers, cidrs, endpoints }
    }

    fn policy_of(&self, sides: &[SideState; 2]) -> EndpointPolicy {
        let [ingress, egress] = sides.map(|side| match side {
            SideState::Open => Side::OPEN,
            SideState::Unknown | SideState::Unfit(_) => Side::CLOSED,
            SideState::Rules(signature) | SideState::Older(signature, _) => {
                match self.signatures.get(signature) {
                    Some(state) => Side { signature, default_set: state.default_set },
                    None => Side::CLOSED,
                }
            }
        });
        EndpointPolicy { ingress, egress }
    }
}

/// Those of the touched keys whose value is not what it was, by key.
fn changes<K: Ord, V: PartialEq>(
    mut touched: Vec<(K, Option<V>)>,
    current: impl Fn(&K) -> Option<V>,
) -> Vec<(K, Option<V>)> {
    // Stable: the first entry of each key is what it was.
    touched.sort_by(|a, b| a.0.cmp(&b.0));
    touched.dedup_by(|later, first| later.0 == first.0);
    let mut changes = Vec::new();
    for (key, old) in touched {
        let new = current(&key);
        if new != old {
            changes.push((key, new));
        }
    }
    changes
}
