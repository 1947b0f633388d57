//! Frames as a driver has them: a program of XDP, run by the kernel again and again (`BPF_F_TEST_XDP_LIVE_FRAMES`),
//! redirects them into a veth, whose other end meets them without a socket buffer.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fairlead_tests::fabric::UPLINK;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::offloads::Offload;
use nix::net::if_::if_nametoindex;

use crate::datapath::load::{HERE, thread};

/// Frames of one call: the kernel makes them anew for each.
const BATCH: u32 = 64;
const CALL: u32 = 8192;
/// Bytes behind the UDP header.
pub(super) const PAYLOAD: usize = 64;

/// The other end of a node's uplink.
pub(super) struct Wire {
    port: String,
    mac: [u8; 6],
}

impl Wire {
    /// Of the node whose uplink ends as `p-NAME` in the namespace of the L2.
    pub(super) async fn of(node: &Namespace) -> Result<Self> {
        let list = || Command::new("ip").args(["-j", "link", "show", "dev", UPLINK]).output();
        let listed: serde_json::Value = serde_json::from_slice(&node.run(list).await??.stdout)?;
        let text = listed[0]["address"].as_str().context("ip lists no address")?;
        let mut mac = [0; 6];
        for (byte, word) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(word, 16).context("no MAC address")?;
        }
        // Frames reach a veth only where it polls, as drivers of NICs do; and those put together what arrives.
        node.run(|| Offload::Receive.set(UPLINK, true)).await??;
        Ok(Self { port: format!("p-{}", node.name()), mac })
    }

    /// Sends one datagram's frame for this long; how many, and how long it took.
    pub(super) async fn send(
        &self,
        l2: &Namespace,
        to: IpAddr,
        port: u16,
        time: Duration,
    ) -> Result<(u64, Duration)> {
        let IpAddr::V4(to) = to else { bail!("{to} is no IPv4 address") };
        let (frame, device) = (frame(self.mac, to, port), self.port.clone());
        let work = move || {
            let program = redirect(if_nametoindex(device.as_str())?, &frame)?;
            // What has arrived goes first: where the kernel has left it to a thread of its own, sending on would only fill the
            // ring. SAFETY: two numbers; no memory is passed.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
            let (begin, mut frames) = (Instant::now(), 0);
            while begin.elapsed() < time {
                run(&program, &frame)?;
                frames += u64::from(CALL);
            }
            Ok((frames, begin.elapsed(), Duration::ZERO))
        };
        let join = move || thread(Some(HERE), work).join();
        let (frames, took, _) = l2.run(join).await?.map_err(|_| anyhow::anyhow!("the sender died"))??;
        Ok((frames, took))
    }
}

/// A datagram from outside, without a checksum, as UDP over IPv4 allows.
fn frame(mac: [u8; 6], to: Ipv4Addr, port: u16) -> Vec<u8> {
    let length = 20 + 8 + PAYLOAD as u16;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    header.extend([172, 20, 0, 200]);
    header.extend(to.octets());
    let sum: u32 = header.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&mac[..], &[2, 0, 0, 0, 9, 9, 8, 0]].concat();
    frame.extend(header);
    frame.extend(5000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((8 + PAYLOAD as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend([0; PAYLOAD]);
    frame
}

fn bpf(command: libc::c_long, attr: &mut [u32; 20]) -> io::Result<i32> {
    // SAFETY: whoever fills in `attr` lets what it points to outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn pointer(attr: &mut [u32; 20], at: usize, to: u64) {
    (attr[at], attr[at + 1]) = (to as u32, (to >> 32) as u32);
}

/// Loads a program that redirects frames like this one. The kernel uses their memory again and again, with what whoever got
/// them has written into it: the next hop's MAC address, a hop less and its checksum. So these are put right each time.
fn redirect(ifindex: u32, frame: &[u8]) -> Result<OwnedFd> {
    const PROG_LOAD: libc::c_long = 5;
    const XDP: u32 = 6;
    let half = |at: usize| u64::from(u16::from_ne_bytes([frame[at], frame[at + 1]])) << 32;
    let word = |at: usize| half(at) | half(at + 2) << 16;
    let code: [u64; 15] = [
        0x61 | 2 << 8 | 1 << 12,           // r2 = data
        0x61 | 3 << 8 | 1 << 12 | 4 << 16, // r3 = data_end
        0xbf | 4 << 8 | 2 << 12,           // r4 = r2
        0x07 | 4 << 8 | 34 << 32,          // r4 += Ethernet and IPv4
        0xb7 | 1 << 32,                    // r0 = XDP_DROP
        0x2d | 4 << 8 | 3 << 12 | 8 << 16, // if r4 > r3: exit
        0x62 | 2 << 8 | word(0),           // destination
        0x62 | 2 << 8 | 4 << 16 | word(4), // and source
        0x62 | 2 << 8 | 8 << 16 | word(8),
        0x72 | 2 << 8 | 22 << 16 | u64::from(frame[22]) << 32, // hop limit
        0x6a | 2 << 8 | 24 << 16 | half(24),                   // checksum
        0xb7 | 1 << 8 | u64::from(ifindex) << 32,
        0xb7 | 2 << 8,
        0x85 | 23 << 32, // r0 = bpf_redirect(ifindex, 0)
        0x95,
    ];
    let mut attr = [0; 20];
    (attr[0], attr[1]) = (XDP, code.len() as u32);
    pointer(&mut attr, 2, code.as_ptr() as u64);
    pointer(&mut attr, 4, c"GPL".as_ptr() as u64);
    let fd = bpf(PROG_LOAD, &mut attr).context("cannot load a program that redirects")?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the kernel send [`CALL`] frames.
fn run(program: &OwnedFd, frame: &[u8]) -> Result<()> {
    const PROG_TEST_RUN: libc::c_long = 10;
    const LIVE_FRAMES: u32 = 2;
    let mut attr = [0; 20];
    // prog_fd 0, data_size_in 8, data_in 16, repeat 32, flags 64, batch_size 72.
    attr[0] = program.as_raw_fd() as u32;
    attr[2] = frame.len() as u32;
    pointer(&mut attr, 4, frame.as_ptr() as u64);
    (attr[8], attr[16], attr[18]) = (CALL, LIVE_FRAMES, BATCH);
    let result = bpf(PROG_TEST_RUN, &mut attr).context("cannot send frames")?;
    ensure!(result == 0, "sending frames: {result}");
    Ok(())
}
