//! Hostile packets: never a bypass, each with its reason.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fairlead_common::maps::{EndpointPolicy, SET_NONE, Side};
use fairlead_common::reason::DropReason;
use fairlead_policy::model::Node;
use fairlead_policy::tables::Delta;

use crate::lab::{DROP, Lab, PASS, Pod, in_lab, nodes, only, other_node};
use crate::packets::{
    ICMP, ICMP6, SYN, TCP, UDP, ethernet, framed, from, icmp, ip, ip4, ip6, tcp, tcp_from, tcp_to, udp,
};
use crate::rules::{RULES, web_rules};

const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

/// Sends a frame that must be dropped for a reason.
#[track_caller]
fn refused(lab: &Lab, pod: &Pod, frame: &[u8], reason: DropReason) {
    let before = lab.counters(pod).egress;
    assert_eq!(lab.send(pod, frame).result, DROP, "{reason:?}");
    let after = lab.counters(pod).egress;
    let mut expected = before.drops.clone();
    *expected.entry(reason).or_default() += 1;
    assert_eq!(after.drops, expected);
    assert_eq!(after.packets, before.packets);
}

#[test]
fn a_pod_sends_only_as_itself() {
    in_lab(|lab| {
        let (pod, other) = (lab.pod(1), lab.pod(2));
        let syn = tcp(1000, 80, SYN);
        let stolen = ip4(other.v4, OUTSIDE4, TCP, &[], 0, &syn);
        refused(lab, &pod, &framed(&pod, true, &stolen), DropReason::SpoofedAddress);
        let unspecified = ip6(Ipv6Addr::UNSPECIFIED, OUTSIDE6, TCP, &syn);
        refused(lab, &pod, &framed(&pod, true, &unspecified), DropReason::SpoofedAddress);
        let mut mac = tcp_from(&pod, OUTSIDE4.into(), 1000, 80, SYN);
        mac[6..12].copy_from_slice(&other.identity.pod_mac);
        refused(lab, &pod, &mac, DropReason::SpoofedMac);
        mac[6..12].copy_from_slice(&pod.identity.pod_mac);
        mac[11] ^= 1;
        refused(lab, &pod, &mac, DropReason::SpoofedMac);
    });
}

#[test]
fn arp_is_for_own_addresses_only() {
    in_lab(|lab| {
        let (pod, other) = (lab.pod(1), lab.pod(2));
        let arp = |mac: [u8; 6], address: Ipv4Addr| {
            let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
            body.extend(mac);
            body.extend(address.octets());
            body.extend([0; 6]);
            body.extend([169, 254, 1, 1]);
            from(&pod, 0x0806, &body)
        };
        assert_eq!(lab.send(&pod, &arp(pod.identity.pod_mac, pod.v4)).result, PASS);
        refused(lab, &pod, &arp(pod.identity.pod_mac, other.v4), DropReason::SpoofedAddress);
        refused(lab, &pod, &arp(other.identity.pod_mac, pod.v4), DropReason::SpoofedMac);
        let mut short = arp(pod.identity.pod_mac, pod.v4);
        short.truncate(30);
        refused(lab, &pod, &short, DropReason::Malformed);
    });
}

#[test]
fn other_ether_types_and_tags_do_not_cross() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        for ether_type in [0x8100u16, 0x88a8, 0x8847, 0x88cc, 0x8863] {
            refused(lab, &pod, &from(&pod, ether_type, &[0; 50]), DropReason::EtherType);
        }
    });
}

