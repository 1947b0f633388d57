//! What people are told is what holds.

use std::net::IpAddr;

use crate::world::{DIRECTIONS, SLOTS, beginning, cases, change, peers, targets, tell};
use fairlead_policy::compiler::{Compiler, Limits};
use fairlead_policy::explain::{DirectionExplanation, Explanation, Party};
use fairlead_policy::model::{ObjectKey, Peer};
use fairlead_policy::oracle::{Cluster, Direction, Target};
use proptest::prelude::*;
use proptest::sample::select;

/// The side of an explanation that asks the rules of `subject`.
fn side(
    cluster: &Cluster,
    subject: &Party,
    direction: Direction,
    peer: &Party,
    target: Target,
) -> DirectionExplanation {
    let Explanation { egress, ingress, .. } = match direction {
        Direction::Ingress => cluster.explain(peer, subject, target),
        Direction::Egress => cluster.explain(subject, peer, target),
    };
    let side = if direction == Direction::Ingress { ingress } else { egress };
    side.unwrap()
}

/// The cluster without what only addresses can match.
fn without_blocks(cluster: &Cluster) -> Cluster {
    let mut cluster = cluster.clone();
    for policy in cluster.policies.values_mut() {
        for rules in [&mut policy.ingress, &mut policy.egress].into_iter().flatten() {
            rules.retain_mut(|rule| {
                let everyone = rule.peers.is_empty();
                rule.peers.retain(|peer| !matches!(peer, Peer::IpBlock { .. }));
                everyone || !rule.peers.is_empty()
            });
        }
    }
    cluster
}

proptest! {
    #![proptest_config(cases(300))]

    /// The compiler, which knows only what it has kept, explains as the objects do; of an endpoint it says
    /// what the oracle says; and of a pod without an address, what would hold if it had one.
    #[test]
    fn explanations_are_what_holds(
        first in beginning(),
        later in prop::collection::vec(change(), 0..6),
        target in select(targets()),
        address in select(peers()),
    ) {
        let (mut cluster, mut compiler) = (Cluster::default(), Compiler::new(Limits::default()));
        for change in first.iter().chain(&later) {
            tell(change, &mut cluster, &mut compiler);
        }
        let keys: Vec<ObjectKey> = cluster.pods.keys().cloned().collect();
        let mut parties: Vec<Party> = keys.iter().cloned().map(Party::Pod).collect();
        parties.push(Party::Ip(address));
        parties.push(Party::Pod(ObjectKey::new("a", "nobody")));
        for from in &parties {
            for to in &parties {
                prop_assert_eq!(compiler.explain(from, to, target), cluster.explain(from, to, target));
            }
        }
        for (slot, direction) in SLOTS.into_iter().flat_map(|s| DIRECTIONS.map(|d| (s, d))) {
            let Some(key) = cluster.endpoints.get(&slot).and_then(|e| e.pod.clone()) else { continue };
            let subject = Party::Pod(key);
            let told = side(&cluster, &subject, direction, &Party::Ip(address), target);
            prop_assert_eq!(told.verdict, cluster.verdict(slot, direction, address, target));
            prop_assert!(told.allowed_by.iter().all(|rule| told.isolated_by.contains(&rule.policy)));
        }
        // An address that no other pod has and that blocks, here taken away, could not tell from others.
        let unused: IpAddr = "198.51.100.1".parse().unwrap();
        let plain = without_blocks(&cluster);
        for (key, pod) in &cluster.pods {
            if !pod.ips.is_empty() || cluster.endpoints.values().any(|e| e.pod.as_ref() == Some(key)) {
                continue;
            }
            let mut later = plain.clone();
            let mut pod = pod.clone();
            pod.ips.push(unused);
            later.pods.insert(key.clone(), pod);
            for subject in keys.iter().cloned().map(Party::Pod) {
                for direction in DIRECTIONS {
                    let now = side(&cluster, &subject, direction, &Party::Pod(key.clone()), target);
                    let then = side(&later, &subject, direction, &Party::Pod(key.clone()), target);
                    prop_assert_eq!(now.peer, None);
                    prop_assert_eq!(now.verdict, then.verdict, "{:?} {:?} {}", subject, direction, key);
                }
            }
        }
    }
}
