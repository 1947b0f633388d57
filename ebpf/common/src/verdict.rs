//! The verdict on a packet at each hook. See docs/architecture.md for the packet's way.
//!
//! Nothing here touches a map or a packet itself: the kernel's side and the tests hand in both.

use crate::address::{Address, is_link_local};
use crate::flow::{FlowTables, Known, Opening, find, forget, promote, record};
use crate::judge::{PeerTables, allows, protocol};
use crate::maps::{
    ADDRESS_ENDPOINT, ADDRESS_NODE, ADDRESS_OWN, ADDRESS_SERVICE, AddressInfo, BANKS, DIRECTION_EGRESS,
    DIRECTION_INGRESS, ENDPOINT_FAST_PATH, ENDPOINT_UNLOCKED, Endpoint, EndpointPolicy, FLOW_BEFORE_NAT,
    FLOW_DIRECT, FLOW_EXEMPT, FlowKey, FragmentKey, FragmentPorts, SIGNATURE_OPEN, SLOT_NONE, SLOT_SETTLED,
    STATE_FAST_PATH, Side, State, slot_of,
};
use crate::packet::{ETHERNET, FamilyOf, Kind, Packet, Parsed};
use crate::reason::DropReason;

/// Everything that a verdict looks up, for one address family.
pub trait Tables<A>: PeerTables<A> + FlowTables<A> {
    /// Map `endpoints`.
    fn endpoint(&self, slot: u32) -> Option<&Endpoint>;
    /// Map `killed`: the interface index that was killed last in a slot.
    fn killed(&self, slot: u32) -> u32;
    /// Maps `addresses4` and `addresses6`; [`AddressInfo::UNKNOWN`] where they have no entry. (No
    /// `Option`: the compiler would merge its branches into code that the verifier refuses.)
    fn address(&self, address: &A) -> AddressInfo;
    /// Maps `fragments4` and `fragments6`.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts>;
    /// Remembers the ports of a datagram's first fragment.
    fn insert_fragment(&self, key: &FragmentKey<A>, ports: FragmentPorts);
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
        Self::Drop(Dropped { reason, ifindex, direction: DIRECTION_INGRESS })
    }

    #[inline(always)]
    fn egress(reason: DropReason, ifindex: u32) -> Self {
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

/// The endpoint behind a pod's host interface, if packets may pass it at all.
#[inline(always)]
pub fn unlocked<A, T: Tables<A>>(tables: &T, ifindex: u32) -> Result<&Endpoint, DropReason> {
    let slot = slot_of(ifindex);
    let Some(endpoint) = tables.endpoint(slot) else {
        return Err(DropReason::Locked);
    };
    if endpoint.ifindex != ifindex || endpoint.flags & ENDPOINT_UNLOCKED == 0 {
        return Err(DropReason::Locked);
    }
    if tables.killed(slot) == ifindex {
        return Err(DropReason::EndpointGone);
    }
    Ok(endpoint)
}

/// The endpoint of a slot, if packets may pass it.
#[inline(always)]
fn unlocked_slot<A, T: Tables<A>>(tables: &T, slot: u32) -> Option<&Endpoint> {
    let endpoint = tables.endpoint(slot)?;
    if endpoint.flags & ENDPOINT_UNLOCKED == 0 || tables.killed(slot) == endpoint.ifindex {
        return None;
    }
    Some(endpoint)
}

/// Asks the tables. Out of line, so that the kernel's verifier walks it fewer times, and with its
/// arguments packed into registers: `side` holds signature and default set, `what` the generation, the
/// protocol and the port in network byte order.
#[inline(never)]
fn answer<A, T: PeerTables<A>>(tables: &T, side: u64, peer: &A, what: u64) -> bool {
    let side = Side { signature: (side >> 32) as u32, default_set: side as u32 };
    let port = u16::from_be(what as u16);
    allows(tables, (what >> 32) as u32, side, peer, (what >> 16) as u8, port)
}

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
    let side = u64::from(side.signature) << 32 | u64::from(side.default_set);
    let what = u64::from(generation) << 32 | u64::from(protocol) << 16 | u64::from(port);
    answer(tables, side, peer, what)
}

#[inline(always)]
fn policy(endpoint: &Endpoint, generation: u32) -> &EndpointPolicy {
    &endpoint.policy[generation as usize % BANKS]
}

