//! The header that a tunnel puts before a pod's packet: VXLAN (RFC 7348) over UDP and IPv4.

use crate::address::Address;
use crate::judge::protocol;
use crate::maps::Tunnel;
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
