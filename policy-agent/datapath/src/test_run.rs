//! BPF_PROG_TEST_RUN: a program of this version on one packet, in the kernel.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// What a run of a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// The program's result: `TC_ACT_UNSPEC` (-1), `TC_ACT_SHOT` (2), `TC_ACT_REDIRECT` (7).
    pub result: i32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// `skb->mark` afterwards.
    pub mark: u32,
    /// Mean time of a run in nanoseconds.
    pub nanoseconds: u32,
}

/// Offsets in `struct __sk_buff` of `linux/bpf.h`.
const MARK: usize = 8;
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;
const CONTEXT: usize = 192;

/// Runs a tc program on `packet` (from the Ethernet header on), as if on interface `ifindex` of the
/// caller's network namespace, `repeat` times.
///
/// The kernel makes the packet look as if the machine had made it: it has a socket and no interface
/// that it came in by.
pub fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    ifindex: u32,
    mark: u32,
    gso_size: u32,
    repeat: u32,
) -> io::Result<TestRun> {
    let mut context = [0u8; CONTEXT];
    context[MARK..MARK + 4].copy_from_slice(&mark.to_ne_bytes());
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&gso_size.to_ne_bytes());
    let mut out_context = [0u8; CONTEXT];
    let (result, nanoseconds, packet) = run(program, packet, repeat, Some((&context, &mut out_context)))?;
    let [a, b, c, d] =
        [out_context[MARK], out_context[MARK + 1], out_context[MARK + 2], out_context[MARK + 3]];
    Ok(TestRun { result: result as i32, packet, mark: u32::from_ne_bytes([a, b, c, d]), nanoseconds })
}

/// Runs a program of XDP on `packet`, as if on the loopback of the caller's network namespace; returns its result:
/// `XDP_DROP` (1), `XDP_PASS` (2).
pub fn test_run_xdp(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    Ok(run(program, packet, 1, None)?.0)
}

/// Result, nanoseconds and the packet afterwards.
fn run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    repeat: u32,
    context: Option<(&[u8; CONTEXT], &mut [u8; CONTEXT])>,
) -> io::Result<(u32, u32, Vec<u8>)> {
    const PROG_TEST_RUN: u32 = 10;
    let mut out = vec![0u8; packet.len() + 256];
    // test.prog_fd 0, retval 4, data_size_in 8, data_size_out 12, data_in 16, data_out 24, repeat 32,
    // duration 36, ctx_size_in 40, ctx_size_out 44, ctx_in 48, ctx_out 56.
    let mut attr = [0u32; 20];
    let pointer = |attr: &mut [u32; 20], at: usize, address: u64| {
        let bytes = address.to_ne_bytes();
        attr[at] = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        attr[at + 1] = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    };
    let length = |n: usize| u32::try_from(n).map_err(io::Error::other);
    attr[0] = program.as_raw_fd() as u32;
    attr[2] = length(packet.len())?;
    attr[3] = length(out.len())?;
    pointer(&mut attr, 4, packet.as_ptr() as u64);
    pointer(&mut attr, 6, out.as_mut_ptr() as u64);
    attr[8] = repeat;
    if let Some((context, out_context)) = context {
        attr[10] = length(CONTEXT)?;
        attr[11] = length(CONTEXT)?;
        pointer(&mut attr, 12, context.as_ptr() as u64);
        pointer(&mut attr, 14, out_context.as_mut_ptr() as u64);
    }
    // SAFETY: all pointers are to buffers of the lengths given beside them, alive during the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, attr.as_mut_ptr(), size_of_val(&attr)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(attr[3] as usize);
    Ok((attr[1], attr[9], out))
}
