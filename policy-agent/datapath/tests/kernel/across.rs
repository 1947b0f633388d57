//! Straight from a pod to another node, and from another node to a pod.

use std::net::IpAddr;

use fairlead_common::maps::Side;
use fairlead_common::reason::DropReason;
use fairlead_datapath::{Exit, Exits, NextHop, Tunnel, observed};
use fairlead_policy::model::Node;

use crate::lab::{DROP, Lab, OVERLAY, PASS, Pod, REDIRECT, elsewhere, in_lab, nodes, only, policy, refusing};
use crate::packets::{
    ACK, ICMP, ICMP6, SYN, SYN_ACK, UDP, checksum, ethernet, framed, icmp, ip, ip4, own, tcp_between,
    tcp_from, tcp_to, udp, udp_from,
};

/// A node's own address, one of its pods', and a Service's.
const NODE: &str = "192.0.2.2";
const REMOTE: [&str; 2] = ["10.9.0.5", "fd09::5"];
const SERVICE: &str = "10.96.0.1";
const MTU: u32 = 1400;

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn remotes() -> [IpAddr; 2] {
    REMOTE.map(at)
}

fn other() -> Node {
    Node {
        name: "other".to_owned(),
        addresses: vec![at(NODE)],
        pod_cidrs: vec!["10.9.0.0/24".parse().unwrap(), "fd09::/64".parse().unwrap()],
    }
}

/// An interface towards the other node. (It is an endpoint as well, for the lab makes no other interfaces.)
fn uplink(lab: &mut Lab) -> Pod {
    let uplink = lab.locked_pod(9);
    lab.datapath.set_addresses(&[].into(), &[at(SERVICE)].into()).unwrap();
    lab.datapath.set_nodes(&nodes(&[other()], &[])).unwrap();
    lab.datapath.set_exits(&exits(&uplink)).unwrap();
    uplink
}

fn exits(uplink: &Pod) -> Exits {
    let exit = Exit { ifindex: uplink.ifindex, mtu: MTU, ..Exit::default() };
    Exits::from([("other".into(), [exit; 2])])
}

fn no_exits() -> Exits {
    Exits::from([("other".into(), [Exit::default(); 2])])
}

/// A packet reaches the node by its uplink.
fn arrives(lab: &Lab, uplink: &Pod, packet: &[u8]) -> fairlead_datapath::TestRun {
    let ether_type = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    let frame = ethernet([4; 6], uplink.identity.host_mac, ether_type, packet);
    lab.run("from_uplink", &frame, uplink.ifindex, 0)
}

#[test]
fn what_a_pod_opens_leaves_straight_and_is_answered_straight() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        policy(lab, &pod, Side::CLOSED, Side::OPEN);
        for (n, peer) in (1..).zip(remotes()) {
            let me = own(&pod, peer);
            let syn = tcp_from(&pod, peer, 1000, 80, SYN);
            let run = lab.send(&pod, &syn);
            assert_eq!((run.result, run.mark), (REDIRECT, 0));
            // As a router hands it on: the hop limit, with its checksum, and nothing else.
            let at = if peer.is_ipv4() { 22 } else { 21 };
            assert_eq!((syn[at], run.packet[at]), (64, 63));
            if peer.is_ipv4() {
                assert_eq!(checksum(&run.packet[14..34]), 0);
            }
            let mut same = run.packet.clone();
            same[at] = 64;
            same[24..26].copy_from_slice(&syn[24..26]);
            assert_eq!(same, syn);

            let answer = tcp_between(peer, me, (80, 1000), SYN_ACK);
            let run = arrives(lab, &uplink, &answer);
            assert_eq!((run.result, run.mark), (REDIRECT, 0));
            assert_eq!(run.packet[..6], pod.identity.pod_mac);
            assert_eq!(run.packet[6..12], pod.identity.host_mac);
            assert_eq!(run.packet[at], 63);
            let counters = lab.counters(&pod);
            assert_eq!((counters.egress.packets, counters.ingress.packets), (n, n));
            assert_eq!(counters.ingress.drops, [].into());
        }
        // Nothing of it was the uplink's.
        assert_eq!(lab.counters(&uplink).ingress.packets, 0);
    });
}

