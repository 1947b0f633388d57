//! Two pods of one node, by every way between them: request/response, connections, packets, bytes.

pub(crate) mod ground;
pub(crate) mod load;

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Settings;
use crate::plot::{self, Bar, Group, Limit};
use crate::report::{Figure, Report, table};
use crate::stats::{Samples, ratio_told, ratios};
use ground::Ground;
use load::{Kind, measure};

/// A load: what is measured, how, and over how many connections.
struct Load {
    /// Stable.
    name: &'static str,
    /// For people.
    what: &'static str,
    kind: Kind,
    connections: usize,
    /// Whether the short run measures it too.
    quick: bool,
}

const fn load(name: &'static str, what: &'static str, kind: Kind, connections: usize, quick: bool) -> Load {
    Load { name, what, kind, connections, quick }
}

const LOADS: [Load; 11] = [
    load("tcp_rr", "TCP_RR", Kind::TcpRr, 1, true),
    load("crr", "CRR", Kind::Crr, 1, true),
    load("udp_rr", "UDP_RR", Kind::UdpRr, 1, true),
    load("udp", "UDP packets/s", Kind::UdpRate(1), 1, true),
    load("udp_cold", "the same, 1,000 flows in turn", Kind::UdpRate(1000), 1, true),
    load("stream", "stream, bytes/s", Kind::Stream, 1, true),
    load("tcp_rr_64", "TCP_RR, 64 connections", Kind::TcpRr, 64, true),
    load("crr_64", "CRR, 64 clients", Kind::Crr, 64, true),
    load("udp_rr_64", "UDP_RR, 64 clients", Kind::UdpRr, 64, false),
    load("udp_64", "UDP packets/s, 64 senders", Kind::UdpRate(1), 64, false),
    load("stream_64", "stream, 64 connections, bytes/s", Kind::Stream, 64, false),
];
/// Places of the ways in what [`grounds`] makes.
const DIRECT: usize = 0;
const PLAIN: usize = 1;
const ONE: usize = 2;
const MANY: usize = 3;
const STACK: usize = 4;
const IPSET: usize = 5;
const NFTABLES: usize = 6;

/// Loads whose processor time is told.
const WITH_CPU: [(&str, &str); 3] =
    [("tcp_rr", "a TCP_RR transaction"), ("crr", "a CRR transaction"), ("udp", "a UDP packet")];
/// Loads that are in the picture.
const PICTURED: [&str; 4] = ["tcp_rr", "crr", "udp_rr", "udp"];
/// Policies in force where there are many.
const MANY_POLICIES: usize = 10_000;

/// Rates and processor times, round by round.
#[derive(Clone, Default)]
struct Rates {
    rate: Vec<f64>,
    cpu: Vec<f64>,
}

async fn grounds(settings: &Settings) -> Result<Vec<Ground>> {
    let mut grounds = vec![
        Ground::direct().await?,
        Ground::plain().await?,
        Ground::fairlead(1, true).await?,
        Ground::fairlead(MANY_POLICIES, true).await?,
        Ground::fairlead(MANY_POLICIES, false).await?,
        Ground::ipset(100).await?,
        Ground::nftables(100).await?,
    ];
    if settings.full {
        grounds.push(Ground::fairlead(100, true).await?);
        grounds.push(Ground::ipset(1).await?);
        grounds.push(Ground::nftables(1).await?);
    }
    Ok(grounds)
}

pub(crate) async fn run(settings: &Settings) -> Result<Report> {
    // Many short rounds: what comes and goes on the machine then meets all ways alike.
    let rounds = settings.rounds.unwrap_or(if settings.full { 60 } else { 40 }) as usize;
    let time = Duration::from_millis(if settings.full { 60 } else { 40 });
    let loads: Vec<&Load> = LOADS.iter().filter(|l| l.quick || settings.full).collect();
    let grounds = grounds(settings).await?;
    let mut rates = vec![vec![Rates::default(); loads.len()]; grounds.len()];
    for round in 0..rounds {
        for (i, load) in loads.iter().enumerate() {
            for turn in 0..grounds.len() {
                let who = (round + turn) % grounds.len();
                let ground = &grounds[who];
                let (client, to) = (ground.client()?, ground.address());
                // Many share the processors with the one that receives: its turn must come.
                let time = if load.connections > 1 { 4 * time } else { time };
                let rate = measure(load.kind, load.connections, time, client, to, &ground.server)
                    .await
                    .with_context(|| format!("{}, {}", ground.name, load.what))?;
                rates[who][i].rate.push(rate.per_second);
                rates[who][i].cpu.push(rate.cpu_us);
            }
        }
    }
    report(&grounds, &loads, &rates)
}

