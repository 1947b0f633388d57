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
