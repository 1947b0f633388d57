//! What reaches the node by the overlay. What leaves by it is judged as what leaves by the uplink.

use crate::address::Address;
use crate::maps::{NODE_NONE, SLOT_SETTLED, State};
use crate::packet::{Packet, Parsed};
use crate::reason::DropReason;

use super::{Arrival, Family, Hook, Tables, Verdict, from_fabric};

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

/// A packet reaches the uplink in a tunnel of the node with number `node`; `packet` and `p` are what is inside. Passed is
/// what the overlay device has to take out, to be judged there: all but what goes straight to a local pod, and what ends on
/// this way.
#[inline(always)]
pub fn in_tunnel<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    for_this_host: bool,
    node: u32,
    p: &Parsed<A>,
) -> Verdict {
    if node == NODE_NONE {
        return Verdict::Pass { slot: SLOT_SETTLED };
    }
    from_fabric(tables, state, packet, for_this_host, Arrival::Tunnel { node }, p)
}
