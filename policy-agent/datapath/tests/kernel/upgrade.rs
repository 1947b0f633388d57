//! From one version to the next and back, the layouts of what lasts being different: no packet of an
//! allowed flow is lost, no packet of a denied one passes.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use aya::programs::SchedClassifier;
use fairlead_common::maps::{EndpointPolicy, LASTING, Lasting, Side, lasting, names};
use fairlead_datapath::{Build, Capacities, test_run};
use fairlead_policy::tables::Delta;

use crate::lab::{DROP, Lab, PASS, Pod, REDIRECT, elsewhere, in_lab};
use crate::packets::{ACK, SYN, SYN_ACK, UDP, framed, ip4, tcp_from, tcp_to, udp, udp_from, udp_to};

/// As [`LASTING`] in the version of object `fairlead-next.bpf.o`.
const NEXT: [Lasting; 11] = lasting(2);

/// Flows that wait for their answer, or are established, while versions change. Few, so that none finds
/// both of its places taken by others.
const WAITING: u16 = 12;

fn next_version() -> Build {
    let path = env!("FAIRLEAD_NEXT_BPF_OBJECT");
    let object = std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}: run cargo xtask test"));
    Build { object: object.leak(), lasting: &NEXT }
}

/// What is attached to interfaces: whatever version is in force, these lead to it.
struct Hooks {
    from_pod: OwnedFd,
    to_pod: OwnedFd,
}

impl Hooks {
    fn open(lab: &Lab) -> Self {
        let open = |name: &str| {
            let program = SchedClassifier::from_pin(lab.datapath.frozen().join(name)).unwrap();
            program.fd().unwrap().as_fd().try_clone_to_owned().unwrap()
        };
        Self { from_pod: open(names::FROM_POD), to_pod: open(names::TO_POD) }
    }

    fn send(&self, pod: &Pod, packet: &[u8]) -> i32 {
        test_run(self.from_pod.as_fd(), packet, pod.ifindex, 0, 0, 1).unwrap().result
    }

    fn deliver(&self, pod: &Pod, packet: &[u8]) -> i32 {
        test_run(self.to_pod.as_fd(), packet, pod.ifindex, elsewhere(), 0, 1).unwrap().result
    }
}

fn peers() -> [IpAddr; 2] {
    ["203.0.113.9".parse().unwrap(), "2001:db8::9".parse().unwrap()]
}

/// Pods: 1 may open flows and be reached by nobody, as 4, whose flows are silent; 2 may be reached; 3 may
/// do nothing any more.
struct Scene {
    hooks: Hooks,
    caller: Pod,
    server: Pod,
    revoked: Pod,
    silent: Pod,
}

impl Scene {
    fn new(lab: &mut Lab) -> Self {
        let [caller, server, revoked, silent] = [1, 2, 3, 4].map(|n| lab.pod(n));
        let scene = Self { hooks: Hooks::open(lab), caller, server, revoked, silent };
        for peer in peers() {
            let Self { hooks, caller, server, revoked, .. } = &scene;
            // Established with the outside; answered once and silent since; with the other pod.
            assert_eq!(hooks.send(caller, &tcp_from(caller, peer, 1000, 80, SYN)), PASS);
            assert_eq!(hooks.deliver(caller, &tcp_to(caller, peer, 80, 1000, SYN_ACK)), PASS);
            assert_eq!(hooks.send(caller, &udp_from(caller, peer, 1001, 53)), PASS);
            let other = own(server, peer);
            assert_eq!(hooks.send(caller, &tcp_from(caller, other, 1002, 80, SYN)), REDIRECT);
            let back = own(caller, peer);
            assert_eq!(hooks.send(server, &tcp_from(server, back, 80, 1002, SYN_ACK)), REDIRECT);
            assert_eq!(hooks.send(revoked, &tcp_from(revoked, peer, 1003, 80, SYN)), PASS);
            assert_eq!(hooks.deliver(revoked, &tcp_to(revoked, peer, 80, 1003, SYN_ACK)), PASS);
        }
        scene.rule(lab);
        scene
    }

