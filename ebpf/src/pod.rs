//! The hooks of a pod's host interface.

use core::hint::cold_path;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use fairlead_common::maps::{DIRECTION_EGRESS, DIRECTION_INGRESS, Endpoint, SLOT_NONE, SLOT_SETTLED, State};
use fairlead_common::packet::{self, ETHER_ARP, ETHER_IPV4, ETHER_IPV6, Kind, Packet};
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::{self, Family as _, Tables, unlocked};

use crate::packet::{Skb, blank};
use crate::steps::Steps;
use crate::tables::{Maps, state};
use crate::trampoline::raw;
use crate::verdict::{Counted, act, drop_here, pass};

/// Says that the packet is an ICMP error, which has a function of its own: both together need more
/// stack than there is. No result of tc.
pub(crate) const ICMP_ERROR: i32 = i32::MIN;

/// tc ingress of a pod's host interface: what the pod sends.
#[classifier]
pub(crate) fn from_pod(ctx: TcContext) -> i32 {
    let skb = Skb(raw(&ctx));
    let Some(state) = state() else { return TC_ACT_SHOT };
    skb.pull();
    if skb.vlan() {
        return drop_here(&skb, &state, DropReason::Vlan, DIRECTION_EGRESS);
    }
    match skb.ether_type() {
        ETHER_IPV4 => match from_pod4(&skb, &state) {
            ICMP_ERROR => from_pod4_error(&skb, &state),
            result => result,
        },
        ETHER_IPV6 => match from_pod6(&skb, &state) {
            ICMP_ERROR => from_pod6_error(&skb, &state),
            result => result,
        },
        ETHER_ARP => match check_arp(&skb) {
            Ok(()) => {
                pass(&skb, &state, SLOT_SETTLED, Counted::Here(DIRECTION_EGRESS));
                TC_ACT_UNSPEC
            }
            Err(reason) => drop_here(&skb, &state, reason, DIRECTION_EGRESS),
        },
        _ => match unlocked::<u32, _>(&Maps, skb.ifindex()) {
            Ok(_) => drop_here(&skb, &state, DropReason::EtherType, DIRECTION_EGRESS),
            Err(reason) => drop_here(&skb, &state, reason, DIRECTION_EGRESS),
        },
    }
}

#[inline(never)]
fn from_pod4(skb: &Skb, state: &State) -> i32 {
    leaving::<u32>(&Skb(skb.0), state)
}

#[inline(never)]
fn from_pod4_error(skb: &Skb, state: &State) -> i32 {
    error_leaving::<u32>(&Skb(skb.0), state)
}

#[inline(never)]
fn from_pod6(skb: &Skb, state: &State) -> i32 {
    leaving::<[u32; 4]>(&Skb(skb.0), state)
}

#[inline(never)]
fn from_pod6_error(skb: &Skb, state: &State) -> i32 {
    error_leaving::<[u32; 4]>(&Skb(skb.0), state)
}

#[inline(always)]
fn leaving<A: Steps>(skb: &Skb, state: &State) -> i32
where
    Maps: Tables<A>,
{
    let hook = skb.hook(state);
    let endpoint = match unlocked::<A, _>(&Maps, hook.ifindex) {
        Ok(endpoint) => endpoint,
        Err(reason) => return drop_here(skb, state, reason, DIRECTION_EGRESS),
    };
    if !from_own_mac(skb, endpoint) {
        return drop_here(skb, state, DropReason::SpoofedMac, DIRECTION_EGRESS);
    }
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    if let Err(reason) = A::parse(skb, p) {
        return drop_here(skb, state, reason, DIRECTION_EGRESS);
    }
    if p.kind == Kind::IcmpError {
        cold_path();
        return ICMP_ERROR;
    }
    let verdict = verdict::from_pod(&Maps, state, skb, &hook, endpoint, p);
    act(skb, state, verdict, p, Counted::Here(DIRECTION_EGRESS))
}

#[inline(always)]
fn error_leaving<A: Steps>(skb: &Skb, state: &State) -> i32
where
    Maps: Tables<A>,
{
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    let (Ok(endpoint), Ok(())) = (unlocked::<A, _>(&Maps, skb.ifindex()), A::parse(skb, p)) else {
        return drop_here(skb, state, DropReason::Internal, DIRECTION_EGRESS);
    };
    let verdict = verdict::error_from_pod(&Maps, state, skb, endpoint, p);
    act(skb, state, verdict, p, Counted::Here(DIRECTION_EGRESS))
}

