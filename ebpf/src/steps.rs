//! Steps of the verdict as functions of their own to the verifier ("global" ones): it walks each once,
//! for whatever may be handed in, and what calls them once for whatever they may return, instead of
//! once for each way that leads through them. Both together made loading take four times as long.
//!
//! They take and return numbers and pointers to plain memory only: no global function knows more.

use core::hint::cold_path;

use aya_ebpf::bindings::__sk_buff;
use fairlead_common::flow::{self, Opening};
use fairlead_common::judge::{allows, allows_both};
use fairlead_common::maps::{EndpointPolicy, FlowKey, NODE_NONE, PendingKey, Side};
use fairlead_common::packet::{FamilyOf as _, Parsed};
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::{self, Family, Tables};

use crate::packet::{Inside, Skb};
use crate::tables::Maps;

/// An address family with its steps.
pub(crate) trait Steps: Family {
    /// Parses a packet into what is [`Parsed::empty`].
    fn parse(skb: &Skb, parsed: &mut Parsed<Self>) -> Result<(), DropReason>;
    /// The same of what is inside of a tunnel's packet.
    fn parse_inside(skb: &Skb, parsed: &mut Parsed<Self>) -> Result<(), DropReason>;
    /// [`verdict::resolve_fragment`].
    fn resolve_fragment(ifindex: u32, parsed: &mut Parsed<Self>) -> Result<(), DropReason>;
    /// [`allows`].
    fn judge(generation: u32, side: Side, peer: &Self, protocol: u8, port: u16) -> bool;
    /// [`allows_both`].
    fn judge_both(
        generation: u32,
        sides: &EndpointPolicy,
        peer: &Self,
        protocol: u8,
        ports: [u16; 2],
    ) -> (bool, bool);
    /// [`flow::locate`].
    fn locate(key: &FlowKey<Self>, slots: [u32; 2], now: u32) -> Option<PendingKey>;
    /// [`flow::take_over`].
    fn take_over(key: &FlowKey<Self>, slots: [u32; 2], now: u32) -> bool;
    /// [`Tables::remote`].
    fn remote_apart(address: &Self) -> u32;
    /// [`Tables::whereabouts`].
    fn whereabouts(address: &Self) -> (u32, bool);
    /// [`flow::record_answered`].
    fn record_answered(key: &FlowKey<Self>, opening: &Opening) -> bool;
    /// [`flow::record_waiting`].
    fn record_waiting(key: &FlowKey<Self>, opening: &Opening) -> bool;
}

