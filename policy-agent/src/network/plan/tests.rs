use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use fairlead_datapath::{NextHop, Tunnel};

use super::*;
use crate::network::links::{Interface, Interfaces};

fn node(name: &str, addresses: &[&str], cidrs: &[&str]) -> (String, Node) {
    let node = Node {
        name: name.to_owned(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
    };
    (name.to_owned(), node)
}

fn interface(index: u32, networks: &[&str]) -> Interface {
    let networks: BTreeSet<IpNetwork> = networks.iter().map(|n| n.parse().unwrap()).collect();
    Interface {
        index,
        name: format!("eth{index}"),
        mtu: 1500,
        inward: false,
        ethernet: true,
        up: true,
        addresses: networks.iter().map(IpNetwork::ip).collect(),
        networks,
    }
}

/// What a node has whose interfaces have these networks, the first one's being its uplink.
fn site(own: &Node, routing: Routing, networks: &[&[&str]]) -> Site {
    let interfaces: BTreeMap<u32, Interface> =
        (7..).zip(networks).map(|(index, n)| (index, interface(index, n))).collect();
    let interfaces = Interfaces(interfaces);
    let overlay = routing.tunnels().then_some(Overlay { interface: 99, id: 5 });
    Site::new(own, &interfaces, &interfaces.0[&7], routing, overlay, mtu(1500, routing, own))
}

/// All there is, without what has changed since when.
#[derive(Debug, PartialEq)]
struct Whole {
    routes: BTreeSet<Route>,
    sources: BTreeSet<IpNetwork>,
    exits: Exits,
    problems: Vec<String>,
}

fn whole(plan: &mut Plan) -> Whole {
    let (routes, sources, problems) = (plan.routes(), plan.sources(), plan.problems());
    let mut exits = plan.take_exits(true);
    exits.retain(|_, exits| *exits != [Exit::default(); 2]);
    Whole { routes, sources, exits, problems }
}

/// As planned from nothing on one of these nodes.
fn planned(nodes: &[(String, Node)], own: &str, routing: Routing, networks: &[&[&str]]) -> Whole {
    let mut plan = Plan::default();
    let own = &nodes.iter().find(|(name, _)| name == own).unwrap().1;
    plan.take(nodes.iter().map(|(name, node)| (name.as_str().into(), Some(node.clone().into()))).collect());
    plan.work_out(&site(own, routing, networks));
    whole(&mut plan)
}

fn main(routes: &[(&str, Way)]) -> BTreeSet<Route> {
    routes.iter().map(|(to, by)| Route { table: MAIN, to: to.parse().unwrap(), by: by.clone() }).collect()
}

fn by(address: &str, interface: u32) -> Way {
    Way::Gateway { address: address.parse().unwrap(), interface, mtu: None }
}

fn through(source: &str, destination: &str) -> Way {
    let destination: IpAddr = destination.parse().unwrap();
    let mtu = if destination.is_ipv4() { 1450 } else { 1430 };
    Way::Overlay { interface: 99, id: 5, source: source.parse().unwrap(), destination, mtu }
}

#[test]
fn direct_goes_by_the_address_of_the_family_on_whichever_link_it_is() {
    let nodes = [
        node("a", &["192.0.2.1", "2001:db8::1"], &["10.0.1.0/24", "fd00:1::/64"]),
        node("b", &["192.0.2.2", "2001:db8::2"], &["10.0.2.0/24", "fd00:2::/64"]),
        node("c", &["198.51.100.3"], &["10.0.3.0/24", "fd00:3::/64"]),
        // Two addresses, of which the second is on the uplink, and the first on another link.
        node("d", &["198.51.100.4", "192.0.2.4"], &["10.0.4.0/24", "10.0.40.0/24"]),
        node("e", &["203.0.113.5"], &["10.0.5.0/24"]),
    ];
    let links: &[&[&str]] = &[&["192.0.2.1/24", "2001:db8::1/64"], &["198.51.100.1/24"]];
    let plan = planned(&nodes, "a", Routing::Direct, links);
    let expected = main(&[
        ("10.0.1.0/24", Way::Unreachable),
        ("fd00:1::/64", Way::Unreachable),
        ("10.0.2.0/24", by("192.0.2.2", 7)),
        ("fd00:2::/64", by("2001:db8::2", 7)),
        ("10.0.3.0/24", by("198.51.100.3", 8)),
        ("10.0.4.0/24", by("192.0.2.4", 7)),
        ("10.0.40.0/24", by("192.0.2.4", 7)),
    ]);
    assert_eq!(plan.routes, expected);
    assert_eq!(
        plan.problems,
        [
            "no route to fd00:3::/64 of Node c: the node has no address of that family",
            "no route to 10.0.5.0/24 of Node e: 203.0.113.5 is on no link of this node \
             (routing auto would use the overlay)",
        ]
    );
    assert_eq!(plan.sources, BTreeSet::new());
    // Addresses without a network around them: everybody is on the link.
    let plan = planned(&nodes[..2], "a", Routing::Direct, &[&["192.0.2.1/32", "2001:db8::1/128"]]);
    assert!(plan.routes.is_superset(&main(&[("10.0.2.0/24", by("192.0.2.2", 7))])));
    assert_eq!((plan.routes.len(), plan.problems.len()), (4, 0));
    // Nobody's but one's own.
    let plan = planned(&nodes, "a", Routing::None, links);
    let own = main(&[("10.0.1.0/24", Way::Unreachable), ("fd00:1::/64", Way::Unreachable)]);
    assert_eq!((plan.routes, plan.problems.len()), (own, 0));
}

#[test]
fn the_overlay_goes_everywhere_and_auto_only_where_no_link_does() {
    let nodes = [
        node("a", &["192.0.2.1", "2001:db8::1"], &["10.0.1.0/24", "fd00:1::/64"]),
        node("b", &["192.0.2.2"], &["10.0.2.0/24", "fd00:2::/64"]),
        node("c", &["2001:db8:3::3"], &["10.0.3.0/24"]),
    ];
    let links: &[&[&str]] = &[&["192.0.2.1/24", "2001:db8::1/64"]];
    let vxlan = planned(&nodes, "a", Routing::Vxlan, links);
    let [b, c] = [through("192.0.2.1", "192.0.2.2"), through("2001:db8::1", "2001:db8:3::3")];
    let mut expected = main(&[
        ("10.0.1.0/24", Way::Unreachable),
        ("fd00:1::/64", Way::Unreachable),
        ("10.0.2.0/24", b.clone()),
        ("fd00:2::/64", b.clone()),
        ("10.0.3.0/24", c),
    ]);
    // A node's address only where pods of that family are behind the tunnel, so that both sides agree.
    expected.insert(Route { table: PODS, to: "192.0.2.2/32".parse().unwrap(), by: b.clone() });
    assert_eq!(vxlan.routes, expected);
    assert_eq!(vxlan.sources, BTreeSet::from(["10.0.1.0/24".parse().unwrap()]));
    assert_eq!(vxlan.problems, Vec::<String>::new());

    let auto = planned(&nodes, "a", Routing::Auto, links);
    let [v4, v6] = ["10.0.2.0/24", "fd00:2::/64"];
    // What is sent there directly is to fit into the pods' interfaces, which have room for the overlay.
    let near = Way::Gateway { address: "192.0.2.2".parse().unwrap(), interface: 7, mtu: Some(1450) };
    assert!(auto.routes.is_superset(&main(&[(v4, near), (v6, b)])), "{auto:?}");
    assert_eq!(auto.routes.len(), 5);
    assert_eq!(auto.sources, BTreeSet::new());
}

#[test]
fn mtu_leaves_room_for_the_overlay_where_there_is_one() {
    let [(_, both), (_, v6)] =
        [node("a", &["192.0.2.1", "2001:db8::1"], &[]), node("b", &["2001:db8::2"], &[])];
    let mtus =
        |node| [Routing::Direct, Routing::None, Routing::Auto, Routing::Vxlan].map(|r| mtu(1500, r, node));
    assert_eq!(mtus(&both), [1500, 1500, 1450, 1450]);
    assert_eq!(mtus(&v6), [1500, 1500, 1430, 1430]);
}

#[test]
fn of_two_nodes_with_one_address_the_first_by_name_is_reached_there() {
    let links: &[&[&str]] = &[&["192.0.2.1/24"]];
    let nodes = [
        node("a", &["192.0.2.1"], &["10.0.1.0/24"]),
        node("b", &["192.0.2.2", "192.0.2.9"], &["10.0.2.0/24", "0.0.0.0/0"]),
        node("c", &["192.0.2.3", "192.0.2.9"], &["10.0.3.0/24"]),
        // The same tunnel: nothing is in the way of anything.
        node("d", &["192.0.2.2"], &["10.0.4.0/24"]),
    ];
    let plan = planned(&nodes, "a", Routing::Vxlan, links);
    let [b, c] = ["192.0.2.2", "192.0.2.3"].map(|to| through("192.0.2.1", to));
    let mut expected = main(&[
        ("10.0.1.0/24", Way::Unreachable),
        ("10.0.2.0/24", b.clone()),
        ("10.0.3.0/24", c.clone()),
        ("10.0.4.0/24", b.clone()),
    ]);
    for (to, by) in [("192.0.2.2/32", &b), ("192.0.2.3/32", &c), ("192.0.2.9/32", &b)] {
        expected.insert(Route { table: PODS, to: to.parse().unwrap(), by: by.clone() });
    }
    assert_eq!(plan.routes, expected);
    assert_eq!(
        plan.problems,
        [
            "no route to 0.0.0.0/0 of Node b: that is every address",
            "no route to 192.0.2.9/32 of Node c: Node b has it already",
        ]
    );
}

#[test]
fn packets_leave_straight_where_one_interface_leads_to_all_of_a_nodes_pods() {
    let nodes = [
        node("a", &["192.0.2.1", "2001:db8::1"], &["10.0.1.0/24", "fd00:1::/64"]),
        node("b", &["192.0.2.2", "2001:db8::2"], &["10.0.2.0/24", "10.1.2.0/24", "fd00:2::/64"]),
        // Beyond a router, and of one family only.
        node("c", &["198.51.100.3"], &["10.0.3.0/24"]),
        // The pods of one family are reached, those of the other are not.
        node("d", &["192.0.2.4"], &["10.0.4.0/24", "fd00:4::/64"]),
    ];
    let networks: &[&[&str]] = &[&["192.0.2.1/24", "2001:db8::1/64"]];
    let none = Exit::default();
    let hop = |hop: &str| NextHop::of(hop.parse().unwrap());
    let via = |to: &str| Exit { ifindex: 7, mtu: 1500, hop: hop(to), ..none };
    let device = Exit { ifindex: 99, mtu: 1450, ..none };
    // Over IPv4, whatever the pod's family.
    let tunnel = |to: &str| Exit {
        tunnel: Tunnel { ifindex: 7, source: u32::from_ne_bytes([192, 0, 2, 1]), far: hop(to) },
        ..device
    };
    let of_b = [via("192.0.2.2"), via("2001:db8::2")];
    for (routing, b, c, d) in [
        (Routing::Direct, Some(of_b), None, Some([via("192.0.2.4"), none])),
        (Routing::Auto, Some(of_b), Some([device, none]), Some([via("192.0.2.4"), tunnel("192.0.2.4")])),
        (
            Routing::Vxlan,
            Some([tunnel("192.0.2.2"); 2]),
            Some([device, none]),
            Some([tunnel("192.0.2.4"); 2]),
        ),
        (Routing::None, None, None, None),
    ] {
        let plan = planned(&nodes, "a", routing, networks);
        let wanted = [("b", b), ("c", c), ("d", d)];
        let wanted = wanted.into_iter().filter_map(|(name, exits)| Some((name.into(), exits?)));
        assert_eq!(plan.exits, wanted.collect(), "{routing:?}");
    }
}

/// A node among few addresses, so that some share one; its pod CIDRs are its own, as the index leaves them.
fn any_node(number: u8) -> impl Strategy<Value = Node> {
    let address = prop_oneof![
        3 => (1_u8..6).prop_map(|n| IpAddr::from([192, 0, 2, n])),
        1 => (1_u8..3).prop_map(|n| IpAddr::from([198, 51, 100, n])),
        2 => (1_u16..4).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])),
    ];
    let v4 = vec(0_u8..3, 0..3)
        .prop_map(move |n| n.into_iter().map(|n| format!("10.{number}.{n}.9/24")).collect::<BTreeSet<_>>());
    let v6 = proptest::option::of(Just(format!("fd00:{number}::/64")));
    let name = format!("n{number}");
    (vec(address, 0..4), v4, v6).prop_map(move |(addresses, v4, v6)| Node {
        name: name.clone(),
        addresses,
        pod_cidrs: v4.iter().chain(&v6).map(|c| c.parse().unwrap()).collect(),
    })
}

