//! The other nodes, as the programs must know them: who may send what through a tunnel, and how packets for whose
//! pods leave.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_common::maps::{Cidr4, Cidr6, EXITS, Exit, NODE_NONE};
use fairlead_policy::claims::Claims;
use fairlead_policy::model::{Node, NodeChanges, without_host_bits};
use ipnetwork::IpNetwork;

use crate::map::Map;
use crate::object::Object;
use crate::policy::CidrKey as _;
use crate::{Error, words4, words6};

/// How packets for the pods of other nodes leave past the host's stack, by name of the node, for IPv4 and IPv6:
/// where by no interface, they do not.
pub type Exits = BTreeMap<Arc<str>, [Exit; 2]>;

/// Maps `tunnels4`, `tunnels6`, `remotes4`, `remotes6`, `exits4` and `exits6`.
pub(crate) struct Remotes {
    tunnels4: Map<u32, u32>,
    tunnels6: Map<[u32; 4], u32>,
    remotes4: Map<Cidr4, u32>,
    remotes6: Map<Cidr6, u32>,
    exits: [Map<u32, Exit>; 2],
    held_exits: BTreeMap<u32, [Exit; 2]>,
    wanted: Wanted,
}

/// What the maps are to hold, and of what they may hold something else yet. Each node's part of it is kept apart, so
/// that what a node's change costs does not grow with their number.
#[derive(Debug)]
struct Wanted {
    nodes: BTreeMap<Arc<str>, (u32, Arc<Node>)>,
    names: BTreeMap<u32, Arc<str>>,
    /// The least number that nobody has had.
    next: u32,
    /// Those below it that nobody has.
    free: BTreeSet<u32>,
    /// Who claims an address of a node's, and who claims what packets come from.
    tunnels: Claims<IpAddr, u32>,
    remotes: Claims<IpNetwork, u32>,
    exits: Exits,
    touched: Touched,
}

/// What is to be written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Touched {
    tunnels: BTreeSet<IpAddr>,
    remotes: BTreeSet<IpNetwork>,
    exits: BTreeSet<u32>,
}

/// What a node claims: its addresses as far ends of tunnels, and what its packets come from.
fn claimed(node: &Node) -> (BTreeSet<IpAddr>, BTreeSet<IpNetwork>) {
    let addresses = node.addresses.iter().map(|a| IpNetwork::from(*a));
    let all = addresses.chain(node.pod_cidrs.iter().copied());
    (node.addresses.iter().copied().collect(), all.map(without_host_bits).collect())
}

/// Whose something is. Of two nodes that claim the same, neither is believed.
fn believed<K: Ord + Clone>(all: &Claims<K, u32>, key: &K) -> Option<u32> {
    let first = all.first(key)?;
    Some(if all.is_disputed(key) { NODE_NONE } else { *first })
}

fn exchange<K: Ord + Copy>(
    all: &mut Claims<K, u32>,
    number: u32,
    (before, after): (&BTreeSet<K>, &BTreeSet<K>),
    touched: &mut BTreeSet<K>,
) {
    for key in before.symmetric_difference(after) {
        let was = believed(all, key);
        if after.contains(key) {
            all.claim(*key, number)
        } else {
            all.release(key, &number)
        }
        if believed(all, key) != was {
            touched.insert(*key);
        }
    }
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            next: NODE_NONE + 1,
            free: BTreeSet::new(),
            tunnels: Claims::default(),
            remotes: Claims::default(),
            exits: Exits::new(),
            touched: Touched::default(),
        }
    }
}

impl Wanted {
    /// Takes changes of nodes. Numbers of those that go are given again to those that come, the least first.
    fn set(&mut self, changes: &NodeChanges) {
        for (name, _) in changes.iter().filter(|(_, node)| node.is_none()) {
            let Some((number, node)) = self.nodes.remove(name) else { continue };
            let (addresses, networks) = claimed(&node);
            self.exchange(number, (addresses, networks), Default::default());
            self.names.remove(&number);
            self.free.insert(number);
            self.touched.exits.insert(number);
        }
        for (name, node) in changes {
            let Some(node) = node else { continue };
            let (number, before) = match self.nodes.get(name) {
                Some((number, there)) => (*number, claimed(there)),
                None => (self.number(name), Default::default()),
            };
            self.exchange(number, before, claimed(node));
            self.nodes.insert(name.clone(), (number, node.clone()));
        }
    }

    fn number(&mut self, name: &Arc<str>) -> u32 {
        let number = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.names.insert(number, name.clone());
        self.touched.exits.insert(number);
        number
    }

    fn exchange(
        &mut self,
        number: u32,
        before: (BTreeSet<IpAddr>, BTreeSet<IpNetwork>),
        after: (BTreeSet<IpAddr>, BTreeSet<IpNetwork>),
    ) {
        let Self { tunnels, remotes, touched, .. } = self;
        exchange(tunnels, number, (&before.0, &after.0), &mut touched.tunnels);
        exchange(remotes, number, (&before.1, &after.1), &mut touched.remotes);
    }

