//! What reaches and leaves the node by its uplink.

use crate::flow::{Opening, find, record};
use crate::maps::{
    ADDRESS_ENDPOINT, ADDRESS_OWN, ADDRESS_SERVICE, AddressInfo, FLOW_AFTER_NAT, FLOW_BEFORE_NAT, FlowKey,
    SLOT_NONE, SLOT_SETTLED, State,
};
use crate::packet::Parsed;
use crate::reason::DropReason;

use super::rules::{End, ask_again, may_enter, may_leave};
use super::{Family, Hook, Tables, Verdict, opens_with, unlocked_slot};

/// A packet leaves the node by the uplink: one that a pod sent is judged on its final tuple.
#[inline(always)]
pub fn to_uplink<A: Family, T: Tables<A>>(
    tables: &T,
    state: &State,
    hook: &Hook,
    parsed: Result<(), DropReason>,
    p: &mut Parsed<A>,
) -> Verdict {
    let pass = Verdict::Pass { slot: SLOT_SETTLED };
    if hook.mark == SLOT_NONE || hook.mark == SLOT_SETTLED {
        return Verdict::Pass { slot: hook.mark };
    }
    let Some(sender) = unlocked_slot(tables, hook.mark) else {
        return Verdict::egress(DropReason::EndpointGone, hook.ifindex);
    };
    if let Err(reason) = parsed {
        return Verdict::egress(reason, sender.ifindex);
    }
    if let Err(reason) = tables.resolve_fragment(hook.ifindex, p) {
        return Verdict::egress(reason, sender.ifindex);
    }
    let generation = state.generation;
    let now = tables.now();
    let owner = opens_with(&p.source, sender);
    let (key, source) = FlowKey::of(&p.source, &p.destination, p.source_port, p.destination_port, p.protocol);
    if !p.is_bare_syn()
        && let Some(known) = find(tables, &key, [owner, SLOT_NONE], now)
    {
        let flow = known.flow;
        if flow.endpoint[source].get() == sender.generation && !flow.has(FLOW_BEFORE_NAT) {
            let opened_by_source = flow.opener() == source;
            if flow.judged[source].get() != generation {
                if let Err(drop) =
                    ask_again(tables, generation, sender, End::Source, p, opened_by_source, &key, &known)
                {
                    return drop;
                }
                flow.judged[source].set(generation);
            }
            flow.note(now, p.tcp_flags, !opened_by_source);
            return pass;
        }
    }
    let leaves = may_leave(tables, generation, sender, &p.destination, p.protocol, p.destination_port);
    let opener = if leaves {
        source
    } else if p.is_mid_stream()
        && may_enter(tables, generation, sender, &p.destination, p.protocol, p.source_port)
    {
        1 - source
    } else {
        return Verdict::egress(DropReason::EgressDenied, sender.ifindex);
    };
    let opening = Opening {
        owner,
        opener,
        source,
        flags: FLOW_AFTER_NAT,
        tcp_flags: p.tcp_flags,
        generation,
        sender: (hook.mark, sender.generation),
        receiver: (SLOT_NONE, 0),
        now,
    };
    record(tables, &key, &opening);
    pass
}

/// A packet reaches the node by the uplink with this interface index: nobody outside has this node's addresses.
#[inline(always)]
pub fn from_uplink<A: Family, T: Tables<A>>(tables: &T, ifindex: u32, source: &A) -> Verdict {
    let forged = source.is_loopback()
        || matches!(
            tables.address(source),
            AddressInfo { kind: ADDRESS_ENDPOINT | ADDRESS_OWN | ADDRESS_SERVICE, .. }
        );
    if forged {
        Verdict::ingress(DropReason::ForgedSource, ifindex)
    } else {
        Verdict::Pass { slot: SLOT_SETTLED }
    }
}
