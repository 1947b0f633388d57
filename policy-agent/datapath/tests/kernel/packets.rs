//! Packets for the tests, byte by byte, so that hostile ones can be made too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lab::Pod;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMP6: u8 = 58;

pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
pub(crate) const SYN_ACK: u8 = SYN | ACK;
pub(crate) const FIN_ACK: u8 = 1 | ACK;

/// An Ethernet frame from a pod to its gateway.
pub(crate) fn from(pod: &Pod, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(pod.identity.pod_mac, pod.identity.host_mac, ether_type, payload)
}

/// An Ethernet frame from the host to a pod.
pub(crate) fn to(pod: &Pod, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(pod.identity.host_mac, pod.identity.pod_mac, ether_type, payload)
}

pub(crate) fn ethernet(source: [u8; 6], destination: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &ether_type.to_be_bytes(), payload].concat()
}

/// The frame for an IP packet.
pub(crate) fn framed(pod: &Pod, sends: bool, packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    if sends { from(pod, ether_type, packet) } else { to(pod, ether_type, packet) }
}

/// An IP packet of the addresses' family.
pub(crate) fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => ip4(s, d, protocol, &[], 0x4000, payload),
        (IpAddr::V6(s), IpAddr::V6(d)) => ip6(s, d, protocol, payload),
        _ => panic!("addresses of two families"),
    }
}

/// An IPv4 packet with options and the word of flags and fragment offset. Identification 7, TTL 64.
pub(crate) fn ip4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    options: &[u8],
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    assert_eq!(header % 4, 0);
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 7]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An IPv6 packet, hop limit 64.
pub(crate) fn ip6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub(crate) fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(source.to_be_bytes());
    header.extend(destination.to_be_bytes());
    header.extend([0; 8]);
    header.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(source.to_be_bytes());
    header.extend(destination.to_be_bytes());
    header.extend(((8 + payload.len()) as u16).to_be_bytes());
    header.extend([0, 0]);
    header.extend(payload);
    header
}

/// ICMP or ICMPv6 with its first eight bytes.
pub(crate) fn icmp(kind: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    message.extend(body);
    message
}

/// A TCP packet between two addresses, from the first port to the second.
pub(crate) fn tcp_between(from: IpAddr, to: IpAddr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    ip(from, to, TCP, &tcp(ports.0, ports.1, flags))
}

/// A TCP packet that a pod sends.
pub(crate) fn tcp_from(pod: &Pod, to: IpAddr, source: u16, destination: u16, flags: u8) -> Vec<u8> {
    framed(pod, true, &ip(own(pod, to), to, TCP, &tcp(source, destination, flags)))
}

/// A TCP packet that reaches a pod.
pub(crate) fn tcp_to(pod: &Pod, from: IpAddr, source: u16, destination: u16, flags: u8) -> Vec<u8> {
    framed(pod, false, &ip(from, own(pod, from), TCP, &tcp(source, destination, flags)))
}

/// A UDP packet that a pod sends.
pub(crate) fn udp_from(pod: &Pod, to: IpAddr, source: u16, destination: u16) -> Vec<u8> {
    framed(pod, true, &ip(own(pod, to), to, UDP, &udp(source, destination, b"hello")))
}

/// A UDP packet that reaches a pod.
pub(crate) fn udp_to(pod: &Pod, from: IpAddr, source: u16, destination: u16) -> Vec<u8> {
    framed(pod, false, &ip(from, own(pod, from), UDP, &udp(source, destination, b"hello")))
}

/// The pod's address of the other address's family.
pub(crate) fn own(pod: &Pod, other: IpAddr) -> IpAddr {
    if other.is_ipv4() { pod.v4.into() } else { pod.v6.into() }
}
