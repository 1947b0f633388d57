//! Trampolines: what is attached to interfaces, pinned once and never changed.
//!
//! They read which half of the program array is in force and jump there. An upgrade fills the other
//! half and turns every hook of the node with one write. An empty place drops, but for what
//! leaves the node without a mark, which no version has anything to say of.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use fairlead_common::maps::{
    HOOK_FROM_OVERLAY, HOOK_FROM_POD, HOOK_FROM_UPLINK, HOOK_TO_OVERLAY, HOOK_TO_POD, HOOK_TO_UPLINK, HOOKS,
};

#[map(name = "programs")]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(HOOKS * 2, 0);
#[map(name = "early_programs")]
static EARLY_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(2, 0);
#[map(name = "active")]
static ACTIVE: Array<u32> = Array::with_max_entries(1, 0);

#[inline(always)]
fn jump(ctx: &TcContext, hook: u32) -> i32 {
    if let Some(active) = ACTIVE.get(0) {
        // SAFETY: the array holds programs of this type only.
        unsafe {
            // Two calls, each with an index that is known: the kernel makes jumps of them. See docs/decisions/0002.
            if *active & 1 == 0 {
                PROGRAMS.tail_call(ctx, hook);
            } else {
                PROGRAMS.tail_call(ctx, HOOKS + hook);
                // Keeps the compiler from making one call of the two.
                core::ptr::read_volatile(&raw const (*raw(ctx)).mark);
            }
        }
    }
    TC_ACT_SHOT
}

/// As [`jump`], for what leaves the node. In every version, what bears no mark at all owes no verdict: it was settled, or
/// no pod sent it.
#[inline(always)]
fn jump_if_marked(ctx: &TcContext, hook: u32) -> i32 {
    // SAFETY: the kernel hands a valid context to the program.
    if unsafe { (*raw(ctx)).mark } == 0 { TC_ACT_UNSPEC } else { jump(ctx, hook) }
}

macro_rules! trampolines {
    ($($name:ident = $jump:ident $hook:ident;)*) => {$(
        #[doc = concat!("Jumps to entry `", stringify!($hook), "`.")]
        #[classifier]
        pub(crate) fn $name(ctx: TcContext) -> i32 {
            $jump(&ctx, $hook)
        }
    )*};
}

trampolines! {
    t_from_pod = jump HOOK_FROM_POD;
    t_to_pod = jump HOOK_TO_POD;
    t_from_uplink = jump HOOK_FROM_UPLINK;
    t_to_uplink = jump_if_marked HOOK_TO_UPLINK;
    t_from_overlay = jump HOOK_FROM_OVERLAY;
    t_to_overlay = jump_if_marked HOOK_TO_OVERLAY;
}

/// Jumps to the program of XDP of the half in force. Without one, everything passes: tc judges it all the same.
#[xdp]
pub(crate) fn t_early(ctx: XdpContext) -> u32 {
    if let Some(active) = ACTIVE.get(0) {
        // SAFETY: the array holds programs of this type only.
        unsafe { EARLY_PROGRAMS.tail_call(&ctx, *active & 1) };
    }
    xdp_action::XDP_PASS
}

/// The context as the raw pointer that the programs work with.
#[inline(always)]
pub(crate) fn raw(ctx: &TcContext) -> *mut __sk_buff {
    ctx.skb.skb
}
