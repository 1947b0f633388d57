//! The tables: signatures, atoms, port sets, regions.

use std::net::IpAddr;

use fairlead_common::maps::{
    CLASS_FIRST, CLASS_ICMP, CLASS_OTHER, CLASS_SCTP, CLASS_TCP, CLASS_UDP, EndpointPolicy, PortSet, SET_ALL,
    SET_NONE, Side,
};
use fairlead_common::reason::DropReason;
use fairlead_policy::model::Protocol;
use fairlead_policy::tables::{Delta, PortClass};

use crate::lab::{DROP, Lab, PASS, Pod, in_lab, only};
use crate::packets::{ICMP, SYN, framed, icmp, ip, tcp_from, tcp_to, udp_to};

/// The set with TCP port 80, which is given a class of its own.
pub(crate) const WEB: u32 = 2;
/// A signature that lets atom 1 reach the web and atom 2 everything.
pub(crate) const RULES: u32 = 2;

pub(crate) fn web_rules() -> Delta {
    let mut web = PortSet::NONE;
    web.insert(CLASS_FIRST);
    Delta {
        sets: vec![(WEB, web)],
        ports: vec![PortClass { protocol: Protocol::Tcp, first: 80, last: 80, class: CLASS_FIRST }],
        rows: vec![((RULES, 1), Some(WEB)), ((RULES, 2), Some(SET_ALL))],
        ..Delta::default()
    }
}

fn ingress_rules() -> EndpointPolicy {
    let side = Side { signature: RULES, default_set: SET_NONE };
    EndpointPolicy { ingress: side, egress: Side::OPEN }
}

fn ruled(lab: &mut Lab, n: u8) -> Pod {
    let pod = lab.locked_pod(n);
    lab.apply(Delta {
        peers: vec![(address("192.0.2.1"), Some(1)), (address("2001:db8::1"), Some(1))],
        cidrs: vec![
            ("198.51.100.0/24".parse().unwrap(), Some(2)),
            ("198.51.100.128/25".parse().unwrap(), Some(1)),
            ("198.51.100.192/26".parse().unwrap(), Some(0)),
            ("2001:db8:2::/48".parse().unwrap(), Some(2)),
        ],
        endpoints: vec![(pod.slot(), Some(ingress_rules()))],
        ..web_rules()
    });
    lab.datapath.unlock(pod.slot()).unwrap();
    pod
}

fn address(s: &str) -> IpAddr {
    s.parse().unwrap()
}

#[test]
fn peers_regions_and_ports_are_judged_exactly() {
    in_lab(|lab| {
        let pod = ruled(lab, 1);
        let cases = [
            ("192.0.2.1", 80, true),
            ("192.0.2.1", 81, false),
            ("192.0.2.1", 79, false),
            ("192.0.2.2", 80, false),
            ("198.51.100.1", 81, true),
            ("198.51.100.129", 80, true),
            ("198.51.100.129", 81, false),
            ("198.51.100.200", 80, false),
            ("198.51.101.1", 80, false),
            ("2001:db8::1", 80, true),
            ("2001:db8::1", 8080, false),
            ("2001:db8:2::9", 8080, true),
            ("2001:db8:3::9", 80, false),
        ];
        let mut denied = 0;
        for (peer, port, allowed) in cases {
            let run = lab.deliver(&pod, &tcp_to(&pod, address(peer), 1000, port, SYN));
            assert_eq!(run.result, if allowed { PASS } else { DROP }, "{peer} {port}");
            denied += u64::from(!allowed);
        }
        let ingress = lab.counters(&pod).ingress;
        assert_eq!(ingress.drops, only(DropReason::IngressDenied, denied));
        assert_eq!(ingress.packets, cases.len() as u64 - denied);
    });
}

#[test]
fn a_port_rule_covers_neither_another_protocol_nor_icmp() {
    in_lab(|lab| {
        let pod = ruled(lab, 1);
        let (web_only, everything) = (address("192.0.2.1"), address("198.51.100.1"));
        let ping = |from: IpAddr| {
            framed(&pod, false, &ip(from, pod.v4.into(), ICMP, &icmp(8, 0, [0, 1, 0, 1], &[])))
        };
        let gre = |from: IpAddr| framed(&pod, false, &ip(from, pod.v4.into(), 47, &[0; 8]));
        let sctp = |from: IpAddr| {
            framed(&pod, false, &ip(from, pod.v4.into(), 132, &[0, 1, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0]))
        };
        for (packet, allowed) in [
            (udp_to(&pod, web_only, 1000, 80), false),
            (ping(web_only), false),
            (gre(web_only), false),
            (sctp(web_only), false),
            (udp_to(&pod, everything, 1000, 80), true),
            (ping(everything), true),
            (gre(everything), true),
            (sctp(everything), true),
        ] {
            assert_eq!(lab.deliver(&pod, &packet).result, if allowed { PASS } else { DROP });
        }
    });
}

