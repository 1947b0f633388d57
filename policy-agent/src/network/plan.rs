//! Which routes there should be, kept node by node. Pure.
//!
//! What a node contributes depends on it and on this node alone ([`Site`]), so a change of one is worked out and
//! programmed for that one, however many there are. Pod CIDRs do not overlap: the index sees to it. Two nodes may claim
//! one address all the same: then the first by name has it.

mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use fairlead_datapath::{Exit, Exits};
use fairlead_policy::claims::Claims;
use fairlead_policy::model::{Node, NodeChanges};
use ipnetwork::IpNetwork;

use crate::settings::Routing;
use site::Part;

pub use site::{Overlay, Site};

/// Metric of the routes that catch what no pod has: behind every other.
pub const LAST_METRIC: u32 = 0xffff_fff0;

/// Lowest metric of the routes to other nodes' pods, so that they are not confused with anybody else's to the
/// same destination: those of the kernel and of people have 0, 256 or 1024 unless told otherwise.
pub const METRIC: u32 = 0x464c;

/// How many metrics those routes have; see [`Route::metric`].
pub const METRICS: u32 = 1024;

/// The kernel's main table.
pub const MAIN: u32 = 254;
/// The table that only pods' packets ask: through the overlay to other nodes' addresses, so that a
/// fabric that knows no pod never sees one.
pub const PODS: u32 = 0x464c;

/// What VXLAN adds to a packet in bytes: Ethernet, VXLAN, UDP, and IPv4 or IPv6.
pub(crate) const OVERHEAD: [u32; 2] = [14 + 8 + 8 + 20, 14 + 8 + 8 + 40];

/// A route of Fairlead's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// [`MAIN`] or [`PODS`].
    pub table: u32,
    /// Destination.
    pub to: IpNetwork,
    /// How it gets there.
    pub by: Way,
}

impl Route {
    /// Its metric.
    ///
    /// By the destination, one of [`METRICS`]: of an IPv4 route the kernel keeps what others may share with it in a
    /// hash by metric and interface, not by gateway or tunnel (`fib_find_info` of net/ipv4/fib_semantics.c), and compares a new
    /// one with all of its bucket. With one metric for all, a route beside those to 1,000 nodes took seven times as long.
    pub fn metric(&self) -> u32 {
        if self.by == Way::Unreachable {
            return LAST_METRIC;
        }
        let bits = match self.to.network() {
            IpAddr::V4(a) => a.to_bits(),
            IpAddr::V6(a) => {
                let folded = a.to_bits() ^ a.to_bits() >> 64;
                (folded ^ folded >> 32) as u32
            }
        };
        // Knuth's multiplicative hash: neighbours lie apart.
        METRIC + (bits.wrapping_mul(0x9e37_79b1) >> (32 - METRICS.trailing_zeros()))
    }
}

/// What at most one [`Route`] goes to: table and destination.
pub type Place = (u32, IpNetwork);

/// How a [`Route`] goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Through a node on the same link.
    Gateway {
        /// The node's address.
        address: IpAddr,
        /// The interface on that link.
        interface: u32,
        /// What fits into the pods' interfaces there, in bytes, where that is less than into this one: so that
        /// not each packet's first try comes back as too large.
        mtu: Option<u32>,
    },
    /// Through the overlay.
    Overlay {
        /// The overlay device.
        interface: u32,
        /// Network identifier.
        id: u32,
        /// Outer addresses, of one family: this node's and the other's.
        source: IpAddr,
        /// See there.
        destination: IpAddr,
        /// What fits into the tunnel, in bytes.
        mtu: u32,
    },
    /// Not at all: an address of this node's that no pod has must not travel in circles.
    Unreachable,
}

/// MTU of pods and of the overlay device, in bytes: what fits to every node, so that it need not change
/// when nodes come and go.
pub fn mtu(uplink: u32, routing: Routing, own: &Node) -> u32 {
    let ipv6 = !own.addresses.iter().any(IpAddr::is_ipv4);
    let overhead = if routing.tunnels() { OVERHEAD[usize::from(ipv6)] } else { 0 };
    uplink.saturating_sub(overhead)
}

/// A node, and what it contributes.
#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    part: Part,
}

/// What there should be, and what of it has changed.
#[derive(Debug, Default)]
pub struct Plan {
    site: Option<Site>,
    nodes: BTreeMap<Arc<str>, Known>,
    /// Nodes whose part is to be worked out anew.
    stale: BTreeSet<Arc<str>>,
    /// Who has a route to a place; the first one's by name holds.
    places: Claims<Place, Arc<str>>,
    /// Nodes with problems.
    troubled: BTreeSet<Arc<str>>,
    /// How those places were reached, at [`Self::settled`], that may be reached otherwise now.
    before: BTreeMap<Place, Option<Way>>,
    /// Nodes whose exits may be others than were told.
    exits: BTreeSet<Arc<str>>,
    /// Exits were told.
    straight: bool,
}

impl Plan {
    /// Takes changes of nodes, this one among them. They count from the next [`Self::work_out`] on.
    pub fn take(&mut self, changes: NodeChanges) {
        for (name, node) in changes {
            let Some(node) = node else {
                self.exchange(&name, Part::default());
                self.nodes.remove(&name);
                self.stale.remove(&name);
                continue;
            };
            match self.nodes.get_mut(&name) {
                Some(known) => known.node = node,
                None => drop(self.nodes.insert(name.clone(), Known { node, part: Part::default() })),
            }
            self.stale.insert(name);
        }
    }

