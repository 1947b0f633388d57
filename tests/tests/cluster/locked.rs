//! An endpoint whose agent died before it could unlock it.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use aya::maps::{Map, MapData, PerCpuHashMap};
use aya::programs::SchedClassifier;
use fairlead_api::Attachment;
use fairlead_common::maps::{DIRECTION_EGRESS, DIRECTION_INGRESS, names};
use fairlead_common::reason::DropReason;
use fairlead_tests::agent::BPFFS;
use fairlead_tests::cluster::{Node, SOON};
use fairlead_tests::fabric::up;
use fairlead_tests::namespace::{Namespace, sysctl};
use fairlead_tests::runtime::{Attach, IFNAME};
use fairlead_tests::wait::await_until;

use crate::{NS, PORT, cluster};

/// Packets sent each way.
const PACKETS: u64 = 25;

/// Packets that an interface has lost because of the lock: towards the pod, from the pod.
async fn locked(node: &Node, ifindex: u32) -> (u64, u64) {
    let count = move || {
        let map = MapData::from_pin(format!("{BPFFS}/lasting/drops-1")).unwrap();
        let map = PerCpuHashMap::<_, [u8; 8], u64>::try_from(Map::PerCpuHashMap(map)).unwrap();
        [DIRECTION_INGRESS, DIRECTION_EGRESS].map(|direction| {
            let mut key = [0; 8];
            key[..4].copy_from_slice(&ifindex.to_ne_bytes());
            key[4..6].copy_from_slice(&direction.to_ne_bytes());
            key[6..].copy_from_slice(&(DropReason::Locked as u16).to_ne_bytes());
            map.get(&key, 0).map_or(0, |cpus| cpus.iter().sum::<u64>())
        })
    };
    let [to, from] = node.namespace.run(count).await.unwrap();
    (to, from)
}

/// Packets that an interface has sent and received.
async fn traffic(namespace: &Namespace, interface: &str) -> (u64, u64) {
    let interface = format!("{interface}:");
    let read = move || {
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = table.lines().find_map(|l| l.trim_start().strip_prefix(&interface)).unwrap();
        let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        (numbers[9], numbers[1])
    };
    namespace.run(read).await.unwrap()
}

/// Sends datagrams; what becomes of them is for others to say.
async fn send(from: &Namespace, to: IpAddr) {
    let work = move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        for _ in 0..PACKETS {
            socket.send_to(b"x", SocketAddr::new(to, PORT)).unwrap();
        }
    };
    from.run(work).await.unwrap();
}

/// Ids of the programs pinned as trampolines of pods: those that the agent has made.
async fn pinned(node: &Node) -> [u32; 2] {
    let ids = || {
        [names::FROM_POD, names::TO_POD].map(|name| {
            let program = SchedClassifier::from_pin(format!("{BPFFS}/{}/{name}", names::FROZEN)).unwrap();
            program.info().unwrap().id()
        })
    };
    node.namespace.run(ids).await.unwrap()
}

/// Ids of the programs attached to tc ingress and egress of an interface, as `tc` tells them.
async fn attached(node: &Node, interface: &str) -> [u32; 2] {
    let interface = interface.to_owned();
    let ids = move || {
        ["ingress", "egress"].map(|hook| {
            let output = std::process::Command::new("tc")
                .args(["-j", "filter", "show", "dev", &interface, hook])
                .output();
            let filters: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
            let ids: Vec<u64> = filters
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|f| f["options"]["prog"]["id"].as_u64())
                .collect();
            assert_eq!(ids.len(), 1, "{filters}");
            u32::try_from(ids[0]).unwrap()
        })
    };
    node.namespace.run(ids).await.unwrap()
}

#[tokio::test]
async fn an_endpoint_whose_agent_died_before_unlocking_it_passes_nothing() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = cluster(&[("a1", "node-a")]).await;
    let sandbox = Namespace::new("orphan").await.unwrap();
    // Its Pod object never arrives: the agent waits for it, with the interface made and locked.
    let attach = Attach {
        container_id: "orphan-1".to_owned(),
        netns: Some(sandbox.path()),
        ifname: IFNAME.to_owned(),
        args: [("K8S_POD_NAMESPACE", NS), ("K8S_POD_NAME", "orphan")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
    };
    let node = cluster.node("node-a").unwrap();
    let mut plugin = node.runtime().start_add(&node.namespace, &attach).await.unwrap();
    await_until("both ends are wired, which is when the agent is asked", SOON, async || {
        // The default route is the last thing that is made.
        sandbox
            .run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/route")?.contains("\t00000000\t")))
            .await?
    })
    .await
    .unwrap();
    let file = std::fs::read(node.folders.run.endpoint("orphan-1", IFNAME)).unwrap();
    let attachment: Attachment = serde_json::from_slice(&file).unwrap();
    assert!(plugin.try_wait().unwrap().is_none(), "ADD waits for the pod's object");
    plugin.kill().unwrap();
    plugin.wait().unwrap();
    let programs = pinned(node).await;
    cluster.kill_agent("node-a").unwrap();
    let node = cluster.node("node-a").unwrap();

    // Nothing but what this test sends: IPv6 speaks up by itself.
    for (namespace, interface) in
        [(&node.namespace, attachment.host_ifname.clone()), (&sandbox, IFNAME.to_owned())]
    {
        let key = format!("ipv6/conf/{interface}/disable_ipv6");
        namespace.run(move || sysctl(&key, "1")).await.unwrap().unwrap();
        namespace.netlink(async move |netlink| up(&netlink, &interface).await).await.unwrap();
    }
    assert_eq!(attached(node, &attachment.host_ifname).await, programs);
    let before = locked(node, attachment.host_ifindex).await;
    let (sent, received) = traffic(&sandbox, IFNAME).await;
    let own = *attachment.addresses.iter().find(|a| a.is_ipv4()).unwrap();
    let node_address = *node.spec.addresses.iter().find(|a| a.is_ipv4()).unwrap();
    // From the pod to its node, and from the node to the pod: always allowed, once it is unlocked.
    send(&sandbox, node_address).await;
    send(&node.namespace, own).await;
    let (to, from) = before;
    await_until("both counters have risen", SOON, async || {
        let now = locked(node, attachment.host_ifindex).await;
        Ok(now.0 >= to + PACKETS && now.1 >= from + PACKETS)
    })
    .await
    .unwrap();
    assert_eq!(locked(node, attachment.host_ifindex).await, (to + PACKETS, from + PACKETS));
    assert_eq!(traffic(&sandbox, IFNAME).await, (sent + PACKETS, received), "the pod sent, and got nothing");
}
