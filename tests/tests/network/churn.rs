//! Nodes that change, leave and come back; addresses that no pod has.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use fairlead_tests::cluster::{Cluster, GATEWAYS, SOON};
use fairlead_tests::fabric;
use fairlead_tests::probe::{Outcome, connect};
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object};
use serde_json::json;

use crate::model::{assert_network_model, datagrams, stream};
use crate::topology::{assert_ignored, ignore_pods};
use crate::{LIMIT, NS, PORT, add, shell};

const OLD: [&str; 2] = ["172.20.0.12", "fd20::12"];
const NEW: [&str; 2] = ["172.20.0.42", "fd20::42"];
const CIDRS: [&str; 2] = ["10.244.2.0/24", "fd10:244:0:2::/64"];
const NEW_CIDRS: [&str; 2] = ["10.244.7.0/24", "fd10:244:0:7::/64"];

/// Two nodes on one link, and one beyond the router.
fn nodes() -> Vec<Object> {
    vec![
        world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
        world::node("node-b", &OLD, &CIDRS),
        world::node("node-c", &["172.21.0.13", "fd21::13"], &["10.244.3.0/24", "fd10:244:0:3::/64"]),
        world::namespace(NS, json!({})),
    ]
}

/// What the agents of the other nodes have put into the kernel about pods.
async fn routes(cluster: &Cluster) -> String {
    let mut all = String::new();
    for name in ["node-a", "node-c"] {
        let node = &cluster.node(name).unwrap().namespace;
        all += &shell(node, "ip route show table all proto 70; ip -6 route show table all proto 70").await;
    }
    all
}

/// Waits until the other nodes' routes name all of these and none of those.
async fn await_routes(cluster: &Cluster, all: &[&str], none: &[&str]) {
    await_until("routes follow", SOON, async || {
        let routes = routes(cluster).await;
        // Both nodes know each of them.
        let there = all.iter().all(|one| routes.matches(one).count() >= 2);
        Ok(there && !none.iter().any(|one| routes.contains(one)))
    })
    .await
    .unwrap();
}

/// Every pod of the other nodes and this one reach each other, with all that a packet can be; the number of pairs.
async fn assert_reachable(cluster: &Cluster, name: &str) -> usize {
    let pod = cluster.pod(name).unwrap();
    let mut pairs = 0;
    for other in ["a1", "c1"].map(|other| cluster.pod(other).unwrap()) {
        for ipv6 in [false, true] {
            for (from, to) in [(pod, other), (other, pod)] {
                let (own, address) = (from.address(ipv6).unwrap(), to.address(ipv6).unwrap());
                let seen = stream(&from.namespace, &to.namespace, address).await.unwrap();
                assert_eq!(seen, own, "{} to {}", from.spec.name, to.spec.name);
                assert_eq!(datagrams(&from.namespace, &to.namespace, address).await.unwrap(), own);
                pairs += 1;
            }
        }
    }
    pairs
}

#[tokio::test]
async fn a_node_changes_its_address_and_its_cidrs_leaves_and_comes_back() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cases = 0;
    for routing in ["vxlan", "auto"] {
        let mut cluster = Cluster::start(&nodes(), &["--routing", routing]).await.unwrap();
        ignore_pods(&cluster).await;
        for (pod, node) in [("a1", "node-a"), ("b1", "node-b"), ("c1", "node-c")] {
            add(&mut cluster, pod, node).await;
        }
        cases += assert_reachable(&cluster, "b1").await;

        let node = &cluster.node("node-b").unwrap().namespace;
        shell(
            node,
            &format!(
                "ip addr del {}/24 dev eth0; ip addr add {}/24 dev eth0; ip route replace default via {}
                 ip addr del {}/64 dev eth0; ip addr add {}/64 dev eth0 nodad; ip -6 route replace default via {}",
                OLD[0], NEW[0], GATEWAYS[0], OLD[1], NEW[1], GATEWAYS[1]
            ),
        )
        .await;
        cluster.apply(&world::node("node-b", &NEW, &CIDRS)).unwrap();
        await_routes(&cluster, &[NEW[0]], &OLD.map(|a| format!("{a} ")).each_ref().map(String::as_str)).await;
        await_own_source(&cluster, routing).await;
        cases += assert_reachable(&cluster, "b1").await;

        // It leaves: nothing of it stays on the others, and nothing else goes.
        cluster.delete("Node", "", "node-b").unwrap();
        await_routes(&cluster, &["10.244."], &[CIDRS[0], CIDRS[1], NEW[0]]).await;
        let [a, c] = ["a1", "c1"].map(|name| cluster.pod(name).unwrap());
        for ipv6 in [false, true] {
            let to = c.address(ipv6).unwrap();
            assert_eq!(stream(&a.namespace, &c.namespace, to).await.unwrap(), a.address(ipv6).unwrap());
            cases += 1;
        }
        cluster.apply(&world::node("node-b", &NEW, &CIDRS)).unwrap();
        await_routes(&cluster, &[CIDRS[0], CIDRS[1], NEW[0]], &[]).await;
        cases += assert_reachable(&cluster, "b1").await;

        // Other CIDRs: pods to come have addresses of them.
        cluster.apply(&world::node("node-b", &NEW, &NEW_CIDRS)).unwrap();
        await_routes(&cluster, &NEW_CIDRS, &CIDRS).await;
        let file = cluster.node("node-b").unwrap().folders.run.node();
        await_until("node.json follows", SOON, async || {
            let node: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
            Ok(node["podCIDRs"] == json!(NEW_CIDRS))
        })
        .await
        .unwrap();
        cluster.unwire("b1").await.unwrap();
        add(&mut cluster, "b2", "node-b").await;
        let address = cluster.pod("b2").unwrap().address(false).unwrap();
        assert!(address.to_string().starts_with("10.244.7."), "{address}");
        cases += assert_reachable(&cluster, "b2").await;
        // Before it moved packets of its pods were seen by nobody else, and afterwards neither.
        assert_ignored(&cluster).await;
        cluster.stop().await.unwrap();
    }
    println!("cases: {cases}");
}

