//! Routes and rules in the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteIp6Tunnel, RouteIp6TunnelFlags, RouteIpTunnel,
    RouteLwEnCapType, RouteLwTunnelEncap, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::plan::{GATEWAYS, MAIN, PODS, Plan, Route, Way};

/// Marks routes and rules as Fairlead's; `rtnetlink(7)`, values from 5 up are for applications.
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(70);
/// Priority of Fairlead's rules: before that of the main table, 32766.
const PRIORITY: u32 = 0x464c;

/// What a family's kernel tables tell routes apart by: table, destination, metric.
type Place = (u32, IpNetwork, u32);

/// Fairlead's routes and rules.
pub(super) struct Routes {
    handle: Handle,
    /// The rules that the kernel has, where it is known that it has them and every route of the plan as that was
    /// settled last: else it is asked first.
    there: Option<BTreeSet<IpNetwork>>,
    /// Changes that the kernel was told of so far.
    pub(super) changes: u64,
}

impl Routes {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle, there: None, changes: 0 }
    }

    /// Somebody else may have changed something.
    pub(super) fn distrust(&mut self) {
        self.there = None;
    }

    /// Makes the kernel have the plan's routes and rules of Fairlead's and no others; returns what went
    /// wrong. What others have stays as it is, also where it is in the way.
    pub(super) async fn reconcile(&mut self, plan: &mut Plan) -> Vec<String> {
        let sources = plan.sources();
        // Where it is known what is there, only what has changed is looked at.
        let problems = match self.there.take() {
            Some(rules) => {
                let (come, gone) = plan.changes();
                let gone = gone.into_iter().map(|r| (message(&r), Some(r))).collect();
                let rules = rules.into_iter().map(|r| (rule(&r), Some(r))).collect();
                self.put(&come, gone, &sources, rules).await
            }
            None => self.replace(&plan.routes(), &sources).await,
        };
        if problems.is_empty() {
            self.there = Some(sources);
            plan.settled();
        }
        problems
    }

    /// As [`Self::reconcile`], whatever the kernel has.
    async fn replace(&mut self, wanted: &BTreeSet<Route>, sources: &BTreeSet<IpNetwork>) -> Vec<String> {
        match (routes(&self.handle).await, rules(&self.handle).await) {
            (Ok(routes), Ok(rules)) => self.put(wanted, routes, sources, rules).await,
            (Err(e), _) | (_, Err(e)) => vec![format!("listing routes and rules: {e}")],
        }
    }

    async fn put(
        &mut self,
        wanted: &BTreeSet<Route>,
        routes: Vec<(RouteMessage, Option<Route>)>,
        sources: &BTreeSet<IpNetwork>,
        rules: Vec<(RuleMessage, Option<IpNetwork>)>,
    ) -> Vec<String> {
        let mut problems = self.put_routes(wanted, routes).await;
        problems.extend(self.put_rules(sources, rules).await);
        problems
    }

    async fn put_routes(
        &mut self,
        wanted: &BTreeSet<Route>,
        there: Vec<(RouteMessage, Option<Route>)>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let kept: BTreeSet<&Route> = there.iter().filter_map(|(_, route)| route.as_ref()).collect();
        let places: BTreeSet<Place> = there.iter().filter_map(|(message, _)| place(message)).collect();
        let mut replaced = BTreeSet::new();
        for route in wanted.iter().filter(|route| !kept.contains(route)) {
            let add = self.handle.route().add(message(route));
            // Without "replace" the kernel refuses where anything is in its place.
            let place = (route.table, route.to, route.metric());
            let ours = places.contains(&place);
            let add = if ours { add.replace() } else { add };
            self.changes += 1;
            match add.execute().await {
                Ok(()) => {
                    replaced.insert(place);
                }
                Err(e) => {
                    let why = if errno(&e) == libc::EEXIST {
                        format!("another's route with metric {} is in its place", route.metric())
                    } else {
                        e.to_string()
                    };
                    problems.push(format!("no {}: {why}", called(route)));
                }
            }
        }
        for (message, route) in there {
            let place = place(&message);
            // IPv6 does not look at the tunnel when it deletes: the new one would go in its stead.
            if route.as_ref().is_some_and(|route| wanted.contains(route))
                || place.is_some_and(|place| replaced.contains(&place))
            {
                continue;
            }
            let to = place.map_or_else(|| "?".to_owned(), |(_, to, _)| to.to_string());
            self.changes += 1;
            match self.handle.route().del(message).execute().await {
                // Gone with its device.
                Err(e) if errno(&e) != libc::ESRCH => {
                    problems.push(format!("an old route to {to} stays: {e}"));
                }
                _ => {}
            }
        }
        problems
    }

    async fn put_rules(
        &mut self,
        wanted: &BTreeSet<IpNetwork>,
        there: Vec<(RuleMessage, Option<IpNetwork>)>,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let kept: BTreeSet<IpNetwork> = there.iter().filter_map(|(_, source)| *source).collect();
        for source in wanted.difference(&kept) {
            let mut add = self.handle.rule().add();
            *add.message_mut() = rule(source);
            self.changes += 1;
            if let Err(e) = add.execute().await
                && errno(&e) != libc::EEXIST
            {
                problems.push(format!("no rule for what comes from {source}: {e}"));
            }
        }
        for (message, source) in there {
            if source.is_some_and(|source| wanted.contains(&source)) {
                continue;
            }
            self.changes += 1;
            match self.handle.rule().del(message).execute().await {
                Err(e) if errno(&e) != libc::ENOENT => problems.push(format!("an old rule stays: {e}")),
                _ => {}
            }
        }
        problems
    }
}

