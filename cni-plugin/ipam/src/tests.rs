use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use proptest::prelude::*;

use crate::memory::{Killed, Memory};
use crate::*;

fn net(s: &str) -> IpNetwork {
    s.parse().unwrap()
}
fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}
fn pool(s: &str) -> Pool {
    Pool::new(net(s)).unwrap()
}
fn owner(n: u32) -> Owner {
    Owner { container_id: format!("c{n}"), ifname: "eth0".into() }
}
const fn at(seconds: u64) -> Duration {
    Duration::from_secs(1000 + seconds)
}

#[test]
fn network_gateway_and_broadcast_are_never_given_out() {
    let mut store = Memory::default();
    let pools = [pool("10.0.0.0/29")];
    assert_eq!(pools[0].capacity(), 5);
    let given: Vec<String> =
        (0..5).map(|n| allocate(&mut store, &pools, &owner(n), at(0)).unwrap().address.to_string()).collect();
    assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    assert_eq!(
        allocate(&mut store, &pools, &owner(9), at(0)),
        Err(Refused::Exhausted(vec!["10.0.0.0-29".into()]))
    );
    assert!(!available(&mut store, &pools).unwrap());
    let v6 = pool("fd00:1::/64");
    assert_eq!(v6.address(0), ip("fd00:1::2"));
    assert_eq!(v6.position(ip("fd00:1::1")), None);
    assert_eq!(v6.position(ip("10.0.0.2")), None);
}

#[test]
fn ranges_that_hold_nothing_are_refused() {
    for network in ["10.0.0.0/32", "10.0.0.0/31", "10.0.0.0/30", "fd00::/128", "fd00::/127"] {
        let result = Pool::new(net(network));
        // A /30 has one address left beside network, gateway and broadcast.
        assert_eq!(result.is_ok(), network.ends_with("/30"), "{network}");
    }
    let within = |start, end| Pool::within(net("10.0.0.0/24"), Some(ip(start)), Some(ip(end)));
    assert_eq!(within("10.0.0.10", "10.0.0.19").unwrap().capacity(), 10);
    assert!(matches!(within("10.0.1.10", "10.0.0.19"), Err(InvalidPool::Outside { .. })));
    assert!(matches!(within("10.0.0.10", "10.0.0.255"), Err(InvalidPool::Outside { .. })));
    assert!(matches!(within("fd00::1", "10.0.0.19"), Err(InvalidPool::Outside { .. })));
    assert!(matches!(within("10.0.0.20", "10.0.0.19"), Err(InvalidPool::Reversed { .. })));
}

#[test]
fn excluded_addresses_are_stepped_over() {
    let exclude = [net("10.0.0.2/32"), net("10.0.0.4/31"), net("fd00::/16"), net("10.9.0.0/16")];
    let pools = [pool("10.0.0.0/28").excluding(&exclude)];
    assert_eq!(pools[0].capacity(), 10);
    let mut store = Memory::default();
    for expected in ["10.0.0.3", "10.0.0.6", "10.0.0.7"] {
        assert_eq!(allocate(&mut store, &pools, &owner(1), at(0)).unwrap().address, ip(expected));
    }
    assert_eq!(reserve(&mut store, &pools, ip("10.0.0.5"), &owner(2)), Err(Refused::Outside(ip("10.0.0.5"))));
    assert_eq!(pool("10.0.0.0/28").excluding(&[net("10.0.0.0/8")]).next(0), None);
}

#[test]
fn a_released_address_comes_back_last_and_rested() {
    let mut store = Memory::default();
    let pools = [pool("10.0.0.0/29")];
    let first = allocate(&mut store, &pools, &owner(0), at(0)).unwrap().address;
    assert!(release(&mut store, first, &owner(0), at(1)).unwrap());
    assert!(!release(&mut store, first, &owner(0), at(2)).unwrap(), "twice");
    for n in 1..5 {
        assert_ne!(allocate(&mut store, &pools, &owner(n), at(2)).unwrap().address, first);
    }
    assert_eq!(allocate(&mut store, &pools, &owner(5), at(31)).unwrap().address, first);
    assert_eq!(store.states["10.0.0.0-29"].early, 0);
}

