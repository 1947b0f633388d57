//! Dropped packets, one by one: the reader of the ring buffer that the programs write.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::maps::{Map as AyaMap, MapData, RingBuf};
use fairlead_common::maps::{self, DIRECTION_INGRESS, DropEvent, SLOTS};
use fairlead_common::reason::DropReason;
use fairlead_policy::oracle::Direction;

use crate::map::Map;
use crate::{Error, sys};

/// One dropped packet. Numbers are in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DropRecord {
    /// Interface of the endpoint concerned.
    pub ifindex: u32,
    /// From the endpoint's point of view.
    pub direction: Direction,
    /// Why.
    pub reason: DropReason,
    /// Source and destination address; `None` where the packet is neither IPv4 nor IPv6, or was dropped
    /// before it was parsed.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// IP protocol.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port; 0 where the protocol has none.
    pub destination_port: u16,
    /// EtherType.
    pub ether_type: u16,
    /// Drops of the same interface since the event before that have no event, about.
    pub missed: u32,
    /// Policy generation by which it was judged.
    pub generation: u32,
}

/// Drops without an event since the maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Their endpoint had used up its allowance.
    pub limited: u64,
    /// The ring buffer was full.
    pub full: u64,
}

/// Reads dropped packets. What an agent before did not read is read, too.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Events {
    pub(crate) fn new(ring: AyaMap) -> Result<Self, Error> {
        Ok(Self { ring: RingBuf::try_from(ring)? })
    }

    /// The next dropped packet, if there is one.
    pub fn take(&mut self) -> Option<DropRecord> {
        loop {
            let event = sys::read_plain::<DropEvent>(&self.ring.next()?);
            // A reason of a later version says nothing to this one.
            let Some((event, reason)) = event.and_then(|e| Some((e, DropReason::from_code(e.reason)?)))
            else {
                continue;
            };
            return Some(record(&event, reason));
        }
    }
}

/// Counts drops that have no event.
pub struct EventLosses {
    map: Map<u32, maps::EventLosses>,
    cpus: usize,
}

impl EventLosses {
    pub(crate) fn new(map: Map<u32, maps::EventLosses>, cpus: usize) -> Self {
        Self { map, cpus }
    }

    /// How many there are, since the maps were made.
    pub fn read(&self) -> Result<Losses, Error> {
        let mut losses = Losses::default();
        for slot in 0..SLOTS {
            let of_cpus = self.map.get_per_cpu(&slot, maps::EventLosses::default(), self.cpus)?;
            for lost in of_cpus.unwrap_or_default() {
                losses.limited += lost.limited;
                losses.full += lost.full;
            }
        }
        Ok(losses)
    }
}

fn record(event: &DropEvent, reason: DropReason) -> DropRecord {
    let v4 = |words: [u32; 4]| IpAddr::V4(Ipv4Addr::from(words[0].to_ne_bytes()));
    let v6 = |words: [u32; 4]| {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    DropRecord {
        ifindex: event.ifindex,
        direction: if event.direction == DIRECTION_INGRESS { Direction::Ingress } else { Direction::Egress },
        reason,
        addresses: match event.family {
            4 => Some((v4(event.source), v4(event.destination))),
            6 => Some((v6(event.source), v6(event.destination))),
            _ => None,
        },
        protocol: event.protocol,
        source_port: u16::from_be(event.source_port),
        destination_port: u16::from_be(event.destination_port),
        ether_type: u16::from_be(event.ether_type),
        missed: event.lost,
        generation: event.generation,
    }
}