/// Waits until the node that has moved sends from its new address.
async fn await_own_source(cluster: &Cluster, routing: &str) {
    let node = &cluster.node("node-b").unwrap().namespace;
    await_until("its own tunnels follow", SOON, async || {
        let routes = shell(node, "ip route show table all proto 70").await;
        Ok(routes.contains(&format!("src {}", NEW[0])) && !routes.contains(&format!("src {}", OLD[0])))
    })
    .await
    .unwrap_or_else(|e| unreachable!("{routing}: {e}"));
}

#[tokio::test]
async fn what_no_pod_has_is_unreachable_and_travels_in_no_circle() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cases = 0;
    for routing in ["vxlan", "auto", "none"] {
        let mut cluster = Cluster::start(&nodes(), &["--routing", routing]).await.unwrap();
        for (pod, node) in [("a1", "node-a"), ("b1", "node-b"), ("c1", "node-c")] {
            add(&mut cluster, pod, node).await;
        }
        if routing == "none" {
            // The routers know where pods are, the nodes only their routers: what a node sends on comes back to it.
            for (name, gateways) in
                [("node-a", GATEWAYS), ("node-b", GATEWAYS), ("node-c", ["172.21.0.1", "fd21::1"])]
            {
                for (cidr, gateway) in ["10.244.0.0/16", "fd10:244::/32"].into_iter().zip(gateways) {
                    let node = &cluster.node(name).unwrap().namespace;
                    fabric::route(node, cidr.parse().unwrap(), gateway.parse().unwrap()).await.unwrap();
                }
            }
        }
        let node = cluster.node("node-b").unwrap();
        for from in ["a1", "b1", "c1"] {
            let pod = cluster.pod(from).unwrap();
            for address in ["10.244.2.200", "fd10:244:0:2::c8"] {
                let to: IpAddr = address.parse().unwrap();
                let before = node.forwarded().await.unwrap();
                // The pod is told, instead of waiting for nothing: EHOSTUNREACH, and ENETUNREACH for IPv6, whose end in a
                // circle would be the former.
                let told = if to.is_ipv6() { "os error 101" } else { "os error 113" };
                match connect(&pod.namespace, SocketAddr::new(to, PORT), LIMIT).await.unwrap() {
                    Outcome::Fault(said) => assert!(said.contains(told), "{from} to {to}: {said}"),
                    other => unreachable!("{routing}: {from} to {to}: {other:?}"),
                }
                let any = if to.is_ipv6() { "::" } else { "0.0.0.0" };
                let any: IpAddr = any.parse().unwrap();
                let socket = pod.namespace.run(move || UdpSocket::bind(SocketAddr::new(any, 0))).await;
                let socket = socket.unwrap().unwrap();
                for _ in 0..10 {
                    socket.send_to(b"nobody", SocketAddr::new(to, PORT)).unwrap();
                }
                let sent_on = node.forwarded().await.unwrap() - before;
                assert_eq!(sent_on, 0, "{routing}: {from} to {to}");
                cases += 1;
            }
        }
        cases += assert_network_model(&cluster).await;
        cluster.stop().await.unwrap();
    }
    println!("cases: {cases}");
}