#[test]
fn truncated_and_contradicting_headers_are_malformed() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        let whole = tcp_from(&pod, OUTSIDE4.into(), 1000, 80, SYN);
        // Every cut: none may pass. (The kernel itself refuses frames of no more than 14 bytes.)
        for length in 34..whole.len() {
            refused(lab, &pod, &whole[..length], DropReason::Malformed);
        }
        let whole6 = tcp_from(&pod, OUTSIDE6.into(), 1000, 80, SYN);
        for length in 54..whole6.len() {
            refused(lab, &pod, &whole6[..length], DropReason::Malformed);
        }
        let broken = |at: usize, value: u8| {
            let mut frame = whole.clone();
            frame[at] = value;
            frame
        };
        refused(lab, &pod, &broken(14, 0x55), DropReason::Malformed);
        refused(lab, &pod, &broken(14, 0x44), DropReason::Malformed);
        refused(lab, &pod, &broken(14, 0x4f), DropReason::Malformed);
        refused(lab, &pod, &broken(17, 39), DropReason::Malformed);
        refused(lab, &pod, &broken(17, 41), DropReason::Malformed);
        refused(lab, &pod, &broken(46, 0x40), DropReason::Malformed);
    });
}

#[test]
fn options_do_not_move_the_ports_out_of_sight_and_source_routes_end() {
    in_lab(|lab| {
        let pod = lab.locked_pod(1);
        let egress = Side { signature: RULES, default_set: SET_NONE };
        lab.apply(Delta {
            peers: vec![(OUTSIDE4.into(), Some(1))],
            endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: Side::OPEN, egress }))],
            ..web_rules()
        });
        lab.datapath.unlock(pod.slot()).unwrap();
        // Port 80 is allowed. Eight bytes of options that would read as ports 80 to 80.
        let nops = [1, 1, 1, 1, 1, 1, 1, 1];
        let router_alert = [148, 4, 0, 0];
        for options in [&nops[..], &router_alert] {
            let packet =
                |port| framed(&pod, true, &ip4(pod.v4, OUTSIDE4, TCP, options, 0, &tcp(1000, port, SYN)));
            assert_eq!(lab.send(&pod, &packet(80)).result, PASS);
            refused(lab, &pod, &packet(81), DropReason::EgressDenied);
        }
        for route in [131u8, 137] {
            for options in [
                vec![route, 7, 4, 10, 0, 0, 1, 0],
                vec![1, route, 7, 4, 10, 0, 0, 1],
                vec![148, 4, 0, 0, 1, 1, 1, route, 7, 4, 10, 0, 0, 1, 0, 0],
            ] {
                let packet =
                    framed(&pod, true, &ip4(pod.v4, OUTSIDE4, TCP, &options, 0, &tcp(1000, 80, SYN)));
                refused(lab, &pod, &packet, DropReason::SourceRoute);
            }
        }
        for options in [[148, 1, 0, 0], [148, 9, 0, 0], [1, 1, 1, 148]] {
            let packet = framed(&pod, true, &ip4(pod.v4, OUTSIDE4, TCP, &options, 0, &tcp(1000, 80, SYN)));
            refused(lab, &pod, &packet, DropReason::Malformed);
        }
    });
}