#[test]
fn a_way_that_was_changed_in_part_is_whole_again_with_the_next_news() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        let changed = observed(refusing("exits6"), || lab.datapath.set_exits(&no_exits()));
        assert!(changed.is_err());
        lab.datapath.set_exits(&exits(&uplink)).unwrap();
        for peer in remotes() {
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 1000, 80, SYN)).result, REDIRECT);
        }
    });
}

#[test]
fn a_tunnel_that_ends_on_the_link_is_put_on_by_the_program() {
    const SERVICE_CLASS: u8 = 0xb8;
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        let far = NextHop::of(at(NODE));
        let tunnel = Tunnel { ifindex: uplink.ifindex, source: u32::from_ne_bytes([192, 0, 2, 1]), far };
        // No such device: whatever went to it would not be the uplink's.
        let exit = Exit { ifindex: 9999, mtu: MTU, tunnel, ..Exit::default() };
        lab.datapath.set_exits(&Exits::from([("other".into(), [exit; 2])])).unwrap();
        let mut ports = Vec::new();
        for (peer, from) in remotes().into_iter().flat_map(|peer| [(peer, 1000), (peer, 1001)]) {
            let mut sent = udp_from(&pod, peer, from, 80);
            let ipv4 = peer.is_ipv4();
            if ipv4 {
                sent[15] = SERVICE_CLASS | 3;
                sent[24..26].fill(0);
                let sum = checksum(&sent[14..34]);
                sent[24..26].copy_from_slice(&sum.to_be_bytes());
            } else {
                sent[14] |= SERVICE_CLASS >> 4;
                sent[15] |= (SERVICE_CLASS & 0xf | 1) << 4;
            }
            let run = lab.send(&pod, &sent);
            assert_eq!((run.result, run.mark), (REDIRECT, 0));
            let length = u16::try_from(run.packet.len() - 14).unwrap();
            assert_eq!(usize::from(length), sent.len() - 14 + 50);
            let [outer, datagram, vxlan, ethernet] =
                [(14, 20), (34, 8), (42, 8), (50, 14)].map(|(at, length)| &run.packet[at..at + length]);
            let ecn = if ipv4 { 2 } else { 1 };
            assert_eq!(run.packet[12..14], [0x08, 0]);
            assert_eq!(outer[..2], [0x45, ecn]);
            assert_eq!(outer[2..4], length.to_be_bytes());
            assert_eq!(outer[4..10], [0, 0, 0x40, 0, 64, UDP]);
            assert_eq!((checksum(outer), &outer[12..]), (0, &[192, 0, 2, 1, 192, 0, 2, 2][..]));
            assert_eq!(datagram[2..4], OVERLAY.port.to_be_bytes());
            assert_eq!(datagram[4..6], (length - 20).to_be_bytes());
            assert_eq!(datagram[6..], [0, 0]);
            assert_eq!(vxlan, [8, 0, 0, 0, 0, 0, 77, 0]);
            assert_eq!(ethernet[..6], fairlead_datapath::RECEIVER_MAC);
            assert_eq!(ethernet[12..], if ipv4 { [0x08, 0] } else { [0x86, 0xdd] });
            // What is inside is as a router hands it on.
            let (mut inside, at) = (run.packet[64..].to_vec(), if ipv4 { 8 } else { 7 });
            assert_eq!(inside[at], 63);
            if ipv4 {
                assert_eq!(checksum(&inside[..20]), 0);
                inside[10..12].copy_from_slice(&sent[24..26]);
            }
            inside[at] = 64;
            assert_eq!(inside, sent[14..]);
            ports.push(u16::from_be_bytes([datagram[0], datagram[1]]));
        }
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() == 4 && ports[0] >= 0xc000, "{ports:?}");
        let counters = lab.counters(&pod);
        assert_eq!((counters.egress.packets, counters.egress.drops), (4, [].into()));
    });
}

