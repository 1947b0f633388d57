//! What reaches the uplink in a tunnel: straight to a pod, or left to the overlay device.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use fairlead_common::maps::Side;
use fairlead_common::reason::DropReason;
use fairlead_datapath::{Exit, Exits, TestRun, test_run};
use fairlead_policy::model::Node;

use crate::lab::{DROP, Lab, OVERLAY, PASS, Pod, REDIRECT, elsewhere, in_lab, nodes, only, policy};
use crate::packets::{
    ACK, ICMP, ICMP6, SYN, SYN_ACK, UDP, checksum, ethernet, icmp, ip, ip4, own, tcp_between, tcp_from, udp,
    udp_from,
};

/// This node's address, another's, and those of that one's pods.
const HERE: &str = "192.0.2.1";
const NODE: &str = "192.0.2.2";
const REMOTE: [&str; 2] = ["10.9.0.5", "fd09::5"];
/// Length of what stands before the inner packet, Ethernet headers included.
const BEFORE: usize = 64;

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An interface towards a node that is reached through the overlay.
fn uplink(lab: &mut Lab) -> Pod {
    let uplink = lab.locked_pod(9);
    let node = Node {
        name: "other".to_owned(),
        addresses: vec![at(NODE)],
        pod_cidrs: vec!["10.9.0.0/24".parse().unwrap(), "fd09::/64".parse().unwrap()],
    };
    lab.datapath.set_addresses(&[at(HERE)].into(), &[].into()).unwrap();
    lab.datapath.set_nodes(&nodes(&[node], &[])).unwrap();
    let exit = Exit { ifindex: uplink.ifindex, mtu: 1400, ..Exit::default() };
    lab.datapath.set_exits(&Exits::from([("other".into(), [exit; 2])])).unwrap();
    uplink
}

/// The frame that brings a packet through the tunnel; `port` tells flows apart.
fn wrapped(uplink: &Pod, packet: &[u8], port: u16) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    let inner = ethernet([5; 6], [6; 6], ether_type, packet);
    let body = [&[8, 0, 0, 0, 0, 0, OVERLAY.id as u8, 0], &inner[..]].concat();
    let outer = ip(at(NODE), at(HERE), UDP, &udp(port, OVERLAY.port, &body));
    ethernet([4; 6], uplink.identity.host_mac, 0x0800, &outer)
}

/// Overwrites a byte of the outer IP header, whose checksum stays right.
fn with(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame[24..26].fill(0);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn arrives(lab: &Lab, uplink: &Pod, packet: &[u8]) -> TestRun {
    lab.run("from_uplink", &wrapped(uplink, packet, 0xc001), uplink.ifindex, 0)
}

/// Asserts that the packet goes on to the device, and as it was.
fn is_left(lab: &Lab, uplink: &Pod, frame: &[u8], what: &str) {
    let run = lab.run("from_uplink", frame, uplink.ifindex, 0);
    assert_eq!((run.result, run.mark), (PASS, elsewhere()), "{what}");
    assert_eq!(run.packet, frame, "{what}");
}

#[test]
fn what_goes_straight_to_a_pod_is_taken_out() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        policy(lab, &pod, Side::OPEN, Side::CLOSED);
        let mut bytes = 0;
        for peer in REMOTE.map(at) {
            let me = own(&pod, peer);
            let (echo, request) = if peer.is_ipv4() { (ICMP, 8) } else { (ICMP6, 128) };
            for packet in [
                tcp_between(peer, me, (1000, 80), SYN),
                tcp_between(peer, me, (1000, 80), ACK),
                ip(peer, me, UDP, &udp(1000, 53, b"x")),
                ip(peer, me, echo, &icmp(request, 0, [0, 9, 0, 1], &[])),
            ] {
                let run = arrives(lab, &uplink, &packet);
                assert_eq!((run.result, run.mark), (REDIRECT, 0), "{packet:?}");
                assert_eq!(run.packet[..6], pod.identity.pod_mac);
                assert_eq!(run.packet[6..12], pod.identity.host_mac);
                assert_eq!(run.packet[12..14], if peer.is_ipv4() { [0x08, 0] } else { [0x86, 0xdd] });
                // As a router hands it on: the hop limit, with its checksum, and nothing else.
                let mut inside = run.packet[14..].to_vec();
                if peer.is_ipv4() {
                    assert_eq!((inside[8], checksum(&inside[..20])), (63, 0));
                    inside[8] = 64;
                    inside[10..12].copy_from_slice(&packet[10..12]);
                } else {
                    assert_eq!(inside[7], 63);
                    inside[7] = 64;
                }
                assert_eq!(inside, packet);
                bytes += 14 + packet.len() as u64;
            }
            // The answers take the same way.
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 80, 1000, SYN_ACK)).result, REDIRECT);
            assert_eq!(lab.send(&pod, &udp_from(&pod, peer, 53, 1000)).result, REDIRECT);
        }
        let counters = lab.counters(&pod);
        assert_eq!((counters.ingress.packets, counters.ingress.bytes), (8, bytes));
        assert_eq!(counters.ingress.drops, [].into());
        assert_eq!(lab.counters(&uplink).ingress.packets, 0);
    });
}