#[test]
fn fragments_follow_the_verdict_on_their_first() {
    in_lab(|lab| {
        let pod = lab.locked_pod(1);
        let egress = Side { signature: RULES, default_set: SET_NONE };
        lab.apply(Delta {
            peers: vec![(OUTSIDE4.into(), Some(2)), (OUTSIDE6.into(), Some(2))],
            endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: Side::OPEN, egress }))],
            ..web_rules()
        });
        lab.datapath.unlock(pod.slot()).unwrap();
        let first = framed(&pod, true, &ip4(pod.v4, OUTSIDE4, UDP, &[], 0x2000, &udp(1000, 53, &[0; 8])));
        let later = framed(&pod, true, &ip4(pod.v4, OUTSIDE4, UDP, &[], 0x0002, &[0; 8]));
        refused(lab, &pod, &later, DropReason::FragmentUnknown);
        assert_eq!(lab.send(&pod, &first).result, PASS);
        assert_eq!(lab.send(&pod, &later).result, PASS);
        let denied = Ipv4Addr::new(203, 0, 113, 10);
        let first = framed(&pod, true, &ip4(pod.v4, denied, UDP, &[], 0x2000, &udp(1000, 53, &[0; 8])));
        let later = framed(&pod, true, &ip4(pod.v4, denied, UDP, &[], 0x0002, &[0; 8]));
        refused(lab, &pod, &first, DropReason::EgressDenied);
        refused(lab, &pod, &later, DropReason::EgressDenied);
        let overlap = framed(&pod, true, &ip4(pod.v4, OUTSIDE4, TCP, &[], 0x0001, &tcp(1, 2, SYN)));
        refused(lab, &pod, &overlap, DropReason::FragmentOverlap);
        let tiny =
            framed(&pod, true, &ip4(pod.v4, OUTSIDE4, TCP, &[], 0x2000, &[3, 0xe8, 0, 80, 0, 0, 0, 0]));
        refused(lab, &pod, &tiny, DropReason::Malformed);
        // IPv6.
        let fragment = |position: u16, body: &[u8]| {
            let mut payload = vec![UDP, 0];
            payload.extend(position.to_be_bytes());
            payload.extend([0, 0, 0, 9]);
            payload.extend(body);
            framed(&pod, true, &ip6(pod.v6, OUTSIDE6, 44, &payload))
        };
        refused(lab, &pod, &fragment(16, &[0; 8]), DropReason::FragmentUnknown);
        assert_eq!(lab.send(&pod, &fragment(1, &udp(1000, 53, &[0; 8]))).result, PASS);
        assert_eq!(lab.send(&pod, &fragment(16, &[0; 8])).result, PASS);
    });
}

#[test]
fn extension_headers_behind_the_fragment_header_are_walked() {
    in_lab(|lab| {
        let pod = lab.locked_pod(1);
        let egress = Side { signature: RULES, default_set: SET_NONE };
        lab.apply(Delta {
            peers: vec![(OUTSIDE6.into(), Some(1))],
            endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: Side::OPEN, egress }))],
            ..web_rules()
        });
        lab.datapath.unlock(pod.slot()).unwrap();
        // A fragment of a datagram whose first header behind the fragment header is `next`.
        let fragment = |id: u8, next: u8, position: u16, body: &[u8]| {
            let mut payload = vec![next, 0];
            payload.extend(position.to_be_bytes());
            payload.extend([0, 0, 0, id]);
            payload.extend(body);
            framed(&pod, true, &ip6(pod.v6, OUTSIDE6, 44, &payload))
        };
        let first = |id: u8, port: u16, headers: usize| {
            let mut body = Vec::new();
            for n in 0..headers {
                body.extend([if n + 1 == headers { TCP } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
            }
            body.extend(tcp(1000, port, SYN));
            body.resize(body.len().next_multiple_of(8), 0);
            fragment(id, 60, 1, &body)
        };
        refused(lab, &pod, &fragment(1, 60, 0x100, &[0; 8]), DropReason::FragmentUnknown);
        assert_eq!(lab.send(&pod, &first(1, 80, 1)).result, PASS);
        // What a later fragment says of the protocol does not matter.
        for next in [60, TCP, UDP] {
            assert_eq!(lab.send(&pod, &fragment(1, next, 0x100, &[0; 8])).result, PASS, "{next}");
        }
        // At 8 bytes it would overwrite the header, whatever it says that it is.
        for next in [60, TCP, UDP] {
            refused(lab, &pod, &fragment(1, next, 0x8, &[0; 8]), DropReason::FragmentOverlap);
        }
        refused(lab, &pod, &first(2, 81, 2), DropReason::EgressDenied);
        refused(lab, &pod, &fragment(2, 60, 0x100, &[0; 8]), DropReason::EgressDenied);
        // The ports beyond the first fragment: nothing to judge by.
        refused(lab, &pod, &fragment(3, 60, 1, &[60, 0, 1, 4, 0, 0, 0, 0]), DropReason::Malformed);
        // Two fragment headers, and a route behind the first.
        let nested = fragment(4, 44, 1, &[TCP, 0, 0, 1, 0, 0, 0, 4]);
        refused(lab, &pod, &nested, DropReason::Malformed);
        let mut route = vec![TCP, 2, 0, 1, 0, 0, 0, 0];
        route.extend([0; 16]);
        route.extend(tcp(1000, 80, SYN));
        route.resize(route.len().next_multiple_of(8), 0);
        refused(lab, &pod, &fragment(5, 43, 1, &route), DropReason::SourceRoute);
    });
}