fn any_routing() -> impl Strategy<Value = Routing> {
    prop_oneof![
        4 => Just(Routing::Vxlan), 4 => Just(Routing::Auto), 2 => Just(Routing::Direct), 1 => Just(Routing::None),
    ]
}

/// What is done between two rounds: nodes of these numbers come, change or go, 0 being the one that plans.
#[derive(Clone, Debug)]
struct Step {
    changes: Vec<(u8, Option<Node>)>,
    routing: Option<Routing>,
    /// Which of its addresses the uplink has.
    uplink: bool,
    straight: bool,
    /// The kernel took it.
    settled: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    let change = (0_u8..6).prop_flat_map(|n| {
        let node = any_node(n);
        let gone = u32::from(n > 0);
        (Just(n), prop_oneof![4 => node.prop_map(Some), gone => Just(None)])
    });
    let routing = proptest::option::weighted(0.1, any_routing());
    (vec(change, 0..4), routing, prop::bool::weighted(0.9), prop::bool::weighted(0.8), any::<bool>())
        .prop_map(|(changes, routing, uplink, straight, settled)| Step {
            changes,
            routing,
            uplink,
            straight,
            settled,
        })
}

#[test]
fn few_routes_share_a_metric() {
    let by = Way::Gateway { address: "192.0.2.9".parse().unwrap(), interface: 2, mtu: None };
    for ipv6 in [false, true] {
        let mut routes = BTreeMap::<u32, u32>::new();
        for n in 0..5000_u32 {
            let to = if ipv6 {
                format!("fd00:0:0:{n:x}::/64")
            } else {
                format!("10.{}.{}.0/24", n / 256, n % 256)
            };
            let route = Route { table: MAIN, to: to.parse().unwrap(), by: by.clone() };
            let metric = route.metric();
            assert!((METRIC..METRIC + METRICS).contains(&metric));
            *routes.entry(metric).or_default() += 1;
            assert_eq!(Route { by: Way::Unreachable, ..route }.metric(), LAST_METRIC);
        }
        assert!(routes.values().all(|n| *n <= 10), "{:?}", routes.values().max());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_kept_node_by_node_is_the_plan_made_from_nothing(
        own in any_node(0),
        routing in any_routing(),
        steps in vec(any_step(), 1..16),
    ) {
        let (mut plan, mut routing) = (Plan::default(), routing);
        let mut nodes: BTreeMap<Arc<str>, Arc<Node>> = BTreeMap::new();
        let mut steps = steps;
        steps[0].changes.insert(0, (0, Some(own)));
        // What the kernel and the programs have been told.
        let (mut there, mut told) = (BTreeSet::new(), Exits::new());
        for Step { changes, routing: other, uplink, straight, settled } in steps {
            routing = other.unwrap_or(routing);
            let changes: NodeChanges =
                changes.into_iter().map(|(n, node)| (format!("n{n}").into(), node.map(Arc::new))).collect();
            for (name, node) in &changes {
                match node {
                    Some(node) => drop(nodes.insert(name.clone(), node.clone())),
                    None => drop(nodes.remove(name)),
                }
            }
            plan.take(changes);
            let links: &[&[&str]] = if uplink {
                &[&["192.0.2.1/24", "2001:db8::1/64"]]
            } else {
                &[&["192.0.2.1/32", "2001:db8::1/128"], &["198.51.100.7/24"]]
            };
            let site = site(&nodes["n0"], routing, links);
            plan.work_out(&site);

            let mut anew = Plan::default();
            anew.take(nodes.iter().map(|(name, node)| (name.clone(), Some(node.clone()))).collect());
            anew.work_out(&site);
            let wanted = whole(&mut anew);
            prop_assert_eq!(plan.routes(), wanted.routes.clone());
            prop_assert_eq!(plan.sources(), wanted.sources);
            prop_assert_eq!(plan.problems(), wanted.problems);
            let (come, gone) = plan.changes();
            prop_assert_eq!(&come, &(&wanted.routes - &there));
            prop_assert_eq!(&gone, &(&there - &wanted.routes));
            if settled {
                plan.settled();
                there = wanted.routes;
            }
            told.extend(plan.take_exits(straight));
            told.retain(|_, exits| *exits != [Exit::default(); 2]);
            prop_assert_eq!(&told, &if straight { wanted.exits } else { Exits::new() });
        }
        // Once all are gone, nothing is left of them.
        plan.take(nodes.into_keys().map(|name| (name, None)).collect());
        prop_assert!(plan.routes().is_empty() && plan.problems().is_empty() && plan.sources().is_empty());
        prop_assert!(plan.places.is_empty() && plan.troubled.is_empty());
    }
}
