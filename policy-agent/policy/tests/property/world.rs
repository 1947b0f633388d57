//! Small random worlds, dense in corner cases, and what can be asked of them.

use std::net::IpAddr;

use fairlead_policy::compiler::Compiler;
use fairlead_policy::model::{
    LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, ObjectKey, Operator, Peer, Pod, PortRule,
    PortSpec, Protocol, Requirement, Rule,
};
use fairlead_policy::oracle::{Cluster, Direction, LocalEndpoint, Target};
use fairlead_policy::tables::{Slot, Tables};
use ipnetwork::IpNetwork;
use proptest::prelude::*;
use proptest::sample::select;

/// Something happens to the world.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Namespace(Namespace),
    NoNamespace(String),
    Pod(Pod),
    NoPod(ObjectKey),
    Policy(NetworkPolicy),
    NoPolicy(ObjectKey),
    Endpoint(Slot, LocalEndpoint),
    NoEndpoint(Slot),
}

/// Tells the oracle's cluster and the compiler of a change.
pub(crate) fn tell(change: &Change, cluster: &mut Cluster, compiler: &mut Compiler) {
    match change {
        Change::Namespace(n) => {
            compiler.set_namespace(n);
            cluster.namespaces.insert(n.name.clone(), n.clone());
        }
        Change::NoNamespace(name) => {
            compiler.remove_namespace(name);
            cluster.namespaces.remove(name);
        }
        Change::Pod(p) => {
            compiler.set_pod(p);
            cluster.pods.insert(p.key.clone(), p.clone());
        }
        Change::NoPod(key) => {
            compiler.remove_pod(key);
            cluster.pods.remove(key);
        }
        Change::Policy(p) => {
            compiler.set_policy(p);
            cluster.policies.insert(p.key.clone(), p.clone());
        }
        Change::NoPolicy(key) => {
            compiler.remove_policy(key);
            cluster.policies.remove(key);
        }
        Change::Endpoint(slot, e) => {
            compiler.set_endpoint(*slot, e.pod.clone(), e.addresses.clone());
            cluster.endpoints.insert(*slot, e.clone());
        }
        Change::NoEndpoint(slot) => {
            compiler.remove_endpoint(*slot);
            cluster.endpoints.remove(slot);
        }
    }
}

/// Tells a compiler everything about a cluster.
pub(crate) fn tell_all(cluster: &Cluster, compiler: &mut Compiler) {
    cluster.namespaces.values().for_each(|n| compiler.set_namespace(n));
    cluster.pods.values().for_each(|p| compiler.set_pod(p));
    cluster.policies.values().for_each(|p| compiler.set_policy(p));
    for (&slot, e) in &cluster.endpoints {
        compiler.set_endpoint(slot, e.pod.clone(), e.addresses.clone());
    }
}

pub(crate) const SLOTS: [Slot; 4] = [1, 2, 7, 4094];
pub(crate) const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const ADDRESSES: [&str; 11] = [
    "10.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.0.7",
    "10.1.0.1",
    "fd00::1",
    "fd00::2",
    "fd00::3",
    "fd00:1::1",
];
const NETWORKS: [&str; 20] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.0/30",
    "10.0.0.2/31",
    "10.0.0.4/30",
    "10.0.0.1/32",
    "10.0.0.7/32",
    "10.0.0.3/29",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "0.0.0.0/1",
    "255.255.255.255/32",
    "::/0",
    "fd00::/64",
    "fd00::2/127",
    "fd00::1/128",
    "fd00::/8",
    "::ffff:10.0.0.0/104",
    "::/1",
];
const NUMBERS: [u16; 8] = [0, 53, 79, 80, 81, 443, 8080, 65535];
const NAMES: [&str; 3] = ["http", "dns", "web"];

fn one_of(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(values).prop_map(str::to_owned)
}

fn labels(keys: &'static [&'static str]) -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(one_of(keys), one_of(&["1", "2", ""]), 0..=keys.len())
}