#[test]
fn when_nothing_else_is_free_the_longest_rested_is_given_and_counted() {
    let mut store = Memory::default();
    let pools = [pool("10.0.0.0/30"), pool("10.0.1.0/30")];
    let a = allocate(&mut store, &pools, &owner(0), at(0)).unwrap().address;
    let b = allocate(&mut store, &pools, &owner(1), at(0)).unwrap().address;
    assert_eq!((a, b), (ip("10.0.0.2"), ip("10.0.1.2")));
    release(&mut store, b, &owner(1), at(1)).unwrap();
    release(&mut store, a, &owner(0), at(2)).unwrap();
    assert_eq!(allocate(&mut store, &pools, &owner(2), at(3)).unwrap().address, b);
    assert_eq!(allocate(&mut store, &pools, &owner(2), at(3)).unwrap().address, a);
    assert_eq!(store.states["10.0.0.0-30"].early + store.states["10.0.1.0-30"].early, 2);
}

#[test]
fn only_the_owner_releases() {
    let mut store = Memory::default();
    let pools = [pool("10.0.0.0/24")];
    let lease = allocate(&mut store, &pools, &owner(0), at(0)).unwrap();
    assert!(!release(&mut store, lease.address, &owner(1), at(1)).unwrap());
    assert_eq!(store.used.len(), 1);
}

#[test]
fn an_address_asked_for_is_given_whatever_its_place() {
    let mut store = Memory::default();
    let pools = [pool("10.0.0.0/24")];
    let given = |lease: Result<Lease, Refused<Killed>>| lease.unwrap().address.to_string();
    // Ahead of the order, then stepped over by it.
    reserve(&mut store, &pools, ip("10.0.0.3"), &owner(0)).unwrap();
    assert_eq!(
        reserve(&mut store, &pools, ip("10.0.0.3"), &owner(1)),
        Err(Refused::InUse { address: ip("10.0.0.3"), owner: owner(0) })
    );
    assert_eq!(given(allocate(&mut store, &pools, &owner(1), at(0))), "10.0.0.2");
    assert_eq!(given(allocate(&mut store, &pools, &owner(2), at(0))), "10.0.0.4");
    // Released ahead: the order must not give it before it has rested, and must not lose it.
    reserve(&mut store, &pools, ip("10.0.0.5"), &owner(3)).unwrap();
    release(&mut store, ip("10.0.0.5"), &owner(3), at(1)).unwrap();
    assert_eq!(given(allocate(&mut store, &pools, &owner(4), at(2))), "10.0.0.6");
    reserve(&mut store, &pools, ip("10.0.0.7"), &owner(3)).unwrap();
    release(&mut store, ip("10.0.0.7"), &owner(3), at(3)).unwrap();
    assert_eq!(given(allocate(&mut store, &pools, &owner(5), at(40))), "10.0.0.7");
    // Out of the queue, by name.
    reserve(&mut store, &pools, ip("10.0.0.5"), &owner(6)).unwrap();
    store.check();
    assert_eq!(store.used.len(), 6);
}

#[test]
fn a_lost_state_is_rebuilt_from_what_is_there() {
    let mut store = Memory::default();
    let pools = [pool("10.0.0.0/28")];
    let leases: Vec<Lease> =
        (0..6).map(|n| allocate(&mut store, &pools, &owner(n), at(0)).unwrap()).collect();
    for lease in &leases[..3] {
        release(&mut store, lease.address, &lease.owner, at(10)).unwrap();
    }
    store.states.clear();
    let mut given = Vec::new();
    while let Ok(lease) = allocate(&mut store, &pools, &owner(50), at(11)) {
        store.check();
        given.push(lease.address);
    }
    given.extend(leases[3..].iter().map(|l| l.address));
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 13);
}