#[test]
fn what_the_device_must_look_at_is_left_to_it() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        for peer in REMOTE.map(at) {
            let me = own(&pod, peer);
            let syn = tcp_between(peer, me, (1000, 80), SYN);
            let whole = wrapped(&uplink, &syn, 0xc001);
            for (at, byte, what) in [
                (15, 3, "congestion"),
                (20, 0x20, "a first fragment"),
                (21, 1, "a later fragment"),
                (29, 3, "of no node"),
                (33, 9, "for another address"),
            ] {
                is_left(lab, &uplink, &with(whole.clone(), at, byte), what);
            }
            for (at, byte, what) in [
                (24, whole[24] ^ 1, "a wrong header checksum"),
                (37, whole[37] ^ 1, "another port"),
                (39, whole[39] ^ 1, "another length of the datagram"),
                (41, 7, "a UDP checksum"),
                (42, 0, "no identifier"),
                (43, 1, "an unknown flag"),
                (46, 1, "another network"),
                (48, whole[48] ^ 1, "another network"),
                (63, 0xff, "no IP"),
                (BEFORE, 0x35, "a version that the EtherType does not say"),
                (0, 0xee, "for another interface"),
            ] {
                let mut frame = whole.clone();
                frame[at] = byte;
                is_left(lab, &uplink, &frame, what);
            }
            is_left(lab, &uplink, &[&whole[..], &[0]].concat(), "padding");
            is_left(lab, &uplink, &whole[..BEFORE + 8], "cut off");
            let stranger = if peer.is_ipv4() { at("10.8.0.5") } else { at("fd08::5") };
            let mut last_hop = syn.clone();
            last_hop[if peer.is_ipv4() { 8 } else { 7 }] = 1;
            let (protocol, kind) = if peer.is_ipv4() { (ICMP, 3) } else { (ICMP6, 1) };
            let header = if peer.is_ipv4() { 28 } else { 48 };
            for (packet, what) in [
                (tcp_between(stranger, me, (1000, 80), SYN), "a source that is not the node's"),
                (tcp_between(me, me, (1000, 80), SYN), "a source of this node"),
                (tcp_between(peer, stranger, (1000, 80), SYN), "for nobody here"),
                (tcp_between(peer, me, (1000, 80), ACK), "in mid-stream"),
                (last_hop, "the last hop"),
                (ip(peer, me, UDP, &udp(1, 2, &vec![0; 1501 - header])), "too long for the pod"),
                (ip(peer, me, protocol, &icmp(kind, 1, [0; 4], &syn)), "an error"),
            ] {
                is_left(lab, &uplink, &wrapped(&uplink, &packet, 0xc001), what);
            }
            // None of it was more than looked at, and each is as it should be.
            assert_eq!(arrives(lab, &uplink, &syn).result, REDIRECT);
            // Whom nothing may reach is told where the stack delivers it.
            policy(lab, &pod, Side::CLOSED, Side::OPEN);
            is_left(
                lab,
                &uplink,
                &wrapped(&uplink, &tcp_between(peer, me, (1001, 80), SYN), 0xc001),
                "denied",
            );
            policy(lab, &pod, Side::OPEN, Side::OPEN);
        }
        let (IpAddr::V4(peer), me) = (at(REMOTE[0]), pod.v4) else { unreachable!() };
        for fragment in [0x2000, 0x0002] {
            let packet = ip4(peer, me, UDP, &[], fragment, &udp(53, 5000, &[0; 8]));
            is_left(lab, &uplink, &wrapped(&uplink, &packet, 0xc001), "a fragment inside");
        }
        let counters = lab.counters(&pod);
        assert_eq!((counters.ingress.packets, counters.ingress.drops), (2, [].into()));
    });
}

#[test]
fn what_was_allowed_ends_in_the_tunnel_too() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        for peer in REMOTE.map(at) {
            let me = own(&pod, peer);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (1000, 80), SYN)).result, REDIRECT);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 80, 1000, SYN_ACK)).result, REDIRECT);
            policy(lab, &pod, Side::CLOSED, Side::OPEN);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (1000, 80), ACK)).result, DROP);
            policy(lab, &pod, Side::OPEN, Side::OPEN);
        }
        assert_eq!(lab.counters(&pod).ingress.drops, only(DropReason::FlowRevoked, 2));
    });
}

#[test]
fn nothing_overtakes_what_waits_for_the_device() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        let peer = at(REMOTE[0]);
        let packet = ip(peer, pod.v4.into(), UDP, &udp(1000, 53, &[0; 64]));
        let run = |port: u16, gso_size: u32| {
            let frame = wrapped(&uplink, &packet, port);
            let program = lab.programs("from_uplink").as_fd();
            test_run(program, &frame, uplink.ifindex, 0, gso_size, 1).unwrap().result
        };
        assert_eq!(run(0xc001, 0), REDIRECT);
        assert_eq!(run(0xc001, 32), PASS);
        assert_eq!(run(0xc001, 0), PASS);
        // That is so for this flow, and not for ever.
        assert_eq!(run(0xc002, 0), REDIRECT);
        let begun = Instant::now();
        while run(0xc001, 0) != REDIRECT {
            assert!(begun.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
        assert!(begun.elapsed() > Duration::from_millis(500), "{:?}", begun.elapsed());
    });
}

#[test]
fn without_the_fast_path_the_device_takes_everything_out() {
    in_lab(|lab| {
        lab.restart_without_fast_path();
        lab.datapath.activate().unwrap();
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        for peer in REMOTE.map(at) {
            let syn = tcp_between(peer, own(&pod, peer), (1000, 80), SYN);
            is_left(lab, &uplink, &wrapped(&uplink, &syn, 0xc001), "no fast path");
        }
    });
}
