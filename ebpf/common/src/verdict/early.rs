//! What ends before the host's stack hears of it: XDP on the uplink. See docs/decisions/0025.

use crate::flow::waiting;
use crate::maps::{ADDRESS_ENDPOINT, AddressInfo, DIRECTION_INGRESS, FlowKey, SLOT_NONE, State};
use crate::packet::{Kind, Parsed};
use crate::reason::DropReason;

use super::rules::may_enter_or_leave;
use super::{Dropped, Family, Hook, Tables, Verdict, from_uplink, unlocked_slot};

/// A packet reaches the uplink and has not met the host's stack. `None`: it goes on, to be judged where it always is.
///
/// Ended is only what `to_pod` would drop whatever the stack makes of it. The stack may translate the source of an
/// answer to a local pod, and only there; so what could be an answer must be one that the pod may not have asked for.
/// Nothing is recorded and no flow is touched.
#[inline(always)]
pub fn early<A: Family, T: Tables<A>>(
    tables: &T,
    state: &State,
    hook: &Hook,
    parsed: Result<(), DropReason>,
    p: &Parsed<A>,
) -> Option<Dropped> {
    if parsed.is_err() || p.kind != Kind::Flow || p.fragment {
        return None;
    }
    if let Verdict::Drop(dropped) = from_uplink(tables, hook.ifindex, &p.source) {
        return Some(dropped);
    }
    let AddressInfo { kind: ADDRESS_ENDPOINT, slot } = tables.address(&p.destination) else {
        return None;
    };
    let target = unlocked_slot(tables, slot)?;
    let generation = state.generation;
    let (enters, leaves) = may_enter_or_leave(
        tables,
        generation,
        target,
        &p.source,
        p.protocol,
        p.destination_port,
        p.source_port,
    );
    if enters || leaves && !p.is_bare_syn() {
        return None;
    }
    let (key, _) = FlowKey::of(&p.source, &p.destination, p.source_port, p.destination_port, p.protocol);
    // Among the answered ones it looks last: one look-up less than `find` where there is none, as in a flood.
    if waiting(tables, &key, [slot, SLOT_NONE], tables.now()).is_some() {
        return None;
    }
    Some(Dropped { reason: DropReason::IngressDenied, ifindex: target.ifindex, direction: DIRECTION_INGRESS })
}
