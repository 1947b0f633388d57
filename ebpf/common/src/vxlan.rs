//! The header that a tunnel puts before a pod's packet: VXLAN (RFC 7348) over UDP and IPv4.

use crate::address::Address;
use crate::judge::protocol;
use crate::maps::{QUEUED, Tunnel};
use crate::packet::{ETHER_IPV4, Parsed};

/// Bytes that are put between the frame's Ethernet header and the packet: IPv4, UDP, VXLAN, inner Ethernet.
pub const HEADER: u32 = 20 + 8 + 8 + 14;
/// Length of the inner Ethernet header in bytes.
pub const INNER_ETHERNET: u32 = 14;
/// Where frames in a tunnel go to. No device has it: whoever they reach takes them.
pub const RECEIVER_MAC: [u8; 6] = [0x0e, 0x46, 0x4c, 0, 0, 1];
/// Where frames come from that a program put into a tunnel. No device has it.
pub const SENDER_MAC: [u8; 6] = [0x0e, 0x46, 0x4c, 0, 0, 2];

/// Linux's `IPDEFTTL`.
const HOP_LIMIT: u16 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
/// The ECN bits of a type of service (RFC 3168).
const ECN: u8 = 3;
/// Congestion experienced.
const CE: u8 = 3;
const ECT0: u8 = 2;

/// The packet that goes into a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// EtherType in host byte order.
    pub ether_type: u16,
    /// Type of service, or traffic class.
    pub service: u8,
    /// Length in bytes, IP header included.
    pub length: u32,
    /// What tells its flow from others; see [`entropy`].
    pub entropy: u16,
}

/// The overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// UDP port in network byte order.
    pub port: u16,
    /// Network identifier.
    pub id: u32,
}

/// A number that is the same for all packets of a flow in one direction, so that the fabric may spread flows.
#[inline(always)]
pub fn entropy<A: Address>(p: &Parsed<A>) -> u16 {
    let ports = u32::from(p.source_port) << 16 | u32::from(p.destination_port);
    let [s0, s1, s2, s3] = p.source.words();
    let [d0, d1, d2, d3] = p.destination.words();
    let mixed = ports ^ s0 ^ s1 ^ s2 ^ s3 ^ d0 ^ d1 ^ d2 ^ d3;
    // Knuth's multiplicative hash: the upper bits depend on all others.
    (mixed.wrapping_mul(0x9e37_79b1) >> 16) as u16
}

/// Two halves of a word, in host byte order, as they lie in memory.
#[inline(always)]
const fn pair(first: u16, second: u16) -> u32 {
    ((first as u32) << 16 | second as u32).to_be()
}

/// From the EtherType of the frame to that of the inner frame, as words in memory; `None` where the packet is too
/// long. The outer packet bears no DSCP of a pod's choice, of ECN what RFC 6040 (section 4.1, normal mode) says, no
/// UDP checksum, and may not be fragmented: the far end is on the link.
#[inline(always)]
pub fn header(tunnel: &Tunnel, overlay: Overlay, inner: Inner) -> Option<[u32; 13]> {
    let length = inner.length + HEADER;
    if length > 0xffff {
        return None;
    }
    let length = length as u16;
    let ecn = if inner.service & ECN == CE { ECT0 } else { inner.service & ECN };
    let version = 0x4500 | u16::from(ecn);
    let hops = HOP_LIMIT << 8 | protocol::UDP as u16;
    let (source, destination) = (u32::from_be(tunnel.source), u32::from_be(tunnel.far.address[0]));
    let (from_high, from_low) = ((source >> 16) as u16, source as u16);
    let (to_high, to_low) = ((destination >> 16) as u16, destination as u16);
    let sum = [version, length, DONT_FRAGMENT, hops, from_high, from_low, to_high, to_low];
    let sum = sum.into_iter().fold(0_u32, |sum, half| sum + u32::from(half));
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    // The range that RFC 7348 (section 5) recommends.
    let port = 0xc000 | inner.entropy >> 2;
    let id = overlay.id << 8;
    let [r0, r1, r2, r3, r4, r5] = RECEIVER_MAC;
    let [s0, s1, s2, s3, s4, s5] = SENDER_MAC;
    Some([
        pair(ETHER_IPV4, version),
        pair(length, 0),
        pair(DONT_FRAGMENT, hops),
        pair(checksum, from_high),
        pair(from_low, to_high),
        pair(to_low, port),
        pair(u16::from_be(overlay.port), length - 20),
        // No checksum; the flag that says that there is an identifier.
        pair(0, 0x0800),
        pair(0, (id >> 16) as u16),
        pair(id as u16, u16::from_be_bytes([r0, r1])),
        u32::from_ne_bytes([r2, r3, r4, r5]),
        u32::from_ne_bytes([s0, s1, s2, s3]),
        pair(u16::from_be_bytes([s4, s5]), inner.ether_type),
    ])
}

