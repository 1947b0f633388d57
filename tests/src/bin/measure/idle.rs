//! What the agents cost while nothing changes.

use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_tests::kubernetes::Kubernetes;

/// Time that is looked at.
const WINDOW: Duration = Duration::from_secs(60);

/// Process id of the agent on each node.
pub(crate) fn agents(cluster: &Kubernetes) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for machine in cluster.machines() {
        let mut own = None;
        let node = std::fs::read_link(machine.namespace.path())?;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let path = entry.path();
            let comm = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            let on = std::fs::read_link(path.join("ns/net"));
            if comm.trim() == "fairlead-agent" && on.is_ok_and(|on| on == node) {
                own = entry.file_name().to_str().and_then(|n| n.parse().ok());
            }
        }
        found.push(own.with_context(|| format!("no agent runs on {}", machine.name))?);
    }
    Ok(found)
}

/// Clock ticks that a process has used, and its resident memory in KiB.
pub(crate) fn usage(id: u32) -> Result<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let tick = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).context("stat");
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    let rss = line.split_whitespace().next().context("VmRSS")?.parse()?;
    Ok((tick(11)? + tick(12)?, rss))
}

pub(crate) async fn measure(cluster: &Kubernetes) -> Result<()> {
    let agents = agents(cluster)?;
    let before = agents.iter().map(|&id| usage(id)).collect::<Result<Vec<_>>>()?;
    tokio::time::sleep(WINDOW).await;
    for ((machine, id), (ticks, _)) in cluster.machines().iter().zip(agents).zip(before) {
        let (after, rss) = usage(id)?;
        // 100 ticks a second.
        let cpu = (after - ticks) as f64 / WINDOW.as_secs_f64();
        println!(
            "idle, 60 pods, 1000 policies, {}: {:.1} MiB, {cpu:.2}% of a core",
            machine.name,
            rss as f64 / 1024.0
        );
    }
    Ok(())
}