#[test]
fn what_another_nodes_pod_opens_arrives_straight_and_is_answered_straight() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        policy(lab, &pod, Side::OPEN, Side::CLOSED);
        for peer in remotes() {
            let me = own(&pod, peer);
            let (echo, request) = if peer.is_ipv4() { (ICMP, 8) } else { (ICMP6, 128) };
            for packet in [
                tcp_between(peer, me, (1000, 80), SYN),
                ip(peer, me, UDP, &udp(1000, 53, b"x")),
                ip(peer, me, 132, &[&1000u16.to_be_bytes()[..], &80u16.to_be_bytes(), &[0; 8]].concat()),
                ip(peer, me, echo, &icmp(request, 0, [0, 9, 0, 1], &[])),
            ] {
                assert_eq!(arrives(lab, &uplink, &packet).result, REDIRECT, "{packet:?}");
            }
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 80, 1000, SYN_ACK)).result, REDIRECT);
            assert_eq!(lab.send(&pod, &udp_from(&pod, peer, 53, 1000)).result, REDIRECT);
            // The pod itself may open nothing.
            assert_eq!(lab.send(&pod, &udp_from(&pod, peer, 54, 1000)).result, DROP);
        }
    });
}

#[test]
fn whatever_a_router_would_not_just_hand_on_is_the_stacks() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        for peer in remotes() {
            let me = own(&pod, peer);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 1000, 80, SYN)).result, REDIRECT);
            // Of a known flow, and of one that is not.
            for port in [1000, 2000] {
                let mut sent = tcp_from(&pod, peer, port, 80, if port == 1000 { ACK } else { SYN });
                let at = if peer.is_ipv4() { 22 } else { 21 };
                sent[at] = 1;
                let run = lab.send(&pod, &sent);
                assert_eq!((run.result, run.mark, run.packet), (PASS, pod.mark(), sent));
                let mut answer = tcp_between(peer, me, (80, port), SYN_ACK);
                answer[at - 14] = 1;
                let run = arrives(lab, &uplink, &answer);
                assert_eq!((run.result, run.mark), (PASS, elsewhere()));
            }
            // One byte too long for the way, or for the pod; just as long.
            let header = if peer.is_ipv4() { 28 } else { 48 };
            let body = |length: u32| udp(3000, 53, &vec![0; length as usize - header]);
            for (length, result) in [(MTU, REDIRECT), (MTU + 1, PASS)] {
                let frame = framed(&pod, true, &ip(me, peer, UDP, &body(length)));
                assert_eq!(lab.send(&pod, &frame).result, result, "{length}");
            }
            for (length, result) in [(pod.identity.mtu, REDIRECT), (pod.identity.mtu + 1, PASS)] {
                assert_eq!(
                    arrives(lab, &uplink, &ip(peer, me, UDP, &body(length))).result,
                    result,
                    "{length}"
                );
            }
            // For somebody else's interface: seen because a bridge floods.
            let ether_type = if peer.is_ipv4() { 0x0800 } else { 0x86dd };
            let stray =
                ethernet([4; 6], [2, 0, 0, 0, 7, 7], ether_type, &tcp_between(peer, me, (9, 80), SYN));
            assert_eq!(lab.run("from_uplink", &stray, uplink.ifindex, 0).result, PASS);
            // In mid-stream: whoever knows that connection, it is not this node's programs.
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (4000, 80), ACK)).result, PASS);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 4001, 80, ACK)).result, PASS);
        }
        // Fragments: the stack puts them together.
        let (IpAddr::V4(peer), me) = (at(REMOTE[0]), pod.v4) else { unreachable!() };
        assert_eq!(lab.send(&pod, &udp_from(&pod, peer.into(), 5000, 53)).result, REDIRECT);
        for fragment in [0x2000, 0x0002] {
            let packet = ip4(peer, me, UDP, &[], fragment, &udp(53, 5000, &[0; 8]));
            assert_eq!(arrives(lab, &uplink, &packet).result, PASS);
        }
    });
}