/// Who sent a tunnel's packet to whom, and what is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// IPv4 address of the sending node, as it lies in memory.
    pub source: u32,
    /// Of the receiving one.
    pub destination: u32,
    /// Source port in host byte order: the same for all packets of a flow.
    pub port: u16,
    /// EtherType of the inner frame in host byte order.
    pub ether_type: u16,
}

/// Element of map `queued` for a flow of a tunnel; flows may share one.
#[inline(always)]
pub fn queued_at(outer: &Outer) -> u32 {
    (outer.source ^ u32::from(outer.port)).wrapping_mul(0x9e37_79b1) >> (32 - QUEUED.trailing_zeros())
}

/// Takes a [`header`] apart, whoever put it on, of a packet of `length` bytes, outer IP header included. `None` where it is
/// no packet of this overlay, and where there is more to do than to take it off: options, fragments, padding, a UDP checksum,
/// congestion that the packet inside must be told of (RFC 6040, section 4.2), flags that RFC 7348 does not know.
#[inline(always)]
pub fn opened(words: [u32; 13], length: u32, overlay: Overlay) -> Option<Outer> {
    let [w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, _, _, w12] = words;
    let be = u32::from_be;
    let (w0, w1, w2, w3, w4, w5, w6) = (be(w0), be(w1), be(w2), be(w3), be(w4), be(w5), be(w6));
    let version = w0 & 0xffff;
    let (source, destination) = (w3 << 16 | w4 >> 16, w4 << 16 | w5 >> 16);
    let sum = version + (w1 >> 16) + (w1 & 0xffff) + (w2 >> 16) + (w2 & 0xffff) + (w3 >> 16);
    let sum = sum + (source >> 16) + (source & 0xffff) + (destination >> 16) + (destination & 0xffff);
    let sum = (sum & 0xffff) + (sum >> 16);
    let outer = version >> 8 == 0x45
        && version as u8 & ECN != CE
        && w1 >> 16 == length
        // Whether it might have been fragmented is all one.
        && w2 >> 16 & !u32::from(DONT_FRAGMENT) == 0
        && w2 as u8 == protocol::UDP
        && (sum & 0xffff) + (sum >> 16) == 0xffff
        && w6 >> 16 == u32::from(u16::from_be(overlay.port))
        && w6 & 0xffff == length.wrapping_sub(20);
    let tunnel =
        w7 == pair(0, 0x0800) && be(w8) == overlay.id >> 8 && be(w9) >> 16 == (overlay.id & 0xff) << 8;
    if !outer || !tunnel || length < HEADER {
        return None;
    }
    Some(Outer {
        source: source.to_be(),
        destination: destination.to_be(),
        port: w5 as u16,
        ether_type: be(w12) as u16,
    })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::maps::NextHop;

    fn bytes(words: [u32; 13]) -> Vec<u8> {
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    fn tunnel() -> Tunnel {
        let far = NextHop::of([192, 0, 2, 130].into());
        Tunnel { ifindex: 3, source: u32::from_ne_bytes([198, 51, 100, 7]), far }
    }

    const OVERLAY: Overlay = Overlay { port: 8472_u16.to_be(), id: 0x01_4c46 };

    #[test]
    fn every_byte_of_the_header() {
        let inner = Inner { ether_type: 0x86dd, service: 0xb8 | 1, length: 1000, entropy: 0xffff };
        let header = bytes(header(&tunnel(), OVERLAY, inner).unwrap());
        let wanted: [&[u8]; 7] = [
            &[0x08, 0x00],
            // Version and length, ECT(1) and no DSCP, 1050 bytes, identification 0, DF, 64 hops, UDP, checksum below.
            &[0x45, 0x01, 0x04, 0x1a, 0, 0, 0x40, 0, 64, 17, header[12], header[13]],
            &[198, 51, 100, 7, 192, 0, 2, 130],
            // Ports 65535 and 8472, 1030 bytes, no checksum.
            &[0xff, 0xff, 0x21, 0x18, 0x04, 0x06, 0, 0],
            &[0x08, 0, 0, 0, 0x01, 0x4c, 0x46, 0],
            &[0x0e, 0x46, 0x4c, 0, 0, 1, 0x0e, 0x46, 0x4c, 0, 0, 2],
            &[0x86, 0xdd],
        ];
        assert_eq!(header, wanted.concat());
        assert_eq!(header.len() as u32, HEADER + 2);
        let halves = header[2..22].chunks(2).map(|h| u32::from(u16::from_be_bytes([h[0], h[1]])));
        let sum = halves.sum::<u32>();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    #[test]
    fn congestion_that_the_packet_met_is_not_said_to_be_the_tunnels() {
        for (service, ecn) in [(0xfc, 0), (0xfd, 1), (0xfe, 2), (0xff, 2)] {
            let inner = Inner { ether_type: 0x0800, service, length: 20, entropy: 0 };
            assert_eq!(bytes(header(&tunnel(), OVERLAY, inner).unwrap())[3], ecn, "{service:x}");
        }
    }

    #[test]
    fn what_does_not_fit_into_an_ip_packet_has_no_header() {
        let inner = |length| Inner { ether_type: 0x0800, service: 0, length, entropy: 0 };
        assert!(header(&tunnel(), OVERLAY, inner(65_485)).is_some());
        assert_eq!(header(&tunnel(), OVERLAY, inner(65_486)), None);
    }

    fn words(bytes: &[u8]) -> [u32; 13] {
        let mut words = [0; 13];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        words
    }

    #[test]
    fn what_was_put_on_is_opened_again() {
        for service in [0, 1, 2, 3] {
            let inner = Inner { ether_type: 0x86dd, service, length: 1000, entropy: 0xfffc };
            let words = header(&tunnel(), OVERLAY, inner).unwrap();
            let outer = Outer {
                source: tunnel().source,
                destination: tunnel().far.address[0],
                port: 0xffff,
                ether_type: 0x86dd,
            };
            assert_eq!(opened(words, 1050, OVERLAY), Some(outer));
        }
    }

    #[test]
    fn each_flow_has_an_element_and_few_share_one() {
        let mut seen = std::collections::BTreeSet::new();
        for port in 0xc000..0xc400 {
            let outer = Outer { source: tunnel().source, destination: 0, port, ether_type: 0 };
            let at = queued_at(&outer);
            assert!(at < QUEUED);
            seen.insert(at);
        }
        assert!(seen.len() > 900, "{}", seen.len());
    }

    #[test]
    fn whatever_else_it_is_it_is_not_opened() {
        let inner = Inner { ether_type: 0x0800, service: 0, length: 1000, entropy: 7 };
        let whole = header(&tunnel(), OVERLAY, inner).unwrap();
        assert!(opened(whole, 1050, OVERLAY).is_some());
        assert_eq!(opened(whole, 1049, OVERLAY), None);
        assert_eq!(opened(whole, 1051, OVERLAY), None);
        assert_eq!(opened(whole, 1050, Overlay { port: 4789_u16.to_be(), ..OVERLAY }), None);
        assert_eq!(opened(whole, 1050, Overlay { id: OVERLAY.id ^ 1, ..OVERLAY }), None);
        assert_eq!(opened(whole, 1050, Overlay { id: OVERLAY.id ^ 1 << 23, ..OVERLAY }), None);
        // Each bit of the outer headers, but for the source port, which tells flows apart and nothing else.
        for at in (2..38).filter(|at| !(22..24).contains(at)) {
            for bit in 0..8 {
                let mut bytes = bytes(whole);
                bytes[at] ^= 1 << bit;
                assert_eq!(opened(words(&bytes), 1050, OVERLAY), None, "byte {at}, bit {bit}");
            }
        }
    }

    /// With a checksum that fits, so that nothing but the field itself refuses it.
    #[test]
    fn whoever_must_do_more_than_take_it_off_gets_it() {
        let inner = Inner { ether_type: 0x0800, service: 0, length: 1000, entropy: 7 };
        let with = |at: usize, value: u8| {
            let mut bytes = bytes(header(&tunnel(), OVERLAY, inner).unwrap());
            bytes[at] = value;
            bytes[12..14].fill(0);
            let halves = bytes[2..22].chunks(2).map(|h| u32::from(u16::from_be_bytes([h[0], h[1]])));
            let sum = halves.sum::<u32>();
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            bytes[12..14].copy_from_slice(&sum.to_be_bytes());
            opened(words(&bytes), 1050, OVERLAY).is_some()
        };
        // Hops, identification, may be fragmented, DSCP, ECT.
        for (at, value) in [(10, 1), (6, 9), (8, 0), (3, 0xb8), (3, 1), (3, 2)] {
            assert!(with(at, value), "byte {at}: {value}");
        }
        // Options, congestion, more fragments, a later fragment, the reserved bit, TCP.
        for (at, value) in [(2, 0x46), (3, 3), (8, 0x20), (9, 1), (8, 0x80), (11, 6)] {
            assert!(!with(at, value), "byte {at}: {value}");
        }
    }

    #[test]
    fn flows_are_told_apart_by_each_part_of_their_tuple() {
        let with = |source: [u8; 4], destination: [u8; 4], source_port: u16, destination_port: u16| {
            let mut p = Parsed::<u32>::empty();
            p.source = u32::from_ne_bytes(source);
            p.destination = u32::from_ne_bytes(destination);
            (p.source_port, p.destination_port) = (source_port.to_be(), destination_port.to_be());
            entropy(&p) >> 2
        };
        let first = with([10, 0, 0, 1], [10, 0, 1, 1], 40_000, 80);
        assert_eq!(first, with([10, 0, 0, 1], [10, 0, 1, 1], 40_000, 80));
        assert_ne!(first, with([10, 0, 0, 2], [10, 0, 1, 1], 40_000, 80));
        assert_ne!(first, with([10, 0, 0, 1], [10, 0, 1, 2], 40_000, 80));
        assert_ne!(first, with([10, 0, 0, 1], [10, 0, 1, 1], 40_001, 80));
        assert_ne!(first, with([10, 0, 0, 1], [10, 0, 1, 1], 40_000, 81));
    }
}
