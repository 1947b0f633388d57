//! Rules that do not fit: what is in force stays, nothing opens, and only those whom it concerns feel it.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Ids;
use crate::world::{Change, DIRECTIONS, Probes, SLOTS, beginning, cases, change, tell};
use fairlead_policy::compiler::{Compiler, Instead, Limits};
use fairlead_policy::model::{LabelSelector, NamedPort, NetworkPolicy};
use fairlead_policy::oracle::{Cluster, Direction};
use fairlead_policy::tables::{Slot, Tables};
use proptest::prelude::*;

/// Limits of which one is too small for many of the random worlds; whether rules may be in force in part.
fn tight() -> impl Strategy<Value = (Limits, bool)> {
    let wide = Limits::default();
    prop_oneof![
        (0..4u32).prop_map(move |sets| (Limits { sets, ..wide }, true)),
        (5..14u16).prop_map(move |classes| (Limits { classes, ..wide }, true)),
        (0..8u32).prop_map(move |rows| (Limits { rows, ..wide }, true)),
        (0..3u32).prop_map(move |peers| (Limits { peers, ..wide }, true)),
        (0..3u32).prop_map(move |cidrs| (Limits { cidrs, ..wide }, false)),
        (0..4u32).prop_map(move |signatures| (Limits { signatures, ..wide }, false)),
    ]
}

/// The rules of one direction that fitted last, and the ports that they resolved names by.
#[derive(Clone, Debug)]
struct Held {
    policies: Vec<NetworkPolicy>,
    ports: Vec<NamedPort>,
}

/// What holds in each direction that is isolated.
#[derive(Default)]
struct Ledger(BTreeMap<(Slot, Direction), Held>);

impl Ledger {
    /// The world in which the older rules of a side are the rules.
    fn cluster_of(&self, side: (Slot, Direction), cluster: &Cluster) -> Cluster {
        let held = &self.0[&side];
        let mut older = cluster.clone();
        older.policies.clear();
        for policy in &held.policies {
            let policy = NetworkPolicy { subjects: LabelSelector::default(), ..policy.clone() };
            older.policies.insert(policy.key.clone(), policy);
        }
        if side.1 == Direction::Ingress {
            let key = cluster.endpoints[&side.0].pod.as_ref().unwrap();
            older.pods.get_mut(key).unwrap().ports.clone_from(&held.ports);
        }
        older
    }

