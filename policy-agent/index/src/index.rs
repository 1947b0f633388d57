//! What holds of what sources say.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::status::Problem;
use fairlead_policy::model::{Node, NodeChanges, ObjectKey};

use crate::cidrs::PodCidrs;
use crate::object::{Batch, Change, Kind, Object, ObjectId, Outcome, Parsed};
use crate::uid::Uid;

/// What a change means for those who enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The object is there, or has changed.
    Set(Object),
    /// The object is gone.
    Removed(ObjectId),
}

/// What the index keeps of an object.
#[derive(Clone, Debug, Default)]
struct Known {
    /// A good state of it was seen.
    good: bool,
    /// Something holds for it: a good state, or what stands in for one.
    in_force: bool,
    /// Of a pod.
    uid: Uid,
}

/// What is known of the objects of a kind, by namespace and name. Every node keeps this for every pod of
/// the cluster: a namespace's name is kept once, and no table is ever copied as it grows.
type OfKind = BTreeMap<Box<str>, BTreeMap<Box<str>, Known>>;

/// The state of the world as far as it is needed besides policy; policy's own objects are handed on as
/// [`Effect`]s and kept by the compiler.
#[derive(Clone, Debug, Default)]
pub struct Index {
    known: BTreeMap<Kind, OfKind>,
    /// As they are written.
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    pod_cidrs: PodCidrs,
    /// Nodes that may be others than when [`Self::node_changes`] was asked last.
    changed: BTreeSet<Arc<str>>,
    services: BTreeMap<ObjectKey, BTreeSet<IpAddr>>,
    /// What is wrong with objects.
    problems: BTreeMap<ObjectId, Vec<Problem>>,
    /// What sources say of themselves.
    source_problems: Vec<Problem>,
}

impl Index {
    /// Takes a batch; the effects are to take effect together.
    pub fn update(&mut self, batch: Batch) -> Vec<Effect> {
        let mut effects = Vec::new();
        for change in batch.changes {
            match change {
                Change::Apply(parsed) => effects.extend(self.apply(parsed)),
                Change::Delete(id) => effects.extend(self.delete(&id)),
                Change::Only(kind, there) => effects.extend(self.only(kind, &there)),
            }
        }
        self.source_problems = batch.problems;
        effects
    }

    /// An object is there, or has changed.
    pub fn apply(&mut self, parsed: Parsed) -> Option<Effect> {
        let Parsed { id, origin, outcome } = parsed;
        let of_namespace =
            self.known.entry(id.kind).or_default().entry(id.key.namespace.as_str().into()).or_default();
        let known = of_namespace.entry(id.key.name.as_str().into()).or_default();
        let object = match outcome {
            Outcome::Good(object) => {
                known.good = true;
                known.in_force = true;
                self.problems.remove(&id);
                object
            }
            Outcome::Bad { errors, instead } => {
                let consequence = match (known.good, id.kind, &instead) {
                    (true, ..) => "; its last good state stays in force",
                    (false, Kind::NetworkPolicy, Some(_)) => {
                        "; until it is right, it denies all that it selects"
                    }
                    (false, Kind::Pod, _) => "; until it is right, the pod gets no traffic",
                    _ => "; it is ignored until it is right",
                };
                let problems = errors
                    .into_iter()
                    .map(|error| Problem {
                        file: origin.as_ref().map(|o| o.file.to_string()),
                        line: origin.as_ref().map(|o| o.line),
                        object: Some(id.to_string()),
                        field: (!error.field.is_empty()).then_some(error.field),
                        message: format!("{}{consequence}", error.message),
                    })
                    .collect();
                self.problems.insert(id, problems);
                if known.good {
                    return None;
                }
                let object = instead?;
                known.in_force = true;
                object
            }
        };
        match &object {
            Object::Node(node) => self.set_node(node),
            Object::Service(service) => {
                self.services.insert(service.key.clone(), service.addresses.clone());
            }
            Object::Pod(pod) => known.uid = pod.uid.as_str().into(),
            Object::Namespace(_) | Object::NetworkPolicy(_) | Object::EndpointSlice(_) => {}
        }
        Some(Effect::Set(object))
    }

