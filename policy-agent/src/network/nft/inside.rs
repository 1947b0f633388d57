//! What is not outside. Pure.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_policy::model::without_host_bits;
use ipnetwork::IpNetwork;

/// Networks of which some may lie within others, and those of them that lie within no other: two networks share
/// addresses only where one holds the other, so these are intervals without overlap. A change looks at networks around and
/// within those that change, and at no others.
#[derive(Debug, Default)]
pub(in crate::network) struct Inside {
    /// How many say so, without host bits. What lies within a network follows it.
    all: BTreeMap<IpNetwork, usize>,
    maximal: BTreeSet<IpNetwork>,
    /// Those that may have come since [`Self::settled`], or gone, and whether they were there then.
    before: BTreeMap<IpNetwork, bool>,
}

impl Inside {
    /// Somebody has these networks.
    pub(in crate::network) fn add(&mut self, networks: impl IntoIterator<Item = IpNetwork>) {
        for network in networks.into_iter().map(without_host_bits) {
            let count = self.all.entry(network).or_default();
            *count += 1;
            let around = self.maximal.range(..=network).next_back();
            if *count > 1 || around.is_some_and(|n| n.contains(network.network())) {
                continue;
            }
            let within: Vec<IpNetwork> = self.maximal.range(of(&network)).copied().collect();
            for network in within {
                self.leave(network);
            }
            self.before.entry(network).or_insert(false);
            self.maximal.insert(network);
        }
    }

    /// They have them no longer.
    pub(in crate::network) fn remove(&mut self, networks: impl IntoIterator<Item = IpNetwork>) {
        for network in networks.into_iter().map(without_host_bits) {
            let Some(count) = self.all.get_mut(&network) else { continue };
            *count -= 1;
            if *count > 0 {
                continue;
            }
            self.all.remove(&network);
            if !self.maximal.contains(&network) {
                continue;
            }
            self.leave(network);
            let mut last: Option<IpNetwork> = None;
            for next in self.all.range(of(&network)).map(|(next, _)| *next) {
                if !last.is_some_and(|last| last.contains(next.network())) {
                    self.before.entry(next).or_insert(false);
                    self.maximal.insert(next);
                    last = Some(next);
                }
            }
        }
    }

    fn leave(&mut self, network: IpNetwork) {
        self.before.entry(network).or_insert(true);
        self.maximal.remove(&network);
    }

    /// Those that lie within no other.
    pub(super) fn networks(&self) -> &BTreeSet<IpNetwork> {
        &self.maximal
    }

    /// Those of [`Self::networks`] that were not there at [`Self::settled`], or, not `there`, were and are not now.
    pub(super) fn changes(&self, there: bool) -> BTreeSet<IpNetwork> {
        let changed = self.before.iter().filter(|(network, before)| {
            let now = self.maximal.contains(network);
            now == there && **before != now
        });
        changed.map(|(network, _)| *network).collect()
    }

    /// The kernel has all of it.
    pub(super) fn settled(&mut self) {
        self.before.clear();
    }
}

/// What lies within a network, itself included.
fn of(network: &IpNetwork) -> std::ops::RangeInclusive<IpNetwork> {
    let last = network.broadcast();
    *network..=IpNetwork::from(last)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Worked out from all of them.
    fn from_scratch(all: &[IpNetwork]) -> BTreeSet<IpNetwork> {
        let all: BTreeSet<IpNetwork> = all.iter().copied().map(without_host_bits).collect();
        let held =
            |n: &IpNetwork| all.iter().any(|o| o != n && o.prefix() < n.prefix() && o.contains(n.network()));
        all.iter().copied().filter(|n| !held(n)).collect()
    }

    #[test]
    fn only_the_greatest_networks_stay() {
        let all =
            ["10.0.0.0/8", "10.1.0.0/16", "10.255.255.255/32", "11.0.0.1/24", "fd00::/8", "fd00::1/128"];
        let mut inside = Inside::default();
        inside.add(all.iter().map(|n| n.parse().unwrap()));
        let kept: Vec<String> = inside.networks().iter().map(ToString::to_string).collect();
        assert_eq!(kept, ["10.0.0.0/8", "11.0.0.0/24", "fd00::/8"]);
    }

    fn network() -> impl Strategy<Value = IpNetwork> {
        // Few addresses and all lengths, the ends of the address space among them.
        let v4 = (0_u32..8, 28_u8..=32)
            .prop_map(|(host, length)| (IpAddr::from((!7_u32 | host).to_be_bytes()), length));
        let v6 =
            (0_u128..8, 125_u8..=128).prop_map(|(host, length)| (IpAddr::from(host.to_be_bytes()), length));
        let all = prop_oneof![Just((IpAddr::from([0; 4]), 0)), Just((IpAddr::from([0; 16]), 0))];
        prop_oneof![8 => v4, 4 => v6, 1 => all]
            .prop_map(|(address, length)| IpNetwork::new(address, length).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_changes_is_what_differs_from_all_worked_out_anew(
            steps in vec((vec(network(), 0..4), any::<prop::sample::Index>(), any::<bool>()), 1..24),
        ) {
            let mut inside = Inside::default();
            let mut owned: Vec<Vec<IpNetwork>> = Vec::new();
            let mut told = BTreeSet::new();
            for (networks, which, settled) in steps {
                // One owner in two leaves for one that comes.
                if networks.len() % 2 == 1 && !owned.is_empty() {
                    let place = which.index(owned.len());
                    inside.remove(owned.swap_remove(place));
                }
                inside.add(networks.iter().copied());
                owned.push(networks);
                let wanted = from_scratch(&owned.concat());
                prop_assert_eq!(inside.networks(), &wanted);
                prop_assert_eq!(inside.changes(true), &wanted - &told);
                prop_assert_eq!(inside.changes(false), &told - &wanted);
                if settled {
                    inside.settled();
                    told = wanted;
                }
            }
            for networks in owned {
                inside.remove(networks);
            }
            prop_assert!(inside.all.is_empty() && inside.maximal.is_empty());
        }
    }
}