macro_rules! steps {
    ($address:ty, $parse:ident, $parse_inside:ident, $fragment:ident, $judge:ident, $judge_both:ident, $locate:ident, $take_over:ident, $remote:ident, $whereabouts:ident, $record_answered:ident, $record_waiting:ident) => {
        /// 0, or the code of a [`DropReason`].
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $parse(context: *mut __sk_buff, parsed: *mut Parsed<$address>) -> u32 {
            // SAFETY: the verifier lets nothing else be handed in but memory of this size, or null.
            match unsafe { parsed.as_mut() } {
                Some(parsed) => code(<$address>::parse_into(&Skb(context), parsed)),
                None => DropReason::Internal as u32,
            }
        }

        /// 0, or the code of a [`DropReason`].
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $parse_inside(context: *mut __sk_buff, parsed: *mut Parsed<$address>) -> u32 {
            // SAFETY: as above.
            match unsafe { parsed.as_mut() } {
                Some(parsed) => code(<$address>::parse_into(&Inside(Skb(context)), parsed)),
                None => DropReason::Internal as u32,
            }
        }

        /// 0, or the code of a [`DropReason`].
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $fragment(ifindex: u32, parsed: *mut Parsed<$address>) -> u32 {
            // SAFETY: as above.
            match unsafe { parsed.as_mut() } {
                Some(parsed) => code(verdict::resolve_fragment(&Maps, ifindex, parsed)),
                None => DropReason::Internal as u32,
            }
        }

        /// `side` holds signature and default set, `what` generation, protocol and port.
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $judge(side: u64, peer: *const $address, what: u64) -> u32 {
            let side = Side { signature: (side >> 32) as u32, default_set: side as u32 };
            // SAFETY: as above.
            match unsafe { peer.as_ref() } {
                Some(peer) => {
                    let (generation, protocol, port) = ((what >> 32) as u32, (what >> 16) as u8, what as u16);
                    u32::from(allows(&Maps, generation, side, peer, protocol, port))
                }
                None => 0,
            }
        }

        /// Ingress in bit 0, egress in bit 1. The sides as above; `what` holds generation and both ports.
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $judge_both(
            ingress: u64,
            egress: u64,
            peer: *const $address,
            what: u64,
            protocol: u32,
        ) -> u32 {
            let side = |side: u64| Side { signature: (side >> 32) as u32, default_set: side as u32 };
            let sides = EndpointPolicy { ingress: side(ingress), egress: side(egress) };
            // SAFETY: as above.
            match unsafe { peer.as_ref() } {
                Some(peer) => {
                    let ports = [(what >> 16) as u16, what as u16];
                    let generation = (what >> 32) as u32;
                    let (enters, leaves) =
                        allows_both(&Maps, generation, &sides, peer, protocol as u8, ports);
                    u32::from(enters) | u32::from(leaves) << 1
                }
                None => 0,
            }
        }

        /// As [`number`] has it.
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $locate(key: *const FlowKey<$address>, first: u32, second: u32, now: u32) -> u64 {
            // SAFETY: as above.
            match unsafe { key.as_ref() } {
                Some(key) => number(flow::locate(&Maps, key, [first, second], now)),
                None => NOWHERE,
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $take_over(key: *const FlowKey<$address>, first: u32, second: u32, now: u32) -> u32 {
            // SAFETY: as above.
            match unsafe { key.as_ref() } {
                Some(key) => u32::from(flow::take_over(&Maps, key, [first, second], now)),
                None => 0,
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $remote(address: *const $address) -> u32 {
            // SAFETY: as above.
            match unsafe { address.as_ref() } {
                Some(address) => Maps.remote(address),
                None => NODE_NONE,
            }
        }

        /// The number in the lower half, 1 above it where nothing else is known of the address.
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $whereabouts(address: *const $address) -> u64 {
            // SAFETY: as above.
            match unsafe { address.as_ref() } {
                Some(address) => {
                    let (node, is_pod) = verdict::whereabouts(&Maps, address);
                    u64::from(node) | u64::from(is_pod) << 32
                }
                None => u64::from(NODE_NONE),
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $record_answered(key: *const FlowKey<$address>, opening: *const Opening) -> u32 {
            // SAFETY: as above.
            match unsafe { (key.as_ref(), opening.as_ref()) } {
                (Some(key), Some(opening)) => u32::from(flow::record_answered(&Maps, key, opening)),
                _ => 0,
            }
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $record_waiting(key: *const FlowKey<$address>, opening: *const Opening) -> u32 {
            // SAFETY: as above.
            match unsafe { (key.as_ref(), opening.as_ref()) } {
                (Some(key), Some(opening)) => u32::from(flow::record_waiting(&Maps, key, opening)),
                _ => 0,
            }
        }

        impl Steps for $address {
            #[inline(always)]
            fn parse(skb: &Skb, parsed: &mut Parsed<Self>) -> Result<(), DropReason> {
                result($parse(skb.0, parsed))
            }

            #[inline(always)]
            fn parse_inside(skb: &Skb, parsed: &mut Parsed<Self>) -> Result<(), DropReason> {
                result($parse_inside(skb.0, parsed))
            }

            #[inline(always)]
            fn resolve_fragment(ifindex: u32, parsed: &mut Parsed<Self>) -> Result<(), DropReason> {
                result($fragment(ifindex, parsed))
            }

            #[inline(always)]
            fn judge(generation: u32, side: Side, peer: &Self, protocol: u8, port: u16) -> bool {
                let side = u64::from(side.signature) << 32 | u64::from(side.default_set);
                let what = u64::from(generation) << 32 | u64::from(protocol) << 16 | u64::from(port);
                $judge(side, peer, what) != 0
            }

            #[inline(always)]
            fn judge_both(
                generation: u32,
                sides: &EndpointPolicy,
                peer: &Self,
                protocol: u8,
                [there, here]: [u16; 2],
            ) -> (bool, bool) {
                let side = |side: Side| u64::from(side.signature) << 32 | u64::from(side.default_set);
                let what = u64::from(generation) << 32 | u64::from(there) << 16 | u64::from(here);
                let EndpointPolicy { ingress, egress } = *sides;
                let both = $judge_both(side(ingress), side(egress), peer, what, u32::from(protocol));
                (both & 1 != 0, both & 2 != 0)
            }

            #[inline(always)]
            fn locate(key: &FlowKey<Self>, [first, second]: [u32; 2], now: u32) -> Option<PendingKey> {
                place($locate(key, first, second, now))
            }

            #[inline(always)]
            fn take_over(key: &FlowKey<Self>, [first, second]: [u32; 2], now: u32) -> bool {
                $take_over(key, first, second, now) != 0
            }

            #[inline(always)]
            fn remote_apart(address: &Self) -> u32 {
                $remote(address)
            }

            #[inline(always)]
            fn whereabouts(address: &Self) -> (u32, bool) {
                let both = $whereabouts(address);
                (both as u32, both >> 32 != 0)
            }

            #[inline(always)]
            fn record_answered(key: &FlowKey<Self>, opening: &Opening) -> bool {
                $record_answered(key, opening) != 0
            }

            #[inline(always)]
            fn record_waiting(key: &FlowKey<Self>, opening: &Opening) -> bool {
                $record_waiting(key, opening) != 0
            }
        }
    };
}

steps!(
    u32,
    parse_ipv4,
    parse_ipv4_inside,
    fragment_ipv4,
    judge_ipv4,
    judge_both_ipv4,
    locate_ipv4,
    take_over_ipv4,
    remote_ipv4,
    whereabouts_ipv4,
    record_answered_ipv4,
    record_waiting_ipv4
);
steps!(
    [u32; 4],
    parse_ipv6,
    parse_ipv6_inside,
    fragment_ipv6,
    judge_ipv6,
    judge_both_ipv6,
    locate_ipv6,
    take_over_ipv6,
    remote_ipv6,
    whereabouts_ipv6,
    record_answered_ipv6,
    record_waiting_ipv6
);

/// In place of a slot and a place: the flow is nowhere.
const NOWHERE: u64 = u64::MAX;

#[inline(always)]
fn number(found: Option<PendingKey>) -> u64 {
    match found {
        Some(PendingKey { slot, place }) => u64::from(slot) << 32 | u64::from(place),
        None => NOWHERE,
    }
}

#[inline(always)]
fn place(number: u64) -> Option<PendingKey> {
    if number == NOWHERE {
        return None;
    }
    Some(PendingKey { slot: (number >> 32) as u32, place: number as u32 })
}

#[inline(always)]
fn code(result: Result<(), DropReason>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}

#[inline(always)]
fn result(code: u32) -> Result<(), DropReason> {
    if code == 0 {
        return Ok(());
    }
    cold_path();
    Err(DropReason::from_code(code as u16).unwrap_or(DropReason::Internal))
}
