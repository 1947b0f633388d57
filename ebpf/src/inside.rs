//! What reaches the uplink in a tunnel and goes straight to a pod, without the overlay device; see docs/decisions/0033.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use fairlead_common::judge::protocol;
use fairlead_common::maps::{
    ADDRESS_OWN, DIRECTION_INGRESS, NODE_NONE, QUEUED_FOR, SLOT_SETTLED, STATE_FAST_PATH, State,
};
use fairlead_common::packet::{ETHER_IPV4, ETHER_IPV6, ETHERNET, Packet as _, Parsed};
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::{self, Tables, Verdict};
use fairlead_common::vxlan::{self, Overlay};

use crate::packet::{Inside, Skb, blank};
use crate::socket::{Tuple, receives};
use crate::steps::Steps;
use crate::tables::{Maps, now, queued, tunnel4};
use crate::tunnel::{DONE, UNCHANGED, take_out_of_tunnel};
use crate::verdict::{Counted, drop_here, pass, redirect, report};

/// The packet is as it was, and whoever is next decides. No result of tc.
pub(crate) const LEFT: i32 = i32::MIN + 2;

/// Looks at a packet that may be in a tunnel. [`LEFT`] or a result of tc.
#[inline(always)]
pub(crate) fn out_of_tunnel(skb: &Skb, state: &State) -> i32 {
    if state.overlay_port == 0 || state.flags & STATE_FAST_PATH == 0 || skb.ether_type() != ETHER_IPV4 {
        return LEFT;
    }
    // The destination port, behind an IPv4 header without options.
    match skb.at::<36, 1>() {
        Some([word]) if (u32::from_be(word) >> 16) as u16 == u16::from_be(state.overlay_port) => {}
        _ => return LEFT,
    }
    let sender = sender(skb, state);
    let result = match (sender, Inside(*skb).ether_type()) {
        (NODE_NONE, _) => return LEFT,
        (NODE_ANY, _) => LEFT,
        (_, ETHER_IPV4) => inside4(skb, state, sender),
        (_, ETHER_IPV6) => inside6(skb, state, sender),
        _ => LEFT,
    };
    if result == LEFT {
        if skb.gso_size() > 0 {
            queue(skb, state);
        }
        // What is inside comes by again.
        pass(skb, state, SLOT_SETTLED, Counted::No);
        return TC_ACT_UNSPEC;
    }
    result
}

/// In place of a node's number: the packet is for the overlay device, whoever sent it.
const NODE_ANY: u32 = u32::MAX;

/// Number of the node that sent a packet whose header can be taken off here. [`NODE_NONE`]: it is none of the overlay's, or it
/// takes more to tell.
#[inline(never)]
fn sender(skb: &Skb, state: &State) -> u32 {
    let skb = Skb(skb.0);
    skb.pull_tunnel();
    let Some(words) = skb.at::<12, 13>() else {
        return NODE_NONE;
    };
    let overlay = Overlay { port: state.overlay_port, id: state.overlay_id };
    let Some(outer) = vxlan::opened(words, skb.len().wrapping_sub(ETHERNET), overlay) else {
        return NODE_NONE;
    };
    let honest = matches!(verdict::from_uplink(&Maps, skb.ifindex(), &outer.source), Verdict::Pass { .. });
    let own = Tables::<u32>::address(&Maps, &outer.destination).kind == ADDRESS_OWN;
    if !(honest && own && skb.for_this_host()) {
        return NODE_NONE;
    }
    let (Some(queued), now) = (queued(vxlan::queued_at(&outer)), now()) else {
        return NODE_NONE;
    };
    if now.wrapping_sub(queued.get()) < QUEUED_FOR {
        if skb.gso_size() > 0 && queued.get() != now {
            queued.set(now);
        }
        return NODE_ANY;
    }
    tunnel4(outer.source)
}

/// From now on all of the flow go to the overlay device, which queues this packet.
#[inline(never)]
fn queue(skb: &Skb, state: &State) {
    let skb = Skb(skb.0);
    let overlay = Overlay { port: state.overlay_port, id: state.overlay_id };
    if let Some(words) = skb.at::<12, 13>()
        && let Some(outer) = vxlan::opened(words, skb.len().wrapping_sub(ETHERNET), overlay)
        && let Some(queued) = queued(vxlan::queued_at(&outer))
    {
        queued.set(now());
    }
}

#[inline(never)]
fn inside4(skb: &Skb, state: &State, sender: u32) -> i32 {
    inside::<u32, 3>(&Skb(skb.0), state, sender)
}

#[inline(never)]
fn inside6(skb: &Skb, state: &State, sender: u32) -> i32 {
    inside::<[u32; 4], 9>(&Skb(skb.0), state, sender)
}

#[inline(always)]
fn inside<A: Steps + Tuple<N>, const N: usize>(skb: &Skb, state: &State, sender: u32) -> i32
where
    Maps: Tables<A>,
{
    let packet = Inside(*skb);
    let ether_type = packet.ether_type();
    skb.pull_inside(ether_type);
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    if A::parse_inside(skb, p).is_err() {
        return LEFT;
    }
    let joined = skb.gso_size() > 0;
    if joined && p.protocol != protocol::TCP {
        return LEFT;
    }
    match verdict::in_tunnel(&Maps, state, &packet, skb.for_this_host(), sender, p) {
        // Taken out here, it keeps the tunnel's mark in the kernel, of which a socket takes no notice.
        Verdict::Redirect { slot } if joined && !is_received::<A, N>(skb, p, slot) => LEFT,
        Verdict::Redirect { slot } => match take_out_of_tunnel(skb, ether_type) {
            DONE => redirect(skb, state, slot, p, Counted::No),
            UNCHANGED => LEFT,
            _ => drop_here(skb, state, DropReason::Internal, DIRECTION_INGRESS),
        },
        Verdict::Drop(dropped) => {
            report(ether_type, state, &dropped, Some(p));
            TC_ACT_SHOT
        }
        _ => LEFT,
    }
}

/// Whether a socket of the pod's takes the packet, and nobody sends it on.
#[inline(always)]
fn is_received<A: Steps + Tuple<N>, const N: usize>(skb: &Skb, p: &Parsed<A>, slot: u32) -> bool
where
    Maps: Tables<A>,
{
    match Tables::<A>::endpoint(&Maps, slot) {
        Some(endpoint) if endpoint.netns != 0 => receives(skb.0, p, endpoint.netns - 1),
        _ => false,
    }
}
