//! Dropped packets as events.

use std::net::IpAddr;

use fairlead_common::maps::{EVENTS_PER_TICK, EndpointPolicy};
use fairlead_common::reason::DropReason;
use fairlead_datapath::{DropRecord, Events, Losses};
use fairlead_policy::oracle::Direction;
use fairlead_policy::tables::Delta;

use crate::lab::{DROP, Lab, Pod, in_lab};
use crate::packets::{SYN, tcp_to, udp_to};

fn all(events: &mut Events) -> Vec<DropRecord> {
    std::iter::from_fn(|| events.take()).collect()
}

/// The kernel's tick, in which allowances are counted.
fn tick() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure lives through the call.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) }, 0);
    (time.tv_sec * 1_000_000_000 + time.tv_nsec) >> 30
}

/// Drops packets at a locked pod, all within one tick.
fn flood(lab: &mut Lab, first: u8, packets: u32) -> Pod {
    for n in first..first + 20 {
        let pod = lab.locked_pod(n);
        let packet = udp_to(&pod, IpAddr::from([192, 0, 2, 1]), 1000, 53);
        let before = tick();
        for _ in 0..packets {
            assert_eq!(lab.deliver(&pod, &packet).result, DROP);
        }
        if tick() == before {
            return pod;
        }
    }
    panic!("{packets} packets do not fit into a tick");
}

#[test]
fn each_dropped_packet_is_an_event_with_what_it_was() {
    in_lab(|lab| {
        let mut events = lab.datapath.take_events().unwrap().unwrap();
        assert!(lab.datapath.take_events().unwrap().is_none());
        let pod = lab.locked_pod(1);
        let closed = vec![(pod.slot(), Some(EndpointPolicy::CLOSED))];
        lab.apply(Delta { endpoints: closed, ..Delta::default() });
        lab.datapath.unlock(pod.slot()).unwrap();
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        lab.deliver(&pod, &tcp_to(&pod, v4, 1000, 80, SYN));
        lab.deliver(&pod, &udp_to(&pod, v6, 1001, 53));
        let mut arp = vec![0xff; 6];
        arp.extend([2, 9, 9, 9, 9, 9, 0x88, 0xcc]);
        arp.resize(60, 0);
        let other = lab.pod(2);
        lab.send(&other, &arp);
        let got = all(&mut events);
        let ingress = |addresses, protocol, source_port, destination_port, ether_type| DropRecord {
            ifindex: pod.ifindex,
            direction: Direction::Ingress,
            reason: DropReason::IngressDenied,
            addresses,
            protocol,
            source_port,
            destination_port,
            ether_type,
            missed: 0,
            generation: got[0].generation,
        };
        assert_eq!(got.len(), 3, "{got:?}");
        assert_eq!((got[2].ifindex, got[2].direction), (other.ifindex, Direction::Egress));
        assert_eq!((got[2].addresses, got[2].ether_type), (None, 0x88cc));
        assert_eq!(got[2].reason, DropReason::EtherType);
        for (event, whole) in got.iter().zip([
            ingress(Some((v4, pod.v4.into())), 6, 1000, 80, 0x0800),
            ingress(Some((v6, pod.v6.into())), 17, 1001, 53, 0x86dd),
        ]) {
            assert_eq!(*event, whole);
        }
        assert_eq!(all(&mut events), []);
    });
}

#[test]
fn an_endpoint_that_drops_more_than_its_allowance_is_counted() {
    in_lab(|lab| {
        let mut events = lab.datapath.take_events().unwrap().unwrap();
        let losses = lab.datapath.event_losses().unwrap();
        let pod = flood(lab, 1, EVENTS_PER_TICK + 150);
        let before = all(&mut events).iter().filter(|e| e.ifindex == pod.ifindex).count();
        assert_eq!(before, EVENTS_PER_TICK as usize);
        let drops: u64 = (1..=pod.identity.host_mac[5])
            .map(|n| lab.counters(&Lab::pod_numbered(n)).ingress.drops.values().sum::<u64>())
            .sum();
        let lost = losses.read().unwrap();
        assert_eq!((lost.full, lab.counters(&pod).ingress.drops[&DropReason::Locked]), (0, 250));
        assert!(lost.limited >= 150 && lost.limited <= drops - 100, "{lost:?} of {drops}");
        // The next one, in a tick of its own, tells of them.
        let then = tick();
        while tick() == then {
            std::thread::yield_now();
        }
        lab.deliver(&pod, &udp_to(&pod, IpAddr::from([192, 0, 2, 1]), 1000, 53));
        assert_eq!(all(&mut events).iter().map(|e| e.missed).collect::<Vec<_>>(), [150]);
    });
}

#[test]
fn what_a_full_buffer_does_not_take_is_counted_and_the_next_agent_reads_what_is_there() {
    in_lab(|lab| {
        let pods: Vec<Pod> = (1..=50).map(|n| lab.locked_pod(n)).collect();
        for pod in &pods {
            let packet = udp_to(pod, IpAddr::from([192, 0, 2, 1]), 1000, 53);
            for _ in 0..EVENTS_PER_TICK {
                lab.deliver(pod, &packet);
            }
        }
        lab.restart();
        let mut events = lab.datapath.take_events().unwrap().unwrap();
        let there = all(&mut events).len() as u64;
        let Losses { limited, full } = lab.datapath.event_losses().unwrap().read().unwrap();
        assert_eq!((there + full, limited), (50 * u64::from(EVENTS_PER_TICK), 0));
        assert!(full > 0, "{there} events fit");
    });
}
