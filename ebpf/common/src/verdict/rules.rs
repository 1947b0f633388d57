//! What the rules in force say of a flow.

use core::hint::cold_path;

use crate::address::Address;
use crate::flow::{FlowTables, Known, forget};
use crate::judge::{PeerTables, protocol};
use crate::maps::{BANKS, Endpoint, EndpointPolicy, FLOW_AFTER_NAT, FlowKey, SIGNATURE_OPEN, Side};
use crate::packet::Parsed;
use crate::reason::DropReason;

use super::{Tables, Verdict};

/// Whether the rules of one direction allow the peer.
#[inline(always)]
fn ask<A, T: PeerTables<A>>(
    tables: &T,
    generation: u32,
    side: Side,
    peer: &A,
    protocol: u8,
    port: u16,
) -> bool {
    if side.signature == SIGNATURE_OPEN {
        return true;
    }
    tables.judge(generation, side, peer, protocol, u16::from_be(port))
}

#[inline(always)]
fn policy(endpoint: &Endpoint, generation: u32) -> &EndpointPolicy {
    &endpoint.policy[generation as usize % BANKS]
}

/// Whether the endpoint's rules let the peer open a flow to it.
#[inline(always)]
pub(super) fn may_enter<A: Address, T: Tables<A>>(
    tables: &T,
    generation: u32,
    endpoint: &Endpoint,
    peer: &A,
    protocol: u8,
    port: u16,
) -> bool {
    let side = policy(endpoint, generation).ingress;
    ask(tables, generation, side, peer, protocol, port)
}

/// Whether the endpoint's rules let it open a flow to the peer.
#[inline(always)]
pub(super) fn may_leave<A: Address, T: Tables<A>>(
    tables: &T,
    generation: u32,
    endpoint: &Endpoint,
    peer: &A,
    protocol: u8,
    port: u16,
) -> bool {
    let side = policy(endpoint, generation).egress;
    ask(tables, generation, side, peer, protocol, port)
}

/// [`may_enter`] at port `there`, and [`may_leave`] to port `here` of the same peer, which is looked up once.
#[inline(always)]
pub(super) fn may_enter_or_leave<A: Address, T: Tables<A>>(
    tables: &T,
    generation: u32,
    endpoint: &Endpoint,
    peer: &A,
    protocol: u8,
    there: u16,
    here: u16,
) -> (bool, bool) {
    let sides = policy(endpoint, generation);
    tables.judge_both(generation, sides, peer, protocol, [u16::from_be(there), u16::from_be(here)])
}

/// Where an endpoint stands to a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It sent the packet.
    Source,
    /// It gets the packet.
    Destination,
}

/// Whether the endpoint's rules allow a flow with the peer that it `opened` itself, or that the peer
/// did. `port` is the one that the opener chose at the other end, in network byte order.
#[inline(always)]
pub(super) fn may_keep<A: Address, T: Tables<A>>(
    tables: &T,
    generation: u32,
    endpoint: &Endpoint,
    opened: bool,
    peer: &A,
    protocol: u8,
    port: u16,
) -> bool {
    let EndpointPolicy { ingress, egress } = policy(endpoint, generation);
    let side = if opened { *egress } else { *ingress };
    ask(tables, generation, side, peer, protocol, port)
}

/// Asks an endpoint's rules about a packet's flow, whichever way the packet goes, that they were last asked about in an older
/// generation: by its opening tuple. Where they no longer allow it, it is revoked; the drop is the endpoint's, in the direction
/// in which the flow was opened.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined; a struct would cost BPF stack")]
pub(super) fn ask_again<A: Address, T: Tables<A>>(
    tables: &T,
    generation: u32,
    endpoint: &Endpoint,
    at: End,
    p: &Parsed<A>,
    opened_by_source: bool,
    key: &FlowKey<A>,
    known: &Known<'_>,
) -> Result<(), Verdict> {
    let peer = if at == End::Source { &p.destination } else { &p.source };
    let port = if opened_by_source { p.destination_port } else { p.source_port };
    let opened = (at == End::Source) == opened_by_source;
    if may_keep(tables, generation, endpoint, opened, peer, p.protocol, port) {
        return Ok(());
    }
    cold_path();
    revoke(tables, key, known, p.protocol);
    let reason = DropReason::FlowRevoked;
    Err(if opened {
        Verdict::egress(reason, endpoint.ifindex)
    } else {
        Verdict::ingress(reason, endpoint.ifindex)
    })
}

/// A flow is no longer allowed. One of TCP stays known, so that each of its packets is judged by its
/// opening tuple: forgotten, the next one would look like one in mid-stream after an eviction, and pass
/// where the rules let the other end open such a flow. One that may have been translated stays known too:
/// the pre-NAT entry would let its answers in unjudged. It lives as long as they come, so that it is not
/// the first of the two to die.
#[inline(always)]
fn revoke<A: Address, T: FlowTables<A>>(tables: &T, key: &FlowKey<A>, known: &Known<'_>, ip_protocol: u8) {
    if known.flow.has(FLOW_AFTER_NAT) {
        known.flow.seen.set(tables.now());
    } else if ip_protocol != protocol::TCP {
        forget(tables, key, known);
    }
}
