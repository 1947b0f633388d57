//! Commits: whole or not at all, with packets between any two writes.

use std::cell::RefCell;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use fairlead_common::maps::{
    BANKS, CLASS_FIRST, CLASS_TCP, EndpointPolicy, PortSet, SET_ALL, SET_NONE, Side,
};
use fairlead_datapath::{Moment, Write, observed, test_run};
use fairlead_policy::model::Protocol;
use fairlead_policy::tables::{Delta, PortClass};

use crate::lab::{DROP, Lab, PASS, Pod, elsewhere, in_lab, refusing};
use crate::packets::{SYN, tcp_to};

fn peer() -> IpAddr {
    "192.0.2.1".parse().unwrap()
}

fn isolated(signature: u32) -> EndpointPolicy {
    EndpointPolicy { ingress: Side { signature, default_set: SET_NONE }, egress: Side::OPEN }
}

/// Applies a step and probes after each write; returns what the packets met. Ports of no probe are left
/// out.
fn probed(lab: &mut Lab, pod: &Pod, delta: Delta, probes: &[(IpAddr, u16)]) -> Vec<(Write, Vec<i32>)> {
    let delta = lab.numbered(delta);
    let to_pod = lab.programs("to_pod").try_clone().unwrap();
    let (pod, probes) = (pod.clone(), probes.to_vec());
    let seen = Rc::new(RefCell::new(Vec::new()));
    let noted = Rc::clone(&seen);
    let mut port = 20_000;
    let observer = move |moment| {
        let Moment::After(write) = moment else { return Ok(()) };
        if matches!(write, Write::Port(_, number) if probes.iter().all(|(_, to)| *to != number)) {
            return Ok(());
        }
        let results = probes
            .iter()
            .map(|(peer, to)| {
                port += 1;
                let packet = tcp_to(&pod, *peer, port, *to, SYN);
                test_run(to_pod.as_fd(), &packet, pod.ifindex, elsewhere(), 0, 1).unwrap().result
            })
            .collect();
        noted.borrow_mut().push((write, results));
        Ok(())
    };
    observed(observer, || lab.datapath.apply(&delta)).unwrap();
    seen.take()
}

#[test]
fn two_changes_that_keep_a_pair_denied_never_open_it_half_way() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        // In force: atom 1 may do nothing, atom 2 everything; the peer is of atom 1.
        lab.apply(Delta {
            peers: vec![(peer(), Some(1))],
            rows: vec![((2, 2), Some(SET_ALL))],
            endpoints: vec![(pod.slot(), Some(isolated(2)))],
            ..Delta::default()
        });
        for _ in 0..20 {
            // The peer moves to atom 2, and atom 2 loses what it may: the peer's label was changed
            // together with the policy. Either one alone, before the other, would open the pair.
            let seen = probed(
                lab,
                &pod,
                Delta {
                    peers: vec![(peer(), Some(2))],
                    rows: vec![((2, 2), None), ((2, 1), Some(SET_ALL))],
                    ..Delta::default()
                },
                &[(peer(), 80)],
            );
            assert!(seen.len() >= 4 && seen.iter().all(|(_, r)| r == &[DROP]), "{seen:?}");
            let seen = probed(
                lab,
                &pod,
                Delta {
                    peers: vec![(peer(), Some(1))],
                    rows: vec![((2, 1), None), ((2, 2), Some(SET_ALL))],
                    ..Delta::default()
                },
                &[(peer(), 80)],
            );
            assert!(seen.iter().all(|(_, r)| r == &[DROP]), "{seen:?}");
        }
    });
}

#[test]
fn a_step_is_in_force_with_the_generation_word_and_not_before() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        lab.apply(Delta {
            peers: vec![(peer(), Some(1))],
            endpoints: vec![(pod.slot(), Some(isolated(2)))],
            ..Delta::default()
        });
        let other: IpAddr = "192.0.2.9".parse().unwrap();
        let steps = probed(
            lab,
            &pod,
            Delta {
                rows: vec![((2, 1), Some(SET_ALL)), ((2, 3), Some(SET_ALL))],
                cidrs: vec![("192.0.2.0/28".parse().unwrap(), Some(3))],
                ..Delta::default()
            },
            &[(peer(), 80), (other, 80)],
        );
        for (step, results) in steps {
            let expected = if step == Write::Generation { PASS } else { DROP };
            assert_eq!(results, [expected; 2], "{step:?}");
        }
    });
}

#[test]
fn a_prefix_that_comes_or_goes_never_shows_what_lies_beneath() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        let (wide, narrow) = ("192.0.2.0/24".parse().unwrap(), "192.0.2.0/28".parse().unwrap());
        lab.apply(Delta {
            cidrs: vec![(wide, Some(2))],
            rows: vec![((2, 2), Some(SET_ALL))],
            endpoints: vec![(pod.slot(), Some(isolated(2)))],
            ..Delta::default()
        });
        for round in 0..12 {
            // In turn: the narrow one comes with nothing allowed, then goes again.
            let comes = round % 2 == 0;
            let cidrs = vec![(narrow, comes.then_some(3))];
            let steps = probed(
                lab,
                &pod,
                Delta { cidrs, ..Delta::default() },
                &[(peer(), 80), ("192.0.2.99".parse().unwrap(), 80)],
            );
            for (step, results) in steps {
                let before = if comes { PASS } else { DROP };
                let after = if comes { DROP } else { PASS };
                let expected = if step == Write::Generation { after } else { before };
                assert_eq!(results, [expected, PASS], "{step:?}");
            }
            if round % 5 == 4 {
                settle(lab);
            }
        }
    });
}

