//! What a verdict costs: programs run by BPF_PROG_TEST_RUN on one packet, in nanoseconds over an empty
//! program, hot.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fairlead_common::maps::{
    CLASS_FIRST, DEFAULT_MARK_MASK, EndpointPolicy, PortSet, SET_FIRST, SET_NONE, SLOT_SETTLED, Side, names,
    slot_of,
};
use fairlead_datapath::{Datapath, Identity, Options, test_run};
use fairlead_policy::model::Protocol;
use fairlead_policy::tables::{Delta, PortClass, Slot};
use fairlead_tests::namespace::Namespace;

use crate::Settings;
use crate::report::{Figure, Report, table};
use crate::stats::Samples;

/// Runs of a program in one measurement.
const REPEAT: u32 = 50_000;
/// New flows in one round.
const NEW: u16 = 500;
/// Sizes of the table of exact peers, and of regions.
const PEERS: [u32; 3] = [10, 1_000, 100_000];
const CIDRS: [u32; 3] = [10, 1_000, 50_000];
const RULES: u32 = 2;
const PORT: u16 = 80;
const PASS: i32 = -1;

/// Name of the case that is another flow with each run.
const FRESH: &str = "new_flow_cold";
const SYN: u8 = 2;
const ACK: u8 = 16;

pub(crate) async fn run(settings: &Settings) -> Result<Report> {
    let rounds = settings.rounds.unwrap_or(if settings.full { 60 } else { 20 });
    let node = Namespace::new_node("node").await?;
    let mut lab = node.run(Lab::new).await??;
    for _ in 0..rounds {
        // One at a time, so that an interruption need not wait for all.
        lab = node.run(move || lab.round().map(|()| lab)).await??;
    }
    report(&lab.cases)
}

/// A program run on a packet, and what it must answer.
struct Case {
    name: String,
    what: String,
    program: OwnedFd,
    packet: Vec<u8>,
    result: i32,
    target: Option<f64>,
    /// What it is more than: the empty program, or this case.
    over: Option<usize>,
    values: Vec<f64>,
}

fn pod(number: u8) -> Identity {
    Identity {
        ifindex: 0x10000 + u32::from(number),
        host_mac: [2, 0, 0, 0, 1, number],
        pod_mac: [2, 0, 0, 0, 2, number],
        addresses: vec![
            Ipv4Addr::new(10, 1, 0, number).into(),
            Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number.into()).into(),
        ],
        mtu: 1500,
        fast_path: true,
    }
}

/// An address outside the node; `within` tells which table knows it.
fn peer(ipv6: bool, within: u8) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, within.into(), 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(203, 0, within, 1).into()
    }
}

/// A TCP packet with its Ethernet header.
fn tcp(pod: &Identity, sends: bool, peer: IpAddr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    let own = pod.addresses[usize::from(peer.is_ipv6())];
    let (source, destination) = if sends { (own, peer) } else { (peer, own) };
    let (from, to) = if sends { (pod.pod_mac, pod.host_mac) } else { (pod.host_mac, pod.pod_mac) };
    let mut packet = [&to[..], &from[..]].concat();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let mut header = vec![0x45, 0, 0, 40, 0, 7, 0x40, 0, 64, 6, 0, 0];
            header.extend(s.octets());
            header.extend(d.octets());
            let sum: u32 = header.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
            let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            packet.extend([8, 0]);
            packet.extend(header);
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            packet.extend(s.octets());
            packet.extend(d.octets());
        }
        _ => {}
    }
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet
}

