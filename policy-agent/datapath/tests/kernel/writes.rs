//! Random changes of a random world, with packets between any two writes: each is judged by the state
//! before or the state after, all of them by the same one, and where both agree nothing ever differs. Some writes are refused:
//! what was in force then stays.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use fairlead_datapath::{Moment, Write, observed, test_run};
use fairlead_policy::compiler::{Compiler, Limits};
use fairlead_policy::model::Protocol;
use fairlead_policy::oracle::{Cluster, Direction, Target};
use fairlead_policy::tables::Slot;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;

use crate::lab::{DROP, Lab, PASS, Pod, elsewhere, in_lab};
use crate::packets::{ICMP, ICMP6, SYN, TCP, UDP, framed, icmp, ip, own, tcp, udp};
use crate::world::{Change, Probes, SLOTS, beginning, cases, change, tell};

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

    /// Whether a write can mean anything to this packet: the class of another port does not.
    fn is_concerned(&self, write: Write) -> bool {
        match write {
            Write::Port(protocol, port) => self.ports == Some((protocol, port)),
            _ => true,
        }
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

/// A step of policy, and which of its writes the kernel refuses, if there are as many.
#[derive(Clone, Debug)]
struct Step {
    changes: Vec<Change>,
    settles: bool,
    refused: Option<u16>,
}

fn refused() -> impl Strategy<Value = Option<u16>> {
    prop::option::weighted(0.4, 0..30u16)
}

fn step() -> impl Strategy<Value = Step> {
    (prop::collection::vec(change(), 1..4), any::<bool>(), refused())
        .prop_map(|(changes, settles, refused)| Step { changes, settles, refused })
}

/// What happened at a write that should not have: to which probe, which was to meet this verdict.
type Wrong = (Write, usize, bool);

/// Packets that are sent after each write.
#[derive(Clone)]
struct Watch {
    packets: Rc<Vec<Packet>>,
    looks: Rc<Cell<u64>>,
    wrong: Rc<Cell<Option<Wrong>>>,
}

impl Watch {
    fn verdicts(&self) -> Vec<bool> {
        self.packets.iter().map(Packet::passes).collect()
    }

    /// Whoever expects the verdicts `old` until a generation is put in force, and `new` from then on, and refuses one write that
    /// concerns these packets, if there are as many before.
    fn observer(
        &self,
        old: &[bool],
        new: &[bool],
        refused: Option<u16>,
    ) -> impl FnMut(Moment) -> io::Result<()> + use<> {
        let (this, old, new) = (self.clone(), old.to_vec(), new.to_vec());
        let (mut in_force, mut until_refused) = (false, refused);
        move |moment| {
            let write = match moment {
                Moment::Before(write) => {
                    if !this.concerns(write) {
                        return Ok(());
                    }
                    let refuses = until_refused == Some(0);
                    until_refused = until_refused.and_then(|more| more.checked_sub(1));
                    return if refuses { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) };
                }
                Moment::After(write) => write,
            };
            in_force |= write == Write::Generation;
            let expected = if in_force { &new } else { &old };
            for ((packet, expected), probe) in this.packets.iter().zip(expected).zip(0..) {
                if packet.is_concerned(write) {
                    this.looks.set(this.looks.get() + 1);
                    if packet.passes() != *expected && this.wrong.get().is_none() {
                        this.wrong.set(Some((write, probe, *expected)));
                    }
                }
            }
            Ok(())
        }
    }

    fn concerns(&self, write: Write) -> bool {
        self.packets.is_empty() || self.packets.iter().any(|packet| packet.is_concerned(write))
    }

    fn check(&self, probes: &[Probe]) -> Result<(), TestCaseError> {
        let Some((write, probe, expected)) = self.wrong.take() else { return Ok(()) };
        let (slot, direction, peer, target) = probes[probe];
        let what = format!("slot {slot} {direction:?} {peer} {target:?} is not {expected}");
        Err(TestCaseError::fail(format!("at {write:?}: {what}")))
    }
}

