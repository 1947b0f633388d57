//! Conntrack: replies, revocation, eviction, errors about flows.

use std::net::IpAddr;

use fairlead_common::maps::{EndpointPolicy, PENDING_PLACES, SET_ALL, Side, UNANSWERED_AT_ONCE};
use fairlead_common::reason::DropReason;
use fairlead_policy::tables::Delta;

use crate::lab::{DROP, Lab, PASS, REDIRECT, in_both_labs, only, policy};
use crate::packets::{
    ACK, FIN_ACK, ICMP, ICMP6, SYN, SYN_ACK, framed, icmp, ip, own, tcp, tcp_from, tcp_to, udp_from, udp_to,
};

fn outside() -> [IpAddr; 2] {
    ["203.0.113.9".parse().unwrap(), "2001:db8::9".parse().unwrap()]
}

#[test]
fn replies_pass_though_the_receiver_is_isolated() {
    in_both_labs(|lab| {
        let pod = lab.pod(1);
        policy(lab, &pod, Side::CLOSED, Side::OPEN);
        for peer in outside() {
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 1000, 80, SYN)).result, PASS);
            assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer, 80, 1000, SYN_ACK)).result, PASS);
            assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer, 80, 1000, FIN_ACK)).result, PASS);
            assert_eq!(lab.send(&pod, &udp_from(&pod, peer, 1000, 53)).result, PASS);
            assert_eq!(lab.deliver(&pod, &udp_to(&pod, peer, 53, 1000)).result, PASS);
            // Another port is another flow.
            assert_eq!(lab.deliver(&pod, &udp_to(&pod, peer, 54, 1000)).result, DROP);
        }
    });
}

#[test]
fn a_bare_syn_never_rides_a_flow() {
    in_both_labs(|lab| {
        let pod = lab.pod(1);
        policy(lab, &pod, Side::CLOSED, Side::OPEN);
        let [peer, _] = outside();
        assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 1000, 80, SYN)).result, PASS);
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer, 80, 1000, SYN_ACK)).result, PASS);
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer, 80, 1000, SYN)).result, DROP);
        assert_eq!(lab.counters(&pod).ingress.drops, only(DropReason::IngressDenied, 1));
        // The flow itself goes on.
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer, 80, 1000, ACK)).result, PASS);
    });
}

#[test]
fn taking_a_permission_away_ends_flows_whichever_way_the_packet_goes() {
    in_both_labs(|lab| {
        let (a, b) = (lab.pod(1), lab.pod(2));
        for (first, second) in [(&a, &b), (&b, &a)] {
            let open = |lab: &Lab, port| {
                assert_eq!(
                    lab.send(first, &tcp_from(first, second.v4.into(), port, 80, SYN)).result,
                    REDIRECT
                );
                assert_eq!(
                    lab.send(second, &tcp_from(second, first.v4.into(), 80, port, SYN_ACK)).result,
                    REDIRECT
                );
            };
            open(lab, 1000);
            open(lab, 1001);
            policy(lab, second, Side::CLOSED, Side::OPEN);
            let before = lab.counters(second).ingress.drops.get(&DropReason::FlowRevoked).copied();
            assert_eq!(lab.send(first, &tcp_from(first, second.v4.into(), 1000, 80, ACK)).result, DROP);
            assert_eq!(lab.send(second, &tcp_from(second, first.v4.into(), 80, 1001, ACK)).result, DROP);
            let after = lab.counters(second).ingress.drops[&DropReason::FlowRevoked];
            assert_eq!(after - before.unwrap_or(0), 2);
            // Granting it needs no new connection: a mid-stream packet is judged by its opening tuple.
            policy(lab, second, Side::OPEN, Side::OPEN);
            let run = lab.send(second, &tcp_from(second, first.v4.into(), 80, 1001, ACK));
            assert_ne!(run.result, DROP);
        }
    });
}

