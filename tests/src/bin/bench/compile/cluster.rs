//! A cluster as people have them: Helm's labels, teams, a few busy namespaces and many quiet ones.

use std::net::Ipv4Addr;

use anyhow::Result;
use fairlead_index::{Kind, Object, ObjectId, Outcome, Parsed};
use fairlead_policy::model::{
    LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, ObjectKey, Operator, Peer, Pod, PortRule,
    PortSpec, Protocol, Requirement, Rule,
};
use ipnetwork::{IpNetwork, Ipv4Network};

/// Workloads of a namespace, and pods of each. The last one is a StatefulSet.
pub(super) const APPS: usize = 10;
pub(super) const REPLICAS: usize = 10;
/// Namespaces that have endpoints on the node, the first pod of each workload, and many policies.
pub(super) const BUSY: usize = 11;
/// Policies of a busy namespace, in a cluster that is large enough.
const BUSY_POLICIES: usize = 110;
const TEAMS: usize = 200;

/// A generated cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cluster {
    pub(super) namespaces: usize,
    policies: usize,
    /// Policies of a busy namespace.
    pub(super) busy_policies: usize,
}

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

/// `matchLabels`.
pub(super) fn select(pairs: &[(&str, String)]) -> LabelSelector {
    let requirement = |(key, value): &(&str, String)| Requirement {
        key: (*key).to_owned(),
        operator: Operator::In(vec![value.clone()]),
    };
    LabelSelector { requirements: pairs.iter().map(requirement).collect() }
}

fn team(n: usize) -> String {
    format!("team-{:03}", n % TEAMS)
}

pub(super) fn app_name(app: usize) -> String {
    format!("{}-{}", ["frontend", "api", "worker", "cache", "db"][app % 5], app % APPS)
}

pub(super) fn namespace_name(n: usize) -> String {
    format!("{}-{n}", team(n))
}

fn namespace(n: usize) -> Namespace {
    let labels = labels(&[
        ("kubernetes.io/metadata.name", namespace_name(n)),
        ("team", team(n)),
        ("environment", ["production", "staging", "test"][n % 3].to_owned()),
    ]);
    Namespace { name: namespace_name(n), labels }
}

/// A pod of a workload; `rollout` counts the workload's versions.
pub(super) fn pod(n: usize, app: usize, replica: usize, rollout: usize) -> Pod {
    let owner = app_name(app);
    let hash = format!("{:x}", (n * 31 + app * 7919 + rollout * 104_729) % 0xfff_ffff);
    let stateful = app == APPS - 1;
    let name = if stateful { format!("{owner}-{replica}") } else { format!("{owner}-{hash}-{replica:05x}") };
    let mut labels = labels(&[
        ("app.kubernetes.io/name", owner.clone()),
        ("app.kubernetes.io/instance", format!("{owner}-{}", n % TEAMS)),
        ("app.kubernetes.io/version", format!("1.{}.{rollout}", n % 7)),
        ("app.kubernetes.io/managed-by", "Helm".to_owned()),
        ("tier", ["front", "back", "data"][app % 3].to_owned()),
        ("pod-template-hash", hash),
    ]);
    if stateful {
        labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), name.clone());
        labels.insert("apps.kubernetes.io/pod-index".to_owned(), replica.to_string());
    }
    let number = (n * APPS + app) * REPLICAS + replica;
    Pod {
        key: ObjectKey::new(namespace_name(n), name),
        uid: format!(
            "{number:08x}-{rollout:04x}-4000-8000-{:012x}",
            (number * 2_654_435_761) & 0xffff_ffff_ffff
        ),
        labels,
        ips: vec![Ipv4Addr::from_bits((10 << 24) + number as u32).into()],
        node: Some(format!("node-{}", number % 1000)),
        host_network: false,
        finished: false,
        ports: vec![NamedPort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: if app == 0 { 8081 } else { 8080 },
        }],
    }
}

pub(super) fn tcp(first: u16, last: u16) -> PortRule {
    PortRule { protocol: Protocol::Tcp, port: PortSpec::Range { first, last } }
}