    fn pods(&self) -> [&Pod; 4] {
        [&self.caller, &self.server, &self.revoked, &self.silent]
    }

    fn rule(&self, lab: &mut Lab) {
        let calls = EndpointPolicy { ingress: Side::CLOSED, egress: Side::OPEN };
        let serves = EndpointPolicy { ingress: Side::OPEN, egress: Side::CLOSED };
        let rules = [calls, serves, EndpointPolicy::CLOSED, calls];
        let endpoints = self.pods().iter().zip(rules).map(|(p, rules)| (p.slot(), Some(rules))).collect();
        lab.apply(Delta { endpoints, ..Delta::default() });
    }

    /// What an agent does from its start on, up to the point at which its programs come into force.
    fn start(&self, lab: &mut Lab, build: Build, capacities: Capacities) {
        lab.restart_as(build, capacities);
        for pod in self.pods() {
            lab.datapath.register_unattached(&pod.identity).unwrap();
        }
        self.rule(lab);
        for pod in self.pods() {
            lab.datapath.unlock(pod.slot()).unwrap();
        }
    }
}

fn own(pod: &Pod, other: IpAddr) -> IpAddr {
    crate::packets::own(pod, other)
}

/// One round of traffic; `n` counts them. What was wrong is told.
fn round(scene: &Scene, n: u16, wrong: &mut Vec<String>) {
    let Scene { hooks, caller, server, revoked, .. } = scene;
    let mut expect = |what: &str, result: i32, expected: i32| {
        if result != expected {
            wrong.push(format!("round {n}: {what}: {result}"));
        }
    };
    for peer in peers() {
        expect("established, sent", hooks.send(caller, &tcp_from(caller, peer, 1000, 80, ACK)), PASS);
        expect("established, got", hooks.deliver(caller, &tcp_to(caller, peer, 80, 1000, ACK)), PASS);
        // Nothing but answers, which only the flow lets in.
        expect("one way", hooks.deliver(caller, &udp_to(caller, peer, 53, 1001)), PASS);
        let (there, back) = (own(server, peer), own(caller, peer));
        expect("on the node", hooks.send(caller, &tcp_from(caller, there, 1002, 80, ACK)), REDIRECT);
        expect("on the node, back", hooks.send(server, &tcp_from(server, back, 80, 1002, ACK)), REDIRECT);
        // A new flow; the one of the last round is answered.
        let port = 20_000 + n % 20_000;
        let before = 20_000 + n.wrapping_sub(1) % 20_000;
        expect("opened", hooks.send(caller, &udp_from(caller, peer, port, 53)), PASS);
        if n > 0 {
            expect("answered", hooks.deliver(caller, &udp_to(caller, peer, 53, before)), PASS);
        }
        expect("denied, in", hooks.deliver(caller, &udp_to(caller, peer, 54, port)), DROP);
        expect("denied, out", hooks.send(server, &udp_from(server, peer, port, 53)), DROP);
        expect("revoked, out", hooks.send(revoked, &tcp_from(revoked, peer, 1003, 80, ACK)), DROP);
        expect("revoked, in", hooks.deliver(revoked, &tcp_to(revoked, peer, 80, 1003, ACK)), DROP);
    }
    // The later fragment of the last round's datagram, then the first of this one's.
    let IpAddr::V4(outside) = peers()[0] else { return };
    let fragment = |n: u16, place: u16, body: &[u8]| {
        let mut packet = ip4(caller.v4, outside, UDP, &[], place, body);
        packet[4..6].copy_from_slice(&n.to_be_bytes());
        framed(caller, true, &packet)
    };
    if n > 0 {
        expect("later fragment", hooks.send(caller, &fragment(n - 1, 2, &[0; 8])), PASS);
    }
    let first = udp(1001, 53, &[0; 8]);
    expect("first fragment", hooks.send(caller, &fragment(n, 0x2000, &first)), PASS);
}

