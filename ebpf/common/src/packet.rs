//! The packet parser: Ethernet frames with IPv4 or IPv6, down to the transport's ports.
//!
//! Words stand as they lie in memory, in network byte order. Offsets count bytes from the start of
//! the Ethernet header. Whatever contradicts itself is an error with its drop reason; nothing is
//! guessed, so that no header makes a packet look like another.

use crate::address::Address;
use crate::judge::protocol;
use crate::reason::DropReason;

/// Length of the Ethernet header.
pub const ETHERNET: u32 = 14;
/// EtherType IPv4, host byte order.
pub const ETHER_IPV4: u16 = 0x0800;
/// EtherType IPv6, host byte order.
pub const ETHER_IPV6: u16 = 0x86dd;
/// EtherType ARP, host byte order.
pub const ETHER_ARP: u16 = 0x0806;

/// TCP flags.
pub mod tcp {
    /// FIN.
    pub const FIN: u8 = 1;
    /// SYN.
    pub const SYN: u8 = 2;
    /// RST.
    pub const RST: u8 = 4;
    /// ACK.
    pub const ACK: u8 = 16;
}

/// Extension headers that are looked at before a packet is refused.
pub const MAX_EXTENSION_HEADERS: u32 = 8;

/// A frame, and what the kernel knows of it.
pub trait Packet {
    /// Length in bytes, Ethernet header included.
    fn len(&self) -> u32;
    /// `N` words at the constant offset `OFFSET`; `None` where the packet is shorter.
    fn at<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]>;
    /// `N` words at `offset`; `None` where the packet is shorter.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
    /// EtherType in host byte order, inside of a VLAN tag that was taken off. As the frame has it: a tag that is still
    /// there is no EtherType of ours.
    #[inline(always)]
    fn ether_type(&self) -> u16 {
        match self.at::<12, 1>() {
            Some([word]) => (be(word) >> 16) as u16,
            None => 0,
        }
    }
    /// Whether a VLAN tag was taken off.
    #[inline(always)]
    fn vlan(&self) -> bool {
        false
    }
    /// Size of a segment where the packet is to be segmented, else 0.
    fn gso_size(&self) -> u32;
    /// Whether there is no byte at all. (For symmetry with `len`.)
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What kind of packet it is, as far as its verdict depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Belongs to a flow named by its ports (0 for protocols without).
    Flow = 0,
    /// A fragment other than the first: its ports must be looked up.
    LaterFragment,
    /// An ICMP error about another packet.
    IcmpError,
    /// Neighbour solicitation or advertisement.
    Neighbour,
    /// Router solicitation or advertisement, or redirect.
    Router,
}

/// [`Parsed::transport_length`] where no header says another.
pub const TRANSPORT_LENGTH: u32 = 8;

/// A parsed packet. As plain zeroes, it is [`Parsed::empty`] but for `transport_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub struct Parsed<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// What it is.
    pub kind: Kind,
    /// Transport protocol.
    pub protocol: u8,
    /// TCP flags, 0 for others.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Whether it is an ICMP echo reply.
    pub echo_reply: bool,
    /// Whether it is a first fragment with others to follow.
    pub first_fragment: bool,
    /// Whether it is any fragment of several.
    pub fragment: bool,
    /// Source port in network byte order; the identifier of ICMP echo.
    pub source_port: u16,
    /// Destination port in network byte order; the identifier of ICMP echo.
    pub destination_port: u16,
    /// Offset of the transport header.
    pub transport: u32,
    /// Length of the TCP header, 8 for others; a later fragment's offset in the datagram, in bytes.
    pub transport_length: u32,
    /// Identification of a fragmented datagram.
    pub fragment_id: u32,
}

impl<A: Address> Parsed<A> {
    /// Nothing yet.
    #[inline(always)]
    pub const fn empty() -> Self {
        Self {
            source: A::UNSPECIFIED,
            destination: A::UNSPECIFIED,
            kind: Kind::Flow,
            protocol: 0,
            tcp_flags: 0,
            hop_limit: 0,
            echo_reply: false,
            first_fragment: false,
            fragment: false,
            source_port: 0,
            destination_port: 0,
            transport: 0,
            transport_length: TRANSPORT_LENGTH,
            fragment_id: 0,
        }
    }

