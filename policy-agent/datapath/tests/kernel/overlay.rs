//! What comes out of a real overlay device: VXLAN datagrams over loopback, as other nodes would send.

use std::ffi::CString;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use fairlead_common::reason::DropReason;
use fairlead_policy::model::Node;

use crate::lab::{Lab, OVERLAY, in_lab, nodes};
use crate::packets::{UDP, checksum, ethernet, ip, udp};

const NODE_A: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const NODE_A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xaa, 0, 0, 0, 0, 0, 2));
const NODE_B: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
/// Where the packets go: this node's own.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
const HERE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xbb, 0, 0, 0, 0, 0, 1));
const PORT: u16 = 7000;

fn command(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// The device, up, with the programs on it, and a socket for what passes.
struct Scene {
    ifindex: u32,
    passed: [UdpSocket; 2],
}

impl Scene {
    fn new(lab: &mut Lab) -> Self {
        command("link set lo up");
        command("addr add 198.51.100.1/32 dev lo");
        command("addr add fd00:bb::1/128 dev lo nodad");
        command("addr add fd00:aa::2/128 dev lo nodad");
        command(&format!("link add fl-test type vxlan external dstport {} nolearning", OVERLAY.port));
        let name = CString::new("fl-test").unwrap();
        // SAFETY: the string lives through the call.
        let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
        lab.datapath.attach_overlay(ifindex).unwrap();
        // Nothing of this namespace's own: no neighbour discovery.
        command("link set fl-test arp off up");
        // Whoever the source is: the kernel's own check of it is not what is tested.
        for path in ["all/rp_filter", "fl-test/rp_filter"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{path}"), "0").unwrap();
        }
        lab.datapath.set_addresses(&[HERE, HERE6].into(), &[].into()).unwrap();
        let a = node("a", &[NODE_A, NODE_A6], &["10.1.1.0/24", "fd00:1:1::/64"]);
        let b = node("b", &[NODE_B], &["10.1.2.0/24"]);
        lab.datapath.set_nodes(&nodes(&[a, b], &[])).unwrap();
        let passed = [HERE, HERE6].map(|address| {
            let socket = UdpSocket::bind((address, PORT)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        Self { ifindex, passed }
    }

    fn forged(&self, lab: &Lab) -> u64 {
        let counters = lab.datapath.counters().unwrap().remove(&self.ifindex).unwrap_or_default();
        counters.ingress.drops.get(&DropReason::OverlayForged).copied().unwrap_or(0)
    }

    /// Whether a packet passes: it reaches its socket, or is counted as forged. Loopback delivers before
    /// `send` returns, or soon after on another CPU.
    fn passes(&self, lab: &Lab, outer: IpAddr, id: u32, inner: IpAddr) -> bool {
        let before = self.forged(lab);
        let here = if inner.is_ipv4() { HERE } else { HERE6 };
        let packet = ip(inner, here, UDP, &checked(inner, here));
        let ether_type = if inner.is_ipv4() { 0x0800 } else { 0x86dd };
        // Addressed to some other interface's MAC address: a tunnel leads to one node.
        let frame = ethernet([2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 2], ether_type, &packet);
        let header = [0x0800_0000u32.to_be_bytes(), (id << 8).to_be_bytes()].concat();
        let sender = UdpSocket::bind((outer, 0)).unwrap();
        let to: IpAddr = if outer.is_ipv4() { "127.0.0.1" } else { "fd00:bb::1" }.parse().unwrap();
        sender.send_to(&[&header[..], &frame].concat(), SocketAddr::new(to, OVERLAY.port)).unwrap();
        let socket = &self.passed[usize::from(inner.is_ipv6())];
        for _ in 0..20_000 {
            match socket.recv_from(&mut [0; 16]) {
                Ok((_, from)) => {
                    assert_eq!((from.ip(), self.forged(lab)), (inner, before));
                    return true;
                }
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
            match self.forged(lab) - before {
                0 => std::thread::park_timeout(Duration::from_micros(100)),
                n => {
                    assert_eq!(n, 1);
                    return false;
                }
            }
        }
        panic!("the packet from {inner} in {outer} neither passed nor was counted");
    }
}

/// A UDP datagram with its checksum, which IPv6 asks for (RFC 8200, section 8.1).
fn checked(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let mut datagram = udp(1000, PORT, b"x");
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) {
        let length = u32::try_from(datagram.len()).unwrap().to_be_bytes();
        let pseudo =
            [&source.octets()[..], &destination.octets(), &length, &[0, 0, 0, UDP], &datagram, &[0]].concat();
        datagram[6..8].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    }
    datagram
}

fn node(name: &str, addresses: &[IpAddr], pod_cidrs: &[&str]) -> Node {
    Node {
        name: name.to_owned(),
        addresses: addresses.to_vec(),
        pod_cidrs: pod_cidrs.iter().map(|c| c.parse().unwrap()).collect(),
    }
}

#[test]
fn a_node_sends_through_the_overlay_only_as_itself_and_its_own_pods() {
    in_lab(|lab| {
        let scene = Scene::new(lab);
        let own = OVERLAY.id;
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        for (outer, id, inner, passes) in [
            (NODE_A, own, at("10.1.1.5"), true),
            (NODE_A, own, at("fd00:1:1::5"), true),
            // Itself, in either family, and by whichever of its addresses.
            (NODE_A6, own, at("10.1.1.5"), true),
            (NODE_A6, own, NODE_A6, true),
            (NODE_B, own, at("10.1.2.5"), true),
            // Another node's pods, and the other node.
            (NODE_A, own, at("10.1.2.5"), false),
            (NODE_A6, own, at("10.1.2.5"), false),
            (NODE_B, own, at("fd00:1:1::5"), false),
            (NODE_B, own, NODE_A6, false),
            // Nobody's addresses, and this node's.
            (NODE_A, own, at("192.0.2.77"), false),
            (NODE_A, own, HERE, false),
            (NODE_A, own, HERE6, false),
            // From nobody, and in another network.
            (STRANGER, own, at("10.1.1.5"), false),
            (STRANGER, own, at("192.0.2.77"), false),
            (NODE_A, own + 1, at("10.1.1.5"), false),
        ] {
            assert_eq!(scene.passes(lab, outer, id, inner), passes, "{inner} in {outer}, network {id}");
        }
        println!("cases: 15");
    });
}

#[test]
fn a_node_that_leaves_and_one_that_takes_its_place_are_told_apart() {
    in_lab(|lab| {
        let scene = Scene::new(lab);
        let pod: IpAddr = "10.1.1.5".parse().unwrap();
        assert!(scene.passes(lab, NODE_A, OVERLAY.id, pod));
        lab.datapath.set_nodes(&nodes(&[], &["a"])).unwrap();
        assert!(!scene.passes(lab, NODE_A, OVERLAY.id, pod));
        // Its number is given again: to the new node, with what is the new node's.
        let c = node("c", &[NODE_A], &["10.1.3.0/24"]);
        lab.datapath.set_nodes(&nodes(&[c], &[])).unwrap();
        assert!(!scene.passes(lab, NODE_A, OVERLAY.id, pod));
        assert!(scene.passes(lab, NODE_A, OVERLAY.id, "10.1.3.5".parse().unwrap()));
        // The address and the pods pass to another node.
        let b = node("b", &[NODE_B, NODE_A], &["10.1.2.0/24", "10.1.1.0/24"]);
        lab.datapath.set_nodes(&nodes(&[b], &["c"])).unwrap();
        assert!(scene.passes(lab, NODE_A, OVERLAY.id, pod));
        assert!(!scene.passes(lab, NODE_A, OVERLAY.id, "10.1.3.5".parse().unwrap()));
    });
}
