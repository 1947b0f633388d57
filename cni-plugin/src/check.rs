//! CHECK: whether what ADD left is still there, piece by piece.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use fairlead_api::client::Client;
use fairlead_api::{Attachment, EndpointStatus, RunDir};
use fairlead_ipam::Owner;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcOption};

use crate::bpf::{self, Tcx, Trampolines};
use crate::config::{Addresses, Config};
use crate::delegate::Delegate;
use crate::environment::Environment;
use crate::error::{CniError, code};
use crate::ledger::{self, Ledger};
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::wire;

/// Compares what is there with what ADD left.
///
/// # Errors
/// Code 7 without a `prevResult`, 105 with all that differs, 11 where the agent is away.
pub fn check(environment: &Environment, config: &Config) -> Result<(), CniError> {
    let Some(before) = &config.prev_result else {
        return Err(CniError::configuration("prevResult is missing"));
    };
    let run = RunDir(config.run_dir.clone());
    let owner = Owner { container_id: environment.container_id.clone(), ifname: environment.ifname.clone() };
    let differs = |what: Vec<String>| {
        if what.is_empty() { Ok(()) } else { Err(CniError::new(code::DIFFERS, what.join("; "))) }
    };
    let Some(a) = Ledger::attachment(&run, &owner)? else {
        return differs(vec![format!("there is no attachment {owner}")]);
    };
    let mut faults = Vec::new();
    // What plugins after this one have changed is theirs, and stands in the result (specification,
    // section 2, CHECK).
    let mut said = Said {
        mtu: None,
        defaults: before.routes.iter().filter(|r| r.dst.prefix() == 0).filter_map(|r| r.gw).collect(),
    };
    // The pod's interface as the result has it, among those of other plugins.
    let sandboxed = before.interfaces.iter().position(|i| i.name == a.ifname && i.sandbox.is_some());
    match sandboxed {
        None => faults.push(format!("prevResult.interfaces: no {} in a sandbox", a.ifname)),
        Some(i) => {
            said.mtu = before.interfaces[i].mtu;
            let mac = before.interfaces[i].mac.as_deref().unwrap_or_default();
            if !mac.eq_ignore_ascii_case(&a.pod_mac.to_string()) {
                faults.push(format!("prevResult.interfaces[{i}].mac: {mac:?}, but it is {}", a.pod_mac));
            }
            let addresses: BTreeSet<IpAddr> =
                before.ips.iter().filter(|ip| ip.interface == Some(i)).map(|ip| ip.address.ip()).collect();
            let reserved: BTreeSet<IpAddr> = a.addresses.iter().copied().collect();
            if addresses != reserved {
                faults.push(format!("prevResult.ips: {addresses:?}, but reserved are {reserved:?}"));
            }
        }
    }
    if !matches!(config.addresses, Addresses::Delegated(_)) {
        let lost = Ledger::unreserved(&run, &a)?;
        faults.extend(lost.iter().map(|address| format!("{address} is not reserved for {owner}")));
    }
    let node = ledger::read_node(&run)?;
    host(&a, &node.frozen, &mut faults).map_err(|e| CniError::new(code::KERNEL, e.to_string()))?;
    Netns::open(Path::new(&environment.netns))
        .and_then(|netns| netns.within(|| pod(&a, &said)))
        .map(|found| faults.extend(found))
        .map_err(|e| CniError::new(code::NETNS, format!("CNI_NETNS {}: {e}", environment.netns)))?;
    differs(faults)?;
    if let Some(delegate) = Delegate::of(config, environment) {
        delegate.check()?;
    }
    let endpoints: Vec<EndpointStatus> = Client::new(run.socket())
        .get("/v1/endpoints")
        .map_err(|e| CniError::new(code::TRY_AGAIN, e.to_string()))?;
    match endpoints.iter().find(|e| e.attachment.host_ifindex == a.host_ifindex) {
        None => differs(vec![format!("the agent does not know {owner}")]),
        Some(endpoint) if !endpoint.unlocked => differs(vec![format!("the agent has {owner} locked")]),
        Some(_) => Ok(()),
    }
}

/// What the result says of the pod's side, after every plugin of the list.
struct Said {
    /// MTU of the pod's end, where the result's version has it.
    mtu: Option<u32>,
    /// Gateways of the default routes.
    defaults: Vec<IpAddr>,
}