    /// A node, as it was taken last.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        Some(&self.nodes.get(name)?.node)
    }

    /// Works out what has changed; all of it only where this node has.
    pub fn work_out(&mut self, site: &Site) {
        if self.site.as_ref() != Some(site) {
            self.site = Some(site.clone());
            self.stale = self.nodes.keys().cloned().collect();
        }
        for name in std::mem::take(&mut self.stale) {
            let Some(known) = self.nodes.get(&name) else { continue };
            let part = site.part(&known.node);
            self.exchange(&name, part);
        }
    }

    /// Puts a node's part in the place of what it was.
    fn exchange(&mut self, name: &Arc<str>, part: Part) {
        let Some(known) = self.nodes.get(name) else { return };
        if known.part == part {
            return;
        }
        let mut places: BTreeSet<Place> = BTreeSet::new();
        for (some, others) in [(&known.part, &part), (&part, &known.part)] {
            places.extend(some.routes.iter().filter(|r| !others.routes.contains(r)).map(|(place, _)| *place));
        }
        if known.part.exit != part.exit {
            self.exits.insert(name.clone());
        }
        if part.problems.is_empty() {
            self.troubled.remove(name)
        } else {
            self.troubled.insert(name.clone())
        };
        for place in &places {
            if !self.before.contains_key(place) {
                self.before.insert(*place, self.way(place).cloned());
            }
            if part.routes.iter().any(|(p, _)| p == place) {
                self.places.claim(*place, name.clone());
            } else {
                self.places.release(place, name);
            }
        }
        if let Some(known) = self.nodes.get_mut(name) {
            known.part = part;
        }
    }

    /// How a node would have a place reached.
    fn way_of(&self, name: &Arc<str>, place: &Place) -> Option<&Way> {
        self.nodes.get(name)?.part.routes.iter().find(|(p, _)| p == place).map(|(_, by)| by)
    }

    /// How a place is to be reached.
    fn way(&self, place: &Place) -> Option<&Way> {
        self.way_of(self.places.first(place)?, place)
    }

    /// All routes.
    pub fn routes(&self) -> BTreeSet<Route> {
        self.places
            .range(..)
            .filter_map(|(place, name)| Some(route(*place, self.way_of(name, place)?)))
            .collect()
    }

    /// Routes that are there now and were not at [`Self::settled`], and those that were and are not now.
    pub fn changes(&self) -> (BTreeSet<Route>, BTreeSet<Route>) {
        let (mut come, mut gone) = (BTreeSet::new(), BTreeSet::new());
        for (place, before) in &self.before {
            let now = self.way(place);
            if now != before.as_ref() {
                come.extend(now.map(|by| route(*place, by)));
                gone.extend(before.as_ref().map(|by| route(*place, by)));
            }
        }
        (come, gone)
    }

    /// The kernel has all of it.
    pub fn settled(&mut self) {
        self.before.clear();
    }

    /// From where packets ask table [`PODS`] first: this node's pod CIDRs, where that table knows of any address of
    /// their family.
    pub fn sources(&self) -> BTreeSet<IpNetwork> {
        let first = self.places.range((PODS, IpNetwork::from(IpAddr::from([0; 4])))..).next();
        let last = self.places.range(..).next_back();
        let of = |entry: Option<(&Place, _)>, ipv6| {
            entry.is_some_and(|((table, to), _)| *table == PODS && to.is_ipv6() == ipv6)
        };
        let families = [of(first, false), of(last, true)];
        self.site.iter().flat_map(|site| site.pods(families)).collect()
    }

    /// What stands in the way of some.
    pub fn problems(&self) -> Vec<String> {
        let troubled = self.troubled.iter().filter_map(|name| self.nodes.get(name));
        let mut problems: Vec<String> = troubled.flat_map(|known| &known.part.problems).cloned().collect();
        for (place, others) in self.places.disputed() {
            let Some(holder) = self.places.first(place) else { continue };
            let differing = others.iter().filter(|name| self.way_of(name, place) != self.way(place));
            let to = place.1;
            problems.extend(
                differing
                    .map(|name| format!("no route to {to} of Node {name}: Node {holder} has it already")),
            );
        }
        problems
    }

    /// How packets for other nodes' pods leave past the host's stack, as far as that has changed since the last
    /// call; where they may not go `straight`, they do not.
    pub fn take_exits(&mut self, straight: bool) -> Exits {
        let mut changed = std::mem::take(&mut self.exits);
        let before = std::mem::replace(&mut self.straight, straight);
        if before != straight {
            let with = self.nodes.iter().filter(|(_, known)| known.part.exit != [Exit::default(); 2]);
            changed.extend(with.map(|(name, _)| name.clone()));
        }
        if !before && !straight {
            return Exits::new();
        }
        let exit = |name: &Arc<str>| self.nodes.get(name).filter(|_| straight).map(|known| known.part.exit);
        changed.into_iter().map(|name| (name.clone(), exit(&name).unwrap_or_default())).collect()
    }
}

fn route((table, to): Place, by: &Way) -> Route {
    Route { table, to, by: by.clone() }
}

/// The next hop of everything on the overlay device; the tunnel says where it really goes. One for all
/// nodes, so that there is one neighbour entry however many there are.
pub const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 70, 76)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x464c)),
];

#[cfg(test)]
mod tests;
