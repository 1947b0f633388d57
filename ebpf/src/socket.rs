//! The sockets of pods, looked for in their own network namespaces.

use aya_ebpf::bindings::{__sk_buff, bpf_sock_tuple};
use aya_ebpf::helpers::{bpf_sk_release, bpf_skc_lookup_tcp};
use fairlead_common::packet::Parsed;

/// `TCP_ESTABLISHED`, `TCP_FIN_WAIT1` and `TCP_FIN_WAIT2` of `net/tcp_states.h`: the states in which data comes.
const RECEIVING: u32 = 1 << 1 | 1 << 4 | 1 << 5;

/// The words by which the kernel looks for a socket: `struct bpf_sock_tuple`, `N` words of it.
pub(crate) trait Tuple<const N: usize>: Sized {
    /// Source and destination address, then both ports.
    fn tuple(p: &Parsed<Self>) -> [u32; N];
}

#[inline(always)]
fn ports<A>(p: &Parsed<A>) -> u32 {
    let ([a, b], [c, d]) = (p.source_port.to_ne_bytes(), p.destination_port.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

impl Tuple<3> for u32 {
    #[inline(always)]
    fn tuple(p: &Parsed<Self>) -> [u32; 3] {
        [p.source, p.destination, ports(p)]
    }
}

impl Tuple<9> for [u32; 4] {
    #[inline(always)]
    fn tuple(p: &Parsed<Self>) -> [u32; 9] {
        let ([a, b, c, d], [e, f, g, h]) = (p.source, p.destination);
        [a, b, c, d, e, f, g, h, ports(p)]
    }
}

/// Whether a connected socket in the network namespace with this number, of those that this one knows, takes what the
/// packet of TCP carries.
#[inline(always)]
pub(crate) fn receives<A: Tuple<N>, const N: usize>(
    context: *mut __sk_buff,
    p: &Parsed<A>,
    netns: u32,
) -> bool {
    let mut tuple = A::tuple(p);
    // SAFETY: the helper reads as many bytes as the tuple has, whose length tells it the family.
    let socket = unsafe {
        bpf_skc_lookup_tcp(
            context.cast(),
            tuple.as_mut_ptr().cast::<bpf_sock_tuple>(),
            (N * 4) as u32,
            u64::from(netns),
            0,
        )
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: found, it is there until it is released.
    unsafe {
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        1_u32 << (state & 31) & RECEIVING != 0
    }
}
