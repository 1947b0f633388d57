//! Two pods of one node, by every way between them: request/response, connections, packets, bytes.

mod ground;
mod load;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::Settings;
use crate::plot::{self, Bar};
use crate::report::{Figure, Report, table};
use crate::stats::{Samples, ratio_told, ratios};
use ground::Ground;
use load::{Kind, measure};

/// What is measured: its stable name, what it is, how, and over how many connections.
const LOADS: [(&str, &str, Kind, usize); 7] = [
    ("tcp_rr", "TCP_RR", Kind::TcpRr, 1),
    ("crr", "CRR", Kind::Crr, 1),
    ("udp_rr", "UDP_RR", Kind::UdpRr, 1),
    ("udp", "UDP packets/s", Kind::UdpRate, 1),
    ("stream", "stream, bytes/s", Kind::Stream, 1),
    ("tcp_rr_64", "TCP_RR, 64 connections", Kind::TcpRr, 64),
    ("crr_64", "CRR, 64 connections", Kind::Crr, 64),
];
/// Places of the ways in what [`grounds`] makes.
const DIRECT: usize = 0;
const PLAIN: usize = 1;
const ONE: usize = 2;
const MANY: usize = 3;
const STACK: usize = 4;

/// Rates and processor times, round by round.
#[derive(Clone, Default)]
struct Rates {
    rate: Vec<f64>,
    cpu: Vec<f64>,
}

pub(crate) fn run(settings: &Settings) -> Result<Report> {
    ensure!(settings.nodes == 1, "between two nodes nothing is measured yet");
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measured(settings))
}

async fn grounds(settings: &Settings) -> Result<Vec<Ground>> {
    let mut grounds = vec![
        Ground::direct().await?,
        Ground::plain().await?,
        Ground::fairlead(1, true).await?,
        Ground::fairlead(10_000, true).await?,
        Ground::fairlead(100, false).await?,
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

async fn measured(settings: &Settings) -> Result<Report> {
    let rounds = settings.rounds.unwrap_or(if settings.full { 30 } else { 7 }) as usize;
    let time = Duration::from_millis(if settings.full { 1000 } else { 200 });
    let grounds = grounds(settings).await?;
    let mut rates = vec![vec![Rates::default(); LOADS.len()]; grounds.len()];
    for round in 0..rounds {
        for (i, (_, _, kind, connections)) in LOADS.into_iter().enumerate() {
            for turn in 0..grounds.len() {
                let who = (round + turn) % grounds.len();
                let ground = &grounds[who];
                let rate =
                    measure(kind, connections, time, ground.client()?, ground.address(), &ground.server)
                        .await?;
                rates[who][i].rate.push(rate.per_second);
                rates[who][i].cpu.push(rate.cpu_us);
            }
        }
    }
    report(&grounds, &rates)
}

fn report(grounds: &[Ground], rates: &[Vec<Rates>]) -> Result<Report> {
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
    for (i, (name, _, _, _)) in LOADS.into_iter().enumerate() {
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
            let target = targets.iter().find(|(load, place, _)| *load == name && *place == beside);
            report.figures.push(match target {
                Some((_, _, target)) => figure.at_least(*target),
                None => figure,
            });
        }
        // Time a transaction: what a thousand times the policies cost.
        report.figures.push(
            Figure::new(
                format!("datapath.same_node.{name}.10000_policies_vs_1"),
                ratios(&rates[ONE][i].rate, ours)?.median(),
                "ratio",
            )
            .beside(grounds[ONE].name.clone())
            .at_most(1.05),
        );
    }
    let mut head = vec!["of direct veth"];
    head.extend(LOADS.map(|(_, what, _, _)| what));
    let mut rows = Vec::new();
    for (who, ground) in grounds.iter().enumerate() {
        let mut row = vec![ground.name.clone()];
        for (own, direct) in rates[who].iter().zip(&rates[DIRECT]) {
            row.push(if who == DIRECT {
                format!("{:.0}/s", Samples::new(own.rate.clone())?.median())
            } else {
                ratio_told(&ratios(&own.rate, &direct.rate)?)
            });
        }
        rows.push(row);
    }
    let mut cpu = Vec::new();
    for (who, ground) in grounds.iter().enumerate() {
        let mut row = vec![ground.name.clone()];
        for (i, (_, _, kind, _)) in LOADS.into_iter().enumerate() {
            if matches!(kind, Kind::UdpRate | Kind::Crr | Kind::TcpRr) && LOADS[i].3 == 1 {
                row.push(Samples::new(rates[who][i].cpu.clone())?.told(2));
            }
        }
        cpu.push(row);
    }
    report.text = format!(
        "Two pods on one node, IPv4, {} rounds, every way in turn for each load. Of {} policies in force {} select\n\
         the measured pods. The two ends of a single conversation share one core, so what is compared is the work\n\
         for each packet and not the scheduler's choice; one-way traffic is sent from one core and received on\n\
         another; 64 connections run wherever there is room.\n\n{}\n\
         Processor time of the sending thread, which on a veth does most of the receiver's work too:\n\n{}\n\
         ![Same node, TCP_RR](img/datapath.svg)\n\n![Same node, UDP](img/datapath-udp.svg)\n",
        rates[0][0].rate.len(),
        10_000,
        ground::SELECTING,
        table(&head, &rows),
        table(&["µs", "a TCP_RR transaction", "a CRR transaction", "a UDP packet"], &cpu)
    );
    for (file, load, title) in [
        ("datapath.svg", 0, "TCP_RR between two pods of a node, of a direct veth; longer is better"),
        (
            "datapath-udp.svg",
            3,
            "UDP packets/s between two pods of a node, of a direct veth; longer is better",
        ),
    ] {
        let mut bars = Vec::new();
        for (who, ground) in grounds.iter().enumerate() {
            let samples = ratios(&rates[who][load].rate, &rates[DIRECT][load].rate)?;
            bars.push(Bar {
                label: ground.name.clone(),
                value: samples.median(),
                spread: (samples.quantile(0.25), samples.quantile(0.75)),
                ours: matches!(who, ONE | MANY | STACK) || who > 6 && ground.name.starts_with("Fairlead"),
            });
        }
        report.plots.push((file.to_owned(), plot::bars(title, "", &bars)));
    }
    Ok(report)
}