#[test]
fn a_pod_that_becomes_isolated_keeps_what_the_rules_allow() {
    in_both_labs(|lab| {
        let pod = lab.pod(1);
        let [peer, other] = outside();
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer, 1000, 80, SYN)).result, PASS);
        assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 80, 1000, SYN_ACK)).result, PASS);
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, other, 1000, 80, SYN)).result, PASS);
        assert_eq!(lab.send(&pod, &tcp_from(&pod, other, 80, 1000, SYN_ACK)).result, PASS);
        let side = Side { signature: 5, default_set: 0 };
        lab.apply(Delta {
            peers: vec![(peer, Some(1))],
            rows: vec![((5, 1), Some(SET_ALL))],
            endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: side, egress: Side::CLOSED }))],
            ..Delta::default()
        });
        // The pod opened neither, so that its closed egress does not matter.
        assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 80, 1000, ACK)).result, PASS);
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer, 1000, 80, ACK)).result, PASS);
        assert_eq!(lab.send(&pod, &tcp_from(&pod, other, 80, 1000, ACK)).result, DROP);
        assert_eq!(lab.counters(&pod).ingress.drops, only(DropReason::FlowRevoked, 1));
    });
}

#[test]
fn what_the_node_makes_always_passes_and_is_answered() {
    in_both_labs(|lab| {
        let pod = lab.pod(1);
        let node: IpAddr = "10.0.0.1".parse().unwrap();
        policy(lab, &pod, Side::CLOSED, Side::CLOSED);
        // No mark, a socket, no interface: made here. The address does not matter.
        assert_eq!(lab.run("to_pod", &tcp_to(&pod, node, 1000, 80, SYN), pod.ifindex, 0).result, PASS);
        assert_eq!(lab.send(&pod, &tcp_from(&pod, node, 80, 1000, SYN_ACK)).result, PASS);
        // The same from elsewhere is not.
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, node, 1001, 80, SYN)).result, DROP);
        // The node is reached where its address is known to be its own.
        assert_eq!(lab.send(&pod, &tcp_from(&pod, node, 2000, 10250, SYN)).result, DROP);
        lab.datapath.set_addresses(&[node].into(), &[].into()).unwrap();
        assert_eq!(lab.send(&pod, &tcp_from(&pod, node, 2000, 10250, SYN)).result, PASS);
    });
}

#[test]
fn errors_pass_about_known_flows_only() {
    in_both_labs(|lab| {
        let pod = lab.pod(1);
        policy(lab, &pod, Side::CLOSED, Side::OPEN);
        for peer in outside() {
            let router: IpAddr = if peer.is_ipv4() { "203.0.113.1" } else { "2001:db8::1" }.parse().unwrap();
            let error = |port: u16| {
                let inner = ip(own(&pod, peer), peer, 6, &tcp(port, 80, ACK));
                let (protocol, kind) = if peer.is_ipv4() { (ICMP, 3) } else { (ICMP6, 1) };
                framed(&pod, false, &ip(router, own(&pod, peer), protocol, &icmp(kind, 4, [0; 4], &inner)))
            };
            assert_eq!(lab.deliver(&pod, &error(1000)).result, DROP);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 1000, 80, SYN)).result, PASS);
            assert_eq!(lab.deliver(&pod, &error(1000)).result, PASS);
            assert_eq!(lab.deliver(&pod, &error(1001)).result, DROP);
        }
        assert_eq!(lab.counters(&pod).ingress.drops, only(DropReason::IcmpUnrelated, 4));
    });
}

#[test]
fn a_flood_of_unanswered_flows_evicts_only_the_senders_own() {
    in_both_labs(|lab| {
        let (flooder, quiet) = (lab.pod(1), lab.pod(2));
        for pod in [&flooder, &quiet] {
            policy(lab, pod, Side::CLOSED, Side::OPEN);
        }
        let [peer, _] = outside();
        assert_eq!(lab.send(&quiet, &udp_from(&quiet, peer, 1000, 53)).result, PASS);
        for port in 0..5000u16 {
            assert_eq!(lab.send(&flooder, &udp_from(&flooder, peer, 10_000 + port, 53)).result, PASS);
        }
        assert_eq!(lab.deliver(&quiet, &udp_to(&quiet, peer, 53, 1000)).result, PASS);
        let answered = (0..5000u16)
            .filter(|port| lab.deliver(&flooder, &udp_to(&flooder, peer, 53, 10_000 + port)).result == PASS)
            .count();
        let (few, places) = (UNANSWERED_AT_ONCE as usize, PENDING_PLACES as usize);
        let most = if lab.crowded { places } else { places + few };
        assert!(answered <= most, "{answered} unanswered flows were kept");
        assert!(answered >= most / 2, "only {answered} unanswered flows were kept");
        // The first of them lie where those do that were answered, and no later one pushes them out.
        let answered = (0..few as u16)
            .filter(|port| lab.deliver(&flooder, &udp_to(&flooder, peer, 53, 10_000 + port)).result == PASS);
        assert!(lab.crowded || answered.count() == few);
    });
}

