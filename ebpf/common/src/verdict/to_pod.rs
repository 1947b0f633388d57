//! What the host's stack delivers to a pod: tc egress of its host interface.

use crate::flow::{Known, Opening, answered, promote, record, waiting};
use crate::maps::{
    Endpoint, FLOW_AFTER_NAT, FLOW_BEFORE_NAT, FLOW_EXEMPT, FlowKey, SLOT_NONE, SLOT_SETTLED, State, slot_of,
};
use crate::packet::{Kind, Parsed};
use crate::reason::DropReason;

use super::rules::{End, ask_again, may_enter, may_leave};
use super::{Family, Hook, Tables, Verdict, opens_with, unlocked_slot, waits_with};

/// The stack delivers anything but an ICMP error to a pod: tc egress of its host interface.
#[inline(always)]
pub fn to_pod<A: Family, T: Tables<A>>(
    tables: &T,
    state: &State,
    hook: &Hook,
    endpoint: &Endpoint,
    p: &mut Parsed<A>,
) -> Verdict {
    let ifindex = hook.ifindex;
    let me = slot_of(ifindex);
    let generation = state.generation;
    let pass = Verdict::Pass { slot: SLOT_NONE };
    // Out of the veth it came in by: the pod's own, hairpinned by a translation.
    let hairpin = hook.mark == me;
    if hairpin && p.kind != Kind::Flow {
        return pass;
    }
    let exempt = hairpin || hook.made_here && hook.mark == SLOT_NONE;
    if exempt && (p.kind != Kind::Flow || p.destination.is_group()) {
        return pass;
    }
    if matches!(p.kind, Kind::Router | Kind::Neighbour) {
        return Verdict::ingress(DropReason::NeighbourDiscovery, ifindex);
    }
    if p.destination.is_group() {
        return Verdict::ingress(DropReason::Multicast, ifindex);
    }
    if let Err(reason) = tables.resolve_fragment(ifindex, p) {
        return Verdict::ingress(reason, ifindex);
    }
    // Whoever sent it, if that is a local pod that owes its egress verdict on this tuple.
    let owing = if hairpin || hook.mark == SLOT_SETTLED { SLOT_NONE } else { hook.mark };
    let sender = if owing == SLOT_NONE {
        None
    } else {
        match unlocked_slot(tables, owing) {
            Some(sender) => Some(sender),
            None => return Verdict::ingress(DropReason::EndpointGone, ifindex),
        }
    };
    let now = tables.now();
    let (key, source) = FlowKey::of(&p.source, &p.destination, p.source_port, p.destination_port, p.protocol);
    let opens = p.is_bare_syn();
    let mut known = if opens { None } else { answered(tables, &key, now) };
    if !opens && known.is_none() {
        let local = match sender {
            Some(sender) => opens_with(&p.source, sender),
            None => waits_with(tables.address(&p.source)),
        };
        known = waiting(tables, &key, [me, local], now);
    }
    if let Some(known) = known
        && let Some(verdict) =
            known_to_pod(tables, generation, endpoint, sender, p, &key, source, &known, now)
    {
        return verdict;
    }
    let destination = 1 - source;
    let mut opening = Opening {
        owner: me,
        opener: source,
        source,
        flags: 0,
        tcp_flags: p.tcp_flags,
        generation,
        sender: (SLOT_NONE, 0),
        receiver: (me, endpoint.generation),
        now,
    };
    if exempt {
        opening.flags = FLOW_EXEMPT;
    } else {
        let leaves = match sender {
            Some(sender) => {
                may_leave(tables, generation, sender, &p.destination, p.protocol, p.destination_port)
            }
            None => true,
        };
        let enters =
            leaves && may_enter(tables, generation, endpoint, &p.source, p.protocol, p.destination_port);
        let opener = if enters {
            source
        } else if p.is_mid_stream()
            && may_leave(tables, generation, endpoint, &p.source, p.protocol, p.source_port)
            && match sender {
                Some(sender) => {
                    may_enter(tables, generation, sender, &p.destination, p.protocol, p.source_port)
                }
                None => true,
            }
        {
            destination
        } else {
            return match sender {
                Some(sender) if !leaves => Verdict::egress(DropReason::EgressDenied, sender.ifindex),
                _ => Verdict::ingress(DropReason::IngressDenied, ifindex),
            };
        };
        if let Some(sender) = sender {
            opening.flags = FLOW_AFTER_NAT;
            opening.sender = (owing, sender.generation);
            if opener == source {
                opening.owner = opens_with(&p.source, sender);
            }
        }
        opening.opener = opener;
    }
    record(tables, &key, &opening);
    pass
}

/// A packet for the pod whose flow is known; `None` where the flow turns out to be somebody else's.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into its one caller; a struct would cost BPF stack")]
fn known_to_pod<A: Family, T: Tables<A>>(
    tables: &T,
    generation: u32,
    endpoint: &Endpoint,
    sender: Option<&Endpoint>,
    p: &Parsed<A>,
    key: &FlowKey<A>,
    source: usize,
    known: &Known<'_>,
    now: u32,
) -> Option<Verdict> {
    let flow = known.flow;
    let destination = 1 - source;
    let opened_by_source = flow.opener() == source;
    if flow.endpoint[destination].get() != endpoint.generation {
        return None;
    }
    if flow.has(FLOW_BEFORE_NAT) {
        // Entitles the exact reverse only, which is what comes out of the stack here.
        if opened_by_source {
            return None;
        }
    } else {
        if let Some(sender) = sender {
            if flow.endpoint[source].get() != sender.generation {
                return None;
            }
            if flow.judged[source].get() != generation {
                if let Err(drop) =
                    ask_again(tables, generation, sender, End::Source, p, opened_by_source, key, known)
                {
                    return Some(drop);
                }
                flow.judged[source].set(generation);
            }
        }
        if flow.judged[destination].get() != generation {
            if !flow.has(FLOW_EXEMPT)
                && let Err(drop) =
                    ask_again(tables, generation, endpoint, End::Destination, p, opened_by_source, key, known)
            {
                return Some(drop);
            }
            flow.judged[destination].set(generation);
        }
    }
    flow.note(now, p.tcp_flags, !opened_by_source);
    if !opened_by_source {
        promote(tables, key, known);
    }
    Some(Verdict::Pass { slot: SLOT_NONE })
}
