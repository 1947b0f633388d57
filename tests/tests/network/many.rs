//! Fifty nodes, an agent on each.

use std::net::IpAddr;
use std::path::PathBuf;

use fairlead_tests::cluster::Cluster;
use fairlead_tests::world::{self, Object};
use serde_json::json;

use crate::model::datagrams;
use crate::{NS, add, open};

const NODES: u8 = 50;
/// Neighbours that the kernel keeps at most: one number for all namespaces of a machine, and each of the nodes here knows
/// half of the others.
const NEIGHBOURS: u32 = 16_384;

/// What the kernel kept before.
struct Neighbours(Vec<(PathBuf, String)>);

impl Neighbours {
    fn allow(count: u32) -> Self {
        let mut before = Vec::new();
        for family in ["ipv4", "ipv6"] {
            for limit in ["gc_thresh3", "gc_thresh2"] {
                let path = PathBuf::from(format!("/proc/sys/net/{family}/neigh/default/{limit}"));
                let old = std::fs::read_to_string(&path).unwrap().trim().to_owned();
                if old.parse::<u32>().unwrap() < count {
                    std::fs::write(&path, count.to_string()).unwrap();
                    before.push((path, old));
                }
            }
        }
        Self(before)
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        for (path, old) in self.0.drain(..) {
            // Nothing that could be done about it here.
            let _ = std::fs::write(path, old);
        }
    }
}

#[tokio::test]
async fn every_one_of_fifty_nodes_reaches_every_other() {
    if !fairlead_tests::privileged() {
        return;
    }
    let _neighbours = Neighbours::allow(NEIGHBOURS);
    let mut objects: Vec<Object> = vec![world::namespace(NS, json!({}))];
    for n in 1..=NODES {
        // Half of them beyond the router.
        let subnet = if n % 2 == 0 { 20 } else { 21 };
        let addresses = [format!("172.{subnet}.0.{}", n + 10), format!("fd{subnet}::{}", n + 10)];
        let cidrs = [format!("10.244.{n}.0/24"), format!("fd10:244:0:{n}::/64")];
        objects.push(world::node(
            &format!("node-{n}"),
            &addresses.each_ref().map(String::as_str),
            &cidrs.each_ref().map(String::as_str),
        ));
    }
    let mut cluster = Cluster::start(&objects, &["--routing", "auto"]).await.unwrap();
    for n in 1..=NODES {
        add(&mut cluster, &format!("pod-{n}"), &format!("node-{n}")).await;
    }
    let mut pairs = 0;
    for client in cluster.pods() {
        for server in cluster.pods() {
            for ipv6 in [false, true] {
                let (own, to) = (client.address(ipv6).unwrap(), server.address(ipv6).unwrap());
                let connection = open(&client.namespace, to).await;
                assert_eq!(
                    (connection.server.as_str(), connection.seen_as),
                    (server.spec.name.as_str(), own)
                );
                pairs += 1;
            }
        }
    }
    // Large ones, round the circle; and every node's pod to every node.
    for n in 1..=NODES {
        let client = cluster.pod(&format!("pod-{n}")).unwrap();
        let server = cluster.pod(&format!("pod-{}", n % NODES + 1)).unwrap();
        let own = client.address(false).unwrap();
        let to = server.address(false).unwrap();
        assert_eq!(datagrams(&client.namespace, &server.namespace, to).await.unwrap(), own);
        let node = cluster.node(&format!("node-{}", n % NODES + 1)).unwrap();
        let address: IpAddr = node.spec.addresses[0];
        assert_eq!(datagrams(&client.namespace, &node.namespace, address).await.unwrap(), own);
        pairs += 2;
    }
    println!("cases: {pairs}");
    cluster.stop().await.unwrap();
}