#[test]
fn an_evicted_tcp_flow_comes_back_mid_stream_where_the_rules_allow_its_opening() {
    in_both_labs(|lab| {
        let pod = lab.pod(1);
        policy(lab, &pod, Side::CLOSED, Side::OPEN);
        let [peer, _] = outside();
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer, 80, 1000, ACK)).result, PASS);
        assert_eq!(lab.deliver(&pod, &udp_to(&pod, peer, 53, 1000)).result, DROP);
        policy(lab, &pod, Side::CLOSED, Side::CLOSED);
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer, 80, 1001, ACK)).result, DROP);
    });
}

/// It may be the answer of a Service's backend, which the stack alone can translate back.
#[test]
fn what_comes_back_mid_stream_between_two_pods_goes_through_the_stack() {
    in_both_labs(|lab| {
        let (a, b) = (lab.pod(1), lab.pod(2));
        for pod in [&a, &b] {
            policy(lab, pod, Side::OPEN, Side::OPEN);
        }
        for peer in [b.v4.into(), b.v6.into()] {
            for _ in 0..2 {
                assert_eq!(lab.send(&a, &tcp_from(&a, peer, 80, 1000, ACK)).result, PASS);
            }
            assert_eq!(lab.send(&a, &tcp_from(&a, peer, 80, 1001, SYN)).result, REDIRECT);
            assert_eq!(lab.send(&a, &tcp_from(&a, peer, 80, 1001, ACK)).result, REDIRECT);
        }
    });
}

#[test]
fn replies_of_sctp_and_echo_pass_and_their_reverse_does_not() {
    in_both_labs(|lab| {
        let pod = lab.pod(1);
        policy(lab, &pod, Side::CLOSED, Side::OPEN);
        for peer in outside() {
            let me = own(&pod, peer);
            let sctp = |from: u16, to: u16| [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8]].concat();
            assert_eq!(
                lab.deliver(&pod, &framed(&pod, false, &ip(peer, me, 132, &sctp(80, 1000)))).result,
                DROP
            );
            assert_eq!(lab.send(&pod, &framed(&pod, true, &ip(me, peer, 132, &sctp(1000, 80)))).result, PASS);
            assert_eq!(
                lab.deliver(&pod, &framed(&pod, false, &ip(peer, me, 132, &sctp(80, 1000)))).result,
                PASS
            );
            let (protocol, request, reply) = if peer.is_ipv4() { (ICMP, 8, 0) } else { (ICMP6, 128, 129) };
            let echo = |sends: bool, kind: u8, id: u8| {
                let (from, to) = if sends { (me, peer) } else { (peer, me) };
                framed(&pod, sends, &ip(from, to, protocol, &icmp(kind, 0, [0, id, 0, 1], &[])))
            };
            assert_eq!(lab.deliver(&pod, &echo(false, reply, 1)).result, DROP);
            assert_eq!(lab.send(&pod, &echo(true, request, 1)).result, PASS);
            assert_eq!(lab.deliver(&pod, &echo(false, reply, 1)).result, PASS);
            assert_eq!(lab.deliver(&pod, &echo(false, reply, 2)).result, DROP);
        }
        assert_eq!(lab.counters(&pod).ingress.drops, only(DropReason::IngressDenied, 6));
    });
}

