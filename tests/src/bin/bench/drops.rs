//! What a denied packet costs that reaches a node by its uplink: XDP, tc, and nftables' ingress hook.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::fabric;
use fairlead_tests::namespace::{Namespace, sysctl};
use fairlead_tests::world;
use serde_json::json;

use crate::Settings;
use crate::datapath::ground::{feed, script};
use crate::datapath::load::{BURST, HERE, PAYLOAD, processor, thread};
use crate::report::{Figure, Report, table};
use crate::stats::{Samples, ratio_told, ratios};

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

/// A node that drops what somebody outside sends.
enum Ground {
    Nftables { sender: Namespace, node: Namespace, _l2: Namespace },
    Fairlead(Box<Cluster>),
}

/// Rates of packets dropped, and processor time of each, round by round.
#[derive(Default)]
struct Rates {
    rate: Vec<f64>,
    cpu: Vec<f64>,
}

impl Ground {
    /// A set of denied addresses at the earliest hook.
    async fn nftables() -> Result<Self> {
        let l2 = fabric::bridge("n-fabric").await?;
        let (sender, node) = (Namespace::new("n-sender").await?, Namespace::new("n-node").await?);
        for (namespace, own) in [(&sender, 1), (&node, 2)] {
            fabric::connect(&l2, namespace, &[format!("172.20.0.{own}/24").parse()?]).await?;
        }
        node.run(|| sysctl("ipv4/ip_forward", "1")).await??;
        script(&sender, "route add 10.9.2.0/24 via 172.20.0.2\n".to_owned()).await?;
        let elements: Vec<String> = (2..=POLICIES + 1).map(|i| format!("10.9.2.{i}")).collect();
        let rules = format!(
            "table netdev drops {{\nset denied {{ type ipv4_addr; elements = {{ {} }}; }}\ncounter dropped {{ }}\n\
             chain ingress {{ type filter hook ingress device eth0 priority 0; policy accept;\n\
             ip daddr @denied udp dport {PORT} counter name dropped drop\n}}\n}}\n",
            elements.join(", ")
        );
        feed(&node, "nft", &["-f", "-"], rules).await?;
        Ok(Self::Nftables { sender, node, _l2: l2 })
    }

    /// A pod that policies close.
    async fn fairlead(xdp: &str) -> Result<Self> {
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
        Ok(Self::Fairlead(Box::new(cluster)))
    }

    fn sender(&self) -> Result<&Namespace> {
        match self {
            Self::Nftables { sender, .. } => Ok(sender),
            // It knows the way, and does nothing but send.
            Self::Fairlead(cluster) => Ok(cluster.outside()),
        }
    }

    fn address(&self) -> Result<IpAddr> {
        match self {
            Self::Nftables { .. } => Ok([10, 9, 2, 2].into()),
            Self::Fairlead(cluster) => cluster.pod("closed")?.address(false),
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
            Self::Fairlead(cluster) => {
                let endpoints = cluster.node(NODE)?.endpoints().await?;
                Ok(endpoints.iter().flat_map(|e| e.counters.ingress.drops.values()).sum())
            }
        }
    }

    /// Sends for this long, and counts what was dropped.
    async fn measure(&self, time: Duration, rates: &mut Rates) -> Result<()> {
        let (before, to) = (self.dropped().await?, self.address()?);
        let work = move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.connect((to, PORT))?;
            let (begin, cpu, mut sent) = (Instant::now(), processor()?, 0);
            while begin.elapsed() < time {
                for _ in 0..BURST {
                    socket.send(&[0; PAYLOAD])?;
                }
                sent += BURST as u64;
            }
            Ok((sent, begin.elapsed(), processor()? - cpu))
        };
        let join = move || thread(Some(HERE), work).join();
        let (sent, took, cpu) =
            self.sender()?.run(join).await?.map_err(|_| anyhow::anyhow!("the sender died"))??;
        let dropped = self.dropped().await? - before;
        ensure!(dropped as f64 >= sent as f64 * DROPPED, "of {sent} packets {dropped} were dropped");
        rates.rate.push(dropped as f64 / took.as_secs_f64());
        rates.cpu.push(cpu.as_secs_f64() * 1e9 / dropped as f64);
        Ok(())
    }
}

pub(crate) async fn run(settings: &Settings) -> Result<Report> {
    let rounds = settings.rounds.unwrap_or(if settings.full { 100 } else { 40 }) as usize;
    let time = Duration::from_millis(if settings.full { 100 } else { 40 });
    let mut grounds = vec![Ground::nftables().await?];
    for (xdp, ..) in WAYS {
        grounds.push(Ground::fairlead(xdp).await?);
    }
    let mut rates: Vec<Rates> = grounds.iter().map(|_| Rates::default()).collect();
    for round in 0..rounds {
        for turn in 0..grounds.len() {
            let who = (round + turn) % grounds.len();
            grounds[who].measure(time, &mut rates[who]).await?;
        }
    }
    report(&rates)
}

fn report(rates: &[Rates]) -> Result<Report> {
    let mut report = Report::default();
    let [beside, ours @ ..] = rates else { anyhow::bail!("nothing was measured") };
    let theirs = Samples::new(beside.rate.clone())?.median();
    let baseline = format!("nftables' ingress hook, {theirs:.0}/s");
    let mut rows = vec![vec![
        "nftables, ingress hook".to_owned(),
        format!("{theirs:.0}/s"),
        Samples::new(beside.cpu.clone())?.told(0),
    ]];
    let mut best = 0.0_f64;
    for ((_, what, word), own) in WAYS.into_iter().zip(ours) {
        let ratio = ratios(&own.rate, &beside.rate)?;
        best = best.max(ratio.median());
        report.figures.push(
            Figure::new(format!("drops.{word}.vs_nftables"), ratio.median(), "ratio")
                .beside(baseline.clone()),
        );
        rows.push(vec![what.to_owned(), ratio_told(&ratio), Samples::new(own.cpu.clone())?.told(0)]);
    }
    report.figures.push(Figure::new("drops.best.vs_nftables", best, "ratio").beside(baseline).at_least(1.1));
    report.text = format!(
        "Datagrams of {PAYLOAD} bytes from outside to a pod that may not get them, over a bridge and veths, {} rounds of\n\
         each in turn. Sending and dropping share one processor, so that the time is that of both. nftables: one set of {POLICIES}\n\
         addresses at the earliest hook, without state. Fairlead: {POLICIES} policies, its flows and its counters. tc drops\n\
         what is denied behind the host's stack, where it is sure that no translation makes something else of it.\n\n{}",
        beside.rate.len(),
        table(&["", "dropped, of nftables'", "processor time, ns a packet"], &rows)
    );
    Ok(report)
}
