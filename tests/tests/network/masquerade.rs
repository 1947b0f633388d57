//! Under which address pods are seen where.

use std::net::IpAddr;

use fairlead_tests::cluster::{CLIENTS, Cluster, SOON};
use fairlead_tests::probe::Listener;
use fairlead_tests::wait::await_until;
use fairlead_tests::world;

use crate::{PORT, add, open, two_nodes};

/// Address of a family.
fn of_family(all: &[IpAddr], ipv6: bool) -> IpAddr {
    *all.iter().find(|a| a.is_ipv6() == ipv6).unwrap()
}

async fn start(flags: &[&str]) -> Cluster {
    let mut cluster = Cluster::start(&two_nodes(), flags).await.unwrap();
    for (name, node) in [("a1", "node-a"), ("a2", "node-a"), ("b1", "node-b")] {
        add(&mut cluster, name, node).await;
    }
    cluster
}

#[tokio::test]
async fn outside_pods_are_seen_as_their_node_and_inside_as_themselves() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = start(&[]).await;
    let _outside = Listener::open(cluster.outside(), "outside", PORT).await.unwrap();
    let mut nodes = Vec::new();
    for node in cluster.nodes() {
        nodes.push(Listener::open(&node.namespace, &node.spec.name, PORT).await.unwrap());
    }
    let mut cases = 0;
    for ipv6 in [false, true] {
        for pod in cluster.pods() {
            let own = pod.address(ipv6).unwrap();
            let node = cluster.node(&pod.spec.node).unwrap();
            let client: IpAddr = CLIENTS[usize::from(ipv6)].parse().unwrap();
            let seen = open(&pod.namespace, client).await.seen_as;
            assert_eq!(seen, of_family(&node.spec.addresses, ipv6), "{own} outside");
            for other in cluster.pods() {
                assert_eq!(open(&pod.namespace, other.address(ipv6).unwrap()).await.seen_as, own);
                cases += 1;
            }
            for other in cluster.nodes() {
                let to = of_family(&other.spec.addresses, ipv6);
                assert_eq!(open(&pod.namespace, to).await.seen_as, own, "{own} on {to}");
                cases += 1;
            }
            cases += 1;
        }
    }
    println!("cases: {cases}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_excluded_sees_pods_as_themselves_and_masquerade_can_be_off() {
    if !fairlead_tests::privileged() {
        return;
    }
    for flags in [&["--masquerade-exclude", "203.0.113.0/24,2001:db8::/32"][..], &["--masquerade=false"]] {
        let cluster = start(flags).await;
        let _outside = Listener::open(cluster.outside(), "outside", PORT).await.unwrap();
        for ipv6 in [false, true] {
            let pod = cluster.pod("a1").unwrap();
            let seen = open(&pod.namespace, CLIENTS[usize::from(ipv6)].parse().unwrap()).await.seen_as;
            assert_eq!(seen, pod.address(ipv6).unwrap(), "{flags:?}");
        }
        cluster.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_comes_later_is_inside_at_once() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = start(&["--routing", "direct"]).await;
    let outside = cluster.outside();
    let _listener = Listener::open(outside, "outside", PORT).await.unwrap();
    let client: IpAddr = CLIENTS[0].parse().unwrap();
    let own = cluster.pod("a1").unwrap().address(false).unwrap();
    assert_ne!(open(&cluster.pod("a1").unwrap().namespace, client).await.seen_as, own);
    // The client becomes a node's address, and is outside again when that node leaves.
    let late = world::node("node-z", &[CLIENTS[0]], &["10.244.9.0/24"]);
    for inside in [true, false] {
        if inside {
            cluster.apply(&late).unwrap();
        } else {
            cluster.delete("Node", "", "node-z").unwrap();
        }
        await_until("seen as itself, or not", SOON, async || {
            let seen = open(&cluster.pod("a1").unwrap().namespace, client).await.seen_as;
            Ok((seen == own) == inside)
        })
        .await
        .unwrap();
    }
    cluster.stop().await.unwrap();
}
