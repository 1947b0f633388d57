//! The overlay device: VXLAN (RFC 7348) whose far end each route names, see docs/decisions/0014.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairlead_datapath::RECEIVER_MAC;
use futures_util::TryStreamExt as _;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::NeighbourState;
use rtnetlink::{AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::links::{Interfaces, OVERLAY};
use super::plan::GATEWAYS;

/// How the device is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// UDP port.
    pub port: u16,
    /// MTU in bytes.
    pub mtu: u32,
    /// The node's own addresses, one of a family: what the node itself sends to pods comes from there.
    pub addresses: BTreeSet<IpAddr>,
}

/// Its index, where there is one.
pub(super) fn index(interfaces: &Interfaces) -> Option<u32> {
    interfaces.0.values().find(|i| i.name == OVERLAY).map(|i| i.index)
}

/// Makes the device where there is none like it, down; returns its index.
///
/// # Errors
/// What the kernel says.
pub(super) async fn make(handle: &Handle, wanted: &Wanted) -> Result<u32, String> {
    if let Some(there) = find(handle).await? {
        if suits(&there, wanted.port) {
            return Ok(there.header.index);
        }
        remove(handle, there.header.index).await?;
    }
    let device = LinkMessageBuilder::<LinkVxlan>::new(OVERLAY)
        .collect_metadata(true)
        .port(wanted.port)
        .learning(false)
        .udp_zero_csum6_rx(true)
        .mtu(wanted.mtu)
        .build();
    handle.link().add(device).execute().await.map_err(|e| {
        format!("device {OVERLAY} cannot be made, is UDP port {} another's (vxlanPort)? {e}", wanted.port)
    })?;
    let made = find(handle).await?.ok_or_else(|| format!("device {OVERLAY} was made and is not there"))?;
    Ok(made.header.index)
}

/// Gives the device its addresses, neighbours and MTU, and sets it up.
///
/// # Errors
/// What the kernel says.
pub(super) async fn set_up(
    handle: &Handle,
    interfaces: &Interfaces,
    index: u32,
    wanted: &Wanted,
) -> Result<(), String> {
    let say = |e: rtnetlink::Error| format!("device {OVERLAY}: {e}");
    // No address but those it is given; no solicitations for one.
    let ipv6 = super::sysctl::root().join("ipv6/conf").join(OVERLAY);
    if ipv6.exists() {
        std::fs::write(ipv6.join("addr_gen_mode"), "1").map_err(|e| format!("device {OVERLAY}: {e}"))?;
    }
    let up = LinkUnspec::new_with_index(index).mtu(wanted.mtu).up().build();
    handle.link().set(up).execute().await.map_err(say)?;
    let there = interfaces.0.get(&index).map(|i| i.addresses.clone()).unwrap_or_default();
    for address in wanted.addresses.difference(&there) {
        let prefix = if address.is_ipv6() { 128 } else { 32 };
        let mut add = handle.address().add(index, *address, prefix).replace();
        if address.is_ipv6() {
            let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
            add.message_mut().attributes.push(AddressAttribute::Flags(flags));
        }
        add.execute().await.map_err(|e| format!("device {OVERLAY}: address {address}: {e}"))?;
    }
    for address in there.difference(&wanted.addresses) {
        let prefix = if address.is_ipv6() { 128 } else { 32 };
        let message = match address {
            IpAddr::V4(a) => {
                AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index).address(*a, prefix).build()
            }
            IpAddr::V6(a) => {
                AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index).address(*a, prefix).build()
            }
        };
        handle.address().del(message).execute().await.map_err(say)?;
    }
    for gateway in GATEWAYS.iter().filter(|g| g.is_ipv4() || ipv6.exists()) {
        let entry = handle.neighbours().add(index, *gateway).link_layer_address(&RECEIVER_MAC);
        entry.state(NeighbourState::Permanent).replace().execute().await.map_err(say)?;
    }
    Ok(())
}

/// Takes the device away.
///
/// # Errors
/// What the kernel says.
pub(super) async fn remove(handle: &Handle, index: u32) -> Result<(), String> {
    handle.link().del(index).execute().await.map_err(|e| format!("device {OVERLAY} cannot be removed: {e}"))
}

async fn find(handle: &Handle) -> Result<Option<LinkMessage>, String> {
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(|e| format!("listing devices: {e}"))? {
        if link.attributes.contains(&LinkAttribute::IfName(OVERLAY.to_owned())) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

fn suits(link: &LinkMessage, port: u16) -> bool {
    let infos = link.attributes.iter().filter_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let parts = infos.flatten().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(parts)) => Some(parts),
        _ => None,
    });
    let all: Vec<&InfoVxlan> = parts.flatten().collect();
    all.contains(&&InfoVxlan::Port(port)) && all.contains(&&InfoVxlan::CollectMetadata(true))
}

/// Whether the device is as wanted, by a list of interfaces.
pub(super) fn is_set_up(interfaces: &Interfaces, index: u32, wanted: &Wanted) -> bool {
    interfaces.0.get(&index).is_some_and(|i| i.mtu == wanted.mtu && i.addresses == wanted.addresses && i.up)
}
