//! Flows that nobody has answered yet, in the places of their endpoint.

use fairlead_common::flow::{FlowTables as _, Opening, locate, record_waiting};
use fairlead_common::judge::protocol::UDP;
use fairlead_common::maps::{FlowKey, PENDING_PLACES, SLOT_NONE};

use crate::host::{Host, Random};

pub(crate) const SLOT: u32 = 5;

pub(crate) fn query(client: u32, port: u16) -> FlowKey<u32> {
    FlowKey::of(&client, &u32::MAX, port, 53_u16.to_be(), UDP).0
}

/// A flow that the endpoint opens now, at this end of the key.
pub(crate) fn opening(host: &Host<u32>, opener: usize) -> Opening {
    Opening {
        owner: SLOT,
        opener,
        source: opener,
        flags: 0,
        tcp_flags: 0,
        generation: 1,
        sender: (SLOT, 1),
        receiver: (SLOT_NONE, 0),
        now: host.now(),
    }
}

fn open(host: &Host<u32>, key: &FlowKey<u32>) {
    assert!(record_waiting(host, key, &opening(host, 0)));
}

fn waits(host: &Host<u32>, key: &FlowKey<u32>) -> bool {
    locate(host, key, [SLOT, SLOT_NONE], host.now()).is_some()
}

/// A flow whose first place is this one, and its second one none of those.
fn with_first(place: u32, not: &[u32]) -> FlowKey<u32> {
    let fits = |key: &FlowKey<u32>| {
        let [first, second] = key.places();
        first == place && !not.contains(&second)
    };
    (2..).flat_map(|client| (0..512).map(move |port| query(client, port))).find(fits).unwrap()
}

#[test]
fn a_flow_whose_place_another_needs_goes_to_its_other_one() {
    let late = query(1, 1);
    let [p, q] = late.places();
    assert_ne!(p, q);
    let early = with_first(p, &[p, q]);
    let [_, early_too] = early.places();
    let later = with_first(q, &[p, q, early_too]);
    let [_, later_too] = later.places();
    let flows = [early, later, late];
    // Only one of the two that are in the way has somewhere to go, or both.
    for taken in [None, Some(early_too), Some(later_too)] {
        let host = Host::new([]);
        let other = taken.map(|place| with_first(place, &[p, q, early_too, later_too]));
        for key in other.iter().chain(&flows) {
            open(&host, key);
        }
        assert!(other.iter().chain(&flows).all(|key| waits(&host, key)), "{taken:?}");
    }
    // None has: the one that has been silent for longest is forgotten.
    for order in [[early, later], [later, early]] {
        let host = Host::new([]);
        let others = [early_too, later_too].map(|place| with_first(place, &[p, q, early_too, later_too]));
        others.iter().for_each(|key| open(&host, key));
        for key in order.iter().chain([&late]) {
            host.now.set(host.now.get() + 1);
            open(&host, key);
        }
        assert_eq!([&order[0], &order[1], &late].map(|key| waits(&host, key)), [false, true, true]);
        assert!(others.iter().all(|key| waits(&host, key)));
    }
}

#[test]
fn every_flow_has_two_places() {
    let mut random = Random::new(2);
    for _ in 0..100_000 {
        let key = query(random.next() as u32, random.next() as u16);
        let [first, second] = key.places();
        assert!(first != second && first.max(second) < PENDING_PLACES, "{key:?}: {first} {second}");
    }
}

#[test]
fn what_one_pod_asks_at_once_waits_side_by_side() {
    let mut random = Random::new(1);
    let mut lost = 0;
    for _ in 0..2000 {
        let host = Host::new([]);
        let flows: Vec<_> = (0..64).map(|_| query(random.next() as u32, random.next() as u16)).collect();
        flows.iter().for_each(|key| open(&host, key));
        lost += flows.iter().filter(|key| !waits(&host, key)).count();
    }
    // Without making way, 155 were.
    assert!(lost <= 2, "{lost} flows were lost");
}
