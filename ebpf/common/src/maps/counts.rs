//! What is counted and reported.

/// Key of map `drops`, a per-CPU hash of packet counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DropKey {
    /// Interface of the endpoint concerned, which for a same-node pair may be the other pod's.
    pub ifindex: u32,
    /// [`DIRECTION_INGRESS`] or [`DIRECTION_EGRESS`], from the endpoint's point of view.
    pub direction: u16,
    /// [`crate::reason::DropReason`].
    pub reason: u16,
}

/// What reaches the pod.
pub const DIRECTION_INGRESS: u16 = 0;
/// What leaves the pod.
pub const DIRECTION_EGRESS: u16 = 1;

/// Value of map `passed`, a per-CPU array with element `slot * 2 + direction`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Packets (after segmentation offload: one for what the stack handles as one).
    pub packets: u64,
    /// Their bytes, link layer included.
    pub bytes: u64,
}

/// Record of ring buffer `events`: one dropped packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropEvent {
    /// Source address; IPv4 in the first word.
    pub source: [u32; 4],
    /// Destination address; IPv4 in the first word.
    pub destination: [u32; 4],
    /// As in [`DropKey`].
    pub ifindex: u32,
    /// As in [`DropKey`].
    pub direction: u16,
    /// As in [`DropKey`].
    pub reason: u16,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// 4, 6, or 0 where the packet is neither or could not be parsed.
    pub family: u8,
    /// EtherType in network byte order.
    pub ether_type: u16,
    /// Events of this endpoint that were not written since the last one that was.
    pub lost: u32,
    /// Policy generation in force.
    pub generation: u32,
}

/// Value of map `event_limits`, an array of [`SLOTS`]: keeps one endpoint from filling `events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventLimit {
    /// Tick that the count belongs to.
    pub tick: u32,
    /// Events written in that tick.
    pub written: u32,
    /// Events not written since the last that was, as far as CPUs that drop at the same time do not
    /// overwrite each other's; [`EventLosses`] are exact.
    pub lost: u32,
    /// Zero.
    pub reserved: u32,
}

/// Value of map `event_losses`, a per-CPU array of [`SLOTS`]. Each drop is an event or counted here, once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventLosses {
    /// Events not written because of [`EVENTS_PER_TICK`].
    pub limited: u64,
    /// Events not written because `events` was full.
    pub full: u64,
}

/// Events that an endpoint may write per tick (1.07 s).
pub const EVENTS_PER_TICK: u32 = 100;
