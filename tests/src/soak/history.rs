//! What should have become of a probe: by the oracle, over the manifests as they were written.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_index::{Object as Known, kubernetes, object::Outcome};
use fairlead_policy::model::{ObjectKey, Protocol};
use fairlead_policy::oracle::{Cluster, Direction, LocalEndpoint, Target};

use crate::world::Object;

/// A mutation counts as seen by all nodes after this.
pub const SETTLED: Duration = Duration::from_secs(1);
/// Ports that are probed.
pub const PORTS: [u16; 2] = [8080, 9090];
/// Protocols, ports and families.
const COMBINATIONS: usize = 8;

/// A pod, among all that a soak ever has.
pub type PodId = u32;

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Who opens.
    pub from: PodId,
    /// To whom.
    pub to: PodId,
    /// UDP, else TCP.
    pub udp: bool,
    /// Index in [`PORTS`].
    pub port: usize,
    /// IPv6, else IPv4.
    pub ipv6: bool,
}

impl Question {
    fn combination(self) -> usize {
        usize::from(self.udp) | self.port << 1 | usize::from(self.ipv6) << 2
    }

    /// `8080/tcp`
    pub fn target(self) -> String {
        format!("{}/{}", PORTS[self.port], if self.udp { "udp" } else { "tcp" })
    }
}

/// What the rules say, by combination.
#[derive(Clone, Copy, Debug, Default)]
struct Sides {
    egress: [bool; COMBINATIONS],
    ingress: [bool; COMBINATIONS],
}

/// What may become of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It passes.
    Pass,
    /// It does not.
    Drop,
    /// Nodes may have been between two states.
    Either,
}

/// A state of the world.
#[derive(Debug)]
struct Version {
    since: Instant,
    pairs: HashMap<(PodId, PodId), Sides>,
}

/// A pod that is probed.
#[derive(Clone, Debug)]
pub struct Probed {
    /// Its id.
    pub id: PodId,
    /// Namespace and name.
    pub key: ObjectKey,
    /// Its addresses, IPv4 first.
    pub addresses: [IpAddr; 2],
}

/// The latest states of the world.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Arc<Version>>>);

impl History {
    /// Adds a state. To be called before it is written, so that none is in force and not here.
    ///
    /// # Errors
    /// When an object is not one that the agents understand.
    pub fn push<'o>(&self, objects: impl Iterator<Item = &'o Object>, pods: &[Probed]) -> Result<()> {
        let cluster = cluster(objects, pods)?;
        let mut pairs = HashMap::new();
        for (slot, from) in (0..).zip(pods) {
            for (other, to) in (0..).zip(pods).filter(|(other, _)| *other != slot) {
                let mut sides = Sides::default();
                for udp in [false, true] {
                    for (port, number) in PORTS.into_iter().enumerate() {
                        for ipv6 in [false, true] {
                            let question = Question { from: from.id, to: to.id, udp, port, ipv6 };
                            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
                            let target = Target::Port(protocol, number);
                            let (source, destination) =
                                (from.addresses[usize::from(ipv6)], to.addresses[usize::from(ipv6)]);
                            let i = question.combination();
                            let judge = |slot, direction, peer| {
                                cluster.verdict(slot, direction, peer, target).passes()
                            };
                            sides.egress[i] = judge(slot, Direction::Egress, destination);
                            sides.ingress[i] = judge(other, Direction::Ingress, source);
                        }
                    }
                }
                pairs.insert((from.id, to.id), sides);
            }
        }
        let mut versions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        versions.push_back(Arc::new(Version { since: Instant::now(), pairs }));
        // Probes last far less.
        let old = Instant::now().checked_sub(10 * SETTLED);
        while versions.get(1).is_some_and(|next| old.is_some_and(|old| next.since < old)) {
            versions.pop_front();
        }
        Ok(())
    }

    /// What may become of a probe that was sent at one time and answered, or given up, at another.
    pub fn expected(&self, question: Question, sent: Instant, done: Instant) -> Expected {
        let versions: Vec<Arc<Version>> =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        let i = question.combination();
        // The nodes change one after the other: any mixture of the sides may be met.
        let (mut egress, mut ingress) = ([false; 2], [false; 2]);
        for (n, version) in versions.iter().enumerate() {
            let over = versions.get(n + 1).map(|next| next.since + SETTLED);
            if version.since > done || over.is_some_and(|over| over <= sent) {
                continue;
            }
            let Some(sides) = version.pairs.get(&(question.from, question.to)) else {
                return Expected::Either;
            };
            egress[usize::from(sides.egress[i])] = true;
            ingress[usize::from(sides.ingress[i])] = true;
        }
        match (egress[1] && ingress[1], egress[0] || ingress[0]) {
            (true, false) => Expected::Pass,
            (false, true) => Expected::Drop,
            _ => Expected::Either,
        }
    }

    /// Time since the last mutation.
    pub fn age(&self, at: Instant) -> Duration {
        let versions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = versions.iter().rev().find(|v| v.since <= at);
        before.map_or(Duration::ZERO, |version| at.saturating_duration_since(version.since))
    }
}

