//! What a flow keeps of its far pod's node: the verdicts are those of looking it up for each packet.

use std::hash::Hash;

use fairlead_common::address::Address;
use fairlead_common::maps::{
    ADDRESS_ENDPOINT, ADDRESS_NODE, ADDRESS_OWN, ADDRESS_SERVICE, AddressInfo, EXITS, EndpointPolicy, Exit,
    NODE_NONE, STATE_FAST_PATH, Side, State, TOPOLOGY_FIRST, slot_of,
};
use fairlead_common::packet::parse;
use fairlead_common::verdict::{Arrival, Family, Hook, Verdict, from_fabric, from_pod, in_tunnel, unlocked};

use crate::across::{REMOTES, STRANGER, UPLINK, address, between, words};
use crate::host::{Frame, Host, Random, STATE, compared, count, endpoint, ifindex};

/// Nodes, one of them beyond those that have ways out, and none.
const NODES: [u32; 4] = [5, 6, EXITS + 3, NODE_NONE];

/// How the packet comes in.
#[derive(Clone, Copy, Debug)]
enum Way {
    FromPod,
    Uplink,
    Tunnel(u32),
    Overlay(u32),
}

fn verdict<A: Family + Eq + Hash + 'static>(
    host: &Host<A>,
    state: &State,
    way: Way,
    for_this_host: bool,
    frame: &[u8],
) -> Verdict {
    let packet = Frame(frame);
    let mut p = parse::<A, _>(&packet).unwrap();
    let arrival = match way {
        Way::FromPod => {
            let hook = Hook { ifindex: ifindex(1), mark: 0, made_here: false };
            let endpoint = unlocked(host, ifindex(1)).unwrap();
            return from_pod(host, state, &packet, &hook, endpoint, &mut p);
        }
        Way::Tunnel(node) => return in_tunnel(host, state, &packet, for_this_host, node, &p),
        Way::Uplink => Arrival::Uplink { ifindex: UPLINK },
        Way::Overlay(node) => Arrival::Overlay { node },
    };
    from_fabric(host, state, &packet, for_this_host, arrival, &p)
}

/// Changes who has an address, as an agent would say it to both.
fn move_address<A: Address + Eq + Hash>(random: &mut Random, v6: bool, hosts: &mut [Host<A>; 2]) {
    let moved = words(&address(v6, Some([REMOTES[0], REMOTES[1], STRANGER][random.below(3)])));
    let node = NODES[[0, 0, 0, 1, 2, 3][random.below(6)]];
    let info = match random.below(8) {
        0 => Some(AddressInfo { kind: ADDRESS_SERVICE, slot: 0 }),
        1 => Some(AddressInfo { kind: ADDRESS_OWN, slot: 0 }),
        2 => Some(AddressInfo { kind: ADDRESS_NODE, slot: 0 }),
        3 => Some(AddressInfo { kind: ADDRESS_ENDPOINT, slot: slot_of(ifindex(2)) }),
        _ => None,
    };
    for host in hosts {
        host.remotes.insert(moved, node);
        match info {
            Some(info) => host.addresses.insert(moved, info),
            None => host.addresses.remove(&moved),
        };
    }
}

fn compare<A: Family + Address + Eq + Hash + 'static>(v6: bool, seed: u64, steps: usize) -> [usize; 3] {
    let side = |open| if open { Side::OPEN } else { Side::CLOSED };
    let mut random = Random::new(seed);
    let exit = Exit { ifindex: UPLINK, mtu: 1400, ..Exit::default() };
    let mut hosts = [(); 2].map(|()| {
        let mut host = Host::<A>::new([1, 2].map(|n| endpoint(n, EndpointPolicy::OPEN)));
        let info = AddressInfo { kind: ADDRESS_ENDPOINT, slot: slot_of(ifindex(1)) };
        host.addresses.insert(words(&address(v6, None)), info);
        for remote in REMOTES {
            host.remotes.insert(words(&address(v6, Some(remote))), NODES[0]);
        }
        host.exit = exit;
        host
    });
    // Soon the bits that stand in the slots change, too.
    hosts[0].topology = (seed as u32 % 9 + 1) * TOPOLOGY_FIRST - 20;
    let mut state = State { flags: STATE_FAST_PATH, ..STATE };
    let mut seen = [0; 3];
    for step in 0..steps {
        match random.below(120) {
            0..3 => {
                move_address(&mut random, v6, &mut hosts);
                hosts[0].topology += 1;
            }
            // Seen from both sides of the change, nobody's address has changed.
            3 => hosts[0].topology += 1,
            4 | 5 => {
                let policy = EndpointPolicy {
                    ingress: side(random.below(4) != 0),
                    egress: side(random.below(4) != 0),
                };
                for host in &mut hosts {
                    host.set_policy(ifindex(1), policy);
                }
                state.generation += 1;
            }
            6 => {
                let way = if random.below(2) == 0 { Exit::default() } else { exit };
                for host in &mut hosts {
                    host.exit = way;
                }
            }
            _ => {}
        }
        let remote = Some([REMOTES[0], REMOTES[1], STRANGER][random.below(3)]);
        let node = NODES[[0, 0, 0, 1][random.below(4)]];
        let way =
            [Way::FromPod, Way::FromPod, Way::Uplink, Way::Uplink, Way::Tunnel(node), Way::Overlay(node)]
                [random.below(6)];
        let (source, destination) = if let Way::FromPod = way { (None, remote) } else { (remote, None) };
        let frame = between(&mut random, v6, source, destination);
        let for_this_host = random.below(16) != 0;
        let [kept, looked_up] = &hosts;
        let verdicts = [kept, looked_up].map(|host| verdict(host, &state, way, for_this_host, &frame));
        assert_eq!(verdicts[0], verdicts[1], "seed {seed}, step {step}, {way:?}: {frame:02x?}");
        let [verdict, _] = verdicts;
        count(
            &mut seen,
            [
                matches!(verdict, Verdict::Forward { .. }),
                matches!(verdict, Verdict::Redirect { .. }),
                matches!(verdict, Verdict::Drop(_)),
            ],
        );
    }
    let [kept, looked_up] = hosts.map(|host| host.looked_up.get());
    assert!(kept + 10 < looked_up, "seed {seed}: {kept} of {looked_up}");
    seen
}

#[test]
fn the_node_that_a_flow_keeps_is_the_one_that_would_be_found() {
    // Straight to another node, straight to the pod, dropped.
    let cases = compared([compare::<u32>, compare::<[u32; 4]>], 18, 4000, 20);
    println!("cases: {cases}");
}
