//! What compiling costs in a generated cluster: from nothing, and for single changes.
//!
//! `cargo run --release -p fairlead-policy --example compile_cost -- [SCALE]`; at scale 1 the cluster has
//! 1,000 namespaces, 100,000 pods and 10,000 policies; 110 endpoints are local.
#![expect(clippy::print_stdout, reason = "a report for people")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use fairlead_policy::compiler::{Compiler, Limits};
use fairlead_policy::model::{
    LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, ObjectKey, Operator, Peer, Pod, PortRule,
    PortSpec, Protocol, Requirement, Rule,
};
use ipnetwork::{IpNetwork, Ipv4Network};

const APPS: usize = 10;
const REPLICAS: usize = 10;
const ENDPOINTS: usize = 110;
/// Namespaces that have local endpoints, and many policies.
const BUSY: usize = 11;
const BUSY_POLICIES: usize = 110;

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

fn match_labels(pairs: &[(&str, String)]) -> LabelSelector {
    let requirement = |(key, value): &(&str, String)| Requirement {
        key: (*key).to_owned(),
        operator: Operator::In(vec![value.clone()]),
    };
    LabelSelector { requirements: pairs.iter().map(requirement).collect() }
}

fn namespace(n: usize) -> Namespace {
    let name = format!("team-{:03}-{}", n % 200, n);
    let labels = labels(&[
        ("kubernetes.io/metadata.name", name.clone()),
        ("team", format!("team-{:03}", n % 200)),
        ("environment", ["production", "staging", "test"][n % 3].to_owned()),
    ]);
    Namespace { name, labels }
}

fn pod(n: usize, app: usize, replica: usize) -> Pod {
    let owner = format!("{}-{app}", ["frontend", "api", "worker", "cache", "db"][app % 5]);
    let hash = format!("{:x}", (n * 31 + app * 7919) % 0xfff_ffff);
    let stateful = app == APPS - 1;
    let name = if stateful { format!("{owner}-{replica}") } else { format!("{owner}-{hash}-{replica:05x}") };
    let mut labels = labels(&[
        ("app.kubernetes.io/name", owner.clone()),
        ("app.kubernetes.io/instance", format!("{owner}-{}", n % 200)),
        ("app.kubernetes.io/version", format!("1.{}.0", n % 7)),
        ("app.kubernetes.io/managed-by", "Helm".to_owned()),
        ("tier", ["front", "back", "data"][app % 3].to_owned()),
        ("pod-template-hash", hash),
    ]);
    if stateful {
        labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), name.clone());
        labels.insert("apps.kubernetes.io/pod-index".to_owned(), replica.to_string());
    }
    let number = ((n * APPS + app) * REPLICAS + replica) as u32;
    Pod {
        key: ObjectKey::new(namespace(n).name, name),
        uid: String::new(),
        labels,
        ips: vec![Ipv4Addr::from_bits((10 << 24) + number).into()],
        node: None,
        host_network: false,
        finished: false,
        ports: vec![NamedPort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: if app == 0 { 8081 } else { 8080 },
        }],
    }
}

fn tcp(first: u16, last: u16) -> PortRule {
    PortRule { protocol: Protocol::Tcp, port: PortSpec::Range { first, last } }
}

fn block(n: u32) -> Peer {
    let cidr = Ipv4Addr::from_bits((100 << 24) + n * 4096);
    let except = Ipv4Addr::from_bits((100 << 24) + n * 4096 + 256);
    let net = |address, prefix| match Ipv4Network::new(address, prefix) {
        Ok(network) => IpNetwork::V4(network),
        Err(_) => IpNetwork::from(IpAddr::from(address)),
    };
    Peer::IpBlock { cidr: net(cidr, 20), except: vec![net(except, 24)] }
}

