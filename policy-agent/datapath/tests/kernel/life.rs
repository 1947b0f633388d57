//! An endpoint's life: locked, open, killed; and the change from one agent to the next.

use std::net::IpAddr;
use std::os::fd::AsFd as _;

use aya::programs::SchedClassifier;
use fairlead_common::maps::{EndpointPolicy, SLOT_NONE, SLOT_SETTLED, Side, names};
use fairlead_common::reason::DropReason;
use fairlead_datapath::{Counters, RegisterError, observed, test_run};
use fairlead_policy::tables::Delta;

use crate::lab::{DROP, PASS, REDIRECT, elsewhere, in_lab, mark_of, only, policy, refusing};
use crate::packets::{ACK, SYN, SYN_ACK, UDP, checksum, ethernet, ip, tcp_from, tcp_to, udp};

const OUTSIDE4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));
const OUTSIDE6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9));

#[test]
fn a_locked_endpoint_drops_both_ways_and_counts() {
    in_lab(|lab| {
        let pod = lab.locked_pod(1);
        for outside in [OUTSIDE4, OUTSIDE6] {
            assert_eq!(lab.send(&pod, &tcp_from(&pod, outside, 1000, 80, SYN)).result, DROP);
            assert_eq!(lab.deliver(&pod, &tcp_to(&pod, outside, 1000, 80, SYN)).result, DROP);
        }
        let counters = lab.counters(&pod);
        assert_eq!(counters.egress.drops, only(DropReason::Locked, 2));
        assert_eq!(counters.ingress.drops, only(DropReason::Locked, 2));
        assert_eq!((counters.egress.packets, counters.ingress.packets), (0, 0));
    });
}

#[test]
fn an_interface_that_nobody_registered_is_locked() {
    in_lab(|lab| {
        let pod = lab.locked_pod(1);
        lab.datapath.remove(pod.slot(), pod.ifindex).unwrap();
        assert_eq!(lab.send(&pod, &tcp_from(&pod, OUTSIDE4, 1000, 80, SYN)).result, DROP);
        let counters = lab.datapath.counters().unwrap().remove(&pod.ifindex).unwrap();
        assert_eq!(counters.egress.drops, only(DropReason::Locked, 1));
    });
}

#[test]
fn an_address_that_the_kernel_would_not_let_go_of_is_nobodys_with_the_next_news() {
    in_lab(|lab| {
        let (pod, gone) = (lab.pod(1), lab.pod(2));
        let packet = tcp_from(&pod, gone.v4.into(), 1000, 80, SYN);
        let removed = observed(refusing("addresses4"), || lab.datapath.remove(gone.slot(), gone.ifindex));
        assert!(removed.is_err());
        assert_eq!(lab.send(&pod, &packet).result, DROP);
        lab.datapath.set_addresses(&[].into(), &[].into()).unwrap();
        assert_eq!(lab.send(&pod, &packet).result, PASS);
    });
}

#[test]
fn an_open_endpoint_passes_marked_and_counts() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        let packet = tcp_from(&pod, OUTSIDE4, 1000, 80, SYN);
        let run = lab.send(&pod, &packet);
        assert_eq!((run.result, run.mark), (PASS, pod.mark()));
        // What the pod answers owes nothing where it leaves the node.
        let run = lab.deliver(&pod, &tcp_to(&pod, OUTSIDE6, 1000, 80, SYN));
        assert_eq!((run.result, run.mark), (PASS, mark_of(SLOT_NONE)));
        let run = lab.send(&pod, &tcp_from(&pod, OUTSIDE6, 80, 1000, SYN_ACK));
        assert_eq!((run.result, run.mark), (PASS, mark_of(SLOT_SETTLED)));
        let counters = lab.counters(&pod);
        assert_eq!((counters.egress.packets, counters.ingress.packets), (2, 1));
        assert_eq!(counters.egress.bytes, (packet.len() + 20 + packet.len()) as u64);
        assert!(counters.egress.drops.is_empty() && counters.ingress.drops.is_empty());
    });
}

