//! The policy tables' verdict about a new flow, one direction of one endpoint at a time.

use crate::maps::{
    ABSENT, ATOM_WORLD, BANKS, Banked, CLASS_ICMP, CLASS_OTHER, EndpointPolicy, PortClasses, PortSet, RowKey,
    SIGNATURE_OPEN, Side,
};

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 encapsulation header of routing.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6.
    pub const ICMP6: u8 = 58;
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// The policy tables that know no addresses.
pub trait PolicyTables {
    /// Map `rows`.
    fn row(&self, key: &RowKey) -> Option<&Banked>;
    /// Map `sets`.
    fn set(&self, id: u32) -> Option<&PortSet>;
    /// Map `port_classes`.
    fn port_classes(&self, element: u32) -> Option<&PortClasses>;
}

/// The policy tables of one address family, `A` being `u32` or `[u32; 4]` in network byte order.
pub trait PeerTables<A>: PolicyTables + Sized {
    /// Map `peers4` or `peers6`.
    fn peer(&self, address: &A) -> Option<&Banked>;
    /// Map `cidrs4` or `cidrs6`, the longest match.
    fn cidr(&self, address: &A) -> Option<&Banked>;

    /// [`allows`]; the kernel's side has it as a function of its own, which the verifier walks once.
    #[inline(always)]
    fn judge(&self, generation: u32, side: Side, address: &A, protocol: u8, port: u16) -> bool {
        allows(self, generation, side, address, protocol, port)
    }

    /// [`allows_both`]; as [`Self::judge`].
    #[inline(always)]
    fn judge_both(
        &self,
        generation: u32,
        sides: &EndpointPolicy,
        address: &A,
        protocol: u8,
        ports: [u16; 2],
    ) -> (bool, bool) {
        allows_both(self, generation, sides, address, protocol, ports)
    }
}

/// Element of map `port_classes` that holds `port` (host byte order) of `protocol`, for the protocols
/// that have ports.
#[inline(always)]
pub const fn port_class_element(protocol: u8, port: u16) -> Option<u32> {
    let base = match protocol {
        protocol::TCP => 0,
        protocol::UDP => 16384,
        protocol::SCTP => 32768,
        _ => return None,
    };
    Some(base + port as u32 / 4)
}

/// Port class of a destination port in host byte order; `None` where the map lacks it.
#[inline(always)]
pub fn class_of<T: PolicyTables>(tables: &T, protocol: u8, port: u16) -> Option<u16> {
    match port_class_element(protocol, port) {
        Some(element) => Some(tables.port_classes(element)?[usize::from(port) % 4]),
        None if protocol == protocol::ICMP || protocol == protocol::ICMP6 => Some(CLASS_ICMP),
        None => Some(CLASS_OTHER),
    }
}

/// Whether the rules of `side`, in the bank of `generation`, allow the peer at `address` and the
/// destination `port` (host byte order) of `protocol`. What the tables do not hold is denied.
#[inline(always)]
pub fn allows<A, T: PeerTables<A>>(
    tables: &T,
    generation: u32,
    side: Side,
    address: &A,
    protocol: u8,
    port: u16,
) -> bool {
    side.signature == SIGNATURE_OPEN
        || allows_atom(tables, generation, side, atom_of(tables, generation, address), protocol, port)
}

/// [`allows`] of both directions: ingress at the first port, egress to the second.
#[inline(always)]
pub fn allows_both<A, T: PeerTables<A>>(
    tables: &T,
    generation: u32,
    sides: &EndpointPolicy,
    address: &A,
    protocol: u8,
    ports: [u16; 2],
) -> (bool, bool) {
    let EndpointPolicy { ingress, egress } = *sides;
    let atom = atom_of(tables, generation, address);
    (
        allows_atom(tables, generation, ingress, atom, protocol, ports[0]),
        allows_atom(tables, generation, egress, atom, protocol, ports[1]),
    )
}

/// Whether the rules of a side allow a peer of this atom.
#[inline(always)]
fn allows_atom<T: PolicyTables>(
    tables: &T,
    generation: u32,
    side: Side,
    atom: u32,
    protocol: u8,
    port: u16,
) -> bool {
    if side.signature == SIGNATURE_OPEN {
        return true;
    }
    let set = if atom == ATOM_WORLD {
        side.default_set
    } else {
        let row = RowKey { signature: side.signature, atom };
        match tables.row(&row) {
            Some(sets) => match banked(sets, generation) {
                ABSENT => side.default_set,
                set => set,
            },
            None => side.default_set,
        }
    };
    let Some(class) = class_of(tables, protocol, port) else {
        return false;
    };
    match tables.set(set) {
        Some(set) => set.contains(class),
        None => false,
    }
}

/// Atom of the peer at `address` in the bank of `generation`.
#[inline(always)]
pub fn atom_of<A, T: PeerTables<A>>(tables: &T, generation: u32, address: &A) -> u32 {
    if let Some(atoms) = tables.peer(address) {
        let atom = banked(atoms, generation);
        if atom != ABSENT {
            return atom;
        }
    }
    match tables.cidr(address) {
        Some(atoms) => match banked(atoms, generation) {
            ABSENT => ATOM_WORLD,
            atom => atom,
        },
        None => ATOM_WORLD,
    }
}

/// The alternative that `generation` puts in force.
#[inline(always)]
pub fn banked(value: &Banked, generation: u32) -> u32 {
    value[generation as usize % BANKS]
}
