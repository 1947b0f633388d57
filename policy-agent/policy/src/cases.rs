//! The table of named cases: what NetworkPolicy means, one line of the specification at a time.
//!
//! Pure data, so that the same table is run through the oracle, the compiled tables, the kernel and
//! real connections. All cases play in one cluster (see [`cluster`]) and differ in its policies and in
//! a few objects.

mod blocks;
mod identities;
mod ports;
mod selectors;

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{
    LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, Node, ObjectKey, Operator, Peer, Pod,
    PortRule, PortSpec, Protocol, Requirement, Rule,
};
use crate::oracle::{Cluster, Direction, LocalEndpoint, Target};
use crate::tables::Slot;

/// One question and its answer.
#[derive(Clone, Debug)]
pub struct Case {
    /// What the case shows, unique in the table.
    pub name: String,
    /// The world.
    pub cluster: Cluster,
    /// The local endpoint that is judged.
    pub slot: Slot,
    /// The direction in which it is judged.
    pub direction: Direction,
    /// The other end.
    pub peer: IpAddr,
    /// The connection's destination port or protocol.
    pub target: Target,
    /// Whether it passes.
    pub allowed: bool,
}

/// Slot of `shop/db`, the subject of nearly every case: app=db, tier=back, 10.0.0.20 and fd00::20,
/// port `sql` 5432/TCP and `gossip` 7000/UDP.
pub const DB: Slot = 20;
/// Slot of `shop/web`: app=web, tier=front, 10.0.0.10 and fd00::10, port `http` 8080/TCP.
pub const WEB: Slot = 10;
/// Slot of an attachment that is not Kubernetes', 10.0.0.99.
pub const FOREIGN: Slot = 99;

/// The whole table.
pub fn all() -> Vec<Case> {
    let mut table = Table::default();
    selectors::add(&mut table);
    ports::add(&mut table);
    blocks::add(&mut table);
    identities::add(&mut table);
    table.0
}

/// The world before any policy. Besides the local pods: `shop/plain` (no labels, 10.0.0.30),
/// `shop/done` (app=web, finished, 10.0.0.40), `shop/proxy` (app=web, hostNetwork, the node's
/// 192.168.0.1), and on other nodes `other/web` (app=web, tier=front, `http` 80/TCP, 10.0.1.10 and
/// fd00:1::10), `other/db` (app=db, 10.0.1.20). Namespace labels: team=shop, team=other with stage=test.
pub fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    namespace(&mut cluster, "shop", &[("team", "shop")]);
    namespace(&mut cluster, "other", &[("team", "other"), ("stage", "test")]);
    let http = |port| vec![named("http", Protocol::Tcp, port)];
    let mut db = pod("shop", "db", &[("app", "db"), ("tier", "back")], &["10.0.0.20", "fd00::20"]);
    db.ports = vec![named("sql", Protocol::Tcp, 5432), named("gossip", Protocol::Udp, 7000)];
    let mut web = pod("shop", "web", &[("app", "web"), ("tier", "front")], &["10.0.0.10", "fd00::10"]);
    web.ports = http(8080);
    let mut remote = pod("other", "web", &[("app", "web"), ("tier", "front")], &["10.0.1.10", "fd00:1::10"]);
    remote.ports = http(80);
    let mut done = pod("shop", "done", &[("app", "web")], &["10.0.0.40"]);
    done.finished = true;
    let mut proxy = pod("shop", "proxy", &[("app", "web")], &["192.168.0.1"]);
    proxy.host_network = true;
    let plain = pod("shop", "plain", &[], &["10.0.0.30"]);
    let other = pod("other", "db", &[("app", "db")], &["10.0.1.20"]);
    for (slot, pod) in [(DB, &db), (WEB, &web)] {
        let endpoint = LocalEndpoint { pod: Some(pod.key.clone()), addresses: pod.ips.clone() };
        cluster.endpoints.insert(slot, endpoint);
    }
    cluster.endpoints.insert(FOREIGN, LocalEndpoint { pod: None, addresses: vec![ip("10.0.0.99")] });
    for (name, address) in [("one", "192.168.0.1"), ("two", "192.168.0.2")] {
        let node = Node { name: name.to_owned(), addresses: vec![ip(address)], pod_cidrs: Vec::new() };
        cluster.nodes.insert(name.to_owned(), node);
    }
    for pod in [db, web, remote, done, proxy, plain, other] {
        cluster.pods.insert(pod.key.clone(), pod);
    }
    cluster
}

/// Cases as they are added.
#[derive(Default)]
struct Table(Vec<Case>);

/// A question: what it shows, whom it is about, the peer, the target and the answer.
type Probe = (&'static str, Slot, Direction, &'static str, Target, bool);

impl Table {
    /// Adds cases that play under `policies`.
    fn under(&mut self, group: &str, policies: &[NetworkPolicy], probes: &[Probe]) {
        self.within(group, cluster(), policies, probes);
    }

    /// Adds cases that play in a world of their own.
    fn within(&mut self, group: &str, mut cluster: Cluster, policies: &[NetworkPolicy], probes: &[Probe]) {
        for policy in policies {
            cluster.policies.insert(policy.key.clone(), policy.clone());
        }
        for &(what, slot, direction, peer, target, allowed) in probes {
            let name = format!("{group}: {what}");
            self.0.push(Case {
                name,
                cluster: cluster.clone(),
                slot,
                direction,
                peer: ip(peer),
                target,
                allowed,
            });
        }
    }
}