/// Loads `r0 = TC_ACT_UNSPEC; exit`.
fn empty() -> Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        code: u64,
        license: u64,
        log: [u64; 2],
        rest: [u64; 12],
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    const SCHED_CLS: u32 = 3;
    let code: [u64; 2] = [0xb7 | 0xffff_ffff << 32, 0x95];
    let load = Load {
        kind: SCHED_CLS,
        count: 2,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: code and licence outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    ensure!(fd >= 0, "cannot load an empty program: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Opens the trampoline that is pinned.
fn trampoline(datapath: &Datapath) -> Result<OwnedFd> {
    #[repr(C)]
    struct Get(u64, u32, u32);
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = datapath.frozen().join(names::FROM_POD);
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let get = Get(path.as_ptr() as u64, 0, 0);
    // SAFETY: the path outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const get, size_of::<Get>()) };
    ensure!(fd >= 0, "cannot open the trampoline: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A datapath of its own, with peers and regions of these numbers, and pods 1 (egress isolated) and
/// 2 (not isolated).
fn datapath(folder: &str, peers: u32, cidrs: u32) -> Result<Datapath> {
    let mut datapath = Datapath::open(&Options::new(format!("/sys/fs/bpf/{folder}")))?;
    let mut web = PortSet::NONE;
    web.insert(CLASS_FIRST);
    let mut delta = Delta {
        serial: 1,
        sets: vec![(SET_FIRST, web)],
        ports: vec![PortClass { protocol: Protocol::Tcp, first: PORT, last: PORT, class: CLASS_FIRST }],
        rows: vec![((RULES, 1), Some(SET_FIRST)), ((RULES, 2), Some(SET_FIRST))],
        ..Delta::default()
    };
    for ipv6 in [false, true] {
        delta.peers.push((peer(ipv6, 113), Some(1)));
        let region = peer(ipv6, 114);
        delta.cidrs.push((ipnetwork::IpNetwork::new(region, if ipv6 { 48 } else { 24 })?, Some(2)));
    }
    for i in 1..peers {
        delta.peers.push((Ipv4Addr::from_bits(0x0a80_0000 + i).into(), Some(1)));
        delta.peers.push((Ipv6Addr::from_bits(0xfd80 << 112 | u128::from(i)).into(), Some(1)));
    }
    for i in 1..cidrs {
        let network = Ipv4Addr::from_bits(0x2000_0000 + (i << 12));
        delta.cidrs.push((ipnetwork::IpNetwork::new(network.into(), 20 + (i % 9) as u8)?, Some(2)));
        let network = Ipv6Addr::from_bits(0x2002 << 112 | u128::from(i) << 80);
        delta.cidrs.push((ipnetwork::IpNetwork::new(network.into(), 48 + (i % 17) as u8)?, Some(2)));
    }
    let isolated =
        EndpointPolicy { ingress: Side::OPEN, egress: Side { signature: RULES, default_set: SET_NONE } };
    for (number, policy) in [(1, isolated), (2, EndpointPolicy::OPEN)] {
        datapath.register_unattached(&pod(number))?;
        delta.endpoints.push((slot_of(pod(number).ifindex) as Slot, Some(policy)));
    }
    datapath.apply(&delta)?;
    for number in 1..=2 {
        datapath.unlock(slot_of(pod(number).ifindex) as Slot)?;
    }
    datapath.activate()?;
    Ok(datapath)
}

/// What is measured, in a node's namespaces.
struct Lab {
    empty: OwnedFd,
    cases: Vec<Case>,
    /// Source port of the last new flow.
    port: u16,
    /// They keep what the cases run in force.
    _datapaths: Vec<Datapath>,
}

impl Lab {
    fn new() -> Result<Self> {
        for number in 1..=2_u8 {
            let index = pod(number).ifindex.to_string();
            let status = Command::new("ip")
                .args(["link", "add", &format!("h{number}"), "index", &index, "type", "veth"])
                .status()
                .context("cannot run ip")?;
            ensure!(status.success(), "cannot make a veth");
        }
        let empty = empty()?;
        let main = datapath("main", PEERS[0], CIDRS[0])?;
        let mut sized = Vec::new();
        for (peers, cidrs) in PEERS.into_iter().zip(CIDRS) {
            sized.push((
                peers,
                cidrs,
                datapath(&format!("p{peers}"), peers, CIDRS[0])?,
                datapath(&format!("c{cidrs}"), PEERS[0], cidrs)?,
            ));
        }
        let mut cases: Vec<Case> = Vec::new();
        let (isolated, open) = (pod(1), pod(2));
        for ipv6 in [false, true] {
            let family = if ipv6 { "ipv6" } else { "ipv4" };
            let from_pod = || main.program("from_pod");
            let case = |name: &str, what: &str, program: OwnedFd, packet: Vec<u8>, target| Case {
                name: format!("{name}.{family}"),
                // Cases without words are only what others are measured over.
                what: if what.is_empty() {
                    String::new()
                } else {
                    format!("{what}, {}", if ipv6 { "IPv6" } else { "IPv4" })
                },
                program,
                packet,
                result: PASS,
                target,
                over: None,
                values: Vec::new(),
            };
            // A flow to the outside, answered.
            let to = peer(ipv6, 113);
            let send = |packet: &[u8], pod: &Identity| {
                test_run(main.program("from_pod")?.as_fd(), packet, pod.ifindex, 0, 0, 1)
                    .map_err(anyhow::Error::from)
            };
            send(&tcp(&isolated, true, to, (1000, PORT), SYN), &isolated)?;
            let mark = SLOT_SETTLED << DEFAULT_MARK_MASK.trailing_zeros();
            let answer = tcp(&isolated, false, to, (PORT, 1000), SYN | ACK);
            test_run(main.program("to_pod")?.as_fd(), &answer, isolated.ifindex, mark, 0, 1)?;
            let known = tcp(&isolated, true, to, (1000, PORT), ACK);
            cases.push(case(
                "known_flow",
                "a known flow to the outside",
                from_pod()?,
                known.clone(),
                Some(45.0),
            ));
            let direct = cases.len() - 1;
            let mut through =
                case("trampoline", "the trampoline's share of it", trampoline(&main)?, known, None);
            through.over = Some(direct);
            cases.push(through);
            // A bare SYN is judged anew each time; not isolated, it meets no tables.
            for (size, datapath, within, name, what, target) in
                sized.iter().flat_map(|(peers, cidrs, p, c)| {
                    [
                        (peers, p, 113, "pod_peer", "exact peers", 60.0),
                        (cidrs, c, 114, "cidr_peer", "regions", 140.0),
                    ]
                })
            {
                let without = tcp(&open, true, peer(ipv6, within), (2000, PORT), SYN);
                let with = tcp(&isolated, true, peer(ipv6, within), (2000, PORT), SYN);
                cases.push(case(
                    &format!("judged_open.{name}.{size}"),
                    "",
                    datapath.program("from_pod")?,
                    without,
                    None,
                ));
                let mut tables = case(
                    &format!("tables.{name}.{size}"),
                    &format!("the tables alone, {size} {what}"),
                    datapath.program("from_pod")?,
                    with,
                    Some(target),
                );
                tables.over = Some(cases.len() - 1);
                cases.push(tables);
            }
            let opening = tcp(&isolated, true, to, (3000, PORT), SYN);
            let what = "a flow's opening, judged and recorded anew each time";
            cases.push(case("new_flow", what, from_pod()?, opening, Some(450.0)));
            let opening = tcp(&isolated, true, to, (0, PORT), SYN);
            let fresh = case(
                FRESH,
                "as many new flows, one run each, so that less is hot",
                from_pod()?,
                opening,
                None,
            );
            cases.push(fresh);
        }
        let mut datapaths = vec![main];
        datapaths.extend(sized.into_iter().flat_map(|(_, _, peers, cidrs)| [peers, cidrs]));
        Ok(Self { empty, cases, port: 1024, _datapaths: datapaths })
    }

    /// Measures each case once.
    fn round(&mut self) -> Result<()> {
        let isolated = pod(1);
        let Self { empty, cases, port, .. } = self;
        let interface = |case: &Case| {
            let source = &case.packet[6..12];
            [1, 2].map(pod).into_iter().find(|p| p.pod_mac == source).map_or(0, |p| p.ifindex)
        };
        let nothing = test_run(empty.as_fd(), &cases[0].packet, isolated.ifindex, 0, 0, REPEAT)?.nanoseconds;
        let mut before = Vec::new();
        for case in cases {
            let ifindex = interface(case);
            let value = if case.name.starts_with(FRESH) {
                let (mut with, mut without) = (Vec::new(), Vec::new());
                for _ in 0..NEW {
                    *port = if *port == u16::MAX { 1024 } else { *port + 1 };
                    let at = case.packet.len() - 20;
                    case.packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
                    let run = test_run(case.program.as_fd(), &case.packet, ifindex, 0, 0, 1)?;
                    ensure!(run.result == case.result, "{}: result {}", case.name, run.result);
                    with.push(f64::from(run.nanoseconds));
                    let run = test_run(empty.as_fd(), &case.packet, ifindex, 0, 0, 1)?;
                    without.push(f64::from(run.nanoseconds));
                }
                Samples::new(with)?.median() - Samples::new(without)?.median()
            } else {
                let run = test_run(case.program.as_fd(), &case.packet, ifindex, 0, 0, REPEAT)?;
                ensure!(run.result == case.result, "{}: result {}", case.name, run.result);
                f64::from(run.nanoseconds) - case.over.map_or(f64::from(nothing), |i: usize| before[i])
            };
            // What others are measured over is kept as it was, not less the empty program.
            before.push(value + if case.over.is_none() { f64::from(nothing) } else { 0.0 });
            case.values.push(value);
        }
        Ok(())
    }
}

fn report(cases: &[Case]) -> Result<Report> {
    let mut report = Report::default();
    let mut rows = Vec::new();
    for case in cases.iter().filter(|c| !c.what.is_empty()) {
        let samples = Samples::new(case.values.clone())?;
        let beside = match case.over {
            None => "an empty program".to_owned(),
            Some(i) if cases[i].what.is_empty() => "the same packet of a pod that is not isolated".to_owned(),
            Some(i) => cases[i].what.clone(),
        };
        let figure = Figure::new(format!("verdict.{}", case.name), samples.median(), "ns").beside(beside);
        let figure = match case.target {
            Some(target) => figure.at_most(target),
            None => figure,
        };
        let target = case.target.map_or_else(String::new, |t| format!("≤ {t}"));
        rows.push(vec![case.what.clone(), samples.told(0), target, figure.verdict().to_owned()]);
        report.figures.push(figure);
    }
    report.text = format!(
        "The programs by `BPF_PROG_TEST_RUN`, {REPEAT} runs on one packet a round, {} rounds, all cases in turn:\n\
         everything is hot. Over an empty program; the tables over the same packet of a pod that is not\n\
         isolated; new flows of one run each over an empty program run the same way.\n\n{}",
        cases[0].values.len(),
        table(&["ns a packet", "median (quartiles, min)", "target", ""], &rows)
    );
    Ok(report)
}
