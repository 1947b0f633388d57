//! Device, routes and rules together, in a namespace.

use std::collections::BTreeMap;
use std::process::Command;

use futures_util::TryStreamExt as _;
use rtnetlink::{Handle, LinkUnspec, LinkVeth};

use super::plan::{Overlay, Plan, Site};
use super::*;
use crate::settings::Routing;
use routes::tests::{in_namespace, there};

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

async fn uplink(handle: &Handle) {
    handle.link().add(LinkVeth::new("up0", "peer0").build()).execute().await.unwrap();
    for name in ["lo", "peer0", "up0"] {
        handle.link().set(LinkUnspec::new_with_name(name).up().build()).execute().await.unwrap();
    }
    ip("addr add 192.0.2.1/24 dev up0");
    ip("addr add 2001:db8::1/64 dev up0 nodad");
}

fn nodes(others: u32) -> BTreeMap<String, Node> {
    let node = |n: u32| {
        let name = format!("node-{n}");
        let node = Node {
            name: name.clone(),
            addresses: vec![
                std::net::Ipv4Addr::from(0xc000_0201 + n).into(),
                std::net::Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(n + 1)).into(),
            ],
            pod_cidrs: vec![
                format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap(),
                format!("fd00:0:0:{n:x}::/64").parse().unwrap(),
            ],
        };
        (name, node)
    };
    (0..=others).map(node).collect()
}

/// Metric of the route to these pods of another node.
fn metric_of(pods: &str) -> u32 {
    let by = plan::Way::Gateway { address: "192.0.2.3".parse().unwrap(), interface: 0, mtu: None };
    plan::Route { table: plan::MAIN, to: pods.parse().unwrap(), by }.metric()
}

/// The first node's, as it works it out once it knows what these nodes are.
async fn planned(handle: &Handle, plan: &mut Plan, nodes: &BTreeMap<String, Node>, wanted: &overlay::Wanted) {
    let interfaces = links::interfaces(handle).await.unwrap();
    let index = overlay::make(handle, wanted).await.unwrap();
    overlay::set_up(handle, &interfaces, index, wanted).await.unwrap();
    plan.take(nodes.iter().map(|(name, node)| (name.as_str().into(), Some(node.clone().into()))).collect());
    let uplink = interfaces.by_name("up0").unwrap();
    let overlay = Overlay { interface: index, id: 5 };
    plan.work_out(&Site::new(
        &nodes["node-0"],
        &interfaces,
        uplink,
        Routing::Vxlan,
        Some(overlay),
        wanted.mtu,
    ));
    assert_eq!(plan.problems(), Vec::<String>::new());
}

fn wanted(port: u16, mtu: u32) -> overlay::Wanted {
    let addresses = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap()).into();
    overlay::Wanted { port, mtu, addresses }
}

#[test]
fn the_overlay_is_one_device_and_a_tunnel_in_each_route() {
    in_namespace(async || {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        uplink(&handle).await;
        let before = (ip("rule"), ip("-6 rule"), ip("route show table all proto 70"));
        let mut routes = Routes::new(handle.clone());
        let mut plan = Plan::default();
        planned(&handle, &mut plan, &nodes(2), &wanted(8472, 1450)).await;
        for _ in 0..2 {
            assert_eq!(routes.reconcile(&mut plan).await, Vec::<String>::new());
            // A list of the kernel's is as good as what is remembered.
            routes.distrust();
        }
        let changes = routes.changes;
        let said = ip("route show table main proto 70");
        let metric = metric_of("10.0.2.0/24");
        let line = format!(
            "10.0.2.0/24 encap ip id 5 src 192.0.2.1 dst 192.0.2.3 ttl 0 tos 0 \
             via 169.254.70.76 dev fl-overlay metric {metric} onlink mtu 1450"
        );
        assert!(said.contains(&line), "{said}");
        let said = ip("-6 route show proto 70");
        assert!(said.contains("fd00:0:0:2::/64 encap ip id 5 src 192.0.2.1 dst 192.0.2.3"), "{said}");
        assert!(ip("rule").contains("17996: from 10.0.0.0/24 lookup 17996"), "{}", ip("rule"));
        assert!(ip("route get 192.0.2.3 from 192.0.2.1").contains("dev up0"));
        let link = ip("-d link show fl-overlay");
        for part in ["mtu 1450", "vxlan external", "dstport 8472"] {
            assert!(link.contains(part), "{part}: {link}");
        }
        let interfaces = links::interfaces(&handle).await.unwrap();
        let index = overlay::index(&interfaces).unwrap();
        assert!(overlay::is_set_up(&interfaces, index, &wanted(8472, 1450)));
        assert!(!overlay::is_set_up(&interfaces, index, &wanted(8472, 1400)));
        assert_eq!(interfaces.by_address(&["192.0.2.1".parse().unwrap()]).unwrap().name, "up0");

        // One node's address changes: its routes alone are told, and nothing of it is left.
        let mut moved = nodes(2);
        moved.get_mut("node-2").unwrap().addresses[0] = "192.0.2.33".parse().unwrap();
        planned(&handle, &mut plan, &moved, &wanted(8472, 1450)).await;
        assert_eq!(routes.reconcile(&mut plan).await, Vec::<String>::new());
        // Two CIDRs and the IPv6 address by the new tunnel, the new IPv4 address, and the old one's end.
        assert_eq!(routes.changes - changes, 5);
        let all = ip("route show table all proto 70");
        assert_eq!(all.matches("dst 192.0.2.33").count(), 4, "{all}");
        assert!(!all.contains("192.0.2.3 "), "{all}");

        // Another port is another device, and another MTU is not.
        planned(&handle, &mut plan, &moved, &wanted(8473, 1400)).await;
        let link = ip("-d link show fl-overlay");
        assert!(link.contains("mtu 1400") && link.contains("dstport 8473"), "{link}");
        routes.distrust();
        assert_eq!(routes.reconcile(&mut Plan::default()).await, Vec::<String>::new());
        let interfaces = links::interfaces(&handle).await.unwrap();
        overlay::remove(&handle, overlay::index(&interfaces).unwrap()).await.unwrap();
        assert_eq!((ip("rule"), ip("-6 rule"), ip("route show table all proto 70")), before);
        let left = handle.link().get().execute().try_collect::<Vec<_>>().await.unwrap();
        assert_eq!(left.len(), 3);
    });
}

