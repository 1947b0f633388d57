//! The network model, where no policy says otherwise.

use std::net::SocketAddr;

use fairlead_tests::cluster::SOON;
use fairlead_tests::probe::{Outcome, connect};

use crate::{PORT, cluster, open};

#[tokio::test]
async fn every_pair_connects_and_each_pod_is_seen_under_its_own_address() {
    if !fairlead_tests::privileged() {
        return;
    }
    let pods = [("a1", "node-a"), ("a2", "node-a"), ("b1", "node-b"), ("b2", "node-b")];
    let cluster = cluster(&pods).await;
    let mut cases = 0;
    for (client, _) in pods {
        for (server, _) in pods {
            for ipv6 in [false, true] {
                let mut connection = open(&cluster, client, server, ipv6).await;
                assert_eq!(connection.server, server);
                assert_eq!(connection.seen_as, cluster.pod(client).unwrap().address(ipv6).unwrap());
                assert!(connection.echoes(SOON).await.unwrap());
                cases += 1;
            }
        }
    }
    println!("cases: {cases}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn nodes_reach_pods_of_every_node_and_pods_reach_nodes() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = cluster(&[("a1", "node-a"), ("b1", "node-b")]).await;
    let mut cases = 0;
    for node in cluster.nodes() {
        let _listener =
            fairlead_tests::probe::Listener::open(&node.namespace, &node.spec.name, PORT).await.unwrap();
        for pod in cluster.pods() {
            for ipv6 in [false, true] {
                let address = pod.address(ipv6).unwrap();
                let to_pod = connect(&node.namespace, SocketAddr::new(address, PORT), SOON).await.unwrap();
                assert!(matches!(&to_pod, Outcome::Open(c) if c.server == pod.spec.name), "{to_pod:?}");
                let own = *node.spec.addresses.iter().find(|a| a.is_ipv6() == ipv6).unwrap();
                let to_node = connect(&pod.namespace, SocketAddr::new(own, PORT), SOON).await.unwrap();
                assert!(matches!(&to_node, Outcome::Open(c) if c.seen_as == address), "{to_node:?}");
                cases += 2;
            }
        }
    }
    println!("cases: {cases}");
    cluster.stop().await.unwrap();
}