/// The world as the oracle sees it, every pod as an endpoint.
fn cluster<'o>(objects: impl Iterator<Item = &'o Object>, pods: &[Probed]) -> Result<Cluster> {
    let mut cluster = Cluster::default();
    for object in objects {
        let (id, outcome) = kubernetes::read(object).map_err(|e| anyhow::anyhow!("{object}: {e:?}"))?;
        match outcome {
            Outcome::Good(Known::Namespace(n)) => drop(cluster.namespaces.insert(n.name.clone(), n)),
            Outcome::Good(Known::Pod(pod)) => drop(cluster.pods.insert(pod.key.clone(), pod)),
            Outcome::Good(Known::Node(node)) => drop(cluster.nodes.insert(node.name.clone(), node)),
            Outcome::Good(Known::NetworkPolicy(p)) => drop(cluster.policies.insert(p.key.clone(), p)),
            Outcome::Good(_) => {}
            Outcome::Bad { errors, .. } => bail!("{id}: {errors:?}: {object}"),
        }
    }
    for (slot, pod) in (0..).zip(pods) {
        cluster.pods.get(&pod.key).with_context(|| format!("no object of {}", pod.key))?;
        let addresses = pod.addresses.to_vec();
        cluster.endpoints.insert(slot, LocalEndpoint { pod: Some(pod.key.clone()), addresses });
    }
    Ok(cluster)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::world;

    /// Both times count: what is in force may be older than the probe, and become newer during it.
    #[test]
    fn a_probe_is_judged_by_every_state_that_it_may_have_met() {
        let pods = ["a", "b"].map(|name| {
            let mut pod = world::pod("n", name, "node", &PORTS);
            let last = name.as_bytes()[0];
            pod["status"] =
                json!({"podIPs": [{"ip": format!("10.0.0.{last}")}, {"ip": format!("fd00::{last}")}]});
            pod
        });
        let probed = ["a", "b"].map(|name| {
            let last = name.as_bytes()[0];
            Probed {
                id: last.into(),
                key: ObjectKey::new("n", name),
                addresses: [
                    format!("10.0.0.{last}").parse().unwrap(),
                    format!("fd00::{last}").parse().unwrap(),
                ],
            }
        });
        let mut objects = vec![world::namespace("n", json!({}))];
        objects.extend(pods);
        let history = History::default();
        history.push(objects.iter(), &probed).unwrap();
        let open = Instant::now();
        objects.push(world::policy(
            "n",
            "p",
            json!({"podSelector": {"matchLabels": {"app": "b"}},
            "ingress": [{"ports": [{"port": 8080, "protocol": "UDP"}]}]}),
        ));
        history.push(objects.iter(), &probed).unwrap();
        let closed = Instant::now();
        let question = Question { from: 97, to: 98, udp: false, port: 0, ipv6: true };
        let after = closed + SETTLED;
        assert_eq!(history.expected(question, open, open), Expected::Pass);
        assert_eq!(history.expected(question, open, after), Expected::Either);
        assert_eq!(history.expected(question, closed, closed), Expected::Either);
        assert_eq!(history.expected(question, after, after), Expected::Drop);
        let udp = Question { udp: true, ..question };
        assert_eq!(history.expected(udp, closed, closed), Expected::Pass, "both states agree");
        assert_eq!(history.expected(Question { port: 1, ..udp }, after, after), Expected::Drop);
        assert_eq!(history.expected(Question { from: 98, to: 97, ..question }, after, after), Expected::Pass);
        assert_eq!(history.expected(Question { to: 5, ..question }, after, after), Expected::Either);
    }
}