/// Whether the endpoint's rules let the peer open a flow to it.
#[inline(always)]
fn may_enter<A, T: Tables<A>>(
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
fn may_leave<A, T: Tables<A>>(
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

/// Whether the rules of an endpoint at the packet's source still allow the flow it belongs to.
#[inline(always)]
fn source_may<A: Address, T: Tables<A>>(
    tables: &T,
    generation: u32,
    endpoint: &Endpoint,
    p: &Parsed<A>,
    opened_by_source: bool,
) -> bool {
    if opened_by_source {
        may_leave(tables, generation, endpoint, &p.destination, p.protocol, p.destination_port)
    } else {
        may_enter(tables, generation, endpoint, &p.destination, p.protocol, p.source_port)
    }
}

/// Whether the rules of an endpoint at the packet's destination still allow the flow it belongs to.
#[inline(always)]
fn destination_may<A: Address, T: Tables<A>>(
    tables: &T,
    generation: u32,
    endpoint: &Endpoint,
    p: &Parsed<A>,
    opened_by_source: bool,
) -> bool {
    if opened_by_source {
        may_enter(tables, generation, endpoint, &p.source, p.protocol, p.destination_port)
    } else {
        may_leave(tables, generation, endpoint, &p.source, p.protocol, p.source_port)
    }
}

/// A flow is no longer allowed. One of TCP stays known, so that each of its packets is judged by its
/// opening tuple: forgotten, the next one would look like one in mid-stream after an eviction, and pass
/// where the rules let the other end open such a flow.
#[inline(always)]
fn revoke<A: Address, T: FlowTables<A>>(tables: &T, key: &FlowKey<A>, known: &Known<'_>, ip_protocol: u8) {
    if ip_protocol != protocol::TCP {
        forget(tables, key, known);
    }
}

/// Fills in the ports of a fragment, or remembers those of a first one.
#[inline(always)]
fn resolve_fragment<A: Address, T: Tables<A>>(
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

/// Whether the packet can be handed to the endpoint without the stack: a router would still forward
/// it, and it fits.
#[inline(always)]
fn fits<A, P: Packet>(packet: &P, p: &Parsed<A>, target: &Endpoint) -> bool {
    let gso = packet.gso_size();
    let size = if gso > 0 {
        p.transport - ETHERNET + p.transport_length + gso
    } else {
        packet.len().wrapping_sub(ETHERNET)
    };
    p.hop_limit > 1 && size <= target.mtu
}

/// A pod sends an ICMP error: tc ingress of its host interface.
///
/// Apart from [`from_pod`] for the sake of BPF's stack.
#[inline(always)]
pub fn error_from_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    endpoint: &Endpoint,
    p: &Parsed<A>,
) -> Verdict {
    if !p.source.owned_by(endpoint) {
        Verdict::egress(DropReason::SpoofedAddress, endpoint.ifindex)
    } else if p.destination.is_group() {
        Verdict::egress(DropReason::Multicast, endpoint.ifindex)
    } else if error_is_related(tables, packet, p, endpoint, state.generation) {
        Verdict::Pass { slot: SLOT_SETTLED }
    } else {
        Verdict::egress(DropReason::IcmpUnrelated, endpoint.ifindex)
    }
}

/// The stack delivers an ICMP error to a pod: tc egress of its host interface.
#[inline(always)]
pub fn error_to_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    hook: &Hook,
    endpoint: &Endpoint,
    p: &Parsed<A>,
) -> Verdict {
    let exempt = hook.mark == slot_of(hook.ifindex) || hook.made_here && hook.mark == SLOT_NONE;
    if exempt || error_is_related(tables, packet, p, endpoint, state.generation) {
        Verdict::Pass { slot: SLOT_NONE }
    } else {
        Verdict::ingress(DropReason::IcmpUnrelated, hook.ifindex)
    }
}

/// A pod sends anything but an ICMP error: tc ingress of its host interface.
#[inline(always)]
pub fn from_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    hook: &Hook,
    endpoint: &Endpoint,
    p: &mut Parsed<A>,
) -> Verdict {
    let ifindex = hook.ifindex;
    let me = slot_of(ifindex);
    let generation = state.generation;
    match p.kind {
        Kind::Router => return Verdict::egress(DropReason::NeighbourDiscovery, ifindex),
        Kind::Neighbour => {
            return if A::neighbour_allowed(packet, p, endpoint) {
                Verdict::Pass { slot: SLOT_SETTLED }
            } else {
                Verdict::egress(DropReason::NeighbourDiscovery, ifindex)
            };
        }
        _ => {}
    }
    if !p.source.owned_by(endpoint) {
        return Verdict::egress(DropReason::SpoofedAddress, ifindex);
    }
    if p.destination.is_group() {
        return Verdict::egress(DropReason::Multicast, ifindex);
    }
    if let Err(reason) = resolve_fragment(tables, ifindex, p) {
        return Verdict::egress(reason, ifindex);
    }
    let now = tables.now();
    let (key, source) = FlowKey::of(&p.source, &p.destination, p.source_port, p.destination_port, p.protocol);
    let address = tables.address(&p.destination);
    let local = match address {
        AddressInfo { kind: ADDRESS_ENDPOINT, slot } => slot,
        _ => SLOT_NONE,
    };
    if !p.is_bare_syn()
        && let Some(known) = find(tables, &key, [me, local], now)
        && let Some(verdict) =
            known_from_pod(tables, state, packet, endpoint, me, p, &key, source, &known, now)
    {
        return verdict;
    }
    // A flow that is not known.
    let mut opening = Opening {
        key: &key,
        owner: me,
        opener: source,
        source,
        flags: 0,
        tcp_flags: p.tcp_flags,
        generation,
        sender: (me, endpoint.generation),
        receiver: (SLOT_NONE, 0),
        now,
    };
    let verdict = match address {
        AddressInfo { kind: ADDRESS_ENDPOINT, slot } => {
            // A pod that talks to itself through the host.
            if slot == me {
                return Verdict::Pass { slot: me };
            }
            let Some(target) = tables.endpoint(slot) else {
                return Verdict::egress(DropReason::Internal, ifindex);
            };
            if unlocked_slot(tables, slot).is_none() {
                return Verdict::ingress(DropReason::Locked, target.ifindex);
            }
            let leaves =
                may_leave(tables, generation, endpoint, &p.destination, p.protocol, p.destination_port);
            let enters =
                leaves && may_enter(tables, generation, target, &p.source, p.protocol, p.destination_port);
            let fast =
                state.flags & STATE_FAST_PATH != 0 && endpoint.flags & target.flags & ENDPOINT_FAST_PATH != 0;
            let (opener, flags) = if enters {
                (source, if fast { FLOW_DIRECT } else { 0 })
            } else if p.is_mid_stream()
                && may_enter(tables, generation, endpoint, &p.destination, p.protocol, p.source_port)
                && may_leave(tables, generation, target, &p.source, p.protocol, p.source_port)
            {
                (1 - source, 0)
            } else if leaves {
                return Verdict::ingress(DropReason::IngressDenied, target.ifindex);
            } else {
                return Verdict::egress(DropReason::EgressDenied, ifindex);
            };
            let direct = flags & FLOW_DIRECT != 0 && fits(packet, p, target);
            opening.owner = if opener == source { me } else { slot };
            opening.opener = opener;
            opening.flags = flags;
            opening.receiver = (slot, target.generation);
            if direct { Verdict::Redirect { slot } } else { Verdict::Pass { slot: me } }
        }
        AddressInfo { kind: ADDRESS_OWN | ADDRESS_SERVICE, .. } => {
            if overlay_forbidden(state, p) && address.kind == ADDRESS_OWN {
                return Verdict::egress(DropReason::OverlayForbidden, ifindex);
            }
            opening.flags = FLOW_BEFORE_NAT;
            Verdict::Pass { slot: me }
        }
        other => {
            if overlay_forbidden(state, p) && other.kind == ADDRESS_NODE {
                return Verdict::egress(DropReason::OverlayForbidden, ifindex);
            }
            let opener =
                if may_leave(tables, generation, endpoint, &p.destination, p.protocol, p.destination_port) {
                    source
                } else if p.is_mid_stream()
                    && may_enter(tables, generation, endpoint, &p.destination, p.protocol, p.source_port)
                {
                    1 - source
                } else {
                    return Verdict::egress(DropReason::EgressDenied, ifindex);
                };
            opening.opener = opener;
            Verdict::Pass { slot: if opener == source { me } else { SLOT_SETTLED } }
        }
    };
    record(tables, &opening);
    verdict
}

