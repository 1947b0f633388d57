//! Which policies and rules decide about a connection.

use std::net::IpAddr;

use serde::Serialize;

use crate::model::{ObjectKey, Pod};
use crate::oracle::{Cluster, Direction, Opposite, Target, Verdict, has_identity, rules};

/// One end of a connection that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Party {
    /// A pod, local or not.
    Pod(ObjectKey),
    /// An address: whatever pods it stands for, or none.
    Ip(IpAddr),
}

/// Answer about one connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Whether both directions allow it.
    pub allowed: bool,
    /// The egress rules of the pod it comes from; `None` where that is not a pod.
    pub egress: Option<DirectionExplanation>,
    /// The ingress rules of the pod that it goes to; `None` where that is not a pod.
    pub ingress: Option<DirectionExplanation>,
}

/// Answer about one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionExplanation {
    /// The pod whose rules are asked.
    pub subject: ObjectKey,
    /// The address under which its peer is judged. `None` where the peer is a pod that has none yet: then
    /// it is judged by its labels, and no `ipBlock` matches it.
    pub peer: Option<IpAddr>,
    /// What the rules say.
    pub verdict: Verdict,
    /// The policies that isolate the subject in this direction.
    pub isolated_by: Vec<ObjectKey>,
    /// Every rule that allows it, by policy and index.
    pub allowed_by: Vec<RuleReference>,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleReference {
    /// The policy.
    pub policy: ObjectKey,
    /// Index in `spec.ingress` or `spec.egress`, from 0.
    pub rule: usize,
}

impl Cluster {
    /// Explains a new connection `from` → `to`.
    pub fn explain(&self, from: &Party, to: &Party, target: Target) -> Explanation {
        let egress = self.explain_direction(from, Direction::Egress, to, target);
        let ingress = self.explain_direction(to, Direction::Ingress, from, target);
        let passes = |d: &Option<DirectionExplanation>| d.as_ref().is_none_or(|d| d.verdict.passes());
        Explanation { allowed: passes(&egress) && passes(&ingress), egress, ingress }
    }

    fn explain_direction(
        &self,
        subject: &Party,
        direction: Direction,
        peer: &Party,
        target: Target,
    ) -> Option<DirectionExplanation> {
        let opposite = self.opposite_of(peer);
        let peer = opposite.address;
        let (isolated_by, allowed_by) = (Vec::new(), Vec::new());
        let pod = match (self.pod_of(subject), subject) {
            (Some(pod), _) => pod,
            (None, Party::Ip(_)) => return None,
            (None, Party::Pod(key)) => {
                let (subject, verdict) = (key.clone(), Verdict::Unknown);
                return Some(DirectionExplanation { subject, peer, verdict, isolated_by, allowed_by });
            }
        };
        let (mut isolated_by, mut allowed_by) = (isolated_by, allowed_by);
        let known = self.namespaces.contains_key(&pod.key.namespace);
        for policy in self.policies_of(pod, direction) {
            isolated_by.push(policy.key.clone());
            for (index, rule) in rules(policy, direction).unwrap_or_default().iter().enumerate() {
                if self.rule_allows(policy, rule, pod, direction, &opposite, target) {
                    allowed_by.push(RuleReference { policy: policy.key.clone(), rule: index });
                }
            }
        }
        let verdict = match (known, isolated_by.is_empty(), allowed_by.is_empty()) {
            (false, ..) => Verdict::Unknown,
            (true, true, _) => Verdict::NotIsolated,
            (true, false, true) => Verdict::Denied,
            (true, false, false) => Verdict::Allowed,
        };
        let subject = pod.key.clone();
        Some(DirectionExplanation { subject, peer, verdict, isolated_by, allowed_by })
    }

    /// The pod whose rules are asked: the one named, or the one that an address stands for.
    fn pod_of(&self, party: &Party) -> Option<&Pod> {
        match party {
            Party::Pod(key) => self.pods.get(key),
            Party::Ip(address) => self.identities(*address).first().copied(),
        }
    }