    /// A TCP packet that opens a connection: SYN without ACK.
    #[inline(always)]
    pub fn is_bare_syn(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// A TCP packet that does not open a connection. A later fragment has no flags, and is not one: it
    /// may belong to a datagram whose first fragment was denied.
    #[inline(always)]
    pub fn is_mid_stream(&self) -> bool {
        self.protocol == protocol::TCP
            && self.tcp_flags & (tcp::ACK | tcp::RST) != 0
            && self.tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN
    }
}

#[inline(always)]
fn be(word: u32) -> u32 {
    u32::from_be(word)
}

/// The network-order port in the upper (first) half of a word in memory.
#[inline(always)]
fn first_half(word: u32) -> u16 {
    ((be(word) >> 16) as u16).to_be()
}

/// The network-order port in the lower (second) half of a word in memory.
#[inline(always)]
fn second_half(word: u32) -> u16 {
    (be(word) as u16).to_be()
}

/// Parses a frame whose EtherType is the family's.
pub fn parse<A: FamilyOf, P: Packet>(packet: &P) -> Result<Parsed<A>, DropReason> {
    let mut parsed = Parsed::empty();
    A::parse_into(packet, &mut parsed).map(|()| parsed)
}

/// Parses IPv4 (RFC 791). Options are walked for source routes only.
#[inline(always)]
fn parse4<P: Packet>(packet: &P, parsed: &mut Parsed<u32>) -> Result<(), DropReason> {
    let Some([w0, w1, w2, source, destination]) = packet.at::<14, 5>() else {
        return Err(DropReason::Malformed);
    };
    let head = be(w0);
    let header = (head >> 24 & 0xf) * 4;
    if head >> 28 != 4 || header < 20 {
        return Err(DropReason::Malformed);
    }
    let end = end_of(packet, head & 0xffff, head & 0xffff == 0)?;
    let transport = ETHERNET + header;
    if transport > end {
        return Err(DropReason::Malformed);
    }
    if header > 20 {
        refuse_source_routes(packet, header - 20)?;
    }
    let fragment = be(w1);
    parsed.source = source;
    parsed.destination = destination;
    parsed.protocol = (be(w2) >> 16) as u8;
    parsed.hop_limit = (be(w2) >> 24) as u8;
    parsed.transport = transport;
    parsed.fragment_id = fragment >> 16;
    // Offset in units of 8 bytes, then the bit "more fragments".
    fragment_of(parsed, fragment & 0x1fff, fragment & 0x2000 != 0)?;
    if parsed.kind != Kind::LaterFragment {
        if header == 20 {
            transport_of(packet, parsed, end, true)?;
        } else {
            transport_of(packet, parsed, end, false)?;
        }
    }
    Ok(())
}

/// Parses IPv6 (RFC 8200) with its extension headers.
#[inline(always)]
fn parse6<P: Packet>(packet: &P, parsed: &mut Parsed<[u32; 4]>) -> Result<(), DropReason> {
    let Some([w0, w1, s0, s1, s2, s3, d0, d1, d2, d3]) = packet.at::<14, 10>() else {
        return Err(DropReason::Malformed);
    };
    if be(w0) >> 28 != 6 {
        return Err(DropReason::Malformed);
    }
    let payload = be(w1) >> 16;
    let end = end_of(packet, payload + 40, payload == 0)?;
    parsed.source = [s0, s1, s2, s3];
    parsed.destination = [d0, d1, d2, d3];
    parsed.protocol = (be(w1) >> 8) as u8;
    parsed.hop_limit = be(w1) as u8;
    parsed.transport = ETHERNET + 40;
    if !is_extension(parsed.protocol) {
        transport_of(packet, parsed, end, true)?;
        return Ok(());
    }
    walk_extensions(packet, parsed, end)?;
    if parsed.kind != Kind::LaterFragment {
        transport_of(packet, parsed, end, false)?;
    }
    Ok(())
}

/// Where the IP packet of `length` bytes ends: padding of the link layer may follow, nothing may be
/// missing. A length field that is `absent` (0) stands for "as long as the frame" on packets that wait
/// for segmentation and are longer than the field can say.
#[inline(always)]
fn end_of<P: Packet>(packet: &P, length: u32, absent: bool) -> Result<u32, DropReason> {
    let frame = packet.len();
    if absent && packet.gso_size() > 0 {
        return Ok(frame);
    }
    let end = ETHERNET + length;
    if end > frame { Err(DropReason::Malformed) } else { Ok(end) }
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION
            | protocol::AUTHENTICATION
    )
}

