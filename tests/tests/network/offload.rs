//! What sockets and tunnels leave to devices (checksums, segmentation): right on the wire where a device does none of it,
//! and whole where it arrives.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use fairlead_tests::capture::{Capture, Seen};
use fairlead_tests::cluster::{Cluster, Node, Pod};
use fairlead_tests::fabric::UPLINK;
use fairlead_tests::offloads::Offload;
use fairlead_tests::world;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use serde_json::json;

use crate::model::{pattern, stream};
use crate::{NS, add};

const VXLAN: u16 = 8472;
const SILENCE: Duration = Duration::from_secs(5);
/// Bytes of a datagram, and how many of them a socket sends in one piece.
const SEGMENT: u16 = 1200;
const SEGMENTS: usize = 40;

/// Sets all offloads of a node's uplink.
async fn set_offloads(node: &Node, on: bool) {
    let set = move || Offload::ALL.iter().try_for_each(|offload| offload.set(UPLINK, on));
    node.namespace.run(set).await.unwrap().unwrap();
}

/// Many datagrams in one piece: each arrives as it was sent.
async fn segments(from: &Pod, to: &Pod, address: IpAddr) {
    let server =
        to.namespace.run(move || UdpSocket::bind(SocketAddr::new(address, 0))).await.unwrap().unwrap();
    server.set_read_timeout(Some(SILENCE)).unwrap();
    let own = from.address(address.is_ipv6()).unwrap();
    let client = from.namespace.run(move || UdpSocket::bind(SocketAddr::new(own, 0))).await.unwrap().unwrap();
    setsockopt(&client, UdpGsoSegment, &SEGMENT.into()).unwrap();
    let all = pattern(usize::from(SEGMENT) * SEGMENTS);
    assert_eq!(client.send_to(&all, server.local_addr().unwrap()).unwrap(), all.len());
    let mut buffer = vec![0; 1 << 16];
    for sent in all.chunks(SEGMENT.into()) {
        let (length, source) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], source.ip()), (sent, own), "to {address}");
    }
}

/// The Internet's checksum (RFC 1071) of a packet's TCP or UDP, pseudo header included: 0 where it is right.
fn checksum(seen: &Seen<'_>) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let length = u32::try_from(seen.payload.len()).unwrap();
    let mut all = [octets(seen.source), octets(seen.destination), length.to_be_bytes().into()].concat();
    all.extend([0, 0, 0, seen.protocol]);
    all.extend_from_slice(seen.payload);
    let mut sum: u32 = 0;
    for pair in all.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Looks at so many packets of a pod's TCP or UDP on its node's uplink: none is longer than the link takes, and all
/// checksums are right, in a tunnel that of its own header as well, where it has one.
fn assert_right_on_the_wire(
    capture: &mut Capture,
    source: IpAddr,
    protocol: u8,
    tunnel: bool,
    wanted: usize,
) {
    for _ in 0..wanted {
        let (length, inner, outer) = capture
            .next(SILENCE, |seen| {
                let inside = seen.inside(VXLAN);
                let ours = |seen: &Seen<'_>| {
                    seen.source == source && seen.protocol == protocol && seen.payload.len() > 1000
                };
                match inside {
                    Some(inside) if tunnel && ours(&inside) => {
                        let none = seen.payload[6..8] == [0, 0];
                        let outer = if none { 0 } else { checksum(seen) };
                        Some((seen.packet.len(), checksum(&inside), outer))
                    }
                    None if !tunnel && ours(seen) => Some((seen.packet.len(), checksum(seen), 0)),
                    _ => None,
                }
            })
            .unwrap();
        assert!(length <= 1500, "{length} bytes");
        assert_eq!((inner, outer), (0, 0), "checksums of what {source} sent");
    }
}

#[tokio::test]
async fn what_is_left_to_devices_is_right_with_and_without_them() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cases = 0;
    for routing in ["vxlan", "direct"] {
        // Nodes of both families, and of IPv6 only: the tunnel's own header has a checksum there.
        for (node_family, families) in [(0, &[false, true][..]), (1, &[true])] {
            let nodes = [
                ("node-a", ["172.20.0.11", "fd20::11"], ["10.244.1.0/24", "fd10:244:0:1::/64"]),
                ("node-b", ["172.20.0.12", "fd20::12"], ["10.244.2.0/24", "fd10:244:0:2::/64"]),
            ];
            let mut objects = vec![world::namespace(NS, json!({}))];
            objects.extend(nodes.iter().map(|(name, addresses, cidrs)| {
                if node_family == 1 {
                    world::node(name, &addresses[1..], &cidrs[1..])
                } else {
                    world::node(name, addresses, cidrs)
                }
            }));
            let mut cluster = Cluster::start(&objects, &["--routing", routing]).await.unwrap();
            add(&mut cluster, "a1", "node-a").await;
            add(&mut cluster, "b1", "node-b").await;
            let (a, b) = (cluster.pod("a1").unwrap(), cluster.pod("b1").unwrap());
            for [sender, receiver] in [[true, true], [false, true], [true, false], [false, false]] {
                set_offloads(cluster.node("node-a").unwrap(), sender).await;
                set_offloads(cluster.node("node-b").unwrap(), receiver).await;
                for &ipv6 in families {
                    let (own, to) = (a.address(ipv6).unwrap(), b.address(ipv6).unwrap());
                    for protocol in [6, 17] {
                        let node = &cluster.node("node-b").unwrap().namespace;
                        let mut capture = Capture::open(node).await.unwrap();
                        if protocol == 6 {
                            assert_eq!(stream(&a.namespace, &b.namespace, to).await.unwrap(), own);
                        } else {
                            segments(a, b, to).await;
                        }
                        if !sender && !receiver {
                            // On the receiver's uplink, which puts nothing together.
                            assert_right_on_the_wire(&mut capture, own, protocol, routing == "vxlan", 20);
                        }
                        cases += 1;
                    }
                    // And the other way, by whose device it is the receiver that sends.
                    assert_eq!(stream(&b.namespace, &a.namespace, own).await.unwrap(), to);
                    segments(b, a, own).await;
                    cases += 2;
                }
            }
            cluster.stop().await.unwrap();
        }
    }
    println!("cases: {cases}");
}
