//! How long an agent takes from its start until it is ready.

use std::time::Instant;

use anyhow::Result;

use crate::Settings;
use crate::population::{self, NODE, Population};
use crate::report::{Figure, Report, table};
use crate::stats::Samples;

/// Pods on the node.
const ENDPOINTS: usize = 110;
/// Milliseconds that it may take.
const TARGET: f64 = 2000.0;
/// Each is started in turn; the last one is judged.
const WORLDS: [Population; 3] = [
    Population { pods: 0, policies: 0 },
    Population { pods: 10_000, policies: 0 },
    Population { pods: 10_000, policies: 10_000 },
];

pub(crate) async fn run(settings: &Settings) -> Result<Report> {
    let rounds = settings.rounds.unwrap_or(if settings.full { 10 } else { 5 });
    let mut cluster = population::node_with_pods(WORLDS[0], ENDPOINTS).await?;
    let mut times = vec![Vec::new(); WORLDS.len()];
    for _ in 0..rounds {
        for (world, times) in WORLDS.iter().zip(&mut times) {
            cluster.kill_agent(NODE)?;
            world.write(cluster.world())?;
            let start = Instant::now();
            cluster.start_agent(NODE).await?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            // Ready means in force; that it was this world is looked at apart.
            population::await_policies(&cluster, world.policies).await?;
        }
    }
    cluster.stop().await?;
    let mut report = Report::default();
    let mut rows = Vec::new();
    for (world, times) in WORLDS.iter().zip(times) {
        let samples = Samples::new(times)?;
        let name = format!("start.ready_ms.{}_pods_{}_policies", world.pods, world.policies);
        let figure = Figure::new(name, samples.median(), "ms");
        let judged = *world == WORLDS[WORLDS.len() - 1];
        let figure = if judged { figure.at_most(TARGET) } else { figure };
        rows.push(vec![
            format!("{} pods, {} policies in the cluster", world.pods, world.policies),
            samples.told(0),
            if judged { format!("≤ {TARGET}") } else { String::new() },
            figure.verdict().to_owned(),
        ]);
        report.figures.push(figure);
    }
    report.text = format!(
        "An agent that was killed is started again on a node with {ENDPOINTS} wired pods, from the start of the process\n\
         until `/readyz` says yes (looked at every 5 ms): programs verified and loaded, the world read from a\n\
         directory of manifests, compiled, in force, every endpoint unlocked. {rounds} rounds of all in turn. What is\n\
         in force before stays so meanwhile.\n\n{}",
        table(&["ms", "median (quartiles, min)", "target", ""], &rows)
    );
    Ok(report)
}
