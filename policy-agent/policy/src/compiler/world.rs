//! The objects that the compiler knows, as compactly as policy allows.
//!
//! Pods with the same namespace, labels and named ports are one *group*: no selector tells them apart,
//! so selectors are evaluated for groups.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::intern::Interner;
use super::rules::StoredPolicy;
use super::vocabulary::{Label, LabelSet, Selector, Text, Vocabulary};
use crate::model::{Labels, NamedPort, Namespace, ObjectKey, Pod, Protocol};
use crate::tables::Slot;

/// Id of a namespace, known or only referred to.
pub(super) type NamespaceId = u32;
/// Id of a pod.
pub(super) type PodId = u32;
/// Id of a group.
pub(super) type Group = u32;
/// Id of a list of named container ports.
pub(super) type PortList = u32;

/// What the pods of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct GroupShape {
    pub(super) namespace: NamespaceId,
    pub(super) labels: LabelSet,
    pub(super) ports: PortList,
}

#[derive(Debug, Default)]
pub(super) struct GroupState {
    /// Its pods that can be peers: neither finished nor hostNetwork.
    pub(super) pods: Vec<PodId>,
    /// It is in the indexes and in the partition.
    pub(super) indexed: bool,
    /// Its pods stand in the table of peers.
    pub(super) claimed: bool,
    dirty: bool,
}

#[derive(Debug)]
pub(super) struct PodState {
    pub(super) group: Group,
    pub(super) finished: bool,
    pub(super) host_network: bool,
    pub(super) addresses: Addresses,
}

impl PodState {
    /// Whether selectors match it as a peer.
    pub(super) fn is_peer(&self) -> bool {
        !self.finished && !self.host_network
    }
}

/// Addresses of a pod, in its object's order, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Addresses {
    One(IpAddr),
    Any(Box<[IpAddr]>),
}

impl Addresses {
    fn new(addresses: &[IpAddr]) -> Self {
        match *addresses {
            [one] => Self::One(one),
            _ => Self::Any(each_once(addresses).into()),
        }
    }

    pub(super) fn as_slice(&self) -> &[IpAddr] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Any(any) => any,
        }
    }
}

/// The addresses without repetition, the first one first: it is the primary one.
pub(super) fn each_once(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut once = Vec::with_capacity(addresses.len());
    for &address in addresses {
        if !once.contains(&address) {
            once.push(address);
        }
    }
    once
}

#[derive(Debug, Default)]
pub(super) struct NamespaceState {
    pub(super) name: Box<str>,
    /// Its labels, once its object is known.
    pub(super) labels: Option<LabelSet>,
    pub(super) pods: BTreeMap<Box<str>, PodId>,
    pub(super) policies: BTreeMap<Box<str>, StoredPolicy>,
    /// Local endpoints of its pods, by pod name.
    pub(super) endpoints: BTreeSet<(Box<str>, Slot)>,
    /// Signatures and groups that refer to it.
    pins: u32,
}

/// A local endpoint.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) pod: Option<(NamespaceId, Box<str>)>,
    pub(super) addresses: Box<[IpAddr]>,
}

/// What is known of an endpoint's pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// Not a Kubernetes pod, or one that no policy applies to.
    Free,
    /// Its object or its namespace has not arrived.
    Unknown,
    /// A pod.
    Pod(PodId),
}

/// All objects.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) vocabulary: Vocabulary,
    names: BTreeMap<Box<str>, NamespaceId>,
    pub(super) namespaces: Vec<NamespaceState>,
    free_namespaces: Vec<NamespaceId>,
    pub(super) pods: Vec<PodState>,
    free_pods: Vec<PodId>,
    pub(super) pod_count: usize,
    pub(super) policy_count: usize,
    pub(super) groups: Interner<GroupShape>,
    pub(super) group_states: Vec<GroupState>,
    pub(super) port_lists: Interner<Box<[(Text, Protocol, u16)]>>,
    namespaces_by_label: BTreeSet<(Label, NamespaceId)>,
    pub(super) by_namespace: BTreeSet<(NamespaceId, Group)>,
    pub(super) by_label: BTreeSet<(Label, Group)>,
    pub(super) by_ports: BTreeSet<(PortList, Group)>,
    pub(super) attachments: BTreeMap<Slot, Attachment>,
    pub(super) owners: BTreeSet<(IpAddr, Slot)>,
    local: BTreeSet<(PodId, Slot)>,
    dirty_groups: Vec<Group>,
}

