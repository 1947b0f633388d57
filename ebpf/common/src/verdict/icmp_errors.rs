//! ICMP errors: they pass about a known flow only. Apart from the other packets for the sake of BPF's
//! stack, see docs/decisions/0005.

use crate::flow::find;
use crate::maps::{Endpoint, FLOW_BEFORE_NAT, FLOW_EXEMPT, FlowKey, SLOT_NONE, SLOT_SETTLED, State, slot_of};
use crate::packet::{Packet, Parsed};
use crate::reason::DropReason;

use super::rules::may_keep;
use super::{Family, Hook, Tables, Verdict, waits_with};

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
    } else if error_is_related(tables, packet, p, endpoint, state.generation) {
        Verdict::Pass { slot: SLOT_SETTLED }
    } else {
        Verdict::egress(DropReason::IcmpUnrelated, endpoint.ifindex)
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
    if exempt || error_is_related(tables, packet, p, endpoint, state.generation) {
        Verdict::Pass { slot: SLOT_NONE }
    } else {
        Verdict::ingress(DropReason::IcmpUnrelated, hook.ifindex)
    }
}

/// Whether an ICMP error is about a flow of the endpoint, which its rules still allow.
#[inline(always)]
fn error_is_related<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    packet: &P,
    p: &Parsed<A>,
    endpoint: &Endpoint,
    generation: u32,
) -> bool {
    let slot = slot_of(endpoint.ifindex);
    let Some(inner) = A::inner(packet, p.transport + 8) else {
        return false;
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
        return false;
    };
    let other = if own_end == source { &inner.destination } else { &inner.source };
    let other = waits_with(tables.address(other));
    let Some(known) = find(tables, &key, [slot, other], now) else {
        return false;
    };
    known.flow.endpoint[own_end].get() == endpoint.generation
        && (known.flow.judged[own_end].get() == generation
            || known.flow.has(FLOW_BEFORE_NAT | FLOW_EXEMPT)
            || {
                // The opening tuple's destination port, and the endpoint's peer.
                let port =
                    if known.flow.opener() == source { inner.destination_port } else { inner.source_port };
                let peer = if own_end == source { &inner.destination } else { &inner.source };
                let opened = known.flow.opener() == own_end;
                may_keep(tables, generation, endpoint, opened, peer, inner.protocol, port)
            })
}
