use rtnetlink::{LinkUnspec, LinkVeth};

use super::*;

/// Runs a test in a network namespace of its own, which ends with its thread.
pub(in crate::network) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if let Err(e) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            let required = std::env::var_os("FAIRLEAD_REQUIRE_PRIVILEGED").is_some_and(|v| v == "1");
            assert!(!required, "a network namespace is needed: {e}");
            println!("not run, for want of privileges: {e}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

/// A link `up0` with addresses; its index.
async fn uplink(handle: &Handle) -> u32 {
    handle.link().add(LinkVeth::new("up0", "peer0").build()).execute().await.unwrap();
    let mut index = 0;
    for name in ["peer0", "up0", "lo"] {
        let query = handle.link().get().match_name(name.to_owned()).execute();
        index = query.try_collect::<Vec<_>>().await.unwrap()[0].header.index;
        let up = LinkUnspec::new_with_index(index).up().build();
        handle.link().set(up).execute().await.unwrap();
        if name == "up0" {
            for (address, length) in [("192.0.2.1", 24), ("2001:db8::1", 64)] {
                let address = address.parse().unwrap();
                handle.address().add(index, address, length).execute().await.unwrap();
            }
            return index;
        }
    }
    index
}

fn route(to: &str, via: Option<&str>, interface: u32) -> Route {
    let by = match via {
        Some(address) => Way::Gateway { address: address.parse().unwrap(), interface, mtu: None },
        None => Way::Unreachable,
    };
    Route { table: MAIN, to: to.parse().unwrap(), by }
}

pub(in crate::network) async fn there(handle: &Handle) -> BTreeSet<Route> {
    let all = super::routes(handle).await.unwrap();
    let routes: BTreeSet<Route> = all.iter().filter_map(|(_, route)| route.clone()).collect();
    assert_eq!(routes.len(), all.len(), "{all:?}");
    routes
}

/// As an agent that has just started.
async fn reconciled(handle: &Handle, routes: &BTreeSet<Route>) -> Vec<String> {
    Routes::new(handle.clone()).replace(routes, &BTreeSet::new()).await
}

/// What somebody has made by hand.
async fn others(handle: &Handle) -> Vec<RouteMessage> {
    let mut all = Vec::new();
    for query in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        all.extend(handle.route().get(query).execute().try_collect::<Vec<_>>().await.unwrap());
    }
    all.retain(|m| m.header.protocol == RouteProtocol::Static);
    // Ages and counters change by themselves.
    all.iter_mut().for_each(|m| m.attributes.retain(|a| !matches!(a, RouteAttribute::CacheInfo(_))));
    all
}

