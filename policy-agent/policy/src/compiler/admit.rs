//! Signatures coming into use and going out of it.

use super::features::Name;
use super::ports::{EVERYTHING, Ports};
use super::rules::{Clause, PeerShape, PortShape, Scope};
use super::signatures::{State, What, Who, unite};
use super::vocabulary::{Block, Vocabulary};
use super::{Compiler, Resource};
use crate::tables::Signature;
use fairlead_common::maps::PortSet;

impl Compiler {
    /// A reference to the signature of canonical `clauses`; `order` is that of one that comes back.
    pub(super) fn acquire_signature(
        &mut self,
        clauses: &[Clause],
        order: Option<u64>,
    ) -> Result<Signature, Resource> {
        if let Some(signature) = self.signatures.find(clauses) {
            self.retain_signature(signature);
            return Ok(signature);
        }
        // What can fail comes first.
        let mut choices = Vec::new();
        let mut everyone = PortSet::NONE;
        let mut acquire = |ports: &mut Ports| {
            for (_, shape) in clauses {
                match shape {
                    PortShape::Everything => {
                        ports.retain(EVERYTHING);
                        choices.push(EVERYTHING);
                    }
                    PortShape::Ranges(ranges) => choices.push(ports.acquire(ranges)?),
                    PortShape::Named(..) => {}
                }
            }
            let mut all = choices.iter();
            for (peer, shape) in clauses {
                if !matches!(shape, PortShape::Named(..))
                    && let Some(&choice) = all.next()
                    && *peer == PeerShape::Everyone
                {
                    unite(&mut everyone, ports.bits(choice));
                }
            }
            ports.acquire_set(&everyone)
        };
        let default_set = match acquire(&mut self.ports) {
            Ok(set) => set,
            Err(resource) => {
                for choice in choices {
                    self.ports.release(choice);
                }
                return Err(resource);
            }
        };
        let signature = self.signatures.take_id();
        let mut choices = choices.into_iter();
        let mut resolved: Vec<(Who, What)> = Vec::with_capacity(clauses.len());
        let mut last: Option<(PeerShape, Who)> = None;
        self.retain_clauses(clauses);
        for (peer, shape) in clauses {
            let who = match last {
                Some((before, who)) if before == *peer => who,
                _ => self.use_peer(signature, *peer),
            };
            last = Some((*peer, who));
            let what = match shape {
                PortShape::Named(text, protocol) => {
                    let known = resolved.iter().find_map(|&(_, what)| match what {
                        What::Name(name) if self.features.name_is(name, *text, *protocol) => Some(name),
                        _ => None,
                    });
                    What::Name(known.unwrap_or_else(|| {
                        self.features.use_name(
                            signature,
                            *text,
                            *protocol,
                            &self.world,
                            &mut self.groups,
                            &mut self.ports,
                        )
                    }))
                }
                _ => What::Choice(choices.next().unwrap_or(EVERYTHING)),
            };
            resolved.push((who, what));
        }
        self.signatures.insert(signature, clauses.into(), resolved, default_set, order);
        self.work.signatures += 1;
        let names = self.signatures.get(signature).map(State::broad_names);
        self.broaden(names.unwrap_or_default(), true);
        Ok(signature)
    }

    fn broaden(&mut self, names: Vec<Name>, more: bool) {
        for name in names {
            if self.features.broaden(name, more) {
                let classes = self.features.numbers(name).flat_map(|feature| self.groups.holders(feature));
                self.revealed.extend(classes.flat_map(|&class| self.groups.members(class)));
            }
        }
    }

    fn use_peer(&mut self, signature: Signature, peer: PeerShape) -> Who {
        match peer {
            PeerShape::Everyone => Who::Everyone,
            PeerShape::Pods(scope, pods) => {
                Who::Pods(self.features.use_selector(signature, scope, pods, &self.world, &mut self.groups))
            }
            PeerShape::Block(block) => {
                self.use_block(signature, block);
                Who::Block(block)
            }
        }
    }

    /// One reference more to a signature.
    pub(super) fn retain_signature(&mut self, signature: Signature) {
        if let Some(state) = self.signatures.get_mut(signature) {
            state.references += 1;
        }
    }

    /// Gives a reference back.
    pub(super) fn release_signature(&mut self, signature: Signature) {
        let Some(state) = self.signatures.get_mut(signature) else { return };
        state.references -= 1;
        if state.references == 0 {
            self.retire_signature(signature);
        }
    }