fn selector(keys: &'static [&'static str]) -> impl Strategy<Value = LabelSelector> {
    let values =
        || prop::collection::btree_set(one_of(&["1", "2", ""]), 1..=2).prop_map(|s| s.into_iter().collect());
    let operator = prop_oneof![
        4 => values().prop_map(Operator::In),
        2 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let requirement = (one_of(keys), operator).prop_map(|(key, operator)| Requirement { key, operator });
    prop_oneof![
        2 => Just(LabelSelector::default()),
        5 => prop::collection::vec(requirement, 1..=2).prop_map(|requirements| LabelSelector { requirements }),
    ]
}

const POD_KEYS: &[&str] = &["app", "tier"];
const NAMESPACE_KEYS: &[&str] = &["team", "app"];

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn key(names: &'static [&'static str]) -> impl Strategy<Value = ObjectKey> {
    (select(&NAMESPACES[..]), select(names)).prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
}

fn pod_key() -> impl Strategy<Value = ObjectKey> {
    key(&["p0", "p1", "p2"])
}

fn policy_key() -> impl Strategy<Value = ObjectKey> {
    key(&["n0", "n1", "n2"])
}

pub(crate) fn address() -> impl Strategy<Value = IpAddr> {
    select(&ADDRESSES[..]).prop_map(|a| a.parse().unwrap())
}

fn network() -> impl Strategy<Value = IpNetwork> {
    select(&NETWORKS[..]).prop_map(|n| n.parse().unwrap())
}

fn namespace() -> impl Strategy<Value = Namespace> {
    (select(&NAMESPACES[..]), labels(NAMESPACE_KEYS)).prop_map(|(name, mut labels)| {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        Namespace { name: name.to_owned(), labels }
    })
}

fn pod() -> impl Strategy<Value = Pod> {
    let port = (one_of(&NAMES), protocol(), select(&NUMBERS[..]))
        .prop_map(|(name, protocol, port)| NamedPort { name, protocol, port });
    (
        pod_key(),
        labels(POD_KEYS),
        prop::collection::vec(address(), 0..=2),
        prop::bool::weighted(0.08),
        prop::bool::weighted(0.12),
        prop::collection::vec(port, 0..=2),
    )
        .prop_map(|(key, labels, ips, host_network, finished, ports)| Pod {
            key,
            uid: String::new(),
            labels,
            ips,
            node: None,
            host_network,
            finished,
            ports,
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    let namespaces = prop_oneof![
        1 => Just(None),
        1 => selector(NAMESPACE_KEYS).prop_map(Some),
        1 => select(&NAMESPACES[..]).prop_map(|name| {
            let operator = Operator::In(vec![name.to_owned()]);
            let key = "kubernetes.io/metadata.name".to_owned();
            Some(LabelSelector { requirements: vec![Requirement { key, operator }] })
        }),
    ];
    let peer = prop_oneof![
        3 => (namespaces, selector(POD_KEYS)).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        2 => (network(), prop::collection::vec(network(), 0..=2))
            .prop_map(|(cidr, except)| Peer::IpBlock { cidr, except }),
    ];
    let spec = prop_oneof![
        1 => Just(PortSpec::Any),
        4 => select(&NUMBERS[..]).prop_map(|n| PortSpec::Range { first: n, last: n }),
        2 => (select(&NUMBERS[..]), select(&NUMBERS[..]))
            .prop_map(|(a, b)| PortSpec::Range { first: a.min(b), last: a.max(b) }),
        3 => one_of(&NAMES).prop_map(PortSpec::Named),
    ];
    let port = (protocol(), spec).prop_map(|(protocol, port)| PortRule { protocol, port });
    (prop::collection::vec(peer, 0..=2), prop::collection::vec(port, 0..=2))
        .prop_map(|(peers, ports)| Rule { peers, ports })
}

fn policy() -> impl Strategy<Value = NetworkPolicy> {
    let rules = || prop::option::weighted(0.7, prop::collection::vec(rule(), 0..=2));
    (policy_key(), selector(POD_KEYS), rules(), rules())
        .prop_map(|(key, subjects, ingress, egress)| NetworkPolicy { key, subjects, ingress, egress })
}

fn endpoint() -> impl Strategy<Value = (Slot, LocalEndpoint)> {
    let pod = prop::option::weighted(0.9, pod_key());
    let addresses = prop::collection::vec(address(), 1..=2);
    (select(&SLOTS[..]), pod, addresses)
        .prop_map(|(slot, pod, addresses)| (slot, LocalEndpoint { pod, addresses }))
}

/// Objects that come.
pub(crate) fn arrival() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => namespace().prop_map(Change::Namespace),
        5 => pod().prop_map(Change::Pod),
        5 => policy().prop_map(Change::Policy),
        3 => endpoint().prop_map(|(slot, e)| Change::Endpoint(slot, e)),
    ]
}

