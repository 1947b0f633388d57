//! What a pod sends: tc ingress of its host interface.

use core::hint::cold_path;

use crate::flow::{Known, Opening, answered, promote, waiting};
use crate::maps::{
    ADDRESS_ENDPOINT, ADDRESS_NODE, ADDRESS_NODE_SERVICE, ADDRESS_OWN, ADDRESS_SERVICE, ADDRESS_UNKNOWN,
    AddressInfo, ENDPOINT_FAST_PATH, Endpoint, FLOW_BEFORE_NAT, FLOW_DIRECT, FLOW_EXEMPT, FlowKey, SLOT_NONE,
    SLOT_SETTLED, STATE_FAST_PATH, State, slot_of,
};
use crate::packet::{Kind, Packet, Parsed};
use crate::reason::DropReason;

use super::rules::{End, ask_again, may_enter, may_leave};
use super::{
    Family, Hook, Tables, Verdict, fits, is_for_overlay, node_behind, unlocked_slot, waits_with, way_out,
};

/// A pod sends anything but an ICMP error: tc ingress of its host interface.
#[inline(always)]
pub fn from_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    hook: &Hook,
    endpoint: &Endpoint,
    p: &mut Parsed<A>,
) -> Verdict {
    let ifindex = hook.ifindex;
    let me = slot_of(ifindex);
    let generation = state.generation;
    match p.kind {
        Kind::Flow => {}
        Kind::Router => return Verdict::egress(DropReason::NeighbourDiscovery, ifindex),
        Kind::Neighbour => {
            cold_path();
            return if A::neighbour_allowed(packet, p, endpoint) {
                Verdict::Pass { slot: SLOT_SETTLED }
            } else {
                Verdict::egress(DropReason::NeighbourDiscovery, ifindex)
            };
        }
        _ => cold_path(),
    }
    if !p.source.owned_by(endpoint) {
        return Verdict::egress(DropReason::SpoofedAddress, ifindex);
    }
    if p.destination.is_group() {
        return Verdict::egress(DropReason::Multicast, ifindex);
    }
    if let Err(reason) = tables.resolve_fragment(ifindex, p) {
        return Verdict::egress(reason, ifindex);
    }
    let now = tables.now();
    let (key, source) = FlowKey::of(&p.source, &p.destination, p.source_port, p.destination_port, p.protocol);
    let opens = p.is_bare_syn();
    let mut known = if opens { None } else { answered(tables, &key, now) };
    // Whose address it is matters only to what nobody has answered.
    let mut address = None;
    if !opens && known.is_none() {
        cold_path();
        let to = tables.address(&p.destination);
        known = waiting(tables, &key, [me, waits_with(to)], now);
        address = Some(to);
    }
    if let Some(known) = known
        && let Some(verdict) =
            known_from_pod(tables, state, packet, endpoint, me, p, &key, source, &known, now)
    {
        return verdict;
    }
    cold_path();
    let address = match address {
        Some(address) => address,
        None => tables.address(&p.destination),
    };
    // A flow that is not known.
    let mut opening = Opening {
        owner: me,
        opener: source,
        source,
        flags: 0,
        tcp_flags: p.tcp_flags,
        generation,
        sender: (me, endpoint.generation),
        receiver: (SLOT_NONE, 0),
        now,
    };
    let verdict = match address {
        AddressInfo { kind: ADDRESS_ENDPOINT, slot } => {
            // A pod that talks to itself through the host.
            if slot == me {
                return Verdict::Pass { slot: me };
            }
            let Some(target) = tables.endpoint(slot) else {
                return Verdict::egress(DropReason::Internal, ifindex);
            };
            if unlocked_slot(tables, slot).is_none() {
                return Verdict::ingress(DropReason::Locked, target.ifindex);
            }
            let leaves =
                may_leave(tables, generation, endpoint, &p.destination, p.protocol, p.destination_port);
            let enters =
                leaves && may_enter(tables, generation, target, &p.source, p.protocol, p.destination_port);
            let fast =
                state.flags & STATE_FAST_PATH != 0 && endpoint.flags & target.flags & ENDPOINT_FAST_PATH != 0;
            // What TCP is in the midst of may be an answer that the stack has to translate back: its flow was evicted.
            let (opener, flags) = if enters {
                (source, if fast && !p.is_mid_stream() { FLOW_DIRECT } else { 0 })
            } else if p.is_mid_stream()
                && may_enter(tables, generation, endpoint, &p.destination, p.protocol, p.source_port)
                && may_leave(tables, generation, target, &p.source, p.protocol, p.source_port)
            {
                (1 - source, 0)
            } else if leaves {
                return Verdict::ingress(DropReason::IngressDenied, target.ifindex);
            } else {
                return Verdict::egress(DropReason::EgressDenied, ifindex);
            };
            let direct = flags & FLOW_DIRECT != 0 && leaves_whole(packet, p, endpoint, target.mtu);
            opening.owner = if opener == source { me } else { slot };
            opening.opener = opener;
            opening.flags = flags;
            opening.receiver = (slot, target.generation);
            if direct { Verdict::Redirect { slot } } else { Verdict::Pass { slot: me } }
        }
        AddressInfo { kind: ADDRESS_OWN | ADDRESS_SERVICE | ADDRESS_NODE_SERVICE, .. } => {
            if is_for_overlay(state, p) && address.kind != ADDRESS_SERVICE {
                return Verdict::egress(DropReason::OverlayForbidden, ifindex);
            }
            opening.flags = FLOW_BEFORE_NAT;
            Verdict::Pass { slot: me }
        }
        other => {
            if is_for_overlay(state, p) && other.kind == ADDRESS_NODE {
                return Verdict::egress(DropReason::OverlayForbidden, ifindex);
            }
            let opener =
                if may_leave(tables, generation, endpoint, &p.destination, p.protocol, p.destination_port) {
                    source
                } else if p.is_mid_stream()
                    && may_enter(tables, generation, endpoint, &p.destination, p.protocol, p.source_port)
                {
                    1 - source
                } else {
                    return Verdict::egress(DropReason::EgressDenied, ifindex);
                };
            opening.opener = opener;
            let mut verdict = Verdict::Pass { slot: if opener == source { me } else { SLOT_SETTLED } };
            // A pod of another node, chosen for both directions: its answers come as straight as this goes.
            if opener == source
                && !p.is_mid_stream()
                && other.kind == ADDRESS_UNKNOWN
                && state.flags & STATE_FAST_PATH != 0
                && endpoint.flags & ENDPOINT_FAST_PATH != 0
            {
                let node = tables.remote_apart(&p.destination);
                if let Some(exit) = way_out(tables, node) {
                    opening.flags = FLOW_DIRECT;
                    if leaves_whole(packet, p, endpoint, exit.mtu) {
                        verdict = Verdict::Forward { node };
                    }
                }
            }
            verdict
        }
    };
    if !tables.record_answered(&key, &opening) {
        // Both may have opened the same flow, at once or one after the other: the last one did.
        let other = opening.receiver.0;
        if p.is_bare_syn()
            && other != SLOT_NONE
            && let Some(older) = tables.locate(&key, [other, SLOT_NONE], now)
        {
            tables.remove_pending(&older);
        }
        tables.record_waiting(&key, &opening);
    }
    verdict
}

