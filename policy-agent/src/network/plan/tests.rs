use super::*;

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

/// As planned on the first node, whose interfaces have these networks, the first one's being its uplink.
fn planned(nodes: &[(String, Node)], own: &str, routing: Routing, networks: &[&[&str]]) -> Plan {
    let interfaces: BTreeMap<u32, Interface> =
        (7..).zip(networks).map(|(index, n)| (index, interface(index, n))).collect();
    let interfaces = Interfaces(interfaces);
    plan(&Site {
        own,
        nodes: &nodes.iter().cloned().collect(),
        interfaces: &interfaces,
        uplink: &interfaces.0[&7],
        routing,
        overlay: routing.tunnels().then_some(Overlay { interface: 99, id: 5 }),
        mtu: mtu(1500, routing, &nodes.iter().find(|(name, _)| name == own).unwrap().1),
    })
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
fn the_first_by_name_has_a_cidr_and_nobody_takes_ours() {
    let links: &[&[&str]] = &[&["192.0.2.2/24"]];
    let nodes = [
        node("a", &["192.0.2.1"], &["10.0.0.0/8"]),
        node("b", &["192.0.2.2"], &["10.0.2.0/24", "10.0.9.0/24"]),
        node("c", &["192.0.2.3"], &["10.0.3.0/24", "0.0.0.0/0"]),
        node("d", &["192.0.2.4"], &["10.0.3.128/25", "10.0.9.0/24"]),
        node("e", &["192.0.2.5"], &["10.0.2.64/26"]),
    ];
    let plan = planned(&nodes, "b", Routing::Direct, links);
    let expected = main(&[
        ("10.0.2.0/24", Way::Unreachable),
        ("10.0.9.0/24", Way::Unreachable),
        ("10.0.3.0/24", by("192.0.2.3", 7)),
        ("10.0.3.128/25", by("192.0.2.4", 7)),
    ]);
    assert_eq!(plan.routes, expected);
    let mine = "of this node, b";
    assert_eq!(
        plan.problems,
        [
            format!("no route to 10.0.0.0/8 of Node a: it overlaps 10.0.2.0/24 {mine}"),
            "no route to 0.0.0.0/0 of Node c: that is every address".to_owned(),
            format!("no route to 10.0.9.0/24 of Node d: it overlaps 10.0.9.0/24 {mine}"),
            format!("no route to 10.0.2.64/26 of Node e: it overlaps 10.0.2.0/24 {mine}"),
        ]
    );

    let nodes = [
        node("a", &["192.0.2.1"], &["10.0.1.0/24"]),
        node("b", &["192.0.2.2"], &["10.0.2.0/24"]),
        node("c", &["192.0.2.3"], &["10.0.2.0/24"]),
    ];
    let plan = planned(&nodes, "a", Routing::Direct, links);
    assert_eq!(plan.routes, main(&[("10.0.1.0/24", Way::Unreachable), ("10.0.2.0/24", by("192.0.2.2", 7))]));
    assert_eq!(plan.problems, ["no route to 10.0.2.0/24 of Node c: Node b has it already"]);
}

#[test]
fn packets_leave_straight_where_one_interface_leads_to_all_of_a_nodes_pods() {
    let nodes = [
        node("a", &["192.0.2.1", "2001:db8::1"], &["10.0.1.0/24", "fd00:1::/64"]),
        node("b", &["192.0.2.2", "2001:db8::2"], &["10.0.2.0/24", "10.1.2.0/24", "fd00:2::/64"]),
        // Beyond a router, and of one family only.
        node("c", &["198.51.100.3"], &["10.0.3.0/24"]),
        // Half of its pods have addresses of another's.
        node("d", &["192.0.2.4"], &["10.0.4.0/24", "10.0.3.0/24"]),
    ];
    let networks: &[&[&str]] = &[&["192.0.2.1/24", "2001:db8::1/64"]];
    let none = Exit::default();
    let exit = |ifindex, mtu| Exit { ifindex, mtu };
    for (routing, b, c) in [
        (Routing::Direct, Some([exit(7, 1500); 2]), None),
        (Routing::Auto, Some([exit(7, 1500); 2]), Some([exit(99, 1450), none])),
        (Routing::Vxlan, Some([exit(99, 1450); 2]), Some([exit(99, 1450), none])),
        (Routing::None, None, None),
    ] {
        let plan = planned(&nodes, "a", routing, networks);
        let wanted = [("b", b), ("c", c)];
        let wanted = wanted.into_iter().filter_map(|(name, exits)| Some((name.to_owned(), exits?)));
        assert_eq!(plan.exits, wanted.collect(), "{routing:?}");
    }
}