#[test]
fn a_same_node_pair_is_redirected_as_a_router_would() {
    in_lab(|lab| {
        let (a, b) = (lab.pod(1), lab.pod(2));
        for to in [IpAddr::from(b.v4), IpAddr::from(b.v6)] {
            let packet = tcp_from(&a, to, 1000, 80, SYN);
            let run = lab.send(&a, &packet);
            assert_eq!((run.result, run.mark), (REDIRECT, 0));
            assert_eq!(run.packet[..6], b.identity.pod_mac);
            assert_eq!(run.packet[6..12], b.identity.host_mac);
            if to.is_ipv4() {
                assert_eq!(run.packet[22], 63, "time to live");
                assert_eq!(checksum(&run.packet[14..34]), 0, "header checksum");
            } else {
                assert_eq!(run.packet[21], 63, "hop limit");
            }
            let back = if to.is_ipv4() { IpAddr::from(a.v4) } else { IpAddr::from(a.v6) };
            assert_eq!(lab.send(&b, &tcp_from(&b, back, 80, 1000, SYN_ACK)).result, REDIRECT);
            assert_eq!(lab.send(&a, &tcp_from(&a, to, 1000, 80, ACK)).result, REDIRECT);
        }
        for pod in [&a, &b] {
            let counters = lab.counters(pod);
            let expected = if pod.ifindex == a.ifindex { (4, 2) } else { (2, 4) };
            assert_eq!((counters.egress.packets, counters.ingress.packets), expected);
            assert!(counters.egress.drops.is_empty() && counters.ingress.drops.is_empty());
        }
    });
}

#[test]
fn a_packet_that_a_router_would_not_forward_goes_to_the_stack() {
    in_lab(|lab| {
        let (a, b) = (lab.pod(1), lab.pod(2));
        let mut last_hop = tcp_from(&a, b.v4.into(), 1000, 80, SYN);
        last_hop[22] = 1;
        assert_eq!(lab.send(&a, &last_hop).result, PASS);
        let mut large = tcp_from(&a, b.v4.into(), 1001, 80, SYN);
        large.resize(14 + 1501, 0);
        let length = (large.len() - 14) as u16;
        large[16..18].copy_from_slice(&length.to_be_bytes());
        let run = lab.send(&a, &large);
        assert_eq!((run.result, run.mark), (PASS, a.mark()));
    });
}

#[test]
fn shaped_endpoints_never_take_the_fast_path() {
    in_lab(|lab| {
        let a = lab.pod(1);
        let mut b = lab.locked_pod(2);
        b.identity.fast_path = false;
        lab.datapath.register_unattached(&b.identity).unwrap();
        lab.apply(Delta { endpoints: vec![(b.slot(), Some(EndpointPolicy::OPEN))], ..Delta::default() });
        lab.datapath.unlock(b.slot()).unwrap();
        let run = lab.send(&a, &tcp_from(&a, b.v4.into(), 1000, 80, SYN));
        assert_eq!((run.result, run.mark), (PASS, a.mark()));
        // Out of the stack, marked with the sender: both verdicts stand already.
        let run = lab.run("to_pod", &tcp_to(&b, a.v4.into(), 1000, 80, SYN), b.ifindex, a.mark());
        assert_eq!((run.result, run.mark), (PASS, 0));
    });
}

#[test]
fn a_killed_endpoint_is_dead_and_its_index_is_not_taken_again() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        assert_eq!(lab.send(&pod, &tcp_from(&pod, OUTSIDE4, 1000, 80, SYN)).result, PASS);
        lab.datapath.kill(pod.ifindex).unwrap();
        assert_eq!(lab.send(&pod, &tcp_from(&pod, OUTSIDE4, 1000, 80, ACK)).result, DROP);
        assert_eq!(lab.deliver(&pod, &tcp_to(&pod, OUTSIDE4, 80, 1000, SYN_ACK)).result, DROP);
        let counters = lab.counters(&pod);
        assert_eq!(counters.egress.drops, only(DropReason::EndpointGone, 1));
        assert_eq!(counters.ingress.drops, only(DropReason::EndpointGone, 1));
        lab.datapath.remove(pod.slot(), pod.ifindex).unwrap();
        assert!(matches!(
            lab.datapath.register_unattached(&pod.identity),
            Err(RegisterError::Taken(ifindex)) if ifindex == pod.ifindex
        ));
    });
}