/// A pool's state, as it is stored.
fn stands(store: &Memory, pool: &Pool) -> (u64, u64, u64) {
    let State { fresh, head, tail, .. } = store.states[pool.name()];
    (fresh, head, tail)
}

/// The last moment of the rest is the first at which an address may be given.
#[test]
fn an_address_has_rested_at_the_end_of_its_rest_and_not_before() {
    let end = at(1) + REST;
    let before = end - Duration::from_nanos(1);
    // In the queue.
    for (now, early) in [(before, 1), (end, 0)] {
        let mut store = Memory::default();
        let pools = [pool("10.0.0.0/30")];
        let lease = allocate(&mut store, &pools, &owner(0), at(0)).unwrap();
        release(&mut store, lease.address, &owner(0), at(1)).unwrap();
        assert_eq!(allocate(&mut store, &pools, &owner(1), now).unwrap().address, lease.address);
        assert_eq!(store.states["10.0.0.0-30"].early, early, "{now:?}");
    }
    // Ahead of the order.
    for (now, given) in [(before, "10.0.0.3"), (end, "10.0.0.2")] {
        let mut store = Memory::default();
        let pools = [pool("10.0.0.0/29")];
        reserve(&mut store, &pools, ip("10.0.0.2"), &owner(0)).unwrap();
        release(&mut store, ip("10.0.0.2"), &owner(0), at(1)).unwrap();
        assert_eq!(allocate(&mut store, &pools, &owner(1), now).unwrap().address, ip(given), "{now:?}");
    }
}

/// Of two that were released at the same moment, the one of the first pool is given.
#[test]
fn pools_are_in_order_among_what_has_rested_equally_long() {
    let mut store = Memory::default();
    let pools = [pool("10.0.0.0/30"), pool("10.0.1.0/30")];
    let leases = [0, 1].map(|n| allocate(&mut store, &pools, &owner(n), at(0)).unwrap());
    for lease in leases.iter().rev() {
        release(&mut store, lease.address, &lease.owner, at(1)).unwrap();
    }
    for lease in leases {
        assert_eq!(allocate(&mut store, &pools, &owner(2), at(2)).unwrap().address, lease.address);
    }
}

/// The order is not come past the address at which it stands: what is released there is ahead, and what is
/// asked for there is not looked for among all that rests.
#[test]
fn the_address_at_which_the_order_stands_is_ahead_of_it() {
    let pools = [pool("10.0.0.0/24")];
    let steps = |address: &str| {
        let mut store = Memory::default();
        for n in 0..3 {
            allocate(&mut store, &pools, &owner(n), at(0)).unwrap();
        }
        let before = store.steps.get();
        reserve(&mut store, &pools, ip(address), &owner(3)).unwrap();
        let steps = store.steps.get() - before;
        release(&mut store, ip(address), &owner(3), at(1)).unwrap();
        assert_eq!(reconcile(&mut store, &pools, |_| true, at(2)), Ok(vec![]));
        assert_eq!((store.ahead.len(), store.queue.len()), (1, 0), "{address}");
        assert_eq!(stands(&store, &pools[0]), (3, 0, 0), "{address}");
        steps
    };
    assert_eq!(steps("10.0.0.5"), steps("10.0.0.6"));
}

#[test]
fn an_address_is_available_until_the_last_one_is_in_use() {
    let mut store = Memory::default();
    let pools = [pool("10.0.0.0/29"), pool("10.0.1.0/30")];
    // All but the last, ahead of the order, which has to be followed past them.
    for n in 2..7 {
        assert_eq!(available(&mut store, &pools), Ok(true));
        reserve(&mut store, &pools, ip(&format!("10.0.0.{n}")), &owner(n)).unwrap();
    }
    assert_eq!(available(&mut store, &pools), Ok(true));
    assert_eq!(available(&mut store, &pools[..1]), Ok(false));
    let last = allocate(&mut store, &pools, &owner(7), at(0)).unwrap().address;
    assert_eq!((last, available(&mut store, &pools)), (ip("10.0.1.2"), Ok(false)));
    // One that rests, before its rest is over.
    release(&mut store, last, &owner(7), at(1)).unwrap();
    assert_eq!(available(&mut store, &pools), Ok(true));
    // Looking has moved nothing.
    assert_eq!(stands(&store, &pools[1]), (1, 0, 1));
}

