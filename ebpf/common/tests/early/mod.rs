//! XDP of the uplink: what it ends, the rest would have ended too.

use std::collections::BTreeSet;
use std::hash::Hash;

use fairlead_common::address::Address;
use fairlead_common::maps::{
    ADDRESS_ENDPOINT, ADDRESS_OWN, ADDRESS_SERVICE, AddressInfo, EndpointPolicy, Exit, FLOW_AFTER_NAT,
    FLOW_BEFORE_NAT, FLOW_DIRECT, STATE_FAST_PATH, Side, State, slot_of,
};
use fairlead_common::packet::Parsed;
use fairlead_common::verdict::unlocked;
use fairlead_common::verdict::{
    Arrival, Family, Hook, Verdict, early, from_fabric, from_pod, to_pod, to_uplink,
};

use crate::across::{End, REMOTES, STRANGER, UPLINK, address, between, words};
use crate::host::{Frame, Host, Random, STATE, compared, endpoint, ifindex};

/// A Service's address, behind which there is one of the remote pods, and the node's own.
const SERVICE: u8 = 7;
const BACKEND: u8 = REMOTES[1];
const OWN: u8 = 8;

/// The addresses of a frame: where the first begins, and their length.
fn addresses(v6: bool) -> (usize, usize) {
    if v6 { (22, 16) } else { (26, 4) }
}

/// The frame with another source, or another destination.
fn translated(frame: &[u8], v6: bool, source: bool, to: u8) -> Vec<u8> {
    let (start, length) = addresses(v6);
    let start = if source { start } else { start + length };
    let mut frame = frame.to_vec();
    frame[start..start + length].copy_from_slice(&address(v6, Some(to)));
    frame
}

/// Protocol and ports: pod's, other's.
type Translation = (u8, u16, u16);

/// A node, and what its stack translates.
struct Node<A: 'static> {
    v6: bool,
    host: Host<A>,
    state: State,
    translations: BTreeSet<Translation>,
}

impl<A: Family + Address + Eq + Hash + 'static> Node<A> {
    fn new(v6: bool) -> Self {
        let mut host = Host::new([endpoint(1, EndpointPolicy::OPEN)]);
        let info = |kind, slot| AddressInfo { kind, slot };
        for (at, info) in [
            (None, info(ADDRESS_ENDPOINT, slot_of(ifindex(1)))),
            (Some(SERVICE), info(ADDRESS_SERVICE, 0)),
            (Some(OWN), info(ADDRESS_OWN, 0)),
        ] {
            host.addresses.insert(words(&address(v6, at)), info);
        }
        for remote in REMOTES {
            host.remotes.insert(words(&address(v6, Some(remote))), 5);
        }
        host.exit = Exit { ifindex: UPLINK, mtu: 1400, ..Exit::default() };
        let state = State { flags: STATE_FAST_PATH, ..STATE };
        Self { v6, host, state, translations: BTreeSet::new() }
    }

    fn parsed(frame: &[u8]) -> (Result<(), fairlead_common::reason::DropReason>, Parsed<A>) {
        let mut p = Parsed::empty();
        (A::parse_into(&Frame(frame), &mut p), p)
    }

    /// The pod sends a packet.
    fn sends(&mut self, frame: &[u8], to_service: bool) {
        let (parsed, mut p) = Self::parsed(frame);
        parsed.unwrap();
        let hook = Hook { ifindex: ifindex(1), mark: 0, made_here: false };
        let endpoint = unlocked(&self.host, ifindex(1)).unwrap();
        let verdict = from_pod(&self.host, &self.state, &Frame(frame), &hook, endpoint, &mut p);
        let Verdict::Pass { slot } = verdict else { return };
        let frame = if to_service { translated(frame, self.v6, false, BACKEND) } else { frame.to_vec() };
        let (parsed, mut p) = Self::parsed(&frame);
        let hook = Hook { ifindex: UPLINK, mark: slot, made_here: false };
        let verdict = to_uplink(&self.host, &self.state, &hook, parsed, &mut p);
        if to_service && !matches!(verdict, Verdict::Drop(_)) {
            self.translations.insert((p.protocol, p.source_port, p.destination_port));
        }
    }

    /// What becomes of a packet that reaches the uplink, without XDP; and whether the stack translates it.
    fn receives(&self, frame: &[u8]) -> (End, bool) {
        let (parsed, p) = Self::parsed(frame);
        parsed.unwrap();
        let arrival = Arrival::Uplink { ifindex: UPLINK };
        match from_fabric(&self.host, &self.state, &Frame(frame), true, arrival, &p) {
            Verdict::Pass { slot } => {
                let answers = p.source.words() == words(&address(self.v6, Some(BACKEND)))
                    && self.translations.contains(&(p.protocol, p.destination_port, p.source_port));
                let frame = if answers { translated(frame, self.v6, true, SERVICE) } else { frame.to_vec() };
                let (_, mut p) = Self::parsed(&frame);
                let hook = Hook { ifindex: ifindex(1), mark: slot, made_here: false };
                let endpoint = unlocked(&self.host, ifindex(1)).unwrap();
                (End::of(to_pod(&self.host, &self.state, &hook, endpoint, &mut p)), answers)
            }
            other => (End::of(other), false),
        }
    }

    fn early(&self, frame: &[u8]) -> Option<End> {
        let (parsed, p) = Self::parsed(frame);
        let hook = Hook { ifindex: UPLINK, mark: 0, made_here: false };
        early(&self.host, &self.state, &hook, parsed, &p).map(|dropped| End::of(Verdict::Drop(dropped)))
    }
}

