//! The kernel's tables in memory, looked up by the kernel's own code.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_common::judge::{PeerTables, PolicyTables, allows, port_class_element, protocol};
use fairlead_common::maps::{
    ABSENT, BANKS, Banked, CLASS_SCTP, CLASS_TCP, CLASS_UDP, EndpointPolicy, PORT_CLASS_ELEMENTS,
    PortClasses, PortSet, RowKey, SET_ALL, SET_NONE,
};
use ipnetwork::IpNetwork;

use super::{Atom, Delta, PortClass, SetId, Slot};
use crate::model::Protocol;
use crate::oracle::{Direction, Target};

/// The policy tables of one node.
#[derive(Clone, Debug)]
pub struct Tables {
    generation: u32,
    sets: BTreeMap<SetId, PortSet>,
    ports: Vec<PortClasses>,
    rows: BTreeMap<RowKey, Banked>,
    peers4: BTreeMap<u32, Banked>,
    peers6: BTreeMap<[u32; 4], Banked>,
    cidrs: BTreeMap<IpNetwork, Banked>,
    endpoints: BTreeMap<Slot, [Option<EndpointPolicy>; BANKS]>,
}

/// One write to the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The next bank becomes a copy of the one in force.
    Prepare,
    /// A port set, in place.
    Set(SetId, PortSet),
    /// Classes of ports, in place.
    Ports(PortClass),
    /// A row of the bank that is prepared.
    Row(RowKey, Option<SetId>),
    /// An exact address of the bank that is prepared.
    Peer(IpAddr, Option<Atom>),
    /// A prefix of the bank that is prepared.
    Cidr(IpNetwork, Option<Atom>),
    /// An endpoint's rules in the bank that is prepared.
    Endpoint(Slot, Option<EndpointPolicy>),
    /// Puts the prepared bank in force.
    Flip,
}

impl Default for Tables {
    fn default() -> Self {
        let mut ports = Vec::with_capacity(PORT_CLASS_ELEMENTS as usize);
        for class in [CLASS_TCP, CLASS_UDP, CLASS_SCTP] {
            ports.resize(ports.len() + PORT_CLASS_ELEMENTS as usize / 3, [class; 4]);
        }
        Self {
            generation: 1,
            sets: BTreeMap::from([(SET_NONE, PortSet::NONE), (SET_ALL, PortSet::ALL)]),
            ports,
            rows: BTreeMap::new(),
            peers4: BTreeMap::new(),
            peers6: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            endpoints: BTreeMap::new(),
        }
    }
}

impl Tables {
    /// The writes that put `delta` in force, in their order.
    pub fn writes(delta: &Delta) -> Vec<Write> {
        let mut writes = vec![Write::Prepare];
        writes.extend(delta.sets.iter().map(|&(id, set)| Write::Set(id, set)));
        writes.extend(delta.ports.iter().map(|&class| Write::Ports(class)));
        let row = |&((signature, atom), set): &_| Write::Row(RowKey { signature, atom }, set);
        writes.extend(delta.rows.iter().map(row));
        writes.extend(delta.peers.iter().map(|&(address, atom)| Write::Peer(address, atom)));
        writes.extend(delta.cidrs.iter().map(|&(prefix, atom)| Write::Cidr(prefix, atom)));
        writes.extend(delta.endpoints.iter().map(|&(slot, policy)| Write::Endpoint(slot, policy)));
        writes.push(Write::Flip);
        writes
    }

    /// Puts `delta` in force.
    pub fn apply(&mut self, delta: &Delta) {
        for write in Self::writes(delta) {
            self.write(write);
        }
    }

    /// Does one write.
    pub fn write(&mut self, write: Write) {
        let bank = (self.generation as usize + 1) % BANKS;
        let put = |banked: &mut Banked, value: Option<u32>| banked[bank] = value.unwrap_or(ABSENT);
        match write {
            Write::Prepare => self.prepare(bank),
            Write::Set(id, set) => {
                self.sets.insert(id, set);
            }
            Write::Ports(PortClass { protocol, first, last, class }) => {
                for port in first..=last {
                    let element = port_class_element(ip_protocol(protocol), port);
                    if let Some(classes) = element.and_then(|e| self.ports.get_mut(e as usize)) {
                        classes[usize::from(port) % 4] = class;
                    }
                }
            }
            Write::Row(key, set) => put(self.rows.entry(key).or_insert([ABSENT; BANKS]), set),
            Write::Peer(address, atom) => put(
                match address {
                    IpAddr::V4(v4) => self.peers4.entry(words4(v4)).or_insert([ABSENT; BANKS]),
                    IpAddr::V6(v6) => self.peers6.entry(words6(v6)).or_insert([ABSENT; BANKS]),
                },
                atom,
            ),
            Write::Cidr(prefix, atom) => put(self.cidrs.entry(prefix).or_insert([ABSENT; BANKS]), atom),
            Write::Endpoint(slot, policy) => {
                self.endpoints.entry(slot).or_insert([None; BANKS])[bank] = policy;
            }
            Write::Flip => self.generation = self.generation.wrapping_add(1),
        }
    }

