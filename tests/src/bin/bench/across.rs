//! Two pods on two nodes, in each mode of routing, beside the same way without policy.

mod ground;

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Settings;
use crate::datapath::load::{Kind, measure};
use crate::report::{Figure, Report, table};
use crate::stats::{Samples, ratio_told, ratios};
use ground::{Fabric, Ground};

/// What is measured: its stable name, what it is, and how.
const LOADS: [(&str, &str, Kind); 5] = [
    ("tcp_rr", "TCP_RR", Kind::TcpRr),
    ("crr", "CRR", Kind::Crr),
    ("udp_rr", "UDP_RR", Kind::UdpRr),
    ("udp", "UDP packets/s", Kind::UdpRate(1)),
    ("stream", "stream, bytes/s", Kind::Stream),
];
/// Places of the ways in what [`grounds`] makes, for each fabric: the two without policy, and Fairlead's two.
const PLAIN: usize = 0;
const MASQUERADE: usize = 1;
const STRAIGHT: usize = 2;
const STACK: usize = 3;
const WAYS: usize = 4;
/// What Fairlead's ways are held against: the ways' places and words for them, and the least ratio.
const TARGETS: [(usize, usize, &str, f64); 3] = [
    (STRAIGHT, PLAIN, "fast_path_vs_plain", 1.0),
    (STACK, PLAIN, "stack_vs_plain", 0.97),
    (STACK, MASQUERADE, "stack_vs_masquerade", 0.97),
];

/// Rates and processor times, round by round.
#[derive(Clone, Default)]
struct Rates {
    rate: Vec<f64>,
    cpu: Vec<f64>,
}

async fn grounds() -> Result<Vec<Ground>> {
    let mut grounds = Vec::new();
    for fabric in Fabric::ALL {
        grounds.push(Ground::plain(fabric, false).await?);
        grounds.push(Ground::plain(fabric, true).await?);
        grounds.push(Ground::fairlead(fabric, true).await?);
        grounds.push(Ground::fairlead(fabric, false).await?);
    }
    Ok(grounds)
}

pub(crate) async fn run(settings: &Settings) -> Result<Report> {
    let rounds = settings.rounds.unwrap_or(if settings.full { 60 } else { 40 }) as usize;
    let time = Duration::from_millis(if settings.full { 60 } else { 40 });
    let grounds = grounds().await?;
    let mut rates = vec![vec![Rates::default(); LOADS.len()]; grounds.len()];
    for round in 0..rounds {
        for (i, (_, what, kind)) in LOADS.into_iter().enumerate() {
            for turn in 0..grounds.len() {
                let who = (round + turn) % grounds.len();
                let ground = &grounds[who];
                let rate = measure(kind, 1, time, ground.client()?, ground.address(), &ground.server)
                    .await
                    .with_context(|| format!("{}, {what}", ground.name))?;
                rates[who][i].rate.push(rate.per_second);
                rates[who][i].cpu.push(rate.cpu_us);
            }
        }
    }
    report(&grounds, &rates)
}

fn report(grounds: &[Ground], rates: &[Vec<Rates>]) -> Result<Report> {
    let mut report = Report::default();
    for (n, fabric) in Fabric::ALL.into_iter().enumerate() {
        let base = n * WAYS;
        for (i, (name, _, _)) in LOADS.into_iter().enumerate() {
            for (way, beside, words, target) in TARGETS {
                let other = &rates[base + beside][i].rate;
                let ratio = ratios(&rates[base + way][i].rate, other)?.median();
                let told = format!(
                    "{}, {:.0}/s",
                    grounds[base + beside].name,
                    Samples::new(other.clone())?.median()
                );
                let name = format!("across.{}.{name}.{words}", fabric.name());
                report.figures.push(Figure::new(name, ratio, "ratio").beside(told).at_least(target));
            }
        }
    }
    let mut head = vec!["of the same way without policy"];
    head.extend(LOADS.map(|(_, what, _)| what));
    let (mut rows, mut cpu) = (Vec::new(), Vec::new());
    for (who, ground) in grounds.iter().enumerate() {
        let base = who / WAYS * WAYS;
        let (mut row, mut times) = (vec![ground.name.clone()], vec![ground.name.clone()]);
        for (own, plain) in rates[who].iter().zip(&rates[base]) {
            row.push(if who == base {
                format!("{:.0}/s", Samples::new(own.rate.clone())?.median())
            } else {
                ratio_told(&ratios(&own.rate, &plain.rate)?)
            });
        }
        for i in [0, 1, 3] {
            times.push(Samples::new(rates[who][i].cpu.clone())?.told(2));
        }
        rows.push(row);
        cpu.push(times);
    }
    report.text = format!(
        "Two pods on two nodes of one L2 (namespaces, a veth to a bridge each), IPv4, {} rounds, every way in turn\n\
         for each load. Without policy: routes of the kernel alone, and a VXLAN device of the kernel's with a fixed far\n\
         end; the same with masquerade for what leaves the cluster, which tracks connections and without which no pod\n\
         reaches the world. With Fairlead: {} policies that select both pods, masquerade on as it ships. Both ends of a single conversation share one core.\n\n{}\n\
         Processor time of the sending thread, which does most of the way's work too:\n\n{}",
        rates[0][0].rate.len(),
        ground::POLICIES,
        table(&head, &rows),
        table(&["µs", "a TCP_RR transaction", "a CRR transaction", "a UDP packet"], &cpu)
    );
    Ok(report)
}
