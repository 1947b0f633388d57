//! Frames with VLAN tags, written by a pod as it likes.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use fairlead_api::EndpointStatus;
use fairlead_tests::cluster::{Cluster, SOON};
use fairlead_tests::datagram::bound;
use fairlead_tests::runtime::IFNAME;
use fairlead_tests::wait::await_until;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::{NS, cluster};

/// Port that the datagrams go to.
const UDP: u16 = 5353;

/// What stands between the MAC addresses and the EtherType of IP.
const TAGS: [(&str, &[u8]); 5] = [
    ("802.1Q", &[0x81, 0, 0, 100]),
    ("802.1Q, priority only", &[0x81, 0, 0x20, 0]),
    ("802.1ad", &[0x88, 0xa8, 0, 100]),
    ("802.1ad, then 802.1Q", &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 100]),
    ("802.1Q twice", &[0x81, 0, 0, 100, 0x81, 0, 0, 100]),
];

async fn endpoint(cluster: &Cluster, pod: &str) -> EndpointStatus {
    let all = cluster.node("node-a").unwrap().endpoints().await.unwrap();
    let is = |e: &EndpointStatus| e.attachment.pod.as_ref().is_some_and(|p| p.name == pod);
    all.into_iter().find(is).unwrap()
}

async fn tagged(cluster: &Cluster) -> u64 {
    endpoint(cluster, "a1").await.counters.egress.drops.get("vlan").copied().unwrap_or(0)
}

fn sum(words: impl Iterator<Item = u16>) -> u16 {
    let mut sum: u32 = words.map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks(2).map(|c| u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)]))
}

/// A datagram in its IP header.
fn datagram(from: IpAddr, to: IpAddr, source: u16, body: &[u8]) -> Vec<u8> {
    let length = (8 + body.len()) as u16;
    let mut udp: Vec<u8> = [source, UDP, length, 0].iter().flat_map(|w| w.to_be_bytes()).collect();
    udp.extend(body);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = (20 + length).to_be_bytes();
            let mut packet = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 17, 0, 0];
            packet.extend(from.octets());
            packet.extend(to.octets());
            let check = sum(words(&packet)).to_be_bytes();
            packet[10..12].copy_from_slice(&check);
            // No UDP checksum, as IPv4 may.
            packet.extend(udp);
            packet
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let pseudo = [from.octets(), to.octets()].concat();
            let check = sum(words(&pseudo).chain([17, length]).chain(words(&udp)));
            udp[6..8].copy_from_slice(&check.to_be_bytes());
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([17, 64]);
            packet.extend(pseudo);
            packet.extend(udp);
            packet
        }
        _ => panic!("two families"),
    }
}

/// Writes a frame to the pod's interface, past its stack.
async fn write(cluster: &Cluster, pod: &str, frame: Vec<u8>) {
    let sent = cluster.pod(pod).unwrap().namespace.run(move || {
        let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)?;
        let index = nix::net::if_::if_nametoindex(IFNAME)?;
        let mut to = [0_u8; std::mem::size_of::<libc::sockaddr_ll>()];
        to[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
        to[4..8].copy_from_slice(&(index as i32).to_ne_bytes());
        // SAFETY: the frame and the address live until the call returns, and the lengths are theirs; the
        // address is one of AF_PACKET with nothing but the interface in it.
        let sent = unsafe {
            let to: *const libc::sockaddr = to.as_ptr().cast();
            let length = std::mem::size_of::<libc::sockaddr_ll>() as u32;
            libc::sendto(raw.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, length)
        };
        nix::errno::Errno::result(sent).map(|sent| sent as usize == frame.len())
    });
    assert!(sent.await.unwrap().unwrap());
}

#[tokio::test]
async fn a_tagged_frame_of_a_pod_is_dropped_and_the_same_without_a_tag_arrives() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = cluster(&[("a1", "node-a"), ("a2", "node-a")]).await;
    let attachment = endpoint(&cluster, "a1").await.attachment;
    assert_eq!(attachment.pod.as_ref().unwrap().namespace, NS);
    let server =
        bound(&cluster.pod("a2").unwrap().namespace, SocketAddr::from(([0_u16; 8], UDP))).await.unwrap();
    let mut source = 2000;
    for (ipv6, kind) in [(false, [8, 0]), (true, [0x86, 0xdd])] {
        let [from, to] = ["a1", "a2"].map(|pod| cluster.pod(pod).unwrap().address(ipv6).unwrap());
        let frame = |tags: &[u8], source: u16, body: &[u8]| {
            let macs = [attachment.host_mac.0, attachment.pod_mac.0].concat();
            [macs.as_slice(), tags, &kind, &datagram(from, to, source, body)].concat()
        };
        for (name, tags) in TAGS {
            source += 2;
            let before = tagged(&cluster).await;
            write(&cluster, "a1", frame(tags, source, b"tagged")).await;
            await_until(name, SOON, async || Ok(tagged(&cluster).await > before)).await.unwrap();
            // Frames of one interface keep their order: what arrives first is the one without a tag.
            write(&cluster, "a1", frame(&[], source + 1, name.as_bytes())).await;
            let mut body = [0; 64];
            let received = tokio::time::timeout(SOON, server.recv_from(&mut body)).await;
            let (length, client) = received.unwrap().unwrap();
            assert_eq!(&body[..length], name.as_bytes());
            assert_eq!((client.ip().to_canonical(), client.port()), (from, source + 1));
            assert_eq!(tagged(&cluster).await, before + 1, "{name}");
        }
    }
    cluster.stop().await.unwrap();
}
