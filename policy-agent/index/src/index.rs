//! What holds of what sources say.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use fairlead_api::status::Problem;
use fairlead_policy::model::{Node, ObjectKey};
use ipnetwork::IpNetwork;

use crate::object::{Batch, Change, Kind, Object, ObjectId, Outcome, Parsed};

/// What a change means for those who enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The object is there, or has changed.
    Set(Object),
    /// The object is gone.
    Removed(ObjectId),
}

/// What the index keeps of an object.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// A good state of it was seen.
    good: bool,
    /// Something holds for it: a good state, or what stands in for one.
    in_force: bool,
}

/// The state of the world as far as it is needed besides policy; policy's own objects are handed on as
/// [`Effect`]s and kept by the compiler.
#[derive(Clone, Debug, Default)]
pub struct Index {
    known: HashMap<ObjectId, Known>,
    pods: HashMap<ObjectKey, String>,
    namespaces: BTreeSet<String>,
    nodes: BTreeMap<String, Node>,
    services: BTreeMap<ObjectKey, BTreeSet<IpAddr>>,
    /// What is wrong with objects.
    problems: BTreeMap<ObjectId, Vec<Problem>>,
    /// What sources say of themselves.
    source_problems: Vec<Problem>,
}

/// Nodes whose pod CIDRs do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// The nodes by name, without the pod CIDRs that another node has.
    pub nodes: BTreeMap<String, Node>,
    /// The pod CIDRs that were left out.
    pub problems: Vec<Problem>,
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
        let known = self.known.entry(id.clone()).or_default();
        let object = match outcome {
            Outcome::Good(object) => {
                *known = Known { good: true, in_force: true };
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
            Object::Node(node) => {
                self.nodes.insert(node.name.clone(), node.clone());
            }
            Object::Namespace(namespace) => {
                self.namespaces.insert(namespace.name.clone());
            }
            Object::Pod(pod) => {
                self.pods.insert(pod.key.clone(), pod.uid.clone());
            }
            Object::Service(service) => {
                self.services.insert(service.key.clone(), service.addresses.clone());
            }
            Object::NetworkPolicy(_) | Object::EndpointSlice(_) => {}
        }
        Some(Effect::Set(object))
    }

    /// An object is gone. That it was never there is no error.
    pub fn delete(&mut self, id: &ObjectId) -> Option<Effect> {
        let known = self.known.remove(id)?;
        self.problems.remove(id);
        match id.kind {
            Kind::Node => drop(self.nodes.remove(&id.key.name)),
            Kind::Namespace => drop(self.namespaces.remove(&id.key.name)),
            Kind::Pod => drop(self.pods.remove(&id.key)),
            Kind::Service => drop(self.services.remove(&id.key)),
            Kind::NetworkPolicy | Kind::EndpointSlice => {}
        }
        known.in_force.then(|| Effect::Removed(id.clone()))
    }

    /// Of this kind there are these objects at most: the others are gone.
    pub fn only(&mut self, kind: Kind, there: &HashSet<ObjectKey>) -> Vec<Effect> {
        let of_kind = self.known.keys().filter(|id| id.kind == kind && !there.contains(&id.key));
        let mut gone: Vec<ObjectId> = of_kind.cloned().collect();
        gone.sort();
        gone.iter().filter_map(|id| self.delete(id)).collect()
    }

    /// UID of a pod: empty where the source has none, `None` where the pod is not known.
    pub fn pod_uid(&self, key: &ObjectKey) -> Option<&str> {
        self.pods.get(key).map(String::as_str)
    }

    /// Whether a namespace is known.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// All addresses of Services.
    pub fn service_addresses(&self) -> BTreeSet<IpAddr> {
        self.services.values().flatten().copied().collect()
    }

    /// The nodes; of two with overlapping pod CIDRs the first by name keeps its own.
    pub fn nodes(&self) -> Nodes {
        let mut taken: Vec<BTreeMap<IpAddr, (IpAddr, String, IpNetwork)>> = vec![BTreeMap::new(); 2];
        let mut result = Nodes::default();
        for (name, node) in &self.nodes {
            let mut kept = node.clone();
            kept.pod_cidrs.clear();
            for (i, cidr) in node.pod_cidrs.iter().enumerate() {
                let family = &mut taken[usize::from(cidr.is_ipv6())];
                let (first, last) = (cidr.network(), cidr.broadcast());
                // Those taken do not overlap each other, so the last that starts within or before is
                // the only one that can reach in.
                let overlap = family.range(..=last).next_back().filter(|(_, (end, ..))| *end >= first);
                if let Some((_, (_, owner, theirs))) = overlap {
                    result.problems.push(Problem {
                        object: Some(format!("Node {name}")),
                        field: Some(format!("spec.podCIDRs[{i}]")),
                        message: format!(
                            "{cidr} overlaps {theirs} of Node {owner}, which keeps it; no route and no \
                             pod of Node {name} uses it"
                        ),
                        ..Problem::default()
                    });
                    continue;
                }
                family.insert(first, (last, name.clone(), *cidr));
                kept.pod_cidrs.push(*cidr);
            }
            result.nodes.insert(name.clone(), kept);
        }
        result
    }

    /// Everything that is wrong with what the sources say, sorted.
    pub fn problems(&self) -> Vec<Problem> {
        let objects = self.problems.values().flatten();
        let mut all: Vec<Problem> = self.source_problems.iter().chain(objects).cloned().collect();
        all.extend(self.nodes().problems);
        all.sort();
        all
    }
}
