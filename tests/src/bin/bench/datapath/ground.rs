//! The ways between two pods that are measured.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::namespace::{Namespace, sysctl};
use fairlead_tests::world;
use serde_json::{Value, json};

use super::load::{PORTS, Server};
use crate::population::{NODE, await_policies};

/// Policies that select the measured pods, where there are as many.
pub(crate) const SELECTING: usize = 100;
const NAMESPACE: &str = "bench";
/// Objects to a file of manifests, which may have 4 MiB.
const TO_A_FILE: usize = 2000;

/// Two pods and what is between them.
pub(crate) struct Ground {
    /// What it is, for people.
    pub(crate) name: String,
    /// Its servers.
    pub(crate) server: Server,
    way: Way,
    address: IpAddr,
}

enum Way {
    /// Namespaces: the client's, the server's, and those between.
    Plain { client: Namespace, _server: Namespace, _node: Option<Namespace> },
    /// A node with Fairlead.
    Fairlead(Box<Cluster>),
}

impl Ground {
    /// Where clients run.
    pub(crate) fn client(&self) -> Result<&Namespace> {
        match &self.way {
            Way::Plain { client, .. } => Ok(client),
            Way::Fairlead(cluster) => Ok(&cluster.pod("client")?.namespace),
        }
    }

    /// Where the server is.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// One veth pair, no node between.
    pub(crate) async fn direct() -> Result<Self> {
        let (client, server) = (Namespace::new("d-client").await?, Namespace::new("d-server").await?);
        script(&client, format!("link add eth0 type veth peer name eth0 netns {}\naddr add 10.9.0.2/24 dev eth0\nlink set eth0 up\n", server.thread_id())).await?;
        script(&server, "addr add 10.9.0.3/24 dev eth0\nlink set eth0 up\n".to_owned()).await?;
        let running = Server::start(&server).await?;
        let way = Way::Plain { client, _server: server, _node: None };
        Ok(Self { name: "direct veth".to_owned(), server: running, way, address: [10, 9, 0, 3].into() })
    }

    /// Two pods and a node that routes.
    async fn routed(name: &str) -> Result<(Self, Namespace)> {
        let node = Namespace::new("r-node").await?;
        node.run(|| sysctl("ipv4/ip_forward", "1")).await??;
        let mut pods = Vec::new();
        for number in 2..=3 {
            let pod = Namespace::new(&format!("r-pod{number}")).await?;
            script(&node, format!(
                "link add p{number} type veth peer name eth0 netns {}\naddr add 169.254.1.1/32 dev p{number}\nlink set p{number} up\nroute add 10.9.0.{number}/32 dev p{number}\n",
                pod.thread_id()
            )).await?;
            script(&pod, format!(
                "addr add 10.9.0.{number}/32 dev eth0\nlink set eth0 up\nroute add 169.254.1.1 dev eth0\nroute add default via 169.254.1.1\n"
            )).await?;
            pods.push(pod);
        }
        let (server, client) = (pods.pop().context("no pod")?, pods.pop().context("no pod")?);
        let running = Server::start(&server).await?;
        // Rules are made by whoever asked for this, in a namespace that lives as long as the way.
        let way = Way::Plain { client, _server: server, _node: None };
        Ok((Self { name: name.to_owned(), server: running, way, address: [10, 9, 0, 3].into() }, node))
    }

    fn with_node(mut self, between: Namespace) -> Self {
        if let Way::Plain { _node, .. } = &mut self.way {
            *_node = Some(between);
        }
        self
    }

    /// No policy.
    pub(crate) async fn plain() -> Result<Self> {
        let (ground, node) = Self::routed("plain routing").await?;
        Ok(ground.with_node(node))
    }

    /// iptables and ipset, shaped as kube-router does: a chain to each pod, which jumps into a chain to
    /// each policy.
    pub(crate) async fn ipset(policies: usize) -> Result<Self> {
        let (ground, node) = Self::routed(&format!("iptables + ipset, {policies} policies")).await?;
        let mut sets = String::new();
        let mut rules = String::from("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n");
        for pod in 2..=3 {
            rules.push_str(&format!(":POD-{pod} -\n"));
        }
        for i in 0..policies {
            sets.push_str(&format!("create src{i} hash:ip\ncreate dst{i} hash:ip\n"));
            for k in 0..10 {
                sets.push_str(&format!("add src{i} 10.7.{}.{k}\n", i % 250));
            }
            // The last policy is the one that allows the measured pods.
            let peers: &[&str] = if i + 1 == policies { &["10.9.0.2", "10.9.0.3"] } else { &["10.9.0.2"] };
            if i + 1 == policies {
                for peer in peers {
                    sets.push_str(&format!("add src{i} {peer}\n"));
                }
            }
            sets.push_str(&format!("add dst{i} 10.9.0.2\nadd dst{i} 10.9.0.3\n"));
            rules.push_str(&format!(":POLICY-{i} -\n"));
        }
        for pod in 2..=3 {
            rules.push_str(&format!(
                "-A FORWARD -d 10.9.0.{pod} -j POD-{pod}\n-A FORWARD -s 10.9.0.{pod} -j POD-{pod}\n"
            ));
            rules.push_str(&format!("-A POD-{pod} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"));
            rules.push_str(&format!("-A POD-{pod} -d 10.9.0.{pod} -m addrtype --src-type LOCAL -j ACCEPT\n"));
            for i in 0..policies {
                rules.push_str(&format!("-A POD-{pod} -j POLICY-{i}\n"));
            }
            rules.push_str(&format!("-A POD-{pod} -m mark ! --mark 0x10000/0x10000 -j REJECT\n-A POD-{pod} -j MARK --set-mark 0x0/0x10000\n"));
        }
        let (low, high) = (PORTS.start(), PORTS.end());
        for i in 0..policies {
            let sets = format!("-m set --match-set src{i} src -m set --match-set dst{i} dst");
            for protocol in ["tcp", "udp"] {
                rules.push_str(&format!("-A POLICY-{i} {sets} -p {protocol} --dport {low}:{high} -j MARK --set-xmark 0x10000/0x10000\n"));
            }
            rules.push_str(&format!("-A POLICY-{i} -m mark --mark 0x10000/0x10000 -j RETURN\n"));
        }
        rules.push_str("COMMIT\n");
        feed(&node, "ipset", &["restore"], sets).await?;
        feed(&node, "iptables-legacy-restore", &[], rules).await?;
        Ok(ground.with_node(node))
    }

