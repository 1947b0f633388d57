//! Routes in the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::plan::{LAST_METRIC, Route, Way};

/// Marks routes as Fairlead's; `rtnetlink(7)`, values from 5 up are for applications.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(70);

/// Makes the kernel have these routes of Fairlead's and no others; returns what went wrong.
pub(super) async fn reconcile(handle: &Handle, wanted: &BTreeSet<Route>) -> Vec<String> {
    let mut problems = Vec::new();
    let there = match list(handle).await {
        Ok(there) => there,
        Err(e) => return vec![format!("listing routes: {e}")],
    };
    let kept: BTreeSet<&Route> = there.iter().filter_map(|(route, _)| route.as_ref()).collect();
    for route in wanted.iter().filter(|route| !kept.contains(route)) {
        if let Err(e) = handle.route().add(message(route)).replace().execute().await {
            problems.push(match &route.by {
                Way::Gateway { address, .. } => format!("no route to {} via {address}: {e}", route.to),
                Way::Unreachable => format!("no unreachable route for {}: {e}", route.to),
            });
        }
    }
    for (route, message) in there {
        // An IPv4 route that was replaced is gone already.
        let replaced = route.as_ref().is_some_and(|r| {
            !wanted.contains(r)
                && wanted.iter().any(|w| w.to == r.to && metric(w) == metric(r))
                && r.to.is_ipv4()
        });
        if route.as_ref().is_none_or(|route| !wanted.contains(route)) && !replaced {
            let to = route.map_or_else(|| "?".to_owned(), |r| r.to.to_string());
            if let Err(e) = handle.route().del(message).execute().await {
                tracing::debug!("removing the route to {to}: {e}");
            }
        }
    }
    problems
}

fn metric(route: &Route) -> u32 {
    match route.by {
        Way::Gateway { .. } => 0,
        Way::Unreachable => LAST_METRIC,
    }
}

fn message(route: &Route) -> RouteMessage {
    let mut message = match route.to {
        IpNetwork::V4(to) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(to.network(), to.prefix())
            .build(),
        IpNetwork::V6(to) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(to.network(), to.prefix())
            .build(),
    };
    message.header.protocol = PROTOCOL;
    match &route.by {
        Way::Gateway { address, interface } => {
            let address = match address {
                IpAddr::V4(a) => RouteAddress::Inet(*a),
                IpAddr::V6(a) => RouteAddress::Inet6(*a),
            };
            message.attributes.push(RouteAttribute::Gateway(address));
            message.attributes.push(RouteAttribute::Oif(*interface));
        }
        Way::Unreachable => {
            message.header.kind = RouteType::Unreachable;
            message.attributes.push(RouteAttribute::Priority(LAST_METRIC));
        }
    }
    message
}

/// Fairlead's routes; without a [`Route`] where they are not of a form that it makes.
async fn list(handle: &Handle) -> Result<Vec<(Option<Route>, RouteMessage)>, rtnetlink::Error> {
    let mut found = Vec::new();
    let queries = [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ];
    for query in queries {
        let mut routes = handle.route().get(query).execute();
        while let Some(message) = routes.try_next().await? {
            if message.header.protocol == PROTOCOL && message.header.table == RouteHeader::RT_TABLE_MAIN {
                found.push((read(&message), message));
            }
        }
    }
    Ok(found)
}

fn read(message: &RouteMessage) -> Option<Route> {
    let (mut to, mut gateway, mut interface) = (None, None, None);
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    let to = IpNetwork::new(to?, message.header.destination_prefix_length).ok()?;
    let by = match message.header.kind {
        RouteType::Unreachable => Way::Unreachable,
        RouteType::Unicast => Way::Gateway { address: gateway?, interface: interface? },
        _ => return None,
    };
    Some(Route { to, by })
}
