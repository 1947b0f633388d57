//! What Fairlead does on a real cluster, in numbers: `cargo xtask cluster measure`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is for people")]

mod away;
mod birth;
mod crowd;
mod deny;
mod idle;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;
use fairlead_tests::kubernetes::{Families, Kubernetes, Options, Proxy};

/// Measures Fairlead on a cluster of two real nodes.
#[derive(Parser)]
struct Arguments {
    /// Image of Fairlead.
    #[arg(long)]
    image: PathBuf,
    /// What to measure: start, deny, birth, reach, idle, restart, kill, away; all of it where nothing is named.
    sections: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = async {
        tokio::select! {
            result = measure(&arguments) => result,
            signal = Kubernetes::interrupted() => signal.and_then(|()| bail!("interrupted")),
        }
    };
    match run.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("measure: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let wanted =
        |section: &str| arguments.sections.is_empty() || arguments.sections.iter().any(|s| s == section);
    let options = Options { families: Families::Dual, proxy: Proxy::Iptables };
    if wanted("start") {
        start::ptp(options).await?;
    }
    let mut cluster = Kubernetes::start(options).await?;
    cluster.install(&arguments.image).await?;
    cluster.await_ready().await?;
    if wanted("start") {
        start::fairlead(&cluster).await?;
    }
    if ["deny", "idle", "restart", "kill", "away"].into_iter().any(wanted) {
        crowd::fill(&cluster, "crowd", "web").await?;
    }
    if wanted("deny") {
        deny::measure(&cluster, 0).await?;
        crowd::policies(&cluster, 1000).await?;
        deny::measure(&cluster, 1000).await?;
    }
    if wanted("idle") {
        crowd::policies(&cluster, 1000).await?;
        idle::measure(&cluster).await?;
    }
    if wanted("birth") {
        birth::denied(&cluster).await?;
    }
    if wanted("reach") {
        birth::allowed(&cluster).await?;
    }
    if wanted("restart") {
        away::restart(&cluster).await?;
    }
    if wanted("kill") {
        away::kill(&cluster).await?;
    }
    if wanted("away") {
        away::no_server(&mut cluster).await?;
    }
    unanswered(&cluster).await
}

/// Says how often a kubelet has restarted an agent because it did not answer a probe in time.
async fn unanswered(cluster: &Kubernetes) -> Result<()> {
    let events = cluster.get(&["events", "-n", "fairlead"]).await?;
    let probes = ["failed liveness probe", "failed startup probe"];
    let of_probes = events["items"].as_array().into_iter().flatten().filter(|event| {
        let message = event["message"].as_str().unwrap_or_default();
        event["reason"] == "Killing" && probes.iter().any(|probe| message.contains(probe))
    });
    let count: u64 = of_probes.map(|event| event["count"].as_u64().unwrap_or(1)).sum();
    println!("agents restarted because a probe was not answered: {count}");
    Ok(())
}

/// Median and worst of durations, in milliseconds.
fn summary(mut all: Vec<Duration>) -> String {
    all.sort();
    let at = |i: usize| all.get(i).map_or(0.0, |d| d.as_secs_f64() * 1e3);
    format!(
        "median {:.1} ms, worst {:.1} ms, of {}",
        at(all.len() / 2),
        at(all.len().saturating_sub(1)),
        all.len()
    )
}
