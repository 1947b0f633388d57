//! What the rules in use look at in a pod: peer selectors, and the numbers of named ports.

use std::collections::{BTreeMap, BTreeSet};

use super::intern::Interner;
use super::partition::{Feature, Partition};
use super::ports::{Choice, Ports};
use super::ranges::{Range, Ranges, normal};
use super::rules::Scope;
use super::vocabulary::{Label, Selector, Text};
use super::world::{Group, GroupShape, NamespaceId, World};
use crate::model::Protocol;
use crate::tables::Signature;

/// Id of a named port that egress rules in use look at.
pub(super) type Name = u32;

/// A property of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    /// A peer selector matches.
    Select(Scope, Selector),
    /// The containers give a name this number.
    Number(Name, u16),
}

/// Where a selector is filed, so that a pod meets only those that could match it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Anchor {
    Namespace(NamespaceId),
    PodLabel(Label),
    NamespaceLabel(Label),
    Anything,
}

#[derive(Debug, Default)]
struct FeatureState {
    signatures: Vec<Signature>,
    /// For [`Shape::Number`]; `None` where it did not fit.
    choice: Option<Choice>,
}

#[derive(Debug, Default)]
struct NameState {
    signatures: Vec<Signature>,
    numbers: BTreeMap<u16, Feature>,
    unfit: bool,
    /// Signatures that look at it in whatever pod, not only in those that they select.
    broad: u32,
}

/// Features in use.
#[derive(Debug, Default)]
pub(super) struct Features {
    shapes: Interner<Shape>,
    states: Vec<FeatureState>,
    anchors: BTreeMap<Anchor, Vec<Feature>>,
    names: Interner<(Text, Protocol)>,
    name_states: Vec<NameState>,
}

impl Features {
    /// Number of features of a kind.
    pub(super) fn count(&self, kind: impl Fn(&Shape) -> bool) -> usize {
        self.shapes.iter().filter(|(_, shape)| kind(shape)).count()
    }

    /// Whether a name in use is this one.
    pub(super) fn name_is(&self, name: Name, text: Text, protocol: Protocol) -> bool {
        *self.names.get(name) == (text, protocol)
    }

    /// What a feature is.
    pub(super) fn shape(&self, feature: Feature) -> Shape {
        *self.shapes.get(feature)
    }

    /// The ports of a number.
    pub(super) fn choice(&self, feature: Feature) -> Option<Choice> {
        self.states[feature as usize].choice
    }

    /// The signatures that look at a feature.
    pub(super) fn signatures(&self, feature: Feature) -> &[Signature] {
        match self.shape(feature) {
            Shape::Select(..) => &self.states[feature as usize].signatures,
            Shape::Number(name, _) => &self.name_states[name as usize].signatures,
        }
    }

