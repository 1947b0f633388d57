//! What reaches the node by the overlay. What leaves by it is judged as what leaves by the uplink.

use crate::address::Address;
use crate::maps::{NODE_NONE, SLOT_SETTLED};
use crate::reason::DropReason;

use super::{Hook, Tables, Verdict};

/// A packet comes out of the overlay, sent by the node with number `node` (that of the outer source):
/// a node speaks only for itself and its own pods.
#[inline(always)]
pub fn from_overlay<A: Address, T: Tables<A>>(tables: &T, hook: &Hook, node: u32, source: &A) -> Verdict {
    if node == NODE_NONE || tables.remote(source) != node {
        Verdict::ingress(DropReason::OverlayForged, hook.ifindex)
    } else {
        Verdict::Pass { slot: SLOT_SETTLED }
    }
}
