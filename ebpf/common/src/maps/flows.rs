//! Of flows, and of datagrams in fragments.

use core::cell::Cell;

/// Key of a flow, the same for both directions: the end whose (address, port) is lower comes first,
/// compared as the words lie in memory. `A` is `u32` or `[u32; 4]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// Address of the lower end.
    pub low: A,
    /// Address of the higher end.
    pub high: A,
    /// Port of the lower end; the identifier for ICMP echo; 0 for protocols without ports.
    pub low_port: u16,
    /// Port of the higher end.
    pub high_port: u16,
    /// IP protocol.
    pub protocol: u32,
}

/// What is known of a flow: value of maps `flows4` and `flows6` (LRU hashes), part of [`Pending`].
///
/// The pairs are by end of the [`FlowKey`], lower end first.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Generation of the local endpoint that stands at this end, 0 for none.
    pub endpoint: [Cell<u32>; 2],
    /// Policy generation at which that endpoint's rules last allowed the opening tuple. Where there is no local endpoint,
    /// see [`Flow::behind`].
    pub judged: [Cell<u32>; 2],
    /// Time of the last packet in ticks of 2^30 ns.
    pub seen: Cell<u32>,
    /// Slot of the local endpoint at the lower end in bits 0 to 15, at the higher end in 16 to 31. Where there is no local
    /// endpoint, see [`Flow::behind`].
    pub slots: Cell<u32>,
    /// [`FLOW_OPENED_HIGH`] and others.
    pub flags: Cell<u32>,
    /// Stands for what a later version may append.
    #[cfg(feature = "next-layout")]
    pub appended: Cell<u32>,
}

/// What a [`Flow`] begins with in every layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastingFlow {
    /// See [`Flow::endpoint`].
    pub endpoint: [u32; 2],
    /// See [`Flow::judged`].
    pub judged: [u32; 2],
    /// See [`Flow::seen`].
    pub seen: u32,
    /// See [`Flow::slots`].
    pub slots: u32,
    /// See [`Flow::flags`].
    pub flags: u32,
}

/// [`Flow::flags`]: the higher end opened the flow.
pub const FLOW_OPENED_HIGH: u32 = 1;
/// [`Flow::flags`]: both ends are pods, untranslated, and packets skip the host's stack.
pub const FLOW_DIRECT: u32 = 2;
/// [`Flow::flags`]: a packet of the other direction has been seen.
pub const FLOW_ANSWERED: u32 = 4;
/// [`Flow::flags`]: FIN seen.
pub const FLOW_FIN: u32 = 8;
/// [`Flow::flags`]: RST seen.
pub const FLOW_RST: u32 = 16;
/// [`Flow::flags`]: towards a Service or the node, before translation; entitles only its exact
/// reverse, and only where that comes out of the host's stack.
pub const FLOW_BEFORE_NAT: u32 = 32;
/// [`Flow::flags`]: with the node itself; always allowed.
pub const FLOW_EXEMPT: u32 = 64;
/// [`Flow::flags`]: seen as it left the host's stack, where a translation may have made this tuple of
/// another: a pre-NAT entry may let its answers in.
pub const FLOW_AFTER_NAT: u32 = 128;
/// [`Flow::flags`]: one of [`Unanswered`].
pub const FLOW_COUNTED: u32 = 256;

/// Value of map `unanswered`, an array of [`SLOTS`]: an endpoint's flows that lie among the answered ones though nobody has
/// answered them. See docs/decisions/0035.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Unanswered {
    /// How many there are of them.
    pub count: Cell<u32>,
    /// Since when they are counted, in ticks of 2^30 ns.
    pub since: Cell<u32>,
}

/// How many flows of an endpoint lie among the answered ones that nobody has answered; and as many again that are older
/// than [`crate::flow::lifetime::UNANSWERED`].
pub const UNANSWERED_AT_ONCE: u32 = 64;

/// Key of maps `pending4` and `pending6`, hashes: flows that nobody has answered beyond [`UNANSWERED_AT_ONCE`], a fixed
/// number of places for each endpoint, so that a flood from one pod evicts only its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PendingKey {
    /// Slot of the local opener, or of the receiver where the opener is not local. [`SLOT_SETTLED`]
    /// for flows of pods under an address of the node, see docs/decisions/0008.
    pub slot: u32,
    /// Place, by hash of the flow's key.
    pub place: u32,
}

/// Places for pending flows of one endpoint.
pub const PENDING_PLACES: u32 = 1024;

/// Value of maps `pending4` and `pending6`.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending<A> {
    /// The flow's key.
    pub key: FlowKey<A>,
    /// The flow.
    pub flow: Flow,
}

/// What a [`Pending`] begins with in every layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastingPending<A> {
    /// The flow's key.
    pub key: FlowKey<A>,
    /// The flow.
    pub flow: LastingFlow,
}

/// Key of maps `fragments4` and `fragments6` (LRU hashes): a datagram whose first fragment has passed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Identification.
    pub id: u32,
    /// IP protocol; 0 for IPv6, where it does not name the datagram (RFC 8200, section 4.5).
    pub protocol: u32,
    /// Interface at which it was seen.
    pub ifindex: u32,
}

/// Value of maps `fragments4` and `fragments6`: what later fragments do not say of themselves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstFragment {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Transport protocol, which for IPv6 may stand behind further extension headers.
    pub protocol: u32,
}
