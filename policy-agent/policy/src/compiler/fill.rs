//! Tables that follow the rules in use: prefixes and addresses → atoms, (signature, atom) → port set.

use std::net::IpAddr;

use fairlead_common::maps::{PortSet, SET_FIRST};

use super::atoms::Key;
use super::features::{Name, Shape};
use super::few::Few;
use super::partition::{Class, PLAIN};
use super::prefix::Prefix;
use super::signatures::{State, What, Who, unite};
use super::{Compiler, Resource};
use crate::tables::{Atom, SetId, Signature};

/// New rules that do not fit: the signature that is to give way, and for want of what.
pub(super) type Unfit = (Signature, Resource);

impl Compiler {
    /// Brings all tables up to the rules in use. To be called again after what does not fit gave way.
    pub(super) fn fill(&mut self) -> Result<(), Unfit> {
        self.check_counts()?;
        self.follow_regions();
        self.follow_groups();
        self.place_addresses();
        self.check_peers()?;
        self.enter_left_out();
        for atom in self.atoms.take_idle(self.serial) {
            for (signature, set) in self.rows.take_atom(atom) {
                self.note_removed_row(signature, atom, set);
            }
        }
        self.fill_rows()
    }

    fn check_counts(&mut self) -> Result<(), Unfit> {
        let unfit = |signature: Option<Signature>, resource| match signature {
            Some(signature) => Err((signature, resource)),
            None => Ok(()),
        };
        if self.signatures.len() > self.limits.signatures as usize {
            unfit(self.newest_of_commit(self.signatures.iter()), Resource::Signatures)?;
        }
        if self.ports.set_count() > self.limits.sets as usize {
            let has_own = |s: &Signature| self.signatures.get(*s).is_some_and(|s| s.default_set >= SET_FIRST);
            unfit(self.newest_of_commit(self.signatures.iter().filter(has_own)), Resource::Sets)?;
        }
        for v6 in [false, true] {
            if self.tree.len(v6) > self.limits.cidrs as usize {
                let of_family = |block| self.world.vocabulary.blocks.get(block).cidr.is_v6() == v6;
                let users =
                    self.blocks.iter().filter(|&(&block, _)| of_family(block)).flat_map(|(_, u)| u).copied();
                unfit(self.newest_of_commit(users), Resource::Cidrs)?;
            }
        }
        for name in self.features.unfit_names() {
            let users = self.features.name_signatures(name).to_vec();
            let newest = self.newest_of_commit(users.iter().copied());
            if users.iter().all(|&user| self.newest_of_commit([user]).is_some()) {
                unfit(newest, Resource::Classes)?;
            }
            for user in users {
                self.cut_short(user, Resource::Classes);
            }
        }
        Ok(())
    }

    /// Prefixes whose blocks have changed get their atom, and addresses within are to be placed anew.
    fn follow_regions(&mut self) {
        let mut moved: Vec<_> = self.regions.take_moved();
        moved.retain(|&place| self.tree.is_live(place));
        let mut moved: Vec<_> = moved.into_iter().map(|place| (self.tree.prefix(place), place)).collect();
        moved.sort_unstable();
        moved.dedup();
        let mut around: Option<Prefix> = None;
        for (prefix, place) in moved {
            let atom = self.atoms.acquire(Key { classes: Few::None, region: self.regions.class(place) });
            let old = self.prefix_atoms[place as usize].replace(atom);
            self.journal.cidrs.push((prefix, old));
            if let Some(old) = old {
                self.atoms.release(old);
            }
            if around.is_none_or(|around| !around.covers(prefix)) {
                let (first, last) = prefix.bounds();
                self.dirty_addresses.extend(self.peers.range(first..=last).map(|(address, _)| address));
                around = Some(prefix);
            }
        }
    }

