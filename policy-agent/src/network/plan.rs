//! Which routes there should be. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_policy::model::Node;
use ipnetwork::IpNetwork;

/// Metric of the routes that catch what no pod has: behind every other.
pub const LAST_METRIC: u32 = 0xffff_fff0;

/// A route of Fairlead's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
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
        /// The uplink.
        interface: u32,
    },
    /// Not at all: an address of this node's that no pod has must not travel in circles.
    Unreachable,
}

/// The routes of the node `own`, and what stands in the way of some.
pub fn wanted(own: &str, nodes: &BTreeMap<String, Node>, uplink: u32) -> (BTreeSet<Route>, Vec<String>) {
    let mut routes = BTreeSet::new();
    let mut problems = Vec::new();
    for (name, node) in nodes {
        for cidr in &node.pod_cidrs {
            if name == own {
                routes.insert(Route { to: *cidr, by: Way::Unreachable });
                continue;
            }
            match node.addresses.iter().find(|a| a.is_ipv6() == cidr.is_ipv6()) {
                Some(address) => {
                    let by = Way::Gateway { address: *address, interface: uplink };
                    routes.insert(Route { to: *cidr, by });
                }
                None => problems.push(format!(
                    "no route to {cidr} of Node {name}: the node has no address of that family"
                )),
            }
        }
    }
    (routes, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> (String, Node) {
        let node = Node {
            name: name.to_owned(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        };
        (name.to_owned(), node)
    }

    #[test]
    fn others_by_their_address_of_the_family_and_own_nowhere() {
        let nodes = BTreeMap::from([
            node("a", &["192.0.2.1", "2001:db8::1"], &["10.0.1.0/24", "fd00:1::/64"]),
            node("b", &["192.0.2.2", "2001:db8::2"], &["10.0.2.0/24", "fd00:2::/64"]),
            node("c", &["192.0.2.3"], &["10.0.3.0/24", "fd00:3::/64"]),
        ]);
        let (routes, problems) = wanted("a", &nodes, 7);
        let by = |address: &str| Way::Gateway { address: address.parse().unwrap(), interface: 7 };
        let expected = [
            ("10.0.1.0/24", Way::Unreachable),
            ("fd00:1::/64", Way::Unreachable),
            ("10.0.2.0/24", by("192.0.2.2")),
            ("fd00:2::/64", by("2001:db8::2")),
            ("10.0.3.0/24", by("192.0.2.3")),
        ];
        let expected = expected.map(|(to, by)| Route { to: to.parse().unwrap(), by });
        assert_eq!(routes, BTreeSet::from(expected));
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("fd00:3::/64 of Node c"), "{}", problems[0]);
    }
}
