//! ICMP errors: they pass about a known flow only. Apart from the other packets for the sake of BPF's
//! stack, see docs/decisions/0005.

use crate::flow::find;
use crate::maps::{
    ADDRESS_ENDPOINT, AddressInfo, Endpoint, FLOW_BEFORE_NAT, FLOW_DIRECT, FLOW_EXEMPT, FlowKey, SLOT_NONE,
    SLOT_SETTLED, STATE_FAST_PATH, State, slot_of,
};
use crate::packet::{Packet, Parsed};
use crate::reason::DropReason;

use super::rules::may_keep;
use super::{Family, Hook, Tables, Verdict, fits, unlocked_slot, waits_with};

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
        match about(tables, packet, p, endpoint, state.generation) {
            About::Nothing => Verdict::egress(DropReason::IcmpUnrelated, endpoint.ifindex),
            About::Stack => Verdict::Pass { slot: SLOT_SETTLED },
            // The stack has not seen the flow, and would take the error for invalid.
            About::Straight => {
                let exit = tables.exit_to(&p.destination);
                if state.flags & STATE_FAST_PATH != 0 && exit.ifindex != 0 && fits(packet, p, exit.mtu) {
                    Verdict::Forward { ifindex: exit.ifindex }
                } else {
                    Verdict::Pass { slot: SLOT_SETTLED }
                }
            }
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
    if fits(packet, p, target.mtu) && about(tables, packet, p, target, state.generation) == About::Straight {
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
    if exempt || about(tables, packet, p, endpoint, state.generation) != About::Nothing {
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
    /// One that goes through the host's stack, or to another endpoint of the node.
    Stack,
    /// One that goes straight to another node.
    Straight,
}

#[inline(always)]
fn about<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    packet: &P,
    p: &Parsed<A>,
    endpoint: &Endpoint,
    generation: u32,
) -> About {
    let slot = slot_of(endpoint.ifindex);
    let Some(inner) = A::inner(packet, p.transport + 8) else {
        return About::Nothing;
    };
    let (key, source) = FlowKey::of(
        &inner.source,
        &inner.destination,
        inner.source_port,
        inner.destination_port,
        inner.protocol,
    );
    let now = tables.now();
    // A flow that is pending lies with its opener, which may be a local endpoint at the other end.
    let own_end = if inner.source.owned_by(endpoint) {
        source
    } else if inner.destination.owned_by(endpoint) {
        1 - source
    } else {
        return About::Nothing;
    };
    let other = if own_end == source { &inner.destination } else { &inner.source };
    let other = waits_with(tables.address(other));
    let Some(known) = find(tables, &key, [slot, other], now) else {
        return About::Nothing;
    };
    let allowed = known.flow.endpoint[own_end].get() == endpoint.generation
        && (known.flow.judged[own_end].get() == generation
            || known.flow.has(FLOW_BEFORE_NAT | FLOW_EXEMPT)
            || {
                // The opening tuple's destination port, and the endpoint's peer.
                let port =
                    if known.flow.opener() == source { inner.destination_port } else { inner.source_port };
                let peer = if own_end == source { &inner.destination } else { &inner.source };
                let opened = known.flow.opener() == own_end;
                may_keep(tables, generation, endpoint, opened, peer, inner.protocol, port)
            });
    if !allowed {
        About::Nothing
    } else if known.flow.has(FLOW_DIRECT) && known.flow.endpoint[1 - own_end].get() == 0 {
        About::Straight
    } else {
        About::Stack
    }
}
