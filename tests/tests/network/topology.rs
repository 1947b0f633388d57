//! The network model over each kind of fabric and in each mode.

use fairlead_tests::cluster::{Cluster, GATEWAYS};
use fairlead_tests::fabric;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::world::{self, Object};
use serde_json::json;

use crate::model::{assert_network_model, datagrams, stream};
use crate::{NS, add, open, shell};

/// Nodes `a` and `b` in one subnet, and `c` beyond a router.
fn three_nodes() -> Vec<Object> {
    vec![
        world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
        world::node("node-b", &["172.20.0.12", "fd20::12"], &["10.244.2.0/24", "fd10:244:0:2::/64"]),
        world::node("node-c", &["172.21.0.13", "fd21::13"], &["10.244.3.0/24", "fd10:244:0:3::/64"]),
        world::namespace(NS, json!({})),
    ]
}

/// A router that knows no pod: it counts and drops whatever bears a pod's address.
pub(crate) async fn ignore_pods(cluster: &Cluster) {
    let rules = "table inet fabric { chain forward { type filter hook forward priority 0; \
        ip saddr 10.244.0.0/16 counter drop; ip daddr 10.244.0.0/16 counter drop; \
        ip6 saddr fd10:244::/32 counter drop; ip6 daddr fd10:244::/32 counter drop; }; }";
    shell(cluster.outside(), &format!("nft '{rules}'")).await;
}

/// Nothing of a pod was ever seen at the router, not even what was not needed.
pub(crate) async fn assert_ignored(cluster: &Cluster) {
    let rules = shell(cluster.outside(), "nft list table inet fabric").await;
    assert_eq!(rules.matches("counter packets 0 bytes 0 drop").count(), 4, "{rules}");
}

/// Two pods on the first of these nodes, one on each other.
async fn start(nodes: &[Object], flags: &[&str]) -> Cluster {
    let mut cluster = Cluster::start(nodes, flags).await.unwrap();
    for (i, node) in cluster.node_names().into_iter().enumerate() {
        add(&mut cluster, &format!("pod-{i}"), &node).await;
        if i == 0 {
            add(&mut cluster, "beside", &node).await;
        }
    }
    cluster
}