const IN: Direction = Direction::Ingress;
const OUT: Direction = Direction::Egress;
const YES: bool = true;
const NO: bool = false;

const fn tcp(port: u16) -> Target {
    Target::Port(Protocol::Tcp, port)
}

const fn udp(port: u16) -> Target {
    Target::Port(Protocol::Udp, port)
}

const fn sctp(port: u16) -> Target {
    Target::Port(Protocol::Sctp, port)
}

#[expect(clippy::expect_used, reason = "the literals of this table are tested")]
fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address of the table")
}

#[expect(clippy::expect_used, reason = "the literals of this table are tested")]
fn net(network: &str) -> IpNetwork {
    network.parse().expect("a network of the table")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn namespace(cluster: &mut Cluster, name: &str, pairs: &[(&str, &str)]) {
    let mut labels = labels(pairs);
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    cluster.namespaces.insert(name.to_owned(), Namespace { name: name.to_owned(), labels });
}

fn pod(namespace: &str, name: &str, pairs: &[(&str, &str)], addresses: &[&str]) -> Pod {
    Pod {
        key: ObjectKey::new(namespace, name),
        uid: String::new(),
        labels: labels(pairs),
        ips: addresses.iter().map(|address| ip(address)).collect(),
        node: None,
        host_network: false,
        finished: false,
        ports: Vec::new(),
    }
}

fn named(name: &str, protocol: Protocol, port: u16) -> NamedPort {
    NamedPort { name: name.to_owned(), protocol, port }
}

/// `matchLabels`.
fn match_labels(pairs: &[(&str, &str)]) -> LabelSelector {
    let requirement = |&(key, value): &(&str, &str)| Requirement {
        key: key.to_owned(),
        operator: Operator::In(vec![value.to_owned()]),
    };
    LabelSelector { requirements: pairs.iter().map(requirement).collect() }
}

/// `matchExpressions` with one entry.
fn expression(key: &str, operator: Operator) -> LabelSelector {
    LabelSelector { requirements: vec![Requirement { key: key.to_owned(), operator }] }
}

fn values(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

/// `podSelector` alone.
fn pods(selector: LabelSelector) -> Peer {
    Peer::Pods { namespaces: None, pods: selector }
}

/// `namespaceSelector` and `podSelector`.
fn pods_in(namespaces: LabelSelector, pods: LabelSelector) -> Peer {
    Peer::Pods { namespaces: Some(namespaces), pods }
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::IpBlock { cidr: net(cidr), except: except.iter().map(|e| net(e)).collect() }
}

fn rule(peers: &[Peer], ports: &[PortRule]) -> Rule {
    Rule { peers: peers.to_vec(), ports: ports.to_vec() }
}

fn port(protocol: Protocol, number: u16) -> PortRule {
    PortRule { protocol, port: PortSpec::Range { first: number, last: number } }
}

fn range(protocol: Protocol, first: u16, last: u16) -> PortRule {
    PortRule { protocol, port: PortSpec::Range { first, last } }
}

fn any(protocol: Protocol) -> PortRule {
    PortRule { protocol, port: PortSpec::Any }
}

fn by_name(protocol: Protocol, name: &str) -> PortRule {
    PortRule { protocol, port: PortSpec::Named(name.to_owned()) }
}

fn policy(
    name: &str,
    subjects: LabelSelector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
) -> NetworkPolicy {
    NetworkPolicy { key: ObjectKey::new("shop", name), subjects, ingress, egress }
}

/// Isolates `shop/db` for ingress, with these rules.
fn ingress(rules: &[Rule]) -> NetworkPolicy {
    policy("in", match_labels(&[("app", "db")]), Some(rules.to_vec()), None)
}

/// Isolates `shop/db` for egress, with these rules.
fn egress(rules: &[Rule]) -> NetworkPolicy {
    policy("out", match_labels(&[("app", "db")]), None, Some(rules.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::compiler::{Compiler, Limits};
    use crate::tables::Tables;

    #[test]
    fn every_case_in_the_oracle_and_in_compiled_tables() {
        let cases = all();
        assert!(cases.len() > 150, "{}", cases.len());
        let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len());
        let mut wrong = Vec::new();
        for case in &cases {
            let Case { slot, direction, peer, target, .. } = *case;
            let oracle = case.cluster.verdict(slot, direction, peer, target).passes();
            let mut compiler = Compiler::new(Limits::default());
            case.cluster.namespaces.values().for_each(|n| compiler.set_namespace(n));
            case.cluster.pods.values().for_each(|p| compiler.set_pod(p));
            case.cluster.policies.values().for_each(|p| compiler.set_policy(p));
            for (&slot, e) in &case.cluster.endpoints {
                compiler.set_endpoint(slot, e.pod.clone(), e.addresses.clone());
            }
            let mut tables = Tables::default();
            tables.apply(&compiler.commit());
            let compiled = tables.allows(slot, direction, peer, target);
            if (oracle, compiled) != (case.allowed, case.allowed) {
                wrong.push(format!(
                    "{}: expected {}, oracle {oracle}, tables {compiled}",
                    case.name, case.allowed
                ));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// For the lookups by key in the cases' texts.
    #[test]
    fn the_cluster_is_as_described() {
        let cluster = cluster();
        let finished: BTreeMap<_, _> = cluster.pods.iter().filter(|(_, p)| p.finished).collect();
        assert_eq!(finished.len(), 1);
        assert_eq!(cluster.endpoints.len(), 3);
    }
}
