//! Packets that are too large: path MTU, and MTUs that change.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use fairlead_tests::cluster::{Cluster, GATEWAYS, SOON};
use fairlead_tests::fabric;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::probe::Listener;
use fairlead_tests::wait::await_until;
use fairlead_tests::world;
use serde_json::json;

use crate::model::{assert_network_model, stream};
use crate::{NS, PORT, add, open, shell};

/// Nodes on two sides of the router, each with a pod.
async fn start(routing: &str) -> Cluster {
    let nodes = [
        world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
        world::node("node-c", &["172.21.0.13", "fd21::13"], &["10.244.3.0/24", "fd10:244:0:3::/64"]),
        world::namespace(NS, json!({})),
    ];
    let mut cluster = Cluster::start(&nodes, &["--routing", routing]).await.unwrap();
    add(&mut cluster, "a1", "node-a").await;
    add(&mut cluster, "c1", "node-c").await;
    cluster
}

/// The MTU of a way as somebody has learnt it, else that of the interface or what the route says.
async fn learnt(namespace: &Namespace, to: IpAddr) -> Option<u32> {
    let said = shell(namespace, &format!("ip route get {to}")).await;
    let mut words = said.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).map(|mtu| mtu.parse().unwrap())
}

/// Sends a datagram that fits the sender's interface, again and again, until it knows of a narrower way.
async fn await_learnt(from: &Namespace, to: IpAddr, mtu: u32) {
    let any: IpAddr = if to.is_ipv6() { "::".parse().unwrap() } else { "0.0.0.0".parse().unwrap() };
    let socket = from.run(move || UdpSocket::bind(SocketAddr::new(any, 0))).await.unwrap().unwrap();
    socket.connect(SocketAddr::new(to, 9)).unwrap();
    await_until("a narrower way is known", SOON, async || {
        // Refused once it is known: the kernel fragments only what it is asked to, or nobody listens.
        let _ = socket.send(&[0; 1400]);
        Ok(learnt(from, to).await == Some(mtu))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_a_router_between_nodes_says_of_its_way_is_honoured_by_pods() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = start("none").await;
    // Towards the second node's pods it is narrower than either node's uplink.
    for (member, gateways) in [("node-a", GATEWAYS), ("node-c", ["172.21.0.1", "fd21::1"])] {
        for (cidr, gateway) in ["10.244.0.0/16", "fd10:244::/32"].into_iter().zip(gateways) {
            let node = &cluster.node(member).unwrap().namespace;
            fabric::route(node, cidr.parse().unwrap(), gateway.parse().unwrap()).await.unwrap();
        }
    }
    shell(
        cluster.outside(),
        "ip route change 10.244.3.0/24 via 172.21.0.13 mtu 1300
         ip -6 route del fd10:244:0:3::/64; ip -6 route add fd10:244:0:3::/64 via fd21::13 mtu 1320",
    )
    .await;
    let (a, c) = (cluster.pod("a1").unwrap(), cluster.pod("c1").unwrap());
    for (ipv6, mtu) in [(false, 1300), (true, 1320)] {
        let to = c.address(ipv6).unwrap();
        assert_eq!(learnt(&a.namespace, to).await, None);
        // Segments are cut anew while they are on their way.
        assert_eq!(stream(&a.namespace, &c.namespace, to).await.unwrap(), a.address(ipv6).unwrap());
        assert_eq!(learnt(&a.namespace, to).await, Some(mtu), "after a stream to {to}");
        shell(&a.namespace, "ip route flush cache; ip -6 route flush cache").await;
        assert_eq!(learnt(&a.namespace, to).await, None);
        await_learnt(&a.namespace, to, mtu).await;
        // The way back is as wide as it was.
        let back = a.address(ipv6).unwrap();
        assert_eq!(stream(&c.namespace, &a.namespace, back).await.unwrap(), to);
        assert_eq!(learnt(&c.namespace, back).await, None);
    }
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn what_a_router_outside_says_reaches_the_pod_behind_its_nodes_address() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = start("vxlan").await;
    // The world is behind one more router, by a way that is narrow in one direction: the far end, whose own link is
    // not, agrees to large segments.
    let far = Namespace::new("far").await.unwrap();
    shell(
        cluster.outside(),
        &format!(
            "ip link add narrow type veth peer name eth0 netns {}
             ip addr add 198.51.100.1/24 dev narrow; ip addr add 2001:db8:51::1/64 dev narrow nodad; ip link set narrow up
             ip route add 198.51.100.2 dev narrow mtu 1340; ip -6 route add 2001:db8:51::2 dev narrow mtu 1340",
            far.thread_id()
        ),
    )
    .await;
    shell(
        &far,
        "ip addr add 198.51.100.2/24 dev eth0; ip addr add 2001:db8:51::2/64 dev eth0 nodad; ip link set eth0 up
         ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:51::1",
    )
    .await;
    let _listener = Listener::open(&far, "far", PORT).await.unwrap();
    let pod = cluster.pod("a1").unwrap();
    for (ipv6, to) in [(false, "198.51.100.2"), (true, "2001:db8:51::2")] {
        let to: IpAddr = to.parse().unwrap();
        let node =
            *cluster.node("node-a").unwrap().spec.addresses.iter().find(|a| a.is_ipv6() == ipv6).unwrap();
        assert_eq!(open(&pod.namespace, to).await.seen_as, node);
        assert_eq!(stream(&pod.namespace, &far, to).await.unwrap(), node);
        assert_eq!(learnt(&pod.namespace, to).await, Some(1340));
    }
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn an_overlay_crosses_a_way_that_is_narrower_than_the_uplinks() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = start("vxlan").await;
    // Nobody tells: the tunnel lets itself be fragmented.
    shell(
        cluster.outside(),
        "ip route add 172.21.0.13 dev eth0 mtu 1400; ip route add 172.20.0.11 dev eth0 mtu 1380",
    )
    .await;
    println!("cases: {}", assert_network_model(&cluster).await);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn an_uplinks_mtu_that_changes_is_followed() {
    if !fairlead_tests::privileged() {
        return;
    }
    for (routing, overhead) in [("vxlan", 50), ("direct", 0)] {
        let mut cluster = start_on_one_link(routing).await;
        let others = [
            ("node-a", ["10.244.3.0/24", "fd10:244:0:3::/64"]),
            ("node-c", ["10.244.1.0/24", "fd10:244:0:1::/64"]),
        ];
        for (round, uplink) in [1400_u32, 1500].into_iter().enumerate() {
            let mtu = uplink - overhead;
            for node in cluster.nodes() {
                shell(&node.namespace, &format!("ip link set eth0 mtu {uplink}")).await;
            }
            for (name, cidrs) in others {
                let node = cluster.node(name).unwrap();
                let file = node.folders.run.node();
                await_until("routes, device and node.json follow", SOON, async || {
                    // Pods to come are told of the new one; ADD reads what the agent has written by then.
                    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
                    let mut all = written["mtu"] == mtu;
                    if overhead > 0 {
                        let device = shell(&node.namespace, "ip -o link show fl-overlay").await;
                        all &= device.contains(&format!("mtu {mtu} "));
                        for cidr in cidrs {
                            let family = if cidr.contains(':') { "-6" } else { "-4" };
                            let words = format!("ip {family} route show {cidr} proto 70");
                            all &= shell(&node.namespace, &words).await.contains(&format!("mtu {mtu}"));
                        }
                    }
                    Ok(all)
                })
                .await
                .unwrap();
            }
            let name = format!("late-{round}");
            add(&mut cluster, &name, "node-a").await;
            let late = cluster.pod(&name).unwrap();
            let link = shell(&late.namespace, "ip -o link show eth0").await;
            assert!(link.contains(&format!("mtu {mtu} ")), "{link}");
            // Those that were there keep theirs, and are told where it is too large now.
            let (a, c) = (cluster.pod("a1").unwrap(), cluster.pod("c1").unwrap());
            for ipv6 in [false, true] {
                let to = c.address(ipv6).unwrap();
                if round == 0 {
                    // A datagram that is too large is what they learn by.
                    for (pod, other, node) in [(a, c, "node-c"), (c, a, "node-a")] {
                        let nodes = &cluster.node(node).unwrap().spec.addresses;
                        let node = nodes.iter().copied().find(|address| address.is_ipv6() == ipv6).unwrap();
                        for to in [other.address(ipv6).unwrap(), late.address(ipv6).unwrap(), node] {
                            await_learnt(&pod.namespace, to, mtu).await;
                        }
                    }
                } else {
                    // Nor does a pod that came when the way was narrow get a wider interface.
                    let first = cluster.pod("late-0").unwrap().address(ipv6).unwrap();
                    let node = &cluster.node("node-c").unwrap().namespace;
                    for from in [&a.namespace, &c.namespace, &late.namespace, node] {
                        await_learnt(from, first, 1400 - overhead).await;
                    }
                }
                assert_eq!(stream(&a.namespace, &c.namespace, to).await.unwrap(), a.address(ipv6).unwrap());
            }
            println!("cases: {}", assert_network_model(&cluster).await);
        }
        cluster.stop().await.unwrap();
    }
}

async fn start_on_one_link(routing: &str) -> Cluster {
    let nodes = [
        world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
        world::node("node-c", &["172.20.0.13", "fd20::13"], &["10.244.3.0/24", "fd10:244:0:3::/64"]),
        world::namespace(NS, json!({})),
    ];
    let mut cluster = Cluster::start(&nodes, &["--routing", routing]).await.unwrap();
    add(&mut cluster, "a1", "node-a").await;
    add(&mut cluster, "c1", "node-c").await;
    cluster
}
