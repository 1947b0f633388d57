//! What one node has to plan with, and what it makes of another. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_datapath::{Exit, NextHop, Tunnel};
use fairlead_policy::model::{Node, without_host_bits};
use ipnetwork::IpNetwork;

use super::{MAIN, OVERHEAD, PODS, Place, Way};
use crate::network::links::{Interface, Interfaces};
use crate::settings::Routing;

/// The overlay device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its index.
    pub interface: u32,
    /// Network identifier of what is sent.
    pub id: u32,
}

/// What this node has to plan with: no more of it than routes depend on, so that pods' interfaces, which come and go,
/// make it no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    own: Node,
    routing: Routing,
    overlay: Option<Overlay>,
    /// MTU of pods in bytes.
    mtu: u32,
    uplink: u32,
    /// MTUs in bytes by index, of the uplink and of what else leads out of the node.
    mtus: BTreeMap<u32, u32>,
    /// What is on this node's links; the uplink's first.
    networks: Vec<(IpNetwork, u32)>,
    /// By family: whether the uplink's own address has no network around it.
    alone: [bool; 2],
    /// This node's address by family.
    addresses: [Option<IpAddr>; 2],
}

/// What a node makes of another: no other has a part in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// Routes, sorted, one to a place.
    pub routes: Vec<(Place, Way)>,
    /// By family: the one way to all of the node's pods past the host's stack, where one interface leads to all.
    pub exit: [Exit; 2],
    /// What stands in the way of some.
    pub problems: Vec<String>,
}

impl Site {
    /// As `own` finds it: its interfaces, which of them leads to the other nodes, how to reach those, the
    /// overlay device where [`Routing::tunnels`], and the MTU of pods in bytes.
    pub fn new(
        own: &Node,
        interfaces: &Interfaces,
        uplink: &Interface,
        routing: Routing,
        overlay: Option<Overlay>,
        mtu: u32,
    ) -> Self {
        let (mut networks, mut mtus) = (Vec::new(), BTreeMap::new());
        let others = interfaces.exits().filter(|i| i.index != uplink.index);
        for interface in std::iter::once(uplink).chain(others) {
            let wide = interface.networks.iter().filter(|n| {
                let link_local = matches!(n.ip(), IpAddr::V6(a) if a.is_unicast_link_local());
                n.prefix() < length(n.is_ipv6()) && !link_local
            });
            networks.extend(wide.map(|n| (*n, interface.index)));
            mtus.insert(interface.index, interface.mtu);
        }
        let alone = [false, true].map(|ipv6| {
            let mine = |n: &&IpNetwork| n.is_ipv6() == ipv6 && own.addresses.contains(&n.ip());
            uplink.networks.iter().find(mine).is_some_and(|n| n.prefix() == length(ipv6))
        });
        let addresses = [false, true].map(|ipv6| own.addresses.iter().copied().find(|a| a.is_ipv6() == ipv6));
        let (own, uplink) = (own.clone(), uplink.index);
        Self { own, routing, overlay, mtu, uplink, mtus, networks, alone, addresses }
    }

    /// This node's pod CIDRs of these families.
    pub(super) fn pods(&self, families: [bool; 2]) -> impl Iterator<Item = IpNetwork> {
        let own = self.own.pod_cidrs.iter().filter(|c| c.prefix() > 0);
        own.filter(move |c| families[usize::from(c.is_ipv6())]).map(|c| without_host_bits(*c))
    }

