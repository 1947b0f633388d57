//! Which node has which pod CIDRs, where several claim the same addresses.
//!
//! A claim holds unless one before it that holds has addresses in common with it: the first node by name comes first,
//! and of one node's claims the first in its list. Whether a claim holds depends on claims before it alone, so a change is
//! followed in that order, from claim to claim that overlaps, and nobody else is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_api::status::Problem;
use fairlead_policy::claims::Claims;
use fairlead_policy::model::without_host_bits;
use ipnetwork::IpNetwork;

/// Name of the node, and the place in its `spec.podCIDRs`.
type Claim = (Arc<str>, usize);

/// All nodes' claims.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodCidrs {
    /// Without host bits. What lies within a CIDR follows it.
    claims: Claims<IpNetwork, Claim>,
    /// Those that do not hold.
    lost: BTreeSet<Claim>,
}

impl PodCidrs {
    /// A node claims other CIDRs than before. Returns which others' claims hold now that did not, or no longer do.
    pub(crate) fn exchange(
        &mut self,
        name: &Arc<str>,
        before: &[IpNetwork],
        after: &[IpNetwork],
    ) -> BTreeSet<Arc<str>> {
        let mut open = BTreeMap::new();
        for (place, cidr) in before.iter().enumerate().filter(|(i, cidr)| after.get(*i) != Some(cidr)) {
            let (claim, cidr) = ((name.clone(), place), without_host_bits(*cidr));
            if !self.lost.remove(&claim) {
                open.extend(self.behind(&claim, cidr));
            }
            self.claims.release(&cidr, &claim);
            // One that came before it may have asked about it, when it was still claimed.
            open.remove(&claim);
        }
        for (place, cidr) in after.iter().enumerate().filter(|(i, cidr)| before.get(*i) != Some(cidr)) {
            let (claim, cidr) = ((name.clone(), place), without_host_bits(*cidr));
            self.claims.claim(cidr, claim.clone());
            self.lost.insert(claim.clone());
            open.insert(claim, cidr);
        }
        let mut changed = BTreeSet::new();
        while let Some((claim, cidr)) = open.pop_first() {
            let (held, holds) = (!self.lost.contains(&claim), self.winner(&claim, cidr).is_none());
            if holds == held {
                continue;
            }
            if holds {
                self.lost.remove(&claim)
            } else {
                self.lost.insert(claim.clone())
            };
            open.extend(self.behind(&claim, cidr));
            if claim.0 != *name {
                changed.insert(claim.0);
            }
        }
        changed
    }

    /// Those of a node's CIDRs that hold, in its order; `None` where all do.
    pub(crate) fn held(&self, name: &Arc<str>, cidrs: &[IpNetwork]) -> Option<Vec<IpNetwork>> {
        self.lost.range((name.clone(), 0)..=(name.clone(), usize::MAX)).next()?;
        let held = cidrs.iter().enumerate().filter(|(i, _)| !self.lost.contains(&(name.clone(), *i)));
        Some(held.map(|(_, cidr)| *cidr).collect())
    }

    /// Which claims do not hold, and why; `written` says what a node's `spec.podCIDRs` are.
    pub(crate) fn problems<'a>(
        &'a self,
        written: impl Fn(&str) -> &'a [IpNetwork],
    ) -> impl Iterator<Item = Problem> {
        self.lost.iter().filter_map(move |claim| {
            let (name, place) = claim;
            let cidr = written(name).get(*place)?;
            let (owner, their_place) = self.winner(claim, without_host_bits(*cidr))?;
            let theirs = written(owner).get(*their_place)?;
            Some(Problem {
                object: Some(format!("Node {name}")),
                field: Some(format!("spec.podCIDRs[{place}]")),
                message: format!(
                    "{cidr} overlaps {theirs} of Node {owner}, which keeps it; no route and no pod of Node \
                     {name} uses it"
                ),
                ..Problem::default()
            })
        })
    }

    /// The claim that holds, comes before this one, and overlaps it; of several the one with the greatest address.
    fn winner(&self, claim: &Claim, cidr: IpNetwork) -> Option<&Claim> {
        let holding = |all: IpNetwork| self.claims.all(&all).find(|c| *c < claim && !self.lost.contains(*c));
        around(cidr).find_map(holding).or_else(|| self.within(cidr).rev().find_map(holding))
    }

    /// Claims that come after this one and overlap it.
    fn behind(&self, claim: &Claim, cidr: IpNetwork) -> Vec<(Claim, IpNetwork)> {
        let overlapping = around(cidr).chain(self.within(cidr));
        let all = overlapping.flat_map(|cidr| self.claims.all(&cidr).map(move |c| (c, cidr)));
        all.filter(|(c, _)| *c > claim).map(|(c, cidr)| (c.clone(), cidr)).collect()
    }

    /// What is claimed of a network: all or a part of it, by address.
    fn within(&self, cidr: IpNetwork) -> impl DoubleEndedIterator<Item = IpNetwork> {
        self.claims.range(cidr..=IpNetwork::from(cidr.broadcast())).map(|(cidr, _)| *cidr)
    }
}

