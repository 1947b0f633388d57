//! Between pods of two nodes: past the host's stack of both, or through it where that is asked for.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use fairlead_tests::cluster::Cluster;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::world;
use serde_json::json;

use crate::model::{pattern, stream};
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

/// Packets that a node's overlay device has taken out of tunnels.
async fn taken_out(cluster: &Cluster, node: &str) -> u64 {
    let read = || std::fs::read_to_string("/sys/class/net/fl-overlay/statistics/rx_packets");
    let count = cluster.node(node).unwrap().namespace.run(read).await.unwrap().unwrap();
    count.trim().parse().unwrap()
}

/// Segments of TCP that arrived in a pod before what was sent before them.
async fn out_of_order(pod: &Namespace) -> u64 {
    let table = pod.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat")).await.unwrap().unwrap();
    let mut lines = table.lines().filter_map(|l| l.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut columns = names.split(' ').zip(values.split(' '));
    columns.find(|(name, _)| *name == "TCPOFOQueue").unwrap().1.parse().unwrap()
}

/// Two nodes on a link with a pod each, through the overlay.
async fn through_the_overlay() -> Cluster {
    let mut cluster = Cluster::start(&two_nodes(), &["--routing", "vxlan"]).await.unwrap();
    add(&mut cluster, "a", "node-a").await;
    add(&mut cluster, "b", "node-b").await;
    cluster
}

#[tokio::test]
async fn one_segment_is_taken_out_of_the_tunnel_before_the_overlay_device_and_many_in_it() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = through_the_overlay().await;
    let [a, b] = ["a", "b"].map(|name| &cluster.pod(name).unwrap().namespace);
    let taken_out = async || [taken_out(&cluster, "node-a").await, taken_out(&cluster, "node-b").await];
    let before = taken_out().await;
    for ipv6 in [false, true] {
        let address = cluster.pod("b").unwrap().address(ipv6).unwrap();
        let mut connection = open(a, address).await;
        assert!(connection.echoes(LIMIT).await.unwrap());
    }
    assert_eq!(taken_out().await, before);
    let address = cluster.pod("b").unwrap().address(false).unwrap();
    stream(a, b, address).await.unwrap();
    let after = taken_out().await;
    assert!(after[1] > before[1], "{before:?} {after:?}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn nothing_of_a_stream_overtakes_what_was_sent_before() {
    if !fairlead_tests::privileged() {
        return;
    }
    const TURNS: usize = 200;
    let cluster = through_the_overlay().await;
    let [a, b] = ["a", "b"].map(|name| &cluster.pod(name).unwrap().namespace);
    for ipv6 in [false, true] {
        let address = cluster.pod("b").unwrap().address(ipv6).unwrap();
        let before = taken_out(&cluster, "node-b").await;
        let listener = b.run(move || TcpListener::bind(SocketAddr::new(address, 0))).await.unwrap().unwrap();
        let to = listener.local_addr().unwrap();
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all
        });
        // Large and small in turn, each at once: put together and alone.
        let sent = pattern(100_000);
        let turn = sent.clone();
        a.run(move || {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_write_timeout(Some(LIMIT)).unwrap();
            for _ in 0..TURNS {
                stream.write_all(&turn).unwrap();
                for small in turn[..10].chunks(1) {
                    stream.write_all(small).unwrap();
                }
            }
        })
        .await
        .unwrap();
        assert!(receiver.join().unwrap() == [&sent[..], &sent[..10]].concat().repeat(TURNS));
        assert_eq!(out_of_order(b).await, 0, "{to}");
        // Such a packet did come: the device had some to queue.
        assert!(taken_out(&cluster, "node-b").await > before);
    }
    cluster.stop().await.unwrap();
}
