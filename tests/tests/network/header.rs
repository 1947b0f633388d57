//! What the network does to the headers of pods' packets: DSCP, ECN, "don't fragment", hop limit.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fairlead_tests::capture::{Capture, Seen};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::namespace::{Namespace, sysctl};
use fairlead_tests::world;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::{NS, add, shell};

const PORT: u16 = 4321;
const VXLAN: u16 = 8472;
const SILENCE: Duration = Duration::from_secs(5);
/// Expedited forwarding (RFC 3246) in the place of the DSCP.
const DSCP: u8 = 46 << 2;
/// ECN (RFC 3168).
const NOT_ECT: u8 = 0;
const ECT1: u8 = 1;
const ECT0: u8 = 2;
const CE: u8 = 3;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    service: u8,
    whole: bool,
    hop_limit: u8,
}

impl Header {
    fn of(seen: &Seen<'_>) -> Self {
        Self { service: seen.service, whole: seen.whole, hop_limit: seen.hop_limit }
    }
}

/// Sends a datagram with this type of service.
async fn send(from: &Namespace, to: IpAddr, service: u8, whole: bool) {
    from.run(move || {
        // "1": sockets made from now on do not look for the path's MTU, and let others fragment.
        sysctl("ipv4/ip_no_pmtu_disc", if whole { "0" } else { "1" }).unwrap();
        let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
        if to.is_ipv4() {
            socket.set_tos_v4(service.into()).unwrap();
        } else {
            socket.set_tclass_v6(service.into()).unwrap();
        }
        socket.send_to(b"header", &SocketAddr::new(to, PORT).into()).unwrap();
    })
    .await
    .unwrap();
}

/// The header of such a datagram where the pod gets it, and that of the tunnel where the pod's node does.
async fn arrives(cluster: &Cluster, ipv6: bool, service: u8, whole: bool) -> (Header, Option<Header>) {
    let (from, to) = (cluster.pod("a1").unwrap(), cluster.pod("c1").unwrap());
    let node = &cluster.node("node-c").unwrap().namespace;
    let mut inner = Capture::open(&to.namespace).await.unwrap();
    let mut outer = Capture::open(node).await.unwrap();
    let address = to.address(ipv6).unwrap();
    let ours = |seen: &Seen<'_>| {
        seen.destination == address && seen.protocol == 17 && seen.ports().is_some_and(|(_, to)| to == PORT)
    };
    send(&from.namespace, address, service, whole).await;
    let inner = inner.next(SILENCE, |seen| ours(seen).then(|| Header::of(seen))).unwrap();
    // In a tunnel, or as it is: whichever is seen first on the uplink.
    let outer = outer.next(SILENCE, |seen| match seen.inside(VXLAN) {
        Some(inside) => ours(&inside).then(|| Some(Header::of(seen))),
        None => ours(seen).then_some(None),
    });
    (inner, outer.unwrap())
}

/// Two nodes; on one link, or with a router between them.
async fn start(routing: &str, on_link: bool) -> Cluster {
    let nodes = [
        world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
        if on_link {
            world::node("node-c", &["172.20.0.13", "fd20::13"], &["10.244.3.0/24", "fd10:244:0:3::/64"])
        } else {
            world::node("node-c", &["172.21.0.13", "fd21::13"], &["10.244.3.0/24", "fd10:244:0:3::/64"])
        },
        world::namespace(NS, json!({})),
    ];
    let mut cluster = Cluster::start(&nodes, &["--routing", routing]).await.unwrap();
    add(&mut cluster, "a1", "node-a").await;
    add(&mut cluster, "c1", "node-c").await;
    cluster
}

#[tokio::test]
async fn the_pods_header_arrives_as_it_was_sent_and_the_tunnels_tells_of_congestion() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cases = 0;
    for (routing, on_link) in [("vxlan", false), ("vxlan", true), ("direct", true)] {
        let cluster = start(routing, on_link).await;
        for ipv6 in [false, true] {
            for ecn in [NOT_ECT, ECT1, ECT0, CE] {
                for whole in [true, false] {
                    let (inner, outer) = arrives(&cluster, ipv6, DSCP | ecn, whole).await;
                    // Two nodes forward it; nobody may fragment IPv6.
                    let sent = Header { service: DSCP | ecn, whole: whole || ipv6, hop_limit: 62 };
                    assert_eq!(inner, sent, "{routing}, on link: {on_link}");
                    // The tunnel's own: no DSCP of a pod's choice, what RFC 6040 (section 4.1, normal mode) says of ECN. With
                    // one hop to the router, and to be fragmented where a path is narrower than the uplink says;
                    // on a link, there is no such path.
                    let ecn = if ecn == CE { ECT0 } else { ecn };
                    let tunnel =
                        Header { service: ecn, whole: on_link, hop_limit: if on_link { 64 } else { 63 } };
                    assert_eq!(
                        outer,
                        (routing == "vxlan").then_some(tunnel),
                        "{routing}, on link: {on_link}"
                    );
                    cases += 1;
                }
            }
        }
        cluster.stop().await.unwrap();
    }
    println!("cases: {cases}");
}

#[tokio::test]
async fn congestion_on_the_tunnels_way_reaches_the_pod() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = start("vxlan", false).await;
    let mark = "table ip congested { chain forward { type filter hook forward priority 0; udp dport 8472 ip ecn set ce; }; }";
    shell(cluster.outside(), &format!("nft '{mark}'")).await;
    for ipv6 in [false, true] {
        for ecn in [ECT0, ECT1, CE] {
            let (inner, outer) = arrives(&cluster, ipv6, DSCP | ecn, true).await;
            assert_eq!(inner, Header { service: DSCP | CE, whole: true, hop_limit: 62 });
            assert_eq!(outer, Some(Header { service: CE, whole: false, hop_limit: 63 }));
        }
    }
    println!("cases: 6");
    cluster.stop().await.unwrap();
}
