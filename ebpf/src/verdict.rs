//! What a verdict does to the packet: marks, redirects, counts, events.

use core::hint::cold_path;

use aya_ebpf::bindings::{BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_redirect_neigh, bpf_redirect_peer};
use fairlead_common::address::Address;
use fairlead_common::maps::{
    DIRECTION_EGRESS, DIRECTION_INGRESS, DropEvent, DropKey, EVENTS_PER_TICK, EventLimit, NextHop,
    SLOT_SETTLED, State, slot_of,
};
use fairlead_common::packet::{ETHER_IPV4, Packet, Parsed};
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::{Dropped, Tables, Verdict, way_out};
use fairlead_common::vxlan;

use crate::packet::Skb;
use crate::tables::{EVENTS, Maps, coarse, count_drop, count_lost, count_passed, event_limit};
use crate::tunnel::{DONE, UNCHANGED, put_into_tunnel};

/// Which pod's counter a passing packet belongs to.
#[derive(Clone, Copy)]
pub(crate) enum Counted {
    /// The pod's at this hook's interface, in this direction.
    Here(u16),
    /// Nobody's.
    No,
}

/// A drop before there is anything to report but the frame.
#[inline(always)]
pub(crate) fn drop_here(skb: &Skb, state: &State, reason: DropReason, direction: u16) -> i32 {
    cold_path();
    let dropped = Dropped { reason, ifindex: skb.ifindex(), direction };
    report::<u32>(skb.ether_type(), state, &dropped, None);
    TC_ACT_SHOT
}