#[inline(always)]
fn walk_extensions<P: Packet>(packet: &P, parsed: &mut Parsed<[u32; 4]>, end: u32) -> Result<(), DropReason> {
    let mut next = parsed.protocol;
    let mut offset = parsed.transport;
    let mut fragmented = false;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        let Some([first, second]) = packet.load::<2>(offset) else {
            return Err(DropReason::Malformed);
        };
        let length = be(first) >> 16 & 0xff;
        let header = match next {
            protocol::FRAGMENT => {
                // A second fragment header would hide where the ports are.
                if fragmented {
                    return Err(DropReason::Malformed);
                }
                fragmented = true;
                let position = be(first) & 0xffff;
                parsed.fragment_id = be(second);
                parsed.protocol = (be(first) >> 24) as u8;
                fragment_of(parsed, position >> 3, position & 1 != 0)?;
                if parsed.kind == Kind::LaterFragment {
                    // What follows is not the start of a header; which protocol it belongs to is
                    // known from the first fragment.
                    parsed.transport = offset + 8;
                    return Ok(());
                }
                8
            }
            protocol::ROUTING => {
                if be(first) & 0xff != 0 {
                    return Err(DropReason::SourceRoute);
                }
                (length + 1) * 8
            }
            protocol::AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        next = (be(first) >> 24) as u8;
        offset += header;
        if offset > end {
            return Err(DropReason::Malformed);
        }
    }
    if is_extension(next) {
        return Err(DropReason::ExtensionHeaders);
    }
    parsed.protocol = next;
    parsed.transport = offset;
    Ok(())
}

/// Notes what a fragment's offset (in units of 8 bytes) and "more" bit make of the packet.
#[inline(always)]
fn fragment_of<A>(parsed: &mut Parsed<A>, offset: u32, more: bool) -> Result<(), DropReason> {
    parsed.fragment = offset != 0 || more;
    if offset == 0 {
        parsed.first_fragment = more;
        return Ok(());
    }
    // RFC 1858 and RFC 3128: a fragment at 8 bytes overwrites what the first one said of TCP.
    // Behind further extension headers it would be those, or the ports.
    if offset == 1 && (parsed.protocol == protocol::TCP || is_extension(parsed.protocol)) {
        return Err(DropReason::FragmentOverlap);
    }
    parsed.kind = Kind::LaterFragment;
    parsed.transport_length = offset * 8;
    Ok(())
}

/// Loose (131) and strict (137) source routes among `length` bytes of IPv4 options.
#[inline(always)]
fn refuse_source_routes<P: Packet>(packet: &P, length: u32) -> Result<(), DropReason> {
    // An option's start can be at any byte: `skip` counts the bytes until the next one.
    let mut skip = 0u32;
    for word in 0..10u32 {
        if word * 4 >= length {
            break;
        }
        let Some([options, following]) = options_at(packet, word, length) else {
            return Err(DropReason::Malformed);
        };
        let window = u64::from(be(options)) << 32 | u64::from(be(following));
        for byte in 0..4u32 {
            if skip > 0 {
                skip -= 1;
                continue;
            }
            let kind = (window >> (56 - byte * 8)) as u8;
            match kind {
                0 => return Ok(()),
                1 => {}
                131 | 137 => return Err(DropReason::SourceRoute),
                _ => {
                    let size = (window >> (48 - byte * 8)) as u8;
                    if size < 2 || u32::from(size) > length - (word * 4 + byte) {
                        return Err(DropReason::Malformed);
                    }
                    skip = u32::from(size) - 1;
                }
            }
        }
    }
    Ok(())
}