/// A packet of the pod whose flow is known; `None` where the flow turns out to be somebody else's.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined into its one caller; a struct would cost BPF stack")]
fn known_from_pod<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    state: &State,
    packet: &P,
    endpoint: &Endpoint,
    me: u32,
    p: &Parsed<A>,
    key: &FlowKey<A>,
    source: usize,
    known: &Known<'_>,
    now: u32,
) -> Option<Verdict> {
    let generation = state.generation;
    let flow = known.flow;
    let opened_by_me = flow.opener() == source;
    if flow.endpoint[source].get() != endpoint.generation {
        return None;
    }
    let deferred = flow.has(FLOW_BEFORE_NAT);
    if deferred && !opened_by_me {
        return None;
    }
    let destination = 1 - source;
    let slot = flow.slot(destination);
    let stale = flow.judged[source].get() != generation;
    if stale
        && !deferred
        && !flow.has(FLOW_EXEMPT)
        && !source_may(tables, generation, endpoint, p, opened_by_me)
    {
        revoke(tables, key, known, p.protocol);
        return Some(if opened_by_me {
            Verdict::egress(DropReason::FlowRevoked, endpoint.ifindex)
        } else {
            Verdict::ingress(DropReason::FlowRevoked, endpoint.ifindex)
        });
    }
    let mut verdict = Verdict::Pass { slot: if opened_by_me { me } else { SLOT_SETTLED } };
    if flow.endpoint[destination].get() != 0 {
        let target = tables.endpoint(slot)?;
        if flow.endpoint[destination].get() != target.generation {
            return None;
        }
        if unlocked_slot(tables, slot).is_none() {
            return Some(Verdict::ingress(DropReason::Locked, target.ifindex));
        }
        if flow.judged[destination].get() != generation {
            // An address that is not the endpoint's own was translated: judged where it leaves the stack.
            if !destination_may(tables, generation, target, p, opened_by_me) {
                revoke(tables, key, known, p.protocol);
                return Some(if opened_by_me {
                    Verdict::ingress(DropReason::FlowRevoked, target.ifindex)
                } else {
                    Verdict::egress(DropReason::FlowRevoked, target.ifindex)
                });
            }
            flow.judged[destination].set(generation);
        }
        if flow.has(FLOW_DIRECT) && state.flags & STATE_FAST_PATH != 0 && fits(packet, p, target) {
            verdict = Verdict::Redirect { slot };
        }
    }
    if stale {
        flow.judged[source].set(generation);
    }
    flow.note(now, p.tcp_flags, !opened_by_me);
    if !opened_by_me {
        promote(tables, key, known);
    }
    Some(verdict)
}