    /// What a party is to rules: a pod under its first address, or without one if it has none.
    fn opposite_of(&self, party: &Party) -> Opposite<'_> {
        let key = match party {
            Party::Ip(address) => return self.opposite(*address),
            Party::Pod(key) => key,
        };
        let local = self.endpoints.values().filter(|e| e.pod.as_ref() == Some(key));
        let local = local.flat_map(|endpoint| &endpoint.addresses).next();
        match local.or_else(|| self.pods.get(key)?.ips.first()) {
            Some(address) => self.opposite(*address),
            None => {
                let identities = self.pods.get(key).filter(|pod| has_identity(pod)).into_iter().collect();
                Opposite { address: None, identities }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::compiler::{Compiler, Limits};
    use crate::model::{LabelSelector, Namespace, NetworkPolicy, Operator, Peer, PortRule, PortSpec};
    use crate::model::{Protocol, Requirement, Rule};

    fn pod(name: &str, ip: &str) -> Pod {
        Pod {
            key: ObjectKey::new("shop", name),
            uid: String::new(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            ips: vec![ip.parse().unwrap()],
            node: None,
            host_network: false,
            finished: false,
            ports: Vec::new(),
        }
    }

    fn app(name: &str) -> LabelSelector {
        let operator = Operator::In(vec![name.to_owned()]);
        LabelSelector { requirements: vec![Requirement { key: "app".to_owned(), operator }] }
    }

    fn rule(from: &str, port: u16) -> Rule {
        Rule {
            peers: vec![Peer::Pods { namespaces: None, pods: app(from) }],
            ports: vec![PortRule {
                protocol: Protocol::Tcp,
                port: PortSpec::Range { first: port, last: port },
            }],
        }
    }

    fn policy(name: &str, subjects: &str, ingress: Vec<Rule>) -> NetworkPolicy {
        NetworkPolicy {
            key: ObjectKey::new("shop", name),
            subjects: app(subjects),
            ingress: Some(ingress),
            egress: None,
        }
    }

    /// The same answer from the objects and from the compiler, which names every rule that allows.
    #[test]
    fn names_every_allowing_rule_and_every_isolating_policy() {
        let mut cluster = Cluster::default();
        let mut compiler = Compiler::new(Limits::default());
        let namespace = Namespace { name: "shop".to_owned(), labels: BTreeMap::new() };
        compiler.set_namespace(&namespace);
        cluster.namespaces.insert("shop".to_owned(), namespace);
        for pod in [pod("web", "10.0.0.1"), pod("db", "10.0.0.2"), pod("job", "10.0.0.3")] {
            compiler.set_pod(&pod);
            cluster.pods.insert(pod.key.clone(), pod);
        }
        for policy in [
            policy("a", "db", vec![rule("job", 1), rule("web", 5432)]),
            policy("b", "db", vec![rule("web", 5432)]),
            policy("c", "db", vec![]),
            policy("d", "web", vec![]),
        ] {
            compiler.set_policy(&policy);
            cluster.policies.insert(policy.key.clone(), policy);
        }
        let web = Party::Pod(ObjectKey::new("shop", "web"));
        let db = Party::Pod(ObjectKey::new("shop", "db"));
        let keys = |names: &[&str]| names.iter().map(|n| ObjectKey::new("shop", *n)).collect::<Vec<_>>();
        for (from, port) in [(&web, 5432), (&Party::Ip("10.0.0.1".parse().unwrap()), 5432), (&web, 80)] {
            let target = Target::Port(Protocol::Tcp, port);
            let got = compiler.explain(from, &db, target);
            assert_eq!(got, cluster.explain(from, &db, target));
            let ingress = got.ingress.unwrap();
            assert_eq!(ingress.isolated_by, keys(&["a", "b", "c"]));
            assert_eq!(got.egress.unwrap().verdict, Verdict::NotIsolated);
            let allowing: Vec<_> =
                ingress.allowed_by.iter().map(|r| (r.policy.name.as_str(), r.rule)).collect();
            assert_eq!(allowing, if port == 80 { vec![] } else { vec![("a", 1), ("b", 0)] });
            assert_eq!(got.allowed, port != 80);
        }
        // A pod that has no address yet, by its labels.
        let mut early = pod("web", "10.0.0.9");
        early.key.name = "early".to_owned();
        early.ips.clear();
        let mut late = early.clone();
        late.key.name = "late".to_owned();
        late.finished = true;
        for pod in [early, late] {
            compiler.set_pod(&pod);
            cluster.pods.insert(pod.key.clone(), pod);
        }
        for (name, port, allowed) in [("early", 5432, true), ("early", 80, false), ("late", 5432, false)] {
            let (from, target) =
                (Party::Pod(ObjectKey::new("shop", name)), Target::Port(Protocol::Tcp, port));
            let got = compiler.explain(&from, &db, target);
            assert_eq!(got, cluster.explain(&from, &db, target));
            assert_eq!((got.allowed, got.ingress.unwrap().peer), (allowed, None), "{name} {port}");
        }
        let outside = Party::Ip("192.0.2.1".parse().unwrap());
        let got = compiler.explain(&outside, &web, Target::Icmp);
        assert_eq!((got.allowed, got.egress), (false, None));
        assert_eq!(got.ingress.unwrap().isolated_by, keys(&["d"]));
        // What is not known is not allowed.
        let nobody = Party::Pod(ObjectKey::new("shop", "nobody"));
        let got = compiler.explain(&nobody, &outside, Target::Icmp);
        assert_eq!((got.allowed, got.egress.unwrap().verdict), (false, Verdict::Unknown));
    }
}