#[test]
fn a_node_that_comes_or_goes_costs_the_same_among_ten_and_a_thousand() {
    in_namespace(async || {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        uplink(&handle).await;
        let mut costs = Vec::new();
        let mut routes = Routes::new(handle.clone());
        let guest = "node-2000";
        for others in [10, 1000] {
            let mut plan = Plan::default();
            planned(&handle, &mut plan, &nodes(others), &wanted(8472, 1450)).await;
            routes.distrust();
            assert_eq!(routes.reconcile(&mut plan).await, Vec::<String>::new());
            for there in [true, false] {
                let node = nodes(2000).remove(guest).filter(|_| there);
                plan.take([(guest.into(), node.map(Into::into))].into());
                let interfaces = links::interfaces(&handle).await.unwrap();
                let overlay = Overlay { interface: overlay::index(&interfaces).unwrap(), id: 5 };
                let uplink = interfaces.by_name("up0").unwrap();
                let own = &nodes(0)["node-0"];
                plan.work_out(&Site::new(own, &interfaces, uplink, Routing::Vxlan, Some(overlay), 1450));
                let before = routes.changes;
                assert_eq!(routes.reconcile(&mut plan).await, Vec::<String>::new());
                costs.push(routes.changes - before);
            }
        }
        // Two CIDRs, two addresses.
        assert_eq!(costs, [4; 4]);
    });
}

#[test]
fn what_could_not_be_written_is_written_once_it_can() {
    in_namespace(async || {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        uplink(&handle).await;
        let (mut plan, mut routes) = (Plan::default(), Routes::new(handle.clone()));
        planned(&handle, &mut plan, &nodes(1), &wanted(8472, 1450)).await;
        assert_eq!(routes.reconcile(&mut plan).await, Vec::<String>::new());
        // Another's route is in the way of one node's; others come and go meanwhile.
        let metric = metric_of("10.0.2.0/24");
        ip(&format!("route add 10.0.2.0/24 dev up0 metric {metric}"));
        planned(&handle, &mut plan, &nodes(3), &wanted(8472, 1450)).await;
        assert_eq!(routes.reconcile(&mut plan).await.len(), 1);
        plan.take([("node-3".into(), None)].into());
        assert_eq!(routes.reconcile(&mut plan).await.len(), 1);
        ip(&format!("route del 10.0.2.0/24 dev up0 metric {metric}"));
        assert_eq!(routes.reconcile(&mut plan).await, Vec::<String>::new());
        assert_eq!(there(&handle).await, plan.routes());
        let said = ip("route show table all proto 70");
        assert!(said.contains("10.0.2.0/24 encap") && !said.contains("10.0.3.0/24"), "{said}");
        // What somebody takes away comes back once nothing is taken for granted.
        ip(&format!("route del 10.0.2.0/24 proto 70 metric {metric}"));
        assert_eq!(routes.reconcile(&mut plan).await, Vec::<String>::new());
        assert_ne!(there(&handle).await, plan.routes());
        routes.distrust();
        assert_eq!(routes.reconcile(&mut plan).await, Vec::<String>::new());
        assert_eq!(there(&handle).await, plan.routes());
    });
}
