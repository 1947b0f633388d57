//! Random states of the world.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::history::PORTS;
use super::random::Random;
use super::steady;
use crate::world::{self, Object};

/// Namespaces of the pods that come, go and change.
pub(super) const NAMESPACES: [&str; 2] = ["red", "blue"];
/// Such pods at a time.
pub(super) const PODS: usize = 8;
/// Policies of a namespace at most.
const POLICIES: usize = 5;
/// Labels of pods and namespaces.
const KEYS: [&str; 2] = ["role", "tier"];
const VALUES: [&str; 3] = ["x", "y", "z"];
/// Every so many mutations an agent is killed; the first time sooner.
const KILL: usize = 60;
const FIRST_KILL: usize = 12;

/// One mutation.
#[derive(Clone, Debug)]
pub(super) enum Mutation {
    /// An object is written.
    Apply(Object),
    /// A policy is removed.
    Delete(Object),
    /// A pod is deleted and another takes its place.
    Replace(usize),
    /// An agent is killed and started again; nothing may change.
    Kill(&'static str),
}

impl Mutation {
    /// What it is called in the summary.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Apply(object) => match world::kind(object) {
                "Pod" => "pod labels",
                "Namespace" => "namespace labels",
                _ => "policies written",
            },
            Self::Delete(_) => "policies removed",
            Self::Replace(_) => "pods replaced",
            Self::Kill(_) => "agents killed",
        }
    }
}

/// Draws mutations.
#[derive(Debug)]
pub(super) struct Mutator {
    random: Random,
    drawn: usize,
}

impl Mutator {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), drawn: 0 }
    }

    /// Milliseconds until the next mutation: more than one a second in the mean, with those that take
    /// their time.
    pub(super) fn pause(&mut self) -> u64 {
        // Often at once after each other, as when somebody applies a folder.
        if self.random.percent(20) { 5 } else { 100 + self.random.below(600) as u64 }
    }

    /// The next one, in a world of these objects (by file name) and pods.
    pub(super) fn next(&mut self, objects: &BTreeMap<String, Object>, pods: &[String]) -> Mutation {
        self.drawn += 1;
        if self.drawn % KILL == FIRST_KILL {
            return Mutation::Kill(if (self.drawn / KILL).is_multiple_of(2) { "node-a" } else { "node-b" });
        }
        match self.random.below(100) {
            0..45 => Mutation::Apply(self.policy()),
            45..60 => {
                let policies: Vec<&Object> = objects
                    .values()
                    .filter(|o| world::kind(o) == "NetworkPolicy")
                    .filter(|o| o["metadata"]["namespace"] != steady::NAMESPACE)
                    .collect();
                match policies.is_empty() {
                    true => Mutation::Apply(self.policy()),
                    false => Mutation::Delete(policies[self.random.below(policies.len())].clone()),
                }
            }
            60..75 => {
                let pod = &pods[self.random.below(pods.len())];
                let mut object = objects[pod].clone();
                object["metadata"]["labels"] = self.labels();
                Mutation::Apply(object)
            }
            75..82 => {
                let name = self.random.of(&NAMESPACES);
                Mutation::Apply(world::namespace(name, self.labels()))
            }
            82..90 => Mutation::Apply(steady::noise(self.random.below(1000))),
            _ => Mutation::Replace(self.random.below(PODS)),
        }
    }

    /// Some labels, maybe none.
    pub(super) fn labels(&mut self) -> Value {
        let mut labels = serde_json::Map::new();
        for key in KEYS {
            if self.random.percent(75) {
                labels.insert(key.to_owned(), self.random.of(&VALUES).into());
            }
        }
        Value::Object(labels)
    }

    fn selector(&mut self) -> Value {
        match self.random.below(8) {
            0 => json!({}),
            1 => json!({"matchExpressions": [{"key": self.random.of(&KEYS), "operator": "Exists"}]}),
            2 => json!({"matchExpressions": [{"key": self.random.of(&KEYS), "operator": "DoesNotExist"}]}),
            3 => json!({"matchExpressions": [{"key": self.random.of(&KEYS), "operator": "NotIn",
                                              "values": [self.random.of(&VALUES)]}]}),
            4 => json!({"matchExpressions": [{"key": self.random.of(&KEYS), "operator": "In",
                                              "values": [self.random.of(&VALUES), self.random.of(&VALUES)]}]}),
            _ => json!({"matchLabels": {self.random.of(&KEYS): self.random.of(&VALUES)}}),
        }
    }

    fn peer(&mut self) -> Value {
        match self.random.below(6) {
            0 => json!({"podSelector": self.selector()}),
            1 => json!({"namespaceSelector": self.selector()}),
            2 | 3 => json!({"namespaceSelector": self.selector(), "podSelector": self.selector()}),
            4 => {
                let (node, low) = (1 + self.random.below(2), self.random.below(8));
                json!({"ipBlock": {"cidr": format!("10.244.{node}.0/24"),
                                   "except": [format!("10.244.{node}.{}/30", low * 4)]}})
            }
            _ => {
                let (node, low) = (1 + self.random.below(2), self.random.below(8));
                json!({"ipBlock": {"cidr": format!("fd10:244:0:{node}::/64"),
                                   "except": [format!("fd10:244:0:{node}::{:x}/126", low * 4)]}})
            }
        }
    }

    fn port(&mut self) -> Value {
        let protocol = self.random.of(&["TCP", "UDP"]);
        match self.random.below(5) {
            0 => json!({"protocol": protocol}),
            1 => {
                json!({"protocol": protocol, "port": PORTS[0], "endPort": self.random.of(&[8500, PORTS[1]])})
            }
            2 => json!({"protocol": protocol, "port": self.random.of(&["web-tcp", "web-udp"])}),
            _ => json!({"protocol": protocol, "port": self.random.of(&PORTS)}),
        }
    }

    fn rule(&mut self, peers: &str) -> Value {
        let mut rule = serde_json::Map::new();
        if self.random.percent(85) {
            let n = 1 + self.random.below(2);
            rule.insert(peers.to_owned(), (0..n).map(|_| self.peer()).collect());
        }
        if self.random.percent(60) {
            let n = 1 + self.random.below(2);
            rule.insert("ports".to_owned(), (0..n).map(|_| self.port()).collect());
        }
        Value::Object(rule)
    }

    fn rules(&mut self, peers: &str) -> Value {
        let n = self.random.below(4);
        (0..n).map(|_| self.rule(peers)).collect()
    }

    fn policy(&mut self) -> Object {
        let (ingress, egress) = self.random.of(&[(true, false), (true, false), (false, true), (true, true)]);
        let mut spec = json!({"podSelector": self.selector(), "policyTypes": []});
        for (wanted, kind, field, peers) in
            [(ingress, "Ingress", "ingress", "from"), (egress, "Egress", "egress", "to")]
        {
            if wanted {
                if let Some(types) = spec["policyTypes"].as_array_mut() {
                    types.push(kind.into());
                }
                spec[field] = self.rules(peers);
            }
        }
        let name = format!("policy{}", self.random.below(POLICIES));
        world::policy(self.random.of(&NAMESPACES), &name, spec)
    }
}
