//! Random changes of a random world, with packets between any two writes: each is judged by the state
//! before or the state after, all of them by the same one, and where both agree nothing ever differs.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use fairlead_datapath::{Write, observed, test_run};
use fairlead_policy::compiler::{Compiler, Limits};
use fairlead_policy::model::Protocol;
use fairlead_policy::oracle::{Cluster, Direction, Target};
use fairlead_policy::tables::Slot;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;

use crate::lab::{DROP, Lab, PASS, Pod, elsewhere, in_lab};
use crate::packets::{ICMP, ICMP6, SYN, TCP, UDP, framed, icmp, ip, own, tcp, udp};
use crate::world::{Probes, SLOTS, beginning, cases, change, tell};

type Probe = (Slot, Direction, IpAddr, Target);

/// Probes of one case.
const PROBES: usize = 24;

/// A packet that opens a flow, whose verdict is the rules' alone, and the program that judges it.
struct Packet {
    ports: Option<(Protocol, u16)>,
    bytes: Vec<u8>,
    program: Rc<OwnedFd>,
    ifindex: u32,
    mark: u32,
}

impl Packet {
    fn new(lab: &Lab, pods: &[Pod], (slot, direction, peer, target): Probe) -> Option<Self> {
        let pod = pods.iter().find(|p| p.slot() == slot)?;
        let sends = direction == Direction::Egress;
        let (from, to) = if sends { (own(pod, peer), peer) } else { (peer, own(pod, peer)) };
        // No flow of the one direction is one of the other.
        let (port, id, other) = if sends { (40_000, 1, 47) } else { (41_000, 2, 50) };
        let (protocol, body) = match target {
            Target::Port(Protocol::Tcp, to) => (TCP, tcp(port, to, SYN)),
            Target::Port(Protocol::Udp, to) => (UDP, udp(port, to, b"case")),
            Target::Port(Protocol::Sctp, to) => {
                (132, [&port.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8]].concat())
            }
            Target::Icmp if peer.is_ipv4() => (ICMP, icmp(8, 0, [0, id, 0, 1], &[])),
            Target::Icmp => (ICMP6, icmp(128, 0, [0, id, 0, 1], &[])),
            Target::Other => (other, vec![0; 8]),
        };
        let ports = match target {
            Target::Port(protocol, port) => Some((protocol, port)),
            _ => None,
        };
        let name = if sends { "from_pod" } else { "to_pod" };
        Some(Self {
            ports,
            bytes: framed(pod, sends, &ip(from, to, protocol, &body)),
            program: Rc::new(lab.programs(name).try_clone().unwrap()),
            ifindex: pod.ifindex,
            mark: if sends { 0 } else { elsewhere() },
        })
    }

    fn passes(&self) -> bool {
        let run = test_run(self.program.as_fd(), &self.bytes, self.ifindex, self.mark, 0, 1).unwrap();
        match run.result {
            PASS => true,
            DROP => false,
            other => panic!("{other}"),
        }
    }
}

/// Addresses whose packets are judged by the rules alone.
fn ordinary(peer: &IpAddr) -> bool {
    !peer.is_multicast() && !peer.is_unspecified() && *peer != IpAddr::from([255, 255, 255, 255])
}