fn called(route: &Route) -> String {
    let to = route.to;
    match &route.by {
        Way::Gateway { address, .. } => format!("route to {to} via {address}"),
        Way::Overlay { destination, .. } => format!("route to {to} through the overlay to {destination}"),
        Way::Unreachable => format!("unreachable route for {to}"),
    }
}

fn errno(e: &rtnetlink::Error) -> i32 {
    match e {
        rtnetlink::Error::NetlinkError(e) => e.raw_code().abs(),
        _ => 0,
    }
}

fn message(route: &Route) -> RouteMessage {
    let mut message = match route.to {
        IpNetwork::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to.network(), to.prefix())
            .table_id(route.table)
            .build(),
        IpNetwork::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to.network(), to.prefix())
            .table_id(route.table)
            .build(),
    };
    message.header.protocol = PROTOCOL;
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Priority(route.metric()));
    let (gateway, interface) = match &route.by {
        Way::Gateway { address, interface, mtu } => {
            attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
            (*address, *interface)
        }
        Way::Overlay { interface, id, source, destination, mtu } => {
            let (kind, encap) = tunnel(u64::from(*id), *source, *destination);
            attributes.push(RouteAttribute::EncapType(kind));
            attributes.push(RouteAttribute::Encap(encap));
            attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(*mtu)]));
            (GATEWAYS[usize::from(route.to.is_ipv6())], *interface)
        }
        Way::Unreachable => {
            message.header.kind = RouteType::Unreachable;
            return message;
        }
    };
    // Where nodes have /32 or /128 addresses, others are on the link all the same.
    message.header.flags.insert(RouteFlags::Onlink);
    attributes.push(RouteAttribute::Gateway(match gateway {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }));
    attributes.push(RouteAttribute::Oif(interface));
    message
}

/// The outer header. Over IPv6 with a checksum, which not every receiver does without.
fn tunnel(id: u64, source: IpAddr, destination: IpAddr) -> (RouteLwEnCapType, Vec<RouteLwTunnelEncap>) {
    if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) {
        let all =
            [RouteIpTunnel::Id(id), RouteIpTunnel::Destination(destination), RouteIpTunnel::Source(source)];
        return (RouteLwEnCapType::Ip, all.map(RouteLwTunnelEncap::Ip).into());
    }
    let v6 = |a: IpAddr| match a {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    };
    let all = [
        RouteIp6Tunnel::Id(id),
        RouteIp6Tunnel::Destination(v6(destination)),
        RouteIp6Tunnel::Source(v6(source)),
        RouteIp6Tunnel::Flags(RouteIp6TunnelFlags::Checksum),
    ];
    (RouteLwEnCapType::Ip6, all.map(RouteLwTunnelEncap::Ip6).into())
}

