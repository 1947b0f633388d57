//! The Kubernetes network model, for every pair: pods reach pods and nodes, and nodes pods, without translation; a pod
//! sees itself under the address that others see; containers of a pod share it.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::{Cluster, Pod};
use fairlead_tests::echo::echo;
use fairlead_tests::namespace::Namespace;

const SILENCE: Option<Duration> = Some(Duration::from_secs(5));
/// Bytes that cross at once over TCP: many segments of any offload's size.
const STREAM: usize = 1 << 20;
/// Bytes of datagrams and echoes: within and beyond the MTU, as fragments.
const DATAGRAMS: [usize; 3] = [1, 1300, 9000];

/// Bytes that are not the same everywhere.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// A stream one way; what arrives, and the address that it arrives from.
pub(crate) async fn stream(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<IpAddr> {
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

/// Datagrams and their answers; the address that they are seen under.
pub(crate) async fn datagrams(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<IpAddr> {
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

/// All of it from one end to the other; the addresses that it is seen under.
async fn everything(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<BTreeSet<IpAddr>> {
    let mut seen = BTreeSet::from([stream(from, to, address).await?, datagrams(from, to, address).await?]);
    for length in DATAGRAMS {
        seen.insert(echo(from, to, address, &pattern(length)).await?);
    }
    Ok(seen)
}

/// A namespace that is a pod's or a node's.
struct Party<'a> {
    namespace: &'a Namespace,
    addresses: &'a [IpAddr],
    /// The node that it is or is on.
    node: &'a str,
    pod: bool,
}

impl Party<'_> {
    fn of_family(&self, ipv6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|a| a.is_ipv6() == ipv6)
    }
}

/// Asserts every condition for every pair of pods, and of a pod and a node, in both families; returns the number of
/// pairs.
pub(crate) async fn assert_network_model(cluster: &Cluster) -> usize {
    let nodes = cluster.nodes().map(|n| Party {
        namespace: &n.namespace,
        addresses: &n.spec.addresses,
        node: &n.spec.name,
        pod: false,
    });
    let pods = cluster.pods().map(|p| Party {
        namespace: &p.namespace,
        addresses: &p.addresses,
        node: &p.spec.node,
        pod: true,
    });
    let parties: Vec<Party<'_>> = nodes.chain(pods).collect();
    let mut pairs = 0;
    for ipv6 in [false, true] {
        for client in &parties {
            for server in parties.iter().filter(|server| client.pod || server.pod) {
                let (Some(own), Some(to)) = (client.of_family(ipv6), server.of_family(ipv6)) else {
                    continue;
                };
                let seen = everything(client.namespace, server.namespace, to).await.unwrap();
                // Which of its addresses a node takes towards its own pods is the node's business.
                let expected = if client.pod || client.node != server.node {
                    BTreeSet::from([own])
                } else {
                    assert!(seen.iter().all(|a| client.addresses.contains(a)), "{seen:?} on {to}");
                    seen.clone()
                };
                assert_eq!(seen, expected, "from {} on {to}", client.namespace.name());
                pairs += 1;
            }
        }
    }
    assert!(pairs > 0);
    for pod in cluster.pods() {
        assert_shared(pod).await;
        pairs += 1;
    }
    pairs
}

/// A second container of a pod, which enters its namespace as a runtime would, has the pod's addresses and no others,
/// and reaches the first one on loopback.
async fn assert_shared(pod: &Pod) {
    let listener = pod.namespace.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).await.unwrap().unwrap();
    let (path, port) = (pod.namespace.path(), listener.local_addr().unwrap().port());
    let second = std::thread::spawn(move || {
        let namespace = std::fs::File::open(path).unwrap();
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let there = nix::ifaddrs::getifaddrs().unwrap();
        let there = there.filter(|i| i.interface_name == "eth0").filter_map(|i| {
            let address = i.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        });
        let there: BTreeSet<IpAddr> = there.collect();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        there
    });
    let link_local = |a: &IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
    let there: BTreeSet<IpAddr> = second.join().unwrap().into_iter().filter(|a| !link_local(a)).collect();
    assert_eq!(there, pod.addresses.iter().copied().collect(), "{}", pod.spec.name);
    listener.accept().unwrap();
}