    /// An object is gone. That it was never there is no error.
    pub fn delete(&mut self, id: &ObjectId) -> Option<Effect> {
        let of_kind = self.known.get_mut(&id.kind)?;
        let namespace = of_kind.get_mut(&*id.key.namespace)?;
        let known = namespace.remove(&*id.key.name)?;
        if namespace.is_empty() {
            of_kind.remove(&*id.key.namespace);
        }
        self.problems.remove(id);
        match id.kind {
            Kind::Node => self.remove_node(&id.key.name),
            Kind::Service => drop(self.services.remove(&id.key)),
            Kind::Namespace | Kind::Pod | Kind::NetworkPolicy | Kind::EndpointSlice => {}
        }
        known.in_force.then(|| Effect::Removed(id.clone()))
    }

    /// Of this kind there are these objects at most: the others are gone.
    pub fn only(&mut self, kind: Kind, there: &HashSet<ObjectKey>) -> Vec<Effect> {
        let mut gone = Vec::new();
        for (namespace, objects) in self.known.get(&kind).into_iter().flatten() {
            for name in objects.keys() {
                let key = ObjectKey::new(&**namespace, &**name);
                if !there.contains(&key) {
                    gone.push(ObjectId { kind, key });
                }
            }
        }
        gone.iter().filter_map(|id| self.delete(id)).collect()
    }

    /// What holds of an object.
    fn in_force(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Known> {
        self.known.get(&kind)?.get(namespace)?.get(name).filter(|known| known.in_force)
    }

    /// UID of a pod: empty where the source has none, `None` where the pod is not known.
    pub fn pod_uid(&self, key: &ObjectKey) -> Option<String> {
        Some(self.in_force(Kind::Pod, &key.namespace, &key.name)?.uid.to_string())
    }

    /// Whether a namespace is known.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.in_force(Kind::Namespace, "", name).is_some()
    }

    /// All addresses of Services.
    pub fn service_addresses(&self) -> BTreeSet<IpAddr> {
        self.services.values().flatten().copied().collect()
    }

    fn set_node(&mut self, node: &Node) {
        let (name, before) = match self.nodes.get_key_value(node.name.as_str()) {
            Some((_, there)) if **there == *node => return,
            Some((name, there)) => (name.clone(), there.pod_cidrs.as_slice()),
            None => (node.name.as_str().into(), [].as_slice()),
        };
        self.changed.extend(self.pod_cidrs.exchange(&name, before, &node.pod_cidrs));
        self.nodes.insert(name.clone(), Arc::new(node.clone()));
        self.changed.insert(name);
    }

    fn remove_node(&mut self, name: &str) {
        let Some((name, node)) = self.nodes.remove_entry(name) else { return };
        self.changed.extend(self.pod_cidrs.exchange(&name, &node.pod_cidrs, &[]));
        self.changed.insert(name);
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// A node, without the pod CIDRs that another node has: of two whose pod CIDRs overlap the first by name
    /// keeps its own.
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        let (name, node) = self.nodes.get_key_value(name)?;
        Some(match self.pod_cidrs.held(name, &node.pod_cidrs) {
            None => node.clone(),
            Some(pod_cidrs) => Arc::new(Node { pod_cidrs, ..Node::clone(node) }),
        })
    }

    /// Nodes that have changed since the last call, as [`Self::node`] has them: each with all others whose pod
    /// CIDRs have become free, or another's, by that.
    pub fn node_changes(&mut self) -> NodeChanges {
        std::mem::take(&mut self.changed).into_iter().map(|name| (name.clone(), self.node(&name))).collect()
    }

    /// Everything that is wrong with what the sources say, sorted.
    pub fn problems(&self) -> Vec<Problem> {
        let objects = self.problems.values().flatten();
        let mut all: Vec<Problem> = self.source_problems.iter().chain(objects).cloned().collect();
        let written =
            |name: &str| self.nodes.get(name).map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
        all.extend(self.pod_cidrs.problems(written));
        all.sort();
        all
    }
}
