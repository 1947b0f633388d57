//! Straight between nodes, or through the stack: what arrives is the same.

use std::hash::Hash;

use fairlead_common::address::Address;
use fairlead_common::maps::{
    ADDRESS_ENDPOINT, AddressInfo, EndpointPolicy, Exit, SLOT_SETTLED, STATE_FAST_PATH, Side, State, slot_of,
};
use fairlead_common::packet::parse;
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::{
    Arrival, Family, Hook, Tables, Verdict, from_fabric, from_pod, to_pod, to_uplink, unlocked,
};

use crate::host::{Frame, Host, Random, STATE, compared, endpoint, ifindex};

/// The interface towards other nodes.
pub(crate) const UPLINK: u32 = 2;
/// Addresses of another node's pods, and of nobody's that is known.
pub(crate) const REMOTES: [u8; 2] = [1, 2];
pub(crate) const STRANGER: u8 = 9;

/// What became of a packet in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Arrived,
    Dropped(DropReason, u32, u16),
}

impl End {
    pub(crate) fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Drop(d) => Self::Dropped(d.reason, d.ifindex, d.direction),
            _ => Self::Arrived,
        }
    }
}

/// The pod sends a packet; what becomes of it, and whether it went straight.
pub(crate) fn sent<A: Family + Eq + Hash + 'static>(
    host: &Host<A>,
    state: &State,
    frame: &[u8],
) -> (End, bool) {
    let packet = Frame(frame);
    let mut p = parse::<A, _>(&packet).unwrap();
    let hook = Hook { ifindex: ifindex(1), mark: 0, made_here: false };
    let endpoint = unlocked(host, ifindex(1)).unwrap();
    match from_pod(host, state, &packet, &hook, endpoint, &mut p) {
        Verdict::Forward { node } => {
            assert_eq!(node, Tables::<A>::remote(host, &p.destination));
            assert_eq!(host.exit.ifindex, UPLINK);
            (End::Arrived, true)
        }
        Verdict::Pass { slot } => {
            let mut p = parse::<A, _>(&packet).unwrap();
            let hook = Hook { ifindex: UPLINK, mark: slot, made_here: false };
            (End::of(to_uplink(host, state, &hook, Ok(()), &mut p)), false)
        }
        other => (End::of(other), false),
    }
}

/// A packet for the pod reaches the node.
pub(crate) fn received<A: Family + Eq + Hash + 'static>(
    host: &Host<A>,
    state: &State,
    frame: &[u8],
) -> (End, bool) {
    let packet = Frame(frame);
    let mut p = parse::<A, _>(&packet).unwrap();
    // As out of a tunnel, where the sender has been looked up; from the link, it has not: see the module `early`.
    let sender = Tables::<A>::remote(host, &p.source);
    match from_fabric(host, state, &packet, true, Arrival::Overlay { node: sender }, &p) {
        Verdict::Redirect { slot } => {
            assert_eq!(slot, slot_of(ifindex(1)));
            (End::Arrived, true)
        }
        Verdict::Pass { slot: SLOT_SETTLED } => {
            let hook = Hook { ifindex: ifindex(1), mark: SLOT_SETTLED, made_here: false };
            let endpoint = unlocked(host, ifindex(1)).unwrap();
            (End::of(to_pod(host, state, &hook, endpoint, &mut p)), false)
        }
        other => (End::of(other), false),
    }
}