    fn set_exits(&mut self, exits: &Exits) {
        for (name, exit) in exits {
            if *exit == [Exit::default(); 2] {
                self.exits.remove(name);
            } else {
                self.exits.insert(name.clone(), *exit);
            }
            self.touched.exits.extend(self.nodes.get(name).map(|(number, _)| *number));
        }
    }

    /// How packets for the pods of the node with this number leave.
    fn exit(&self, number: u32) -> [Exit; 2] {
        let name = self.names.get(&number).filter(|_| number < EXITS);
        name.and_then(|name| self.exits.get(name)).copied().unwrap_or_default()
    }
}

impl Remotes {
    pub(crate) fn new(object: &Object) -> Result<Self, Error> {
        Ok(Self {
            tunnels4: object.map("tunnels4")?,
            tunnels6: object.map("tunnels6")?,
            remotes4: object.map("remotes4")?,
            remotes6: object.map("remotes6")?,
            exits: [object.map("exits4")?, object.map("exits6")?],
            held_exits: BTreeMap::new(),
            wanted: Wanted::default(),
        })
    }

    /// Takes changes of other nodes, which [`Self::write`] puts into the maps. Returns the addresses that
    /// may have become a node's by that, or no node's.
    pub(crate) fn set(&mut self, changes: &NodeChanges) -> BTreeSet<IpAddr> {
        self.wanted.set(changes);
        self.wanted.touched.tunnels.clone()
    }

    /// Whether an address is another node's.
    pub(crate) fn is_node(&self, address: &IpAddr) -> bool {
        self.wanted.tunnels.first(address).is_some()
    }

    /// Makes the maps say what has changed of the other nodes. After an error they say part of it, and the
    /// next call makes up for it.
    ///
    /// What goes is taken out first: in between, a packet can only be dropped for want of an entry.
    pub(crate) fn write(&mut self) -> Result<(), Error> {
        // Before a number means another node.
        self.write_exits()?;
        let Wanted { tunnels, remotes, touched, .. } = &self.wanted;
        let gone: Vec<_> = touched.tunnels.iter().filter(|a| tunnels.first(a).is_none()).copied().collect();
        let unclaimed: Vec<_> =
            touched.remotes.iter().filter(|c| remotes.first(c).is_none()).copied().collect();
        for address in gone {
            self.write_tunnel(&address, None)?;
            self.wanted.touched.tunnels.remove(&address);
        }
        for cidr in unclaimed {
            self.write_remote(&cidr, None)?;
            self.wanted.touched.remotes.remove(&cidr);
        }
        while let Some(cidr) = self.wanted.touched.remotes.first().copied() {
            let number = believed(&self.wanted.remotes, &cidr);
            self.write_remote(&cidr, number)?;
            self.wanted.touched.remotes.remove(&cidr);
        }
        while let Some(address) = self.wanted.touched.tunnels.first().copied() {
            let number = believed(&self.wanted.tunnels, &address);
            self.write_tunnel(&address, number)?;
            self.wanted.touched.tunnels.remove(&address);
        }
        Ok(())
    }

    /// Makes the maps say how packets leave for these nodes. After an error they say part of it, as in [`Self::write`].
    pub(crate) fn set_exits(&mut self, exits: &Exits) -> Result<(), Error> {
        self.wanted.set_exits(exits);
        self.write_exits()
    }

    fn write_exits(&mut self) -> Result<(), Error> {
        while let Some(number) = self.wanted.touched.exits.first().copied() {
            let new = self.wanted.exit(number);
            let held = self.held_exits.entry(number).or_default();
            for ((map, held), new) in self.exits.iter().zip(held).zip(&new) {
                if held != new {
                    map.set(&number, new)?;
                    *held = *new;
                }
            }
            if new == [Exit::default(); 2] {
                self.held_exits.remove(&number);
            }
            self.wanted.touched.exits.remove(&number);
        }
        Ok(())
    }

    fn write_tunnel(&self, address: &IpAddr, number: Option<u32>) -> Result<(), Error> {
        match (address, number) {
            (IpAddr::V4(a), Some(number)) => self.tunnels4.set(&words4(*a), &number)?,
            (IpAddr::V4(a), None) => self.tunnels4.remove(&words4(*a))?,
            (IpAddr::V6(a), Some(number)) => self.tunnels6.set(&words6(*a), &number)?,
            (IpAddr::V6(a), None) => self.tunnels6.remove(&words6(*a))?,
        }
        Ok(())
    }

    fn write_remote(&self, cidr: &IpNetwork, number: Option<u32>) -> Result<(), Error> {
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
        Ok(())
    }
}

#[cfg(test)]
mod tests;