/// A word of options and the one after it, which is 0 behind the last.
#[inline(always)]
fn options_at<P: Packet>(packet: &P, word: u32, length: u32) -> Option<[u32; 2]> {
    let offset = ETHERNET + 20 + word * 4;
    if (word + 1) * 4 < length {
        packet.load::<2>(offset)
    } else {
        let [last] = packet.load::<1>(offset)?;
        Some([last, 0])
    }
}

/// Reads the transport header. `fixed`: it stands at its usual offset, so that the kernel's side
/// can read it in place.
#[inline(always)]
fn transport_of<P: Packet, A: FamilyOf>(
    packet: &P,
    parsed: &mut Parsed<A>,
    end: u32,
    fixed: bool,
) -> Result<(), DropReason> {
    let room = end - parsed.transport;
    match parsed.protocol {
        protocol::TCP => {
            if room < 20 {
                return Err(DropReason::Malformed);
            }
            let Some([ports, _, _, flags]) = A::words_at::<P, 4>(packet, parsed.transport, fixed) else {
                return Err(DropReason::Malformed);
            };
            parsed.source_port = first_half(ports);
            parsed.destination_port = second_half(ports);
            parsed.tcp_flags = (be(flags) >> 16) as u8;
            parsed.transport_length = (be(flags) >> 28) * 4;
            if parsed.transport_length < 20 {
                return Err(DropReason::Malformed);
            }
        }
        protocol::UDP | protocol::SCTP => {
            if room < if parsed.protocol == protocol::UDP { 8 } else { 12 } {
                return Err(DropReason::Malformed);
            }
            let Some([ports]) = A::words_at::<P, 1>(packet, parsed.transport, fixed) else {
                return Err(DropReason::Malformed);
            };
            parsed.source_port = first_half(ports);
            parsed.destination_port = second_half(ports);
        }
        p if p == A::ICMP => {
            if room < 8 {
                return Err(DropReason::Malformed);
            }
            let Some([kind, rest]) = A::words_at::<P, 2>(packet, parsed.transport, fixed) else {
                return Err(DropReason::Malformed);
            };
            match A::icmp((be(kind) >> 24) as u8) {
                Icmp::Request | Icmp::Reply => {
                    let id = first_half(rest);
                    parsed.source_port = id;
                    parsed.destination_port = id;
                    parsed.echo_reply = matches!(A::icmp((be(kind) >> 24) as u8), Icmp::Reply);
                }
                Icmp::Error => parsed.kind = Kind::IcmpError,
                Icmp::Neighbour => parsed.kind = Kind::Neighbour,
                Icmp::Router => parsed.kind = Kind::Router,
                Icmp::Other => {}
            }
        }
        _ => {}
    }
    Ok(())
}

/// What an ICMP type means to the verdict.
pub enum Icmp {
    /// Echo request.
    Request,
    /// Echo reply.
    Reply,
    /// An error about another packet.
    Error,
    /// Neighbour solicitation or advertisement.
    Neighbour,
    /// Router discovery or redirect.
    Router,
    /// Everything else: judged by the rules.
    Other,
}

/// What differs between the families.
pub trait FamilyOf: Address {
    /// The ICMP of the family.
    const ICMP: u8;
    /// Meaning of an ICMP type.
    fn icmp(kind: u8) -> Icmp;
    /// `N` words at `offset`, which is the usual place of the transport header if `fixed`.
    fn words_at<P: Packet, const N: usize>(packet: &P, offset: u32, fixed: bool) -> Option<[u32; N]>;
    /// Parses a frame into what is [`Parsed::empty`].
    fn parse_into<P: Packet>(packet: &P, parsed: &mut Parsed<Self>) -> Result<(), DropReason>;
    /// The flow that an ICMP error is about: the packet that stands at `offset`, as far as the ports.
    fn inner<P: Packet>(packet: &P, offset: u32) -> Option<Inner<Self>>;
}

/// The packet that an ICMP error is about.
pub struct Inner<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Transport protocol.
    pub protocol: u8,
    /// Source port in network byte order.
    pub source_port: u16,
    /// Destination port in network byte order.
    pub destination_port: u16,
}