pub(crate) fn address(v6: bool, remote: Option<u8>) -> Vec<u8> {
    match (v6, remote) {
        (false, None) => vec![10, 1, 0, 1],
        (false, Some(n)) => vec![10, 9, 0, n],
        (true, None) => vec![0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        (true, Some(n)) => vec![0xfd, 9, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n],
    }
}

pub(crate) fn words(address: &[u8]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(address.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

/// A packet between the pod and some address beyond the node; few ports, so that flows meet.
fn frame(random: &mut Random, v6: bool, sends: bool) -> Vec<u8> {
    let remote = Some([REMOTES[0], REMOTES[1], STRANGER][random.below(3)]);
    let (source, destination) = if sends { (None, remote) } else { (remote, None) };
    between(random, v6, source, destination)
}

/// A packet from one address to another.
pub(crate) fn between(random: &mut Random, v6: bool, source: Option<u8>, destination: Option<u8>) -> Vec<u8> {
    let port = |random: &mut Random| [0, 80 + (random.below(3) as u8)];
    let icmp = if v6 { 58 } else { 1 };
    let protocol = [6, 6, 17, 132, icmp][random.below(5)];
    let mut body = [port(random), port(random)].concat();
    match protocol {
        6 => {
            // SYN, SYN ACK, ACK, FIN ACK, RST.
            let flags = [2, 2, 18, 16, 16, 17, 4][random.below(7)];
            body.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        }
        17 => body.extend([0, 8, 0, 0]),
        132 => body.extend([0; 8]),
        _ => {
            let kind = if v6 { 128 + (random.byte() & 1) } else { 8 * (random.byte() & 1) };
            body = vec![kind, 0, 0, 0, 0, 80 + (random.below(3) as u8), 0, 1];
        }
    }
    let hop_limit = if random.below(8) == 0 { 1 } else { 64 };
    let mut frame = vec![2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 2, 1];
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, body.len() as u8, protocol, hop_limit]);
    } else {
        frame.extend([8, 0, 0x45, 0, 0, 20 + body.len() as u8, 0, 7, 0x40, 0, hop_limit, protocol, 0, 0]);
    }
    frame.extend(address(v6, source));
    frame.extend(address(v6, destination));
    frame.extend(body);
    // As long as the way is wide, and longer.
    if random.below(8) == 0 {
        let wanted = 14 + if random.byte() & 1 == 0 { 1400 } else { 1401 };
        let length = (wanted - 14) as u16;
        if v6 {
            frame[18..20].copy_from_slice(&(length - 40).to_be_bytes());
        } else {
            frame[16..18].copy_from_slice(&length.to_be_bytes());
        }
        if protocol == 17 {
            let at = if v6 { 54 } else { 34 };
            let udp = length - if v6 { 40 } else { 20 };
            frame[at + 4..at + 6].copy_from_slice(&udp.to_be_bytes());
        }
        frame.resize(wanted, 0);
    }
    frame
}

fn compare<A: Family + Address + Eq + Hash + 'static>(v6: bool, seed: u64, steps: usize) -> [usize; 3] {
    let side = |open| if open { Side::OPEN } else { Side::CLOSED };
    let mut random = Random::new(seed);
    let hosts = || Host::<A>::new([endpoint(1, EndpointPolicy::OPEN)]);
    let (mut straight, mut stack) = (hosts(), hosts());
    for host in [&mut straight, &mut stack] {
        let info = AddressInfo { kind: ADDRESS_ENDPOINT, slot: slot_of(ifindex(1)) };
        host.addresses.insert(words(&address(v6, None)), info);
    }
    for remote in REMOTES {
        straight.remotes.insert(words(&address(v6, Some(remote))), 5);
    }
    let exit = Exit { ifindex: UPLINK, mtu: 1400, ..Exit::default() };
    let mut state = State { flags: STATE_FAST_PATH, ..STATE };
    let mut seen = [0; 3];
    for step in 0..steps {
        if random.below(30) == 0 {
            let policy =
                EndpointPolicy { ingress: side(random.below(2) == 0), egress: side(random.below(2) == 0) };
            for host in [&mut straight, &mut stack] {
                host.set_policy(ifindex(1), policy);
            }
            state.generation += 1;
        }
        if random.below(50) == 0 {
            // Ways come and go, and so does the leave to use them.
            straight.exit = if random.below(2) == 0 { Exit::default() } else { exit };
            state.flags = if random.below(4) == 0 { 0 } else { STATE_FAST_PATH };
        }
        let sends = random.below(2) == 0;
        let frame = frame(&mut random, v6, sends);
        let run = if sends { sent } else { received };
        let (end, went_straight) = run(&straight, &state, &frame);
        let (other, _) = run(&stack, &state, &frame);
        assert_eq!(end, other, "seed {seed}, step {step}, sends {sends}: {frame:02x?}");
        seen[0] += usize::from(end != End::Arrived);
        seen[1] += usize::from(went_straight && sends);
        seen[2] += usize::from(went_straight && !sends);
    }
    seen
}

#[test]
fn straight_between_nodes_arrives_what_arrives_through_the_stack() {
    // Some were dropped, some went straight, both ways.
    let cases = compared([compare::<u32>, compare::<[u32; 4]>], 12, 2000, 5);
    println!("cases: {cases}");
}
