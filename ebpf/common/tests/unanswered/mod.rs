//! Flows that nobody has answered yet and that lie among the answered ones all the same: how many, and that no verdict
//! depends on where a flow lies.

use std::hash::Hash;

use fairlead_common::address::Address;
use fairlead_common::flow::{FlowTables as _, Opening, find, lifetime, promote, record};
use fairlead_common::maps::{
    ADDRESS_ENDPOINT, ADDRESS_OWN, AddressInfo, EndpointPolicy, Exit, FLOW_ANSWERED, FLOW_COUNTED, FlowKey,
    SLOT_NONE, SLOT_SETTLED, STATE_FAST_PATH, Side, State, UNANSWERED_AT_ONCE, slot_of,
};
use fairlead_common::packet::{Kind, parse};
use fairlead_common::verdict::{
    Arrival, Family, Hook, Verdict, error_from_fabric, error_from_pod, error_to_pod, from_fabric, from_pod,
    to_pod, to_uplink, unlocked,
};

use crate::across::{REMOTES, UPLINK, address, between, words};
use crate::host::{Frame, Host, Random, STATE, compared, count, endpoint, ifindex};
use crate::waiting::{SLOT, opening, query};

/// A pod far away, two of this node, and this node.
const PLACES: [Option<u8>; 4] = [Some(REMOTES[0]), None, Some(2), Some(9)];

fn key(port: u16) -> FlowKey<u32> {
    query(1, port)
}

fn open(host: &Host<u32>, ports: std::ops::Range<u16>) {
    for port in ports {
        assert!(record(host, &key(port), &opening(host, 0)));
    }
}

fn answer(host: &Host<u32>, port: u16) {
    let known = find(host, &key(port), [SLOT, SLOT_NONE], host.now()).unwrap();
    known.flow.note(host.now(), 0, true);
    assert!(promote(host, &key(port), &known));
}

#[test]
fn as_many_as_may_lie_among_the_answered_ones() {
    let most = UNANSWERED_AT_ONCE as u16;
    let host = Host::new([]);
    open(&host, 0..most + 10);
    assert_eq!(host.flow_counts(), [64, 10]);
    // What was answered is no longer one of them, and is counted down but once.
    for port in [0, 0, 1] {
        answer(&host, port);
    }
    open(&host, 200..210);
    assert_eq!(host.flow_counts(), [66, 18]);
    // Nor one that was answered out of its place.
    answer(&host, most);
    assert_eq!(host.flow_counts(), [67, 17]);
    open(&host, 300..301);
    assert_eq!(host.flow_counts(), [67, 18]);
    // Once all of them have died, there may be as many again.
    host.now.set(host.now() + lifetime::UNANSWERED);
    open(&host, 400..401);
    assert_eq!(host.flow_counts(), [67, 19]);
    host.now.set(host.now() + 1);
    open(&host, 500..600);
    assert_eq!(host.flow_counts()[0], 131);
    // One that was counted before is answered late: never less than none.
    host.unanswered.count.set(0);
    answer(&host, 500);
    assert_eq!(host.unanswered.count.get(), 0);
}

#[test]
fn an_older_flow_of_the_same_key_becomes_the_new_one() {
    for counted in [false, true] {
        let host = Host::new([]);
        open(&host, 0..1);
        if !counted {
            answer(&host, 0);
        }
        host.now.set(host.now() + 3);
        let opening = Opening { tcp_flags: 1, generation: 2, sender: (SLOT + 1, 8), ..opening(&host, 1) };
        assert!(record(&host, &key(0), &opening));
        assert_eq!(host.flow_counts(), [1, 0]);
        let flow = host.flow(&key(0)).unwrap();
        assert_eq!((flow.opener(), flow.slot(0), flow.slot(1)), (1, SLOT_NONE, SLOT + 1));
        assert_eq!((flow.endpoint[0].get(), flow.endpoint[1].get()), (0, 8));
        assert_eq!((flow.judged[0].get(), flow.judged[1].get(), flow.seen.get()), (2, 2, host.now()));
        assert_eq!((flow.has(FLOW_ANSWERED), flow.has(FLOW_COUNTED)), (false, counted));
        assert_eq!(host.unanswered.count.get(), u32::from(counted));
    }
}

/// What a packet meets on its whole way through the node.
fn verdicts<A: Family + Eq + Hash + 'static>(
    host: &Host<A>,
    state: &State,
    sender: Option<u8>,
    frame: &[u8],
) -> Vec<Verdict> {
    let packet = Frame(frame);
    let mut p = parse::<A, _>(&packet).unwrap();
    let first = match sender {
        Some(n) => {
            let hook = Hook { ifindex: ifindex(n), mark: 0, made_here: false };
            let endpoint = unlocked(host, ifindex(n)).unwrap();
            if p.kind == Kind::IcmpError {
                error_from_pod(host, state, &packet, endpoint, &p)
            } else {
                from_pod(host, state, &packet, &hook, endpoint, &mut p)
            }
        }
        None if p.kind == Kind::IcmpError => error_from_fabric(host, state, &packet, true, &p),
        None => from_fabric(host, state, &packet, true, Arrival::Uplink { ifindex: UPLINK }, &p),
    };
    let mut all = vec![first];
    if let Verdict::Pass { slot } = first {
        let mut p = parse::<A, _>(&packet).unwrap();
        all.push(match host.addresses.get(&p.destination.words()) {
            Some(AddressInfo { kind: ADDRESS_ENDPOINT, slot: to }) => {
                let there = ifindex(*to as u8);
                let hook = Hook { ifindex: there, mark: slot, made_here: false };
                let endpoint = unlocked(host, there).unwrap();
                if p.kind == Kind::IcmpError {
                    error_to_pod(host, state, &packet, &hook, endpoint, &p)
                } else {
                    to_pod(host, state, &hook, endpoint, &mut p)
                }
            }
            Some(_) => return all,
            None => {
                let hook = Hook { ifindex: UPLINK, mark: slot, made_here: false };
                to_uplink(host, state, &hook, Ok(()), &mut p)
            }
        });
    }
    all
}