fn report(grounds: &[Ground], loads: &[&Load], rates: &[Vec<Rates>]) -> Result<Report> {
    let mut report = Report::default();
    let targets = [
        ("tcp_rr", DIRECT, 0.95),
        ("udp", DIRECT, 0.92),
        ("crr", DIRECT, 0.88),
        ("tcp_rr", PLAIN, 1.10),
        ("udp_rr", PLAIN, 1.10),
        ("udp", PLAIN, 1.10),
        ("crr", PLAIN, 1.0),
    ];
    for (i, load) in loads.iter().enumerate() {
        let name = load.name;
        // Fairlead as it is judged: all policies in force.
        let ours = &rates[MANY][i].rate;
        for (beside, word) in [(DIRECT, "direct"), (PLAIN, "plain")] {
            let theirs = &rates[beside][i].rate;
            let figure = Figure::new(
                format!("datapath.same_node.{name}.vs_{word}"),
                ratios(ours, theirs)?.median(),
                "ratio",
            )
            .beside(format!(
                "{}, {:.0}/s",
                grounds[beside].name,
                Samples::new(theirs.clone())?.median()
            ));
            let target = targets.iter().find(|(of, place, _)| *of == name && *place == beside);
            report.figures.push(match target {
                Some((_, _, target)) => figure.at_least(*target),
                None => figure,
            });
        }
        // Time a transaction: what a thousand times the policies cost.
        let flat = Figure::new(
            format!("datapath.same_node.{name}.10000_policies_vs_1"),
            ratios(&rates[ONE][i].rate, ours)?.median(),
            "ratio",
        )
        .beside(grounds[ONE].name.clone());
        // Many connections run wherever there is room, so that what is measured is the scheduler too.
        report.figures.push(if load.connections == 1 { flat.at_most(1.05) } else { flat });
    }
    report.text = text(grounds, loads, rates)?;
    report.plots.push(("datapath.svg".to_owned(), picture(grounds, loads, rates)?));
    Ok(report)
}

fn text(grounds: &[Ground], loads: &[&Load], rates: &[Vec<Rates>]) -> Result<String> {
    let mut head = vec!["of direct veth"];
    head.extend(grounds.iter().map(|g| g.name.as_str()));
    let mut rows = Vec::new();
    for (i, load) in loads.iter().enumerate() {
        let mut row = vec![load.what.to_owned()];
        for (who, own) in rates.iter().enumerate() {
            row.push(if who == DIRECT {
                format!("{:.0}/s", Samples::new(own[i].rate.clone())?.median())
            } else {
                ratio_told(&ratios(&own[i].rate, &rates[DIRECT][i].rate)?)
            });
        }
        rows.push(row);
    }
    let mut cpu_head = vec!["µs"];
    cpu_head.extend(&head[1..]);
    let mut cpu = Vec::new();
    for (i, load) in loads.iter().enumerate() {
        let Some((_, of)) = WITH_CPU.iter().find(|(name, _)| *name == load.name) else { continue };
        let mut row = vec![(*of).to_owned()];
        for own in rates {
            let samples = Samples::new(own[i].cpu.clone())?;
            row.push(format!(
                "{:.2} ({:.2}–{:.2})",
                samples.median(),
                samples.quantile(0.25),
                samples.quantile(0.75)
            ));
        }
        cpu.push(row);
    }
    Ok(format!(
        "Two pods on one node, IPv4, with what Fairlead ships as defaults; {} rounds, in each of which every way has\n\
         its turn at every load. Of {MANY_POLICIES} policies in force {} select the measured pods. iptables and nftables hold only\n\
         the policies that select the pods, as kube-router does, and the rules of these two pods alone, where a node has\n\
         a hundred. The two ends of a single conversation share one core, so what is compared is the work for each\n\
         packet and not the scheduler's choice; one-way traffic is sent from one core and received on another; 64\n\
         connections run wherever there is room. A thousand flows in turn find what is known of each out of the first\n\
         caches. The threads that measure have the highest priority.\n\n\
         ![Two pods of a node](img/datapath.svg)\n\n{}\n\
         Processor time of the sending thread, which on a veth does most of the receiver's work too:\n\n{}",
        rates[0][0].rate.len(),
        ground::SELECTING,
        table(&head, &rows),
        table(&cpu_head, &cpu)
    ))
}

/// What matters most, beside the others.
fn picture(grounds: &[Ground], loads: &[&Load], rates: &[Vec<Rates>]) -> Result<String> {
    let mut groups = Vec::new();
    for (i, load) in loads.iter().enumerate().filter(|(_, l)| PICTURED.contains(&l.name)) {
        let mut bars = Vec::new();
        for who in [MANY, STACK, PLAIN, IPSET, NFTABLES] {
            let samples = ratios(&rates[who][i].rate, &rates[DIRECT][i].rate)?;
            bars.push(Bar {
                label: grounds[who].name.clone(),
                value: samples.median(),
                spread: (samples.quantile(0.25), samples.quantile(0.75)),
                ours: matches!(who, MANY | STACK),
            });
        }
        groups.push(Group { heading: load.what.to_owned(), bars });
    }
    let limit = Limit { value: 1.0, label: "one veth pair, nothing between: the limit" };
    Ok(plot::groups("Two pods on one node: longer is better", "", Some(&limit), &groups))
}