/// The numbers of the queue follow one another, whichever way an address comes into it or leaves it.
#[test]
fn places_in_the_queue_are_counted() {
    let mut store = Memory::default();
    let pools = [pool("10.0.0.0/29")];
    let address = |n: u32| ip(&format!("10.0.0.{n}"));
    for n in 2..5 {
        allocate(&mut store, &pools, &owner(n), at(0)).unwrap();
    }
    // Out of use, to the tail.
    for n in 2..5 {
        release(&mut store, address(n), &owner(n), at(1)).unwrap();
        assert_eq!(stands(&store, &pools[0]), (3, 0, u64::from(n) - 1));
    }
    // From ahead of the order, to the tail.
    reserve(&mut store, &pools, address(5), &owner(5)).unwrap();
    release(&mut store, address(5), &owner(5), at(2)).unwrap();
    assert_eq!(allocate(&mut store, &pools, &owner(6), at(3)).unwrap().address, address(6));
    assert_eq!(stands(&store, &pools[0]), (5, 0, 4));
    let numbers: Vec<_> = store.queue.iter().map(|((_, number), r)| (*number, r.address)).collect();
    assert_eq!(numbers, [(0, address(2)), (1, address(3)), (2, address(4)), (3, address(5))]);
    // By name out of the middle; the head is passed on over the gap.
    reserve(&mut store, &pools, address(3), &owner(3)).unwrap();
    for (n, head) in [(2, 1), (4, 3), (5, 4)] {
        assert_eq!(allocate(&mut store, &pools, &owner(n), at(40)).unwrap().address, address(n));
        assert_eq!(stands(&store, &pools[0]), (5, head, 4));
    }
    assert_eq!(available(&mut store, &pools), Ok(false));
}

/// Killed between an address's coming to rest and the writing of the state, which lags by one then.
#[test]
fn a_tail_that_lags_is_caught_up_with() {
    let pools = [pool("10.0.0.0/29")];
    // All but 10.0.0.6 are or were in use; 10.0.0.2 rests under number 0, which the state does not know.
    let lagging = || {
        let mut store = Memory::default();
        for n in 2..6 {
            allocate(&mut store, &pools, &owner(n), at(0)).unwrap();
        }
        // Reading the lease and the state, and the step to rest.
        store.fuse.set(Some(3));
        assert_eq!(release(&mut store, ip("10.0.0.2"), &owner(2), at(1)), Err(Killed));
        store.fuse.set(None);
        assert_eq!((store.queue.len(), stands(&store, &pools[0])), (1, (4, 0, 0)));
        store
    };
    // By the next address that is released.
    let mut store = lagging();
    release(&mut store, ip("10.0.0.3"), &owner(3), at(2)).unwrap();
    assert_eq!(stands(&store, &pools[0]), (4, 0, 2));
    // By one that comes from ahead of the order.
    let mut store = lagging();
    reserve(&mut store, &pools, ip("10.0.0.6"), &owner(6)).unwrap();
    release(&mut store, ip("10.0.0.6"), &owner(6), at(2)).unwrap();
    assert_eq!(allocate(&mut store, &pools, &owner(7), at(3)).unwrap().address, ip("10.0.0.2"));
    assert_eq!(stands(&store, &pools[0]), (5, 1, 2));
    // By the one who takes the address; what is released next gets a number that is still to come.
    let mut store = lagging();
    allocate(&mut store, &pools, &owner(6), at(2)).unwrap();
    assert_eq!(available(&mut store, &pools), Ok(true));
    assert_eq!(allocate(&mut store, &pools, &owner(7), at(3)).unwrap().address, ip("10.0.0.2"));
    assert_eq!(stands(&store, &pools[0]), (5, 1, 1));
    release(&mut store, ip("10.0.0.3"), &owner(3), at(4)).unwrap();
    assert_eq!(stands(&store, &pools[0]), (5, 1, 2));
    assert_eq!(allocate(&mut store, &pools, &owner(8), at(5)).unwrap().address, ip("10.0.0.3"));
    assert_eq!(stands(&store, &pools[0]), (5, 2, 2));
    assert_eq!(store.states[pools[0].name()].early, 2);
}

