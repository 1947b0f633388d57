//! Counters: what passed, what was dropped and why.

use std::collections::BTreeMap;

use fairlead_common::maps::{DIRECTION_EGRESS, DIRECTION_INGRESS, DropKey, Passed, slot_of};
use fairlead_common::reason::DropReason;

use crate::{Datapath, Error};

/// Counters of one direction of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets passed; 0 for interfaces that are no endpoint's.
    pub packets: u64,
    /// Bytes passed.
    pub bytes: u64,
    /// Packets dropped.
    pub drops: BTreeMap<DropReason, u64>,
}

/// Counters of one interface, from the pod's point of view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// What reaches the pod.
    pub ingress: Counter,
    /// What leaves the pod.
    pub egress: Counter,
}

impl Datapath {
    /// Counters of all endpoints, and of every other interface where something was dropped, by
    /// interface index.
    pub fn counters(&self) -> Result<BTreeMap<u32, Counters>, Error> {
        let mut all: BTreeMap<u32, Counters> = BTreeMap::new();
        for entry in self.endpoints() {
            let counters = all.entry(entry.ifindex).or_default();
            for (direction, counter) in
                [(DIRECTION_INGRESS, &mut counters.ingress), (DIRECTION_EGRESS, &mut counters.egress)]
            {
                let index = u32::from(entry.slot) * 2 + u32::from(direction);
                for passed in
                    self.passed.get_per_cpu(&index, Passed::default(), self.cpus)?.unwrap_or_default()
                {
                    counter.packets += passed.packets;
                    counter.bytes += passed.bytes;
                }
            }
        }
        for key in self.drops.keys(DropKey { ifindex: 0, direction: 0, reason: 0 })? {
            let Some(reason) = DropReason::from_code(key.reason) else {
                continue;
            };
            let counts = self.drops.get_per_cpu(&key, 0, self.cpus)?.unwrap_or_default();
            let counters = all.entry(key.ifindex).or_default();
            let counter =
                if key.direction == DIRECTION_INGRESS { &mut counters.ingress } else { &mut counters.egress };
            counter.drops.insert(reason, counts.iter().sum());
        }
        Ok(all)
    }

    /// Starts the counters of an interface that is new at 0.
    pub fn clear_counters(&mut self, ifindex: u32) -> Result<(), Error> {
        for direction in [DIRECTION_INGRESS, DIRECTION_EGRESS] {
            let index = slot_of(ifindex) * 2 + u32::from(direction);
            self.passed.set_per_cpu(&index, &vec![Passed::default(); self.cpus])?;
        }
        Ok(())
    }

    /// Removes the drop counters of interfaces that are gone.
    pub fn forget_counters(&mut self, gone: impl Fn(u32) -> bool) -> Result<(), Error> {
        for key in self.drops.keys(DropKey { ifindex: 0, direction: 0, reason: 0 })? {
            if gone(key.ifindex) {
                self.drops.remove(&key)?;
            }
        }
        Ok(())
    }
}