    /// The features of a name's numbers.
    pub(super) fn numbers(&self, name: Name) -> impl Iterator<Item = Feature> + '_ {
        self.name_states[name as usize].numbers.values().copied()
    }

    /// Whether rules look at pods with these features at all: a number that only matters in selected
    /// pods tells nothing about others.
    pub(super) fn visible(&self, key: &[Feature]) -> bool {
        key.iter().any(|&feature| match self.shape(feature) {
            Shape::Select(..) => true,
            Shape::Number(name, _) => self.name_states[name as usize].broad > 0,
        })
    }

    /// One signature more, or less, looks at a name in whatever pod. Whether that changed what is
    /// [`Features::visible`].
    pub(super) fn broaden(&mut self, name: Name, more: bool) -> bool {
        let broad = &mut self.name_states[name as usize].broad;
        let before = *broad;
        *broad = if more { before + 1 } else { before - 1 };
        (before == 0) != (*broad == 0)
    }

    /// Names of which not every number fits.
    pub(super) fn unfit_names(&self) -> Vec<Name> {
        self.names
            .iter()
            .map(|(name, _)| name)
            .filter(|&name| self.name_states[name as usize].unfit)
            .collect()
    }

    /// Tries again to fit the numbers that did not; names of which some do now.
    pub(super) fn fit_numbers(&mut self, ports: &mut Ports) -> Vec<Name> {
        let mut mended = Vec::new();
        for name in self.unfit_names() {
            let protocol = self.names.get(name).1;
            let state = &mut self.name_states[name as usize];
            state.unfit = false;
            for (&number, &feature) in &state.numbers {
                let choice = &mut self.states[feature as usize].choice;
                if choice.is_none() {
                    *choice = ports.acquire(&number_range(protocol, number)).ok();
                    state.unfit |= choice.is_none();
                    if choice.is_some() {
                        mended.push(name);
                    }
                }
            }
        }
        mended.dedup();
        mended
    }

    /// The signatures that look at a name.
    pub(super) fn name_signatures(&self, name: Name) -> &[Signature] {
        &self.name_states[name as usize].signatures
    }

    /// The signature uses a peer selector from now on.
    pub(super) fn use_selector(
        &mut self,
        signature: Signature,
        scope: Scope,
        pods: Selector,
        world: &World,
        groups: &mut Partition,
    ) -> Feature {
        let (feature, new) = self.acquire(Shape::Select(scope, pods));
        self.states[feature as usize].signatures.push(signature);
        if new {
            self.anchors.entry(anchor(world, scope, pods)).or_default().push(feature);
            groups.add_feature(feature, matching_groups(world, scope, pods));
        }
        feature
    }

    /// The signature uses a named port from now on.
    pub(super) fn use_name(
        &mut self,
        signature: Signature,
        text: Text,
        protocol: Protocol,
        world: &World,
        groups: &mut Partition,
        ports: &mut Ports,
    ) -> Name {
        let (name, new) = self.names.acquire((text, protocol));
        if self.name_states.len() <= name as usize {
            self.name_states.resize_with(name as usize + 1, NameState::default);
        }
        self.name_states[name as usize].signatures.push(signature);
        if new {
            let mut by_number = BTreeMap::<u16, BTreeSet<Group>>::new();
            for (list, entries) in world.port_lists.iter() {
                for &(_, _, number) in entries.iter().filter(|&&(t, p, _)| (t, p) == (text, protocol)) {
                    let groups =
                        world.by_ports.range((list, 0)..=(list, Group::MAX)).map(|&(_, group)| group);
                    by_number.entry(number).or_default().extend(groups);
                }
            }
            for (number, members) in by_number {
                if !members.is_empty() {
                    let feature = self.number(name, protocol, number, ports);
                    groups.add_feature(feature, members.into_iter().collect());
                }
            }
        }
        name
    }

    fn number(&mut self, name: Name, protocol: Protocol, number: u16, ports: &mut Ports) -> Feature {
        if let Some(&feature) = self.name_states[name as usize].numbers.get(&number) {
            return feature;
        }
        let (feature, _) = self.acquire(Shape::Number(name, number));
        let choice = ports.acquire(&number_range(protocol, number)).ok();
        self.states[feature as usize].choice = choice;
        let state = &mut self.name_states[name as usize];
        state.unfit |= choice.is_none();
        state.numbers.insert(number, feature);
        feature
    }

    fn acquire(&mut self, shape: Shape) -> (Feature, bool) {
        let (feature, new) = self.shapes.acquire(shape);
        if self.states.len() <= feature as usize {
            self.states.resize_with(feature as usize + 1, FeatureState::default);
        }
        if new {
            self.states[feature as usize] = FeatureState::default();
        }
        (feature, new)
    }

    /// The signature uses a feature no longer.
    pub(super) fn release_selector(
        &mut self,
        signature: Signature,
        feature: Feature,
        world: &World,
        groups: &mut Partition,
    ) {
        self.states[feature as usize].signatures.retain(|&s| s != signature);
        if let Some(Shape::Select(scope, pods)) = self.shapes.release(feature) {
            let anchor = anchor(world, scope, pods);
            // The rarest label may be another by now.
            match self.anchors.get_mut(&anchor) {
                Some(filed) if filed.contains(&feature) => {
                    filed.retain(|&f| f != feature);
                    if filed.is_empty() {
                        self.anchors.remove(&anchor);
                    }
                }
                _ => self.anchors.retain(|_, filed| {
                    filed.retain(|&f| f != feature);
                    !filed.is_empty()
                }),
            }
            groups.remove_feature(feature);
        }
    }

    /// The signature uses a name no longer.
    pub(super) fn release_name(
        &mut self,
        signature: Signature,
        name: Name,
        groups: &mut Partition,
        ports: &mut Ports,
    ) {
        self.name_states[name as usize].signatures.retain(|&s| s != signature);
        if self.names.release(name).is_some() {
            let state = std::mem::take(&mut self.name_states[name as usize]);
            for feature in state.numbers.into_values() {
                self.drop_number(feature, groups, ports);
            }
        }
    }

    fn drop_number(&mut self, feature: Feature, groups: &mut Partition, ports: &mut Ports) {
        groups.remove_feature(feature);
        if let Some(choice) = self.states[feature as usize].choice.take() {
            ports.release(choice);
        }
        self.shapes.release(feature);
    }

    /// Forgets numbers that no pod gives a name any more.
    pub(super) fn sweep_numbers(&mut self, groups: &mut Partition, ports: &mut Ports) {
        let names: Vec<_> = self.names.iter().map(|(name, _)| name).collect();
        for name in names {
            let state = &mut self.name_states[name as usize];
            let idle: Vec<_> =
                state.numbers.extract_if(.., |_, feature| groups.holders(*feature).is_empty()).collect();
            let lacks = |feature: &Feature| self.states[*feature as usize].choice.is_none();
            state.unfit = state.unfit && state.numbers.values().any(lacks);
            for (_, feature) in idle {
                self.drop_number(feature, groups, ports);
            }
        }
    }

    /// The features in use that a group has, sorted.
    pub(super) fn key_of(&mut self, shape: GroupShape, world: &World, ports: &mut Ports) -> Vec<Feature> {
        let labels = world.vocabulary.labels(shape.labels);
        let namespace = world.namespaces[shape.namespace as usize].labels;
        let namespace_labels = namespace.map_or(&[][..], |set| world.vocabulary.labels(set));
        let anchors = [Anchor::Anything, Anchor::Namespace(shape.namespace)]
            .into_iter()
            .chain(labels.iter().map(|&label| Anchor::PodLabel(label)))
            .chain(namespace_labels.iter().map(|&label| Anchor::NamespaceLabel(label)));
        let mut key: Vec<_> = anchors
            .filter_map(|anchor| self.anchors.get(&anchor))
            .flatten()
            .copied()
            .filter(|&feature| match self.shape(feature) {
                Shape::Select(scope, pods) => matches(world, scope, pods, shape),
                Shape::Number(..) => false,
            })
            .collect();
        if self.names.len() > 0 {
            for &(text, protocol, number) in world.port_lists.get(shape.ports) {
                if let Some(name) = self.names.find(&(text, protocol)) {
                    key.push(self.number(name, protocol, number, ports));
                }
            }
        }
        key.sort_unstable();
        key
    }
}

