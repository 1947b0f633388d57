//! Between pods of two nodes: past the host's stack of both, or through it where that is asked for.

use fairlead_tests::cluster::Cluster;
use fairlead_tests::world;
use serde_json::json;

use crate::{LIMIT, NS, add, open, two_nodes};

/// What each node's stack has forwarded.
async fn forwarded(cluster: &Cluster) -> [u64; 2] {
    let of = async |node| cluster.node(node).unwrap().forwarded().await.unwrap();
    [of("node-a").await, of("node-b").await]
}

async fn forwards(routing: &str, fast_path: bool) {
    let fast = format!("--fast-path={fast_path}");
    let mut cluster =
        Cluster::start(&two_nodes(), &["--routing", routing, "--fast-path-between-nodes", &fast])
            .await
            .unwrap();
    add(&mut cluster, "a", "node-a").await;
    add(&mut cluster, "b", "node-b").await;
    // Policy in force does not change the way.
    let all = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}],
        "egress": [{"to": [{"podSelector": {}}]}], "policyTypes": ["Ingress", "Egress"]});
    cluster.apply(&world::policy(NS, "all", all)).unwrap();
    cluster.await_isolation(|_| (true, true)).await.unwrap();
    for ipv6 in [false, true] {
        for (from, to) in [("a", "b"), ("b", "a")] {
            let before = forwarded(&cluster).await;
            let address = cluster.pod(to).unwrap().address(ipv6).unwrap();
            let mut connection = open(&cluster.pod(from).unwrap().namespace, address).await;
            assert!(connection.echoes(LIMIT).await.unwrap());
            let after = forwarded(&cluster).await;
            for (before, after) in before.into_iter().zip(after) {
                assert_eq!(after > before, !fast_path, "{routing}, {from} to {address}: {before} to {after}");
            }
        }
    }
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn packets_skip_both_stacks_on_the_link() {
    if !fairlead_tests::privileged() {
        return;
    }
    forwards("direct", true).await;
}

#[tokio::test]
async fn packets_skip_both_stacks_through_the_overlay() {
    if !fairlead_tests::privileged() {
        return;
    }
    forwards("vxlan", true).await;
}

#[tokio::test]
async fn without_the_fast_path_packets_take_both_stacks() {
    if !fairlead_tests::privileged() {
        return;
    }
    forwards("direct", false).await;
    forwards("vxlan", false).await;
}