/// Numbers of the programs that come first at an interface, whichever way they are attached: tc ingress
/// (from the pod) and tc egress (to the pod). tcx comes before the filters of clsact.
///
/// # Errors
/// What the kernel says.
pub fn attached_programs(ifindex: u32) -> io::Result<[Option<u32>; 2]> {
    let mut netlink = Netlink::open()?;
    let mut program = |tcx, hook| -> io::Result<Option<u32>> {
        if let Some(first) = bpf::tcx_programs(ifindex, tcx)?.first() {
            return Ok(Some(*first));
        }
        let filters = match netlink.dump(wire::filters(ifindex, hook)) {
            // No clsact, or no interface.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)) => {
                return Ok(None);
            }
            filters => filters?,
        };
        Ok(filters.iter().find_map(|message| {
            let Message::NewTrafficFilter(filter) = message else { return None };
            let options = filter.attributes.iter().find_map(|attribute| match attribute {
                TcAttribute::Options(options) => Some(options),
                _ => None,
            })?;
            options.iter().find_map(|option| match option {
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
                _ => None,
            })
        }))
    };
    Ok([program(Tcx::Ingress, TcHandle::MIN_INGRESS)?, program(Tcx::Egress, TcHandle::MIN_EGRESS)?])
}

fn host(a: &Attachment, frozen: &Path, faults: &mut Vec<String>) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let link = link(&mut netlink, a.host_ifindex, &a.host_ifname, &a.host_mac.0, faults)?;
    faults.extend(link.mtu.filter(|mtu| *mtu != a.mtu).map(|mtu| wrong_mtu(&a.host_ifname, mtu, a.mtu)));
    if let Some(qdisc) = link.qdisc.filter(|q| !a.shaped && q != "noqueue") {
        faults.push(format!(
            "{}: {qdisc} shapes it, but fairlead-cni was told of no bandwidth: packets between pods pass by it",
            a.host_ifname
        ));
    }
    let found = attached_programs(a.host_ifindex)?;
    match Trampolines::open(frozen) {
        Ok(t) if found == [Some(t.from_pod.id), Some(t.to_pod.id)] => {}
        Ok(t) => faults.push(format!(
            "{}: programs {found:?} are attached instead of {} and {}",
            a.host_ifname, t.from_pod.id, t.to_pod.id
        )),
        Err(e) => faults.push(format!("the agent's programs are not there: {e}")),
    }
    let routes = routes(&mut netlink, a.host_ifindex, RouteHeader::RT_TABLE_MAIN.into())?;
    let neighbours = neighbours(&mut netlink, a.host_ifindex)?;
    for address in &a.addresses {
        if !routes.contains(&(Some(*address), None)) {
            faults.push(format!("{}: no route to {address}", a.host_ifname));
        }
        if !neighbours.contains(&(*address, a.pod_mac.0.to_vec())) {
            faults.push(format!("{}: no neighbour entry for {address}", a.host_ifname));
        }
    }
    Ok(())
}

/// What differs in the namespace of this thread.
fn pod(a: &Attachment, said: &Said) -> io::Result<Vec<String>> {
    let mut faults = Vec::new();
    let mut netlink = Netlink::open()?;
    // A runtime may have moved it: by name, not by number.
    let Ok(index) = nix::net::if_::if_nametoindex(a.ifname.as_str()) else {
        return Ok(vec![format!("the pod has no interface {}", a.ifname)]);
    };
    let link = link(&mut netlink, index, &a.ifname, &a.pod_mac.0, &mut faults)?;
    // Results before 1.1.0 do not say whether a later plugin has made it smaller.
    let wanted = said.mtu.unwrap_or(a.mtu);
    let wrong = link.mtu.filter(|mtu| if said.mtu.is_some() { *mtu != wanted } else { *mtu > wanted });
    faults.extend(wrong.map(|mtu| wrong_mtu(&a.ifname, mtu, wanted)));
    let addresses: Vec<IpAddr> = netlink
        .dump(Message::GetAddress(AddressMessage::default()))?
        .into_iter()
        .filter_map(|message| match message {
            Message::NewAddress(m) if m.header.index == index => {
                m.attributes.into_iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(address),
                    _ => None,
                })
            }
            _ => None,
        })
        .collect();
    let routes = routes(&mut netlink, index, wire::table(a))?;
    let neighbours = neighbours(&mut netlink, index)?;
    if a.apart {
        let rules = rules(&mut netlink, wire::table(a))?;
        let missing = a.addresses.iter().filter(|address| !rules.contains(address));
        faults.extend(missing.map(|address| format!("{}: no rule for {address}", a.ifname)));
    }
    for address in &a.addresses {
        let gateway = wire::gateway(*address);
        if !addresses.contains(address) {
            faults.push(format!("{}: {address} is not there", a.ifname));
        }
        if !routes.contains(&(Some(gateway), None)) {
            faults.push(format!("{}: no route to {gateway}", a.ifname));
        }
        if said.defaults.contains(&gateway) && !routes.contains(&(None, Some(gateway))) {
            faults.push(format!("{}: no default route via {gateway}", a.ifname));
        }
        if !neighbours.contains(&(gateway, a.host_mac.0.to_vec())) {
            faults.push(format!("{}: no neighbour entry for {gateway}", a.ifname));
        }
    }
    Ok(faults)
}

