//! What reaches the node from others, by its uplink or out of the overlay, once its source was found to be honest.

use crate::flow::{Known, Opening, find, promote};
use crate::judge::protocol;
use crate::maps::{
    ADDRESS_ENDPOINT, ADDRESS_OWN, ADDRESS_UNKNOWN, ENDPOINT_FAST_PATH, Exit, FLOW_AFTER_NAT, FLOW_DIRECT,
    FlowKey, NODE_NONE, SLOT_NONE, SLOT_SETTLED, STATE_FAST_PATH, State, slot_of,
};
use crate::packet::{Kind, Packet, Parsed};
use crate::reason::DropReason;

use super::rules::{End, may_enter, revoke, still_may};
use super::{Family, Tables, Verdict, fits, is_for_overlay, unlocked_slot, waits_with, way_out};

/// A packet reaches the node. Most go on to the host's stack, and are judged where they come out of it, but for two
/// kinds: answers that the stack is about to translate, and what goes from a pod of another node straight to a pod
/// of this one. `for_this_host`: its frame was addressed to this node. `sender`: number of the node that the source was
/// found to be of or behind, [`NODE_NONE`] where nobody has looked.
#[inline(always)]
pub fn from_fabric<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    for_this_host: bool,
    sender: u32,
    p: &Parsed<A>,
) -> Verdict {
    let pass = Verdict::Pass { slot: SLOT_SETTLED };
    let to = tables.address(&p.destination);
    let waits = waits_with(to);
    // A tunnel's packet: what is inside of it comes by again.
    if to.kind == ADDRESS_OWN && is_for_overlay(state, p) {
        return pass;
    }
    if waits == SLOT_NONE || p.kind != Kind::Flow {
        return pass;
    }
    // The stack puts fragments together, in whatever order they come.
    let straight = state.flags & STATE_FAST_PATH != 0
        && for_this_host
        && to.kind == ADDRESS_ENDPOINT
        && !p.first_fragment;
    let now = tables.now();
    let (key, source) = FlowKey::of(&p.source, &p.destination, p.source_port, p.destination_port, p.protocol);
    let opens = p.is_bare_syn();
    if !opens && let Some(known) = find(tables, &key, [waits, SLOT_NONE], now) {
        return if known.flow.has(FLOW_AFTER_NAT) {
            answer(tables, state, p, &key, source, &known, now)
        } else if straight && known.flow.has(FLOW_DIRECT) {
            known_to_pod(tables, state, packet, to.slot, sender, p, &key, source, &known, now)
        } else {
            pass
        };
    }
    // Of TCP only what opens a connection: the rest may be of one that the stack translates, or has seen already.
    if straight && (opens || p.protocol != protocol::TCP) {
        return new_to_pod(tables, state, packet, to.slot, sender, p, &key, source, now);
    }
    pass
}

/// How packets for the source leave past the host's stack.
#[inline(always)]
fn way_back<'t, A: Family, T: Tables<A>>(tables: &'t T, sender: u32, p: &Parsed<A>) -> Option<&'t Exit> {
    way_out(tables, if sender == NODE_NONE { tables.remote(&p.source) } else { sender })
}

/// An answer to a pod: its rules still allow what it opened.
///
/// What a pod opened towards a Service is answered under the backend's address. Once the stack has
/// translated that back, nothing tells any longer which backend it was, see docs/decisions/0008.
#[inline(always)]
fn answer<A: Family, T: Tables<A>>(
    tables: &T,
    state: &State,
    p: &Parsed<A>,
    key: &FlowKey<A>,
    source: usize,
    known: &Known<'_>,
    now: u32,
) -> Verdict {
    let pass = Verdict::Pass { slot: SLOT_SETTLED };
    let (flow, destination) = (known.flow, 1 - source);
    if flow.opener() == source {
        return pass;
    }
    let Some(opener) = tables.endpoint(flow.slot(destination)) else {
        return pass;
    };
    if flow.endpoint[destination].get() != opener.generation {
        return pass;
    }
    if flow.judged[destination].get() != state.generation {
        if !still_may(tables, state.generation, opener, End::Destination, p, false) {
            revoke(tables, key, known, p.protocol);
            return Verdict::egress(DropReason::FlowRevoked, opener.ifindex);
        }
        flow.judged[destination].set(state.generation);
    }
    flow.note(now, p.tcp_flags, true);
    promote(tables, key, known);
    pass
}

/// A packet of a known direct flow. Wherever it cannot go straight, the stack is asked, and `to_pod` after it.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into its one caller; a struct would cost BPF stack")]
fn known_to_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    slot: u32,
    sender: u32,
    p: &Parsed<A>,
    key: &FlowKey<A>,
    source: usize,
    known: &Known<'_>,
    now: u32,
) -> Verdict {
    let pass = Verdict::Pass { slot: SLOT_SETTLED };
    let (flow, destination) = (known.flow, 1 - source);
    let Some(target) = unlocked_slot(tables, slot) else {
        return pass;
    };
    // The way back must be as straight, or the stack would see one direction alone.
    if flow.endpoint[destination].get() != target.generation
        || flow.endpoint[source].get() != 0
        || way_back(tables, sender, p).is_none()
        || !fits(packet, p, target.mtu)
    {
        return pass;
    }
    let opened_by_source = flow.opener() == source;
    if flow.judged[destination].get() != state.generation {
        if !still_may(tables, state.generation, target, End::Destination, p, opened_by_source) {
            revoke(tables, key, known, p.protocol);
            return if opened_by_source {
                Verdict::ingress(DropReason::FlowRevoked, target.ifindex)
            } else {
                Verdict::egress(DropReason::FlowRevoked, target.ifindex)
            };
        }
        flow.judged[destination].set(state.generation);
    }
    flow.note(now, p.tcp_flags, !opened_by_source);
    if !opened_by_source {
        promote(tables, key, known);
    }
    Verdict::Redirect { slot }
}

/// A packet that opens a flow to a local pod: straight where it comes from a pod of another node. What is denied
/// goes on to the stack all the same: only `to_pod` knows that no translation makes something else of it.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into its one caller; a struct would cost BPF stack")]
fn new_to_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    slot: u32,
    sender: u32,
    p: &Parsed<A>,
    key: &FlowKey<A>,
    source: usize,
    now: u32,
) -> Verdict {
    let pass = Verdict::Pass { slot: SLOT_SETTLED };
    let Some(target) = unlocked_slot(tables, slot) else {
        return pass;
    };
    if target.flags & ENDPOINT_FAST_PATH == 0 || !fits(packet, p, target.mtu) {
        return pass;
    }
    // Other nodes' addresses are looked up there too, and are no pods'.
    if way_back(tables, sender, p).is_none() || tables.address(&p.source).kind != ADDRESS_UNKNOWN {
        return pass;
    }
    if !may_enter(tables, state.generation, target, &p.source, p.protocol, p.destination_port) {
        return pass;
    }
    let opening = Opening {
        owner: slot_of(target.ifindex),
        opener: source,
        source,
        flags: FLOW_DIRECT,
        tcp_flags: p.tcp_flags,
        generation: state.generation,
        sender: (SLOT_NONE, 0),
        receiver: (slot, target.generation),
        now,
    };
    if tables.record(key, &opening) { Verdict::Redirect { slot } } else { pass }
}
