//! What agent and kernel hold for clusters of several sizes.

mod server;

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use fairlead_tests::agent::{Agent, Source};
use fairlead_tests::cluster::Cluster;

use self::server::{Everything, Server};
use crate::Settings;
use crate::population::{self, NODE, Population};
use crate::report::{Figure, Report, table};

/// Pods on the node.
const ENDPOINTS: usize = 110;
const PODS: [usize; 3] = [1_000, 10_000, 100_000];
const POLICIES: [usize; 3] = [10, 1_000, 10_000];
/// The one that is kept while the other varies, in the short run.
const USUAL: usize = 1;

/// A cluster as large as Kubernetes supports, as an API server tells of it.
const LARGEST: Everything = Everything {
    nodes: 5_000,
    population: Population { pods: 150_000, policies: 10_000 },
    endpoints: ENDPOINTS,
    services: 10_000,
};
/// What the agent may hold of it, in MiB.
const LARGEST_MIB: f64 = 150.0;

/// `BPF_MAP_TYPE_LRU_HASH`: flows, and fragments.
const LRU_HASH: u64 = 9;

/// What was in use.
#[derive(Clone, Copy, Debug)]
struct Used {
    /// Resident memory of the agent, in bytes.
    agent: f64,
    /// Its largest so far.
    peak: f64,
    /// The maps of flows, which are made whole at the start.
    flows: f64,
    /// All other maps.
    tables: f64,
    /// Processor time that the agent has taken so far, in seconds.
    processor: f64,
}

pub(crate) async fn run(settings: &Settings) -> Result<Report> {
    let empty = Population { pods: 0, policies: 0 };
    let mut cluster = population::node_with_pods(empty, ENDPOINTS).await?;
    let mut found = BTreeMap::new();
    found.insert((0, 0), started(&mut cluster, empty).await?);
    for (i, pods) in PODS.into_iter().enumerate() {
        for (j, policies) in POLICIES.into_iter().enumerate() {
            if settings.full || i == USUAL || j == USUAL {
                let world = Population { pods, policies };
                found.insert((pods, policies), started(&mut cluster, world).await?);
            }
        }
    }
    let watched = watched(&mut cluster).await?;
    cluster.stop().await?;
    report(&found, &watched)
}

/// Starts the agent with an API server of the largest cluster, and looks once more when all is in force.
async fn watched(cluster: &mut Cluster) -> Result<Used> {
    cluster.kill_agent(NODE)?;
    let kubeconfig = cluster.folder().join("kubeconfig");
    fs::write(&kubeconfig, Server::kubeconfig())?;
    let node = cluster.node(NODE)?;
    let _server = Server::open(&node.namespace, LARGEST).await?;
    let source = Source::Kubeconfig(&kubeconfig);
    let mut agent = Agent::spawn(&node.namespace, source, &node.folders, &[]).await?;
    agent.await_ready(&node.namespace).await?;
    population::await_policies(cluster, LARGEST.population.policies).await?;
    used(agent.id())
}

/// Starts the agent in a world, and looks.
async fn started(cluster: &mut Cluster, world: Population) -> Result<Used> {
    cluster.kill_agent(NODE)?;
    world.write(cluster.world())?;
    cluster.start_agent(NODE).await?;
    population::await_policies(cluster, world.policies).await?;
    let agent = cluster.node(NODE)?.agent.as_ref().context("no agent")?.id();
    used(agent)
}

fn used(process: u32) -> Result<Used> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let mut used = Used {
        agent: kib(&status, "VmRSS:")?,
        peak: kib(&status, "VmHWM:")?,
        flows: 0.0,
        tables: 0.0,
        processor: processor_time(process)?,
    };
    // By the kernel's ids: some maps are open more than once.
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        // One that was closed meanwhile was no map.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let Some(id) = number(&text, "map_id:") else { continue };
        let kind = number(&text, "map_type:").context("a map without a type")?;
        maps.insert(id, (kind, number(&text, "memlock:").context("a map without memory")?));
    }
    for (kind, bytes) in maps.into_values() {
        let sum = if kind == LRU_HASH { &mut used.flows } else { &mut used.tables };
        *sum += bytes as f64;
    }
    Ok(used)
}