/// What an interface is like beyond what must be as ADD made it.
#[derive(Default)]
struct Link {
    mtu: Option<u32>,
    qdisc: Option<String>,
}

fn wrong_mtu(name: &str, mtu: u32, wanted: u32) -> String {
    format!("{name}: MTU {mtu} instead of {wanted}")
}

fn link(
    netlink: &mut Netlink,
    index: u32,
    name: &str,
    mac: &[u8],
    faults: &mut Vec<String>,
) -> io::Result<Link> {
    let mut found = Link::default();
    let links = netlink.dump(Message::GetLink(LinkMessage::default()))?;
    let Some(link) = links.iter().find_map(|message| match message {
        Message::NewLink(link) if link.header.index == index => Some(link),
        _ => None,
    }) else {
        faults.push(format!("there is no interface {name}"));
        return Ok(found);
    };
    if !link.header.flags.contains(LinkFlags::Up) {
        faults.push(format!("{name} is down"));
    }
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(n) if n != name => faults.push(format!("{name} is called {n}")),
            LinkAttribute::Address(m) if m != mac => {
                faults.push(format!("{name}: another hardware address"));
            }
            LinkAttribute::Mtu(mtu) => found.mtu = Some(*mtu),
            LinkAttribute::Qdisc(qdisc) => found.qdisc = Some(qdisc.clone()),
            _ => {}
        }
    }
    Ok(found)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

/// Destination (`None`: all) and next hop of the routes over an interface in a table.
fn routes(
    netlink: &mut Netlink,
    index: u32,
    table: u32,
) -> io::Result<Vec<(Option<IpAddr>, Option<IpAddr>)>> {
    let all = all_routes(netlink, table)?.into_iter();
    Ok(all.filter(|(over, ..)| *over == index).map(|(_, to, via)| (to, via)).collect())
}

/// A route: interface, destination (`None`: all), next hop.
pub(crate) type Over = (u32, Option<IpAddr>, Option<IpAddr>);

/// The routes to one address or to all of them in a table.
///
/// # Errors
/// What the kernel says.
pub(crate) fn all_routes(netlink: &mut Netlink, table: u32) -> io::Result<Vec<Over>> {
    let found = netlink.dump(Message::GetRoute(RouteMessage::default()))?;
    let routes = found.into_iter().filter_map(|message| match message {
        Message::NewRoute(route) if table_of(&route) == table => Some(route),
        _ => None,
    });
    let routes = routes.filter_map(|route| {
        let (mut to, mut via, mut over) = (None, None, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(address) => to = ip(address),
                RouteAttribute::Gateway(address) => via = ip(address),
                RouteAttribute::Oif(oif) => over = Some(*oif),
                _ => {}
            }
        }
        let whole = matches!(route.header.destination_prefix_length, 0 | 32 | 128);
        over.filter(|_| whole).map(|over| (over, to, via))
    });
    Ok(routes.collect())
}

/// Addresses whose packets go by the routes of a table.
fn rules(netlink: &mut Netlink, table: u32) -> io::Result<Vec<IpAddr>> {
    let found = netlink.dump(Message::GetRule(RuleMessage::default()))?;
    let rules = found.into_iter().filter_map(|message| match message {
        Message::NewRule(rule) if rule.attributes.contains(&RuleAttribute::Table(table)) => Some(rule),
        _ => None,
    });
    let sources = rules.flat_map(|rule| rule.attributes).filter_map(|attribute| match attribute {
        RuleAttribute::Source(address) => Some(address),
        _ => None,
    });
    Ok(sources.collect())
}

/// The header has room for small numbers only.
fn table_of(route: &RouteMessage) -> u32 {
    let told = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    told.unwrap_or(route.header.table.into())
}

/// Permanent neighbour entries of an interface.
fn neighbours(netlink: &mut Netlink, index: u32) -> io::Result<Vec<(IpAddr, Vec<u8>)>> {
    let found = netlink.dump(Message::GetNeighbour(NeighbourMessage::default()))?;
    let entries = found.into_iter().filter_map(|message| match message {
        Message::NewNeighbour(n)
            if n.header.ifindex == index && n.header.state == NeighbourState::Permanent =>
        {
            Some(n)
        }
        _ => None,
    });
    let entries = entries.filter_map(|neighbour| {
        let (mut address, mut mac) = (None, None);
        for attribute in neighbour.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(a)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(a)),
                NeighbourAttribute::LinkLayerAddress(m) => mac = Some(m),
                _ => {}
            }
        }
        Some((address?, mac?))
    });
    Ok(entries.collect())
}