/// Killed twice the tail lags by two, and the address at it is taken by name: the next one is found again.
#[test]
fn an_address_behind_a_gap_at_the_tail_is_found_by_reconcile() {
    let mut store = Memory::default();
    let pools = [pool("10.0.0.0/29")];
    for n in 2..7 {
        allocate(&mut store, &pools, &owner(n), at(0)).unwrap();
    }
    // The second meets a number that is taken: one step more.
    for (n, steps) in [(2, 3), (3, 4)] {
        store.fuse.set(Some(steps));
        assert_eq!(release(&mut store, ip(&format!("10.0.0.{n}")), &owner(n), at(1)), Err(Killed));
    }
    store.fuse.set(None);
    reserve(&mut store, &pools, ip("10.0.0.2"), &owner(2)).unwrap();
    assert_eq!(store.queue.len(), 1);
    assert_eq!(reconcile(&mut store, &pools, |_| true, at(2)), Ok(vec![]));
    assert_eq!(stands(&store, &pools[0]), (5, 0, 2));
    assert_eq!(allocate(&mut store, &pools, &owner(3), at(40)).unwrap().address, ip("10.0.0.3"));
}

/// As many addresses as [`FRESH_FIRST`] are used once, then those that have rested come before the rest.
#[test]
fn addresses_are_used_again_once_enough_of_a_vast_range_were_used() {
    let pools = [pool("fd00:1::/64")];
    let name = pools[0].name().to_owned();
    for (fresh, given, stands_at) in [
        (FRESH_FIRST - 1, pools[0].address(FRESH_FIRST - 1), (FRESH_FIRST, 0, 1)),
        (FRESH_FIRST, pools[0].address(0), (FRESH_FIRST, 1, 1)),
    ] {
        let mut store = Memory::default();
        let lease = allocate(&mut store, &pools, &owner(0), at(0)).unwrap();
        release(&mut store, lease.address, &owner(0), at(1)).unwrap();
        store.states.get_mut(&name).unwrap().fresh = fresh;
        assert_eq!(allocate(&mut store, &pools, &owner(1), at(100)).unwrap().address, given);
        assert_eq!(stands(&store, &pools[0]), stands_at);
    }
    // With nobody rested there is always a fresh one, and the queue stays where it was.
    let mut store = Memory::default();
    store.states.insert(name, State { fresh: FRESH_FIRST, ..State::default() });
    let lease = allocate(&mut store, &pools, &owner(0), at(0)).unwrap();
    assert_eq!(lease.address, pools[0].address(FRESH_FIRST));
    assert_eq!(stands(&store, &pools[0]), (FRESH_FIRST + 1, 0, 0));
}

#[test]
fn an_allocation_takes_as_many_steps_with_60000_in_use_as_with_10() {
    let steps = |in_use: u32| {
        let mut store = Memory::default();
        let pools = [pool("10.0.0.0/16")];
        let n = |store: &mut Memory, o: u32, t: u64| {
            let before = store.steps.get();
            let lease = allocate(store, &pools, &owner(o), at(t)).unwrap();
            (store.steps.get() - before, lease)
        };
        for o in 0..in_use {
            n(&mut store, o, 0);
        }
        let mut most = 0;
        // Through the end of the order and into the queue.
        for o in 0..6000 {
            let (steps, lease) = n(&mut store, in_use + o, 100 + u64::from(o));
            most = most.max(steps);
            release(&mut store, lease.address, &lease.owner, at(100 + u64::from(o))).unwrap();
        }
        most
    };
    assert!(steps(60_000) <= steps(10) + 2, "{} against {}", steps(60_000), steps(10));
    assert!(steps(60_000) <= 8);
}