    /// After a commit: sides that have their own rules hold them, sides that are not isolated hold none.
    fn note(&mut self, cluster: &Cluster, instead: &BTreeMap<(Slot, Direction), Instead>) {
        for side in SLOTS.into_iter().flat_map(|slot| DIRECTIONS.map(|direction| (slot, direction))) {
            let pod = cluster.endpoints.get(&side.0).and_then(|e| cluster.pods.get(e.pod.as_ref()?));
            let pod = pod.filter(|pod| cluster.namespaces.contains_key(&pod.key.namespace));
            let policies: Vec<_> =
                pod.into_iter().flat_map(|pod| cluster.policies_of(pod, side.1)).cloned().collect();
            match (pod, instead.get(&side)) {
                (Some(_), Some(Instead::Older)) => {}
                (Some(pod), None | Some(Instead::Part)) if !policies.is_empty() => {
                    self.0.insert(side, Held { policies, ports: pod.ports.clone() });
                }
                _ => drop(self.0.remove(&side)),
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(1500))]

    /// Rules that do not fit leave the older ones in force, or close what was open; the world's growth
    /// takes nothing away but from what has grown; every other direction is exact; sizes are kept.
    #[test]
    fn overflow_keeps_what_is_in_force_and_never_opens(
        first in beginning(),
        steps in prop::collection::vec(prop::collection::vec(change(), 1..4), 0..6),
        (limits, parts) in tight(),
        settles in any::<bool>(),
    ) {
        let (mut cluster, mut compiler) = (Cluster::default(), Compiler::new(limits));
        let (mut tables, probes, mut ids) = (Tables::default(), Probes::new(), Ids::default());
        let mut ledger = Ledger::default();
        for changes in std::iter::once(first).chain(steps) {
            for change in &changes {
                tell(change, &mut cluster, &mut compiler);
                if let Change::Endpoint(slot, _) | Change::NoEndpoint(slot) = change {
                    ledger.0.retain(|side, _| side.0 != *slot);
                }
            }
            let delta = compiler.commit();
            tables.apply(&delta);
            ids.apply(&delta);
            if settles {
                compiler.settled(delta.serial);
                ids.settled(delta.serial);
            }
            check_sizes(&compiler, &ids, limits)?;
            let instead = check_verdicts(&cluster, &compiler, &tables, &probes, &ledger, parts)?;
            ledger.note(&cluster, &instead);
        }
        // Once the rules are gone everything fits again, whatever happened before.
        for key in cluster.policies.keys().cloned().collect::<Vec<_>>() {
            tell(&Change::NoPolicy(key), &mut cluster, &mut compiler);
        }
        let delta = compiler.commit();
        tables.apply(&delta);
        ids.apply(&delta);
        prop_assert!(compiler.problems().is_empty());
        for (slot, direction, peer, target) in probes.all() {
            let oracle = cluster.verdict(slot, direction, peer, target).passes();
            prop_assert_eq!(tables.allows(slot, direction, peer, target), oracle);
        }
        prop_assert!(ids.rows.is_empty() && ids.peers.is_empty() && ids.cidrs.is_empty());
        // What is tried again when ids have settled comes to an end.
        for _ in 0..3 {
            compiler.settled(u64::MAX);
            compiler.commit();
        }
        compiler.settled(u64::MAX);
        prop_assert!(!compiler.is_dirty());
    }
}

fn check_verdicts(
    cluster: &Cluster,
    compiler: &Compiler,
    tables: &Tables,
    probes: &Probes,
    ledger: &Ledger,
    parts: bool,
) -> Result<BTreeMap<(Slot, Direction), Instead>, TestCaseError> {
    let problems = compiler.problems();
    let mut instead = BTreeMap::new();
    let mut older = BTreeMap::new();
    for problem in &problems {
        let side = (problem.slot, problem.direction);
        prop_assert!(!problem.policies.is_empty());
        prop_assert_eq!(cluster.endpoints[&problem.slot].pod.as_ref(), Some(&problem.pod));
        instead.insert(side, problem.instead);
        match problem.instead {
            Instead::Older => {
                prop_assert!(ledger.0.contains_key(&side), "older rules of nobody: {:?}", problem);
                older.insert(side, ledger.cluster_of(side, cluster));
            }
            Instead::Closed => prop_assert!(!ledger.0.contains_key(&side), "rules lost: {:?}", problem),
            Instead::Part => prop_assert!(parts, "in part for want of {}", problem.resource),
        }
    }
    for (slot, direction, peer, target) in probes.all() {
        let side = (slot, direction);
        let rules = older.get(&side).unwrap_or(cluster);
        let oracle = rules.verdict(slot, direction, peer, target);
        let got = tables.allows(slot, direction, peer, target);
        let (least, most) = match instead.get(&side) {
            None => (oracle.passes(), oracle.passes()),
            Some(Instead::Closed) => (false, false),
            Some(Instead::Older) if !parts => (oracle.passes(), oracle.passes()),
            Some(Instead::Older | Instead::Part) => (false, oracle.passes()),
        };
        prop_assert!(
            (least..=most).contains(&got),
            "slot {} {:?} {} {:?}: {:?}, got {}, {:?}",
            slot,
            direction,
            peer,
            target,
            oracle,
            got,
            instead.get(&side)
        );
    }
    Ok(instead)
}

fn check_sizes(compiler: &Compiler, ids: &Ids, limits: Limits) -> Result<(), TestCaseError> {
    for v6 in [false, true] {
        prop_assert!(ids.peers.keys().filter(|a| a.is_ipv6() == v6).count() <= limits.peers as usize);
        prop_assert!(ids.cidrs.keys().filter(|p| p.is_ipv6() == v6).count() <= limits.cidrs as usize);
    }
    prop_assert!(ids.rows.len() <= limits.rows as usize);
    prop_assert!(ids.rows.values().all(|&set| set < limits.set_ids()));
    let stats = compiler.stats();
    prop_assert!(stats.sets <= limits.sets as usize);
    prop_assert!(stats.signatures <= limits.signatures as usize);
    prop_assert!(stats.classes <= usize::from(limits.classes));
    let in_use: BTreeSet<_> = ids.rows.keys().collect();
    prop_assert_eq!(in_use.len(), stats.rows);
    Ok(())
}
