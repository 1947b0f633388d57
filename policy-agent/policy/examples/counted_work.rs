//! Work of the compiler whose instructions are counted: `cargo xtask costs`.
//!
//! `counted_work build|pods|policies`: a cluster of 2,000 pods and 200 policies, 20 endpoints of it local, is
//! compiled; with `pods` then 200 pods change, with `policies` 200 policies. What a change costs is the
//! difference. The world must stay as it is, or what was recorded means nothing.
#![expect(clippy::print_stderr, reason = "for who calls it wrongly")]

use std::net::Ipv4Addr;
use std::process::ExitCode;

use fairlead_policy::compiler::{Compiler, Limits};
use fairlead_policy::model::{
    LabelSelector, Labels, Namespace, NetworkPolicy, ObjectKey, Operator, Peer, Pod, PortRule, PortSpec,
    Protocol, Requirement, Rule,
};
use ipnetwork::{IpNetwork, Ipv4Network};

const NAMESPACES: usize = 20;
const TO_A_NAMESPACE: usize = 100;
const POLICIES: usize = 200;
const ENDPOINTS: usize = 20;
const CHANGES: usize = 200;

fn namespace(number: usize) -> Namespace {
    let labels = [("team".to_owned(), format!("team-{}", number % 10))];
    Namespace { name: format!("namespace-{number}"), labels: labels.into_iter().collect() }
}

fn pod(number: usize, version: usize) -> Pod {
    let labels: Labels = [
        ("app", format!("app-{}", number % 10)),
        ("tier", format!("tier-{}", number % 3)),
        ("version", format!("{version}")),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into_iter()
    .collect();
    Pod {
        key: ObjectKey::new(namespace(number / TO_A_NAMESPACE).name, format!("pod-{number}")),
        uid: String::new(),
        labels,
        ips: vec![Ipv4Addr::from_bits((10 << 24) + number as u32).into()],
        node: None,
        host_network: false,
        finished: false,
        ports: Vec::new(),
    }
}

fn labelled(key: &str, value: String) -> LabelSelector {
    let requirement = Requirement { key: key.to_owned(), operator: Operator::In(vec![value]) };
    LabelSelector { requirements: vec![requirement] }
}

fn policy(number: usize, version: usize) -> NetworkPolicy {
    let port = 1024 + ((number * 17 + version) % 100) as u16;
    let ports =
        vec![PortRule { protocol: Protocol::Tcp, port: PortSpec::Range { first: port, last: port + 7 } }];
    let team = Peer::Pods {
        namespaces: Some(labelled("team", format!("team-{}", number % 10))),
        pods: labelled("app", format!("app-{}", (number + version) % 10)),
    };
    let block = Ipv4Addr::from_bits((100 << 24) + ((number * 7 + version) as u32) * 4096);
    let mut peers = vec![team];
    if let Ok(cidr) = Ipv4Network::new(block, 20) {
        peers.push(Peer::IpBlock { cidr: IpNetwork::V4(cidr), except: Vec::new() });
    }
    let rules = vec![Rule { peers, ports }];
    NetworkPolicy {
        key: ObjectKey::new(namespace(number % NAMESPACES).name, format!("policy-{number}")),
        subjects: if number.is_multiple_of(2) {
            LabelSelector::default()
        } else {
            labelled("tier", format!("tier-{}", number % 3))
        },
        egress: number.is_multiple_of(4).then(|| rules.clone()),
        ingress: Some(rules),
    }
}

fn main() -> ExitCode {
    let work = std::env::args().nth(1).unwrap_or_default();
    let mut compiler = Compiler::new(Limits::default());
    for number in 0..NAMESPACES {
        compiler.set_namespace(&namespace(number));
    }
    for number in 0..NAMESPACES * TO_A_NAMESPACE {
        compiler.set_pod(&pod(number, 0));
    }
    for number in 0..ENDPOINTS {
        let pod = pod(number * TO_A_NAMESPACE, 0);
        compiler.set_endpoint(number as u16 + 1, Some(pod.key), pod.ips);
    }
    for number in 0..POLICIES {
        compiler.set_policy(&policy(number, 0));
    }
    let serial = compiler.commit().serial;
    compiler.settled(serial);
    match work.as_str() {
        "build" => return ExitCode::SUCCESS,
        "pods" | "policies" => {}
        _ => {
            eprintln!("counted_work build|pods|policies");
            return ExitCode::from(2);
        }
    }
    for change in 0..CHANGES {
        if work == "pods" {
            let mut pod = pod(change * 7 % (NAMESPACES * TO_A_NAMESPACE), change);
            pod.labels.insert("tier".to_owned(), format!("tier-{}", change % 3));
            compiler.set_pod(&pod);
        } else {
            compiler.set_policy(&policy(change % POLICIES, change + 1));
        }
        let serial = compiler.commit().serial;
        compiler.settled(serial);
    }
    ExitCode::SUCCESS
}