#[test]
fn a_successor_with_the_same_address_inherits_no_flow() {
    in_lab(|lab| {
        let (a, b) = (lab.pod(1), lab.pod(2));
        assert_eq!(lab.send(&a, &tcp_from(&a, b.v4.into(), 1000, 80, SYN)).result, REDIRECT);
        assert_eq!(lab.send(&b, &tcp_from(&b, a.v4.into(), 80, 1000, SYN_ACK)).result, REDIRECT);
        lab.datapath.remove(b.slot(), b.ifindex).unwrap();
        // The successor, whom nobody may reach.
        let mut successor = lab.locked_pod(3);
        successor.v4 = b.v4;
        successor.identity.addresses = vec![b.v4.into()];
        lab.datapath.register_unattached(&successor.identity).unwrap();
        lab.apply(Delta {
            endpoints: vec![(successor.slot(), Some(EndpointPolicy::CLOSED))],
            ..Delta::default()
        });
        lab.datapath.unlock(successor.slot()).unwrap();
        assert_eq!(lab.send(&a, &tcp_from(&a, b.v4.into(), 1000, 80, ACK)).result, DROP);
        assert_eq!(lab.counters(&successor).ingress.drops, only(DropReason::IngressDenied, 1));
        // Nor may it go on where its predecessor was.
        assert_eq!(lab.send(&successor, &tcp_from(&successor, a.v4.into(), 80, 1000, ACK)).result, DROP);
        assert_eq!(lab.counters(&successor).egress.drops, only(DropReason::EgressDenied, 1));
    });
}

#[test]
fn the_next_agent_takes_over_with_flows_and_counters() {
    in_lab(|lab| {
        let (a, b) = (lab.pod(1), lab.pod(2));
        assert_eq!(lab.send(&a, &tcp_from(&a, b.v4.into(), 1000, 80, SYN)).result, REDIRECT);
        assert_eq!(lab.send(&b, &tcp_from(&b, a.v4.into(), 80, 1000, SYN_ACK)).result, REDIRECT);
        let generation = lab.datapath.generation();
        lab.restart();
        assert!(lab.datapath.generation() > generation);
        assert!(!lab.datapath.is_active().unwrap());
        // In its tables nothing is in place yet: locked.
        assert_eq!(lab.send(&a, &tcp_from(&a, b.v4.into(), 1000, 80, ACK)).result, DROP);
        // b may be reached by nobody anew, but may go on answering.
        let closed_in = EndpointPolicy { ingress: EndpointPolicy::CLOSED.ingress, ..EndpointPolicy::OPEN };
        for pod in [&a, &b] {
            lab.datapath.register_unattached(&pod.identity).unwrap();
        }
        lab.apply(Delta {
            endpoints: vec![(a.slot(), Some(closed_in)), (b.slot(), Some(EndpointPolicy::OPEN))],
            ..Delta::default()
        });
        for pod in [&a, &b] {
            lab.datapath.unlock(pod.slot()).unwrap();
        }
        lab.datapath.activate().unwrap();
        assert!(lab.datapath.is_active().unwrap());
        // The flow that a opened is known, and judged anew by its opening tuple.
        assert_eq!(lab.send(&b, &tcp_from(&b, a.v4.into(), 80, 1000, ACK)).result, REDIRECT);
        assert_eq!(lab.send(&b, &tcp_from(&b, a.v4.into(), 81, 1000, SYN)).result, DROP);
        let Counters { ingress, egress } = lab.counters(&a);
        assert_eq!((egress.packets, ingress.packets), (1, 2));
        assert_eq!(ingress.drops, only(DropReason::IngressDenied, 1));
        assert_eq!(egress.drops, only(DropReason::Locked, 1));
    });
}

#[test]
fn what_bears_no_mark_leaves_and_what_a_pod_sent_is_judged() {
    in_lab(|lab| {
        let (pod, uplink) = (lab.pod(1), lab.locked_pod(9));
        policy(lab, &pod, Side::OPEN, Side::CLOSED);
        let packet = ip(pod.v4.into(), OUTSIDE4, UDP, &udp(1000, 53, b"x"));
        let frame = ethernet([2; 6], [4; 6], 0x0800, &packet);
        for name in [names::TO_UPLINK, names::TO_OVERLAY] {
            let trampoline = SchedClassifier::from_pin(lab.datapath.frozen().join(name)).unwrap();
            let result = |mark| {
                let program = trampoline.fd().unwrap().as_fd();
                test_run(program, &frame, uplink.ifindex, mark, 0, 1).unwrap().result
            };
            // The node's own, what owes nothing, what others have marked, and the pod's.
            assert_eq!([0, elsewhere(), 0x4000].map(result), [PASS; 3], "{name}");
            assert_eq!([pod.mark(), pod.mark() | 0x4000].map(result), [DROP; 2], "{name}");
        }
        assert_eq!(lab.counters(&pod).egress.drops, only(DropReason::EgressDenied, 4));
    });
}