#[test]
fn the_kernel_has_what_is_wanted_and_nothing_else_of_ours() {
    in_namespace(async || {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let up = uplink(&handle).await;
        let same = |to: &str| route(to, Some("192.0.2.5"), up).metric();
        for (to, metric) in
            [("10.9.0.0/24", 0), ("10.9.1.0/24", same("10.9.1.0/24")), ("fd00:9::/64", same("fd00:9::/64"))]
        {
            let via = if to.starts_with("fd") { "2001:db8::9" } else { "192.0.2.9" };
            let mut foreign = message(&route(to, Some(via), up));
            foreign.header.protocol = RouteProtocol::Static;
            foreign.attributes.retain(|a| !matches!(a, RouteAttribute::Priority(_)));
            foreign.attributes.push(RouteAttribute::Priority(metric));
            handle.route().add(foreign).execute().await.unwrap();
        }
        let foreign = others(&handle).await;
        assert_eq!(foreign.len(), 3);
        let first = BTreeSet::from([
            route("10.1.1.0/24", None, up),
            route("fd00:1::/64", None, up),
            route("10.1.2.0/24", Some("192.0.2.2"), up),
            route("fd00:2::/64", Some("2001:db8::2"), up),
            route("10.1.3.0/24", Some("192.0.2.3"), up),
        ]);
        for _ in 0..2 {
            assert_eq!(reconciled(&handle, &first).await, Vec::<String>::new());
            assert_eq!(there(&handle).await, first);
        }
        // A node moves, in both families; one leaves; one comes.
        let second = BTreeSet::from([
            route("10.1.1.0/24", None, up),
            route("fd00:1::/64", None, up),
            route("10.1.2.0/24", Some("192.0.2.22"), up),
            route("fd00:2::/64", Some("2001:db8::22"), up),
            route("10.1.4.0/24", Some("192.0.2.4"), up),
        ]);
        assert_eq!(reconciled(&handle, &second).await, Vec::<String>::new());
        assert_eq!(there(&handle).await, second);
        // Another's route in the same place is left alone and said, and does not keep the others.
        let mut third = second.clone();
        third.insert(route("10.9.0.0/24", Some("192.0.2.5"), up));
        third.insert(route("10.9.1.0/24", Some("192.0.2.5"), up));
        third.insert(route("fd00:9::/64", Some("2001:db8::5"), up));
        let problems = reconciled(&handle, &third).await;
        let said = [("10.9.1.0/24", "192.0.2.5"), ("fd00:9::/64", "2001:db8::5")].map(|(to, via)| {
            let metric = same(to);
            format!("no route to {to} via {via}: another's route with metric {metric} is in its place")
        });
        assert_eq!(problems, said);
        third.remove(&route("fd00:9::/64", Some("2001:db8::5"), up));
        third.remove(&route("10.9.1.0/24", Some("192.0.2.5"), up));
        assert_eq!(there(&handle).await, third);
        // Pods there take less than the link, then as much as it does.
        for mtu in [Some(1450), Some(1400), None] {
            let mut narrow = third.clone();
            for (to, via) in [("10.1.4.0/24", "192.0.2.4"), ("fd00:2::/64", "2001:db8::22")] {
                narrow.remove(&route(to, Some(via), up));
                let by = Way::Gateway { address: via.parse().unwrap(), interface: up, mtu };
                narrow.insert(Route { by, ..route(to, None, up) });
            }
            assert_eq!(reconciled(&handle, &narrow).await, Vec::<String>::new());
            assert_eq!(there(&handle).await, narrow);
        }
        // A node that is on the link, though no address of ours says so.
        third.insert(route("10.1.5.0/24", Some("198.51.100.1"), up));
        third.insert(route("fd00:5::/64", Some("2001:db8:5::1"), up));
        // What is ours and in no form of ours goes, as of a version before.
        let mut before = message(&route("10.1.6.0/24", Some("192.0.2.6"), up));
        before.attributes.retain(|a| !matches!(a, RouteAttribute::Priority(_)));
        handle.route().add(before).execute().await.unwrap();
        assert_eq!(reconciled(&handle, &third).await, Vec::<String>::new());
        assert_eq!(there(&handle).await, third);
        // An agent that starts anew knows its predecessor's routes.
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        assert_eq!(reconciled(&handle, &first).await, Vec::<String>::new());
        assert_eq!(there(&handle).await, first);
        assert_eq!(reconciled(&handle, &BTreeSet::new()).await, Vec::<String>::new());
        assert_eq!(there(&handle).await, BTreeSet::new());
        assert_eq!(others(&handle).await, foreign);
    });
}

#[test]
fn interfaces_addresses_and_links_that_go() {
    in_namespace(async || {
        use crate::network::links::{Notice, interfaces, notices};
        use futures_util::StreamExt as _;
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let up = uplink(&handle).await;
        handle.link().add(LinkVeth::new("kube-ipvs0", "ipvs1").build()).execute().await.unwrap();
        let query = handle.link().get().match_name("kube-ipvs0".to_owned()).execute();
        let ipvs = query.try_collect::<Vec<_>>().await.unwrap()[0].header.index;
        handle.address().add(ipvs, "10.96.0.1".parse().unwrap(), 32).execute().await.unwrap();
        handle.address().add(1, "127.0.0.1".parse().unwrap(), 8).execute().await.unwrap();
        let found = interfaces(&handle).await.unwrap();
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let own = found.addresses();
        assert!(own.contains(&address));
        // Loopback and kube-proxy's Services are not the node, and no way out of it.
        let service: IpAddr = "10.96.0.1".parse().unwrap();
        let [lo, ipvs] = ["lo", "kube-ipvs0"].map(|name| {
            found.0.values().find(|i| i.name == name).unwrap().addresses.iter().copied().collect::<Vec<_>>()
        });
        assert!(lo.contains(&"127.0.0.1".parse().unwrap()), "{lo:?}");
        assert!(ipvs.contains(&service), "{ipvs:?}");
        for inward in lo.iter().chain(&ipvs) {
            assert!(!own.contains(inward));
            assert_eq!(found.by_address(&[*inward]), None);
        }
        assert_eq!((found.by_name("lo"), found.by_name("kube-ipvs0")), (None, None));
        let uplink = found.by_address(&["198.51.100.1".parse().unwrap(), address]).unwrap();
        assert_eq!((uplink.index, uplink.name.as_str(), uplink.mtu), (up, "up0", 1500));
        assert_eq!(found.by_name("up0"), Some(uplink));
        let mut notices = notices().unwrap();
        handle.link().del(up).execute().await.unwrap();
        let gone = async { while notices.next().await != Some(Notice::LinkGone(up)) {} };
        tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.unwrap();
        assert_eq!(interfaces(&handle).await.unwrap().by_name("up0"), None);
    });
}
