//! A socket buffer as the parser and the verdict see it.

use core::hint::cold_path;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes};
use fairlead_common::address::Address;
use fairlead_common::maps::State;
use fairlead_common::packet::{ETHER_IPV4, ETHERNET, Packet, Parsed, TRANSPORT_LENGTH};
use fairlead_common::verdict::Hook;
use fairlead_common::vxlan;

/// Ethernet, IPv4 and TCP without options, in bytes.
const HEADERS_IPV4: u32 = 14 + 20 + 20;
/// The same with IPv6.
const HEADERS: u32 = 14 + 40 + 20;

#[inline(always)]
const fn headers(ether_type: u16) -> u32 {
    if ether_type == ETHER_IPV4 { HEADERS_IPV4 } else { HEADERS }
}

/// `PACKET_HOST` of `linux/if_packet.h`.
pub(crate) const PACKET_HOST: u32 = 0;

/// [`Parsed::empty`] in place. Written out word by word, volatile, or it becomes a call of `memset`, which goes byte by
/// byte and took longer than looking the flow up.
#[inline(always)]
pub(crate) fn blank<A: Address>(place: &mut MaybeUninit<Parsed<A>>) -> &mut Parsed<A> {
    const { assert!(size_of::<Parsed<A>>().is_multiple_of(8) && align_of::<Parsed<A>>() == 8) }
    for i in 0..size_of::<Parsed<A>>() / 8 {
        // SAFETY: within the place, and aligned, as asserted.
        unsafe { place.as_mut_ptr().cast::<u64>().add(i).write_volatile(0) };
    }
    // SAFETY: zeroes are a value of it: no address, the first kind, `false`.
    let parsed = unsafe { place.assume_init_mut() };
    parsed.transport_length = TRANSPORT_LENGTH;
    parsed
}

/// The packet that a tc program runs on.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

impl Skb {
    #[inline(always)]
    fn field(&self) -> &__sk_buff {
        // SAFETY: the kernel hands a valid context to the program and it outlives it.
        unsafe { &*self.0 }
    }

    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        self.field().ifindex
    }

    /// Whether the frame's destination is this interface's own address.
    #[inline(always)]
    pub(crate) fn for_this_host(&self) -> bool {
        self.field().pkt_type == PACKET_HOST
    }

    #[inline(always)]
    pub(crate) fn hook(&self, state: &State) -> Hook {
        let field = self.field();
        // SAFETY: the union is of pointers of one size; only whether it is null is looked at.
        let socket = unsafe { field.__bindgen_anon_2.sk };
        Hook {
            ifindex: field.ifindex,
            mark: (field.mark & state.mark_mask) >> (state.mark_shift & 31),
            made_here: field.ingress_ifindex == 0 && !socket.is_null(),
        }
    }

    /// Makes the headers of ordinary packets readable in place, where they are not (seldom). No more than headers: TCP
    /// hands down its payload apart from them, and to join the two took 0.2 µs of each small packet's way.
    #[inline(always)]
    pub(crate) fn pull(&self) {
        self.pull_headers(headers(self.ether_type()));
    }

    /// As [`pull`](Self::pull), for a tunnel's header.
    #[inline(always)]
    pub(crate) fn pull_tunnel(&self) {
        self.pull_headers(vxlan::HEADER + ETHERNET);
    }

    /// As [`pull`](Self::pull), for what is inside of a tunnel.
    #[inline(always)]
    pub(crate) fn pull_inside(&self, ether_type: u16) {
        self.pull_headers(vxlan::HEADER + headers(ether_type));
    }

    #[inline(always)]
    fn pull_headers(&self, headers: u32) {
        let field = self.field();
        let present = field.data_end.wrapping_sub(field.data);
        if present < headers && present < field.len {
            cold_path();
            let wanted = if field.len < headers { field.len } else { headers };
            // SAFETY: the context is valid; the packet's addresses are read again afterwards. Failed,
            // the packet is as it was, and what cannot be read is dropped as malformed.
            let _ = unsafe { bpf_skb_pull_data(self.0, wanted) };
        }
    }

    /// Writes a slot into the mark's bits that are Fairlead's.
    #[inline(always)]
    pub(crate) fn set_mark(&self, state: &State, slot: u32) {
        let old = self.field().mark;
        let new = old & !state.mark_mask | slot << (state.mark_shift & 31) & state.mark_mask;
        if new != old {
            self.write_mark(new);
        }
    }

    /// Takes all marks away: the packet leaves the host's namespace.
    #[inline(always)]
    pub(crate) fn clear_mark(&self) {
        self.write_mark(0);
    }

    #[inline(always)]
    fn write_mark(&self, mark: u32) {
        // SAFETY: the mark is a writable field of the context.
        unsafe { (*self.0).mark = mark }
    }

    /// `N` words at an offset that the compiler must know.
    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let start = self.field().data as usize + offset;
        if start + N * 4 <= self.field().data_end as usize {
            // SAFETY: the bytes lie within the packet's linear part, as just checked; the machine
            // reads words at any address (the verifier refuses the program where it does not).
            return Some(unsafe { *(start as *const [u32; N]) });
        }
        None
    }

    /// Overwrites words at a constant offset, in place; `false` where the packet is shorter. A checksum of the
    /// whole packet, where there is one, must not change by it.
    #[inline(always)]
    pub(crate) fn put<const OFFSET: usize, const N: usize>(&self, words: [u32; N]) -> bool {
        let start = self.field().data as usize + OFFSET;
        if start + N * 4 <= self.field().data_end as usize {
            for (i, word) in words.into_iter().enumerate() {
                // SAFETY: as in `at`; the kernel has made the headers this packet's own before the program runs. Volatile,
                // or several become a call of `memmove`, which goes byte by byte.
                unsafe { (start as *mut u32).add(i).write_volatile(word) };
            }
            return true;
        }
        false
    }

    /// Overwrites bytes of the packet; `false` where it is too short or memory is short.
    #[inline(always)]
    pub(crate) fn store<T>(&self, offset: u32, value: &T, flags: u64) -> bool {
        // SAFETY: the helper copies `size_of::<T>()` bytes from a value that is that long.
        unsafe {
            bpf_skb_store_bytes(
                self.0.cast(),
                offset,
                core::ptr::from_ref(value).cast(),
                size_of::<T>() as u32,
                flags,
            ) == 0
        }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.field().len
    }

    #[inline(always)]
    fn at<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
        self.words(OFFSET)
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        // SAFETY: the helper writes all of `words`, or fails; failed, it has zeroed them.
        unsafe {
            let failed = bpf_skb_load_bytes(self.0.cast(), offset, words.as_mut_ptr().cast(), (N * 4) as u32);
            if failed == 0 { Some(words.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn ether_type(&self) -> u16 {
        u16::from_be(self.field().protocol as u16)
    }

    #[inline(always)]
    fn vlan(&self) -> bool {
        self.field().vlan_present != 0
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        self.field().gso_size
    }
}

/// What is inside of a tunnel's packet, as a frame of its own.
#[derive(Clone, Copy)]
pub(crate) struct Inside(pub(crate) Skb);

impl Packet for Inside {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.0.len().wrapping_sub(vxlan::HEADER)
    }

    #[inline(always)]
    fn at<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
        self.0.words(vxlan::HEADER as usize + OFFSET)
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        self.0.load(vxlan::HEADER + offset)
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        self.0.gso_size()
    }
}
