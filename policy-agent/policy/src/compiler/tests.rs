use super::*;
use crate::model::{
    LabelSelector, Labels, NamedPort, Operator, Peer, PortRule, PortSpec, Protocol, Requirement, Rule,
};

fn pod(name: &str, address: &str, port: u16) -> Pod {
    Pod {
        key: ObjectKey::new("a", name),
        uid: String::new(),
        labels: Labels::new(),
        ips: vec![address.parse().unwrap()],
        node: None,
        host_network: false,
        finished: false,
        ports: vec![NamedPort { name: "http".to_owned(), protocol: Protocol::Tcp, port }],
    }
}

fn told(limits: Limits) -> Compiler {
    let mut compiler = Compiler::new(limits);
    compiler.set_namespace(&Namespace { name: "a".to_owned(), labels: Labels::new() });
    compiler.set_pod(&pod("local", "10.0.0.1", 80));
    compiler.set_endpoint(1, Some(ObjectKey::new("a", "local")), vec![]);
    let ports = vec![PortRule { protocol: Protocol::Tcp, port: PortSpec::Named("http".to_owned()) }];
    compiler.set_policy(&NetworkPolicy {
        key: ObjectKey::new("a", "n"),
        subjects: LabelSelector::default(),
        ingress: None,
        egress: Some(vec![Rule { peers: vec![], ports }]),
    });
    compiler
}

/// Numbers, classes, sets, atoms come and go for ever within small limits.
#[test]
fn churn_of_named_numbers_leaks_nothing() {
    let mut compiler = told(Limits { classes: 14, sets: 8, ..Limits::default() });
    for number in 1..1000 {
        compiler.set_pod(&pod("remote", "10.0.1.1", number));
        let delta = compiler.commit();
        assert_eq!(compiler.problems(), []);
        assert!(delta.peers.iter().all(|&(_, atom)| atom.is_none_or(|atom| atom < 8)), "{delta:?}");
        compiler.settled(delta.serial);
    }
    assert_eq!((compiler.stats().rows, compiler.stats().atoms, compiler.stats().sets), (2, 2, 2));
}

/// What is told twice, or told and taken back, is no step.
#[test]
fn nothing_new_is_nothing_to_write() {
    let mut compiler = told(Limits::default());
    assert!(!compiler.commit().is_empty());
    assert!(!compiler.is_dirty());
    let same = told(Limits::default());
    assert_eq!(same.limits(), compiler.limits());
    compiler.set_pod(&pod("local", "10.0.0.1", 80));
    compiler.set_pod(&pod("remote", "10.0.1.1", 8080));
    compiler.remove_pod(&ObjectKey::new("a", "remote"));
    compiler.set_endpoint(1, Some(ObjectKey::new("a", "local")), vec![]);
    assert!(compiler.commit().is_empty());
}

/// The same story gives the same tables, id for id.
#[test]
fn output_is_deterministic() {
    let story = || {
        let mut compiler = told(Limits::default());
        for n in 0..50u8 {
            compiler.set_pod(&pod(&format!("p{n}"), &format!("10.0.2.{n}"), u16::from(n % 7) + 1));
        }
        let first = compiler.commit();
        compiler.remove_pod(&ObjectKey::new("a", "p3"));
        [first, compiler.commit()]
    };
    assert_eq!(story(), story());
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::IpBlock { cidr: cidr.parse().unwrap(), except: except.iter().map(|e| e.parse().unwrap()).collect() }
}

fn tcp(port: u16) -> PortRule {
    PortRule { protocol: Protocol::Tcp, port: PortSpec::Range { first: port, last: port } }
}

fn has(key: &str, value: &str) -> LabelSelector {
    let operator = Operator::In(vec![value.to_owned()]);
    LabelSelector { requirements: vec![Requirement { key: key.to_owned(), operator }] }
}

/// Whatever refers to something gives it back: after everything is gone nothing is left.
#[test]
fn what_is_told_and_taken_back_leaves_nothing() {
    let mut compiler = told(Limits::default());
    let mut labelled = pod("labelled", "10.0.1.1", 8080);
    labelled.labels = Labels::from([("app".to_owned(), "x".to_owned()), ("tier".to_owned(), "y".to_owned())]);
    compiler.set_pod(&labelled);
    let everywhere = Peer::Pods { namespaces: Some(has("team", "ops")), pods: has("app", "x") };
    let own = Peer::Pods { namespaces: None, pods: has("tier", "y") };
    let http = PortRule { protocol: Protocol::Tcp, port: PortSpec::Named("http".to_owned()) };
    let peers = vec![everywhere, own, block("10.0.0.0/8", &["10.1.0.0/16"]), block("10.0.0.0/8", &[])];
    let rules = vec![Rule { peers, ports: vec![http, tcp(80)] }];
    for (name, port) in [("twice", 1), ("twice", 2), ("once", 1)] {
        let mut rules = rules.clone();
        rules[0].ports.push(tcp(port));
        compiler.set_policy(&NetworkPolicy {
            key: ObjectKey::new("a", name),
            subjects: has("app", "x"),
            ingress: Some(rules.clone()),
            egress: Some(rules),
        });
    }
    compiler.set_endpoint(2, Some(labelled.key.clone()), vec!["10.0.1.1".parse().unwrap()]);
    assert!(compiler.commit().rows.len() > 1);
    // Other rules for an endpoint that has some.
    compiler.remove_policy(&ObjectKey::new("a", "twice"));
    assert!(!compiler.commit().is_empty());
    compiler.remove_endpoint(1);
    compiler.remove_endpoint(2);
    for name in ["n", "once", "twice"] {
        compiler.remove_policy(&ObjectKey::new("a", name));
    }
    for name in ["local", "labelled"] {
        compiler.remove_pod(&ObjectKey::new("a", name));
    }
    compiler.remove_namespace("a");
    let delta = compiler.commit();
    compiler.settled(delta.serial);
    assert_eq!(Stats { classes: 0, ..compiler.stats() }, Stats::default());
    assert_eq!(compiler.world.vocabulary.len(), 0);
    assert_eq!((compiler.world.groups.len(), compiler.world.port_lists.len()), (0, 0));
    assert!(compiler.rows.is_empty() && compiler.peers.is_empty());
    assert_eq!(compiler.world.namespace_ids().count(), 0);
}