    fn retire_signature(&mut self, signature: Signature) {
        let Some(state) = self.signatures.remove(signature, self.serial) else { return };
        self.overflow.short.remove(&signature);
        self.forget_rows(signature);
        self.broaden(state.broad_names(), false);
        for name in state.names() {
            self.features.release_name(signature, name, &mut self.groups, &mut self.ports);
        }
        for who in state.peers() {
            match who {
                Who::Everyone => {}
                Who::Pods(feature) => {
                    self.features.release_selector(signature, feature, &self.world, &mut self.groups);
                }
                Who::Block(block) => self.release_block(signature, block),
            }
        }
        for &(_, what) in &state.clauses {
            if let What::Choice(choice) = what {
                self.ports.release(choice);
            }
        }
        self.ports.release_set(state.default_set, self.serial);
        self.release_clauses(&state.key);
    }

    /// Keeps what clauses refer to.
    pub(super) fn retain_clauses(&mut self, clauses: &[Clause]) {
        for (peer, shape) in clauses {
            retain(&mut self.world.vocabulary, *peer, shape);
            if let PeerShape::Pods(Scope::Own(namespace), _) = *peer {
                self.world.pin_namespace(namespace);
            }
        }
    }

    /// The opposite of [`Compiler::retain_clauses`].
    pub(super) fn release_clauses(&mut self, clauses: &[Clause]) {
        for (peer, shape) in clauses {
            release(&mut self.world.vocabulary, *peer, shape);
            if let PeerShape::Pods(Scope::Own(namespace), _) = *peer {
                self.world.unpin_namespace(namespace);
            }
        }
    }

    fn use_block(&mut self, signature: Signature, block: Block) {
        let users = self.blocks.entry(block).or_default();
        users.push(signature);
        if users.len() > 1 {
            return;
        }
        let shape = self.world.vocabulary.blocks.get(block);
        for prefix in std::iter::once(shape.cidr).chain(shape.except.iter().copied()) {
            let (place, new) = self.tree.acquire(prefix);
            if new {
                // It starts as what it is a part of.
                let around = self.tree.parent(place).map_or(0, |parent| self.regions.class(parent));
                let key = self.regions.key(around).to_vec();
                self.regions.place(place, &key);
                if self.prefix_atoms.len() <= place as usize {
                    self.prefix_atoms.resize(place as usize + 1, None);
                }
            }
        }
        let covered = self
            .tree
            .within(shape.cidr)
            .filter(|&(prefix, _)| !shape.except.iter().any(|except| except.covers(prefix)))
            .map(|(_, place)| place)
            .collect();
        self.regions.add_feature(block, covered);
    }

    fn release_block(&mut self, signature: Signature, block: Block) {
        let Some(users) = self.blocks.get_mut(&block) else { return };
        users.retain(|&s| s != signature);
        if !users.is_empty() {
            return;
        }
        self.blocks.remove(&block);
        self.regions.remove_feature(block);
        let shape = self.world.vocabulary.blocks.get(block);
        for prefix in std::iter::once(shape.cidr).chain(shape.except.iter().copied()) {
            let Some(place) = self.tree.find(prefix) else { continue };
            if self.tree.release(place) {
                // Its addresses fall to what it was a part of, which by now has the same blocks, but
                // may not have been the same class before.
                self.regions.remove(place);
                let (first, last) = prefix.bounds();
                self.dirty_addresses.extend(self.peers.range(first..=last).map(|(address, _)| address));
                let atom = self.prefix_atoms[place as usize].take();
                self.journal.cidrs.push((prefix, atom));
                if let Some(atom) = atom {
                    self.atoms.release(atom);
                }
            }
        }
    }
}

fn retain(vocabulary: &mut Vocabulary, peer: PeerShape, ports: &PortShape) {
    match peer {
        PeerShape::Everyone => {}
        PeerShape::Pods(scope, pods) => {
            vocabulary.retain_selector(pods);
            if let Scope::Matching(namespaces) = scope {
                vocabulary.retain_selector(namespaces);
            }
        }
        PeerShape::Block(block) => vocabulary.blocks.retain(block),
    }
    if let PortShape::Named(text, _) = ports {
        vocabulary.texts.retain(*text);
    }
}

fn release(vocabulary: &mut Vocabulary, peer: PeerShape, ports: &PortShape) {
    match peer {
        PeerShape::Everyone => {}
        PeerShape::Pods(scope, pods) => {
            vocabulary.release_selector(pods);
            if let Scope::Matching(namespaces) = scope {
                vocabulary.release_selector(namespaces);
            }
        }
        PeerShape::Block(block) => {
            vocabulary.blocks.release(block);
        }
    }
    if let PortShape::Named(text, _) = ports {
        vocabulary.texts.release(*text);
    }
}
