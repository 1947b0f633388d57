//! The hooks of the uplink.

use core::hint::cold_path;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use fairlead_common::maps::{DIRECTION_INGRESS, SLOT_NONE, SLOT_SETTLED, State};
use fairlead_common::packet::{ETHER_IPV4, ETHER_IPV6, Kind, Packet};
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::{self, Arrival, Tables, Verdict};

use crate::inside::{LEFT, out_of_tunnel};
use crate::packet::{Skb, blank};
use crate::pod::ICMP_ERROR;
use crate::steps::Steps;
use crate::tables::{Maps, state};
use crate::trampoline::raw;
use crate::verdict::{Counted, act, drop_here, pass};

/// tc ingress of the uplink: what reaches the node.
#[classifier]
pub(crate) fn from_uplink(ctx: TcContext) -> i32 {
    let skb = Skb(raw(&ctx));
    let Some(state) = state() else { return TC_ACT_SHOT };
    skb.pull();
    match skb.ether_type() {
        ETHER_IPV4 | ETHER_IPV6 => {}
        _ => {
            pass(&skb, &state, SLOT_SETTLED, Counted::No);
            return TC_ACT_UNSPEC;
        }
    }
    match out_of_tunnel(&skb, &state) {
        LEFT => arrived(&skb, &state, Arrival::Uplink { ifindex: skb.ifindex() }),
        result => result,
    }
}

/// An address family whose source address is read where nothing was parsed.
trait Source: Steps {
    fn source(skb: &Skb) -> Option<Self>;
}

impl Source for u32 {
    #[inline(always)]
    fn source(skb: &Skb) -> Option<Self> {
        skb.at::<26, 1>().map(|[source]| source)
    }
}

impl Source for [u32; 4] {
    #[inline(always)]
    fn source(skb: &Skb) -> Option<Self> {
        skb.at::<22, 4>()
    }
}

/// What reaches the node from others.
#[inline(always)]
pub(crate) fn arrived(skb: &Skb, state: &State, arrival: Arrival) -> i32 {
    if skb.ether_type() == ETHER_IPV4 {
        match arrived4(skb, state, arrival) {
            ICMP_ERROR => arrived4_error(skb, state),
            result => result,
        }
    } else {
        match arrived6(skb, state, arrival) {
            ICMP_ERROR => arrived6_error(skb, state),
            result => result,
        }
    }
}

#[inline(never)]
fn arrived4(skb: &Skb, state: &State, arrival: Arrival) -> i32 {
    from_fabric::<u32>(&Skb(skb.0), state, arrival)
}

#[inline(never)]
fn arrived4_error(skb: &Skb, state: &State) -> i32 {
    error_from_fabric::<u32>(&Skb(skb.0), state)
}

#[inline(never)]
fn arrived6_error(skb: &Skb, state: &State) -> i32 {
    error_from_fabric::<[u32; 4]>(&Skb(skb.0), state)
}

#[inline(never)]
fn arrived6(skb: &Skb, state: &State, arrival: Arrival) -> i32 {
    from_fabric::<[u32; 4]>(&Skb(skb.0), state, arrival)
}

#[inline(always)]
fn from_fabric<A: Source>(skb: &Skb, state: &State, arrival: Arrival) -> i32
where
    Maps: Tables<A>,
{
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    let parsed = A::parse(skb, p);
    if parsed.is_err() || p.kind == Kind::IcmpError {
        cold_path();
        let mut verdict = Verdict::Pass { slot: SLOT_SETTLED };
        if let Arrival::Uplink { ifindex } = arrival {
            // Also of what cannot be parsed.
            let Some(source) = A::source(skb) else {
                return drop_here(skb, state, DropReason::Malformed, DIRECTION_INGRESS);
            };
            p.source = source;
            verdict = verdict::from_uplink(&Maps, ifindex, &source);
        }
        if parsed.is_ok() && matches!(verdict, Verdict::Pass { .. }) {
            return ICMP_ERROR;
        }
        // Of what cannot be parsed, whoever it is for looks at it again.
        return act(skb, state, verdict, p, Counted::No);
    }
    let verdict = verdict::from_fabric(&Maps, state, skb, skb.for_this_host(), arrival, p);
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
