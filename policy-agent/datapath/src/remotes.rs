//! The other nodes, as the programs must know them: who may send what through a tunnel, and how packets for whose
//! pods leave.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_common::maps::{Cidr4, Cidr6, EXITS, Exit, NODE_NONE};
use fairlead_policy::model::Node;
use ipnetwork::IpNetwork;

use crate::map::Map;
use crate::object::Object;
use crate::policy::CidrKey as _;
use crate::{Error, words4, words6};

/// How packets for the pods of other nodes leave past the host's stack, by name of the node, for IPv4 and IPv6.
pub type Exits = BTreeMap<String, [Exit; 2]>;

/// Maps `tunnels4`, `tunnels6`, `remotes4`, `remotes6`, `exits4` and `exits6`, and what they hold.
pub(crate) struct Remotes {
    tunnels4: Map<u32, u32>,
    tunnels6: Map<[u32; 4], u32>,
    remotes4: Map<Cidr4, u32>,
    remotes6: Map<Cidr6, u32>,
    exits: [Map<u32, Exit>; 2],
    numbers: BTreeMap<String, u32>,
    held: Held,
    wanted_exits: Exits,
    held_exits: BTreeMap<u32, [Exit; 2]>,
}

/// What the maps hold, or are to hold: numbers of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    tunnels: BTreeMap<IpAddr, u32>,
    remotes: BTreeMap<IpNetwork, u32>,
}

impl Held {
    /// Of two nodes that claim the same, neither is believed.
    fn of(nodes: &[&Node], numbers: &BTreeMap<String, u32>) -> Self {
        let mut held = Self::default();
        let mut disputed = BTreeSet::new();
        for node in nodes {
            let number = numbers.get(&node.name).copied().unwrap_or(NODE_NONE);
            for address in &node.addresses {
                held.tunnels.entry(*address).and_modify(|n| *n = common(*n, number)).or_insert(number);
            }
            for cidr in
                node.addresses.iter().map(|a| IpNetwork::from(*a)).chain(node.pod_cidrs.iter().copied())
            {
                // Host bits that are written mean nothing.
                let Ok(cidr) = IpNetwork::new(cidr.network(), cidr.prefix()) else { continue };
                if held.remotes.insert(cidr, number).is_some_and(|other| other != number) {
                    disputed.insert(cidr);
                }
            }
        }
        for cidr in disputed {
            held.remotes.insert(cidr, NODE_NONE);
        }
        held
    }
}

fn common(a: u32, b: u32) -> u32 {
    if a == b { a } else { NODE_NONE }
}

impl Remotes {
    pub(crate) fn new(object: &Object) -> Result<Self, Error> {
        Ok(Self {
            tunnels4: object.map("tunnels4")?,
            tunnels6: object.map("tunnels6")?,
            remotes4: object.map("remotes4")?,
            remotes6: object.map("remotes6")?,
            exits: [object.map("exits4")?, object.map("exits6")?],
            numbers: BTreeMap::new(),
            held: Held::default(),
            wanted_exits: Exits::new(),
            held_exits: BTreeMap::new(),
        })
    }

    /// Makes the maps say what these other nodes are. After an error they say part of it, and the next
    /// call makes up for it.
    ///
    /// What goes is taken out first: in between, a packet can only be dropped for want of an entry.
    pub(crate) fn set(&mut self, nodes: &[&Node]) -> Result<(), Error> {
        let names: BTreeSet<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
        self.numbers.retain(|name, _| names.contains(name.as_str()));
        let used: BTreeSet<u32> = self.numbers.values().copied().collect();
        let mut free = (NODE_NONE + 1..).filter(|n| !used.contains(n));
        for name in names {
            if !self.numbers.contains_key(name)
                && let Some(number) = free.next()
            {
                self.numbers.insert(name.to_owned(), number);
            }
        }
        let wanted = Held::of(nodes, &self.numbers);
        // Before a number means another node.
        self.write_exits()?;
        let gone: Vec<_> =
            self.held.tunnels.keys().filter(|a| !wanted.tunnels.contains_key(*a)).copied().collect();
        for address in gone {
            self.write_tunnel(&address, None)?;
        }
        let gone: Vec<_> =
            self.held.remotes.keys().filter(|c| !wanted.remotes.contains_key(*c)).copied().collect();
        for cidr in gone {
            self.write_remote(&cidr, None)?;
        }
        for (cidr, number) in &wanted.remotes {
            if self.held.remotes.get(cidr) != Some(number) {
                self.write_remote(cidr, Some(*number))?;
            }
        }
        for (address, number) in &wanted.tunnels {
            if self.held.tunnels.get(address) != Some(number) {
                self.write_tunnel(address, Some(*number))?;
            }
        }
        Ok(())
    }

