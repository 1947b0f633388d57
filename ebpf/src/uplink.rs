//! The hooks of the uplink.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use fairlead_common::maps::{DIRECTION_INGRESS, NODE_NONE, SLOT_NONE, SLOT_SETTLED, State};
use fairlead_common::packet::{ETHER_IPV4, ETHER_IPV6, Kind, Packet};
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::{self, Tables, Verdict};

use crate::inside::{LEFT, out_of_tunnel};
use crate::packet::{Skb, blank};
use crate::pod::ICMP_ERROR;
use crate::steps::Steps;
use crate::tables::{Maps, state};
use crate::trampoline::raw;
use crate::verdict::{Counted, act, drop_here, pass};

/// Says that the source is as it may be; what follows has a function of its own, beside the one that looked at it, for
/// the sake of the stack. No result of tc.
pub(crate) const HONEST: i32 = i32::MIN + 1;

/// tc ingress of the uplink: what reaches the node.
#[classifier]
pub(crate) fn from_uplink(ctx: TcContext) -> i32 {
    let skb = Skb(raw(&ctx));
    let Some(state) = state() else { return TC_ACT_SHOT };
    skb.pull();
    let result = match skb.ether_type() {
        ETHER_IPV4 => arriving4(&skb, &state),
        ETHER_IPV6 => arriving6(&skb, &state),
        _ => {
            pass(&skb, &state, SLOT_SETTLED, Counted::No);
            TC_ACT_UNSPEC
        }
    };
    if result != HONEST {
        return result;
    }
    match out_of_tunnel(&skb, &state) {
        LEFT => honest(&skb, &state, NODE_NONE),
        result => result,
    }
}

#[inline(never)]
fn arriving4(skb: &Skb, state: &State) -> i32 {
    match skb.at::<26, 1>() {
        Some([source]) => arriving(&Skb(skb.0), state, source),
        None => drop_here(skb, state, DropReason::Malformed, DIRECTION_INGRESS),
    }
}

#[inline(never)]
fn arriving6(skb: &Skb, state: &State) -> i32 {
    match skb.at::<22, 4>() {
        Some(source) => arriving(&Skb(skb.0), state, source),
        None => drop_here(skb, state, DropReason::Malformed, DIRECTION_INGRESS),
    }
}

#[inline(always)]
fn arriving<A: Steps>(skb: &Skb, state: &State, source: A) -> i32
where
    Maps: Tables<A>,
{
    let hook = skb.hook(state);
    let verdict = verdict::from_uplink(&Maps, &hook, &source);
    if verdict == (Verdict::Pass { slot: SLOT_SETTLED }) {
        return HONEST;
    }
    // For the event: all that was looked at.
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    p.source = source;
    act(skb, state, verdict, p, Counted::No)
}

/// What reaches the node from a source that may say so, and that is of the node `sender` where it is known of which.
#[inline(always)]
pub(crate) fn honest(skb: &Skb, state: &State, sender: u32) -> i32 {
    if skb.ether_type() == ETHER_IPV4 {
        match honest4(skb, state, sender) {
            ICMP_ERROR => honest4_error(skb, state),
            result => result,
        }
    } else {
        match honest6(skb, state, sender) {
            ICMP_ERROR => honest6_error(skb, state),
            result => result,
        }
    }
}

#[inline(never)]
fn honest4(skb: &Skb, state: &State, sender: u32) -> i32 {
    from_fabric::<u32>(&Skb(skb.0), state, sender)
}

#[inline(never)]
fn honest4_error(skb: &Skb, state: &State) -> i32 {
    error_from_fabric::<u32>(&Skb(skb.0), state)
}

#[inline(never)]
fn honest6_error(skb: &Skb, state: &State) -> i32 {
    error_from_fabric::<[u32; 4]>(&Skb(skb.0), state)
}

#[inline(never)]
fn honest6(skb: &Skb, state: &State, sender: u32) -> i32 {
    from_fabric::<[u32; 4]>(&Skb(skb.0), state, sender)
}

#[inline(always)]
fn from_fabric<A: Steps>(skb: &Skb, state: &State, sender: u32) -> i32
where
    Maps: Tables<A>,
{
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    let verdict = match A::parse(skb, p) {
        Ok(()) if p.kind == Kind::IcmpError => return ICMP_ERROR,
        Ok(()) => verdict::from_fabric(&Maps, state, skb, skb.for_this_host(), sender, p),
        // Whoever it is for looks at it again.
        Err(_) => Verdict::Pass { slot: SLOT_SETTLED },
    };
    act(skb, state, verdict, p, Counted::No)
}

#[inline(always)]
fn error_from_fabric<A: Steps>(skb: &Skb, state: &State) -> i32
where
    Maps: Tables<A>,
{
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    let verdict = match A::parse(skb, p) {
        Ok(()) => verdict::error_from_fabric(&Maps, state, skb, skb.for_this_host(), p),
        Err(_) => Verdict::Pass { slot: SLOT_SETTLED },
    };
    act(skb, state, verdict, p, Counted::No)
}

/// tc egress of the uplink and of the overlay device: what leaves the node.
#[classifier]
pub(crate) fn to_uplink(ctx: TcContext) -> i32 {
    let skb = Skb(raw(&ctx));
    let Some(state) = state() else { return TC_ACT_SHOT };
    let mark = skb.hook(&state).mark;
    // The node's own traffic, and what owes nothing.
    if mark == SLOT_NONE || mark == SLOT_SETTLED {
        return TC_ACT_UNSPEC;
    }
    skb.pull();
    match skb.ether_type() {
        ETHER_IPV4 => to_uplink4(&skb, &state),
        ETHER_IPV6 => to_uplink6(&skb, &state),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(never)]
fn to_uplink4(skb: &Skb, state: &State) -> i32 {
    leaving::<u32>(&Skb(skb.0), state)
}

#[inline(never)]
fn to_uplink6(skb: &Skb, state: &State) -> i32 {
    leaving::<[u32; 4]>(&Skb(skb.0), state)
}

#[inline(always)]
fn leaving<A: Steps>(skb: &Skb, state: &State) -> i32
where
    Maps: Tables<A>,
{
    let hook = skb.hook(state);
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    let parsed = A::parse(skb, p);
    let verdict = verdict::to_uplink(&Maps, state, &hook, parsed, p);
    act(skb, state, verdict, p, Counted::No)
}
