//! XDP on the uplink, on real interfaces: what is denied ends before the host's stack, and all else arrives.

use std::net::UdpSocket;
use std::process::Command;

use fairlead_tests::cluster::Cluster;
use fairlead_tests::wait::await_until;
use fairlead_tests::world;
use serde_json::json;

use crate::{LIMIT, NS, PORT, add, open, two_nodes};

/// Datagrams that are denied.
const DATAGRAMS: u64 = 20;

/// IPv4 packets that a node's stack has got.
async fn received(cluster: &Cluster) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp");
    let table = cluster.node("node-b").unwrap().namespace.run(read).await.unwrap().unwrap();
    let mut lines = table.lines().filter_map(|l| l.strip_prefix("Ip: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "InReceives");
    found.unwrap().1.parse().unwrap()
}

/// Packets that were denied to pod `closed`.
async fn denied(cluster: &Cluster) -> u64 {
    let endpoints = cluster.node("node-b").unwrap().endpoints().await.unwrap();
    let closed = endpoints
        .into_iter()
        .find(|e| e.attachment.pod.as_ref().is_some_and(|pod| pod.name == "closed"))
        .unwrap();
    closed.counters.ingress.drops.values().sum()
}

/// Mode of XDP at node-b's uplink as `ip` has it: 1 native, 2 generic.
async fn attached(cluster: &Cluster) -> Option<u8> {
    let ask = || Command::new("ip").args(["-j", "link", "show", "dev", "eth0"]).output();
    let output = cluster.node("node-b").unwrap().namespace.run(ask).await.unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, mode) = text.split_once(r#""xdp":{"mode":"#)?;
    mode[..1].parse().ok()
}

async fn ends(mode: &str, wanted: Option<u8>) {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = Cluster::start(&two_nodes(), &["--routing", "direct", "--xdp", mode]).await.unwrap();
    add(&mut cluster, "client", "node-a").await;
    add(&mut cluster, "open", "node-b").await;
    add(&mut cluster, "closed", "node-b").await;
    let closed =
        json!({"podSelector": {"matchLabels": {"app": "closed"}}, "policyTypes": ["Ingress", "Egress"]});
    cluster.apply(&world::policy(NS, "closed", closed)).unwrap();
    cluster.await_isolation(|pod| (pod.name == "closed", pod.name == "closed")).await.unwrap();
    assert_eq!(attached(&cluster).await, wanted);
    let client = &cluster.pod("client").unwrap().namespace;
    for ipv6 in [false, true] {
        let address = cluster.pod("open").unwrap().address(ipv6).unwrap();
        let mut connection = open(client, address).await;
        assert!(connection.echoes(LIMIT).await.unwrap(), "{address}");
    }
    let before = (received(&cluster).await, denied(&cluster).await);
    let address = cluster.pod("closed").unwrap().address(false).unwrap();
    let send = move || -> std::io::Result<()> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        for _ in 0..DATAGRAMS {
            socket.send_to(b"x", (address, PORT))?;
        }
        Ok(())
    };
    client.run(send).await.unwrap().unwrap();
    await_until("drops", LIMIT, async || Ok(denied(&cluster).await >= before.1 + DATAGRAMS)).await.unwrap();
    assert_eq!(denied(&cluster).await, before.1 + DATAGRAMS);
    let reached = received(&cluster).await - before.0;
    assert_eq!(reached, if wanted.is_some() { 0 } else { DATAGRAMS });
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_denied_ends_in_the_driver() {
    ends("native", Some(1)).await;
}

#[tokio::test]
async fn what_is_denied_ends_in_generic_xdp_where_that_is_asked_for() {
    ends("generic", Some(2)).await;
}

#[tokio::test]
async fn without_xdp_what_is_denied_ends_in_tc() {
    ends("off", None).await;
}
