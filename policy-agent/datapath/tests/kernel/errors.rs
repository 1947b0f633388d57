//! ICMP errors: about what, to whom, and by which way. (Between nodes: see `across`.)

use std::net::IpAddr;

use fairlead_common::maps::Side;
use fairlead_common::reason::DropReason;

use crate::lab::{DROP, PASS, Pod, REDIRECT, elsewhere, in_lab, only, policy};
use crate::packets::{ICMP, ICMP6, UDP, framed, icmp, ip, own, udp, udp_from, udp_to};

/// Port unreachable, about a packet.
fn refusal(from: IpAddr, to: IpAddr, about: &[u8]) -> Vec<u8> {
    let (protocol, kind, code) = if from.is_ipv4() { (ICMP, 3, 3) } else { (ICMP6, 1, 4) };
    ip(from, to, protocol, &icmp(kind, code, [0; 4], about))
}

/// Their addresses, family by family.
fn pairs(a: &Pod, b: &Pod) -> Vec<(IpAddr, IpAddr)> {
    std::iter::zip(&a.identity.addresses, &b.identity.addresses).map(|(&a, &b)| (a, b)).collect()
}

#[test]
fn between_two_pods_they_take_the_way_of_their_flow() {
    in_lab(|lab| {
        let (a, b) = (lab.pod(1), lab.pod(2));
        policy(lab, &a, Side::CLOSED, Side::OPEN);
        policy(lab, &b, Side::OPEN, Side::CLOSED);
        for (n, (from, to)) in (1..).zip(pairs(&a, &b)) {
            assert_eq!(lab.send(&a, &udp_from(&a, to, 1000, 53)).result, REDIRECT);
            let sent = ip(from, to, UDP, &udp(1000, 53, b"x"));
            let run = lab.send(&b, &framed(&b, true, &refusal(to, from, &sent)));
            assert_eq!((run.result, run.mark), (REDIRECT, 0));
            assert_eq!(run.packet[..6], a.identity.pod_mac);
            assert_eq!(lab.counters(&a).ingress.packets, n);
            // About nothing that is known.
            let other = ip(from, to, UDP, &udp(1001, 53, b"x"));
            assert_eq!(lab.send(&b, &framed(&b, true, &refusal(to, from, &other))).result, DROP);
        }
        assert_eq!(lab.counters(&b).egress.drops, only(DropReason::IcmpUnrelated, 2));
        // What the sender may no longer send, it need not hear of: that is said where the stack delivers it.
        policy(lab, &a, Side::CLOSED, Side::CLOSED);
        for (from, to) in pairs(&a, &b) {
            let sent = ip(from, to, UDP, &udp(1000, 53, b"x"));
            let error = refusal(to, from, &sent);
            let run = lab.send(&b, &framed(&b, true, &error));
            assert_eq!((run.result, run.mark), (PASS, elsewhere()));
            assert_eq!(lab.deliver(&a, &framed(&a, false, &error)).result, DROP);
        }
        assert_eq!(lab.counters(&a).ingress.drops, only(DropReason::IcmpUnrelated, 2));
    });
}

#[test]
fn they_go_to_whom_they_are_about_and_to_nobody_else() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        policy(lab, &pod, Side::OPEN, Side::CLOSED);
        for (peer, other) in [("203.0.113.9", "198.51.100.1"), ("2001:db8::9", "2001:db8:1::1")] {
            let [peer, other]: [IpAddr; 2] = [peer, other].map(|a| a.parse().unwrap());
            let me = own(&pod, peer);
            assert_eq!(lab.deliver(&pod, &udp_to(&pod, peer, 1000, 53)).result, PASS);
            let got = ip(peer, me, UDP, &udp(1000, 53, b"x"));
            assert_eq!(lab.send(&pod, &framed(&pod, true, &refusal(me, peer, &got))).result, PASS);
            // It would carry what the pod may not send.
            assert_eq!(lab.send(&pod, &framed(&pod, true, &refusal(me, other, &got))).result, DROP);
            // About what the pod would have sent itself.
            let sent = ip(me, peer, UDP, &udp(53, 1000, b"x"));
            assert_eq!(lab.send(&pod, &framed(&pod, true, &refusal(me, peer, &sent))).result, DROP);
            // To the pod, about what others sent to it.
            let to_pod = framed(&pod, false, &refusal(peer, me, &got));
            assert_eq!(lab.deliver(&pod, &to_pod).result, DROP);
        }
        assert_eq!(lab.counters(&pod).egress.drops, only(DropReason::IcmpUnrelated, 4));
        assert_eq!(lab.counters(&pod).ingress.drops, only(DropReason::IcmpUnrelated, 2));
    });
}