#[test]
fn between_any_two_writes_packets_meet_one_whole_state() {
    let (looks, commits) = (Rc::new(Cell::new(0u64)), Cell::new(0u64));
    in_lab(|lab| {
        // Pods whose addresses no rule names.
        let pods: Vec<Pod> = SLOTS
            .into_iter()
            .map(|slot| {
                let n = slot as u8;
                let addresses =
                    [IpAddr::from([172, 16, 0, n]), format!("2001:db8:ffff::{n:x}").parse().unwrap()];
                lab.endpoint(0x10_0000 + u32::from(slot), &addresses)
            })
            .collect();
        let steps = prop::collection::vec((prop::collection::vec(change(), 1..4), any::<bool>()), 4..16);
        let chosen = prop::collection::vec(any::<Index>(), PROBES);
        let mut runner = TestRunner::new(cases(40));
        let lab = RefCell::new(lab);
        runner
            .run(&(beginning(), steps, chosen), |(first, steps, chosen)| {
                let lab = &mut **lab.borrow_mut();
                lab.restart();
                let all: Vec<Probe> = Probes::new().all().filter(|(_, _, peer, _)| ordinary(peer)).collect();
                let probes: Vec<Probe> = chosen.iter().map(|index| *index.get(&all)).collect();
                let packets: Rc<Vec<Packet>> =
                    Rc::new(probes.iter().filter_map(|probe| Packet::new(lab, &pods, *probe)).collect());
                assert_eq!(packets.len(), probes.len());
                let (mut cluster, mut compiler) = (Cluster::default(), Compiler::new(Limits::default()));
                for change in &first {
                    tell(change, &mut cluster, &mut compiler);
                }
                lab.datapath.apply(&compiler.commit()).unwrap();
                for pod in &pods {
                    lab.datapath.register_unattached(&pod.identity).unwrap();
                    lab.datapath.unlock(pod.slot()).unwrap();
                }
                let asked = |cluster: &Cluster| -> Vec<bool> {
                    probes.iter().map(|&(s, d, p, t)| cluster.verdict(s, d, p, t).passes()).collect()
                };
                let mut old = asked(&cluster);
                prop_assert_eq!(&packets.iter().map(Packet::passes).collect::<Vec<_>>(), &old);
                let mut unsettled = true;
                for (changes, settles) in steps {
                    for change in &changes {
                        tell(change, &mut cluster, &mut compiler);
                    }
                    let new = asked(&cluster);
                    let delta = compiler.commit();
                    prop_assert!(compiler.problems().is_empty());
                    let wrong = Rc::new(RefCell::new(None));
                    let observer = {
                        let (packets, wrong, looks) = (packets.clone(), wrong.clone(), looks.clone());
                        let (old, new, mut in_force) = (old.clone(), new.clone(), false);
                        move |write| {
                            in_force |= write == Write::Generation;
                            let expected = if in_force { &new } else { &old };
                            for ((packet, expected), probe) in packets.iter().zip(expected).zip(0..) {
                                // The class of another port is nothing to this packet.
                                let elsewhere = match write {
                                    Write::Port(protocol, port) => packet.ports != Some((protocol, port)),
                                    _ => false,
                                };
                                if elsewhere {
                                    continue;
                                }
                                looks.set(looks.get() + 1);
                                if packet.passes() != *expected {
                                    wrong.borrow_mut().get_or_insert((write, probe, *expected));
                                }
                            }
                        }
                    };
                    if !delta.is_empty() {
                        observed(observer, || lab.datapath.apply(&delta)).unwrap();
                        commits.set(commits.get() + 1);
                        unsettled = true;
                    }
                    let found = wrong.borrow_mut().take();
                    if let Some((write, probe, expected)) = found {
                        let (slot, direction, peer, target) = probes[probe];
                        return Err(TestCaseError::fail(format!(
                            "at {write:?}: slot {slot} {direction:?} {peer} {target:?} is not {expected}"
                        )));
                    }
                    prop_assert_eq!(&packets.iter().map(Packet::passes).collect::<Vec<_>>(), &new);
                    if settles {
                        // Whatever is cleaned up changes nothing.
                        let wrong = Rc::new(Cell::new(None));
                        let observer = {
                            let (packets, wrong, looks) = (packets.clone(), wrong.clone(), looks.clone());
                            let new = new.clone();
                            move |write| {
                                for (packet, expected) in packets.iter().zip(&new) {
                                    looks.set(looks.get() + 1);
                                    if packet.passes() != *expected {
                                        wrong.set(Some(write));
                                    }
                                }
                            }
                        };
                        // Awaited, so that a case is the same each time it is run.
                        let settled = observed(observer, || {
                            loop {
                                match lab.datapath.settled().unwrap() {
                                    None if unsettled => std::thread::yield_now(),
                                    settled => break settled,
                                }
                            }
                        });
                        prop_assert_eq!(wrong.get(), None);
                        if let Some(serial) = settled {
                            compiler.settled(serial);
                        }
                        unsettled = false;
                    }
                    old = new;
                }
                Ok(())
            })
            .unwrap();
    });
    println!("{} commits, {} packets between writes", commits.get(), looks.get());
}
