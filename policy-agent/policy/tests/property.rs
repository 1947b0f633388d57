//! Compiled tables mean what the oracle says: at once, after any sequence of changes, between any two
//! writes, and, where something does not fit, never more.

#![expect(clippy::unwrap_used, reason = "the literals of the random worlds parse")]

mod world;

use std::collections::{BTreeMap, BTreeSet};

use fairlead_policy::compiler::{Compiler, Limits, Stats};
use fairlead_policy::model::{
    LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, ObjectKey, Operator, Peer, Pod, PortRule,
    PortSpec, Protocol, Requirement, Rule,
};
use fairlead_policy::oracle::{Cluster, Direction, LocalEndpoint, Target};
use fairlead_policy::tables::{Delta, Tables, Write};
use proptest::prelude::*;
use world::{Change, Probes, beginning, cases, change, tell, tell_all};

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

/// Ids in use in force, followed from delta to delta.
#[derive(Default)]
struct Ids {
    rows: BTreeMap<(u32, u32), u32>,
    peers: BTreeMap<std::net::IpAddr, u32>,
    cidrs: BTreeMap<ipnetwork::IpNetwork, u32>,
    endpoints: BTreeMap<u16, fairlead_common::maps::EndpointPolicy>,
    resting: BTreeMap<(&'static str, u32), u64>,
}

fn follow<K: Ord + Clone, V: Copy>(map: &mut BTreeMap<K, V>, changes: &[(K, Option<V>)]) {
    for (key, value) in changes {
        match value {
            Some(value) => map.insert(key.clone(), *value),
            None => map.remove(key),
        };
    }
}

impl Ids {
    fn used(&self) -> BTreeSet<(&'static str, u32)> {
        let atoms =
            self.peers.values().chain(self.cidrs.values()).copied().chain(self.rows.keys().map(|k| k.1));
        let sides = self.endpoints.values().flat_map(|e| [e.ingress, e.egress]);
        let signatures = sides.map(|s| s.signature).chain(self.rows.keys().map(|k| k.0));
        (atoms.filter(|&a| a > 0).map(|a| ("atom", a)))
            .chain(signatures.filter(|&s| s > 1).map(|s| ("signature", s)))
            .collect()
    }

    fn apply(&mut self, delta: &Delta) {
        let before = self.used();
        follow(&mut self.rows, &delta.rows);
        follow(&mut self.peers, &delta.peers);
        follow(&mut self.cidrs, &delta.cidrs);
        follow(&mut self.endpoints, &delta.endpoints);
        let after = self.used();
        for id in after.difference(&before) {
            assert!(!self.resting.contains_key(id), "{id:?} is used again before it has settled");
        }
        for id in before.difference(&after) {
            self.resting.insert(*id, delta.serial);
        }
    }

