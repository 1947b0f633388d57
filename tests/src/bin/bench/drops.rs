//! What a denied packet costs that reaches a node by its uplink: XDP, tc, and nftables' ingress hook.

mod wire;

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::fabric;
use fairlead_tests::namespace::{Namespace, sysctl};
use fairlead_tests::world;
use serde_json::json;

use crate::Settings;
use crate::datapath::ground::feed;
use crate::report::{Figure, Report, table};
use crate::stats::{Samples, ratio_told, ratios};
use wire::{PAYLOAD, Wire};

const NODE: &str = "node-a";
const NAMESPACE: &str = "bench";
const PORT: u16 = 7003;
/// Addresses in the set of nftables, and policies that select the pod.
const POLICIES: usize = 100;
/// Of the packets sent, those that must have been dropped where they are meant to.
const DROPPED: f64 = 0.95;
/// How Fairlead is told to drop: its setting, what that is, and its part in a figure's name.
const WAYS: [(&str, &str, &str); 3] = [
    ("native", "Fairlead, XDP in the driver (veth's)", "xdp_native"),
    ("generic", "Fairlead, generic XDP", "xdp_generic"),
    ("off", "Fairlead, tc behind the host's stack", "tc"),
];

/// The ground beside which the others are.
const NFTABLES: &str = "nftables, ingress hook";

/// A node that drops what somebody outside sends.
enum Ground {
    Nftables { l2: Namespace, node: Namespace, wire: Wire },
    Fairlead(Box<Cluster>, Wire, &'static str),
}

impl Ground {
    /// A set of denied addresses at the earliest hook.
    async fn nftables() -> Result<Self> {
        let l2 = fabric::bridge("n-fabric").await?;
        let node = Namespace::new("n-node").await?;
        fabric::connect(&l2, &node, &["172.20.0.2/24".parse()?]).await?;
        node.run(|| sysctl("ipv4/ip_forward", "1")).await??;
        let elements: Vec<String> = (2..=POLICIES + 1).map(|i| format!("10.9.2.{i}")).collect();
        let rules = format!(
            "table netdev drops {{\nset denied {{ type ipv4_addr; elements = {{ {} }}; }}\ncounter dropped {{ }}\n\
             chain ingress {{ type filter hook ingress device eth0 priority 0; policy accept;\n\
             ip daddr @denied udp dport {PORT} counter name dropped drop\n}}\n}}\n",
            elements.join(", ")
        );
        feed(&node, "nft", &["-f", "-"], rules).await?;
        let wire = Wire::of(&node).await?;
        Ok(Self::Nftables { l2, node, wire })
    }

