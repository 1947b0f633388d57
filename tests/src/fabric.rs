//! Links, addresses and routes between the boxes.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use nix::net::if_::if_nametoindex;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::namespace::Namespace;

const BRIDGE: &str = "l2";
/// Name of the interface that each box has on the L2.
pub const UPLINK: &str = "eth0";

/// Makes the L2.
pub async fn bridge(name: &str) -> Result<Namespace> {
    let fabric = Namespace::new(name).await?;
    fabric
        .netlink(async |netlink| {
            netlink
                .link()
                .add(LinkBridge::new(BRIDGE).build())
                .execute()
                .await
                .context("cannot make a bridge")?;
            up(&netlink, BRIDGE).await
        })
        .await?;
    Ok(fabric)
}

/// Connects `member` to the L2 under addresses.
pub async fn connect(fabric: &Namespace, member: &Namespace, addresses: &[IpNetwork]) -> Result<()> {
    let port = format!("p-{}", member.name());
    // IFNAMSIZ, without the final zero.
    let port: String = port.chars().take(15).collect();
    let file = std::fs::File::open(member.path()).context("cannot open the namespace")?;
    fabric
        .netlink(async move |netlink| {
            netlink
                .link()
                .add(LinkVeth::new(&port, UPLINK).build())
                .execute()
                .await
                .context("cannot make a veth")?;
            let bridge = if_nametoindex(BRIDGE)?;
            netlink
                .link()
                .set(LinkUnspec::new_with_name(&port).controller(bridge).up().build())
                .execute()
                .await?;
            let moved = LinkUnspec::new_with_name(UPLINK).setns_by_fd(file.as_raw_fd()).build();
            netlink.link().set(moved).execute().await.context("cannot move a veth")
        })
        .await?;
    let addresses = addresses.to_vec();
    member
        .netlink(async move |netlink| {
            let index = if_nametoindex(UPLINK)?;
            for a in addresses {
                netlink
                    .address()
                    .add(index, a.ip(), a.prefix())
                    .execute()
                    .await
                    .with_context(|| format!("address {a}"))?;
            }
            up(&netlink, UPLINK).await
        })
        .await
}

/// Sets an interface up.
pub async fn up(netlink: &Handle, interface: &str) -> Result<()> {
    let message = LinkUnspec::new_with_name(interface).up().build();
    netlink.link().set(message).execute().await.with_context(|| format!("cannot set {interface} up"))
}

/// Adds a route.
pub async fn route(member: &Namespace, destination: IpNetwork, gateway: IpAddr) -> Result<()> {
    member
        .netlink(async move |netlink| {
            let message = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(destination.ip(), destination.prefix())?
                .gateway(gateway)?
                .build();
            netlink
                .route()
                .add(message)
                .execute()
                .await
                .with_context(|| format!("route {destination} via {gateway}"))
        })
        .await
}
