//! IPv4 and IPv6 addresses as they lie in a packet: network byte order in words.

/// An address of one family: `u32` or `[u32; 4]`, in network byte order.
///
/// Comparisons are spelled out by word: a derived one becomes a call of `bcmp`, which BPF lacks.
pub trait Address: Copy {
    /// Zero.
    const UNSPECIFIED: Self;
    /// Whether the protocol is part of what names a fragmented datagram (RFC 791; not in RFC 8200).
    const FRAGMENTS_BY_PROTOCOL: bool;

    /// Equality.
    fn same(&self, other: &Self) -> bool;
    /// Some total order, the same on both sides of a connection of one machine.
    fn below(&self, other: &Self) -> bool;
    /// Multicast, or the limited broadcast address.
    fn is_group(&self) -> bool;
    /// Loopback.
    fn is_loopback(&self) -> bool;
    /// A number that spreads addresses.
    fn mix(&self) -> u32;
    /// IPv4 in the first word.
    fn words(&self) -> [u32; 4];
}

impl Address for u32 {
    const UNSPECIFIED: Self = 0;
    const FRAGMENTS_BY_PROTOCOL: bool = true;

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        self == other
    }
    #[inline(always)]
    fn below(&self, other: &Self) -> bool {
        self < other
    }
    #[inline(always)]
    fn is_group(&self) -> bool {
        let host = Self::from_be(*self);
        host >> 28 == 0xe || host == Self::MAX
    }
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        Self::from_be(*self) >> 24 == 127
    }
    #[inline(always)]
    fn mix(&self) -> u32 {
        *self
    }
    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        [*self, 0, 0, 0]
    }
}

impl Address for [u32; 4] {
    const UNSPECIFIED: Self = [0; 4];
    const FRAGMENTS_BY_PROTOCOL: bool = false;

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        (self[0] ^ other[0]) | (self[1] ^ other[1]) | (self[2] ^ other[2]) | (self[3] ^ other[3]) == 0
    }
    #[inline(always)]
    fn below(&self, other: &Self) -> bool {
        // The last word differs most often.
        if self[3] != other[3] {
            self[3] < other[3]
        } else if self[2] != other[2] {
            self[2] < other[2]
        } else if self[1] != other[1] {
            self[1] < other[1]
        } else {
            self[0] < other[0]
        }
    }
    #[inline(always)]
    fn is_group(&self) -> bool {
        u32::from_be(self[0]) >> 24 == 0xff
    }
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.same(&[0, 0, 0, u32::to_be(1)])
    }
    #[inline(always)]
    fn mix(&self) -> u32 {
        self[0] ^ self[1].rotate_left(7) ^ self[2].rotate_left(13) ^ self[3].rotate_left(22)
    }
    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        *self
    }
}

/// `fe80::/10` (RFC 4291, section 2.5.6).
#[inline(always)]
pub fn is_link_local(address: &[u32; 4]) -> bool {
    u32::from_be(address[0]) >> 22 == 0x3fa
}