    /// A pod that policies close.
    async fn fairlead(xdp: &str, name: &'static str) -> Result<Self> {
        let objects = [
            world::node(NODE, &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
            world::namespace(NAMESPACE, json!({})),
        ];
        let mut cluster = Cluster::start(&objects, &["--routing", "direct", "--xdp", xdp]).await?;
        let policies: Vec<_> = (0..POLICIES)
            .map(|number| {
                let block = json!({"ipBlock": {"cidr": format!("10.100.{number}.0/24")}});
                let spec = json!({
                    "podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [block]}],
                });
                world::policy(NAMESPACE, &format!("policy-{number}"), spec)
            })
            .collect();
        cluster.world().write("policies.yaml", &policies)?;
        cluster.apply(&world::pod(NAMESPACE, "closed", NODE, &[PORT]))?;
        cluster.wire(NAMESPACE, "closed").await?;
        cluster.await_isolation(|_| (true, true)).await?;
        let wire = Wire::of(&cluster.node(NODE)?.namespace).await?;
        Ok(Self::Fairlead(Box::new(cluster), wire, name))
    }

    /// What it is, for people.
    fn name(&self) -> &str {
        match self {
            Self::Nftables { .. } => NFTABLES,
            Self::Fairlead(_, _, name) => name,
        }
    }

    /// Where its frames come from.
    fn wire(&self) -> (&Namespace, &Wire) {
        match self {
            Self::Nftables { l2, wire, .. } => (l2, wire),
            Self::Fairlead(cluster, wire, _) => (cluster.fabric(), wire),
        }
    }

    fn address(&self) -> Result<IpAddr> {
        match self {
            Self::Nftables { .. } => Ok([10, 9, 2, 2].into()),
            Self::Fairlead(cluster, ..) => cluster.pod("closed")?.address(false),
        }
    }

    /// Packets that were dropped where they are meant to be.
    async fn dropped(&self) -> Result<u64> {
        match self {
            Self::Nftables { node, .. } => {
                let list = || Command::new("nft").args(["-j", "list", "counters"]).output();
                let listed: serde_json::Value = serde_json::from_slice(&node.run(list).await??.stdout)?;
                let objects = listed["nftables"].as_array().context("nft lists nothing")?;
                let packets = objects.iter().find_map(|object| object["counter"]["packets"].as_u64());
                packets.context("nft lists no counter")
            }
            Self::Fairlead(cluster, ..) => {
                let endpoints = cluster.node(NODE)?.endpoints().await?;
                Ok(endpoints.iter().flat_map(|e| e.counters.ingress.drops.values()).sum())
            }
        }
    }

    /// Sends for this long, and counts what was dropped.
    async fn measure(&self, time: Duration, rates: &mut Vec<f64>) -> Result<()> {
        let (before, to) = (self.dropped().await?, self.address()?);
        let (l2, wire) = self.wire();
        let (sent, took) = wire.send(l2, to, PORT, time).await?;
        let dropped = self.dropped().await? - before;
        ensure!(
            dropped as f64 >= sent as f64 * DROPPED,
            "{}: of {sent} packets {dropped} were dropped",
            self.name()
        );
        rates.push(dropped as f64 / took.as_secs_f64());
        Ok(())
    }
}

pub(crate) async fn run(settings: &Settings) -> Result<Report> {
    let rounds = settings.rounds.unwrap_or(if settings.full { 60 } else { 40 }) as usize;
    let time = Duration::from_millis(if settings.full { 100 } else { 40 });
    let mut grounds = vec![Ground::nftables().await?];
    for (xdp, name, _) in WAYS {
        grounds.push(Ground::fairlead(xdp, name).await?);
    }
    let mut rates = vec![Vec::new(); grounds.len()];
    for round in 0..rounds {
        for turn in 0..grounds.len() {
            let who = (round + turn) % grounds.len();
            grounds[who].measure(time, &mut rates[who]).await?;
        }
    }
    report(&rates)
}

/// Time of a packet.
fn nanoseconds(rates: &[f64]) -> Result<String> {
    Ok(Samples::new(rates.iter().map(|rate| 1e9 / rate).collect())?.told(0))
}

fn report(rates: &[Vec<f64>]) -> Result<Report> {
    let mut report = Report::default();
    let [beside, ours @ ..] = rates else { anyhow::bail!("nothing was measured") };
    let theirs = Samples::new(beside.clone())?.median();
    let baseline = format!("nftables' ingress hook, {theirs:.0}/s");
    let mut rows =
        vec![vec!["nftables, ingress hook".to_owned(), format!("{theirs:.0}/s"), nanoseconds(beside)?]];
    let mut best = 0.0_f64;
    for ((_, what, word), own) in WAYS.into_iter().zip(ours) {
        let ratio = ratios(own, beside)?;
        best = best.max(ratio.median());
        report.figures.push(
            Figure::new(format!("drops.{word}.vs_nftables"), ratio.median(), "ratio")
                .beside(baseline.clone()),
        );
        rows.push(vec![what.to_owned(), ratio_told(&ratio), nanoseconds(own)?]);
    }
    report.figures.push(Figure::new("drops.best.vs_nftables", best, "ratio").beside(baseline).at_least(1.1));
    report.text = format!(
        "Datagrams of {PAYLOAD} bytes from outside to a pod that may not get them, {} rounds of each in turn. The kernel makes\n\
         them as frames without a socket buffer (a program of XDP that redirects into a veth), so that the other end has them\n\
         as a NIC's driver has. Making, receiving and dropping share one processor. nftables: one set of {POLICIES} addresses\n\
         at the earliest hook, without state. Fairlead: {POLICIES} policies, its flows and its counters. tc drops what is denied\n\
         behind the host's stack, where it is sure that no translation makes something else of it.\n\n{}",
        beside.len(),
        table(&["", "dropped, of nftables'", "ns a packet"], &rows)
    );
    Ok(report)
}