#[test]
fn classes_of_protocols_are_apart() {
    in_lab(|lab| {
        let pod = lab.locked_pod(1);
        for (class, passes) in [
            (CLASS_TCP, [true, false, false, false]),
            (CLASS_UDP, [false, true, false, false]),
            (CLASS_ICMP, [false, false, true, false]),
            (CLASS_OTHER, [false, false, false, true]),
            (CLASS_SCTP, [false; 4]),
        ] {
            let mut set = PortSet::NONE;
            set.insert(class);
            let id = u32::from(class) + 10;
            let side = Side { signature: 9, default_set: id };
            lab.apply(Delta {
                sets: vec![(id, set)],
                endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: side, egress: Side::OPEN }))],
                ..Delta::default()
            });
            lab.datapath.unlock(pod.slot()).unwrap();
            // Each from its own peer: the flows of the last round must not answer.
            let peer = IpAddr::from([192, 0, 2, class as u8 + 1]);
            let packets = [
                tcp_to(&pod, peer, 1, 2, SYN),
                udp_to(&pod, peer, 1, 2),
                framed(&pod, false, &ip(peer, pod.v4.into(), ICMP, &icmp(8, 0, [0, 1, 0, 1], &[]))),
                framed(&pod, false, &ip(peer, pod.v4.into(), 47, &[0; 8])),
            ];
            for (packet, passes) in packets.iter().zip(passes) {
                let expected = if passes { PASS } else { DROP };
                assert_eq!(lab.deliver(&pod, packet).result, expected, "class {class}");
            }
        }
    });
}

#[test]
fn egress_is_enforced_and_counted_at_the_sender() {
    in_lab(|lab| {
        let pod = lab.locked_pod(1);
        let side = Side { signature: RULES, default_set: SET_NONE };
        lab.apply(Delta {
            peers: vec![(address("192.0.2.1"), Some(1))],
            endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: Side::OPEN, egress: side }))],
            ..web_rules()
        });
        lab.datapath.unlock(pod.slot()).unwrap();
        assert_eq!(lab.send(&pod, &tcp_from(&pod, address("192.0.2.1"), 1000, 80, SYN)).result, PASS);
        assert_eq!(lab.send(&pod, &tcp_from(&pod, address("192.0.2.1"), 1000, 81, SYN)).result, DROP);
        assert_eq!(lab.send(&pod, &tcp_from(&pod, address("192.0.2.2"), 1000, 80, SYN)).result, DROP);
        let egress = lab.counters(&pod).egress;
        assert_eq!(egress.drops, only(DropReason::EgressDenied, 2));
        assert_eq!(egress.packets, 1);
    });
}

#[test]
fn a_same_node_denial_counts_at_the_end_whose_rules_deny() {
    in_lab(|lab| {
        let (a, b) = (lab.pod(1), lab.pod(2));
        let closed_in = EndpointPolicy { ingress: Side::CLOSED, egress: Side::OPEN };
        lab.apply(Delta { endpoints: vec![(b.slot(), Some(closed_in))], ..Delta::default() });
        assert_eq!(lab.send(&a, &tcp_from(&a, b.v4.into(), 1000, 80, SYN)).result, DROP);
        assert_eq!(lab.counters(&b).ingress.drops, only(DropReason::IngressDenied, 1));
        assert!(lab.counters(&a).egress.drops.is_empty());
        let closed_out = EndpointPolicy { ingress: Side::OPEN, egress: Side::CLOSED };
        lab.apply(Delta { endpoints: vec![(a.slot(), Some(closed_out))], ..Delta::default() });
        assert_eq!(lab.send(&a, &tcp_from(&a, b.v4.into(), 1000, 80, SYN)).result, DROP);
        assert_eq!(lab.counters(&a).egress.drops, only(DropReason::EgressDenied, 1));
        assert_eq!(lab.counters(&b).ingress.drops, only(DropReason::IngressDenied, 1));
    });
}

#[test]
fn an_endpoint_without_rules_in_the_tables_is_denied() {
    in_lab(|lab| {
        let pod = lab.locked_pod(1);
        lab.datapath.unlock(pod.slot()).unwrap();
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, address("192.0.2.1"), 1, 2, SYN)).result, DROP);
        assert_eq!(lab.send(&pod, &tcp_from(&pod, address("192.0.2.1"), 1, 2, SYN)).result, DROP);
    });
}
