//! What the compiler hands to the datapath: one step from one state of policy to the next.

mod memory;

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_common::maps::{EndpointPolicy, PortSet};
use ipnetwork::IpNetwork;

pub use self::memory::{Tables, Write, ip_protocol};
use crate::model::Protocol;

/// Place of a local endpoint in the node's tables, 1 to 4094.
pub type Slot = u16;
/// Id of an [atom](fairlead_common::maps): a class of peers that no rule in use tells apart.
pub type Atom = u32;
/// Id of the compiled rules of one direction.
pub type Signature = u32;
/// Id of a set of port classes.
pub type SetId = u32;
/// A port class: ports of one protocol that no rule in use tells apart.
pub type Class = u16;

/// Ports `first..=last` of `protocol` belong to `class`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortClass {
    /// Protocol of the ports.
    pub protocol: Protocol,
    /// First port.
    pub first: u16,
    /// Last port, included.
    pub last: u16,
    /// Their class.
    pub class: Class,
}

/// One step from one state of policy to the next.
///
/// `sets` and then `ports` are written in place first, and must not change what the rules in force
/// mean: a set is either new, or differs only in bits of classes that no port has; a port moves only
/// between classes that every set in force treats alike. `rows`, `peers`, `cidrs` and `endpoints` are
/// prepared beside what is in force and take effect together. `None` removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Counts commits. Ids that this step freed may be used again after
    /// [`Compiler::settled`](crate::compiler::Compiler::settled) was told of it.
    pub serial: u64,
    /// New port sets, and old ones with bits of new classes added.
    pub sets: Vec<(SetId, PortSet)>,
    /// Ports whose class changes.
    pub ports: Vec<PortClass>,
    /// (signature, atom) → port set; a pair without a row has the signature's default set.
    pub rows: Vec<((Signature, Atom), Option<SetId>)>,
    /// Exact addresses → atom.
    pub peers: Vec<(IpAddr, Option<Atom>)>,
    /// Regions of the address space → atom, for addresses without an exact entry.
    pub cidrs: Vec<(IpNetwork, Option<Atom>)>,
    /// Local endpoints → their rules.
    pub endpoints: Vec<(Slot, Option<EndpointPolicy>)>,
}

impl Delta {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
            && self.ports.is_empty()
            && self.rows.is_empty()
            && self.peers.is_empty()
            && self.cidrs.is_empty()
            && self.endpoints.is_empty()
    }

    /// This step and a later one as one: what the later says of an element holds.
    pub fn then(self, later: Self) -> Self {
        fn join<K: Ord, V>(earlier: Vec<(K, V)>, later: Vec<(K, V)>) -> Vec<(K, V)> {
            let mut all: BTreeMap<K, V> = earlier.into_iter().collect();
            all.extend(later);
            all.into_iter().collect()
        }
        Self {
            serial: later.serial,
            sets: join(self.sets, later.sets),
            // In order: a range of the later step overwrites parts of the earlier's.
            ports: self.ports.into_iter().chain(later.ports).collect(),
            rows: join(self.rows, later.rows),
            peers: join(self.peers, later.peers),
            cidrs: join(self.cidrs, later.cidrs),
            endpoints: join(self.endpoints, later.endpoints),
        }
    }
}