    fn settled(&mut self, serial: u64) {
        self.resting.retain(|_, at| *at > serial);
    }
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

/// Limits of which one is too small for many of the random worlds.
fn tight() -> impl Strategy<Value = Limits> {
    let wide = Limits::default();
    prop_oneof![
        (2..8u32).prop_map(move |sets| Limits { sets, ..wide }),
        (5..14u16).prop_map(move |classes| Limits { classes, ..wide }),
        (0..8u32).prop_map(move |rows| Limits { rows, ..wide }),
        (0..3u32).prop_map(move |peers| Limits { peers, ..wide }),
        (0..3u32).prop_map(move |cidrs| Limits { cidrs, ..wide }),
        (0..4u32).prop_map(move |signatures| Limits { signatures, ..wide }),
    ]
}

proptest! {
    #![proptest_config(cases(1000))]

    /// What does not fit is closed and told; every other direction is exact; sizes are kept.
    #[test]
    fn overflow_denies_whom_it_concerns_and_nobody_else(
        first in beginning(),
        steps in prop::collection::vec(prop::collection::vec(change(), 1..4), 0..5),
        limits in tight(),
    ) {
        let (mut cluster, mut compiler) = (Cluster::default(), Compiler::new(limits));
        let (mut tables, probes, mut ids) = (Tables::default(), Probes::new(), Ids::default());
        for changes in std::iter::once(first).chain(steps) {
            for change in &changes {
                tell(change, &mut cluster, &mut compiler);
            }
            let delta = compiler.commit();
            tables.apply(&delta);
            ids.apply(&delta);
            compiler.settled(delta.serial);
            ids.settled(delta.serial);
            check_overflow(&cluster, &compiler, &tables, &ids, &probes, limits)?;
        }
        // Once the rules are gone everything fits again, whatever happened before.
        for key in cluster.policies.keys().cloned().collect::<Vec<_>>() {
            tell(&Change::NoPolicy(key), &mut cluster, &mut compiler);
        }
        let delta = compiler.commit();
        tables.apply(&delta);
        ids.apply(&delta);
        prop_assert!(compiler.problems().is_empty());
        prop_assert_eq!(disagreement(&cluster, &tables, &probes), None);
        prop_assert!(ids.rows.is_empty() && ids.peers.is_empty() && ids.cidrs.is_empty());
    }
}

fn check_overflow(
    cluster: &Cluster,
    compiler: &Compiler,
    tables: &Tables,
    ids: &Ids,
    probes: &Probes,
    limits: Limits,
) -> Result<(), TestCaseError> {
    let problems = compiler.problems();
    let closed: BTreeSet<(u16, Direction)> = problems.iter().map(|p| (p.slot, p.direction)).collect();
    for problem in &problems {
        prop_assert!(!problem.policies.is_empty());
        prop_assert_eq!(cluster.endpoints[&problem.slot].pod.as_ref(), Some(&problem.pod));
    }
    for (slot, direction, peer, target) in probes.all() {
        let oracle = cluster.verdict(slot, direction, peer, target);
        let expected = oracle.passes() && !closed.contains(&(slot, direction));
        let got = tables.allows(slot, direction, peer, target);
        prop_assert_eq!(got, expected, "slot {} {:?} {} {:?}: {:?}", slot, direction, peer, target, oracle);
    }
    let family = |v6: bool| {
        (
            ids.peers.keys().filter(|a| a.is_ipv6() == v6).count(),
            ids.cidrs.keys().filter(|p| p.is_ipv6() == v6).count(),
        )
    };
    for (peers, cidrs) in [family(false), family(true)] {
        prop_assert!(peers <= limits.peers as usize && cidrs <= limits.cidrs as usize);
    }
    prop_assert!(ids.rows.len() <= limits.rows as usize);
    prop_assert!(ids.rows.values().all(|&set| set < limits.sets));
    prop_assert!(compiler.stats().signatures <= limits.signatures as usize);
    prop_assert!(compiler.stats().classes <= usize::from(limits.classes));
    Ok(())
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
    let address: std::net::IpAddr = "10.0.0.0".parse().unwrap();
    let (mut cluster, mut compiler, mut tables) =
        (Cluster::default(), Compiler::new(Limits::default()), Tables::default());
    let pod = Pod {
        key: key("p1"),
        uid: String::new(),
        labels: Labels::new(),
        ips: Vec::new(),
        node: None,
        host_network: false,
        finished: false,
        ports: vec![NamedPort { name: "dns".to_owned(), protocol: Protocol::Tcp, port: 53 }],
    };
    let endpoint = LocalEndpoint { pod: Some(key("p1")), addresses: vec![address] };
    for change in [
        Change::Endpoint(1, endpoint),
        Change::Policy(policy(vec![tier], vec![dns])),
        Change::Pod(pod),
        Change::Namespace(Namespace { name: "b".to_owned(), labels: Labels::new() }),
    ] {
        tell(&change, &mut cluster, &mut compiler);
    }
    tables.apply(&compiler.commit());
    assert!(!tables.allows(1, Direction::Egress, address, Target::Icmp));
    tell(&Change::Policy(policy(Vec::new(), Vec::new())), &mut cluster, &mut compiler);
    tables.apply(&compiler.commit());
    assert!(cluster.verdict(1, Direction::Egress, address, Target::Icmp).passes());
    assert!(tables.allows(1, Direction::Egress, address, Target::Icmp));
}