fn compare<A: Family + Address + Eq + Hash + 'static>(v6: bool, seed: u64, steps: usize) -> [usize; 3] {
    let side = |open| if open { Side::OPEN } else { Side::CLOSED };
    let mut random = Random::new(seed);
    let mut node = Node::<A>::new(v6);
    let mut policy = EndpointPolicy::OPEN;
    let mut seen = [0; 3];
    for step in 0..steps {
        match random.below(60) {
            0 | 1 => {
                policy = EndpointPolicy {
                    ingress: side(random.below(2) == 0),
                    egress: side(random.below(2) == 0),
                };
                node.host.set_policy(ifindex(1), policy);
                node.state.generation += 1;
            }
            2 => node.host.evict(FLOW_AFTER_NAT),
            3 => node.host.evict(FLOW_BEFORE_NAT),
            4 => node.host.evict(FLOW_AFTER_NAT | FLOW_BEFORE_NAT | FLOW_DIRECT),
            _ => {}
        }
        let remote = [REMOTES[0], REMOTES[1], STRANGER, SERVICE, OWN][random.below(5)];
        if random.below(2) == 0 {
            let frame = between(&mut random, v6, None, Some(remote));
            node.sends(&frame, remote == SERVICE);
            continue;
        }
        let frame = between(&mut random, v6, Some(remote), None);
        let flows = node.host.flow_count();
        let early = node.early(&frame);
        assert_eq!(node.host.flow_count(), flows, "XDP records nothing");
        let (end, translated) = node.receives(&frame);
        if let Some(early) = early {
            if !translated {
                assert_eq!(early, end, "seed {seed}, step {step}: {:02x?}", &frame[..60.min(frame.len())]);
            } else if end == End::Arrived {
                // The stack's half of the flow was forgotten, and with it that the permission has ended.
                let (_, p) = Node::<A>::parsed(&frame);
                assert!(policy.ingress == Side::CLOSED && policy.egress == Side::CLOSED && !p.is_bare_syn());
            }
            seen[0] += 1;
        }
        seen[1] += usize::from(end == End::Arrived);
        seen[2] += usize::from(translated);
    }
    seen
}

#[test]
fn xdp_ends_nothing_that_would_arrive() {
    // Some were ended, some arrived, some were translated.
    let cases = compared([compare::<u32>, compare::<[u32; 4]>], 12, 3000, 5);
    println!("cases: {cases}");
}
