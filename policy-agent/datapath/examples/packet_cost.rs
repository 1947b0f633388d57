//! What the programs cost: the verifier's work at load, and nanoseconds per packet.
//!
//! `packet_cost BPFFS IFINDEX IFINDEX`, as root, with a BPF file system of its own and two interfaces
//! of the current network namespace with those indexes. Figures are medians of BPF_PROG_TEST_RUN.
#![expect(clippy::print_stdout, reason = "what it is for")]

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::Instant;

use fairlead_common::maps::{
    DEFAULT_MARK_MASK, EndpointPolicy, SET_ALL, SET_NONE, SLOT_SETTLED, Side, slot_of,
};
use fairlead_datapath::{Datapath, Identity, Options, test_run};
use fairlead_policy::tables::Delta;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bpffs, a, b] = arguments.as_slice() else { return Err("BPFFS IFINDEX IFINDEX".into()) };
    let started = Instant::now();
    let mut datapath = Datapath::open(&Options::new(bpffs))?;
    println!("open: {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    for name in ["from_pod", "to_pod", "from_uplink", "to_uplink"] {
        println!("{name}: {} instructions verified", verified(&datapath.program(name)?)?);
    }
    let pods: Vec<Identity> = [(1u8, a), (2, b)]
        .iter()
        .map(|(n, index)| Ok(identity(*n, index.parse()?)))
        .collect::<Result<_, Failure>>()?;
    for pod in &pods {
        datapath.register_unattached(pod)?;
    }
    let ruled = Side { signature: 2, default_set: SET_NONE };
    let policy = EndpointPolicy { ingress: ruled, egress: ruled };
    let slots: Vec<u16> = pods.iter().map(|p| slot_of(p.ifindex) as u16).collect();
    datapath.apply(&Delta {
        peers: pods
            .iter()
            .flat_map(|p| p.addresses.iter().map(|a| (*a, Some(1))))
            .chain([(Ipv4Addr::new(192, 0, 2, 1).into(), Some(1))])
            .collect(),
        cidrs: (0..1000u32)
            .map(|n| Ok((format!("198.{}.{}.0/24", 18 + n / 256, n % 256).parse()?, Some(1))))
            .collect::<Result<_, Failure>>()?,
        rows: vec![((2, 1), Some(SET_ALL))],
        endpoints: slots.iter().map(|s| (*s, Some(policy))).collect(),
        serial: 1,
        ..Delta::default()
    })?;
    for slot in &slots {
        datapath.unlock(*slot)?;
    }
    datapath.activate()?;
    let from_pod = datapath.program("from_pod")?;
    let to_pod = datapath.program("to_pod")?;
    let me = &pods[0];
    let out = |to: [u8; 4], flags: u8| tcp(me.pod_mac, me.host_mac, [10, 1, 0, 1], to, flags);
    let arrives = |from: [u8; 4], flags: u8| tcp(me.host_mac, me.pod_mac, from, [10, 1, 0, 1], flags);
    let to_uplink = datapath.program("to_uplink")?;
    let elsewhere = SLOT_SETTLED << DEFAULT_MARK_MASK.trailing_zeros();
    let time = |program: &OwnedFd, packet: &[u8], mark: u32| -> Result<u32, Failure> {
        let mut times = Vec::new();
        for _ in 0..9 {
            times.push(test_run(program.as_fd(), packet, me.ifindex, mark, 0, 200_000)?.nanoseconds);
        }
        times.sort_unstable();
        Ok(times[4])
    };
    let other = |flags: u8| tcp(pods[1].pod_mac, pods[1].host_mac, [10, 1, 0, 2], [10, 1, 0, 1], flags);
    // A flow each that was answered.
    for (program, packet, ifindex, mark) in [
        (&from_pod, out([192, 0, 2, 1], 2), me.ifindex, 0),
        (&to_pod, arrives([192, 0, 2, 1], 18), me.ifindex, elsewhere),
        (&from_pod, out([10, 1, 0, 2], 2), me.ifindex, 0),
        (&from_pod, other(18), pods[1].ifindex, 0),
    ] {
        if test_run(program.as_fd(), &packet, ifindex, mark, 0, 1)?.result != -1 {
            return Err("a packet that is allowed did not pass".into());
        }
    }
    for (what, program, packet, mark) in [
        ("almost nothing (to_uplink, not a pod's)", &to_uplink, out([192, 0, 2, 1], 16), 0),
        ("from_pod, known flow to the outside", &from_pod, out([192, 0, 2, 1], 16), 0),
        ("to_pod, known flow", &to_pod, arrives([192, 0, 2, 1], 18), elsewhere),
        ("from_pod, known flow to a pod of the node, by the stack", &from_pod, out([10, 1, 0, 2], 16), 0),
        ("from_pod, unanswered flow", &from_pod, out([198, 18, 9, 1], 16), 0),
        ("from_pod, new flow each time, exact peer", &from_pod, out([192, 0, 2, 1], 2), 0),
        ("from_pod, new flow each time, CIDR", &from_pod, out([198, 18, 7, 1], 2), 0),
        ("from_pod, denied", &from_pod, out([203, 0, 113, 1], 2), 0),
        ("to_pod, unanswered flow", &to_pod, arrives([192, 0, 2, 1], 16), elsewhere),
        ("to_pod, new flow each time", &to_pod, arrives([192, 0, 2, 1], 2), elsewhere),
    ] {
        println!("{what}: {} ns", time(program, &packet, mark)?);
    }
    Ok(())
}

fn identity(n: u8, ifindex: u32) -> Identity {
    Identity {
        ifindex,
        host_mac: [2, 0, 0, 0, 1, n],
        pod_mac: [2, 0, 0, 0, 2, n],
        addresses: vec![IpAddr::from([10, 1, 0, n])],
        mtu: 1500,
        // A redirected packet would leave the test's loop.
        fast_path: false,
    }
}

/// From port 40000 to port 80 where SYN or ACK is alone, else back.
fn tcp(source: [u8; 6], destination: [u8; 6], from: [u8; 4], to: [u8; 4], flags: u8) -> Vec<u8> {
    let mut frame =
        [&destination[..], &source, &[8, 0, 0x45, 0, 0, 40, 0, 7, 0x40, 0, 64, 6, 0, 0], &from, &to].concat();
    let ports = if flags == 18 { [0, 80, 0x9c, 0x40] } else { [0x9c, 0x40, 0, 80] };
    frame.extend(ports);
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

/// `bpf_prog_info.verified_insns`.
fn verified(program: &OwnedFd) -> std::io::Result<u32> {
    const OBJ_GET_INFO_BY_FD: u32 = 15;
    let mut info = [0u8; 224];
    let mut attr = [0u8; 16];
    attr[..4].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
    attr[4..8].copy_from_slice(&224u32.to_ne_bytes());
    attr[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: the attribute points to a buffer of the length that it gives.
    let result = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, attr.as_mut_ptr(), attr.len()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let [a, b, c, d] = [info[216], info[217], info[218], info[219]];
    Ok(u32::from_ne_bytes([a, b, c, d]))
}