impl FamilyOf for u32 {
    #[inline(always)]
    fn parse_into<P: Packet>(packet: &P, parsed: &mut Parsed<Self>) -> Result<(), DropReason> {
        parse4(packet, parsed)
    }

    const ICMP: u8 = protocol::ICMP;

    #[inline(always)]
    fn icmp(kind: u8) -> Icmp {
        match kind {
            8 => Icmp::Request,
            0 => Icmp::Reply,
            // Destination unreachable, source quench, time exceeded, parameter problem (RFC 792).
            3 | 4 | 11 | 12 => Icmp::Error,
            // Redirect (RFC 792), router advertisement and solicitation (RFC 1256).
            5 | 9 | 10 => Icmp::Router,
            _ => Icmp::Other,
        }
    }

    #[inline(always)]
    fn words_at<P: Packet, const N: usize>(packet: &P, offset: u32, fixed: bool) -> Option<[u32; N]> {
        if fixed { packet.at::<34, N>() } else { packet.load::<N>(offset) }
    }

    #[inline(always)]
    fn inner<P: Packet>(packet: &P, offset: u32) -> Option<Inner<Self>> {
        let [w0, w1, w2, source, destination] = packet.load::<5>(offset)?;
        let header = (be(w0) >> 24 & 0xf) * 4;
        if be(w0) >> 28 != 4 || header < 20 || be(w1) & 0x1fff != 0 {
            return None;
        }
        inner_transport(packet, offset + header, source, destination, (be(w2) >> 16) as u8)
    }
}

impl FamilyOf for [u32; 4] {
    #[inline(always)]
    fn parse_into<P: Packet>(packet: &P, parsed: &mut Parsed<Self>) -> Result<(), DropReason> {
        parse6(packet, parsed)
    }

    const ICMP: u8 = protocol::ICMP6;

    #[inline(always)]
    fn icmp(kind: u8) -> Icmp {
        match kind {
            128 => Icmp::Request,
            129 => Icmp::Reply,
            // RFC 4443: types below 128 are errors.
            0..=127 => Icmp::Error,
            135 | 136 => Icmp::Neighbour,
            133 | 134 | 137 => Icmp::Router,
            _ => Icmp::Other,
        }
    }

    #[inline(always)]
    fn words_at<P: Packet, const N: usize>(packet: &P, offset: u32, fixed: bool) -> Option<[u32; N]> {
        if fixed { packet.at::<54, N>() } else { packet.load::<N>(offset) }
    }

    #[inline(always)]
    fn inner<P: Packet>(packet: &P, offset: u32) -> Option<Inner<Self>> {
        let [w0, w1, s0, s1, s2, s3, d0, d1, d2, d3] = packet.load::<10>(offset)?;
        if be(w0) >> 28 != 6 {
            return None;
        }
        let mut next = (be(w1) >> 8) as u8;
        let mut transport = offset + 40;
        if next == protocol::FRAGMENT {
            let [first, _] = packet.load::<2>(transport)?;
            if be(first) & 0xfff8 != 0 {
                return None;
            }
            next = (be(first) >> 24) as u8;
            transport += 8;
        }
        inner_transport(packet, transport, [s0, s1, s2, s3], [d0, d1, d2, d3], next)
    }
}

#[inline(always)]
fn inner_transport<P: Packet, A: FamilyOf>(
    packet: &P,
    offset: u32,
    source: A,
    destination: A,
    next: u8,
) -> Option<Inner<A>> {
    let mut inner = Inner { source, destination, protocol: next, source_port: 0, destination_port: 0 };
    match next {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let [ports] = packet.load::<1>(offset)?;
            inner.source_port = first_half(ports);
            inner.destination_port = second_half(ports);
        }
        p if p == A::ICMP => {
            let [kind, rest] = packet.load::<2>(offset)?;
            match A::icmp((be(kind) >> 24) as u8) {
                Icmp::Request | Icmp::Reply => {
                    inner.source_port = first_half(rest);
                    inner.destination_port = inner.source_port;
                }
                // An error is never about an error (RFC 1122, section 3.2.2).
                Icmp::Error => return None,
                _ => {}
            }
        }
        _ => {}
    }
    Some(inner)
}
