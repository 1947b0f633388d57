//! XDP of the uplink.

use std::net::IpAddr;
use std::process::Command;

use fairlead_common::maps::Side;
use fairlead_common::reason::DropReason;
use fairlead_datapath::Early;

use crate::lab::{Lab, Pod, XDP_DROP, XDP_PASS, in_lab, only, policy};
use crate::packets::{ACK, SYN, SYN_ACK, TCP, UDP, ethernet, icmp, ip, own, tcp, tcp_from, udp, udp_from};

/// Where the kernel runs a program for a test: the loopback.
const HERE: u32 = 1;
const PEERS: [&str; 2] = ["10.9.0.5", "fd09::5"];
const SERVICE: &str = "10.96.0.1";

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn frame(packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    ethernet([4; 6], [2; 6], ether_type, packet)
}

/// A lab with XDP, and a pod.
fn with_pod(lab: &mut Lab) -> Pod {
    lab.restart_early(Early::Native);
    lab.datapath.activate().unwrap();
    lab.datapath.set_addresses(&[].into(), &[at(SERVICE)].into()).unwrap();
    lab.pod(1)
}

#[test]
fn what_is_denied_and_of_no_flow_ends_early() {
    in_lab(|lab| {
        let pod = with_pod(lab);
        let mut ended = 0;
        for peer in PEERS.map(at) {
            let me = own(&pod, peer);
            let packet = |source: u16, destination: u16, flags: u8| {
                frame(&ip(peer, me, TCP, &tcp(source, destination, flags)))
            };
            let datagram = |source, destination| frame(&ip(peer, me, UDP, &udp(source, destination, b"x")));
            // Everything is open.
            assert_eq!(lab.early(&packet(1000, 80, SYN)), XDP_PASS);
            assert_eq!(lab.early(&datagram(1000, 53)), XDP_PASS);
            // Nobody may open anything to the pod; what could be an answer goes on.
            policy(lab, &pod, Side::CLOSED, Side::OPEN);
            assert_eq!(lab.early(&packet(1000, 80, SYN)), XDP_DROP);
            assert_eq!(lab.early(&packet(1000, 80, SYN_ACK)), XDP_PASS);
            assert_eq!(lab.early(&packet(1000, 80, ACK)), XDP_PASS);
            assert_eq!(lab.early(&datagram(1000, 53)), XDP_PASS);
            // What the pod has asked for, and then may no longer.
            lab.send(&pod, &tcp_from(&pod, peer, 2000, 80, SYN));
            lab.send(&pod, &udp_from(&pod, peer, 2000, 53));
            policy(lab, &pod, Side::CLOSED, Side::CLOSED);
            assert_eq!(lab.early(&packet(80, 2000, SYN_ACK)), XDP_PASS);
            assert_eq!(lab.early(&datagram(53, 2000)), XDP_PASS);
            for flags in [SYN, ACK, SYN_ACK] {
                assert_eq!(lab.early(&packet(1000, 80, flags)), XDP_DROP);
            }
            assert_eq!(lab.early(&datagram(1000, 53)), XDP_DROP);
            ended += 5;
            // Fragments and ICMP errors are the stack's.
            let (protocol, kind) = if peer.is_ipv4() { (1, 3) } else { (58, 1) };
            let error = icmp(kind, 1, [0; 4], &ip(me, peer, UDP, &udp(2000, 53, b"x")));
            assert_eq!(lab.early(&frame(&ip(peer, me, protocol, &error))), XDP_PASS);
            // For somebody else, and what is no IP.
            let other = if peer.is_ipv4() { "10.9.0.77" } else { "fd09::77" };
            assert_eq!(lab.early(&frame(&ip(peer, at(other), TCP, &tcp(1, 2, SYN)))), XDP_PASS);
            policy(lab, &pod, Side::OPEN, Side::OPEN);
        }
        assert_eq!(lab.early(&ethernet([4; 6], [2; 6], 0x0806, &[0; 28])), XDP_PASS);
        assert_eq!(lab.early(&ethernet([4; 6], [2; 6], 0x8100, &[0; 46])), XDP_PASS);
        let counters = lab.counters(&pod);
        assert_eq!(counters.ingress.drops, only(DropReason::IngressDenied, ended));
        assert_eq!(counters.ingress.packets, 0);
    });
}

#[test]
fn forged_sources_end_early() {
    in_lab(|lab| {
        let pod = with_pod(lab);
        let mut forged = 0;
        for source in [pod.v4.into(), pod.v6.into(), at(SERVICE), at("127.0.0.1"), at("::1")] {
            let to = if source.is_ipv4() { at("192.0.2.1") } else { at("2001:db8::1") };
            assert_eq!(lab.early(&frame(&ip(source, to, TCP, &tcp(1, 2, ACK)))), XDP_DROP, "{source}");
            forged += 1;
            let drops = lab.datapath.counters().unwrap().remove(&HERE).unwrap().ingress.drops;
            assert_eq!(drops, only(DropReason::ForgedSource, forged));
        }
    });
}

/// What `ip` says of an interface's XDP: 1 native, 2 generic.
fn attached(ifindex: u32) -> Option<u64> {
    let output =
        Command::new("ip").args(["-j", "link", "show", "dev", &format!("h{ifindex}")]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, mode) = text.split_once(r#""xdp":{"mode":"#)?;
    mode[..1].parse().ok()
}

#[test]
fn the_trampoline_is_attached_once_in_the_mode_that_is_asked_for() {
    in_lab(|lab| {
        let uplink = lab.locked_pod(9).ifindex;
        for (mode, wanted) in [
            (Early::Native, Some(1)),
            (Early::Native, Some(1)),
            (Early::Generic, Some(2)),
            (Early::Off, None),
            (Early::Native, Some(1)),
        ] {
            lab.restart_early(mode);
            // Twice: the second time it is there already.
            lab.datapath.attach_early(uplink).unwrap();
            lab.datapath.attach_early(uplink).unwrap();
            lab.datapath.activate().unwrap();
            assert_eq!(attached(uplink), wanted, "{mode:?}");
        }
    });
}
