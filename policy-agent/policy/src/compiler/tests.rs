use super::*;
use crate::model::{LabelSelector, Labels, NamedPort, PortRule, PortSpec, Protocol, Rule};

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