fn number_range(protocol: Protocol, number: u16) -> Ranges {
    normal(vec![Range { protocol, first: number, last: number }])
}

/// Whether a peer selector matches a group.
fn matches(world: &World, scope: Scope, pods: Selector, shape: GroupShape) -> bool {
    scope_holds(world, scope, shape.namespace)
        && world.vocabulary.matches(pods, world.vocabulary.labels(shape.labels))
}

/// Whether a peer selector looks into a namespace. One whose object is not known has no labels to
/// select it by.
fn scope_holds(world: &World, scope: Scope, namespace: NamespaceId) -> bool {
    match scope {
        Scope::Own(own) => own == namespace,
        Scope::Matching(selector) => world.namespaces[namespace as usize]
            .labels
            .is_some_and(|set| world.vocabulary.matches(selector, world.vocabulary.labels(set))),
    }
}

fn anchor(world: &World, scope: Scope, pods: Selector) -> Anchor {
    match scope {
        Scope::Own(namespace) => Anchor::Namespace(namespace),
        Scope::Matching(namespaces) => {
            let label = |selector| world.vocabulary.required_label(selector);
            (label(pods).map(Anchor::PodLabel))
                .or_else(|| label(namespaces).map(Anchor::NamespaceLabel))
                .unwrap_or(Anchor::Anything)
        }
    }
}

/// The indexed groups that a peer selector matches. They are sought from its rarer side: a label of the pods, or the
/// namespaces.
fn matching_groups(world: &World, scope: Scope, pods: Selector) -> Vec<Group> {
    let vocabulary = &world.vocabulary;
    let fits = |group: &Group| {
        vocabulary.matches_all(pods)
            || vocabulary.matches(pods, vocabulary.labels(world.groups.get(*group).labels))
    };
    let namespaces = match scope {
        Scope::Own(namespace) => return world.groups_of(namespace).filter(fits).collect(),
        Scope::Matching(namespaces) => namespaces,
    };
    let by_label = vocabulary.required_labels(pods).filter(|labels| {
        vocabulary.required_labels(namespaces).is_none_or(|of_namespaces| {
            let inside =
                world.namespaces_with(of_namespaces).flat_map(|namespace| world.groups_of(namespace));
            ends_first(world.groups_with(labels), inside)
        })
    });
    let Some(labels) = by_label else {
        let inside = world.candidate_namespaces(namespaces).into_iter();
        let inside = inside.filter(|&namespace| scope_holds(world, scope, namespace));
        return inside.flat_map(|namespace| world.groups_of(namespace)).filter(fits).collect();
    };
    let groups: BTreeSet<Group> = world.groups_with(labels).collect();
    // Only the namespaces of pods that fit are asked, each once.
    let mut holds = BTreeMap::<NamespaceId, bool>::new();
    let mut inside = |group: &Group| {
        let namespace = world.groups.get(*group).namespace;
        *holds.entry(namespace).or_insert_with(|| scope_holds(world, scope, namespace))
    };
    groups.into_iter().filter(|group| fits(group) && inside(group)).collect()
}

/// Whether one has no more items than the other; takes no more steps than the shorter has.
fn ends_first(one: impl Iterator, other: impl Iterator) -> bool {
    let mut other = other.fuse();
    one.map(|_| other.next()).all(|item| item.is_some())
}
