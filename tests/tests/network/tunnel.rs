//! Out of a tunnel: by the program at the uplink, or by the overlay device.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use fairlead_tests::cluster::Cluster;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::wait::await_until;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::model::{pattern, stream};
use crate::{LIMIT, add, open, shell, two_nodes};

/// Packets that a node's overlay device has taken out of tunnels.
async fn taken_out(cluster: &Cluster, node: &str) -> u64 {
    let read = || std::fs::read_to_string("/sys/class/net/fl-overlay/statistics/rx_packets");
    let count = cluster.node(node).unwrap().namespace.run(read).await.unwrap().unwrap();
    count.trim().parse().unwrap()
}

/// Segments of TCP that arrived in a namespace before what was sent before them.
async fn out_of_order(at: &Namespace) -> u64 {
    let table = at.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat")).await.unwrap().unwrap();
    let mut lines = table.lines().filter_map(|l| l.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut columns = names.split(' ').zip(values.split(' '));
    columns.find(|(name, _)| *name == "TCPOFOQueue").unwrap().1.parse().unwrap()
}

/// Two nodes on a link with a pod each, through the overlay. Programs know where the pods' sockets are.
async fn through_the_overlay() -> Cluster {
    let mut cluster = Cluster::start(&two_nodes(), &["--routing", "vxlan"]).await.unwrap();
    add(&mut cluster, "a", "node-a").await;
    add(&mut cluster, "b", "node-b").await;
    let [a, b] = ["a", "b"].map(|name| &cluster.pod(name).unwrap().namespace);
    let address = cluster.pod("b").unwrap().address(false).unwrap();
    await_until("a stream past the overlay device", LIMIT, async || {
        let before = taken_out(&cluster, "node-b").await;
        stream(a, b, address).await?;
        Ok(taken_out(&cluster, "node-b").await == before)
    })
    .await
    .unwrap();
    cluster
}

/// Lets this thread, and so whatever it makes the kernel send and receive, run on one processor only: on several, packets
/// overtake each other between the ends of a veth already.
fn on_one_processor() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let first = (0..CpuSet::count()).find(|n| allowed.is_set(*n).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

/// A stream of much and little in turn, each at once: put together and alone. It is sent to a port of `to` and received by a
/// listener elsewhere, or there.
async fn uneven(from: &Namespace, to: SocketAddr, receiver: &Namespace, listens: SocketAddr) {
    const TURNS: usize = 200;
    let listener = receiver.run(move || TcpListener::bind(listens)).await.unwrap().unwrap();
    let arriving = std::thread::spawn(move || {
        on_one_processor();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    let before = out_of_order(receiver).await;
    let sent = pattern(100_000);
    let turn = sent.clone();
    let mut stream = from.run(move || TcpStream::connect_timeout(&to, LIMIT)).await.unwrap().unwrap();
    let sending = std::thread::spawn(move || {
        on_one_processor();
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        for _ in 0..TURNS {
            stream.write_all(&turn).unwrap();
            for small in turn[..10].chunks(1) {
                stream.write_all(small).unwrap();
            }
        }
    });
    sending.join().unwrap();
    assert!(arriving.join().unwrap() == [&sent[..], &sent[..10]].concat().repeat(TURNS), "to {to}");
    assert_eq!(out_of_order(receiver).await, before, "to {to}");
}

/// Ports of the pod: one that it listens on, one whose connections it redirects there, one that it sends on.
const OWN: u16 = 7001;
const REDIRECTED: u16 = 7002;
const SENT_ON: u16 = 7003;

#[tokio::test]
async fn what_a_socket_of_the_pods_takes_passes_the_overlay_device_by() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = through_the_overlay().await;
    let [a, b] = ["a", "b"].map(|name| &cluster.pod(name).unwrap().namespace);
    let both = async || [taken_out(&cluster, "node-a").await, taken_out(&cluster, "node-b").await];
    let before = both().await;
    for ipv6 in [false, true] {
        let address = cluster.pod("b").unwrap().address(ipv6).unwrap();
        let mut connection = open(a, address).await;
        assert!(connection.echoes(LIMIT).await.unwrap());
        stream(a, b, address).await.unwrap();
        let to = SocketAddr::new(address, OWN);
        uneven(a, to, b, to).await;
    }
    assert_eq!(both().await, before);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn what_the_pod_redirects_or_sends_on_goes_through_the_device_in_order() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = through_the_overlay().await;
    let [a, b] = ["a", "b"].map(|name| &cluster.pod(name).unwrap().namespace);
    // As a service mesh does it, and as one that runs containers of its own.
    let inner = Namespace::new("inner").await.unwrap();
    let rules = format!(
        "table inet pod {{ chain pre {{ type nat hook prerouting priority -100; \
         tcp dport {REDIRECTED} redirect to :{OWN}; \
         meta nfproto ipv4 tcp dport {SENT_ON} dnat ip to 192.168.77.2:{OWN}; \
         meta nfproto ipv6 tcp dport {SENT_ON} dnat ip6 to [fd77::2]:{OWN}; }}; }}"
    );
    shell(
        b,
        &format!(
            "nft '{rules}'; echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n\
             ip link add in mtu 1450 type veth peer name eth0 mtu 1450 netns {}\n\
             ip addr add 192.168.77.1/24 dev in; ip addr add fd77::1/64 dev in nodad; ip link set in up",
            inner.thread_id()
        ),
    )
    .await;
    shell(
        &inner,
        "ip addr add 192.168.77.2/24 dev eth0; ip addr add fd77::2/64 dev eth0 nodad; ip link set eth0 up\n\
         ip route add default via 192.168.77.1; ip route add default via fd77::1",
    )
    .await;
    for ipv6 in [false, true] {
        let address = cluster.pod("b").unwrap().address(ipv6).unwrap();
        let inside: IpAddr = if ipv6 { "fd77::2" } else { "192.168.77.2" }.parse().unwrap();
        for (port, receiver, listens) in [(REDIRECTED, b, address), (SENT_ON, &inner, inside)] {
            let before = taken_out(&cluster, "node-b").await;
            uneven(a, SocketAddr::new(address, port), receiver, SocketAddr::new(listens, OWN)).await;
            assert!(taken_out(&cluster, "node-b").await > before, "{address}, port {port}");
        }
    }
    cluster.stop().await.unwrap();
}