/// Runs `during` while traffic flows; returns how many rounds of it there were.
fn under_traffic(scene: &Arc<Scene>, during: impl FnOnce(&dyn Fn())) -> u64 {
    let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (scene, stopped, counted) = (Arc::clone(scene), Arc::clone(&stop), Arc::clone(&rounds));
    let traffic = thread::spawn(move || {
        let mut wrong = Vec::new();
        let mut n = 0;
        while !stopped.load(Ordering::Relaxed) {
            round(&scene, n, &mut wrong);
            n = n.wrapping_add(1);
            counted.fetch_add(1, Ordering::Relaxed);
        }
        wrong
    });
    // Waits for some traffic.
    let flowing = || {
        let now = rounds.load(Ordering::Relaxed);
        while rounds.load(Ordering::Relaxed) < now + 20 && !traffic.is_finished() {
            thread::yield_now();
        }
    };
    flowing();
    during(&flowing);
    flowing();
    stop.store(true, Ordering::Relaxed);
    let wrong = traffic.join().unwrap();
    assert!(wrong.is_empty(), "{} wrong, first {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    rounds.load(Ordering::Relaxed)
}

fn pins(maps: &[Lasting]) -> std::collections::BTreeSet<String> {
    maps.iter().map(|map| format!("{}-{}", map.name, map.layout)).chain([names::STATE.to_owned()]).collect()
}

#[test]
fn upgrade_and_rollback_lose_no_flow_and_open_none() {
    in_lab(|lab| {
        let scene = Arc::new(Scene::new(lab));
        let (hooks, silent) = (&scene.hooks, &scene.silent);
        // Silent flows, opened under one version and heard of under the next.
        let open = |from: u16, answered: bool| {
            for peer in peers() {
                for port in from..from + WAITING {
                    assert_eq!(hooks.send(silent, &udp_from(silent, peer, port, 53)), PASS);
                    if answered {
                        assert_eq!(hooks.deliver(silent, &udp_to(silent, peer, 53, port)), PASS);
                    }
                }
            }
        };
        let hear = |from: u16| {
            for peer in peers() {
                for port in from..from + WAITING {
                    let run = hooks.deliver(silent, &udp_to(silent, peer, 53, port));
                    assert_eq!(run, PASS, "{peer} {port}");
                }
            }
        };
        let mut fewer = Capacities::default();
        fewer.flows /= 2;
        let now = Build::default();
        let versions = [
            (next_version(), Capacities::default()),
            (now, Capacities::default()),
            (next_version(), Capacities::default()),
            (now, Capacities::default()),
            // A change of a size alone.
            (now, fewer),
        ];
        let count = under_traffic(&scene, |flowing| {
            for ((version, capacities), from) in versions.into_iter().zip((10_000..).step_by(200)) {
                open(from, true);
                scene.start(lab, version, capacities);
                open(from + 100, false);
                flowing();
                lab.datapath.activate().unwrap();
                assert_eq!(lab.lasting(), pins(version.lasting));
                hear(from);
                hear(from + 100);
                flowing();
            }
        });
        println!("rounds of traffic: {count}");
    });
}

#[test]
fn a_newer_agent_that_dies_before_it_is_in_force_leaves_nothing_behind() {
    in_lab(|lab| {
        let scene = Arc::new(Scene::new(lab));
        under_traffic(&scene, |flowing| {
            scene.start(lab, next_version(), Capacities::default());
            flowing();
            scene.start(lab, Build::default(), Capacities::default());
            assert_ne!(lab.lasting(), pins(&LASTING));
            lab.datapath.activate().unwrap();
            assert_eq!(lab.lasting(), pins(&LASTING));
        });
    });
}
