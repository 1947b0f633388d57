//! The verdict on a packet at each hook. See docs/architecture.md for the packet's way.
//!
//! Nothing here touches a map or a packet itself: the kernel's side and the tests hand in both.
//! One module for each hook; what they share stands here, in `rules` and in `fragments`.

mod early;
mod fragments;
mod from_fabric;
mod from_pod;
mod icmp_errors;
mod overlay;
mod rules;
mod to_pod;
mod uplink;

pub use early::early;
pub use fragments::resolve_fragment;
pub use from_fabric::{Arrival, from_fabric};
pub use from_pod::from_pod;
pub use icmp_errors::{error_from_fabric, error_from_pod, error_to_pod};
pub use overlay::{from_overlay, in_tunnel};
pub use to_pod::to_pod;
pub use uplink::{from_uplink, to_uplink};

use core::hint::cold_path;

use crate::address::{Address, is_link_local};
use crate::flow::FlowTables;
use crate::judge::{PeerTables, protocol};
use crate::maps::{
    ADDRESS_ENDPOINT, ADDRESS_OWN, ADDRESS_UNKNOWN, AddressInfo, DIRECTION_EGRESS, DIRECTION_INGRESS,
    ENDPOINT_UNLOCKED, EXITS, Endpoint, Exit, FirstFragment, Flow, FragmentKey, NODE_NONE, SLOT_NONE,
    SLOT_SETTLED, State, slot_of,
};
use crate::packet::{ETHERNET, FamilyOf, Packet, Parsed};
use crate::reason::DropReason;

/// Everything that a verdict looks up, for one address family.
pub trait Tables<A: Address>: PeerTables<A> + FlowTables<A> {
    /// [`StateEntry::topology`](crate::maps::StateEntry::topology).
    fn topology(&self) -> u32;
    /// Map `endpoints`.
    fn endpoint(&self, slot: u32) -> Option<&Endpoint>;
    /// Map `killed`: the interface index that was killed last in a slot.
    fn killed(&self, slot: u32) -> u32;
    /// Maps `addresses4` and `addresses6`; [`AddressInfo::UNKNOWN`] where they have no entry. (No
    /// `Option`: the compiler would merge its branches into code that the verifier refuses.)
    fn address(&self, address: &A) -> AddressInfo;
    /// Maps `remotes4` and `remotes6`: number of the other node that the address is of or behind,
    /// [`NODE_NONE`](crate::maps::NODE_NONE) where there is none.
    fn remote(&self, address: &A) -> u32;
    /// Maps `exits4` and `exits6`: how packets for pods of the node with this number leave; see [`way_out`].
    fn exit(&self, node: u32) -> Option<&Exit>;
    /// Maps `fragments4` and `fragments6`.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FirstFragment>;
    /// Remembers what a datagram's first fragment says for the others.
    fn insert_fragment(&self, key: &FragmentKey<A>, first: &FirstFragment);

    /// [`Self::remote`]; the kernel's side has it as a function of its own, for the sake of the stack.
    #[inline(always)]
    fn remote_apart(&self, address: &A) -> u32 {
        self.remote(address)
    }

    /// [`whereabouts`]; as [`Self::remote_apart`].
    #[inline(always)]
    fn whereabouts(&self, address: &A) -> (u32, bool) {
        whereabouts(self, address)
    }

    /// [`resolve_fragment`]; the kernel's side has it as a function of its own, which the verifier
    /// walks once.
    #[inline(always)]
    fn resolve_fragment(&self, ifindex: u32, p: &mut Parsed<A>) -> Result<(), DropReason> {
        resolve_fragment(self, ifindex, p)
    }
}

/// An address family as the verdict sees it.
pub trait Family: FamilyOf {
    /// Whether the endpoint has this address.
    fn owned_by(&self, endpoint: &Endpoint) -> bool;
    /// Whether a pod may send this neighbour discovery packet.
    fn neighbour_allowed<P: Packet>(packet: &P, parsed: &Parsed<Self>, endpoint: &Endpoint) -> bool;
}

impl Family for u32 {
    #[inline(always)]
    fn owned_by(&self, endpoint: &Endpoint) -> bool {
        let [a, b, c, d] = endpoint.ipv4;
        *self != 0 && (*self == a || *self == b || *self == c || *self == d)
    }

    #[inline(always)]
    fn neighbour_allowed<P: Packet>(_: &P, _: &Parsed<Self>, _: &Endpoint) -> bool {
        false
    }
}

impl Family for [u32; 4] {
    #[inline(always)]
    fn owned_by(&self, endpoint: &Endpoint) -> bool {
        let [a, b, c, d] = &endpoint.ipv6;
        !self.same(&Self::UNSPECIFIED) && (self.same(a) || self.same(b) || self.same(c) || self.same(d))
    }

