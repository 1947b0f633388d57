//! Out of a tunnel at the uplink, or by the overlay device: what arrives is the same.

use std::hash::Hash;

use fairlead_common::address::Address;
use fairlead_common::maps::{
    ADDRESS_ENDPOINT, AddressInfo, EndpointPolicy, Exit, SLOT_SETTLED, STATE_FAST_PATH, Side, State, slot_of,
};
use fairlead_common::packet::parse;
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::{Family, Hook, Verdict, from_overlay, in_tunnel};

use crate::across::{End, REMOTES, STRANGER, UPLINK, address, between, received, sent, words};
use crate::host::{Frame, Host, Random, STATE, compared, count, endpoint, ifindex};

/// The overlay device.
const OVERLAY: u32 = 3;
/// The node of the remote pods, and one that has none.
const NODES: [u32; 2] = [5, 6];

/// The device takes it out, of a tunnel of this node's.
fn by_device<A: Family + Eq + Hash + 'static>(
    host: &Host<A>,
    state: &State,
    frame: &[u8],
    node: u32,
) -> (End, bool) {
    let p = parse::<A, _>(&Frame(frame)).unwrap();
    let hook = Hook { ifindex: OVERLAY, mark: 0, made_here: false };
    match from_overlay(host, &hook, node, &p.source) {
        Verdict::Pass { .. } => received(host, state, frame),
        forged => (End::of(forged), false),
    }
}

/// The program at the uplink does, or leaves it to the device; whether it did.
fn at_uplink<A: Family + Eq + Hash + 'static>(
    host: &Host<A>,
    state: &State,
    frame: &[u8],
    node: u32,
) -> (End, bool) {
    let packet = Frame(frame);
    let p = parse::<A, _>(&packet).unwrap();
    match in_tunnel(host, state, &packet, true, node, &p) {
        Verdict::Pass { slot: SLOT_SETTLED } => (by_device(host, state, frame, node).0, false),
        Verdict::Redirect { slot } => {
            assert_eq!(slot, slot_of(ifindex(1)));
            (End::Arrived, true)
        }
        other => (End::of(other), true),
    }
}

fn compare<A: Family + Address + Eq + Hash + 'static>(v6: bool, seed: u64, steps: usize) -> [usize; 4] {
    let side = |open| if open { Side::OPEN } else { Side::CLOSED };
    let mut random = Random::new(seed);
    let exit = Exit { ifindex: UPLINK, mtu: 1400, ..Exit::default() };
    let mut hosts = [(); 2].map(|()| {
        let mut host = Host::<A>::new([endpoint(1, EndpointPolicy::OPEN)]);
        let info = AddressInfo { kind: ADDRESS_ENDPOINT, slot: slot_of(ifindex(1)) };
        host.addresses.insert(words(&address(v6, None)), info);
        for remote in REMOTES {
            host.remotes.insert(words(&address(v6, Some(remote))), NODES[0]);
        }
        host.exit = exit;
        host
    });
    let mut state = State { flags: STATE_FAST_PATH, ..STATE };
    let mut seen = [0; 4];
    for step in 0..steps {
        let policy =
            EndpointPolicy { ingress: side(random.below(2) == 0), egress: side(random.below(2) == 0) };
        let (judged_anew, other_ways) = (random.below(30) == 0, random.below(50) == 0);
        let way = if random.below(3) == 0 { Exit::default() } else { exit };
        state.generation += u32::from(judged_anew);
        for host in &mut hosts {
            if judged_anew {
                host.set_policy(ifindex(1), policy);
            }
            if other_ways {
                host.exit = way;
            }
        }
        let remote = Some([REMOTES[0], REMOTES[1], STRANGER][random.below(3)]);
        let [early, late] = &hosts;
        if random.below(2) == 0 {
            let frame = between(&mut random, v6, None, remote);
            assert_eq!(sent(early, &state, &frame), sent(late, &state, &frame), "seed {seed}, step {step}");
            continue;
        }
        let frame = between(&mut random, v6, remote, None);
        let node = NODES[usize::from(random.below(8) == 0)];
        let (end, taken_out) = at_uplink(early, &state, &frame, node);
        let (other, _) = by_device(late, &state, &frame, node);
        assert_eq!(end, other, "seed {seed}, step {step}, node {node}: {frame:02x?}");
        let forged = matches!(end, End::Dropped(DropReason::OverlayForged, ..));
        assert!(!(forged && taken_out));
        count(
            &mut seen,
            [
                taken_out && end == End::Arrived,
                taken_out && end != End::Arrived,
                !taken_out && end == End::Arrived,
                forged,
            ],
        );
    }
    seen
}

#[test]
fn out_of_the_tunnel_at_the_uplink_arrives_what_arrives_by_the_device() {
    // Handed over, ended, left to the device, forged.
    let cases = compared([compare::<u32>, compare::<[u32; 4]>], 12, 2000, 3);
    println!("cases: {cases}");
}