#[test]
fn only_pods_of_nodes_that_can_be_reached_straight_are() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        let shaped = {
            let mut identity = Lab::pod_numbered(2).identity;
            identity.fast_path = false;
            lab.shaped(&identity)
        };
        let locked = lab.locked_pod(3);
        let strangers = ["203.0.113.9", NODE];
        for peer in strangers.map(at) {
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 1000, 80, SYN)).result, PASS);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, pod.v4.into(), (1, 80), SYN)).result, PASS);
        }
        for peer in remotes() {
            assert_eq!(lab.send(&shaped, &tcp_from(&shaped, peer, 1000, 80, SYN)).result, PASS);
            for target in [&shaped, &locked] {
                let packet = tcp_between(peer, own(target, peer), (1, 80), SYN);
                assert_eq!(arrives(lab, &uplink, &packet).result, PASS);
            }
            let me = own(&pod, peer);
            let both = |lab: &Lab, port: u16, result: i32| {
                assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, port, 80, SYN)).result, result);
                let answer = arrives(lab, &uplink, &tcp_between(peer, me, (80, port), SYN_ACK));
                assert_eq!(answer.result, result);
                assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (port, 81), SYN)).result, result);
                assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 81, port, SYN_ACK)).result, result);
            };
            both(lab, 2000, REDIRECT);
            // The way goes: flows that were straight are the stack's too, in both directions.
            lab.datapath.set_exits(&no_exits()).unwrap();
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 2000, 80, ACK)).result, PASS);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (80, 2000), ACK)).result, PASS);
            both(lab, 3000, PASS);
            // And comes back: what the stack has seen the beginning of stays with it.
            lab.datapath.set_exits(&exits(&uplink)).unwrap();
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 3000, 80, ACK)).result, PASS);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (80, 3000), ACK)).result, PASS);
            both(lab, 4000, REDIRECT);
            // The node leaves, and its number is another's.
            let heir = Node { name: "heir".to_owned(), ..other() };
            lab.datapath.set_nodes(&nodes(&[heir], &["other"])).unwrap();
            both(lab, 5000, PASS);
            lab.datapath.set_nodes(&nodes(&[other()], &["heir"])).unwrap();
            both(lab, 6000, REDIRECT);
        }
    });
}

#[test]
fn what_a_flow_keeps_of_its_far_pod_ends_when_the_address_is_somebody_elses() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        for (n, peer) in (0..).zip(remotes()) {
            let me = own(&pod, peer);
            let there = |lab: &Lab| lab.send(&pod, &tcp_from(&pod, peer, 1000, 80, ACK)).result;
            let back = |lab: &Lab| arrives(lab, &uplink, &tcp_between(peer, me, (80, 1000), ACK)).result;
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 1000, 80, SYN)).result, REDIRECT);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (80, 1000), SYN_ACK)).result, REDIRECT);
            assert_eq!((there(lab), back(lab)), (REDIRECT, REDIRECT));
            // A Service's, under which nobody may send; nobody's; and the pod's again.
            lab.datapath.set_addresses(&[].into(), &[at(SERVICE), peer].into()).unwrap();
            assert_eq!(back(lab), DROP);
            lab.datapath.set_addresses(&[].into(), &[at(SERVICE)].into()).unwrap();
            assert_eq!((there(lab), back(lab)), (REDIRECT, REDIRECT));
            // A local pod's, if two claim it.
            let local = lab.endpoint(0x10020 + n, &[peer]);
            assert_eq!(back(lab), DROP);
            lab.datapath.remove(local.slot(), local.ifindex).unwrap();
            assert_eq!((there(lab), back(lab)), (REDIRECT, REDIRECT));
            // That of a pod of a node to which there is no way.
            let heir = Node { name: "heir".to_owned(), addresses: vec![at("192.0.2.3")], ..other() };
            let bare = Node { pod_cidrs: Vec::new(), ..other() };
            lab.datapath.set_nodes(&nodes(&[heir, bare], &[])).unwrap();
            assert_eq!((there(lab), back(lab)), (PASS, PASS));
            lab.datapath.set_nodes(&nodes(&[other()], &["heir"])).unwrap();
            assert_eq!((there(lab), back(lab)), (REDIRECT, REDIRECT));
        }
        assert_eq!(lab.counters(&uplink).ingress.drops, only(DropReason::ForgedSource, 4));
    });
}

#[test]
fn what_the_stack_translates_stays_with_it_both_ways() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        let backend = at(REMOTE[0]);
        let run = lab.send(&pod, &tcp_from(&pod, at(SERVICE), 1000, 443, SYN));
        assert_eq!((run.result, run.mark), (PASS, pod.mark()));
        let leaves = ethernet([2; 6], [4; 6], 0x0800, &tcp_between(pod.v4.into(), backend, (1000, 80), SYN));
        assert_eq!(lab.run("to_uplink", &leaves, uplink.ifindex, pod.mark()).result, PASS);
        let answer = arrives(lab, &uplink, &tcp_between(backend, pod.v4.into(), (80, 1000), SYN_ACK));
        assert_eq!((answer.result, answer.mark), (PASS, elsewhere()));
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, at(SERVICE), 443, 1000, SYN_ACK)).result, PASS);
        // Without the Service, the same backend is reached straight.
        assert_eq!(lab.send(&pod, &tcp_from(&pod, backend, 1001, 80, SYN)).result, REDIRECT);
    });
}