/// Waits for the kernel's grace period, which the datapath follows in a thread of its own.
fn settle(lab: &mut Lab) {
    let started = std::time::Instant::now();
    while lab.datapath.settled().unwrap().is_none() {
        assert!(started.elapsed().as_secs() < 10, "no grace period has passed");
        std::thread::yield_now();
    }
}

#[test]
fn a_class_that_splits_changes_nothing_until_its_rules_do() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        let mut tcp = PortSet::NONE;
        tcp.insert(CLASS_TCP);
        let side = Side { signature: 2, default_set: 2 };
        lab.apply(Delta {
            sets: vec![(2, tcp)],
            endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: side, egress: Side::OPEN }))],
            ..Delta::default()
        });
        let mut grown = tcp;
        grown.insert(CLASS_FIRST);
        let mut rest = PortSet::NONE;
        rest.insert(CLASS_TCP);
        // Port 443 gets a class of its own, and the new rules leave it out.
        let steps = probed(
            lab,
            &pod,
            Delta {
                sets: vec![(2, grown), (3, rest)],
                ports: vec![PortClass { protocol: Protocol::Tcp, first: 443, last: 443, class: CLASS_FIRST }],
                endpoints: vec![(
                    pod.slot(),
                    Some(EndpointPolicy {
                        ingress: Side { signature: 3, default_set: 3 },
                        egress: Side::OPEN,
                    }),
                )],
                ..Delta::default()
            },
            &[(peer(), 443), (peer(), 80)],
        );
        for (step, results) in steps {
            let expected = if step == Write::Generation { [DROP, PASS] } else { [PASS, PASS] };
            assert_eq!(results, expected, "{step:?}");
        }
    });
}

#[test]
fn what_has_settled_reads_the_same_in_every_generation() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        lab.apply(Delta {
            peers: vec![(peer(), Some(1))],
            rows: vec![((2, 1), Some(SET_ALL))],
            endpoints: vec![(pod.slot(), Some(isolated(2)))],
            ..Delta::default()
        });
        settle(lab);
        // Steps that touch something else: the settled entries must hold in all banks.
        for n in 0..9u8 {
            lab.apply(Delta { peers: vec![(IpAddr::from([198, 51, 100, n]), Some(1))], ..Delta::default() });
            let packet = tcp_to(&pod, peer(), 1000 + u16::from(n), 80, SYN);
            assert_eq!(lab.deliver(&pod, &packet).result, PASS);
            let packet = tcp_to(&pod, IpAddr::from([198, 51, 100, n]), 1000, 80, SYN);
            assert_eq!(lab.deliver(&pod, &packet).result, PASS);
            let packet = tcp_to(&pod, IpAddr::from([198, 51, 100, n + 1]), 1000, 80, SYN);
            assert_eq!(lab.deliver(&pod, &packet).result, DROP);
        }
        // A removed entry is gone in all of them too.
        lab.apply(Delta { peers: vec![(peer(), None)], ..Delta::default() });
        settle(lab);
        for n in 0..9u16 {
            lab.apply(Delta {
                peers: vec![(IpAddr::from([198, 51, 101, n as u8]), Some(1))],
                ..Delta::default()
            });
            assert_eq!(lab.deliver(&pod, &tcp_to(&pod, peer(), 3000 + n, 80, SYN)).result, DROP);
        }
    });
}

#[test]
fn an_endpoint_whose_rules_are_gone_stays_closed_in_every_generation() {
    in_lab(|lab| {
        for (n, settles) in [(1, false), (2, true)] {
            let pod = lab.pod(n);
            settle(lab);
            lab.apply(Delta { endpoints: vec![(pod.slot(), None)], ..Delta::default() });
            if settles {
                settle(lab);
            }
            // Each bank comes into force.
            for n in 0..=BANKS as u16 {
                lab.apply(Delta { peers: vec![(peer(), Some(1 + u32::from(n)))], ..Delta::default() });
                let packet = tcp_to(&pod, peer(), 1000 + n, 80, SYN);
                assert_eq!(lab.deliver(&pod, &packet).result, DROP, "settled: {settles}, step {n}");
            }
        }
    });
}

#[test]
fn what_a_refused_step_left_unwritten_is_written_by_the_next() {
    in_lab(|lab| {
        let pod = lab.pod(1);
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        let rows = |set| (1..9u8).map(|n| ((2, n.into()), set)).collect();
        lab.apply(Delta {
            peers: (1..9).map(|n| (address(n), Some(n.into()))).collect(),
            rows: rows(Some(SET_ALL)),
            endpoints: vec![(pod.slot(), Some(isolated(2)))],
            ..Delta::default()
        });
        settle(lab);
        lab.apply(Delta { rows: rows(None), ..Delta::default() });
        // Of the rows that have yet to be removed from this step's bank too, none is.
        let delta = lab.numbered(Delta { rows: vec![((2, 99), Some(SET_ALL))], ..Delta::default() });
        assert!(observed(refusing("rows"), || lab.datapath.apply(&delta)).is_err());
        lab.datapath.apply(&delta).unwrap();
        for n in 1..9 {
            let packet = tcp_to(&pod, address(n), 1000, 80, SYN);
            assert_eq!(lab.deliver(&pod, &packet).result, DROP, "{n}");
        }
    });
}
