//! What reaches the node from others, by its uplink or out of the overlay.

use core::hint::cold_path;

use crate::flow::{Known, Opening, answered, promote, record, waiting};
use crate::judge::protocol;
use crate::maps::{
    ADDRESS_ENDPOINT, ADDRESS_OWN, ADDRESS_UNKNOWN, AddressInfo, ENDPOINT_FAST_PATH, FLOW_AFTER_NAT,
    FLOW_DIRECT, FlowKey, NODE_NONE, SLOT_NONE, SLOT_SETTLED, STATE_FAST_PATH, State, slot_of,
};
use crate::packet::{Kind, Packet, Parsed};

use super::rules::{End, ask_again, may_enter};
use super::{
    Family, Tables, Verdict, fits, from_uplink, is_for_overlay, node_behind, unlocked_slot, waits_with,
    way_out,
};

/// Where a packet comes in, and what is known of who sent it.
#[derive(Clone, Copy, Debug)]
pub enum Arrival {
    /// By the uplink with this interface index, from whoever.
    Uplink {
        /// The index.
        ifindex: u32,
    },
    /// By the uplink, in a tunnel of the node with this number; nobody has looked whether its source may say so.
    Tunnel {
        /// The number.
        node: u32,
    },
    /// Out of the overlay: its source was found to be of or behind the node with this number.
    Overlay {
        /// The number.
        node: u32,
    },
}

/// A packet reaches the node. Most go on to the host's stack, and are judged where they come out of it, but for two
/// kinds: answers that the stack is about to translate, and what goes from a pod of another node straight to a pod
/// of this one. `for_this_host`: its frame was addressed to this node.
#[inline(always)]
pub fn from_fabric<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    for_this_host: bool,
    arrival: Arrival,
    p: &Parsed<A>,
) -> Verdict {
    let pass = Verdict::Pass { slot: SLOT_SETTLED };
    let now = tables.now();
    let (key, source) = FlowKey::of(&p.source, &p.destination, p.source_port, p.destination_port, p.protocol);
    let opens = p.is_bare_syn();
    let mut known = if opens || p.kind != Kind::Flow {
        cold_path();
        None
    } else {
        answered(tables, &key, now)
    };
    // A straight flow that keeps its far pod's node says all that would be looked up of the two addresses.
    let (mut node, mut slot) = (NODE_NONE, SLOT_NONE);
    if let Some(Known { flow, .. }) = known
        && flow.flags.get() & (FLOW_DIRECT | FLOW_AFTER_NAT) == FLOW_DIRECT
        && flow.endpoint[source].get() == 0
    {
        node = flow.behind(source, tables.topology());
        slot = flow.slot(1 - source);
    }
    let sender = match arrival {
        Arrival::Uplink { .. } => NODE_NONE,
        Arrival::Tunnel { node } | Arrival::Overlay { node } => node,
    };
    let to = if node != NODE_NONE && (sender == NODE_NONE || sender == node) {
        AddressInfo { kind: ADDRESS_ENDPOINT, slot }
    } else {
        cold_path();
        match arrival {
            Arrival::Uplink { ifindex } => {
                if let dropped @ Verdict::Drop(_) = from_uplink(tables, ifindex, &p.source) {
                    return dropped;
                }
            }
            // Whom it says that it is from is judged and counted where everything comes out of the overlay.
            Arrival::Tunnel { node } if tables.remote(&p.source) != node => return pass,
            _ => {}
        }
        tables.address(&p.destination)
    };
    let waits = waits_with(to);
    // A tunnel's packet: what is inside of it comes by again.
    if to.kind == ADDRESS_OWN && is_for_overlay(state, p) {
        cold_path();
        return pass;
    }
    if waits == SLOT_NONE || p.kind != Kind::Flow {
        cold_path();
        return pass;
    }
    // The stack puts fragments together, in whatever order they come.
    let straight = state.flags & STATE_FAST_PATH != 0
        && for_this_host
        && to.kind == ADDRESS_ENDPOINT
        && !p.first_fragment;
    if !opens && known.is_none() {
        cold_path();
        known = waiting(tables, &key, [waits, SLOT_NONE], now);
    }
    if let Some(known) = known {
        let after_nat = known.flow.has(FLOW_AFTER_NAT);
        if straight && !after_nat && known.flow.has(FLOW_DIRECT) {
            return known_to_pod(tables, state, packet, to.slot, node, p, &key, source, &known, now);
        }
        cold_path();
        return if after_nat { answer(tables, state, p, &key, source, &known, now) } else { pass };
    }
    cold_path();
    // Of TCP only what opens a connection: the rest may be of one that the stack translates, or has seen already.
    if straight && (opens || p.protocol != protocol::TCP) {
        return new_to_pod(tables, state, packet, to.slot, sender, p, &key, source, now);
    }
    pass
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
        if let Err(drop) = ask_again(tables, state.generation, opener, End::Destination, p, false, key, known)
        {
            return drop;
        }
        flow.judged[destination].set(state.generation);
    }
    flow.note(now, p.tcp_flags, true);
    promote(tables, key, known);
    pass
}

/// A packet of a known direct flow, whose far pod is behind a node as far as that is known. Wherever it cannot go straight,
/// the stack is asked, and `to_pod` after it.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into its one caller; a struct would cost BPF stack")]
fn known_to_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    slot: u32,
    node: u32,
    p: &Parsed<A>,
    key: &FlowKey<A>,
    source: usize,
    known: &Known<'_>,
    now: u32,
) -> Verdict {
    let pass = Verdict::Pass { slot: SLOT_SETTLED };
    let (flow, destination) = (known.flow, 1 - source);
    let Some(target) = unlocked_slot(tables, slot) else {
        cold_path();
        return pass;
    };
    // Only at an end where no local endpoint is, hence after the first two.
    let node = || if node == NODE_NONE { node_behind(tables, flow, source, &p.source) } else { node };
    // The way back must be as straight, or the stack would see one direction alone.
    if flow.endpoint[destination].get() != target.generation
        || flow.endpoint[source].get() != 0
        || way_out(tables, node()).is_none()
        || !fits(packet, p, target.mtu)
    {
        cold_path();
        return pass;
    }
    let opened_by_source = flow.opener() == source;
    if flow.judged[destination].get() != state.generation {
        cold_path();
        if let Err(drop) =
            ask_again(tables, state.generation, target, End::Destination, p, opened_by_source, key, known)
        {
            return drop;
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
    let node = if sender == NODE_NONE { tables.remote(&p.source) } else { sender };
    if way_out(tables, node).is_none() || tables.address(&p.source).kind != ADDRESS_UNKNOWN {
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
    if record(tables, key, &opening) { Verdict::Redirect { slot } } else { pass }
}