/// A peer for whom no more is open than for everyone has no row.
#[test]
fn what_is_open_to_everyone_needs_no_row() {
    let mut compiler = told(Limits::default());
    let ports =
        |first, last| vec![PortRule { protocol: Protocol::Tcp, port: PortSpec::Range { first, last } }];
    let local = Peer::Pods { namespaces: None, pods: LabelSelector::default() };
    let rules = |last| {
        let everyone = Rule { peers: vec![], ports: ports(80, 90) };
        vec![everyone, Rule { peers: vec![local.clone()], ports: ports(85, last) }]
    };
    for (last, rows) in [(90, 0), (91, 1)] {
        compiler.set_policy(&NetworkPolicy {
            key: ObjectKey::new("a", "n"),
            subjects: LabelSelector::default(),
            ingress: Some(rules(last)),
            egress: None,
        });
        compiler.commit();
        assert_eq!(compiler.stats().rows, rows);
    }
}

/// The same rules, written in other words, are one signature, and the same blocks one block.
#[test]
fn rules_that_mean_the_same_are_one_signature() {
    let key = |name: &str| ObjectKey::new("a", name);
    let rule = |peers: &[Peer], ports: &[PortRule]| Rule { peers: peers.to_vec(), ports: ports.to_vec() };
    let x = || Peer::Pods { namespaces: None, pods: has("app", "x") };
    let plain = || block("10.0.0.0/8", &[]);
    // An except beside its block takes nothing away.
    let beside = || block("10.0.0.0/8", &["192.0.2.0/24"]);
    let forms: [(&str, Vec<Rule>); 6] = [
        ("one rule", vec![rule(&[x(), plain()], &[tcp(80), tcp(81)])]),
        ("by port", vec![rule(&[x(), plain()], &[tcp(81)]), rule(&[plain(), x()], &[tcp(80)])]),
        ("by peer", vec![rule(&[x()], &[tcp(80), tcp(81)]), rule(&[beside()], &[tcp(80), tcp(81)])]),
        ("twice", vec![rule(&[x(), beside(), x()], &[tcp(81), tcp(80), tcp(81)])]),
        ("everything of a peer", vec![rule(&[x()], &[]), rule(&[x()], &[tcp(80)])]),
        ("everything alone", vec![rule(&[x()], &[])]),
    ];
    let mut compiler = Compiler::new(Limits::default());
    compiler.set_namespace(&Namespace { name: "a".to_owned(), labels: Labels::new() });
    for (slot, (name, rules)) in (1..).zip(forms) {
        let name = name.replace(' ', "-");
        let mut subject = pod(&name, "10.0.0.1", 80);
        subject.labels = Labels::from([("name".to_owned(), name.clone())]);
        compiler.set_pod(&subject);
        compiler.set_endpoint(slot, Some(key(&name)), vec![]);
        let (subjects, ingress) = (has("name", &name), Some(rules));
        compiler.set_policy(&NetworkPolicy { key: key(&name), subjects, ingress, egress: None });
    }
    compiler.commit();
    assert_eq!((compiler.stats().signatures, compiler.stats().blocks), (2, 1));
}

/// A policy counts in the directions that it isolates in.
#[test]
fn the_policies_of_a_direction_are_those_that_isolate_in_it() {
    let compiler = told(Limits::default());
    assert_eq!(compiler.policies_of(1, Direction::Egress), [ObjectKey::new("a", "n")]);
    assert_eq!(compiler.policies_of(1, Direction::Ingress), []);
}

/// Ids of classes and places come back: what is in use at a time, not what ever was, is what there is.
#[test]
fn ids_of_classes_and_regions_are_used_again() {
    let mut compiler = told(Limits::default());
    for n in 0..100u16 {
        let mut remote = pod("remote", "10.0.1.1", n + 1);
        remote.labels = Labels::from([("app".to_owned(), n.to_string())]);
        compiler.set_pod(&remote);
        let peers = vec![
            Peer::Pods { namespaces: None, pods: has("app", &n.to_string()) },
            block(&format!("10.{n}.0.0/16"), &[&format!("10.{n}.1.0/24")]),
        ];
        compiler.set_policy(&NetworkPolicy {
            key: ObjectKey::new("a", "changing"),
            subjects: LabelSelector::default(),
            ingress: Some(vec![Rule { peers, ports: vec![] }]),
            egress: None,
        });
        let delta = compiler.commit();
        compiler.settled(delta.serial);
    }
    assert!(compiler.groups.ids() < 16, "{}", compiler.groups.ids());
    assert!(compiler.regions.ids() < 16, "{}", compiler.regions.ids());
    assert!(compiler.prefix_atoms.len() < 16, "{}", compiler.prefix_atoms.len());
}
