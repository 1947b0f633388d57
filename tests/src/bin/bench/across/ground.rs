//! The ways between two pods of two nodes.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::fabric;
use fairlead_tests::namespace::{Namespace, sysctl};
use fairlead_tests::world;
use serde_json::json;

use crate::datapath::ground::{feed, script};
use crate::datapath::load::{PORTS, Server, await_answer};

/// Policies in force, all of which select the measured pods.
pub(super) const POLICIES: usize = 100;
const NODES: [&str; 2] = ["node-a", "node-b"];
const NAMESPACE: &str = "bench";

/// What is between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fabric {
    /// Pods' addresses are routed on the link.
    Direct,
    /// An overlay.
    Vxlan,
}

impl Fabric {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Direct, Self::Vxlan];

    /// The setting `routing`, and part of figures' names.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Vxlan => "vxlan",
        }
    }
}

/// Two pods and what is between them.
pub(super) struct Ground {
    /// What it is, for people.
    pub(super) name: String,
    /// Its servers.
    pub(super) server: Server,
    way: Way,
    address: IpAddr,
}

enum Way {
    /// Where the client is, and all others, which only have to live.
    Plain {
        client: Namespace,
        _others: Vec<Namespace>,
    },
    Fairlead(Box<Cluster>),
}

impl Ground {
    /// Where clients run.
    pub(super) fn client(&self) -> Result<&Namespace> {
        match &self.way {
            Way::Plain { client, .. } => Ok(client),
            Way::Fairlead(cluster) => Ok(&cluster.pod("client")?.namespace),
        }
    }

    /// Where the server is.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// No policy and no program: routes, a VXLAN device where that is the fabric, and the rule that masquerade needs.
    pub(super) async fn plain(kind: Fabric, masquerade: bool) -> Result<Self> {
        let l2 = fabric::bridge("p-fabric").await?;
        let mut pods = Vec::new();
        let mut nodes = Vec::new();
        for (own, other) in [(1, 2), (2, 1)] {
            let node = Namespace::new(&format!("p-node{own}")).await?;
            fabric::connect(&l2, &node, &[format!("172.20.0.{own}/24").parse()?]).await?;
            node.run(|| sysctl("ipv4/ip_forward", "1")).await??;
            let pod = Namespace::new(&format!("p-pod{own}")).await?;
            let mtu = if kind == Fabric::Vxlan { 1450 } else { 1500 };
            script(
                &node,
                format!(
                    "link add p mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
                     addr add 169.254.1.1/32 dev p\nlink set p up\nroute add 10.9.{own}.2/32 dev p\n",
                    pod.thread_id()
                ),
            )
            .await?;
            script(
                &pod,
                format!(
                    "addr add 10.9.{own}.2/32 dev eth0\nlink set eth0 up\nroute add 169.254.1.1 dev eth0\n\
                     route add default via 169.254.1.1\n"
                ),
            )
            .await?;
            let lines = match kind {
                Fabric::Direct => format!("route add 10.9.{other}.0/24 via 172.20.0.{other}\n"),
                Fabric::Vxlan => format!(
                    "link add vx type vxlan id 9 local 172.20.0.{own} remote 172.20.0.{other} dstport 8472\n\
                     addr add 10.8.0.{own}/24 dev vx\nlink set vx up\nroute add 10.9.{other}.0/24 via 10.8.0.{other}\n"
                ),
            };
            script(&node, lines).await?;
            if masquerade {
                let rules = "table ip p { chain p { type nat hook postrouting priority 100; \
                             ip saddr 10.9.0.0/16 ip daddr != 10.9.0.0/16 masquerade; }; }";
                feed(&node, "nft", &["-f", "-"], rules.to_owned()).await?;
            }
            pods.push(pod);
            nodes.push(node);
        }
        let (second, first) = (pods.pop().context("no pod")?, pods.pop().context("no pod")?);
        let server = Server::start(&second).await?;
        nodes.extend([second, l2]);
        let name = match kind {
            Fabric::Direct => "plain routing",
            Fabric::Vxlan => "plain VXLAN",
        };
        let name = format!("{name}, {}", if masquerade { "masquerade, no policy" } else { "no policy" });
        Ok(Self {
            name,
            server,
            way: Way::Plain { client: first, _others: nodes },
            address: [10, 9, 2, 2].into(),
        })
    }

    /// Fairlead with policies in force.
    pub(super) async fn fairlead(kind: Fabric, fast_path: bool) -> Result<Self> {
        let objects = [
            world::node(NODES[0], &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
            world::node(NODES[1], &["172.20.0.12", "fd20::12"], &["10.244.2.0/24", "fd10:244:0:2::/64"]),
            world::namespace(NAMESPACE, json!({})),
        ];
        let fast = format!("--fast-path-between-nodes={fast_path}");
        let mut cluster = Cluster::start(&objects, &["--routing", kind.name(), &fast]).await?;
        let policies: Vec<_> = (0..POLICIES).map(policy).collect();
        cluster.world().write("policies.yaml", &policies)?;
        for (name, node) in ["client", "server"].into_iter().zip(NODES) {
            let mut pod = world::pod(NAMESPACE, name, node, &[*PORTS.start()]);
            pod["metadata"]["labels"]["measured"] = "yes".into();
            cluster.apply(&pod)?;
            cluster.wire(NAMESPACE, name).await?;
        }
        cluster.await_isolation(|_| (true, true)).await?;
        let pod = cluster.pod("server")?;
        let (server, address) = (Server::start(&pod.namespace).await?, pod.address(false)?);
        await_answer(&cluster.pod("client")?.namespace, address).await?;
        let off = if fast_path { "" } else { ", fast path off" };
        let name = format!("Fairlead, {}{off}", kind.name());
        Ok(Self { name, server, way: Way::Fairlead(Box::new(cluster)), address })
    }
}

/// Allows the measured pods to each other, and something else.
fn policy(number: usize) -> world::Object {
    let measured = json!({"podSelector": {"matchLabels": {"measured": "yes"}}});
    let block = json!({"ipBlock": {"cidr": format!("10.100.{number}.0/24")}});
    let ports = json!([
        {"protocol": "TCP", "port": PORTS.start(), "endPort": PORTS.end()},
        {"protocol": "UDP", "port": PORTS.start(), "endPort": PORTS.end()},
    ]);
    world::policy(
        NAMESPACE,
        &format!("policy-{number}"),
        json!({
            "podSelector": {"matchLabels": {"measured": "yes"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [measured, block], "ports": ports}],
            "egress": [{"to": [measured, block], "ports": ports}],
        }),
    )
}