#[test]
fn policy_holds_for_what_goes_straight() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        for peer in remotes() {
            let me = own(&pod, peer);
            policy(lab, &pod, Side::OPEN, Side::OPEN);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (1000, 80), SYN)).result, REDIRECT);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 80, 1000, SYN_ACK)).result, REDIRECT);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 2000, 80, SYN)).result, REDIRECT);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (80, 2000), SYN_ACK)).result, REDIRECT);
            policy(lab, &pod, Side::CLOSED, Side::CLOSED);
            // What was open ends, whichever way the packet goes.
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (1000, 80), ACK)).result, DROP);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (80, 2000), ACK)).result, DROP);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 80, 1000, ACK)).result, DROP);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 2000, 80, ACK)).result, DROP);
            // What is new is denied where the stack would deliver it.
            let syn = tcp_between(peer, me, (1001, 80), SYN);
            let run = arrives(lab, &uplink, &syn);
            assert_eq!((run.result, run.mark), (PASS, elsewhere()));
            assert_eq!(lab.deliver(&pod, &framed(&pod, false, &syn)).result, DROP);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 2001, 80, SYN)).result, DROP);
        }
        let counters = lab.counters(&pod);
        let drops = |reason, revoked| {
            let mut drops = only(reason, 2);
            drops.extend(only(DropReason::FlowRevoked, revoked));
            drops
        };
        assert_eq!(counters.ingress.drops, drops(DropReason::IngressDenied, 4));
        assert_eq!(counters.egress.drops, drops(DropReason::EgressDenied, 4));
    });
}

#[test]
fn without_the_fast_path_everything_is_the_stacks() {
    in_lab(|lab| {
        lab.restart_without_fast_path();
        lab.datapath.activate().unwrap();
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        for peer in remotes() {
            let me = own(&pod, peer);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 1000, 80, SYN)).result, PASS);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (80, 1000), SYN_ACK)).result, PASS);
            assert_eq!(arrives(lab, &uplink, &tcp_between(peer, me, (1001, 80), SYN)).result, PASS);
        }
    });
}

#[test]
fn errors_take_the_way_of_the_flow_that_they_are_about() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), uplink(lab));
        for peer in remotes() {
            let me = own(&pod, peer);
            let (protocol, kind) = if peer.is_ipv4() { (ICMP, 3) } else { (ICMP6, 1) };
            let error = |from: IpAddr, about: &[u8]| {
                ip(from, if from == me { peer } else { me }, protocol, &icmp(kind, 1, [0; 4], about))
            };
            assert_eq!(lab.send(&pod, &udp_from(&pod, peer, 2000, 53)).result, REDIRECT);
            let sent = ip(me, peer, UDP, &udp(2000, 53, b"x"));
            // From the other pod, and from a router on the way.
            let router = if peer.is_ipv4() { at("192.0.2.77") } else { at("2001:db8::77") };
            for from in [peer, router] {
                let run = arrives(lab, &uplink, &error(from, &sent));
                assert_eq!((run.result, run.mark), (REDIRECT, 0), "{from}");
                assert_eq!(run.packet[..6], pod.identity.pod_mac);
            }
            // About nothing that is known.
            let other = ip(me, peer, UDP, &udp(2001, 53, b"x"));
            assert_eq!(arrives(lab, &uplink, &error(peer, &other)).result, PASS);
            // The pod's own, about what it got.
            let got = ip(peer, me, UDP, &udp(3000, 54, b"x"));
            assert_eq!(arrives(lab, &uplink, &got).result, REDIRECT);
            let run = lab.send(&pod, &framed(&pod, true, &error(me, &got)));
            assert_eq!((run.result, run.mark), (REDIRECT, 0));
            // Once the way is gone, the stack has them.
            lab.datapath.set_exits(&no_exits()).unwrap();
            assert_eq!(lab.send(&pod, &framed(&pod, true, &error(me, &got))).result, PASS);
            lab.datapath.set_exits(&exits(&uplink)).unwrap();
        }
    });
}
