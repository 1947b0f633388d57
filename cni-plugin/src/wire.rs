//! The netlink messages that an attachment consists of.
//!
//! A pod has /32 and /128 addresses and sends everything to a link-local gateway whose neighbour
//! entry is the host's end of its veth, for good: no ARP, no neighbour discovery, no router
//! advertisement, no duplicate address detection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use fairlead_api::{Attachment, Mac};
use fairlead_common::maps::names;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use crate::bpf::{Program, Trampolines};
use crate::netlink::Request;

/// The pods' gateway.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pods' gateway.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Index of `lo` in every namespace.
const LOOPBACK: u32 = 1;
/// `RT_TABLE_LOCAL` of linux/rtnetlink.h.
const RT_TABLE_LOCAL: u8 = 255;
/// Priority and handle of the filters, so that CHECK and agent find them.
pub const FILTER_PRIORITY: u16 = 1;
/// See [`FILTER_PRIORITY`].
pub const FILTER_HANDLE: u32 = 1;

/// The gateway of an address's family.
pub fn gateway(of: IpAddr) -> IpAddr {
    if of.is_ipv4() { GATEWAY4.into() } else { GATEWAY6.into() }
}

fn family(of: IpAddr) -> AddressFamily {
    if of.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn prefix(of: IpAddr) -> u8 {
    if of.is_ipv4() { 32 } else { 128 }
}

fn request(what: &'static str, flags: u16, message: Message) -> Request {
    Request { what, message, flags }
}

/// Names of the messages of [`create`], in order.
pub const CREATE_LINK: usize = 0;
/// See [`CREATE_LINK`]; of an attachment that is not shaped.
pub const CREATE_QDISC: usize = 1;

/// Makes the veth with both ends in place and the trampolines attached; nothing is up yet.
///
/// A shaped one gets neither clsact nor filters: the `bandwidth` plugin's ingress qdisc takes the place
/// of clsact. Its trampolines go on by tcx, between this and [`host_side`] (docs/decisions/0013).
///
/// The peer gets the host's interface index in its own namespace too, so that nobody has to ask for
/// it.
pub fn create(a: &Attachment, netns: i32, trampolines: &Trampolines) -> Vec<Request> {
    let mut peer = LinkMessage::default();
    peer.header.index = a.host_ifindex;
    peer.attributes = vec![
        LinkAttribute::IfName(a.ifname.clone()),
        LinkAttribute::Address(a.pod_mac.0.to_vec()),
        LinkAttribute::Mtu(a.mtu),
        LinkAttribute::NetNsFd(netns),
    ];
    let mut veth = LinkMessage::default();
    veth.header.index = a.host_ifindex;
    veth.attributes = vec![
        LinkAttribute::IfName(a.host_ifname.clone()),
        LinkAttribute::Address(a.host_mac.0.to_vec()),
        LinkAttribute::Mtu(a.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let new = NLM_F_CREATE | NLM_F_EXCL;
    let link = request("make the veth", new, Message::NewLink(veth));
    let settings = request("set up the host's end", 0, Message::SetLink(host_settings(a)));
    if a.shaped {
        return vec![link, settings];
    }
    vec![
        link,
        request("make its clsact", new, Message::NewQueueDiscipline(clsact(a.host_ifindex))),
        request(
            "attach from_pod",
            new,
            Message::NewTrafficFilter(filter(
                a.host_ifindex,
                &trampolines.from_pod,
                names::FROM_POD,
                TcHandle::MIN_INGRESS,
            )),
        ),
        request(
            "attach to_pod",
            new,
            Message::NewTrafficFilter(filter(
                a.host_ifindex,
                &trampolines.to_pod,
                names::TO_POD,
                TcHandle::MIN_EGRESS,
            )),
        ),
        settings,
    ]
}

fn clsact(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header = tc_header(ifindex, TcHandle::CLSACT);
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    message
}

/// Removes the clsact of an interface, and with it all its filters.
pub fn remove_clsact(ifindex: u32) -> Request {
    request("remove the clsact", 0, Message::DelQueueDiscipline(clsact(ifindex)))
}

fn tc_header(ifindex: u32, parent: TcHandle) -> TcHeader {
    TcHeader { index: ifindex.cast_signed(), parent, ..TcHeader::default() }
}

fn filter(ifindex: u32, program: &Program, name: &str, hook: u16) -> TcMessage {
    let mut message = TcMessage::default();
    message.header = tc_header(ifindex, TcHandle { major: u16::MAX, minor: hook });
    message.header.handle = TcHandle::from(FILTER_HANDLE);
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    message.header.info = u32::from(FILTER_PRIORITY) << 16 | u32::from(every_protocol);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_fd().as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    message
}

/// Asks for the filters of one hook: [`TcHandle::MIN_INGRESS`] or [`TcHandle::MIN_EGRESS`].
pub fn filters(ifindex: u32, hook: u16) -> Message {
    let mut message = TcMessage::default();
    message.header = tc_header(ifindex, TcHandle { major: u16::MAX, minor: hook });
    Message::GetTrafficFilter(message)
}

/// No link-local address of its own, hence no router solicitations and no multicast reports.
fn no_link_local() -> AfSpecUnspec {
    AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])
}

/// Without reverse path filter: the trampolines check the sender, and replies may come by other ways.
fn host_settings(a: &Attachment) -> LinkMessage {
    const IFLA_INET_CONF: u16 = 1;
    const IPV4_DEVCONF_RP_FILTER: u16 = 8;
    let mut rp_filter = Vec::new();
    rp_filter.extend(8_u16.to_ne_bytes());
    rp_filter.extend(IPV4_DEVCONF_RP_FILTER.to_ne_bytes());
    rp_filter.extend(0_u32.to_ne_bytes());
    let nested = IFLA_INET_CONF | netlink_packet_core::NLA_F_NESTED;
    let mut message = LinkMessage::default();
    message.header.index = a.host_ifindex;
    message.attributes = vec![
        LinkAttribute::IfAlias(alias(&a.container_id, &a.ifname)),
        LinkAttribute::AfSpecUnspec(vec![
            AfSpecUnspec::Inet(vec![AfSpecInet::Other(DefaultNla::new(nested, rp_filter))]),
            no_link_local(),
        ]),
    ];
    message
}

/// What the host's end says of whose it is, for people who look at `ip link`.
pub fn alias(container_id: &str, ifname: &str) -> String {
    format!("{container_id} {ifname}")
}

fn up(ifindex: u32) -> Message {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Message::SetLink(message)
}

/// Brings up the host's end, with a route and a neighbour entry for each of the pod's addresses.
pub fn host_side(a: &Attachment) -> Vec<Request> {
    let replace = NLM_F_CREATE | NLM_F_REPLACE;
    let mut requests = vec![request("bring up the host's end", 0, up(a.host_ifindex))];
    for &address in &a.addresses {
        requests.push(request(
            "add the neighbour entry of the pod",
            replace,
            Message::NewNeighbour(neighbour(a.host_ifindex, address, a.pod_mac)),
        ));
        requests.push(request(
            "add the route to the pod",
            replace,
            Message::NewRoute(route(a.host_ifindex, Some(address), None)),
        ));
    }
    requests
}

/// Brings up the pod's end and `lo`.
pub fn pod_link(a: &Attachment) -> Vec<Request> {
    let mut settings = LinkMessage::default();
    settings.header.index = a.host_ifindex;
    settings.attributes = vec![LinkAttribute::AfSpecUnspec(vec![no_link_local()])];
    vec![
        request("set up the pod's end", 0, Message::SetLink(settings)),
        request("bring up the pod's end", 0, up(a.host_ifindex)),
        request("bring up the pod's lo", 0, up(LOOPBACK)),
    ]
}

/// Gives the pod's end one of its addresses, with its gateway and routes.
pub fn pod_address(a: &Attachment, local: IpAddr) -> Vec<Request> {
    pod_address_with(a, local, NLM_F_CREATE | NLM_F_EXCL)
}

/// The addresses of an attachment that is [apart](Attachment::apart), over what of them is there already.
pub fn pod_apart(a: &Attachment) -> Vec<Request> {
    let replace = NLM_F_CREATE | NLM_F_REPLACE;
    let mut requests: Vec<Request> =
        a.addresses.iter().flat_map(|local| pod_address_with(a, *local, replace)).collect();
    requests.extend(rules(a).into_iter().map(|rule| {
        let new = NLM_F_CREATE | NLM_F_EXCL;
        request("send the pod's address to its table", new, Message::NewRule(rule))
    }));
    requests
}

/// Removes what is left of an attachment that is [apart](Attachment::apart) when its interface is gone.
pub fn remove_rules(a: &Attachment) -> Vec<Request> {
    let remove = |rule| request("remove the rule of the pod's address", 0, Message::DelRule(rule));
    rules(a).into_iter().map(remove).collect()
}

/// Table of the routes of the pod's end. The interface index is nobody else's in the sandbox either.
pub fn table(a: &Attachment) -> u32 {
    if a.apart { a.host_ifindex } else { RouteHeader::RT_TABLE_MAIN.into() }
}

/// What comes from one of the addresses goes by the routes of its own interface.
fn rules(a: &Attachment) -> Vec<RuleMessage> {
    let of = |address: &IpAddr| {
        let mut message = RuleMessage::default();
        message.header = RuleHeader {
            family: family(*address),
            src_len: prefix(*address),
            action: RuleAction::ToTable,
            ..RuleHeader::default()
        };
        message.attributes = vec![RuleAttribute::Source(*address), RuleAttribute::Table(table(a))];
        message
    };
    a.addresses.iter().map(of).collect()
}

fn pod_address_with(a: &Attachment, local: IpAddr, new: u16) -> Vec<Request> {
    let index = a.host_ifindex;
    let replace = NLM_F_CREATE | NLM_F_REPLACE;
    let via = gateway(local);
    let mut requests = vec![
        request("add the pod's address", new, Message::NewAddress(address(index, local))),
        request(
            "add the gateway's neighbour entry",
            replace,
            Message::NewNeighbour(neighbour(index, via, a.host_mac)),
        ),
        request(
            "add the route to the gateway",
            new,
            Message::NewRoute(within(table(a), route(index, Some(via), None))),
        ),
        request(
            "add the default route",
            new,
            Message::NewRoute(within(table(a), route(index, None, Some(via)))),
        ),
    ];
    if local.is_ipv6() {
        // The kernel makes this route itself, but only when its work queue comes to it, even without
        // duplicate address detection; until then the pod would not take what is sent to it.
        let mut own = route(index, Some(local), None);
        own.header.kind = RouteType::Local;
        own.header.table = RT_TABLE_LOCAL;
        requests.push(request("add the local route", replace, Message::NewRoute(own)));
    }
    requests
}

/// Puts a route into a table.
fn within(table: u32, mut route: RouteMessage) -> RouteMessage {
    if table != u32::from(route.header.table) {
        route.header.table = RouteHeader::RT_TABLE_UNSPEC;
        route.attributes.push(RouteAttribute::Table(table));
    }
    route
}

fn address(ifindex: u32, local: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(local);
    message.header.prefix_len = prefix(local);
    message.header.index = ifindex;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![AddressAttribute::Local(local), AddressAttribute::Address(local)];
    if local.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn neighbour(ifindex: u32, address: IpAddr, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(a) => NeighbourAddress::Inet(a),
            IpAddr::V6(a) => NeighbourAddress::Inet6(a),
        }),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    message
}

/// A route to one address on the link, or the default route via one.
fn route(ifindex: u32, to: Option<IpAddr>, via: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let of = to.or(via).unwrap_or(IpAddr::V4(GATEWAY4));
    message.header = RouteHeader {
        address_family: family(of),
        destination_prefix_length: to.map_or(0, prefix),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: if via.is_none() && of.is_ipv4() { RouteScope::Link } else { RouteScope::Universe },
        kind: RouteType::Unicast,
        flags: if via.is_some() { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Oif(ifindex)];
    if let Some(to) = to {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
    }
    if let Some(via) = via {
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(via)));
    }
    message
}

/// Asks for an interface.
pub fn link(ifindex: u32) -> Message {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    Message::GetLink(message)
}

/// Removes an interface and, with a veth, its other end.
pub fn remove(ifindex: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    request("remove the interface", 0, Message::DelLink(message))
}
