//! Compiled tables mean what the oracle says: at once, after any sequence of changes, and between any two
//! writes.

use crate::ids::Ids;
use crate::world::{Change, Probes, beginning, cases, change, tell, tell_all};
use fairlead_policy::compiler::{Compiler, Limits, Stats};
use fairlead_policy::model::{
    LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, ObjectKey, Operator, Peer, Pod, PortRule,
    PortSpec, Protocol, Requirement, Rule,
};
use fairlead_policy::oracle::{Cluster, Direction, LocalEndpoint, Target};
use fairlead_policy::tables::{Tables, Write};
use proptest::prelude::*;

/// Every probe that the oracle and the tables answer differently; the first of them.
fn disagreement(cluster: &Cluster, tables: &Tables, probes: &Probes) -> Option<String> {
    probes.all().find_map(|(slot, direction, peer, target)| {
        let oracle = cluster.verdict(slot, direction, peer, target);
        let compiled = tables.allows(slot, direction, peer, target);
        (oracle.passes() != compiled).then(|| {
            format!("slot {slot} {direction:?} {peer} {target:?}: oracle {oracle:?}, tables {compiled}")
        })
    })
}

/// What must not depend on how the state was reached.
fn canonical(stats: Stats) -> Stats {
    Stats { classes: 0, ..stats }
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn tables_agree_with_the_oracle(changes in beginning()) {
        let (mut cluster, mut compiler) = (Cluster::default(), Compiler::new(Limits::default()));
        for change in &changes {
            tell(change, &mut cluster, &mut compiler);
        }
        let mut tables = Tables::default();
        tables.apply(&compiler.commit());
        prop_assert_eq!(disagreement(&cluster, &tables, &Probes::new()), None);
        prop_assert!(compiler.problems().is_empty());
        // Nothing to do: nothing done.
        prop_assert!(compiler.commit().is_empty());
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// After each commit: the oracle's verdicts; a fresh compiler's sizes; nothing changed by writes in
    /// place, not even for packets that are still judged by an older state; no id used too early.
    #[test]
    fn changes_lead_to_the_same_state_and_never_through_a_wrong_one(
        first in beginning(),
        steps in prop::collection::vec((prop::collection::vec(change(), 1..4), 0..4u64), 1..8),
        classes in prop_oneof![Just(1024u16), Just(24)],
    ) {
        let limits = Limits { classes, ..Limits::default() };
        let (mut cluster, mut compiler) = (Cluster::default(), Compiler::new(limits));
        let (mut tables, probes, mut ids) = (Tables::default(), Probes::new(), Ids::default());
        let mut settled = 0;
        let mut verdicts = Vec::new();
        for (changes, lag) in std::iter::once((first, 1)).chain(steps) {
            for change in &changes {
                tell(change, &mut cluster, &mut compiler);
            }
            let delta = compiler.commit();
            ids.apply(&delta);
            verdicts.push(probes.verdicts(&tables));
            let generations = verdicts.len();
            for write in Tables::writes(&delta) {
                tables.write(write);
                if matches!(write, Write::Set(..)) {
                    prop_assert_eq!(&probes.verdicts(&tables), &verdicts[generations - 1], "{:?}", write);
                }
                if matches!(write, Write::Ports(..)) {
                    // Banks hold the last three states.
                    for back in 0..3.min(generations) {
                        let state = generations - 1 - back;
                        if state as u64 >= settled || back == 0 {
                            let judged = probes.verdicts(&tables.rewound(back as u32));
                            prop_assert_eq!(&judged, &verdicts[state], "{:?} {} back", write, back);
                        }
                    }
                }
            }
            if compiler.problems().is_empty() {
                prop_assert_eq!(disagreement(&cluster, &tables, &probes), None);
                let mut fresh = Compiler::new(Limits::default());
                tell_all(&cluster, &mut fresh);
                fresh.commit();
                prop_assert_eq!(canonical(compiler.stats()), canonical(fresh.stats()));
            }
            // At most three states are told apart by banks, so the datapath waits before a fourth.
            settled = settled.max(delta.serial.saturating_sub(lag.min(2)));
            compiler.settled(settled);
            ids.settled(settled);
        }
    }
}

/// Found by `changes_lead_to_the_same_state_and_never_through_a_wrong_one`: a class of pods at which no
/// rule looked, for a port's name alone, got the first selector in use as a whole, and stayed unseen.
#[test]
fn pods_that_a_rule_begins_to_look_at_are_seen_even_if_their_class_stays() {
    let key = |name: &str| ObjectKey::new("b", name);
    let tier = Requirement { key: "tier".to_owned(), operator: Operator::In(vec!["1".to_owned()]) };
    let policy = |requirements, ports| NetworkPolicy {
        key: key("n0"),
        subjects: LabelSelector::default(),
        ingress: None,
        egress: Some(vec![Rule {
            peers: vec![Peer::Pods { namespaces: None, pods: LabelSelector { requirements } }],
            ports,
        }]),
    };
    let dns = PortRule { protocol: Protocol::Tcp, port: PortSpec::Named("dns".to_owned()) };
    let [first, second] = ["10.0.0.0", "10.0.0.1"].map(|a| a.parse::<std::net::IpAddr>().unwrap());
    let (mut cluster, mut compiler, mut tables) =
        (Cluster::default(), Compiler::new(Limits::default()), Tables::default());
    // Two groups in one class.
    let pod = |name: &str| Pod {
        key: key(name),
        uid: String::new(),
        labels: Labels::from([("app".to_owned(), name.to_owned())]),
        ips: Vec::new(),
        node: None,
        host_network: false,
        finished: false,
        ports: vec![NamedPort { name: "dns".to_owned(), protocol: Protocol::Tcp, port: 53 }],
    };
    let endpoint = |name, address| LocalEndpoint { pod: Some(key(name)), addresses: vec![address] };
    for change in [
        Change::Endpoint(1, endpoint("p1", first)),
        Change::Endpoint(2, endpoint("p2", second)),
        Change::Policy(policy(vec![tier], vec![dns])),
        Change::Pod(pod("p1")),
        Change::Pod(pod("p2")),
        Change::Namespace(Namespace { name: "b".to_owned(), labels: Labels::new() }),
    ] {
        tell(&change, &mut cluster, &mut compiler);
    }
    tables.apply(&compiler.commit());
    assert!(!tables.allows(1, Direction::Egress, first, Target::Icmp));
    tell(&Change::Policy(policy(Vec::new(), Vec::new())), &mut cluster, &mut compiler);
    tables.apply(&compiler.commit());
    for address in [first, second] {
        assert!(cluster.verdict(1, Direction::Egress, address, Target::Icmp).passes());
        assert!(tables.allows(1, Direction::Egress, address, Target::Icmp), "{address}");
    }
}