#[test]
fn path_mtu_errors_pass_both_ways_about_allowed_flows_only() {
    in_both_labs(|lab| {
        let pod = lab.pod(1);
        policy(lab, &pod, Side::OPEN, Side::CLOSED);
        for peer in outside() {
            let me = own(&pod, peer);
            assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer, 1000, 80, SYN)).result, PASS);
            assert_eq!(lab.send(&pod, &tcp_from(&pod, peer, 80, 1000, SYN_ACK)).result, PASS);
            let (protocol, kind, code) = if peer.is_ipv4() { (ICMP, 3, 4) } else { (ICMP6, 2, 0) };
            // From a router, about what the pod sent.
            let about = |port: u16| icmp(kind, code, [0, 0, 5, 0], &ip(me, peer, 6, &tcp(80, port, ACK)));
            let router: IpAddr = if peer.is_ipv4() { "203.0.113.1" } else { "2001:db8::1" }.parse().unwrap();
            let error = |port| framed(&pod, false, &ip(router, me, protocol, &about(port)));
            assert_eq!(lab.deliver(&pod, &error(1000)).result, PASS);
            assert_eq!(lab.deliver(&pod, &error(1001)).result, DROP);
            // From the pod, about what it got.
            let about = |port: u16| icmp(kind, code, [0, 0, 5, 0], &ip(peer, me, 6, &tcp(port, 80, ACK)));
            let error = |port| framed(&pod, true, &ip(me, peer, protocol, &about(port)));
            assert_eq!(lab.send(&pod, &error(1000)).result, PASS);
            assert_eq!(lab.send(&pod, &error(1001)).result, DROP);
            // An error about an error.
            let nested =
                icmp(kind, code, [0; 4], &ip(me, peer, protocol, &icmp(kind, code, [0; 4], &[0; 28])));
            assert_eq!(
                lab.deliver(&pod, &framed(&pod, false, &ip(router, me, protocol, &nested))).result,
                DROP
            );
        }
        // No longer allowed: neither are the errors about it.
        policy(lab, &pod, Side::CLOSED, Side::CLOSED);
        let [peer, _] = outside();
        let inner = ip(own(&pod, peer), peer, 6, &tcp(80, 1000, ACK));
        let late = framed(&pod, false, &ip(peer, own(&pod, peer), ICMP, &icmp(3, 4, [0; 4], &inner)));
        assert_eq!(lab.deliver(&pod, &late).result, DROP);
        assert_eq!(lab.counters(&pod).ingress.drops, only(DropReason::IcmpUnrelated, 5));
        assert_eq!(lab.counters(&pod).egress.drops, only(DropReason::IcmpUnrelated, 2));
    });
}

#[test]
fn the_last_of_two_who_open_the_same_flow_is_its_opener() {
    in_both_labs(|lab| {
        let (a, b) = (lab.pod(1), lab.pod(2));
        for (first, second) in [(&a, &b), (&b, &a)] {
            // Both at once, the same ports: nobody has answered either.
            assert_ne!(lab.send(first, &tcp_from(first, second.v4.into(), 1000, 1000, SYN)).result, DROP);
            assert_ne!(lab.send(second, &tcp_from(second, first.v4.into(), 1000, 1000, SYN)).result, DROP);
            assert_ne!(lab.send(first, &tcp_from(first, second.v4.into(), 1000, 1000, SYN_ACK)).result, DROP);
            // What the second opened goes on though nobody may reach the second any more.
            policy(lab, second, Side::CLOSED, Side::OPEN);
            for (from, to) in [(first, second), (second, first)] {
                assert_ne!(lab.send(from, &tcp_from(from, to.v4.into(), 1000, 1000, ACK)).result, DROP);
            }
            // And ends where the first may not be reached.
            policy(lab, second, Side::OPEN, Side::OPEN);
            policy(lab, first, Side::CLOSED, Side::OPEN);
            for (from, to) in [(first, second), (second, first)] {
                assert_eq!(lab.send(from, &tcp_from(from, to.v4.into(), 1000, 1000, ACK)).result, DROP);
            }
            assert_eq!(lab.counters(first).ingress.drops.get(&DropReason::FlowRevoked), Some(&2));
            policy(lab, first, Side::OPEN, Side::OPEN);
        }
    });
}

#[test]
fn one_pods_flow_never_serves_another_of_the_node() {
    in_both_labs(|lab| {
        let (a, b) = (lab.pod(1), lab.pod(2));
        for pod in [&a, &b] {
            policy(lab, pod, Side::CLOSED, Side::CLOSED);
        }
        let [peer, _] = outside();
        policy(lab, &a, Side::CLOSED, Side::OPEN);
        assert_eq!(lab.send(&a, &udp_from(&a, peer, 1000, 53)).result, PASS);
        assert_eq!(lab.deliver(&a, &udp_to(&a, peer, 53, 1000)).result, PASS);
        // The same ports and peer, the other pod; and the first pod's packet at the other's door.
        assert_eq!(lab.send(&b, &udp_from(&b, peer, 1000, 53)).result, DROP);
        assert_eq!(lab.deliver(&b, &udp_to(&b, peer, 53, 1000)).result, DROP);
        assert_eq!(lab.deliver(&b, &udp_to(&a, peer, 53, 1000)).result, DROP);
        assert_eq!(lab.counters(&b).ingress.drops, only(DropReason::IngressDenied, 2));
        assert_eq!(lab.counters(&b).egress.drops, only(DropReason::EgressDenied, 1));
    });
}