    /// Makes the maps say how packets leave. After an error they say part of it, as in [`Self::set`].
    pub(crate) fn set_exits(&mut self, exits: &Exits) -> Result<(), Error> {
        self.wanted_exits.clone_from(exits);
        self.write_exits()
    }

    fn write_exits(&mut self) -> Result<(), Error> {
        let numbered = self.numbers.iter().filter(|(_, number)| **number < EXITS);
        let wanted: BTreeMap<u32, [Exit; 2]> =
            numbered.filter_map(|(name, number)| Some((*number, *self.wanted_exits.get(name)?))).collect();
        let numbers: BTreeSet<u32> = self.held_exits.keys().chain(wanted.keys()).copied().collect();
        for number in numbers {
            let new = wanted.get(&number).copied().unwrap_or_default();
            let old = self.held_exits.get(&number).copied().unwrap_or_default();
            for (map, (new, old)) in self.exits.iter().zip(new.iter().zip(&old)) {
                if new != old {
                    map.set(&number, new)?;
                }
            }
            self.held_exits.insert(number, new);
        }
        self.held_exits.retain(|_, exits| *exits != [Exit::default(); 2]);
        Ok(())
    }

    fn write_tunnel(&mut self, address: &IpAddr, number: Option<u32>) -> Result<(), Error> {
        match (address, number) {
            (IpAddr::V4(a), Some(number)) => self.tunnels4.set(&words4(*a), &number)?,
            (IpAddr::V4(a), None) => self.tunnels4.remove(&words4(*a))?,
            (IpAddr::V6(a), Some(number)) => self.tunnels6.set(&words6(*a), &number)?,
            (IpAddr::V6(a), None) => self.tunnels6.remove(&words6(*a))?,
        }
        match number {
            Some(number) => self.held.tunnels.insert(*address, number),
            None => self.held.tunnels.remove(address),
        };
        Ok(())
    }

    fn write_remote(&mut self, cidr: &IpNetwork, number: Option<u32>) -> Result<(), Error> {
        if let Some(key) = Cidr4::of(cidr) {
            match number {
                Some(number) => self.remotes4.set(&key, &number)?,
                None => self.remotes4.remove(&key)?,
            }
        } else if let Some(key) = Cidr6::of(cidr) {
            match number {
                Some(number) => self.remotes6.set(&key, &number)?,
                None => self.remotes6.remove(&key)?,
            }
        }
        match number {
            Some(number) => self.held.remotes.insert(*cidr, number),
            None => self.held.remotes.remove(cidr),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Node {
        Node {
            name: name.to_owned(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pod_cidrs: pod_cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn a_node_speaks_for_itself_and_its_pods_and_no_one_for_what_two_claim() {
        let a = node("a", &["192.0.2.1", "2001:db8::1"], &["10.1.1.7/24"]);
        let b = node("b", &["192.0.2.2", "192.0.2.1"], &["10.1.2.0/24", "10.1.1.0/24"]);
        let numbers = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let held = Held::of(&[&a, &b], &numbers);
        let remote = |cidr: &str| held.remotes.get(&cidr.parse::<IpNetwork>().unwrap()).copied();
        let tunnel = |address: &str| held.tunnels.get(&address.parse::<IpAddr>().unwrap()).copied();
        assert_eq!(remote("10.1.2.0/24"), Some(2));
        assert_eq!(remote("2001:db8::1/128"), Some(1));
        assert_eq!((remote("10.1.1.0/24"), remote("192.0.2.1/32")), (Some(NODE_NONE), Some(NODE_NONE)));
        assert_eq!((tunnel("192.0.2.2"), tunnel("192.0.2.1")), (Some(2), Some(NODE_NONE)));
        assert_eq!(held.remotes.len(), 5);
    }
}