    /// RFC 4861, section 7.1: hop limit 255; the source is the pod's own; an advertisement is about an
    /// own address, a solicitation about an own or a link-local one (the gateway).
    #[inline(always)]
    fn neighbour_allowed<P: Packet>(packet: &P, parsed: &Parsed<Self>, endpoint: &Endpoint) -> bool {
        if parsed.hop_limit != 255 || !parsed.source.owned_by(endpoint) {
            return false;
        }
        match packet.load::<6>(parsed.transport) {
            Some([kind, _, t0, t1, t2, t3]) => {
                let target = [t0, t1, t2, t3];
                let solicitation = u32::from_be(kind) >> 24 == 135;
                target.owned_by(endpoint) || solicitation && is_link_local(&target)
            }
            None => false,
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on through the host's stack, marked with a slot.
    Pass {
        /// The slot, [`SLOT_NONE`] to take the mark away.
        slot: u32,
    },
    /// It goes straight into the local endpoint of a slot.
    Redirect {
        /// The slot.
        slot: u32,
    },
    /// It goes straight to another node, as the way out to it says.
    Forward {
        /// The node's number.
        node: u32,
    },
    /// It ends here.
    Drop(Dropped),
}

/// Why a packet ends, and at whose rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Why.
    pub reason: DropReason,
    /// Interface of the endpoint whose state or rules decided.
    pub ifindex: u32,
    /// Direction of that endpoint, [`DIRECTION_INGRESS`] or [`DIRECTION_EGRESS`].
    pub direction: u16,
}

impl Verdict {
    #[inline(always)]
    fn ingress(reason: DropReason, ifindex: u32) -> Self {
        cold_path();
        Self::Drop(Dropped { reason, ifindex, direction: DIRECTION_INGRESS })
    }

    #[inline(always)]
    fn egress(reason: DropReason, ifindex: u32) -> Self {
        cold_path();
        Self::Drop(Dropped { reason, ifindex, direction: DIRECTION_EGRESS })
    }
}

/// What the hook knows of a packet besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Interface that the program runs on.
    pub ifindex: u32,
    /// Slot that the mark holds.
    pub mark: u32,
    /// Made on this machine, in this network namespace: it has a socket and came in by no interface.
    pub made_here: bool,
}

/// How packets for pods of the node with this number leave past the host's stack; `None` where they may not.
#[inline(always)]
pub fn way_out<A: Address, T: Tables<A>>(tables: &T, node: u32) -> Option<&Exit> {
    tables.exit(node).filter(|exit| exit.ifindex != 0)
}

/// [`Tables::remote`], and whether nothing else is known of the address, so that it is a pod's if it is of a node's pod CIDR.
#[inline(always)]
pub fn whereabouts<A: Address, T: Tables<A>>(tables: &T, address: &A) -> (u32, bool) {
    (tables.remote(address), tables.address(address).kind == ADDRESS_UNKNOWN)
}

/// Number of the node that the far pod of a flow is behind: as the flow keeps it, or looked up, and then kept for as long as
/// all addresses stay whose they are.
#[inline(always)]
fn node_behind<A: Address, T: Tables<A>>(tables: &T, flow: &Flow, end: usize, address: &A) -> u32 {
    // Before what is looked up, which may be newer but not older.
    let topology = tables.topology();
    let kept = flow.behind(end, topology);
    if kept != NODE_NONE {
        return kept;
    }
    cold_path();
    let (node, is_pod) = tables.whereabouts(address);
    // Who may not send under this address at the uplink must not be taken for the pod there.
    if is_pod && node != NODE_NONE && node < EXITS {
        flow.keep_behind(end, topology, node);
    }
    node
}

/// The endpoint behind a pod's host interface, if packets may pass it at all.
#[inline(always)]
pub fn unlocked<A: Address, T: Tables<A>>(tables: &T, ifindex: u32) -> Result<&Endpoint, DropReason> {
    let slot = slot_of(ifindex);
    let Some(endpoint) = tables.endpoint(slot) else {
        cold_path();
        return Err(DropReason::Locked);
    };
    if endpoint.ifindex != ifindex || endpoint.flags & ENDPOINT_UNLOCKED == 0 {
        cold_path();
        return Err(DropReason::Locked);
    }
    if tables.killed(slot) == ifindex {
        cold_path();
        return Err(DropReason::EndpointGone);
    }
    Ok(endpoint)
}

/// Slot in whose places a flow with the end at this address may be pending: the endpoint's, or those
/// that all pods share under the node's own addresses (docs/decisions/0008).
#[inline(always)]
fn waits_with(address: AddressInfo) -> u32 {
    match address {
        AddressInfo { kind: ADDRESS_ENDPOINT, slot } => slot,
        AddressInfo { kind: ADDRESS_OWN, .. } => SLOT_SETTLED,
        _ => SLOT_NONE,
    }
}

/// Slot in whose places a flow that an endpoint opens waits for its answer, by the source under which
/// it leaves the stack.
#[inline(always)]
fn opens_with<A: Family>(source: &A, endpoint: &Endpoint) -> u32 {
    if source.owned_by(endpoint) { slot_of(endpoint.ifindex) } else { SLOT_SETTLED }
}

/// Whether the packet can go on without the stack, where no more than `mtu` bytes fit: a router would still forward
/// it, and need say nothing about its size.
#[inline(always)]
fn fits<A, P: Packet>(packet: &P, p: &Parsed<A>, mtu: u32) -> bool {
    let gso = packet.gso_size();
    let size = if gso > 0 {
        p.transport - ETHERNET + p.transport_length + gso
    } else {
        packet.len().wrapping_sub(ETHERNET)
    };
    p.hop_limit > 1 && size <= mtu
}

/// Whether a packet is for the overlay's port, at whatever address.
#[inline(always)]
fn is_for_overlay<A>(state: &State, p: &Parsed<A>) -> bool {
    state.overlay_port != 0 && p.protocol == protocol::UDP && p.destination_port == state.overlay_port
}

/// The endpoint of a slot, if packets may pass it.
#[inline(always)]
fn unlocked_slot<A: Address, T: Tables<A>>(tables: &T, slot: u32) -> Option<&Endpoint> {
    let endpoint = tables.endpoint(slot)?;
    if endpoint.flags & ENDPOINT_UNLOCKED == 0 || tables.killed(slot) == endpoint.ifindex {
        cold_path();
        return None;
    }
    Some(endpoint)
}