/// Processor time of a process in user and kernel mode, in seconds.
fn processor_time(process: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // proc_pid_stat(5): utime and stime are the 14th and 15th field, the second is in parentheses and may hold anything.
    let after = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks = after.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    let ticks: f64 = ticks.sum::<Result<f64, _>>().context("no times in stat")?;
    let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(ticks / a_second as f64)
}

fn number(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

fn kib(text: &str, key: &str) -> Result<f64> {
    Ok(number(text, key).with_context(|| format!("no {key}"))? as f64 * 1024.0)
}

fn report(found: &BTreeMap<(usize, usize), Used>, watched: &Used) -> Result<Report> {
    const MIB: f64 = 1_048_576.0;
    let mut report = Report::default();
    let mut rows = Vec::new();
    for ((pods, policies), used) in found {
        let name = format!("memory.agent_mib.{pods}_pods_{policies}_policies");
        report.figures.push(Figure::new(name, used.agent / MIB, "MiB"));
        let name = format!("memory.tables_mib.{pods}_pods_{policies}_policies");
        report.figures.push(Figure::new(name, used.tables / MIB, "MiB"));
        rows.push(vec![
            pods.to_string(),
            policies.to_string(),
            format!("{:.1}", used.agent / MIB),
            format!("{:.1}", used.peak / MIB),
            format!("{:.2}", used.tables / MIB),
            format!("{:.1}", used.flows / MIB),
        ]);
    }
    let at = |pods: usize, policies: usize| found.get(&(pods, policies)).context("a size was not measured");
    let (few, many) = (at(PODS[USUAL], POLICIES[USUAL])?, at(PODS[2], POLICIES[USUAL])?);
    let pods = (PODS[2] - PODS[USUAL]) as f64;
    let (small, large) = (at(PODS[USUAL], POLICIES[0])?, at(PODS[USUAL], POLICIES[2])?);
    let policies = (POLICIES[2] - POLICIES[0]) as f64;
    let units = [
        ("memory.agent_bytes_per_pod", "a pod, in the agent", (many.agent - few.agent) / pods),
        ("memory.tables_bytes_per_pod", "a pod, in the maps", (many.tables - few.tables) / pods),
        ("memory.agent_bytes_per_policy", "a policy, in the agent", (large.agent - small.agent) / policies),
        ("memory.tables_bytes_per_policy", "a policy, in the maps", (large.tables - small.tables) / policies),
    ];
    let mut costs = Vec::new();
    for (name, what, bytes) in units {
        report.figures.push(Figure::new(name, bytes, "bytes"));
        costs.push(vec![what.to_owned(), format!("{bytes:.0}")]);
    }
    let name = "memory.watched_mib.5000_nodes_150000_pods_10000_policies";
    report.figures.push(Figure::new(name, watched.agent / MIB, "MiB").at_most(LARGEST_MIB));
    let an_object = watched.processor * 1e6 / LARGEST.count() as f64;
    report.figures.push(Figure::new("memory.watched_cpu_us_per_object", an_object, "us"));
    report.text = format!(
        "A node with {ENDPOINTS} wired pods in clusters of several sizes; an agent that was started afresh, the world\n\
         from a directory of manifests, of which the agent keeps what each file defines besides what it compiles.\n\
         The agent's resident memory, its peak (while it reads the files), the maps by what the kernel charges for\n\
         them. The maps of flows are made whole at the start, whatever there is in them.\n\n{}\n\
         Beside that, a server that speaks as an API server does (streamed lists, objects with what nobody reads of them)\n\
         tells of {} nodes, {} pods, {} policies, {} Services and as many EndpointSlices: {:.1} MiB, at the peak {:.1} MiB,\n\
         {:.1} MiB of tables. Until all was in force the agent took {:.1} s of processor time, {:.0} us for each object.\n\n\
         What one more costs, from {} to {} pods at {} policies and from {} to {} policies at {} pods:\n\n{}",
        table(&["pods", "policies", "agent, MiB", "its peak, MiB", "tables, MiB", "flows, MiB"], &rows),
        LARGEST.nodes,
        LARGEST.population.pods,
        LARGEST.population.policies,
        LARGEST.services,
        watched.agent / MIB,
        watched.peak / MIB,
        watched.tables / MIB,
        watched.processor,
        an_object,
        PODS[USUAL],
        PODS[2],
        POLICIES[USUAL],
        POLICIES[0],
        POLICIES[2],
        PODS[USUAL],
        table(&["one more", "bytes"], &costs)
    );
    Ok(report)
}