/// A block of its own for each number, with a hole.
pub(super) fn block(number: usize) -> Result<Peer> {
    let net = |offset, prefix| {
        let address = Ipv4Addr::from_bits((100 << 24) + number as u32 * 4096 + offset);
        Ok::<_, ipnetwork::IpNetworkError>(IpNetwork::V4(Ipv4Network::new(address, prefix)?))
    };
    Ok(Peer::IpBlock { cidr: net(0, 20)?, except: vec![net(256, 24)?] })
}

/// A policy of a namespace; `version` changes one port.
pub(super) fn policy(n: usize, p: usize, version: usize) -> Result<NetworkPolicy> {
    let name = |a| ("app.kubernetes.io/name", app_name(a));
    let subjects = match p % 3 {
        0 => LabelSelector::default(),
        1 => select(&[("tier", ["front", "back", "data"][p / 3 % 3].to_owned())]),
        _ => select(&[name(p / 3)]),
    };
    let own = Peer::Pods { namespaces: None, pods: select(&[name(p)]) };
    let theirs =
        Peer::Pods { namespaces: Some(select(&[("team", team(n * 7 + p))])), pods: select(&[name(p)]) };
    let port = 1024 + ((n * 13 + p * 17 + version) % 150) as u16;
    let ingress = vec![
        Rule { peers: vec![own, theirs.clone()], ports: vec![tcp(port, port)] },
        Rule { peers: vec![block((n * BUSY_POLICIES + p) % 100_000)?], ports: vec![tcp(port, port + 10)] },
    ];
    let http = PortRule { protocol: Protocol::Tcp, port: PortSpec::Named("http".to_owned()) };
    let egress = vec![Rule { peers: vec![theirs], ports: vec![http, tcp(443, 443)] }];
    Ok(NetworkPolicy {
        key: ObjectKey::new(namespace_name(n), format!("policy-{p:03}")),
        subjects,
        ingress: Some(ingress),
        egress: p.is_multiple_of(4).then_some(egress),
    })
}

/// As a source hands an object on.
pub(super) fn parsed(object: Object) -> Parsed {
    let (kind, key) = match &object {
        Object::Node(node) => (Kind::Node, ObjectKey::new("", &*node.name)),
        Object::Namespace(namespace) => (Kind::Namespace, ObjectKey::new("", &*namespace.name)),
        Object::Pod(pod) => (Kind::Pod, pod.key.clone()),
        Object::NetworkPolicy(policy) => (Kind::NetworkPolicy, policy.key.clone()),
        Object::Service(service) => (Kind::Service, service.key.clone()),
        Object::EndpointSlice(key) => (Kind::EndpointSlice, key.clone()),
    };
    Parsed { id: ObjectId { kind, key }, origin: None, outcome: Outcome::Good(object) }
}

impl Cluster {
    /// At scale 1: 1,000 namespaces, 100,000 pods, 10,000 policies.
    pub(super) fn new(scale: f64) -> Self {
        let policies = (10_000.0 * scale) as usize;
        Self {
            namespaces: (1000.0 * scale) as usize,
            policies,
            busy_policies: BUSY_POLICIES.min(policies / 2 / BUSY),
        }
    }

    /// Policies of a namespace.
    fn policies_of(self, n: usize) -> usize {
        if n < BUSY {
            return self.busy_policies;
        }
        let (rest, quiet) = (self.policies - BUSY * self.busy_policies, self.namespaces - BUSY);
        rest / quiet + usize::from(n - BUSY < rest % quiet)
    }

    /// All objects of a namespace, the pods before the policies as their kinds are listed.
    pub(super) fn objects(self, n: usize) -> Result<Vec<Object>> {
        let mut objects = vec![Object::Namespace(namespace(n))];
        for app in 0..APPS {
            objects.extend((0..REPLICAS).map(|replica| Object::Pod(pod(n, app, replica, 0))));
        }
        for p in 0..self.policies_of(n) {
            objects.push(Object::NetworkPolicy(policy(n, p, 0)?));
        }
        Ok(objects)
    }
}
