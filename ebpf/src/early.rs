//! The hook of the uplink before there is a socket buffer (XDP).

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::bpf_xdp_load_bytes;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use fairlead_common::maps::{SLOT_NONE, State};
use fairlead_common::packet::{ETHER_IPV4, ETHER_IPV6, Packet};
use fairlead_common::verdict::{self, Hook, Tables};

use crate::packet::blank;
use crate::steps::Steps;
use crate::tables::{Maps, state};
use crate::verdict::report;

/// A frame as the driver hands it over.
#[derive(Clone, Copy)]
struct Frame(*mut xdp_md);

impl Frame {
    #[inline(always)]
    fn field(&self) -> &xdp_md {
        // SAFETY: the kernel hands a valid context to the program and it outlives it.
        unsafe { &*self.0 }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.field().data_end.wrapping_sub(self.field().data)
    }

    #[inline(always)]
    fn at<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
        let start = self.field().data as usize + OFFSET;
        if start + N * 4 <= self.field().data_end as usize {
            // SAFETY: the bytes lie within the packet, as just checked; the machine reads words at any address.
            return Some(unsafe { *(start as *const [u32; N]) });
        }
        None
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        // SAFETY: the helper writes all of `words`, or fails.
        unsafe {
            let failed = bpf_xdp_load_bytes(self.0, offset, words.as_mut_ptr().cast(), (N * 4) as u32);
            if failed == 0 { Some(words.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }
}

/// XDP of the uplink: what need not reach the host's stack.
#[xdp]
pub(crate) fn early(ctx: XdpContext) -> u32 {
    let frame = Frame(ctx.ctx);
    let Some(state) = state() else { return xdp_action::XDP_PASS };
    match frame.ether_type() {
        ETHER_IPV4 => early4(&frame, &state),
        ETHER_IPV6 => early6(&frame, &state),
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(never)]
fn early4(frame: &Frame, state: &State) -> u32 {
    arriving::<u32>(&Frame(frame.0), state)
}

#[inline(never)]
fn early6(frame: &Frame, state: &State) -> u32 {
    arriving::<[u32; 4]>(&Frame(frame.0), state)
}

#[inline(always)]
fn arriving<A: Steps>(frame: &Frame, state: &State) -> u32
where
    Maps: Tables<A>,
{
    let hook = Hook { ifindex: frame.field().ingress_ifindex, mark: SLOT_NONE, made_here: false };
    let mut place = MaybeUninit::uninit();
    let p = blank(&mut place);
    let parsed = A::parse_into(frame, p);
    match verdict::early(&Maps, state, &hook, parsed, p) {
        Some(dropped) => {
            report(frame.ether_type(), state, &dropped, Some(p));
            xdp_action::XDP_DROP
        }
        None => xdp_action::XDP_PASS,
    }
}