#[inline(always)]
fn error_arriving<A: Steps>(skb: &Skb, state: &State) -> i32
where
    Maps: Tables<A>,
{
    let hook = skb.hook(state);
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    let (Ok(endpoint), Ok(())) = (unlocked::<A, _>(&Maps, hook.ifindex), A::parse(skb, p)) else {
        return drop_here(skb, state, DropReason::Internal, DIRECTION_INGRESS);
    };
    let verdict = verdict::error_to_pod(&Maps, state, skb, &hook, endpoint, p);
    act(skb, state, verdict, p, Counted::Here(DIRECTION_INGRESS))
}

/// tc egress of a pod's host interface: what the host's stack delivers to the pod.
#[classifier]
pub(crate) fn to_pod(ctx: TcContext) -> i32 {
    let skb = Skb(raw(&ctx));
    let Some(state) = state() else { return TC_ACT_SHOT };
    skb.pull();
    if skb.vlan() {
        return drop_here(&skb, &state, DropReason::Vlan, DIRECTION_INGRESS);
    }
    match skb.ether_type() {
        ETHER_IPV4 => match to_pod4(&skb, &state) {
            ICMP_ERROR => to_pod4_error(&skb, &state),
            result => result,
        },
        ETHER_IPV6 => match to_pod6(&skb, &state) {
            ICMP_ERROR => to_pod6_error(&skb, &state),
            result => result,
        },
        other => match unlocked::<u32, _>(&Maps, skb.ifindex()) {
            Ok(_) if other == ETHER_ARP => {
                pass(&skb, &state, SLOT_NONE, Counted::Here(DIRECTION_INGRESS));
                TC_ACT_UNSPEC
            }
            Ok(_) => drop_here(&skb, &state, DropReason::EtherType, DIRECTION_INGRESS),
            Err(reason) => drop_here(&skb, &state, reason, DIRECTION_INGRESS),
        },
    }
}

#[inline(never)]
fn to_pod4(skb: &Skb, state: &State) -> i32 {
    arriving::<u32>(&Skb(skb.0), state)
}

#[inline(never)]
fn to_pod4_error(skb: &Skb, state: &State) -> i32 {
    error_arriving::<u32>(&Skb(skb.0), state)
}

#[inline(never)]
fn to_pod6(skb: &Skb, state: &State) -> i32 {
    arriving::<[u32; 4]>(&Skb(skb.0), state)
}

#[inline(never)]
fn to_pod6_error(skb: &Skb, state: &State) -> i32 {
    error_arriving::<[u32; 4]>(&Skb(skb.0), state)
}

#[inline(always)]
fn arriving<A: Steps>(skb: &Skb, state: &State) -> i32
where
    Maps: Tables<A>,
{
    let hook = skb.hook(state);
    let endpoint = match unlocked::<A, _>(&Maps, hook.ifindex) {
        Ok(endpoint) => endpoint,
        Err(reason) => return drop_here(skb, state, reason, DIRECTION_INGRESS),
    };
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    if let Err(reason) = A::parse(skb, p) {
        return drop_here(skb, state, reason, DIRECTION_INGRESS);
    }
    if p.kind == Kind::IcmpError {
        cold_path();
        return ICMP_ERROR;
    }
    let verdict = verdict::to_pod(&Maps, state, &hook, endpoint, p);
    act(skb, state, verdict, p, Counted::Here(DIRECTION_INGRESS))
}

/// Whether the frame's source is the pod's MAC address.
#[inline(always)]
fn from_own_mac(skb: &Skb, endpoint: &Endpoint) -> bool {
    match skb.at::<6, 2>() {
        Some([first, rest]) => endpoint.is_pod_mac(first, rest),
        None => false,
    }
}

/// ARP (RFC 826) for IPv4 over Ethernet, from the pod's own addresses.
#[inline(never)]
fn check_arp(skb: &Skb) -> Result<(), DropReason> {
    let skb = &Skb(skb.0);
    let endpoint = unlocked::<u32, _>(&Maps, skb.ifindex())?;
    if !from_own_mac(skb, endpoint) {
        return Err(DropReason::SpoofedMac);
    }
    let Some([kinds, sizes, mac, rest, target]) = skb.load::<5>(packet::ETHERNET) else {
        return Err(DropReason::Malformed);
    };
    if u32::from_be(kinds) != 0x0001_0800 || u32::from_be(sizes) >> 16 != 0x0604 {
        return Err(DropReason::Malformed);
    }
    let [_, _, i0, i1] = rest.to_ne_bytes();
    let [i2, i3, _, _] = target.to_ne_bytes();
    if !endpoint.is_pod_mac(mac, rest) {
        return Err(DropReason::SpoofedMac);
    }
    if !u32::from_ne_bytes([i0, i1, i2, i3]).owned_by(endpoint) {
        return Err(DropReason::SpoofedAddress);
    }
    Ok(())
}
