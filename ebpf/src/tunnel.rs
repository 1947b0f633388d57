//! Puts a tunnel's header before a packet, and takes it off, in place of the overlay device; see docs/decisions/0031 and 0033.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
    BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
};
use aya_ebpf::helpers::{bpf_csum_level, bpf_skb_adjust_room};
use fairlead_common::maps::Tunnel;
use fairlead_common::packet::{ETHER_IPV4, ETHERNET, Packet as _};
use fairlead_common::vxlan::{self, Inner, Overlay};

use crate::packet::Skb;
use crate::tables::state;

/// The packet is as it was: the overlay device can put on and take off what the program cannot.
pub(crate) const UNCHANGED: u32 = 0;
/// The header is there, or is off.
pub(crate) const DONE: u32 = 1;
/// There is room for a header, and nothing in it; or it is off, and the frame does not say what it is.
const BROKEN: u32 = 2;

/// Segments stay as long as they are: the pod's MTU leaves room for the header.
const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | (vxlan::INNER_ETHERNET as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;

/// The frame's own Ethernet addresses are left for the neighbour's. Returns [`UNCHANGED`] and others.
///
/// A function of its own to the verifier, see [`steps`](crate::steps).
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn put_into_tunnel(
    context: *mut __sk_buff,
    tunnel: *const Tunnel,
    entropy: u32,
) -> u32 {
    let skb = Skb(context);
    // SAFETY: the verifier lets nothing else be handed in but memory of this size, or null.
    let (Some(tunnel), Some(state), Some([word])) = (unsafe { tunnel.as_ref() }, state(), skb.at::<14, 1>())
    else {
        return UNCHANGED;
    };
    let ether_type = skb.ether_type();
    let word = u32::from_be(word);
    let service = if ether_type == ETHER_IPV4 { word >> 16 } else { word >> 20 } as u8;
    let length = skb.len().wrapping_sub(ETHERNET);
    let inner = Inner { ether_type, service, length, entropy: entropy as u16 };
    let overlay = Overlay { port: state.overlay_port, id: state.overlay_id };
    let Some(header) = vxlan::header(tunnel, overlay, inner) else {
        return UNCHANGED;
    };
    // SAFETY: the context is valid; the packet's addresses are read again afterwards.
    if unsafe { bpf_skb_adjust_room(context, vxlan::HEADER as i32, BPF_ADJ_ROOM_MAC, FLAGS) } != 0 {
        return UNCHANGED;
    }
    if skb.put::<12, 13>(header) { DONE } else { BROKEN }
}

/// Takes the header off a packet that has an inner frame of this EtherType. The outer frame's Ethernet addresses stay, for the
/// pod's to be written over them. What is to be segmented keeps a tunnel's mark. Returns [`UNCHANGED`] and others.
#[inline(always)]
pub(crate) fn take_out_of_tunnel(skb: &Skb, ether_type: u16) -> u32 {
    let family =
        if ether_type == ETHER_IPV4 { BPF_F_ADJ_ROOM_DECAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_DECAP_L3_IPV6 };
    let flags = u64::from(family | BPF_F_ADJ_ROOM_NO_CSUM_RESET | BPF_F_ADJ_ROOM_FIXED_GSO);
    // What the network card says of checksums begins with the outer datagram, which bears none: RFC 7348, section 4.1, and
    // the kernel's include/linux/skbuff.h. Where it says nothing, there is nothing to take away.
    // SAFETY: the context is valid.
    let _ = unsafe { bpf_csum_level(skb.0, u64::from(BPF_CSUM_LEVEL_DEC)) };
    // SAFETY: as above; the packet's addresses are read again afterwards.
    if unsafe { bpf_skb_adjust_room(skb.0, -(vxlan::HEADER as i32), BPF_ADJ_ROOM_MAC, flags) } != 0 {
        return UNCHANGED;
    }
    match skb.at::<12, 1>() {
        Some([word])
            if skb.put::<12, 1>([(u32::from(ether_type) << 16 | u32::from_be(word) & 0xffff).to_be()]) =>
        {
            DONE
        }
        _ => BROKEN,
    }
}