impl World {
    /// Number of namespaces whose object is known.
    pub(super) fn namespace_count(&self) -> usize {
        self.names.values().filter(|&&id| self.namespaces[id as usize].labels.is_some()).count()
    }

    /// Namespaces that are known or referred to.
    pub(super) fn namespace_ids(&self) -> impl Iterator<Item = NamespaceId> + '_ {
        self.names.values().copied()
    }

    /// Namespaces that may match a selector: all that do are among them.
    pub(super) fn candidate_namespaces(&self, selector: Selector) -> Vec<NamespaceId> {
        let Some(labels) = self.vocabulary.required_labels(selector) else {
            return self.namespace_ids().collect();
        };
        let mut ids: Vec<_> = self.namespaces_with(labels).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Namespaces with any of some labels, once for each.
    pub(super) fn namespaces_with(&self, labels: &[Label]) -> impl Iterator<Item = NamespaceId> {
        let with = |&label: &Label| {
            self.namespaces_by_label.range((label, 0)..=(label, NamespaceId::MAX)).map(|&(_, id)| id)
        };
        labels.iter().flat_map(with)
    }

    /// Indexed groups with any of some labels, once for each.
    pub(super) fn groups_with(&self, labels: &[Label]) -> impl Iterator<Item = Group> {
        let with =
            |&label: &Label| self.by_label.range((label, 0)..=(label, Group::MAX)).map(|&(_, group)| group);
        labels.iter().flat_map(with)
    }

    /// The id of a namespace that is known or referred to.
    pub(super) fn find_namespace(&self, name: &str) -> Option<NamespaceId> {
        self.names.get(name).copied()
    }

    /// The id of a namespace, new if need be. Follow by [`World::tidy_namespace`].
    pub(super) fn namespace_id(&mut self, name: &str) -> NamespaceId {
        if let Some(id) = self.find_namespace(name) {
            return id;
        }
        let state = NamespaceState { name: name.into(), ..NamespaceState::default() };
        let id = match self.free_namespaces.pop() {
            Some(id) => {
                self.namespaces[id as usize] = state;
                id
            }
            None => {
                self.namespaces.push(state);
                (self.namespaces.len() - 1) as NamespaceId
            }
        };
        self.names.insert(name.into(), id);
        id
    }

    /// Forgets a namespace that nothing refers to.
    pub(super) fn tidy_namespace(&mut self, id: NamespaceId) {
        let state = &self.namespaces[id as usize];
        if self.names.get(&state.name) == Some(&id)
            && state.pins == 0
            && state.labels.is_none()
            && state.pods.is_empty()
            && state.policies.is_empty()
            && state.endpoints.is_empty()
        {
            let state = std::mem::take(&mut self.namespaces[id as usize]);
            self.names.remove(&state.name);
            self.free_namespaces.push(id);
        }
    }

    /// Something outside refers to a namespace.
    pub(super) fn pin_namespace(&mut self, id: NamespaceId) {
        self.namespaces[id as usize].pins += 1;
    }

    /// The opposite of [`World::pin_namespace`].
    pub(super) fn unpin_namespace(&mut self, id: NamespaceId) {
        self.namespaces[id as usize].pins -= 1;
        self.tidy_namespace(id);
    }

    /// Sets or clears a namespace's labels; whether that changed anything.
    pub(super) fn set_namespace_labels(
        &mut self,
        name: &str,
        labels: Option<&Labels>,
    ) -> Option<NamespaceId> {
        let id = match labels {
            Some(_) => self.namespace_id(name),
            None => self.find_namespace(name)?,
        };
        let new = labels.map(|labels| self.vocabulary.acquire_labels(labels));
        let old = std::mem::replace(&mut self.namespaces[id as usize].labels, new);
        if old != new {
            let entries = |set| self.vocabulary.labels(set).iter().map(|&label| (label, id));
            for entry in old.into_iter().flat_map(entries) {
                self.namespaces_by_label.remove(&entry);
            }
            self.namespaces_by_label.extend(new.into_iter().flat_map(entries));
        }
        if let Some(old) = old {
            self.vocabulary.release_labels(old);
        }
        if old == new {
            return None;
        }
        let groups: Vec<_> = self.groups_of(id).collect();
        for group in groups {
            self.touch_group(group);
        }
        Some(id)
    }

    /// The namespace as the model has it, if its object is known.
    pub(super) fn decode_namespace(&self, id: NamespaceId) -> Option<Namespace> {
        let state = &self.namespaces[id as usize];
        let labels = self.vocabulary.decode_labels(state.labels?);
        Some(Namespace { name: state.name.to_string(), labels })
    }

    /// Indexed groups of a namespace.
    pub(super) fn groups_of(&self, id: NamespaceId) -> impl Iterator<Item = Group> + '_ {
        self.by_namespace.range((id, 0)..=(id, Group::MAX)).map(|&(_, group)| group)
    }

    /// The pod of a key.
    pub(super) fn find_pod(&self, key: &ObjectKey) -> Option<PodId> {
        self.namespaces[self.find_namespace(&key.namespace)? as usize].pods.get(&*key.name).copied()
    }

    /// The group's shape of a pod.
    pub(super) fn shape_of(&self, pod: PodId) -> GroupShape {
        *self.groups.get(self.pods[pod as usize].group)
    }

    /// Slots of the local endpoints of a pod, whose object need not be known.
    fn slots_of_name(&self, namespace: NamespaceId, name: &str) -> Vec<Slot> {
        let endpoints = &self.namespaces[namespace as usize].endpoints;
        let first = (Box::from(name), Slot::MIN);
        endpoints.range(first..).take_while(|(n, _)| **n == *name).map(|&(_, slot)| slot).collect()
    }

    /// Slots of a pod's local endpoints.
    pub(super) fn slots_of(&self, pod: PodId) -> impl Iterator<Item = Slot> + '_ {
        self.local.range((pod, Slot::MIN)..=(pod, Slot::MAX)).map(|&(_, slot)| slot)
    }

    /// The pod of an endpoint, if its object is known.
    pub(super) fn pod_of(&self, attachment: &Attachment) -> Option<PodId> {
        let (namespace, name) = attachment.pod.as_ref()?;
        self.namespaces[*namespace as usize].pods.get(name).copied()
    }

    /// Stores an endpoint in a free slot. The caller has taken its pod out of the table of peers.
    pub(super) fn attach(&mut self, slot: Slot, pod: Option<&ObjectKey>, addresses: Vec<IpAddr>) {
        let pod = pod.map(|key| {
            let namespace = self.namespace_id(&key.namespace);
            let name: Box<str> = key.name.as_str().into();
            self.namespaces[namespace as usize].endpoints.insert((name.clone(), slot));
            (namespace, name)
        });
        self.owners.extend(addresses.iter().map(|&address| (address, slot)));
        let attachment = Attachment { pod, addresses: addresses.into() };
        if let Some(pod) = self.pod_of(&attachment) {
            self.local.insert((pod, slot));
        }
        self.attachments.insert(slot, attachment);
    }

    /// Removes an endpoint. The caller has taken its pod out of the table of peers.
    pub(super) fn detach(&mut self, slot: Slot) {
        let Some(attachment) = self.attachments.remove(&slot) else { return };
        for &address in &attachment.addresses {
            self.owners.remove(&(address, slot));
        }
        if let Some(pod) = self.pod_of(&attachment) {
            self.local.remove(&(pod, slot));
        }
        if let Some((namespace, name)) = attachment.pod {
            self.namespaces[namespace as usize].endpoints.remove(&(name, slot));
            self.tidy_namespace(namespace);
        }
    }

    /// What is known of an endpoint's pod.
    pub(super) fn subject(&self, attachment: &Attachment) -> Subject {
        let Some((namespace, name)) = &attachment.pod else { return Subject::Free };
        let namespace = &self.namespaces[*namespace as usize];
        match namespace.pods.get(name) {
            Some(&pod) if namespace.labels.is_some() => {
                if self.pods[pod as usize].host_network {
                    Subject::Free
                } else {
                    Subject::Pod(pod)
                }
            }
            _ => Subject::Unknown,
        }
    }

    /// All addresses of a pod: of its status, and of its local endpoints.
    pub(super) fn addresses_of(&self, pod: PodId) -> Cow<'_, [IpAddr]> {
        let mut addresses = Cow::Borrowed(self.pods[pod as usize].addresses.as_slice());
        for slot in self.slots_of(pod) {
            if let Some(attachment) = self.attachments.get(&slot) {
                addresses.to_mut().extend_from_slice(&attachment.addresses);
            }
        }
        if let Cow::Owned(addresses) = &mut addresses {
            addresses.sort_unstable();
            addresses.dedup();
        }
        addresses
    }

    /// Who an address belongs to on this node: the pods of its endpoints. `None` where no endpoint
    /// settles it, because there is none or its pod has finished.
    pub(super) fn settled_owners(&self, address: IpAddr) -> Option<Vec<PodId>> {
        let slots = self.owners.range((address, Slot::MIN)..=(address, Slot::MAX));
        let pods: Vec<Option<PodId>> = slots
            .filter_map(|(_, slot)| self.attachments.get(slot))
            .map(|attachment| self.pod_of(attachment))
            .collect();
        let finished = |pod: &Option<PodId>| pod.is_some_and(|pod| self.pods[pod as usize].finished);
        (!pods.iter().all(finished)).then(|| pods.into_iter().flatten().collect())
    }

    /// Stores a pod's object. The caller has taken it out of the table of peers.
    pub(super) fn store_pod(&mut self, namespace: NamespaceId, pod: &Pod) -> PodId {
        let labels = self.vocabulary.acquire_labels(&pod.labels);
        let ports = self.acquire_ports(&pod.ports);
        let (group, new) = self.groups.acquire(GroupShape { namespace, labels, ports });
        if new {
            if self.group_states.len() <= group as usize {
                self.group_states.resize_with(group as usize + 1, GroupState::default);
            }
            self.pin_namespace(namespace);
        } else {
            self.vocabulary.release_labels(labels);
            self.release_ports(ports);
        }
        let state = PodState {
            group,
            finished: pod.finished,
            host_network: pod.host_network,
            addresses: Addresses::new(&pod.ips),
        };
        let peer = state.is_peer();
        let pods = &mut self.namespaces[namespace as usize].pods;
        let id = match pods.get(&*pod.key.name) {
            Some(&id) => {
                let old = std::mem::replace(&mut self.pods[id as usize], state);
                self.leave_group(id, &old);
                id
            }
            None => {
                let id = match self.free_pods.pop() {
                    Some(id) => {
                        self.pods[id as usize] = state;
                        id
                    }
                    None => {
                        self.pods.push(state);
                        (self.pods.len() - 1) as PodId
                    }
                };
                pods.insert(pod.key.name.as_str().into(), id);
                self.pod_count += 1;
                let slots = self.slots_of_name(namespace, &pod.key.name);
                self.local.extend(slots.into_iter().map(|slot| (id, slot)));
                id
            }
        };
        if peer {
            self.group_states[group as usize].pods.push(id);
            self.touch_group_if(group, |state| !state.indexed);
        }
        id
    }

    /// Removes a pod's object. The caller has taken it out of the table of peers.
    pub(super) fn drop_pod(&mut self, namespace: NamespaceId, name: &str) {
        let Some(id) = self.namespaces[namespace as usize].pods.remove(name) else { return };
        let gone =
            PodState { group: 0, finished: true, host_network: true, addresses: Addresses::Any([].into()) };
        let old = std::mem::replace(&mut self.pods[id as usize], gone);
        self.leave_group(id, &old);
        for slot in self.slots_of(id).collect::<Vec<_>>() {
            self.local.remove(&(id, slot));
        }
        self.free_pods.push(id);
        self.pod_count -= 1;
    }

    fn leave_group(&mut self, id: PodId, old: &PodState) {
        if old.is_peer() {
            let pods = &mut self.group_states[old.group as usize].pods;
            if let Some(at) = pods.iter().position(|&p| p == id) {
                pods.swap_remove(at);
            }
            self.touch_group_if(old.group, |state| state.pods.is_empty() && state.indexed);
        }
        self.release_group(old.group);
    }

    fn touch_group_if(&mut self, group: Group, condition: impl Fn(&GroupState) -> bool) {
        if condition(&self.group_states[group as usize]) {
            self.touch_group(group);
        }
    }

    /// The group is to be placed anew at the next commit.
    fn touch_group(&mut self, group: Group) {
        let state = &mut self.group_states[group as usize];
        if !std::mem::replace(&mut state.dirty, true) {
            self.groups.retain(group);
            self.dirty_groups.push(group);
        }
    }

    /// Groups to be placed anew. Each comes with a reference, to be given back.
    pub(super) fn take_dirty_groups(&mut self) -> Vec<Group> {
        let groups = std::mem::take(&mut self.dirty_groups);
        for &group in &groups {
            self.group_states[group as usize].dirty = false;
        }
        groups
    }

    /// Gives a group's reference back.
    pub(super) fn release_group(&mut self, group: Group) {
        if let Some(shape) = self.groups.release(group) {
            self.vocabulary.release_labels(shape.labels);
            self.release_ports(shape.ports);
            self.unpin_namespace(shape.namespace);
        }
    }

    /// Puts a group into the indexes, or takes it out; whether it is in now.
    pub(super) fn index_group(&mut self, group: Group) -> bool {
        let state = &mut self.group_states[group as usize];
        let wanted = !state.pods.is_empty();
        if std::mem::replace(&mut state.indexed, wanted) == wanted {
            return wanted;
        }
        let shape = *self.groups.get(group);
        let labels = self.vocabulary.labels(shape.labels).iter().map(|&label| (label, group));
        if wanted {
            self.by_namespace.insert((shape.namespace, group));
            self.by_label.extend(labels);
            self.by_ports.insert((shape.ports, group));
            self.groups.retain(group);
        } else {
            self.by_namespace.remove(&(shape.namespace, group));
            for entry in labels {
                self.by_label.remove(&entry);
            }
            self.by_ports.remove(&(shape.ports, group));
            self.release_group(group);
        }
        wanted
    }

    fn acquire_ports(&mut self, ports: &[NamedPort]) -> PortList {
        let mut list: Vec<_> =
            ports.iter().map(|p| (self.vocabulary.acquire_text(&p.name), p.protocol, p.port)).collect();
        list.sort_unstable();
        for i in (1..list.len()).rev() {
            if list[i] == list[i - 1] {
                let (name, ..) = list.remove(i);
                self.vocabulary.texts.release(name);
            }
        }
        let (id, new) = self.port_lists.acquire(list.clone().into());
        if !new {
            for (name, ..) in list {
                self.vocabulary.texts.release(name);
            }
        }
        id
    }

    fn release_ports(&mut self, id: PortList) {
        if let Some(list) = self.port_lists.release(id) {
            for &(name, ..) in &list {
                self.vocabulary.texts.release(name);
            }
        }
    }

    /// A pod as the model has it, without what policy does not look at.
    pub(super) fn decode_pod(&self, key: ObjectKey, pod: PodId) -> Pod {
        let state = &self.pods[pod as usize];
        let shape = self.groups.get(state.group);
        let port = |&(name, protocol, port): &(Text, Protocol, u16)| NamedPort {
            name: self.vocabulary.text(name).to_owned(),
            protocol,
            port,
        };
        Pod {
            key,
            uid: String::new(),
            labels: self.vocabulary.decode_labels(shape.labels),
            ips: state.addresses.as_slice().to_vec(),
            node: None,
            host_network: state.host_network,
            finished: state.finished,
            ports: self.port_lists.get(shape.ports).iter().map(port).collect(),
        }
    }
}
