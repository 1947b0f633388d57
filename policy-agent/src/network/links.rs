//! Interfaces and their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use ipnetwork::IpNetwork;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType};
use rtnetlink::{Handle, MulticastGroup};

/// Where kube-proxy in IPVS mode keeps the addresses of Services.
const SERVICES: &str = "kube-ipvs0";

/// The overlay device. It bears the node's own address a second time, so it is no uplink.
pub const OVERLAY: &str = "fl-overlay";

/// An interface of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is loopback, [`SERVICES`] or [`OVERLAY`]. Its addresses are not the node's own for
    /// that, and it is no uplink.
    pub inward: bool,
    /// Whether its frames are Ethernet's.
    pub ethernet: bool,
    /// Whether its administrator has set it up.
    pub up: bool,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its addresses with the prefixes that are on the link.
    pub networks: BTreeSet<IpNetwork>,
}

impl Interface {
    /// Whether it is a pod's: see [`fairlead_cni::ledger::host_ifname`].
    fn pods(&self) -> bool {
        self.name.len() == 15 && self.name.starts_with("fl")
    }
}

/// The interfaces of this node by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces(pub BTreeMap<u32, Interface>);

impl Interfaces {
    /// All indexes.
    pub fn indexes(&self) -> BTreeSet<u32> {
        self.0.keys().copied().collect()
    }

    /// Those that lead somewhere.
    fn outward(&self) -> impl Iterator<Item = &Interface> {
        self.0.values().filter(|i| !i.inward)
    }

    /// Those by which a packet can leave the node for somewhere else: they get the programs of an
    /// uplink, which know Ethernet only. A port of a bridge has no address of its own.
    pub fn exits(&self) -> impl Iterator<Item = &Interface> {
        let link_local = |a: &IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
        self.outward().filter(move |i| {
            i.ethernet && !i.pods() && i.addresses.iter().any(|address| !link_local(address))
        })
    }

    /// The node's own addresses.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.outward().flat_map(|i| i.addresses.iter().copied()).collect()
    }

    /// The interface with this name, where it can be an uplink.
    pub fn by_name(&self, name: &str) -> Option<&Interface> {
        self.outward().find(|i| i.name == name)
    }

    /// The interface that holds the first of these addresses that any holds and can be an uplink.
    pub fn by_address(&self, addresses: &[IpAddr]) -> Option<&Interface> {
        addresses.iter().find_map(|a| self.outward().find(|i| i.addresses.contains(a)))
    }
}

/// Lists interfaces and addresses.
///
/// # Errors
/// What the kernel says.
pub async fn interfaces(handle: &Handle) -> Result<Interfaces, rtnetlink::Error> {
    let mut all = BTreeMap::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        let (mut name, mut mtu) = (String::new(), 0);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(n) => name = n,
                LinkAttribute::Mtu(n) => mtu = n,
                _ => {}
            }
        }
        let index = link.header.index;
        let inward = link.header.flags.contains(LinkFlags::Loopback) || name == SERVICES || name == OVERLAY;
        let ethernet = link.header.link_layer_type == LinkLayerType::Ether;
        let up = link.header.flags.contains(LinkFlags::Up);
        let (addresses, networks) = (BTreeSet::new(), BTreeSet::new());
        all.insert(index, Interface { index, name, mtu, inward, ethernet, up, addresses, networks });
    }
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await? {
        let Some(interface) = all.get_mut(&message.header.index) else { continue };
        // Where both are there, "local" is the interface's own and "address" its peer's.
        let (mut local, mut address) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(ip),
                AddressAttribute::Address(ip) => address = Some(ip),
                _ => {}
            }
        }
        let Some(own) = local.or(address) else { continue };
        interface.addresses.insert(own);
        // A peer's address is what a prefix of its own length is about.
        let on_link = address.unwrap_or(own);
        interface.networks.extend(IpNetwork::new(on_link, message.header.prefix_len).ok());
    }
    Ok(Interfaces(all))
}

/// Something has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The interface with this index is gone.
    LinkGone(u32),
    /// Something else, or nobody knows what.
    Other,
}

/// Notices as they come.
pub type Notices = BoxStream<'static, Notice>;

/// Listens for changes of interfaces, addresses and routes.
///
/// # Errors
/// Where rtnetlink cannot be had.
pub fn notices() -> io::Result<Notices> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    Ok(messages
        .map(|(message, _)| match message.payload {
            // AF_BRIDGE announces ports that leave a bridge the same way, but the link is still there.
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                if link.header.interface_family == netlink_packet_route::AddressFamily::Unspec =>
            {
                Notice::LinkGone(link.header.index)
            }
            _ => Notice::Other,
        })
        .boxed())
}