    /// The tables as a packet meets them that began `back` generations ago, at most two.
    pub fn rewound(&self, back: u32) -> Self {
        Self { generation: self.generation.wrapping_sub(back), ..self.clone() }
    }

    fn prepare(&mut self, bank: usize) {
        let from = self.generation as usize % BANKS;
        let banked = (self.rows.values_mut())
            .chain(self.peers4.values_mut())
            .chain(self.peers6.values_mut())
            .chain(self.cidrs.values_mut());
        for value in banked {
            value[bank] = value[from];
        }
        for value in self.endpoints.values_mut() {
            value[bank] = value[from];
        }
    }

    /// An endpoint's rules in force.
    pub fn endpoint(&self, slot: Slot) -> Option<EndpointPolicy> {
        self.endpoints.get(&slot)?[self.generation as usize % BANKS]
    }

    /// Whether a new connection passes. An endpoint that is not there is closed.
    pub fn allows(&self, slot: Slot, direction: Direction, peer: IpAddr, target: Target) -> bool {
        let Some(policy) = self.endpoint(slot) else { return false };
        let side = match direction {
            Direction::Ingress => policy.ingress,
            Direction::Egress => policy.egress,
        };
        let (number, port) = match (target, peer) {
            (Target::Port(protocol, port), _) => (ip_protocol(protocol), port),
            (Target::Icmp, IpAddr::V4(_)) => (protocol::ICMP, 0),
            (Target::Icmp, IpAddr::V6(_)) => (protocol::ICMP6, 0),
            // GRE.
            (Target::Other, _) => (47, 0),
        };
        match peer {
            IpAddr::V4(v4) => allows(self, self.generation, side, &words4(v4), number, port),
            IpAddr::V6(v6) => allows(self, self.generation, side, &words6(v6), number, port),
        }
    }

    /// The longest prefix of the bank in force that covers `address`. The kernel's trie has entries of
    /// other banks in the way; the datapath writes into them what they would hide.
    fn longest(&self, address: IpAddr) -> Option<&Banked> {
        let bank = self.generation as usize % BANKS;
        let covering = self.cidrs.iter().filter(|(p, atoms)| p.contains(address) && atoms[bank] != ABSENT);
        covering.max_by_key(|(prefix, _)| prefix.prefix()).map(|(_, atoms)| atoms)
    }
}

impl PolicyTables for Tables {
    fn row(&self, key: &RowKey) -> Option<&Banked> {
        self.rows.get(key)
    }

    fn set(&self, id: u32) -> Option<&PortSet> {
        self.sets.get(&id)
    }

    fn port_classes(&self, element: u32) -> Option<&PortClasses> {
        self.ports.get(element as usize)
    }
}

impl PeerTables<u32> for Tables {
    fn peer(&self, address: &u32) -> Option<&Banked> {
        self.peers4.get(address)
    }

    fn cidr(&self, address: &u32) -> Option<&Banked> {
        self.longest(std::net::Ipv4Addr::from(address.to_ne_bytes()).into())
    }
}

impl PeerTables<[u32; 4]> for Tables {
    fn peer(&self, address: &[u32; 4]) -> Option<&Banked> {
        self.peers6.get(address)
    }

    fn cidr(&self, address: &[u32; 4]) -> Option<&Banked> {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        self.longest(std::net::Ipv6Addr::from(octets).into())
    }
}

/// The IP protocol number of a protocol that has ports.
pub fn ip_protocol(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    }
}

fn words4(address: std::net::Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn words6(address: std::net::Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    std::array::from_fn(|i| {
        u32::from_ne_bytes([octets[4 * i], octets[4 * i + 1], octets[4 * i + 2], octets[4 * i + 3]])
    })
}