/// Does what the verdict says; returns the program's result.
#[inline(always)]
pub(crate) fn act<A: Address>(
    skb: &Skb,
    state: &State,
    verdict: Verdict,
    p: &Parsed<A>,
    counted: Counted,
) -> i32
where
    Maps: Tables<A>,
{
    match verdict {
        Verdict::Pass { slot } => {
            pass(skb, state, slot, counted);
            TC_ACT_UNSPEC
        }
        Verdict::Redirect { slot } => redirect(skb, state, slot, p, counted),
        Verdict::Forward { node } => forward(skb, state, node, p, counted),
        Verdict::Drop(dropped) => {
            cold_path();
            report(skb.ether_type(), state, &dropped, Some(p));
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
pub(crate) fn pass(skb: &Skb, state: &State, slot: u32, counted: Counted) {
    skb.set_mark(state, slot);
    if let Counted::Here(direction) = counted {
        count_passed(slot_of(skb.ifindex()), direction, skb.len());
    }
}

#[inline(always)]
pub(crate) fn redirect<A: Address>(
    skb: &Skb,
    state: &State,
    slot: u32,
    p: &Parsed<A>,
    counted: Counted,
) -> i32
where
    Maps: Tables<A>,
{
    // A frame that was not for the host's interface is not the stack's to forward, nor ours.
    let target = if skb.for_this_host() { Tables::<A>::endpoint(&Maps, slot) } else { None };
    let Some(target) = target else {
        cold_path();
        // Out of a pod, it owes a verdict; from elsewhere, it is judged where the stack delivers it.
        let slot = if matches!(counted, Counted::Here(_)) { slot_of(skb.ifindex()) } else { SLOT_SETTLED };
        pass(skb, state, slot, counted);
        return TC_ACT_UNSPEC;
    };
    let ifindex = target.ifindex;
    if !skb.put::<0, 3>(target.macs) || !decrement_hop_limit(skb, p.hop_limit) {
        return drop_here(skb, state, DropReason::Internal, DIRECTION_EGRESS);
    }
    skb.clear_mark();
    let bytes = skb.len();
    if let Counted::Here(direction) = counted {
        count_passed(slot_of(skb.ifindex()), direction, bytes);
    }
    count_passed(slot, DIRECTION_INGRESS, bytes);
    // SAFETY: the helper has no preconditions; it answers with a result for tc.
    (unsafe { bpf_redirect_peer(ifindex, 0) }) as i32
}

/// Sends the packet to another node, past the stack but by its neighbours and, through the overlay device, its routes.
#[inline(always)]
fn forward<A: Address>(skb: &Skb, state: &State, node: u32, p: &Parsed<A>, counted: Counted) -> i32
where
    Maps: Tables<A>,
{
    let exit = if skb.for_this_host() { way_out::<A, _>(&Maps, node) } else { None };
    let Some(exit) = exit else {
        cold_path();
        pass(skb, state, slot_of(skb.ifindex()), counted);
        return TC_ACT_UNSPEC;
    };
    if !decrement_hop_limit(skb, p.hop_limit) {
        return drop_here(skb, state, DropReason::Internal, DIRECTION_EGRESS);
    }
    // Nothing is owed where it leaves.
    skb.clear_mark();
    if let Counted::Here(direction) = counted {
        count_passed(slot_of(skb.ifindex()), direction, skb.len());
    }
    if exit.tunnel.ifindex != 0 {
        match put_into_tunnel(skb.0, &raw const exit.tunnel, u32::from(vxlan::entropy(p))) {
            DONE => return leave(exit.tunnel.ifindex, &exit.tunnel.far),
            UNCHANGED => {}
            _ => return drop_here(skb, state, DropReason::Internal, DIRECTION_EGRESS),
        }
    }
    if exit.hop.family == 0 {
        // SAFETY: without parameters the helper has no preconditions; it answers with a result for tc.
        return (unsafe { bpf_redirect_neigh(exit.ifindex, core::ptr::null_mut(), 0, 0) }) as i32;
    }
    leave(exit.ifindex, &exit.hop)
}

/// Sends the packet to a neighbour, whose MAC address the kernel finds.
#[inline(always)]
fn leave(ifindex: u32, hop: &NextHop) -> i32 {
    let hop = core::ptr::from_ref(hop).cast_mut().cast();
    // SAFETY: the helper reads as many bytes as the hop has.
    (unsafe { bpf_redirect_neigh(ifindex, hop, size_of::<NextHop>() as i32, 0) }) as i32
}

/// What a router does: RFC 1812, section 5.3.1, with the checksum of RFC 1141; RFC 8200, section 3.
#[inline(always)]
fn decrement_hop_limit(skb: &Skb, hop_limit: u8) -> bool {
    if skb.ether_type() == ETHER_IPV4 {
        let Some([word]) = skb.at::<22, 1>() else {
            return false;
        };
        let word = u32::from_be(word);
        let sum = (word & 0xffff) + 0x0100;
        let sum = (sum + u32::from(sum >= 0xffff)) & 0xffff;
        let word = (word & 0xffff_0000) - 0x0100_0000 | sum;
        skb.put::<22, 1>([word.to_be()])
    } else {
        let hop_limit = hop_limit.wrapping_sub(1);
        skb.store(21, &hop_limit, u64::from(BPF_F_RECOMPUTE_CSUM))
    }
}

/// Counts a dropped packet and reports it. Out of line: drops are rare and need stack.
#[inline(never)]
pub(crate) fn report<A: Address>(ether_type: u16, state: &State, dropped: &Dropped, p: Option<&Parsed<A>>) {
    let key =
        DropKey { ifindex: dropped.ifindex, direction: dropped.direction, reason: dropped.reason as u16 };
    count_drop(&key);
    let slot = slot_of(dropped.ifindex);
    let Some(limit) = event_limit(slot) else {
        return;
    };
    let EventLimit { tick, mut written, lost, .. } = limit.get();
    let tick_now = coarse();
    if tick != tick_now {
        written = 0;
    }
    if written >= EVENTS_PER_TICK {
        count_lost(slot, false);
        limit.set(EventLimit { tick: tick_now, written, lost: lost.wrapping_add(1), reserved: 0 });
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<DropEvent>(0) else {
        count_lost(slot, true);
        limit.set(EventLimit { tick: tick_now, written, lost: lost.wrapping_add(1), reserved: 0 });
        return;
    };
    let mut event = DropEvent {
        source: [0; 4],
        destination: [0; 4],
        ifindex: key.ifindex,
        direction: key.direction,
        reason: key.reason,
        source_port: 0,
        destination_port: 0,
        protocol: 0,
        family: 0,
        ether_type: ether_type.to_be(),
        lost,
        generation: state.generation,
    };
    if let Some(p) = p {
        event.source = p.source.words();
        event.destination = p.destination.words();
        event.source_port = p.source_port;
        event.destination_port = p.destination_port;
        event.protocol = p.protocol;
        event.family = if ether_type == ETHER_IPV4 { 4 } else { 6 };
    }
    entry.write(event);
    entry.submit(0);
    limit.set(EventLimit { tick: tick_now, written: written + 1, lost: 0, reserved: 0 });
}