/// The networks that hold this one and more.
fn around(cidr: IpNetwork) -> impl Iterator<Item = IpNetwork> {
    (0..cidr.prefix())
        .filter_map(move |length| Some(without_host_bits(IpNetwork::new(cidr.network(), length).ok()?)))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use std::net::IpAddr;

    /// What holds of all nodes' claims, worked out from nothing: node by node in their order.
    fn from_scratch(
        nodes: &BTreeMap<Arc<str>, Vec<IpNetwork>>,
    ) -> (BTreeMap<Arc<str>, Vec<IpNetwork>>, Vec<Problem>) {
        let mut taken: Vec<(IpNetwork, Arc<str>)> = Vec::new();
        let (mut kept, mut problems) = (BTreeMap::new(), Vec::new());
        for (name, cidrs) in nodes {
            let holding: &mut Vec<IpNetwork> = kept.entry(name.clone()).or_default();
            for (i, cidr) in cidrs.iter().enumerate() {
                let overlaps =
                    |other: &IpNetwork| other.contains(cidr.network()) || cidr.contains(other.network());
                let winner = taken
                    .iter()
                    .filter(|(other, _)| overlaps(other))
                    .max_by_key(|(other, _)| other.network());
                let Some((theirs, owner)) = winner else {
                    taken.push((*cidr, name.clone()));
                    holding.push(*cidr);
                    continue;
                };
                problems.push(Problem {
                    object: Some(format!("Node {name}")),
                    field: Some(format!("spec.podCIDRs[{i}]")),
                    message: format!(
                        "{cidr} overlaps {theirs} of Node {owner}, which keeps it; no route and no pod of Node \
                         {name} uses it"
                    ),
                    ..Problem::default()
                });
            }
        }
        (kept, problems)
    }

    #[test]
    fn a_claim_that_is_given_up_leaves_nothing() {
        let parsed = |all: &[&str]| all.iter().map(|c| c.parse().unwrap()).collect::<Vec<IpNetwork>>();
        let (twice, narrower) = (parsed(&["10.0.0.0/26", "10.0.0.0/26"]), parsed(&["10.0.0.0/27"]));
        let (mut all, name) = (PodCidrs::default(), Arc::from("a"));
        for (before, after) in [(vec![], &twice), (twice.clone(), &narrower), (narrower.clone(), &vec![])] {
            all.exchange(&name, &before, after);
            // Of its own two the first holds.
            assert_eq!(all.lost.len(), after.len().saturating_sub(1));
        }
        assert!(all.claims.is_empty());
    }

    /// Few addresses and all lengths, so that most overlap others; host bits are written at times.
    fn cidr() -> impl Strategy<Value = IpNetwork> {
        let v4 = (0_u32..16, 26_u8..=32)
            .prop_map(|(host, length)| (IpAddr::from((0x0a00_0000 | host << 2).to_be_bytes()), length));
        let v6 = (0_u128..4, 124_u8..=128)
            .prop_map(|(host, length)| (IpAddr::from((0xfd << 120 | host << 1).to_be_bytes()), length));
        let everything = prop_oneof![
            Just(("0.0.0.0".parse().unwrap(), 0)),
            Just(("10.0.0.0".parse().unwrap(), 8)),
            Just(("::".parse().unwrap(), 0)),
        ];
        prop_oneof![12 => v4, 6 => v6, 1 => everything]
            .prop_map(|(address, length)| IpNetwork::new(address, length).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_holds_is_what_would_hold_if_all_were_looked_at_anew(
            changes in vec((0..6_u8, prop_oneof![4 => vec(cidr(), 1..4), 1 => Just(Vec::new())]), 1..24),
        ) {
            let mut all = PodCidrs::default();
            let mut nodes: BTreeMap<Arc<str>, Vec<IpNetwork>> = BTreeMap::new();
            for (node, cidrs) in changes {
                let name: Arc<str> = format!("n{node}").into();
                let before = from_scratch(&nodes).0;
                let written = nodes.insert(name.clone(), cidrs.clone()).unwrap_or_default();
                let changed = all.exchange(&name, &written, &cidrs);
                let (kept, problems) = from_scratch(&nodes);
                for (name, cidrs) in &kept {
                    prop_assert_eq!(&all.held(name, &nodes[name]).unwrap_or_else(|| nodes[name].clone()), cidrs);
                }
                prop_assert_eq!(all.problems(|name| &nodes[name]).collect::<Vec<_>>(), problems);
                // Everybody else whose CIDRs are others now is named.
                let differs = kept.keys().filter(|other| **other != name && kept.get(*other) != before.get(*other));
                let differs: BTreeSet<Arc<str>> = differs.cloned().collect();
                prop_assert!(changed.is_superset(&differs), "{changed:?} {differs:?}");
                if cidrs.is_empty() {
                    nodes.remove(&name);
                }
            }
            for (name, cidrs) in nodes {
                all.exchange(&name, &cidrs, &[]);
            }
            prop_assert!(all.claims.is_empty() && all.lost.is_empty());
        }
    }
}