/// Fairlead's routes; without a [`Route`] where they are not of a form that it makes.
async fn routes(handle: &Handle) -> Result<Vec<(RouteMessage, Option<Route>)>, rtnetlink::Error> {
    let mut found = Vec::new();
    let queries =
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    for query in queries {
        let mut routes = handle.route().get(query).execute();
        while let Some(message) = routes.try_next().await? {
            if message.header.protocol == PROTOCOL && [MAIN, PODS].contains(&table(&message)) {
                let route = read(&message);
                found.push((message, route));
            }
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

fn table(message: &RouteMessage) -> u32 {
    let own = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    own.unwrap_or_else(|| u32::from(message.header.table))
}

fn place(message: &RouteMessage) -> Option<Place> {
    let (mut to, mut metric) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let to = IpNetwork::new(to?, message.header.destination_prefix_length).ok()?;
    Some((table(message), to, metric))
}

fn read(message: &RouteMessage) -> Option<Route> {
    let (mut gateway, mut interface, mut mtu) = (None, None, None);
    let (mut id, mut source, mut destination) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Metrics(all) => {
                mtu = all.iter().find_map(|m| if let RouteMetric::Mtu(n) = m { Some(*n) } else { None });
            }
            RouteAttribute::Encap(all) => {
                for part in all {
                    match part {
                        RouteLwTunnelEncap::Ip(RouteIpTunnel::Id(n))
                        | RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Id(n)) => id = u32::try_from(*n).ok(),
                        RouteLwTunnelEncap::Ip(RouteIpTunnel::Source(a)) => source = Some(IpAddr::V4(*a)),
                        RouteLwTunnelEncap::Ip(RouteIpTunnel::Destination(a)) => {
                            destination = Some(IpAddr::V4(*a));
                        }
                        RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Source(a)) => source = Some(IpAddr::V6(*a)),
                        RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(a)) => {
                            destination = Some(IpAddr::V6(*a));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (table, to, there) = place(message)?;
    let by = match message.header.kind {
        RouteType::Unreachable => Way::Unreachable,
        RouteType::Unicast => match destination {
            Some(destination) => {
                Way::Overlay { interface: interface?, id: id?, source: source?, destination, mtu: mtu? }
            }
            None => Way::Gateway { address: gateway?, interface: interface?, mtu },
        },
        _ => return None,
    };
    let route = Route { table, to, by };
    (there == route.metric()).then_some(route)
}

/// Table [`PODS`] first, for what comes from `source`.
fn rule(source: &IpNetwork) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if source.is_ipv4() {
        netlink_packet_route::AddressFamily::Inet
    } else {
        netlink_packet_route::AddressFamily::Inet6
    };
    message.header.src_len = source.prefix();
    message.header.action = RuleAction::ToTable;
    message.attributes.extend([
        RuleAttribute::Source(source.network()),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Table(PODS),
        RuleAttribute::Protocol(PROTOCOL),
    ]);
    message
}

/// Fairlead's rules; without a source where they are not of a form that it makes.
async fn rules(handle: &Handle) -> Result<Vec<(RuleMessage, Option<IpNetwork>)>, rtnetlink::Error> {
    let mut found = Vec::new();
    for family in [IpVersion::V4, IpVersion::V6] {
        let mut all = handle.rule().get(family).execute();
        while let Some(message) = all.try_next().await? {
            let has = |wanted: &RuleAttribute| message.attributes.contains(wanted);
            if !has(&RuleAttribute::Protocol(PROTOCOL)) {
                continue;
            }
            let source = message.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Source(address) => IpNetwork::new(*address, message.header.src_len).ok(),
                _ => None,
            });
            let ours = has(&RuleAttribute::Priority(PRIORITY)) && has(&RuleAttribute::Table(PODS));
            found.push((message, source.filter(|_| ours)));
        }
    }
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests;