#[test]
fn between_any_two_writes_packets_meet_one_whole_state() {
    let looks = Rc::new(Cell::new(0u64));
    let (commits, refusals) = (Cell::new(0u64), Cell::new(0u64));
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
        let steps = prop::collection::vec(step(), 4..16);
        let chosen = prop::collection::vec(any::<Index>(), PROBES);
        let mut runner = TestRunner::new(cases(40));
        let lab = RefCell::new(lab);
        runner
            .run(&(beginning(), refused(), steps, chosen), |(first, first_refused, mut steps, chosen)| {
                let lab = &mut **lab.borrow_mut();
                lab.restart();
                let all: Vec<Probe> = Probes::new().all().filter(|(_, _, peer, _)| ordinary(peer)).collect();
                let probes: Vec<Probe> = chosen.iter().map(|index| *index.get(&all)).collect();
                let packets: Vec<Packet> =
                    probes.iter().filter_map(|probe| Packet::new(lab, &pods, *probe)).collect();
                assert_eq!(packets.len(), probes.len());
                let (looks, wrong) = (looks.clone(), Rc::new(Cell::new(None)));
                let watch = Watch { packets: Rc::new(packets), looks, wrong };
                let (mut cluster, mut compiler) = (Cluster::default(), Compiler::new(Limits::default()));
                for change in &first {
                    tell(change, &mut cluster, &mut compiler);
                }
                let asked = |cluster: &Cluster| -> Vec<bool> {
                    probes.iter().map(|&(s, d, p, t)| cluster.verdict(s, d, p, t).passes()).collect()
                };

                // Tables that nothing looks into yet.
                let nobody = Watch { packets: Rc::new(Vec::new()), ..watch.clone() };
                let delta = compiler.commit();
                let applied =
                    observed(nobody.observer(&[], &[], first_refused), || lab.datapath.apply(&delta));
                for pod in &pods {
                    lab.datapath.register_unattached(&pod.identity).unwrap();
                    lab.datapath.unlock(pod.slot()).unwrap();
                }
                let (mut in_force, mut pending) = match applied {
                    Ok(()) => (asked(&cluster), None),
                    Err(_) => (vec![false; probes.len()], Some(delta)),
                };
                prop_assert_eq!(&watch.verdicts(), &in_force);

                let mut unsettled = pending.is_none();
                // At last what was refused is let through.
                steps.push(Step { changes: Vec::new(), settles: true, refused: None });
                for Step { changes, settles, refused } in steps {
                    for change in &changes {
                        tell(change, &mut cluster, &mut compiler);
                    }
                    let new = asked(&cluster);
                    let mut delta = compiler.commit();
                    if let Some(earlier) = pending.take() {
                        delta = earlier.then(delta);
                    }
                    prop_assert!(compiler.problems().is_empty());
                    if delta.is_empty() {
                        prop_assert_eq!(&in_force, &new);
                    } else {
                        let observer = watch.observer(&in_force, &new, refused);
                        match observed(observer, || lab.datapath.apply(&delta)) {
                            Ok(()) => {
                                in_force = new;
                                unsettled = true;
                                commits.set(commits.get() + 1);
                            }
                            Err(e) => {
                                prop_assert!(refused.is_some(), "{}", e);
                                pending = Some(delta);
                                refusals.set(refusals.get() + 1);
                            }
                        }
                    }
                    watch.check(&probes)?;
                    prop_assert_eq!(&watch.verdicts(), &in_force);
                    if settles {
                        // Whatever is cleaned up changes nothing. Awaited, so that a case is the same each time it is run.
                        let observer = watch.observer(&in_force, &in_force, refused);
                        let settled = observed(observer, || {
                            loop {
                                match lab.datapath.settled() {
                                    Ok(None) if unsettled => std::thread::yield_now(),
                                    settled => break settled,
                                }
                            }
                        });
                        watch.check(&probes)?;
                        match settled {
                            Ok(Some(serial)) => {
                                compiler.settled(serial);
                                unsettled = false;
                            }
                            Ok(None) => {}
                            Err(e) => {
                                prop_assert!(refused.is_some(), "{}", e);
                                refusals.set(refusals.get() + 1);
                            }
                        }
                    }
                }
                prop_assert!(pending.is_none());
                Ok(())
            })
            .unwrap();
    });
    let (commits, refusals) = (commits.get(), refusals.get());
    println!("{commits} commits, {refusals} refused, {} packets between writes", looks.get());
}