    /// Works out what a node's pods, and its addresses, are reached by.
    pub(super) fn part(&self, node: &Node) -> Part {
        let mut part = Part::default();
        let Part { routes, exit, problems } = &mut part;
        let name = &node.name;
        let (mut tunnelled, mut reached) = ([false; 2], [true; 2]);
        for cidr in &node.pod_cidrs {
            let to = without_host_bits(*cidr);
            if to.prefix() == 0 {
                problems.push(format!("no route to {to} of Node {name}: that is every address"));
                continue;
            }
            if *name == self.own.name {
                routes.push(((MAIN, to), Way::Unreachable));
                continue;
            }
            if self.routing == Routing::None {
                continue;
            }
            let family = usize::from(to.is_ipv6());
            match self.way(node, to.is_ipv6()) {
                Ok(by) => {
                    tunnelled[family] |= matches!(by, Way::Overlay { .. });
                    exit[family] = self.exit_by(&by);
                    routes.push(((MAIN, to), by));
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
        for address in node.addresses.iter().filter(|a| tunnelled[usize::from(a.is_ipv6())]) {
            routes.extend(self.tunnel(node).map(|by| ((PODS, (*address).into()), by)));
        }
        routes.sort();
        routes.dedup_by_key(|(place, _)| *place);
        routes.shrink_to_fit();
        part
    }

    /// The interface of a way, what fits into it, and who is at its end.
    fn exit_by(&self, by: &Way) -> Exit {
        match by {
            Way::Gateway { interface, address, .. } => {
                let (mtu, hop) = (self.mtu_of(*interface), NextHop::of(*address));
                Exit { ifindex: *interface, mtu, hop, ..Exit::default() }
            }
            // The tunnel is in the route.
            Way::Overlay { interface, source, destination, mtu, .. } => {
                let tunnel = self.tunnel_on_link(*source, *destination);
                let there = self.mtu_of(tunnel.ifindex).saturating_sub(OVERHEAD[0]);
                let mtu = if tunnel.ifindex != 0 { there.min(*mtu) } else { *mtu };
                Exit { ifindex: *interface, mtu, tunnel, ..Exit::default() }
            }
            Way::Unreachable => Exit::default(),
        }
    }

    /// The tunnel whose header need not be put on by the device: one over IPv4 that ends on a link of this node's. Of
    /// all others the kernel knows more than an interface and who is at its end: routers, their MTU.
    fn tunnel_on_link(&self, source: IpAddr, destination: IpAddr) -> Tunnel {
        let (IpAddr::V4(source), IpAddr::V4(_)) = (source, destination) else {
            return Tunnel::default();
        };
        self.link_of(destination).map_or_else(Tunnel::default, |(_, ifindex)| Tunnel {
            ifindex,
            source: u32::from_ne_bytes(source.octets()),
            far: NextHop::of(destination),
        })
    }

    fn mtu_of(&self, interface: u32) -> u32 {
        self.mtus.get(&interface).copied().unwrap_or_default()
    }

    /// The way to a node's pods of a family.
    fn way(&self, node: &Node, ipv6: bool) -> Result<Way, String> {
        match self.routing {
            Routing::Vxlan => self.tunnel(node),
            Routing::Auto => self.gateway(node, ipv6).map_or_else(|| self.tunnel(node), Ok),
            Routing::Direct | Routing::None => {
                let Some(address) = node.addresses.iter().copied().find(|a| a.is_ipv6() == ipv6) else {
                    return Err("the node has no address of that family".to_owned());
                };
                // Where nodes have /32 or /128 addresses, others are on the link all the same.
                let alone = self.alone[usize::from(ipv6)];
                let on_link = alone.then(|| self.onto(address, self.uplink));
                self.gateway(node, ipv6).or(on_link).ok_or_else(|| {
                    format!("{address} is on no link of this node (routing auto would use the overlay)")
                })
            }
        }
    }

    fn gateway(&self, node: &Node, ipv6: bool) -> Option<Way> {
        let of_family = node.addresses.iter().filter(|a| a.is_ipv6() == ipv6);
        let found = of_family.filter_map(|address| Some((self.link_of(*address)?, *address)));
        let ((_, interface), address) = found.min()?;
        Some(self.onto(address, interface))
    }

    /// The link that an address is on: the network's place among this node's, and the interface.
    fn link_of(&self, address: IpAddr) -> Option<(usize, u32)> {
        let place = self.networks.iter().position(|(network, _)| network.contains(address))?;
        Some((place, self.networks.get(place)?.1))
    }

    fn tunnel(&self, node: &Node) -> Result<Way, String> {
        let Some(overlay) = self.overlay else { return Err("there is no overlay device".to_owned()) };
        let ends = [false, true].into_iter().find_map(|ipv6| {
            let other = node.addresses.iter().copied().find(|a| a.is_ipv6() == ipv6)?;
            Some((self.addresses[usize::from(ipv6)]?, other, OVERHEAD[usize::from(ipv6)]))
        });
        let (source, destination, overhead) =
            ends.ok_or_else(|| "this node and that one have no addresses of a common family".to_owned())?;
        let mtu = self.mtu_of(self.uplink).saturating_sub(overhead);
        Ok(Way::Overlay { interface: overlay.interface, id: overlay.id, source, destination, mtu })
    }

    /// The way to a node on the link of this interface.
    fn onto(&self, address: IpAddr, interface: u32) -> Way {
        Way::Gateway { address, interface, mtu: (self.mtu < self.mtu_of(interface)).then_some(self.mtu) }
    }
}

fn length(ipv6: bool) -> u8 {
    if ipv6 { 128 } else { 32 }
}
