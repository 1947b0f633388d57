//! The table of named cases, compiled and judged by the kernel.

use std::collections::BTreeSet;

use fairlead_datapath::Early;
use fairlead_policy::cases;
use fairlead_policy::compiler::{Compiler, Limits};
use fairlead_policy::model::Protocol;
use fairlead_policy::oracle::{Cluster, Direction, Target};

use crate::lab::{DROP, Lab, PASS, XDP_DROP, XDP_PASS, in_lab};
use crate::packets::{ICMP, ICMP6, SYN, TCP, UDP, framed, icmp, ip, own, tcp, udp};

const SCTP: u8 = 132;
const GRE: u8 = 47;

#[test]
fn the_kernel_gives_every_cases_verdict() {
    in_lab(|lab| {
        lab.restart_early(Early::Native);
        lab.datapath.activate().unwrap();
        let mut compiler = Compiler::new(Limits::default());
        let mut told = Cluster::default();
        let table = cases::all();
        let mut ran = 0;
        for (n, case) in table.iter().enumerate() {
            tell(&mut compiler, &mut told, &case.cluster);
            let delta = compiler.commit();
            if !delta.is_empty() {
                lab.datapath.apply(&delta).unwrap();
            }
            // A new interface for each case, so that no flow of the case before answers for it.
            let ifindex = 0x10_0000 + 4096 * n as u32 + u32::from(case.slot);
            let pod = lab.endpoint(ifindex, &case.cluster.endpoints[&case.slot].addresses);
            lab.datapath.unlock(case.slot).unwrap();
            let sends = case.direction == Direction::Egress;
            let (from, to) =
                if sends { (own(&pod, case.peer), case.peer) } else { (case.peer, own(&pod, case.peer)) };
            let (protocol, body) = match case.target {
                Target::Port(Protocol::Tcp, port) => (TCP, tcp(40_000, port, SYN)),
                Target::Port(Protocol::Udp, port) => (UDP, udp(40_000, port, b"case")),
                Target::Port(Protocol::Sctp, port) => {
                    (SCTP, [&40_000u16.to_be_bytes()[..], &port.to_be_bytes(), &[0; 8]].concat())
                }
                Target::Icmp if case.peer.is_ipv4() => (ICMP, icmp(8, 0, [0, 1, 0, 1], &[])),
                Target::Icmp => (ICMP6, icmp(128, 0, [0, 1, 0, 1], &[])),
                Target::Other => (GRE, vec![0; 8]),
            };
            let frame = framed(&pod, sends, &ip(from, to, protocol, &body));
            if !sends {
                // XDP ends nothing that is allowed. (A flow of a case before may bear the same tuple: it passes on.)
                let early = lab.early(&frame);
                assert!(early == XDP_PASS || early == XDP_DROP && !case.allowed, "{}: {early}", case.name);
            }
            let run = if sends { lab.send(&pod, &frame) } else { lab.deliver(&pod, &frame) };
            let expected = if case.allowed { PASS } else { DROP };
            assert_eq!(run.result, expected, "{}", case.name);
            lab.datapath.remove(case.slot, ifindex).unwrap();
            settle(lab, &mut compiler);
            ran += 1;
        }
        assert_eq!(ran, table.len());
        println!("cases: {ran}");
    });
}

fn settle(lab: &mut Lab, compiler: &mut Compiler) {
    if let Some(serial) = lab.datapath.settled().unwrap() {
        compiler.settled(serial);
    }
}

/// Tells the compiler what differs between two worlds.
fn tell(compiler: &mut Compiler, told: &mut Cluster, world: &Cluster) {
    macro_rules! differences {
        ($field:ident, $set:expr, $remove:expr) => {{
            let keys: BTreeSet<_> = told.$field.keys().chain(world.$field.keys()).cloned().collect();
            for key in keys {
                match (told.$field.get(&key), world.$field.get(&key)) {
                    (old, Some(new)) if old != Some(new) => $set(&key, new),
                    (Some(_), None) => $remove(&key),
                    _ => {}
                }
            }
            told.$field = world.$field.clone();
        }};
    }
    differences!(namespaces, |_, n| compiler.set_namespace(n), |k: &String| compiler.remove_namespace(k));
    differences!(pods, |_, p| compiler.set_pod(p), |k| compiler.remove_pod(k));
    differences!(policies, |_, p| compiler.set_policy(p), |k| compiler.remove_policy(k));
    let slots: BTreeSet<_> = told.endpoints.keys().chain(world.endpoints.keys()).copied().collect();
    for slot in slots {
        match (told.endpoints.get(&slot), world.endpoints.get(&slot)) {
            (old, Some(new)) if old != Some(new) => {
                compiler.set_endpoint(slot, new.pod.clone(), new.addresses.clone());
            }
            (Some(_), None) => compiler.remove_endpoint(slot),
            _ => {}
        }
    }
    told.endpoints = world.endpoints.clone();
}
