//! ICMP errors: they pass about a known flow only. Apart from the other packets for the sake of BPF's
//! stack, see docs/decisions/0005.

use crate::flow::{Known, find};
use crate::maps::{
    ADDRESS_ENDPOINT, AddressInfo, Endpoint, FLOW_BEFORE_NAT, FLOW_DIRECT, FLOW_EXEMPT, FlowKey, SLOT_NONE,
    SLOT_SETTLED, STATE_FAST_PATH, State, slot_of,
};
use crate::packet::{Packet, Parsed};
use crate::reason::DropReason;

use super::rules::{End, may_keep};
use super::{Family, Hook, Tables, Verdict, fits, unlocked_slot, waits_with, way_out};

/// A pod sends an ICMP error: tc ingress of its host interface.
#[inline(always)]
pub fn error_from_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    endpoint: &Endpoint,
    p: &Parsed<A>,
) -> Verdict {
    if !p.source.owned_by(endpoint) {
        Verdict::egress(DropReason::SpoofedAddress, endpoint.ifindex)
    } else if p.destination.is_group() {
        Verdict::egress(DropReason::Multicast, endpoint.ifindex)
    } else {
        match about(tables, packet, p, endpoint, state.generation, End::Source) {
            About::Nothing => Verdict::egress(DropReason::IcmpUnrelated, endpoint.ifindex),
            // The stack has not seen the flow, and would take the error for invalid.
            About::Straight if state.flags & STATE_FAST_PATH != 0 => {
                let node = tables.remote_apart(&p.destination);
                match way_out(tables, node) {
                    Some(exit) if fits(packet, p, exit.mtu) => Verdict::Forward { node },
                    _ => Verdict::Pass { slot: SLOT_SETTLED },
                }
            }
            About::Within { slot, mtu } if state.flags & STATE_FAST_PATH != 0 && fits(packet, p, mtu) => {
                Verdict::Redirect { slot }
            }
            _ => Verdict::Pass { slot: SLOT_SETTLED },
        }
    }
}

/// An ICMP error reaches the node from others: straight to the pod, where its flow goes straight.
#[inline(always)]
pub fn error_from_fabric<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    for_this_host: bool,
    p: &Parsed<A>,
) -> Verdict {
    let pass = Verdict::Pass { slot: SLOT_SETTLED };
    let AddressInfo { kind: ADDRESS_ENDPOINT, slot } = tables.address(&p.destination) else {
        return pass;
    };
    if state.flags & STATE_FAST_PATH == 0 || !for_this_host {
        return pass;
    }
    let Some(target) = unlocked_slot(tables, slot) else {
        return pass;
    };
    if fits(packet, p, target.mtu)
        && about(tables, packet, p, target, state.generation, End::Destination) == About::Straight
    {
        Verdict::Redirect { slot }
    } else {
        pass
    }
}

/// The stack delivers an ICMP error to a pod: tc egress of its host interface.
#[inline(always)]
pub fn error_to_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    hook: &Hook,
    endpoint: &Endpoint,
    p: &Parsed<A>,
) -> Verdict {
    let exempt = hook.mark == slot_of(hook.ifindex) || hook.made_here && hook.mark == SLOT_NONE;
    if exempt || about(tables, packet, p, endpoint, state.generation, End::Destination) != About::Nothing {
        Verdict::Pass { slot: SLOT_NONE }
    } else {
        Verdict::ingress(DropReason::IcmpUnrelated, hook.ifindex)
    }
}

/// What an ICMP error is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    /// No flow of the endpoint that its rules still allow.
    Nothing,
    /// One that goes through the host's stack.
    Stack,
    /// One that goes straight to another node.
    Straight,
    /// One that goes straight to another endpoint of the node, whose rules still allow it.
    Within {
        /// Its slot.
        slot: u32,
        /// What fits it.
        mtu: u32,
    },
}

/// What an ICMP error says that an endpoint sent or is to get. Whoever sends one has received the packet that it is
/// about, and answers the packet's source (RFC 792; RFC 4443, section 2.4): to nobody else can it carry anything.
#[inline(always)]
fn about<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    packet: &P,
    p: &Parsed<A>,
    endpoint: &Endpoint,
    generation: u32,
    at: End,
) -> About {
    let Some(inner) = A::inner(packet, p.transport + 8) else {
        return About::Nothing;
    };
    let owned = if at == End::Source { &inner.destination } else { &inner.source };
    if !inner.source.same(&p.destination) || !owned.owned_by(endpoint) {
        return About::Nothing;
    }
    let (key, source) = FlowKey::of(
        &inner.source,
        &inner.destination,
        inner.source_port,
        inner.destination_port,
        inner.protocol,
    );
    let (own_end, other) =
        if at == End::Source { (1 - source, &inner.source) } else { (source, &inner.destination) };
    // A flow that is pending lies with its opener, which may be a local endpoint at the other end.
    let slots = [slot_of(endpoint.ifindex), waits_with(tables.address(other))];
    let Some(Known { flow, .. }) = find(tables, &key, slots, tables.now()) else {
        return About::Nothing;
    };
    // The opening tuple's destination port.
    let port = if flow.opener() == source { inner.destination_port } else { inner.source_port };
    let allowed = |endpoint: &Endpoint, end: usize, peer: &A| {
        flow.endpoint[end].get() == endpoint.generation
            && (flow.judged[end].get() == generation
                || flow.has(FLOW_BEFORE_NAT | FLOW_EXEMPT)
                || may_keep(tables, generation, endpoint, flow.opener() == end, peer, inner.protocol, port))
    };
    if !allowed(endpoint, own_end, other) {
        return About::Nothing;
    }
    let other_end = 1 - own_end;
    if !flow.has(FLOW_DIRECT) {
        About::Stack
    } else if flow.endpoint[other_end].get() == 0 {
        About::Straight
    } else if at == End::Source
        && let slot = flow.slot(other_end)
        && let Some(target) = unlocked_slot(tables, slot)
        && allowed(target, other_end, owned)
    {
        About::Within { slot, mtu: target.mtu }
    } else {
        About::Stack
    }
}