/// Anything that happens.
pub(crate) fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => arrival(),
        1 => one_of(&NAMESPACES).prop_map(Change::NoNamespace),
        1 => pod_key().prop_map(Change::NoPod),
        2 => policy_key().prop_map(Change::NoPolicy),
        1 => select(&SLOTS[..]).prop_map(Change::NoEndpoint),
    ]
}

/// A world to begin with: the namespaces, mostly known, and objects.
pub(crate) fn beginning() -> impl Strategy<Value = Vec<Change>> {
    let names = NAMESPACES.map(|name| {
        prop::option::weighted(0.9, labels(NAMESPACE_KEYS)).prop_map(move |labels| {
            let mut labels = labels?;
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
            Some(Change::Namespace(Namespace { name: name.to_owned(), labels }))
        })
    });
    (names, prop::collection::vec(arrival(), 4..24))
        .prop_map(|(namespaces, arrivals)| namespaces.into_iter().flatten().chain(arrivals).collect())
}

/// Addresses to ask about: those of pods, and the edges of all blocks and their neighbours.
pub(crate) fn peers() -> Vec<IpAddr> {
    let mut peers: Vec<IpAddr> = ADDRESSES.iter().map(|a| a.parse().unwrap()).collect();
    for network in NETWORKS {
        let network: IpNetwork = network.parse().unwrap();
        peers.extend([network.network(), network.broadcast()]);
        match (network.network(), network.broadcast()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                peers.push(std::net::Ipv4Addr::from_bits(first.to_bits().wrapping_sub(1)).into());
                peers.push(std::net::Ipv4Addr::from_bits(last.to_bits().wrapping_add(1)).into());
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                peers.push(std::net::Ipv6Addr::from_bits(first.to_bits().wrapping_sub(1)).into());
                peers.push(std::net::Ipv6Addr::from_bits(last.to_bits().wrapping_add(1)).into());
            }
            _ => {}
        }
    }
    peers.sort_unstable();
    peers.dedup();
    peers
}

/// What to ask for: each number that rules name with its neighbours, and what has no ports.
pub(crate) fn targets() -> Vec<Target> {
    let mut numbers: Vec<u16> =
        NUMBERS.iter().flat_map(|&n| [n.saturating_sub(1), n, n.saturating_add(1)]).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut targets = vec![Target::Icmp, Target::Other];
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        targets.extend(numbers.iter().map(|&n| Target::Port(protocol, n)));
    }
    targets
}

/// All that can be asked, as one answer after the other.
pub(crate) struct Probes {
    pub(crate) peers: Vec<IpAddr>,
    pub(crate) targets: Vec<Target>,
}

impl Probes {
    pub(crate) fn new() -> Self {
        Self { peers: peers(), targets: targets() }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (Slot, Direction, IpAddr, Target)> + '_ {
        SLOTS.into_iter().flat_map(move |slot| {
            DIRECTIONS.into_iter().flat_map(move |direction| {
                self.peers.iter().flat_map(move |&peer| {
                    self.targets.iter().map(move |&target| (slot, direction, peer, target))
                })
            })
        })
    }

    pub(crate) fn verdicts(&self, tables: &Tables) -> Vec<bool> {
        self.all()
            .map(|(slot, direction, peer, target)| tables.allows(slot, direction, peer, target))
            .collect()
    }
}

/// How many cases to run.
pub(crate) fn cases(default: u32) -> ProptestConfig {
    let wanted = std::env::var("FAIRLEAD_PROPERTY_CASES").ok().and_then(|v| v.parse().ok());
    ProptestConfig {
        cases: wanted.unwrap_or(default),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