/// The address of one of [`PLACES`]: the second is pod 1, the third pod 2, the fourth this node's.
fn at(v6: bool, place: Option<u8>) -> Vec<u8> {
    let mut bytes = address(v6, None);
    match place {
        None => {}
        Some(n @ (2 | 9)) => *bytes.last_mut().unwrap() = n,
        far => return address(v6, far),
    }
    bytes
}

fn compare<A: Family + Address + Eq + Hash + 'static>(v6: bool, seed: u64, steps: usize) -> [usize; 4] {
    let side = |open| if open { Side::OPEN } else { Side::CLOSED };
    let mut random = Random::new(seed);
    // One whose flows lie among the answered ones, all of them, one with none of them, and one as it is.
    let mut hosts = [(); 3].map(|()| {
        let mut host = Host::<A>::new([1, 2].map(|n| endpoint(n, EndpointPolicy::OPEN)));
        for (place, info) in [
            (PLACES[1], AddressInfo { kind: ADDRESS_ENDPOINT, slot: slot_of(ifindex(1)) }),
            (PLACES[2], AddressInfo { kind: ADDRESS_ENDPOINT, slot: slot_of(ifindex(2)) }),
            (PLACES[3], AddressInfo { kind: ADDRESS_OWN, slot: 0 }),
        ] {
            host.addresses.insert(words(&at(v6, place)), info);
        }
        host.remotes.insert(words(&at(v6, PLACES[0])), 5);
        host.exit = Exit { ifindex: UPLINK, mtu: 1400, ..Exit::default() };
        host
    });
    let mut state = State { flags: STATE_FAST_PATH, ..STATE };
    let mut seen = [0; 4];
    for step in 0..steps {
        let now = hosts[0].now.get() + [0, 0, 0, 0, 0, 1, 12, 60][random.below(8)];
        hosts.iter().for_each(|host| host.now.set(now));
        for (host, count) in hosts.iter().zip([0, UNANSWERED_AT_ONCE]) {
            host.unanswered.count.set(count);
            host.unanswered.since.set(now);
        }
        if random.below(30) == 0 {
            let policy =
                EndpointPolicy { ingress: side(random.below(3) != 0), egress: side(random.below(3) != 0) };
            let n = 1 + random.below(2) as u8;
            hosts.iter_mut().for_each(|host| host.set_policy(ifindex(n), policy));
            state.generation += 1;
            state.flags = if random.below(4) == 0 { 0 } else { STATE_FAST_PATH };
        }
        let from = random.below(3);
        let sender = [None, Some(1), Some(2)][from];
        let to = [1, 2, if from == 0 { 2 } else { 0 }, if from == 0 { 1 } else { 3 }][random.below(4)];
        let frame = packet_between(&mut random, v6, PLACES[from], PLACES[to]);
        let ends = [0, 1, 2].map(|n| verdicts(&hosts[n], &state, sender, &frame));
        assert!(
            ends.iter().all(|end| *end == ends[0]),
            "seed {seed}, step {step}, now {now}, from {from} to {to}: {ends:?} {frame:02x?}"
        );
        let [end, ..] = &ends;
        count(
            &mut seen,
            [
                end.iter().any(|v| matches!(v, Verdict::Drop(_))),
                end.iter().any(|v| matches!(v, Verdict::Redirect { .. } | Verdict::Forward { .. })),
                matches!(end[..], [Verdict::Pass { .. }, Verdict::Pass { slot: SLOT_NONE }]),
                matches!(end[..], [Verdict::Pass { .. }, Verdict::Pass { slot: SLOT_SETTLED }]),
            ],
        );
    }
    let [all, none, some] = hosts.map(|host| host.flow_counts());
    assert!(all[1] == 0 && none[1] > 0 && some[0] > 0, "{all:?}, {none:?}, {some:?}");
    seen
}

/// [`between`] two of [`PLACES`].
fn packet_between(random: &mut Random, v6: bool, source: Option<u8>, destination: Option<u8>) -> Vec<u8> {
    let mut frame = between(random, v6, None, None);
    let (start, length) = if v6 { (22, 16) } else { (26, 4) };
    frame[start..start + length].copy_from_slice(&at(v6, source));
    frame[start + length..start + 2 * length].copy_from_slice(&at(v6, destination));
    frame
}

#[test]
fn where_a_flow_lies_changes_no_verdict() {
    // Dropped, straight, through the stack to a pod and out.
    let cases = compared([compare::<u32>, compare::<[u32; 4]>], 12, 4000, 20);
    println!("cases: {cases}");
}
