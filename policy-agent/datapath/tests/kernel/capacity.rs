//! Tables too small for what leaves and what comes at once.

use std::net::IpAddr;

use fairlead_common::maps::{EndpointPolicy, SET_ALL, SET_NONE, Side};
use fairlead_datapath::Capacities;
use fairlead_policy::tables::Delta;

use crate::lab::{DROP, Lab, PASS, Pod, in_lab};
use crate::packets::{SYN, tcp_to};

fn tiny() -> Capacities {
    Capacities { rows: 4, peers: 4, cidrs: 4, ..Capacities::default() }
}

/// Two rows, peers and prefixes: numbers `n` and `n` + 1, in place of those of `before`.
fn exchange(before: Option<u8>, now: u8) -> Delta {
    let mut delta = Delta::default();
    let mut put = |n: u8, there: bool| {
        let atom = u32::from(n) + 1;
        delta.rows.push(((2, atom), there.then_some(SET_ALL)));
        delta.peers.push((peer(n), there.then_some(atom)));
        delta.cidrs.push((format!("198.51.{n}.0/24").parse().unwrap(), there.then_some(atom)));
    };
    for n in before.into_iter().flat_map(|n| [n, n + 1]) {
        put(n, false);
    }
    for n in [now, now + 1] {
        put(n, true);
    }
    delta
}

fn peer(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn passes(lab: &Lab, pod: &Pod, from: IpAddr, port: u16) -> bool {
    match lab.deliver(pod, &tcp_to(pod, from, port, 80, SYN)).result {
        PASS => true,
        DROP => false,
        other => panic!("{other}"),
    }
}

#[test]
fn steps_that_follow_each_other_make_room_for_each_other() {
    in_lab(|lab| {
        lab.restart_within(tiny());
        let pod = lab.pod(1);
        let side = Side { signature: 2, default_set: SET_NONE };
        lab.apply(Delta {
            endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: side, egress: Side::OPEN }))],
            ..exchange(None, 10)
        });
        // Each time as much goes as comes, and nobody waits for what has gone to settle.
        let mut at = 10;
        for round in 0..8 {
            lab.apply(exchange(Some(at), at + 2));
            at += 2;
            for n in [at, at + 1] {
                assert!(passes(lab, &pod, peer(n), 1000 + round), "{round}");
                assert!(passes(lab, &pod, IpAddr::from([198, 51, n, 1]), 1000 + round), "{round}");
            }
            for n in [at - 2, at - 1, at + 2] {
                assert!(!passes(lab, &pod, peer(n), 1000 + round), "{round}");
                assert!(!passes(lab, &pod, IpAddr::from([198, 51, n, 1]), 1000 + round), "{round}");
            }
        }
        // What cannot fit whatever leaves is refused whole.
        let rows = (100..103).map(|atom| ((2, atom), Some(SET_ALL))).collect();
        let peers = vec![(peer(at), None)];
        let refused = lab.numbered(Delta { rows, peers, ..Delta::default() });
        assert!(lab.datapath.apply(&refused).is_err());
        assert!(passes(lab, &pod, peer(at), 2000));
        lab.apply(exchange(Some(at), at + 2));
        assert!(!passes(lab, &pod, peer(at), 2001) && passes(lab, &pod, peer(at + 2), 2001));
    });
}

#[test]
fn what_a_first_step_that_did_not_fit_left_behind_is_gone_once_one_fits() {
    in_lab(|lab| {
        lab.restart_within(tiny());
        let pod = lab.locked_pod(1);
        let side = Side { signature: 2, default_set: SET_NONE };
        let rows =
            |atoms: std::ops::Range<u32>, set| -> Vec<_> { atoms.map(|atom| ((2, atom), set)).collect() };
        let first = lab.numbered(Delta {
            rows: rows(1..7, Some(SET_ALL)),
            peers: (1..5).map(|n| (peer(n), Some(n.into()))).collect(),
            endpoints: vec![(pod.slot(), Some(EndpointPolicy { ingress: side, egress: Side::OPEN }))],
            ..Delta::default()
        });
        assert!(lab.datapath.apply(&first).is_err());
        let second = lab.numbered(Delta { rows: rows(1..6, None), ..Delta::default() });
        lab.datapath.apply(&first.then(second)).unwrap();
        lab.datapath.unlock(pod.slot()).unwrap();
        for n in 1..5 {
            assert!(!passes(lab, &pod, peer(n), 1000), "{n}");
        }
        // All of the room is there.
        lab.apply(Delta { rows: rows(1..4, Some(SET_ALL)), ..Delta::default() });
        for n in 1..5 {
            assert_eq!(passes(lab, &pod, peer(n), 1001), n < 4, "{n}");
        }
    });
}
