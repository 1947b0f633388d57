//! The hook of the overlay device that is not the uplink's too.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{BPF_F_TUNINFO_IPV6, TC_ACT_SHOT, bpf_tunnel_key};
use aya_ebpf::helpers::{bpf_skb_change_type, bpf_skb_get_tunnel_key};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use fairlead_common::maps::{DIRECTION_INGRESS, NODE_NONE, State};
use fairlead_common::packet::{ETHER_IPV4, ETHER_IPV6, Packet};
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::{self, Arrival, Tables, Verdict};

use crate::packet::{PACKET_HOST, Skb, blank};
use crate::steps::Steps;
use crate::tables::{Maps, state, tunnel4, tunnel6};
use crate::trampoline::raw;
use crate::uplink::arrived;
use crate::verdict::{Counted, act, drop_here};

/// Says that the source is as it may be; what follows has a function of its own, beside the one that looked at it, for
/// the sake of the stack. No result of tc.
const HONEST: i32 = i32::MIN + 1;

/// tc ingress of the overlay device: what other nodes sent through a tunnel.
#[classifier]
pub(crate) fn from_overlay(ctx: TcContext) -> i32 {
    let skb = Skb(raw(&ctx));
    let Some(state) = state() else { return TC_ACT_SHOT };
    let node = sender(&skb, &state);
    skb.pull();
    let result = match skb.ether_type() {
        ETHER_IPV4 => arriving4(&skb, &state, node),
        ETHER_IPV6 => arriving6(&skb, &state, node),
        // Neighbours are not asked for through a tunnel.
        _ => drop_here(&skb, &state, DropReason::EtherType, DIRECTION_INGRESS),
    };
    if result == HONEST { arrived(&skb, &state, Arrival::Overlay { node }) } else { result }
}

#[inline(never)]
fn arriving4(skb: &Skb, state: &State, node: u32) -> i32 {
    match skb.at::<26, 1>() {
        Some([source]) => arriving(&Skb(skb.0), state, node, source),
        None => drop_here(skb, state, DropReason::Malformed, DIRECTION_INGRESS),
    }
}

#[inline(never)]
fn arriving6(skb: &Skb, state: &State, node: u32) -> i32 {
    match skb.at::<22, 4>() {
        Some(source) => arriving(&Skb(skb.0), state, node, source),
        None => drop_here(skb, state, DropReason::Malformed, DIRECTION_INGRESS),
    }
}

/// Number of the node that sent the packet, by the outer source address.
#[inline(never)]
fn sender(skb: &Skb, state: &State) -> u32 {
    // The helper fills it; zeroed, it would cost a call of `memset`.
    let mut place = MaybeUninit::<bpf_tunnel_key>::uninit();
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: the helper writes `size` bytes, which is how long the key is, or fails.
    if unsafe { bpf_skb_get_tunnel_key(skb.0, place.as_mut_ptr(), size, 0) } == 0 {
        // SAFETY: as just said.
        let key = unsafe { place.assume_init_ref() };
        if key.tunnel_id != state.overlay_id {
            return NODE_NONE;
        }
        // SAFETY: both members are plain words; this one comes in the host's byte order.
        return tunnel4(unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be());
    }
    // SAFETY: as above.
    if unsafe { bpf_skb_get_tunnel_key(skb.0, place.as_mut_ptr(), size, u64::from(BPF_F_TUNINFO_IPV6)) } == 0
    {
        // SAFETY: as above.
        let key = unsafe { place.assume_init_ref() };
        if key.tunnel_id == state.overlay_id {
            // SAFETY: as above, in network byte order.
            return tunnel6(unsafe { key.__bindgen_anon_1.remote_ipv6 });
        }
    }
    NODE_NONE
}

#[inline(always)]
fn arriving<A: Steps>(skb: &Skb, state: &State, node: u32, source: A) -> i32
where
    Maps: Tables<A>,
{
    let hook = skb.hook(state);
    let verdict = verdict::from_overlay(&Maps, &hook, node, &source);
    if !skb.for_this_host() {
        // A tunnel leads to one node: whatever address its frames bear, they are for this one.
        // SAFETY: the context is valid. Failed, the host's stack does not take the packet.
        let _ = unsafe { bpf_skb_change_type(skb.0, PACKET_HOST) };
    }
    if matches!(verdict, Verdict::Pass { .. }) {
        return HONEST;
    }
    // For the event: all that was looked at.
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    p.source = source;
    act(skb, state, verdict, p, Counted::No)
}
