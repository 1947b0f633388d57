//! Which way packets take.

use crate::{cluster, enforce, only_from, open};
use fairlead_tests::cluster::{CLIENTS, SOON};
use fairlead_tests::probe::{Outcome, connect_as};

#[tokio::test]
async fn packets_between_two_pods_of_a_node_never_pass_the_hosts_forward_path() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = cluster(&[("a1", "node-a"), ("a2", "node-a")]).await;
    enforce(&mut cluster, &only_from("a2", "a1"), "a2").await;
    let node = cluster.node("node-a").unwrap();
    let before = node.forwarded().await.unwrap();
    for ipv6 in [false, true] {
        let mut connection = open(&cluster, "a1", "a2", ipv6).await;
        for _ in 0..50 {
            assert!(connection.echoes(SOON).await.unwrap());
        }
    }
    assert_eq!(node.forwarded().await.unwrap() - before, 0);
    // The counter does count: what comes from outside passes the stack.
    cluster.delete("NetworkPolicy", crate::NS, "a2-from-a1").unwrap();
    cluster.await_isolation(|_| (false, false)).await.unwrap();
    let node = cluster.node("node-a").unwrap();
    let to = std::net::SocketAddr::new(cluster.pod("a2").unwrap().address(false).unwrap(), crate::PORT);
    let source = CLIENTS[0].parse().unwrap();
    let outcome = connect_as(cluster.outside(), Some(source), to, SOON).await.unwrap();
    let Outcome::Open(connection) = outcome else { panic!("{outcome:?}") };
    assert_eq!(connection.seen_as, source);
    assert!(node.forwarded().await.unwrap() > before);
    cluster.stop().await.unwrap();
}