    /// nftables: a map from pod to chain, sets of peers.
    pub(crate) async fn nftables(policies: usize) -> Result<Self> {
        let (ground, node) = Self::routed(&format!("nftables sets, {policies} policies")).await?;
        let (low, high) = (PORTS.start(), PORTS.end());
        let mut rules = String::from("table ip pods {\n");
        for i in 0..policies {
            let allowed = if i + 1 == policies { ", 10.9.0.2, 10.9.0.3" } else { "" };
            let filler: Vec<String> = (0..10).map(|k| format!("10.7.{}.{k}", i % 250)).collect();
            rules.push_str(&format!(
                "set src{i} {{ type ipv4_addr; elements = {{ {}{allowed} }}; }}\n",
                filler.join(", ")
            ));
        }
        for pod in 2..=3 {
            rules.push_str(&format!("chain pod{pod} {{\n"));
            for i in 0..policies {
                rules.push_str(&format!(
                    "ip saddr @src{i} meta l4proto {{ tcp, udp }} th dport {low}-{high} accept\n"
                ));
            }
            rules.push_str("drop\n}\n");
        }
        rules.push_str(
            "chain forward { type filter hook forward priority 0; policy accept;\nct state established,related accept\n\
             ip daddr vmap { 10.9.0.2 : jump pod2, 10.9.0.3 : jump pod3 }\n\
             ip saddr vmap { 10.9.0.2 : jump pod2, 10.9.0.3 : jump pod3 }\n}\n}\n",
        );
        feed(&node, "nft", &["-f", "-"], rules).await?;
        Ok(ground.with_node(node))
    }

    /// Fairlead with this many policies in force, [`SELECTING`] of which select the measured pods.
    pub(crate) async fn fairlead(policies: usize, fast_path: bool) -> Result<Self> {
        let objects = [
            world::node(NODE, &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
            world::namespace(NAMESPACE, json!({})),
        ];
        let flags: &[&str] = if fast_path { &[] } else { &["--fast-path=false"] };
        let mut cluster = Cluster::start(&objects, flags).await?;
        let all: Vec<Value> = (0..policies).map(policy).collect();
        for (i, some) in all.chunks(TO_A_FILE).enumerate() {
            cluster.world().write(&format!("policies-{i}.yaml"), some)?;
        }
        for name in ["client", "server"] {
            let mut pod = world::pod(NAMESPACE, name, NODE, &[*PORTS.start()]);
            pod["metadata"]["labels"]["measured"] = "yes".into();
            cluster.apply(&pod)?;
            cluster.wire(NAMESPACE, name).await?;
        }
        await_policies(&cluster, policies).await?;
        cluster.await_isolation(|_| (true, true)).await?;
        let pod = cluster.pod("server")?;
        let (server, address) = (Server::start(&pod.namespace).await?, pod.address(false)?);
        let way = if fast_path { "" } else { ", fast path off" };
        let name = format!("Fairlead{way}, {policies} {}", if policies == 1 { "policy" } else { "policies" });
        Ok(Self { name, server, way: Way::Fairlead(Box::new(cluster)), address })
    }
}

/// The first [`SELECTING`] select the measured pods; all allow them to each other, and something else.
fn policy(number: usize) -> Value {
    let selected = if number < SELECTING {
        json!({"matchLabels": {"measured": "yes"}})
    } else {
        json!({"matchLabels": {"app": format!("app-{}", number % 1000)}})
    };
    let measured = json!({"podSelector": {"matchLabels": {"measured": "yes"}}});
    let block =
        json!({"ipBlock": {"cidr": format!("10.{}.{}.0/24", 100 + number / 250 % 100, number % 250)}});
    let ports = json!([
        {"protocol": "TCP", "port": PORTS.start(), "endPort": PORTS.end()},
        {"protocol": "UDP", "port": PORTS.start(), "endPort": PORTS.end()},
    ]);
    world::policy(
        NAMESPACE,
        &format!("policy-{number}"),
        json!({
            "podSelector": selected, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [measured, block], "ports": ports}],
            "egress": [{"to": [measured, block], "ports": ports}],
        }),
    )
}

/// Commands of `ip`, in a namespace.
pub(crate) async fn script(namespace: &Namespace, lines: String) -> Result<()> {
    feed(namespace, "ip", &["-batch", "-"], lines).await
}

/// Runs a program in a namespace with this standard input.
pub(crate) async fn feed(
    namespace: &Namespace,
    program: &'static str,
    arguments: &'static [&'static str],
    input: String,
) -> Result<()> {
    namespace
        .run(move || {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot run {program}"))?;
            child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
            let status = child.wait()?;
            ensure!(status.success(), "{program}: {status}");
            Ok(())
        })
        .await?
}
