//! Ids and elements as a datapath would have them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_common::maps::EndpointPolicy;
use fairlead_policy::tables::Delta;
use ipnetwork::IpNetwork;

/// Ids in use in force, followed from delta to delta.
#[derive(Default)]
pub(crate) struct Ids {
    pub(crate) rows: BTreeMap<(u32, u32), u32>,
    pub(crate) peers: BTreeMap<IpAddr, u32>,
    pub(crate) cidrs: BTreeMap<IpNetwork, u32>,
    endpoints: BTreeMap<u16, EndpointPolicy>,
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

    pub(crate) fn apply(&mut self, delta: &Delta) {
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

    pub(crate) fn settled(&mut self, serial: u64) {
        self.resting.retain(|_, at| *at > serial);
    }
}
