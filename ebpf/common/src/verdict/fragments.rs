//! Fragments: those behind the first name no ports of their own.

use crate::address::Address;
use crate::maps::FragmentKey;
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
        protocol: u32::from(p.protocol),
        ifindex,
    };
    if later {
        let Some([source, destination]) = tables.fragment(&key) else {
            return Err(DropReason::FragmentUnknown);
        };
        p.source_port = source;
        p.destination_port = destination;
        p.kind = Kind::Flow;
    } else if p.kind == Kind::Flow {
        tables.insert_fragment(&key, [p.source_port, p.destination_port]);
    }
    Ok(())
}