    /// Groups whose features have changed: their addresses are to be placed anew.
    fn follow_groups(&mut self) {
        // A class that got or lost a feature as a whole may be looked at from now on, or no longer.
        for &class in self.groups.rekeyed() {
            let visible = self.features.visible(self.groups.key(class));
            let states = &self.world.group_states;
            let members = self.groups.members(class).iter().copied();
            self.revealed.extend(members.filter(|&group| states[group as usize].claimed != visible));
        }
        let mut moved = self.groups.take_moved();
        moved.append(&mut self.revealed);
        moved.sort_unstable();
        moved.dedup();
        for group in moved {
            let wanted = self.features.visible(self.groups.key(self.groups.class(group)));
            let state = &mut self.world.group_states[group as usize];
            let claimed = std::mem::replace(&mut state.claimed, wanted);
            for at in 0..state.pods.len() {
                let pod = self.world.group_states[group as usize].pods[at];
                match (claimed, wanted) {
                    (false, true) => self.enter_peers(pod),
                    (true, false) => self.leave_peers(pod),
                    (true, true) => self.dirty_addresses.extend(&*self.world.addresses_of(pod)),
                    (false, false) => {}
                }
            }
        }
    }

    fn place_addresses(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty_addresses);
        dirty.sort_unstable();
        dirty.dedup();
        for address in dirty {
            self.place_address(address);
        }
    }

    /// Gives an address the atom that its pods and its region make.
    pub(super) fn place_address(&mut self, address: IpAddr) {
        self.overflow.left_out.remove(&address);
        self.work.addresses += 1;
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let owners = self.world.settled_owners(address);
        let classes: Few = peer
            .pods
            .as_slice()
            .iter()
            .filter(|pod| owners.as_ref().is_none_or(|owners| owners.contains(pod)))
            .map(|&pod| self.groups.class(self.world.pods[pod as usize].group))
            .collect();
        let atom = (classes != Few::None).then(|| {
            let place = self.tree.longest(Prefix::host(address));
            let region = place.map_or(PLAIN, |place| self.regions.class(place));
            self.atoms.acquire(Key { classes, region })
        });
        let old = std::mem::replace(&mut peer.atom, atom);
        if peer.pods == Few::None {
            self.peers.remove(&address);
        }
        if let Some(old) = old {
            self.atoms.release(old);
        }
        if old != atom {
            let count = &mut self.peer_counts[usize::from(address.is_ipv6())];
            *count = *count + usize::from(atom.is_some()) - usize::from(old.is_some());
            self.journal.peers.push((address, old, atom));
        }
    }

    /// The signatures that look at what an atom's addresses have in common.
    pub(super) fn relevant(&self, key: &Key) -> Vec<Signature> {
        let features = key.classes.as_slice().iter().flat_map(|&class| self.groups.key(class));
        let mut signatures: Vec<_> =
            features.flat_map(|&feature| self.features.signatures(feature)).copied().collect();
        for block in self.regions.key(key.region) {
            signatures.extend(self.blocks.get(block).into_iter().flatten());
        }
        signatures.sort_unstable();
        signatures.dedup();
        signatures
    }

    /// The atoms that a signature looks at.
    fn atoms_of(&self, state: &State) -> Vec<Atom> {
        let of_feature =
            |feature| self.groups.holders(feature).iter().flat_map(|&class| self.atoms.of_class(class));
        let mut atoms = Vec::new();
        for who in state.peers() {
            match who {
                Who::Everyone => {}
                Who::Pods(feature) => atoms.extend(of_feature(feature)),
                Who::Block(block) => {
                    let regions = self.regions.holders(block).iter();
                    atoms.extend(regions.flat_map(|&region| self.atoms.of_region(region)));
                }
            }
        }
        for name in state.broad_names() {
            atoms.extend(self.features.numbers(name).flat_map(of_feature));
        }
        atoms.sort_unstable();
        atoms.dedup();
        atoms.retain(|&atom| self.atoms.is_live(atom));
        atoms
    }

    fn fill_rows(&mut self) -> Result<(), Unfit> {
        while let Some(atom) = self.atoms.next_fresh() {
            // Signatures that are new themselves come to it below.
            if self.atoms.is_live(atom) && self.signatures.fresh.len() < self.signatures.len() {
                for signature in self.relevant(self.atoms.key(atom)) {
                    if !self.signatures.fresh.contains(&signature) {
                        self.fill_row(signature, atom)?;
                    }
                }
            }
            self.atoms.done_fresh();
        }
        while let Some(&signature) = self.signatures.fresh.first() {
            let atoms = self.signatures.get(signature).map(|state| self.atoms_of(state));
            for atom in atoms.into_iter().flatten() {
                self.fill_row(signature, atom)?;
            }
            self.miss_left_out(signature);
            self.signatures.fresh.remove(&signature);
        }
        Ok(())
    }

    fn fill_row(&mut self, signature: Signature, atom: Atom) -> Result<(), Unfit> {
        let Some(state) = self.signatures.get(signature) else { return Ok(()) };
        self.work.rows += 1;
        let bits = self.row_bits(state, self.atoms.key(atom));
        let default_set = state.default_set;
        if bits == *self.ports.content(default_set) || self.rows.get(signature, atom).is_some() {
            return Ok(());
        }
        let set = if self.rows.len() >= self.limits.rows as usize {
            Err(Resource::Rows)
        } else if self.ports.set_count() >= self.limits.sets as usize && !self.ports.has_set(&bits) {
            Err(Resource::Sets)
        } else {
            self.ports.acquire_set(&bits)
        };
        match set {
            Ok(set) => {
                self.rows.insert(signature, atom, set);
                self.journal.rows.push(((signature, atom), None));
            }
            Err(resource) => {
                // Among those that tell this atom from others, the latest has brought it about.
                let all = self.relevant(self.atoms.key(atom)).into_iter().chain([signature]);
                if let Some(newest) = self.newest_of_commit(all) {
                    return Err((newest, resource));
                }
                self.cut_short(signature, resource);
            }
        }
        Ok(())
    }

    /// The ports that a signature opens to an atom.
    fn row_bits(&self, state: &State, key: &Key) -> PortSet {
        let mut bits = *self.ports.content(state.default_set);
        let classes = key.classes.as_slice();
        let add = |bits: &mut PortSet, what, classes: &[Class]| match what {
            What::Choice(choice) => unite(bits, self.ports.bits(choice)),
            What::Name(name) => {
                for &class in classes {
                    self.add_numbers(bits, name, class);
                }
            }
        };
        let clauses = &*state.clauses;
        let (everyone, clauses) = clauses.split_at(clauses.partition_point(|c| c.0 == Who::Everyone));
        let pods = clauses.partition_point(|c| matches!(c.0, Who::Pods(_)));
        let (pods, blocks) = clauses.split_at(pods);
        for &(_, what) in everyone {
            if let What::Name(_) = what {
                add(&mut bits, what, classes);
            }
        }
        for &class in classes {
            // Under one identity both the peer and the port must match.
            let identity = &[class];
            for &feature in self.groups.key(class) {
                of_peer(pods, Who::Pods(feature)).for_each(|what| add(&mut bits, what, identity));
            }
        }
        for &block in self.regions.key(key.region) {
            of_peer(blocks, Who::Block(block)).for_each(|what| add(&mut bits, what, classes));
        }
        bits
    }

    /// Adds the numbers that a class of pods gives a name.
    fn add_numbers(&self, bits: &mut PortSet, name: Name, class: Class) {
        for &feature in self.groups.key(class) {
            if let Shape::Number(of, _) = self.features.shape(feature)
                && of == name
                && let Some(choice) = self.features.choice(feature)
            {
                unite(bits, self.ports.bits(choice));
            }
        }
    }

    /// Takes all rows of a signature away.
    pub(super) fn forget_rows(&mut self, signature: Signature) {
        for (atom, set) in self.rows.take_signature(signature) {
            self.note_removed_row(signature, atom, set);
        }
    }

    fn note_removed_row(&mut self, signature: Signature, atom: Atom, set: SetId) {
        self.ports.release_set(set, self.serial);
        self.journal.rows.push(((signature, atom), Some(set)));
    }
}

/// The ports of the clauses, which are sorted, with this peer.
fn of_peer(clauses: &[(Who, What)], peer: Who) -> impl Iterator<Item = What> {
    let first = clauses.partition_point(|clause| clause.0 < peer);
    clauses[first..].iter().take_while(move |clause| clause.0 == peer).map(|clause| clause.1)
}