#[test]
fn extension_headers_do_not_hide_the_ports() {
    in_lab(|lab| {
        let pod = lab.locked_pod(1);
        let egress = Side { signature: RULES, default_set: SET_NONE };
        lab.apply(Delta {
            peers: vec![(OUTSIDE6.into(), Some(1))],
            endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: Side::OPEN, egress }))],
            ..web_rules()
        });
        lab.datapath.unlock(pod.slot()).unwrap();
        let destination = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let send = |headers: usize, port: u16| {
            let mut payload = Vec::new();
            for n in 0..headers {
                payload.extend(destination(if n + 1 == headers { TCP } else { 60 }));
            }
            payload.extend(tcp(1000, port, SYN));
            framed(&pod, true, &ip6(pod.v6, OUTSIDE6, 60, &payload))
        };
        for headers in [1, 2, 8] {
            assert_eq!(lab.send(&pod, &send(headers, 80)).result, PASS, "{headers}");
            refused(lab, &pod, &send(headers, 81), DropReason::EgressDenied);
        }
        refused(lab, &pod, &send(9, 80), DropReason::ExtensionHeaders);
        let mut routed = vec![TCP, 2, 0, 1, 0, 0, 0, 0];
        routed.extend([0; 16]);
        routed.extend(tcp(1000, 80, SYN));
        refused(lab, &pod, &framed(&pod, true, &ip6(pod.v6, OUTSIDE6, 43, &routed)), DropReason::SourceRoute);
        let mut too_long = vec![TCP, 200, 1, 4, 0, 0, 0, 0];
        too_long.extend(tcp(1000, 80, SYN));
        refused(lab, &pod, &framed(&pod, true, &ip6(pod.v6, OUTSIDE6, 60, &too_long)), DropReason::Malformed);
    });
}

#[test]
fn pods_make_no_multicast_router_discovery_or_redirects() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        let group = ip4(pod.v4, Ipv4Addr::new(224, 0, 0, 251), UDP, &[], 0, &udp(5353, 5353, &[]));
        refused(lab, &pod, &framed(&pod, true, &group), DropReason::Multicast);
        let broadcast = ip4(pod.v4, Ipv4Addr::BROADCAST, UDP, &[], 0, &udp(68, 67, &[]));
        refused(lab, &pod, &framed(&pod, true, &broadcast), DropReason::Multicast);
        for kind in [133, 134, 137] {
            let body = icmp(kind, 0, [0; 4], &[0; 32]);
            refused(
                lab,
                &pod,
                &framed(&pod, true, &ip6(pod.v6, OUTSIDE6, ICMP6, &body)),
                DropReason::NeighbourDiscovery,
            );
        }
        for kind in [5, 9, 10] {
            let body = icmp(kind, 0, [0; 4], &[0; 32]);
            let packet = ip(pod.v4.into(), IpAddr::V4(OUTSIDE4), ICMP, &body);
            refused(lab, &pod, &framed(&pod, true, &packet), DropReason::NeighbourDiscovery);
        }
        // Solicitation of the gateway, hop limit 255 and 254.
        let gateway = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        let mut solicitation = icmp(135, 0, [0; 4], &gateway.octets());
        solicitation.extend([1, 1]);
        solicitation.extend(pod.identity.pod_mac);
        let mut frame = framed(&pod, true, &ip6(pod.v6, gateway, ICMP6, &solicitation));
        refused(lab, &pod, &frame, DropReason::NeighbourDiscovery);
        frame[21] = 255;
        assert_eq!(lab.send(&pod, &frame).result, PASS);
        let mut advertisement = icmp(136, 0, [0x60, 0, 0, 0], &OUTSIDE6.octets());
        advertisement.extend([2, 1]);
        advertisement.extend(pod.identity.pod_mac);
        let mut frame = framed(&pod, true, &ip6(pod.v6, gateway, ICMP6, &advertisement));
        frame[21] = 255;
        refused(lab, &pod, &frame, DropReason::NeighbourDiscovery);
    });
}