fn policy(n: usize, p: usize) -> NetworkPolicy {
    let app = |a: usize| format!("{}-{}", ["frontend", "api", "worker", "cache", "db"][a % 5], a);
    let subjects = match p % 3 {
        0 => LabelSelector::default(),
        1 => match_labels(&[("tier", ["front", "back", "data"][p / 3 % 3].to_owned())]),
        _ => match_labels(&[("app.kubernetes.io/name", app(p / 3 % APPS))]),
    };
    let own = |a| Peer::Pods { namespaces: None, pods: match_labels(&[("app.kubernetes.io/name", app(a))]) };
    let team = Peer::Pods {
        namespaces: Some(match_labels(&[("team", format!("team-{:03}", (n * 7 + p) % 200))])),
        pods: match_labels(&[("app.kubernetes.io/name", app(p % APPS))]),
    };
    let port = 1024 + ((n * 13 + p * 17) % 150) as u16;
    let ingress = vec![
        Rule { peers: vec![own(p % APPS), team.clone()], ports: vec![tcp(port, port)] },
        Rule {
            peers: vec![block(((n * BUSY_POLICIES + p) % 100_000) as u32)],
            ports: vec![tcp(port, port + 10)],
        },
    ];
    let named = PortRule { protocol: Protocol::Tcp, port: PortSpec::Named("http".to_owned()) };
    let egress = vec![Rule { peers: vec![team], ports: vec![named, tcp(443, 443)] }];
    NetworkPolicy {
        key: ObjectKey::new(namespace(n).name, format!("policy-{p:03}")),
        subjects,
        ingress: Some(ingress),
        egress: p.is_multiple_of(4).then_some(egress),
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default().to_owned();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

fn main() {
    let scale: f64 = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(1.0);
    let namespaces = ((1000.0 * scale) as usize).max(BUSY);
    let quiet =
        ((10_000.0 * scale) as usize).saturating_sub(BUSY * BUSY_POLICIES) / (namespaces - BUSY).max(1);
    let before = resident_kib();
    let mut compiler = Compiler::new(Limits { peers: 1 << 21, ..Limits::default() });
    let mut told = Duration::ZERO;
    let mut slot = 1;
    for n in 0..namespaces {
        let namespace = namespace(n);
        told += timed(|| compiler.set_namespace(&namespace)).0;
        for app in 0..APPS {
            for replica in 0..REPLICAS {
                let pod = pod(n, app, replica);
                told += timed(|| compiler.set_pod(&pod)).0;
                if n < BUSY && replica == 0 && slot <= ENDPOINTS as u16 {
                    compiler.set_endpoint(slot, Some(pod.key.clone()), pod.ips.clone());
                    slot += 1;
                }
            }
        }
        for p in 0..if n < BUSY { BUSY_POLICIES } else { quiet } {
            let policy = policy(n, p);
            told += timed(|| compiler.set_policy(&policy)).0;
        }
    }
    let (first, delta) = timed(|| compiler.commit());
    println!("told {told:?} + first commit {first:?}");
    println!("{:?}", compiler.stats());
    println!(
        "delta: {} sets, {} ports, {} rows, {} peers, {} cidrs, {} endpoints",
        delta.sets.len(),
        delta.ports.len(),
        delta.rows.len(),
        delta.peers.len(),
        delta.cidrs.len(),
        delta.endpoints.len()
    );
    drop(delta);
    println!("memory: {} KiB", resident_kib() - before);
    let selected =
        (1..slot).map(|slot| compiler.policies_of(slot, fairlead_policy::oracle::Direction::Ingress).len());
    println!("policies that select an endpoint: at least {}", selected.min().unwrap_or(0));
    println!("problems: {}", compiler.problems().len());

    let mut worst = Duration::ZERO;
    let mut rows = 0;
    for round in 0..1000 {
        let (n, app) = (round * 37 % namespaces, round % APPS);
        let mut pod = pod(n, app, round % REPLICAS);
        if round.is_multiple_of(2) {
            pod.labels.insert("extra".to_owned(), round.to_string());
            pod.labels.insert("tier".to_owned(), "front".to_owned());
        }
        let (time, delta) = timed(|| {
            match round % 3 {
                0 => compiler.remove_pod(&pod.key),
                _ => compiler.set_pod(&pod),
            }
            compiler.commit()
        });
        worst = worst.max(time);
        rows = rows.max(delta.rows.len());
        compiler.settled(delta.serial);
    }
    println!("one pod's change: worst of 1000 {worst:?}, at most {rows} rows");

    let mut worst = (Duration::ZERO, String::new());
    for round in 0..200 {
        let mut policy = policy(round % BUSY, round % BUSY_POLICIES);
        if round.is_multiple_of(2) {
            policy.subjects = LabelSelector::default();
            policy.ingress = Some(vec![Rule {
                peers: vec![
                    block(100_000 + round as u32),
                    Peer::Pods {
                        namespaces: Some(LabelSelector::default()),
                        pods: match_labels(&[
                            ("tier", "data".to_owned()),
                            ("app.kubernetes.io/version", "1.3.0".to_owned()),
                        ]),
                    },
                ],
                ports: vec![tcp(1000 + round as u16, 1000 + round as u16)],
            }]);
        }
        let (time, delta) = timed(|| {
            compiler.set_policy(&policy);
            compiler.commit()
        });
        if time > worst.0 {
            let what = format!(
                "{} rows, {} peers, {} cidrs",
                delta.rows.len(),
                delta.peers.len(),
                delta.cidrs.len()
            );
            worst = (time, what);
        }
        compiler.settled(delta.serial);
    }
    println!("one policy's change: worst of 200 {:?} ({})", worst.0, worst.1);
    println!("{:?}\nmemory: {} KiB", compiler.stats(), resident_kib() - before);
}