#[tokio::test]
async fn over_vxlan_across_a_router_that_knows_no_pods() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = start(&three_nodes(), &[]).await;
    ignore_pods(&cluster).await;
    println!("cases: {}", assert_network_model(&cluster).await);
    assert_ignored(&cluster).await;
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn auto_goes_directly_on_one_link_and_over_vxlan_beyond_it() {
    if !fairlead_tests::privileged() {
        return;
    }
    let cluster = start(&three_nodes(), &["--routing", "auto"]).await;
    ignore_pods(&cluster).await;
    let node = &cluster.node("node-a").unwrap().namespace;
    let routes = shell(node, "ip route show table main proto 70").await;
    assert!(routes.contains("10.244.2.0/24 via 172.20.0.12 dev eth0"), "{routes}");
    assert!(routes.contains("10.244.3.0/24  encap ip id 17996 src 172.20.0.11 dst 172.21.0.13"), "{routes}");
    println!("cases: {}", assert_network_model(&cluster).await);
    assert_ignored(&cluster).await;
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn directly_on_one_link() {
    if !fairlead_tests::privileged() {
        return;
    }
    let nodes: Vec<Object> =
        three_nodes().into_iter().filter(|o| o["metadata"]["name"] != "node-c").collect();
    let cluster = start(&nodes, &["--routing", "direct"]).await;
    ignore_pods(&cluster).await;
    println!("cases: {}", assert_network_model(&cluster).await);
    assert_ignored(&cluster).await;
    let node = &cluster.node("node-a").unwrap().namespace;
    let links = shell(node, "ip -o link").await;
    assert!(!links.contains("fl-overlay"), "{links}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn by_routes_of_somebody_else() {
    if !fairlead_tests::privileged() {
        return;
    }
    // As in a cloud: the routers know where pods are, the nodes only their routers.
    let cluster = start(&three_nodes(), &["--routing", "none"]).await;
    let node = &cluster.node("node-a").unwrap().namespace;
    let routes = shell(node, "ip route show proto 70").await;
    assert_eq!(routes.trim(), "unreachable 10.244.1.0/24 metric 4294967280");
    for (subnet, name) in [(0, "node-a"), (0, "node-b"), (1, "node-c")] {
        let member = &cluster.node(name).unwrap().namespace;
        for (cidr, gateways) in
            [("10.244.0.0/16", [GATEWAYS[0], "172.21.0.1"]), ("fd10:244::/32", [GATEWAYS[1], "fd21::1"])]
        {
            let gateway = gateways[subnet].parse().unwrap();
            fabric::route(member, cidr.parse().unwrap(), gateway).await.unwrap();
        }
    }
    println!("cases: {}", assert_network_model(&cluster).await);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn of_one_family_only() {
    if !fairlead_tests::privileged() {
        return;
    }
    for (family, routing) in [(0, "vxlan"), (1, "vxlan"), (1, "direct")] {
        let nodes = [
            ("node-a", ["172.20.0.11", "fd20::11"], ["10.244.1.0/24", "fd10:244:0:1::/64"]),
            ("node-b", ["172.20.0.12", "fd20::12"], ["10.244.2.0/24", "fd10:244:0:2::/64"]),
        ];
        let mut objects = vec![world::namespace(NS, json!({}))];
        objects.extend(
            nodes.iter().map(|(name, address, cidr)| world::node(name, &[address[family]], &[cidr[family]])),
        );
        let cluster = start(&objects, &["--routing", routing]).await;
        ignore_pods(&cluster).await;
        println!("cases: {}", assert_network_model(&cluster).await);
        assert_ignored(&cluster).await;
        cluster.stop().await.unwrap();
    }
}

#[tokio::test]
async fn several_cidrs_of_a_family_to_a_node() {
    if !fairlead_tests::privileged() {
        return;
    }
    let nodes = [
        world::node("node-a", &["172.20.0.11"], &["10.244.1.0/30", "10.244.9.0/24"]),
        world::node("node-b", &["172.21.0.12"], &["10.244.2.0/30", "10.244.8.0/24"]),
        world::namespace(NS, json!({})),
    ];
    let mut cluster = start(&nodes, &["--routing", "auto"]).await;
    ignore_pods(&cluster).await;
    // The first of them is full by now.
    for (pod, node) in
        [("more-a1", "node-a"), ("more-a2", "node-a"), ("more-b1", "node-b"), ("more-b2", "node-b")]
    {
        add(&mut cluster, pod, node).await;
    }
    for (pod, cidr) in [("more-a2", "10.244.9."), ("more-b2", "10.244.8.")] {
        let address = cluster.pod(pod).unwrap().address(false).unwrap().to_string();
        assert!(address.starts_with(cidr), "{pod}: {address}");
    }
    println!("cases: {}", assert_network_model(&cluster).await);
    assert_ignored(&cluster).await;
    cluster.stop().await.unwrap();
}

/// A second NIC with a network of its own behind it, and a bridge with a container, with what Docker does to a node.
async fn furnish(node: &Namespace, storage: &Namespace, container: &Namespace) {
    shell(
        node,
        &format!(
            "ip link add eth1 type veth peer name eth0 netns {storage}
             ip addr add 192.168.50.1/24 dev eth1; ip link set eth1 up
             ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up
             ip link add veth1a2b3c4 type veth peer name eth0 netns {container}
             ip link set veth1a2b3c4 master docker0 up
             iptables-legacy -w 10 -t nat -N DOCKER
             iptables-legacy -w 10 -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
             iptables-legacy -w 10 -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
             iptables-legacy -w 10 -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
             iptables-legacy -w 10 -t nat -A DOCKER -i docker0 -j RETURN
             iptables-legacy -w 10 -N DOCKER; iptables-legacy -w 10 -N DOCKER-ISOLATION-STAGE-1
             iptables-legacy -w 10 -N DOCKER-ISOLATION-STAGE-2; iptables-legacy -w 10 -N DOCKER-USER
             iptables-legacy -w 10 -A FORWARD -j DOCKER-USER
             iptables-legacy -w 10 -A FORWARD -j DOCKER-ISOLATION-STAGE-1
             iptables-legacy -w 10 -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
             iptables-legacy -w 10 -A FORWARD -o docker0 -j DOCKER
             iptables-legacy -w 10 -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
             iptables-legacy -w 10 -A FORWARD -i docker0 -o docker0 -j ACCEPT
             iptables-legacy -w 10 -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
             iptables-legacy -w 10 -A DOCKER-ISOLATION-STAGE-1 -j RETURN
             iptables-legacy -w 10 -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
             iptables-legacy -w 10 -A DOCKER-ISOLATION-STAGE-2 -j RETURN
             iptables-legacy -w 10 -A DOCKER-USER -j RETURN",
            storage = storage.thread_id(),
            container = container.thread_id(),
        ),
    )
    .await;
    shell(storage, "ip addr add 192.168.50.2/24 dev eth0; ip link set eth0 up").await;
    let up = "ip addr add 172.17.0.2/16 dev eth0; ip link set eth0 up; ip route add default via 172.17.0.1";
    shell(container, up).await;
}

#[tokio::test]
async fn beside_a_second_nic_and_a_bridge_as_dockers() {
    if !fairlead_tests::privileged() {
        return;
    }
    let nodes: Vec<Object> =
        three_nodes().into_iter().filter(|o| o["metadata"]["name"] != "node-b").collect();
    for routing in ["auto", "none"] {
        let storage = Namespace::new("storage").await.unwrap();
        let container = Namespace::new("container").await.unwrap();
        let mut cluster = Cluster::start(&nodes, &["--routing", routing]).await.unwrap();
        let node = &cluster.node("node-a").unwrap().namespace;
        furnish(node, &storage, &container).await;
        for (pod, node) in [("a1", "node-a"), ("c1", "node-c")] {
            add(&mut cluster, pod, node).await;
        }
        // Without other routes, `none` goes by the default route to a router that knows pods.
        if routing == "auto" {
            ignore_pods(&cluster).await;
        }
        println!("cases: {}", assert_network_model(&cluster).await);
        let (pod, node) = (cluster.pod("a1").unwrap(), cluster.node("node-a").unwrap());
        // Beyond the second NIC pods are seen as the node there; the bridge's containers outside of it as the node.
        let beyond = "192.168.50.2".parse().unwrap();
        fairlead_tests::wait::await_until("by the second NIC", fairlead_tests::cluster::SOON, async || {
            Ok(stream(&pod.namespace, &storage, beyond).await.is_ok())
        })
        .await
        .unwrap();
        let seen = stream(&pod.namespace, &storage, beyond).await.unwrap();
        assert_eq!(seen.to_string(), "192.168.50.1");
        assert_eq!(datagrams(&pod.namespace, &storage, beyond).await.unwrap(), seen);
        for other in ["a1", "c1"] {
            let to = cluster.pod(other).unwrap();
            let address = to.address(false).unwrap();
            let seen = stream(&container, &to.namespace, address).await.unwrap();
            assert!(node.spec.addresses.contains(&seen), "the container on {address}: {seen}");
            assert_eq!(open(&container, address).await.server, other);
        }
        cluster.stop().await.unwrap();
    }
}
