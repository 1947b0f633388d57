//! Fragments: those behind the first name no ports of their own.

use crate::address::Address;
use crate::judge::protocol;
use crate::maps::{FirstFragment, FragmentKey};
use crate::packet::{Kind, Parsed};
use crate::reason::DropReason;

use super::Tables;

/// Fills in the ports of a fragment, or remembers those of a first one.
#[inline(always)]
pub fn resolve_fragment<A: Address, T: Tables<A>>(
    tables: &T,
    ifindex: u32,
    p: &mut Parsed<A>,
) -> Result<(), DropReason> {
    let later = p.kind == Kind::LaterFragment;
    if !later && !p.first_fragment {
        return Ok(());
    }
    let key = FragmentKey {
        source: p.source,
        destination: p.destination,
        id: p.fragment_id,
        protocol: if A::FRAGMENTS_BY_PROTOCOL { u32::from(p.protocol) } else { 0 },
        ifindex,
    };
    if later {
        let Some(first) = tables.fragment(&key) else {
            return Err(DropReason::FragmentUnknown);
        };
        // An IPv6 fragment need not say that it is one of TCP.
        if first.protocol == u32::from(protocol::TCP) && p.transport_length == 8 {
            return Err(DropReason::FragmentOverlap);
        }
        p.source_port = first.source_port;
        p.destination_port = first.destination_port;
        p.protocol = first.protocol as u8;
        p.kind = Kind::Flow;
    } else if p.kind == Kind::Flow {
        let first = FirstFragment {
            source_port: p.source_port,
            destination_port: p.destination_port,
            protocol: u32::from(p.protocol),
        };
        tables.insert_fragment(&key, &first);
    }
    Ok(())
}