/// A packet of the pod whose flow is known; `None` where the flow turns out to be somebody else's.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into its one caller; a struct would cost BPF stack")]
fn known_from_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    endpoint: &Endpoint,
    me: u32,
    p: &Parsed<A>,
    key: &FlowKey<A>,
    source: usize,
    known: &Known<'_>,
    now: u32,
) -> Option<Verdict> {
    let generation = state.generation;
    let flow = known.flow;
    let opened_by_me = flow.opener() == source;
    if flow.endpoint[source].get() != endpoint.generation {
        cold_path();
        return None;
    }
    let deferred = flow.has(FLOW_BEFORE_NAT);
    if deferred && !opened_by_me {
        return None;
    }
    let destination = 1 - source;
    let slot = flow.slot(destination);
    let stale = flow.judged[source].get() != generation;
    if stale {
        cold_path();
        if !deferred
            && !flow.has(FLOW_EXEMPT)
            && let Err(drop) =
                ask_again(tables, generation, endpoint, End::Source, p, opened_by_me, key, known)
        {
            return Some(drop);
        }
    }
    // What the node's own traffic is answered with comes back to the node, or is a hairpin's.
    let marked = opened_by_me || flow.has(FLOW_EXEMPT);
    let mut verdict = Verdict::Pass { slot: if marked { me } else { SLOT_SETTLED } };
    if flow.endpoint[destination].get() != 0 {
        let target = tables.endpoint(slot)?;
        if flow.endpoint[destination].get() != target.generation {
            cold_path();
            return None;
        }
        if unlocked_slot(tables, slot).is_none() {
            return Some(Verdict::ingress(DropReason::Locked, target.ifindex));
        }
        if flow.judged[destination].get() != generation {
            cold_path();
            // An address that is not the endpoint's own was translated: judged where it leaves the stack.
            if let Err(drop) =
                ask_again(tables, generation, target, End::Destination, p, opened_by_me, key, known)
            {
                return Some(drop);
            }
            flow.judged[destination].set(generation);
        }
        if flow.has(FLOW_DIRECT)
            && state.flags & STATE_FAST_PATH != 0
            && leaves_whole(packet, p, endpoint, target.mtu)
        {
            verdict = Verdict::Redirect { slot };
        }
    } else if flow.has(FLOW_DIRECT) && state.flags & STATE_FAST_PATH != 0 {
        let node = node_behind(tables, flow, destination, &p.destination);
        if let Some(exit) = way_out(tables, node)
            && leaves_whole(packet, p, endpoint, exit.mtu)
        {
            verdict = Verdict::Forward { node };
        }
    }
    if stale {
        cold_path();
        flow.judged[source].set(generation);
    }
    flow.note(now, p.tcp_flags, !opened_by_me);
    if !opened_by_me {
        promote(tables, key, known);
    }
    Some(verdict)
}

/// [`fits`], and with a fragment all others of its datagram: what is put together must not take two ways.
#[inline(always)]
fn leaves_whole<A, P: Packet>(packet: &P, p: &Parsed<A>, endpoint: &Endpoint, mtu: u32) -> bool {
    fits(packet, p, mtu) && (!p.fragment || endpoint.mtu <= mtu)
}
