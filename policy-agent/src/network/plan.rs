//! Which routes there should be. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_policy::model::Node;
use ipnetwork::IpNetwork;

/// Metric of the routes that catch what no pod has: behind every other.
pub const LAST_METRIC: u32 = 0xffff_fff0;

/// Metric of the routes to other nodes' pods, so that they are not confused with anybody else's to the
/// same destination: those of the kernel and of people have 0, 256 or 1024 unless told otherwise.
pub const METRIC: u32 = 0x464c;

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
///
/// Of nodes with the same pod CIDR the first by name has it, and nothing takes addresses from `own`.
pub fn wanted(own: &str, nodes: &BTreeMap<String, Node>, uplink: u32) -> (BTreeSet<Route>, Vec<String>) {
    let mut routes = BTreeSet::new();
    let mut problems = Vec::new();
    let own_cidrs = nodes.get(own).map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
    let mut holders: BTreeMap<(IpAddr, u8), &str> = BTreeMap::new();
    for (name, node) in nodes {
        for cidr in &node.pod_cidrs {
            let Ok(to) = IpNetwork::new(cidr.network(), cidr.prefix()) else { continue };
            if to.prefix() == 0 {
                problems.push(format!("no route to {to} of Node {name}: that is every address"));
                continue;
            }
            if name == own {
                routes.insert(Route { to, by: Way::Unreachable });
                continue;
            }
            if let Some(mine) = own_cidrs.iter().find(|mine| mine.prefix() > 0 && overlap(mine, &to)) {
                problems
                    .push(format!("no route to {to} of Node {name}: it overlaps {mine} of this node, {own}"));
                continue;
            }
            let holder = *holders.entry((to.network(), to.prefix())).or_insert(name);
            if holder != name {
                problems.push(format!("no route to {to} of Node {name}: Node {holder} has it already"));
                continue;
            }
            match node.addresses.iter().find(|a| a.is_ipv6() == to.is_ipv6()) {
                Some(address) => {
                    let by = Way::Gateway { address: *address, interface: uplink };
                    routes.insert(Route { to, by });
                }
                None => problems
                    .push(format!("no route to {to} of Node {name}: the node has no address of that family")),
            }
        }
    }
    (routes, problems)
}

/// Whether two networks have addresses in common: one holds the other then.
fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
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

    #[test]
    fn the_first_by_name_has_a_cidr_and_nobody_takes_ours() {
        let by = |address: &str| Way::Gateway { address: address.parse().unwrap(), interface: 7 };
        let nodes = BTreeMap::from([
            node("a", &["192.0.2.1"], &["10.0.0.0/8"]),
            node("b", &["192.0.2.2"], &["10.0.2.0/24", "10.0.9.0/24"]),
            node("c", &["192.0.2.3"], &["10.0.3.0/24", "0.0.0.0/0"]),
            node("d", &["192.0.2.4"], &["10.0.3.128/25", "10.0.9.0/24"]),
            node("e", &["192.0.2.5"], &["10.0.2.64/26"]),
        ]);
        let (routes, problems) = wanted("b", &nodes, 7);
        let expected = [
            ("10.0.2.0/24", Way::Unreachable),
            ("10.0.9.0/24", Way::Unreachable),
            ("10.0.3.0/24", by("192.0.2.3")),
            ("10.0.3.128/25", by("192.0.2.4")),
        ];
        let expected = expected.map(|(to, by)| Route { to: to.parse().unwrap(), by });
        assert_eq!(routes, BTreeSet::from(expected));
        let mine = "of this node, b";
        assert_eq!(
            problems,
            [
                format!("no route to 10.0.0.0/8 of Node a: it overlaps 10.0.2.0/24 {mine}"),
                "no route to 0.0.0.0/0 of Node c: that is every address".to_owned(),
                format!("no route to 10.0.9.0/24 of Node d: it overlaps 10.0.9.0/24 {mine}"),
                format!("no route to 10.0.2.64/26 of Node e: it overlaps 10.0.2.0/24 {mine}"),
            ]
        );

        let nodes = BTreeMap::from([
            node("a", &["192.0.2.1"], &["10.0.1.0/24"]),
            node("b", &["192.0.2.2"], &["10.0.2.0/24"]),
            node("c", &["192.0.2.3"], &["10.0.2.0/24"]),
        ]);
        let (routes, problems) = wanted("a", &nodes, 7);
        let expected = [("10.0.1.0/24", Way::Unreachable), ("10.0.2.0/24", by("192.0.2.2"))]
            .map(|(to, by)| Route { to: to.parse().unwrap(), by });
        assert_eq!(routes, BTreeSet::from(expected));
        assert_eq!(problems, ["no route to 10.0.2.0/24 of Node c: Node b has it already"]);
    }
}
