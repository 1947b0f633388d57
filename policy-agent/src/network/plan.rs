//! Which routes there should be. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fairlead_datapath::{Exit, Exits};
use fairlead_policy::model::Node;
use ipnetwork::IpNetwork;

use super::links::{Interface, Interfaces};
use crate::settings::Routing;

/// Metric of the routes that catch what no pod has: behind every other.
pub const LAST_METRIC: u32 = 0xffff_fff0;

/// Metric of the routes to other nodes' pods, so that they are not confused with anybody else's to the
/// same destination: those of the kernel and of people have 0, 256 or 1024 unless told otherwise.
pub const METRIC: u32 = 0x464c;

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

/// The overlay device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its index.
    pub interface: u32,
    /// Network identifier of what is sent.
    pub id: u32,
}

/// What a node has to plan with.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Name of this node.
    pub own: &'a str,
    /// All nodes.
    pub nodes: &'a BTreeMap<String, Node>,
    /// Its interfaces.
    pub interfaces: &'a Interfaces,
    /// The one towards the other nodes.
    pub uplink: &'a Interface,
    /// How to reach them.
    pub routing: Routing,
    /// The overlay device, where [`Routing::tunnels`].
    pub overlay: Option<Overlay>,
    /// MTU of pods in bytes.
    pub mtu: u32,
}

/// What there should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// From where packets ask table [`PODS`] first.
    pub sources: BTreeSet<IpNetwork>,
    /// How packets for other nodes' pods leave past the host's stack: where one interface leads to all of them.
    pub exits: Exits,
    /// What stands in the way of some.
    pub problems: Vec<String>,
}

/// MTU of pods and of the overlay device, in bytes: what fits to every node, so that it need not change
/// when nodes come and go.
pub fn mtu(uplink: u32, routing: Routing, own: &Node) -> u32 {
    let ipv6 = !own.addresses.iter().any(IpAddr::is_ipv4);
    let overhead = if routing.tunnels() { OVERHEAD[usize::from(ipv6)] } else { 0 };
    uplink.saturating_sub(overhead)
}

/// Works out routes.
///
/// Of nodes with the same pod CIDR the first by name has it, and nothing takes addresses from this node.
pub fn plan(site: &Site<'_>) -> Plan {
    let Site { own, nodes, .. } = *site;
    let mut plan = Plan::default();
    let Plan { routes, problems, exits, .. } = &mut plan;
    let near = Near::of(site);
    let own_cidrs = nodes.get(own).map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
    let mut holders: BTreeMap<(IpAddr, u8), &str> = BTreeMap::new();
    let mut tunnelled = [false; 2];
    for (name, node) in nodes {
        let mut families = [false; 2];
        // By family: the one way to all of the node's pods, and whether there is none.
        let mut exit = [Exit::default(); 2];
        let mut reached = [true; 2];
        for cidr in &node.pod_cidrs {
            let Ok(to) = IpNetwork::new(cidr.network(), cidr.prefix()) else { continue };
            if to.prefix() == 0 {
                problems.push(format!("no route to {to} of Node {name}: that is every address"));
                continue;
            }
            if name == own {
                routes.insert(Route { table: MAIN, to, by: Way::Unreachable });
                continue;
            }
            if site.routing == Routing::None {
                continue;
            }
            let family = usize::from(to.is_ipv6());
            if let Some(mine) = own_cidrs.iter().find(|mine| mine.prefix() > 0 && overlap(mine, &to)) {
                problems
                    .push(format!("no route to {to} of Node {name}: it overlaps {mine} of this node, {own}"));
                reached[family] = false;
                continue;
            }
            let holder = *holders.entry((to.network(), to.prefix())).or_insert(name);
            if holder != name {
                problems.push(format!("no route to {to} of Node {name}: Node {holder} has it already"));
                reached[family] = false;
                continue;
            }
            match near.way(site, node, to.is_ipv6()) {
                Ok(by) => {
                    families[family] |= matches!(by, Way::Overlay { .. });
                    exit[family] = exit_by(site, &by);
                    routes.insert(Route { table: MAIN, to, by });
                }
                Err(why) => {
                    reached[family] = false;
                    problems.push(format!("no route to {to} of Node {name}: {why}"));
                }
            }
        }
        for (exit, reached) in exit.iter_mut().zip(reached) {
            if !reached {
                *exit = Exit::default();
            }
        }
        if exit != [Exit::default(); 2] {
            exits.insert(name.clone(), exit);
        }
        for address in node.addresses.iter().filter(|a| families[usize::from(a.is_ipv6())]) {
            if let Ok(by) = near.tunnel(site, node) {
                tunnelled[usize::from(address.is_ipv6())] = true;
                routes.insert(Route { table: PODS, to: (*address).into(), by });
            }
        }
    }
    let sources = own_cidrs.iter().filter(|c| c.prefix() > 0 && tunnelled[usize::from(c.is_ipv6())]);
    plan.sources = sources.filter_map(|c| IpNetwork::new(c.network(), c.prefix()).ok()).collect();
    plan
}