/// Whether a pod's packet is for the overlay's port.
#[inline(always)]
fn overlay_forbidden<A>(state: &State, p: &Parsed<A>) -> bool {
    state.overlay_port != 0 && p.protocol == protocol::UDP && p.destination_port == state.overlay_port
}

/// Whether an ICMP error is about a flow of the endpoint, which its rules still allow.
#[inline(always)]
fn error_is_related<A: Family, P: Packet, T: Tables<A>>(
    tables: &T,
    packet: &P,
    p: &Parsed<A>,
    endpoint: &Endpoint,
    generation: u32,
) -> bool {
    let slot = slot_of(endpoint.ifindex);
    let Some(inner) = A::inner(packet, p.transport + 8) else {
        return false;
    };
    let (key, source) = FlowKey::of(
        &inner.source,
        &inner.destination,
        inner.source_port,
        inner.destination_port,
        inner.protocol,
    );
    let now = tables.now();
    // A flow that is pending lies with its opener, which may be a local endpoint at the other end.
    let own_end = if inner.source.owned_by(endpoint) {
        source
    } else if inner.destination.owned_by(endpoint) {
        1 - source
    } else {
        return false;
    };
    let other = if own_end == source { &inner.destination } else { &inner.source };
    let other = match tables.address(other) {
        AddressInfo { kind: ADDRESS_ENDPOINT, slot } => slot,
        _ => SLOT_NONE,
    };
    let Some(known) = find(tables, &key, [slot, other], now) else {
        return false;
    };
    known.flow.endpoint[own_end].get() == endpoint.generation
        && (known.flow.judged[own_end].get() == generation
            || known.flow.has(FLOW_BEFORE_NAT | FLOW_EXEMPT)
            || {
                // The opening tuple's destination port, and the endpoint's peer.
                let port =
                    if known.flow.opener() == source { inner.destination_port } else { inner.source_port };
                let peer = if own_end == source { &inner.destination } else { &inner.source };
                if known.flow.opener() == own_end {
                    may_leave(tables, generation, endpoint, peer, inner.protocol, port)
                } else {
                    may_enter(tables, generation, endpoint, peer, inner.protocol, port)
                }
            })
}

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
    if hook.mark == me {
        return pass;
    }
    let exempt = hook.made_here && hook.mark == SLOT_NONE;
    if exempt && (p.kind != Kind::Flow || p.destination.is_group()) {
        return pass;
    }
    if matches!(p.kind, Kind::Router | Kind::Neighbour) {
        return Verdict::ingress(DropReason::NeighbourDiscovery, ifindex);
    }
    if p.destination.is_group() {
        return Verdict::ingress(DropReason::Multicast, ifindex);
    }
    if let Err(reason) = resolve_fragment(tables, ifindex, p) {
        return Verdict::ingress(reason, ifindex);
    }
    // Whoever sent it, if that is a local pod that owes its egress verdict on this tuple.
    let owing = if hook.mark == SLOT_NONE || hook.mark == SLOT_SETTLED { SLOT_NONE } else { hook.mark };
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
    let local = match tables.address(&p.source) {
        AddressInfo { kind: ADDRESS_ENDPOINT, slot } if owing == SLOT_NONE => slot,
        _ => owing,
    };
    if !p.is_bare_syn()
        && let Some(known) = find(tables, &key, [me, local], now)
        && let Some(verdict) =
            known_to_pod(tables, generation, endpoint, sender, p, &key, source, &known, now)
    {
        return verdict;
    }
    let destination = 1 - source;
    let mut opening = Opening {
        key: &key,
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
            opening.sender = (owing, sender.generation);
            if opener == source {
                opening.owner = owing;
            }
        }
        opening.opener = opener;
    }
    record(tables, &opening);
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
                if !source_may(tables, generation, sender, p, opened_by_source) {
                    revoke(tables, key, known, p.protocol);
                    return Some(if opened_by_source {
                        Verdict::egress(DropReason::FlowRevoked, sender.ifindex)
                    } else {
                        Verdict::ingress(DropReason::FlowRevoked, sender.ifindex)
                    });
                }
                flow.judged[source].set(generation);
            }
        }
        if flow.judged[destination].get() != generation {
            if !flow.has(FLOW_EXEMPT) && !destination_may(tables, generation, endpoint, p, opened_by_source) {
                revoke(tables, key, known, p.protocol);
                return Some(if opened_by_source {
                    Verdict::ingress(DropReason::FlowRevoked, endpoint.ifindex)
                } else {
                    Verdict::egress(DropReason::FlowRevoked, endpoint.ifindex)
                });
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
    if let Err(reason) = resolve_fragment(tables, hook.ifindex, p) {
        return Verdict::egress(reason, sender.ifindex);
    }
    let generation = state.generation;
    let now = tables.now();
    let (key, source) = FlowKey::of(&p.source, &p.destination, p.source_port, p.destination_port, p.protocol);
    if !p.is_bare_syn()
        && let Some(known) = find(tables, &key, [hook.mark, SLOT_NONE], now)
    {
        let flow = known.flow;
        if flow.endpoint[source].get() == sender.generation && !flow.has(FLOW_BEFORE_NAT) {
            let opened_by_source = flow.opener() == source;
            if flow.judged[source].get() != generation {
                if !source_may(tables, generation, sender, p, opened_by_source) {
                    revoke(tables, &key, &known, p.protocol);
                    return Verdict::egress(DropReason::FlowRevoked, sender.ifindex);
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
        key: &key,
        owner: hook.mark,
        opener,
        source,
        flags: 0,
        tcp_flags: p.tcp_flags,
        generation,
        sender: (hook.mark, sender.generation),
        receiver: (SLOT_NONE, 0),
        now,
    };
    record(tables, &opening);
    pass
}

/// A packet reaches the node by the uplink: nobody outside has this node's addresses.
#[inline(always)]
pub fn from_uplink<A: Family, T: Tables<A>>(tables: &T, hook: &Hook, source: &A) -> Verdict {
    let forged = source.is_loopback()
        || matches!(
            tables.address(source),
            AddressInfo { kind: ADDRESS_ENDPOINT | ADDRESS_OWN | ADDRESS_SERVICE, .. }
        );
    if forged {
        Verdict::ingress(DropReason::ForgedSource, hook.ifindex)
    } else {
        Verdict::Pass { slot: SLOT_SETTLED }
    }
}
