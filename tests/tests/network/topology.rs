//! The network model over each kind of fabric: for every pair, TCP and UDP, small and large.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::probe::Listener;
use fairlead_tests::world::{self, Object};
use serde_json::json;

use crate::{NS, PORT, add, open};

const SILENCE: Option<Duration> = Some(Duration::from_secs(5));
/// Bytes that cross at once over TCP: many segments of any offload's size.
const STREAM: usize = 1 << 20;
/// Bytes of datagrams: within and beyond the MTU.
const DATAGRAMS: [usize; 3] = [1, 1300, 9000];

/// Nodes `a` and `b` in one subnet, and `c` beyond a router.
fn three_nodes() -> Vec<Object> {
    vec![
        world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
        world::node("node-b", &["172.20.0.12", "fd20::12"], &["10.244.2.0/24", "fd10:244:0:2::/64"]),
        world::node("node-c", &["172.21.0.13", "fd21::13"], &["10.244.3.0/24", "fd10:244:0:3::/64"]),
        world::namespace(NS, json!({})),
    ]
}

/// Bytes that are not the same everywhere.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// A stream one way; what arrives, and the address that it arrives from.
async fn stream(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<IpAddr> {
    let listener = to.run(move || TcpListener::bind(SocketAddr::new(address, 0))).await??;
    let port = listener.local_addr()?.port();
    let receiver = std::thread::spawn(move || -> Result<(Vec<u8>, IpAddr)> {
        let (mut stream, client) = listener.accept()?;
        stream.set_read_timeout(SILENCE)?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        Ok((all, client.ip().to_canonical()))
    });
    let sent = from
        .run(move || -> Result<()> {
            let to = SocketAddr::new(address, port);
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
            stream.set_write_timeout(SILENCE)?;
            Ok(stream.write_all(&pattern(STREAM))?)
        })
        .await?;
    sent.with_context(|| format!("TCP from {} to {address}", from.name()))?;
    let (all, seen) = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    ensure!(all == pattern(STREAM), "{} of {STREAM} bytes arrived at {address}", all.len());
    Ok(seen)
}

/// Datagrams and their echoes; the address that they are seen under.
async fn datagrams(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<IpAddr> {
    let server = to.run(move || UdpSocket::bind(SocketAddr::new(address, 0))).await??;
    let any: IpAddr = if address.is_ipv6() { "::".parse()? } else { "0.0.0.0".parse()? };
    let client = from.run(move || UdpSocket::bind(SocketAddr::new(any, 0))).await??;
    for socket in [&server, &client] {
        socket.set_read_timeout(SILENCE)?;
    }
    client.connect(server.local_addr()?)?;
    let mut buffer = vec![0; 65_536];
    let mut seen = None;
    for length in DATAGRAMS {
        let what = || format!("{length} bytes of UDP from {} to {address}", from.name());
        client.send(&pattern(length)).with_context(what)?;
        let (received, source) = server.recv_from(&mut buffer).with_context(what)?;
        ensure!(buffer[..received] == pattern(length), "{}: something else arrives", what());
        server.send_to(&buffer[..received], source)?;
        let received = client.recv(&mut buffer).with_context(|| format!("{}: the answer", what()))?;
        ensure!(buffer[..received] == pattern(length), "{}: something else comes back", what());
        seen = Some(source.ip());
    }
    seen.context("no datagram")
}

/// Every condition of the network model, for every pair of pods and of a pod and a node.
async fn assert_network_model(cluster: &Cluster) -> usize {
    let mut cases = 0;
    let mut listeners = Vec::new();
    for node in cluster.nodes() {
        listeners.push(Listener::open(&node.namespace, &node.spec.name, PORT).await.unwrap());
    }
    for ipv6 in [false, true] {
        for client in cluster.pods() {
            let own = client.address(ipv6).unwrap();
            for server in cluster.pods() {
                let to = server.address(ipv6).unwrap();
                assert_eq!(stream(&client.namespace, &server.namespace, to).await.unwrap(), own);
                assert_eq!(datagrams(&client.namespace, &server.namespace, to).await.unwrap(), own);
                cases += 2;
            }
            for node in cluster.nodes() {
                let address = *node.spec.addresses.iter().find(|a| a.is_ipv6() == ipv6).unwrap();
                assert_eq!(open(&client.namespace, address).await.seen_as, own, "{own} on {address}");
                let seen = open(&node.namespace, own).await.seen_as;
                if node.spec.name != client.spec.node {
                    assert_eq!(seen, address, "{address} on {own}");
                }
                cases += 2;
            }
        }
    }
    cases
}

/// What `nft` or `ip` says in a namespace.
async fn said(namespace: &Namespace, words: &'static [&'static str]) -> String {
    let run = move || Command::new(words[0]).args(&words[1..]).output();
    let output = namespace.run(run).await.unwrap().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A router that knows no pod: it counts and drops whatever bears a pod's address.
async fn ignore_pods(cluster: &Cluster) {
    const RULES: &str = "table inet fabric { chain forward { type filter hook forward priority 0; \
        ip saddr 10.244.0.0/16 counter drop; ip daddr 10.244.0.0/16 counter drop; \
        ip6 saddr fd10:244::/32 counter drop; ip6 daddr fd10:244::/32 counter drop; }; }";
    said(cluster.outside(), &["nft", RULES]).await;
}

async fn start(flags: &[&str]) -> Cluster {
    let mut cluster = Cluster::start(&three_nodes(), flags).await.unwrap();
    ignore_pods(&cluster).await;
    for (name, node) in [("a1", "node-a"), ("b1", "node-b"), ("c1", "node-c")] {
        add(&mut cluster, name, node).await;
    }
    cluster
}

#[tokio::test]
async fn over_vxlan_across_a_router_that_knows_no_pods() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = start(&[]).await;
    println!("cases: {}", assert_network_model(&cluster).await);
    // Nothing of a pod was ever seen there, not even what was not needed.
    let rules = said(cluster.outside(), &["nft", "list", "table", "inet", "fabric"]).await;
    assert_eq!(rules.matches("counter packets 0 bytes 0 drop").count(), 4, "{rules}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn auto_goes_directly_on_one_link_and_over_vxlan_beyond_it() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = start(&["--routing", "auto"]).await;
    let node = &cluster.node("node-a").unwrap().namespace;
    let routes = said(node, &["ip", "route", "show", "table", "main", "proto", "70"]).await;
    assert!(routes.contains("10.244.2.0/24 via 172.20.0.12 dev eth0"), "{routes}");
    assert!(routes.contains("10.244.3.0/24  encap ip id 17996 src 172.20.0.11 dst 172.21.0.13"), "{routes}");
    println!("cases: {}", assert_network_model(&cluster).await);
    let rules = said(cluster.outside(), &["nft", "list", "table", "inet", "fabric"]).await;
    assert_eq!(rules.matches("counter packets 0 bytes 0 drop").count(), 4, "{rules}");
    cluster.stop().await.unwrap();
}