#[test]
fn nobody_outside_has_this_nodes_addresses() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        let own: IpAddr = "192.0.2.77".parse().unwrap();
        let service: IpAddr = "10.96.0.1".parse().unwrap();
        let node: IpAddr = "192.0.2.78".parse().unwrap();
        // Services may name nodes' addresses: those stay what they are.
        let both: IpAddr = "192.0.2.79".parse().unwrap();
        let services = [service, own, both].into();
        lab.datapath.set_addresses(&[own].into(), &services).unwrap();
        let [node_only, as_service] = [(node, "node"), (both, "both")]
            .map(|(address, name)| Node { name: name.to_owned(), ..other_node(address) });
        lab.datapath.set_nodes(&nodes(&[node_only, as_service], &[])).unwrap();
        let arrives = |source: IpAddr| {
            let target = if source.is_ipv4() { IpAddr::from(pod.v4) } else { IpAddr::from(pod.v6) };
            let packet = ip(source, target, TCP, &tcp(1, 2, SYN));
            let ether_type = if source.is_ipv4() { 0x0800 } else { 0x86dd };
            lab.run("from_uplink", &ethernet([4; 6], [2; 6], ether_type, &packet), pod.ifindex, 0)
        };
        for forged in [
            IpAddr::from(pod.v4),
            pod.v6.into(),
            own,
            service,
            "127.0.0.1".parse().unwrap(),
            "::1".parse().unwrap(),
        ] {
            assert_eq!(arrives(forged).result, DROP, "{forged}");
        }
        for honest in [node, both, OUTSIDE4.into(), OUTSIDE6.into()] {
            let run = arrives(honest);
            assert_eq!((run.result, run.mark), (PASS, crate::lab::elsewhere()), "{honest}");
        }
        assert_eq!(lab.counters(&pod).ingress.drops, only(DropReason::ForgedSource, 6));
    });
}

#[test]
fn what_leaves_by_the_uplink_is_judged_on_its_final_tuple() {
    in_lab(|lab| {
        let pod = lab.locked_pod(1);
        let service: IpAddr = "10.96.0.1".parse().unwrap();
        let egress = Side { signature: RULES, default_set: SET_NONE };
        lab.apply(Delta {
            peers: vec![(OUTSIDE4.into(), Some(1))],
            endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: Side::CLOSED, egress }))],
            ..web_rules()
        });
        lab.datapath.unlock(pod.slot()).unwrap();
        lab.datapath.set_addresses(&[].into(), &[service].into()).unwrap();
        // Towards a Service the verdict waits for the translation.
        let run = lab.send(&pod, &tcp_from(&pod, service, 1000, 443, SYN));
        assert_eq!((run.result, run.mark), (PASS, pod.mark()));
        let uplink = lab.locked_pod(9);
        let leaves = |to: Ipv4Addr, port| {
            let packet = ip4(pod.v4, to, TCP, &[], 0, &tcp(1000, port, SYN));
            lab.run("to_uplink", &ethernet([2; 6], [4; 6], 0x0800, &packet), uplink.ifindex, pod.mark())
        };
        assert_eq!(leaves(OUTSIDE4, 80).result, PASS);
        assert_eq!(leaves(OUTSIDE4, 443).result, DROP);
        assert_eq!(leaves(Ipv4Addr::new(203, 0, 113, 10), 80).result, DROP);
        assert_eq!(lab.counters(&pod).egress.drops, only(DropReason::EgressDenied, 2));
        // The answer comes out of the stack under the Service's address; another's does not pass.
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, service, 443, 1000, SYN | 16)).result, PASS);
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, service, 444, 1000, SYN | 16)).result, DROP);
    });
}