#[derive(Clone, Debug)]
enum Step {
    Add(u32),
    AddExact(u32, u8),
    Del(u32),
    Wait(u8),
    Reconcile,
    LoseState,
}

fn step() -> impl Strategy<Value = (Step, Option<u32>)> {
    let step = prop_oneof![
        6 => (0u32..12).prop_map(Step::Add),
        2 => (0u32..12, 0u8..16).prop_map(|(o, p)| Step::AddExact(o, p)),
        6 => (0u32..12).prop_map(Step::Del),
        2 => (0u8..40).prop_map(Step::Wait),
        1 => Just(Step::Reconcile),
        1 => Just(Step::LoseState),
    ];
    (step, proptest::option::weighted(0.4, 0u32..8))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Killed between any two steps: no address has two owners, none is lost for longer than the next
    /// reconcile, and none is given before its rest is over while another is free.
    #[test]
    fn kills_leave_neither_duplicates_nor_losses(steps in prop::collection::vec(step(), 1..60)) {
        let pools = [Pool::new(net("10.0.0.0/28")).unwrap()];
        let capacity = pools[0].capacity() as usize;
        let mut store = Memory::default();
        let mut held: BTreeMap<Owner, IpAddr> = BTreeMap::new();
        let mut released: BTreeMap<IpAddr, Duration> = BTreeMap::new();
        let mut now = at(0);
        for (step, fuse) in steps {
            store.fuse.set(fuse);
            match step {
                Step::Add(o) | Step::AddExact(o, _) if held.contains_key(&owner(o)) => {}
                Step::Add(o) => {
                    let early = |s: &Memory| s.states.get(pools[0].name()).map_or(0, |s| s.early);
                    let before = early(&store);
                    if let Ok(lease) = allocate(&mut store, &pools, &owner(o), now) {
                        prop_assert!(!held.values().any(|a| *a == lease.address), "two owners");
                        if early(&store) == before
                            && let Some(since) = released.get(&lease.address)
                        {
                            prop_assert!(now - *since >= REST, "{} had not rested", lease.address);
                        }
                        held.insert(owner(o), lease.address);
                    }
                }
                Step::AddExact(o, p) => {
                    let address = ip(&format!("10.0.0.{p}"));
                    if let Ok(lease) = reserve(&mut store, &pools, address, &owner(o)) {
                        prop_assert!(!held.values().any(|a| *a == lease.address), "two owners");
                        held.insert(owner(o), lease.address);
                    }
                }
                Step::Del(o) => {
                    if let Some(address) = held.get(&owner(o)).copied() {
                        let done = release(&mut store, address, &owner(o), now);
                        // Killed: the runtime will ask again.
                        store.fuse.set(None);
                        if done.is_err() {
                            release(&mut store, address, &owner(o), now).unwrap();
                        }
                        held.remove(&owner(o));
                        released.insert(address, now);
                    }
                }
                Step::Wait(s) => now += Duration::from_secs(u64::from(s)),
                Step::Reconcile => {
                    store.fuse.set(None);
                    for lease in reconcile(&mut store, &pools, |l| held.get(&l.owner) == Some(&l.address), now).unwrap() {
                        released.insert(lease.address, now);
                    }
                }
                Step::LoseState => store.states.clear(),
            }
            store.fuse.set(None);
            store.check();
            for (owner, address) in &held {
                prop_assert_eq!(&store.used[address].owner, owner);
            }
        }
        reconcile(&mut store, &pools, |l| held.get(&l.owner) == Some(&l.address), now).unwrap();
        let mut all: Vec<IpAddr> = held.values().copied().collect();
        for n in 100.. {
            match allocate(&mut store, &pools, &owner(n), now) {
                Ok(lease) => all.push(lease.address),
                Err(refused) => {
                    prop_assert!(matches!(refused, Refused::Exhausted(_)));
                    break;
                }
            }
        }
        all.sort_unstable();
        all.dedup();
        prop_assert_eq!(all.len(), capacity, "an address was lost");
    }
}