/// The interface of a way, and what fits into it.
fn exit_by(site: &Site<'_>, by: &Way) -> Exit {
    match by {
        Way::Gateway { interface, .. } => {
            let mtu = site.interfaces.0.get(interface).map_or(0, |i| i.mtu);
            Exit { ifindex: *interface, mtu }
        }
        Way::Overlay { interface, mtu, .. } => Exit { ifindex: *interface, mtu: *mtu },
        Way::Unreachable => Exit::default(),
    }
}

/// What is on this node's links, and under which addresses it can be reached itself.
struct Near {
    /// The uplink's first.
    networks: Vec<(IpNetwork, u32)>,
    /// Whether the uplink's own address of a family has no network around it.
    alone: [bool; 2],
    /// This node's address by family.
    own: [Option<IpAddr>; 2],
}

impl Near {
    fn of(site: &Site<'_>) -> Self {
        let mut networks = Vec::new();
        let others = site.interfaces.exits().filter(|i| i.index != site.uplink.index);
        for interface in std::iter::once(site.uplink).chain(others) {
            let wide = interface.networks.iter().filter(|n| {
                let link_local = matches!(n.ip(), IpAddr::V6(a) if a.is_unicast_link_local());
                n.prefix() < length(n.is_ipv6()) && !link_local
            });
            networks.extend(wide.map(|n| (*n, interface.index)));
        }
        let own_addresses =
            site.nodes.get(site.own).map(|node| node.addresses.as_slice()).unwrap_or_default();
        let alone = [false, true].map(|ipv6| {
            let own = |n: &&IpNetwork| n.is_ipv6() == ipv6 && own_addresses.contains(&n.ip());
            site.uplink.networks.iter().find(own).is_some_and(|n| n.prefix() == length(ipv6))
        });
        let own = [false, true].map(|ipv6| own_addresses.iter().copied().find(|a| a.is_ipv6() == ipv6));
        Self { networks, alone, own }
    }

    /// The way to a node's pods of a family.
    fn way(&self, site: &Site<'_>, node: &Node, ipv6: bool) -> Result<Way, String> {
        match site.routing {
            Routing::Vxlan => self.tunnel(site, node),
            Routing::Auto => self.gateway(site, node, ipv6).map_or_else(|| self.tunnel(site, node), Ok),
            Routing::Direct | Routing::None => {
                let Some(address) = node.addresses.iter().copied().find(|a| a.is_ipv6() == ipv6) else {
                    return Err("the node has no address of that family".to_owned());
                };
                // Where nodes have /32 or /128 addresses, others are on the link all the same.
                let alone = self.alone[usize::from(ipv6)];
                let on_link = alone.then(|| onto(site, address, site.uplink.index));
                self.gateway(site, node, ipv6).or(on_link).ok_or_else(|| {
                    format!("{address} is on no link of this node (routing auto would use the overlay)")
                })
            }
        }
    }

    fn gateway(&self, site: &Site<'_>, node: &Node, ipv6: bool) -> Option<Way> {
        let of_family = node.addresses.iter().filter(|a| a.is_ipv6() == ipv6);
        let found = of_family.filter_map(|address| {
            let place = self.networks.iter().position(|(network, _)| network.contains(*address))?;
            Some((place, *address))
        });
        let (place, address) = found.min()?;
        Some(onto(site, address, self.networks.get(place)?.1))
    }

    fn tunnel(&self, site: &Site<'_>, node: &Node) -> Result<Way, String> {
        let Some(overlay) = site.overlay else { return Err("there is no overlay device".to_owned()) };
        let ends = [false, true].into_iter().find_map(|ipv6| {
            let other = node.addresses.iter().copied().find(|a| a.is_ipv6() == ipv6)?;
            Some((self.own[usize::from(ipv6)]?, other, OVERHEAD[usize::from(ipv6)]))
        });
        let (source, destination, overhead) =
            ends.ok_or_else(|| "this node and that one have no addresses of a common family".to_owned())?;
        let mtu = site.uplink.mtu.saturating_sub(overhead);
        Ok(Way::Overlay { interface: overlay.interface, id: overlay.id, source, destination, mtu })
    }
}

/// The way to a node on the link of this interface.
fn onto(site: &Site<'_>, address: IpAddr, interface: u32) -> Way {
    let fits = site.interfaces.0.get(&interface).map_or(0, |i| i.mtu);
    Way::Gateway { address, interface, mtu: (site.mtu < fits).then_some(site.mtu) }
}

fn length(ipv6: bool) -> u8 {
    if ipv6 { 128 } else { 32 }
}

/// Whether two networks have addresses in common: one holds the other then.
fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// The next hop of everything on the overlay device; the tunnel says where it really goes. One for all
/// nodes, so that there is one neighbour entry however many there are.
pub const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 70, 76)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x464c)),
];

#[cfg(test)]
mod tests;
