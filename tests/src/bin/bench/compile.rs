//! What it costs to keep one node's tables: index and compiler, without what writes the maps.
//!
//! Each round of each size runs in a process of its own, so that its peak of memory is that of nothing
//! else. A change's time is the best of the rounds, which all do the same: what is left is its own cost,
//! and not that of whoever else the machine works for.

mod cluster;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_index::{Effect, Index, Kind, Object, ObjectId, Parsed};
use fairlead_policy::compiler::{Compiler, Limits, Stats};
use fairlead_policy::model::{LabelSelector, ObjectKey, Operator, Peer, Pod, Requirement, Rule};
use fairlead_policy::oracle::Direction;
use fairlead_policy::tables::{Delta, Slot};
use serde::{Deserialize, Serialize};

use self::cluster::{APPS, BUSY, Cluster, REPLICAS};
use crate::Settings;
use crate::report::{Figure, Report, table};
use crate::stats::Samples;

/// Sizes, 1 is 1,000 namespaces, 10,000 policies and 100,000 pods; and the names of their figures.
const SCALES: [(f64, &str); 3] = [(0.1, "tenth."), (1.0, ""), (10.0, "tenfold.")];
const POD_CHANGES: usize = 2000;
const POLICY_CHANGES: usize = 200;
/// Peers that a policy's change may touch, for its target to hold.
const FEW_PEERS: usize = 1000;

/// What one process has measured. Times in microseconds.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    /// All objects told, and the first commit.
    cold: f64,
    /// Object by object, the time to be told before the first commit: the longest of each thousand.
    told: Vec<f64>,
    /// Change by change.
    pods: Vec<f64>,
    policies: Vec<f64>,
    /// Changes of a policy that looks into every namespace, and the entries that the first of them changed.
    wide: Vec<f64>,
    wide_entries: usize,
    /// Peak of what the process has more than at its beginning, KiB.
    memory: u64,
    sizes: Sizes,
}

/// What there is, and what of it is in use on the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sizes {
    namespaces: usize,
    pods: usize,
    policies: usize,
    endpoints: usize,
    /// Policies that select an endpoint, of the one that fewest select.
    selecting: usize,
    selectors: usize,
    prefixes: usize,
    peers: usize,
    atoms: usize,
    signatures: usize,
    rows: usize,
}

/// One node's index and compiler.
struct Node {
    index: Index,
    compiler: Compiler,
}

impl Node {
    fn affect(&mut self, effect: Option<Effect>) {
        match effect {
            Some(Effect::Set(Object::Namespace(namespace))) => self.compiler.set_namespace(&namespace),
            Some(Effect::Set(Object::Pod(pod))) => self.compiler.set_pod(&pod),
            Some(Effect::Set(Object::NetworkPolicy(policy))) => self.compiler.set_policy(&policy),
            Some(Effect::Removed(id)) if id.kind == Kind::Pod => self.compiler.remove_pod(&id.key),
            _ => {}
        }
    }

    fn tell(&mut self, object: Parsed) {
        let effect = self.index.apply(object);
        self.affect(effect);
    }

    /// The node hears that an object is there, or that a pod is gone, and compiles it. In microseconds.
    fn step(&mut self, change: Result<Object, ObjectKey>) -> (f64, Delta) {
        let change = change.map(cluster::parsed).map_err(|key| ObjectId { kind: Kind::Pod, key });
        let start = Instant::now();
        match change {
            Ok(object) => self.tell(object),
            Err(gone) => {
                let effect = self.index.delete(&gone);
                self.affect(effect);
            }
        }
        let delta = self.compiler.commit();
        self.compiler.settled(delta.serial);
        (microseconds(start.elapsed()), delta)
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A line of `/proc/self/status`, KiB.
fn memory(line: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let value = status.lines().find_map(|l| l.strip_prefix(line)?.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("/proc/self/status has no {line}"))
}

/// Measures one size in this process and prints what came out: what `--compile-scale` is for.
pub(crate) fn measure(scale: f64) -> Result<()> {
    let cluster = Cluster::new(scale);
    let before = memory("VmRSS:")?;
    let mut node = Node {
        index: Index::default(),
        // The largest size has more peers than the default allows.
        compiler: Compiler::new(Limits { peers: 1 << 21, ..Limits::default() }),
    };
    let mut cold = Duration::ZERO;
    let mut told = Vec::new();
    let mut slot: Slot = 0;
    for n in 0..cluster.namespaces {
        // Objects are there as the API server's pages are: some hundred at a time.
        for object in cluster.objects(n)? {
            let local = match &object {
                Object::Pod(pod) if n < BUSY && is_local(pod, n) => Some((pod.key.clone(), pod.ips.clone())),
                _ => None,
            };
            let object = cluster::parsed(object);
            let start = Instant::now();
            node.tell(object);
            if let Some((key, addresses)) = local {
                slot += 1;
                node.compiler.set_endpoint(slot, Some(key), addresses);
            }
            let time = start.elapsed();
            cold += time;
            told.push(microseconds(time));
        }
    }
    let start = Instant::now();
    let delta = node.compiler.commit();
    cold += start.elapsed();
    node.compiler.settled(delta.serial);
    drop(delta);
    ensure!(node.compiler.problems().is_empty(), "rules do not fit");
    let sizes = sizes(&node.compiler, slot);
    let pods = pod_changes(&mut node, cluster);
    let policies = policy_changes(&mut node, cluster)?;
    let (wide, wide_entries) = wide_changes(&mut node)?;
    let told = told.chunks(1000).map(|c| c.iter().copied().fold(0.0, f64::max)).collect();
    let memory = memory("VmHWM:")? - before;
    let measured =
        Measured { cold: microseconds(cold), told, pods, policies, wide, wide_entries, memory, sizes };
    serde_json::to_writer(std::io::stdout(), &measured).context("cannot print what was measured")
}

/// Whether a pod of a busy namespace is on the node: the first of each workload.
fn is_local(pod: &Pod, n: usize) -> bool {
    (0..APPS).any(|app| pod.key == cluster::pod(n, app, 0, 0).key)
}

fn sizes(compiler: &Compiler, endpoints: Slot) -> Sizes {
    let Stats { namespaces, pods, policies, selectors, peers, cidrs, atoms, signatures, rows, .. } =
        compiler.stats();
    let selecting = (1..=endpoints).map(|slot| compiler.policies_of(slot, Direction::Ingress).len()).min();
    Sizes {
        namespaces,
        pods,
        policies,
        endpoints: endpoints.into(),
        selecting: selecting.unwrap_or(0),
        selectors,
        prefixes: cidrs.iter().sum(),
        peers: peers.iter().sum(),
        atoms,
        signatures,
        rows,
    }
}

/// Pods of busy and of quiet namespaces get other labels, go, come back, are rolled out anew.
fn pod_changes(node: &mut Node, cluster: Cluster) -> Vec<f64> {
    let mut times = Vec::with_capacity(POD_CHANGES);
    for round in 0..POD_CHANGES / 4 {
        let n = if round.is_multiple_of(4) { round / 4 % BUSY } else { round * 37 % cluster.namespaces };
        let (app, replica) = (round * 3 % APPS, round % REPLICAS);
        let pod = cluster::pod(n, app, replica, 0);
        let mut labelled = pod.clone();
        labelled.labels.insert("canary".to_owned(), round.to_string());
        labelled.labels.insert("tier".to_owned(), "front".to_owned());
        let changes = [
            Ok(Object::Pod(labelled)),
            Err(pod.key.clone()),
            Ok(Object::Pod(cluster::pod(n, app, replica, round + 1))),
            Ok(Object::Pod(pod)),
        ];
        times.extend(changes.map(|change| node.step(change).0));
    }
    times
}

/// Policies of busy namespaces get another port, or a rule for ten namespaces' pods and a block of its own,
/// and are put back.
fn policy_changes(node: &mut Node, cluster: Cluster) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(POLICY_CHANGES);
    for round in 0..POLICY_CHANGES / 2 {
        let (n, p) = (round % BUSY, round * 7 % cluster.busy_policies);
        let mut policy = cluster::policy(n, p, if round.is_multiple_of(2) { 1 } else { 0 })?;
        if !round.is_multiple_of(2) {
            let names = (0..10).map(|i| cluster::namespace_name((round * 10 + i) % cluster.namespaces));
            let names = LabelSelector {
                requirements: vec![Requirement {
                    key: "kubernetes.io/metadata.name".to_owned(),
                    operator: Operator::In(names.collect()),
                }],
            };
            let pods = Peer::Pods { namespaces: Some(names), pods: LabelSelector::default() };
            let peers = vec![pods, cluster::block(100_000 + round)?];
            let ports = vec![cluster::tcp(2000 + round as u16, 2000 + round as u16)];
            policy.ingress.get_or_insert_default().push(Rule { peers, ports });
        }
        for policy in [policy, cluster::policy(n, p, 0)?] {
            let (time, delta) = node.step(Ok(Object::NetworkPolicy(policy)));
            let touched = delta.peers.len();
            ensure!(touched <= FEW_PEERS, "a policy's change touches {touched} peers");
            times.push(time);
        }
    }
    Ok(times)
}

/// A policy opens its subjects to a workload of every namespace, and to it no longer. How many entries of
/// tables that changes.
fn wide_changes(node: &mut Node) -> Result<(Vec<f64>, usize)> {
    let mut times = Vec::new();
    let mut entries = 0;
    for app in 0..APPS {
        let mut policy = cluster::policy(app % BUSY, 0, 0)?;
        let pods = cluster::select(&[("app.kubernetes.io/name", cluster::app_name(app))]);
        let peers = vec![Peer::Pods { namespaces: Some(LabelSelector::default()), pods }];
        policy.ingress.get_or_insert_default().push(Rule { peers, ports: vec![cluster::tcp(3000, 3000)] });
        let (time, delta) = node.step(Ok(Object::NetworkPolicy(policy)));
        let changed = delta.peers.len() + delta.rows.len() + delta.cidrs.len();
        if times.is_empty() {
            entries = changed;
        }
        times.push(time / changed as f64);
        node.step(Ok(Object::NetworkPolicy(cluster::policy(app % BUSY, 0, 0)?)));
    }
    Ok((times, entries))
}

/// One size in a process of its own.
fn in_own_process(scale: f64) -> Result<Measured> {
    let program = std::env::current_exe().context("cannot tell what this program is")?;
    let output = Command::new(program)
        .args(["--root", ".", "--compile-scale", &scale.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run this program again")?;
    ensure!(output.status.success(), "measuring at {scale} failed: {}", output.status);
    serde_json::from_slice(&output.stdout).context("cannot read what was measured")
}

/// The best of the rounds, value by value.
fn best(rounds: &[Measured], of: impl Fn(&Measured) -> &Vec<f64>) -> Result<Samples> {
    let values = (0..of(&rounds[0]).len()).map(|i| rounds.iter().map(|r| of(r)[i]).fold(f64::MAX, f64::min));
    Samples::new(values.collect())
}

pub(crate) fn run(settings: &Settings) -> Result<Report> {
    let rounds = settings.rounds.unwrap_or(if settings.full { 15 } else { 10 }).max(1);
    let mut report = Report::default();
    let (mut costs, mut sizes) = (Vec::new(), Vec::new());
    for (scale, name) in SCALES {
        let measured: Vec<_> = (0..rounds).map(|_| in_own_process(scale)).collect::<Result<_>>()?;
        let first = &measured[0].sizes;
        ensure!(measured.iter().all(|m| m.sizes == *first), "rounds differ in what they measure");
        ensure!(
            first.endpoints == 110 && first.selecting >= 20,
            "{} endpoints, {} policies select each: too few",
            first.endpoints,
            first.selecting
        );
        ensure!(
            scale < 1.0 || (first.selectors >= 1000 && first.prefixes >= 1000),
            "{} selectors and {} prefixes are in use: too few",
            first.selectors,
            first.prefixes
        );
        let target = |figure: Figure, most: f64| if name.is_empty() { figure.at_most(most) } else { figure };
        let figure = |what: &str, value, unit| Figure::new(format!("compile.{name}{what}"), value, unit);
        let cold = Samples::new(measured.iter().map(|m| m.cold / 1e3).collect())?;
        let memory = Samples::new(measured.iter().map(|m| m.memory as f64 / 1024.0).collect())?;
        let (pods, policies) = (best(&measured, |m| &m.pods)?, best(&measured, |m| &m.policies)?);
        let (told, wide) = (best(&measured, |m| &m.told)?, best(&measured, |m| &m.wide)?);
        report.figures.extend([
            target(figure("cold_ms", cold.median(), "ms"), 1000.0),
            figure("pod_p50_us", pods.median(), "us"),
            figure("pod_p99_us", pods.quantile(0.99), "us"),
            target(figure("pod_worst_us", pods.quantile(1.0), "us"), 1000.0),
            target(figure("told_worst_us", told.quantile(1.0), "us"), 1000.0),
            figure("policy_p50_us", policies.median(), "us"),
            target(figure("policy_worst_us", policies.quantile(1.0), "us"), 10_000.0),
            target(figure("wide_policy_us_per_entry", wide.median(), "us"), 1.0),
            target(figure("memory_mib", memory.quantile(1.0), "MiB"), 64.0),
        ]);
        let us = |value: f64| format!("{value:.0}");
        costs.push(vec![
            format!("{} pods", first.pods),
            cold.told(0),
            format!("{} / {} / {}", us(pods.median()), us(pods.quantile(0.99)), us(pods.quantile(1.0))),
            us(told.quantile(1.0)),
            format!("{} / {}", us(policies.median()), us(policies.quantile(1.0))),
            format!("{:.2}", wide.median()),
            format!("{:.1}", memory.quantile(1.0)),
        ]);
        sizes.push(
            [
                first.pods,
                first.namespaces,
                first.policies,
                first.selecting,
                first.selectors,
                first.prefixes,
                first.peers,
                first.atoms,
                first.signatures,
                first.rows,
                measured[0].wide_entries,
            ]
            .map(|n| n.to_string())
            .to_vec(),
        );
    }
    report.text = text(rounds, &costs, &sizes);
    Ok(report)
}

fn text(rounds: u32, costs: &[Vec<String>], sizes: &[Vec<String>]) -> String {
    let costs = table(
        &[
            "",
            "cold, ms",
            "a pod's change, µs: median / 99 % / worst",
            "worst of all objects told, µs",
            "a policy's change, µs: median / worst",
            "a wide one, µs an entry",
            "peak memory, MiB",
        ],
        costs,
    );
    let sizes = table(
        &[
            "pods",
            "namespaces",
            "policies",
            "that select each endpoint, at least",
            "selectors in use",
            "prefixes in use",
            "pods' addresses that match",
            "atoms",
            "signatures",
            "rows",
            "entries that the wide change touches",
        ],
        sizes,
    );
    format!(
        "Index and compiler of a node with 110 endpoints, without writing maps. {rounds} rounds, each a process of\n\
         its own; what a change costs is the best of them, change by change, since all rounds do the same. *Cold* is\n\
         from nothing, objects decoded, to the tables. *Pods*: {POD_CHANGES} changes (other labels, gone, rolled out\n\
         anew), a quarter in namespaces that have endpoints here. *Told*: what any one object costs before the\n\
         first commit, all tables growing. *Policies*: {POLICY_CHANGES} changes that touch at most {FEW_PEERS} peers (another\n\
         port; a new selector of ten namespaces' pods and a new block); a wide one looks at a workload of\n\
         every namespace. Memory is the peak of the process less what it had before the first object.\n\n\
         {costs}\nWhat there is, and what is in use on the node:\n\n{sizes}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_is_of_the_size_that_it_says() {
        for (scale, pods, policies) in [(0.1, 10_000, 1000), (1.0, 100_000, 10_000)] {
            let cluster = Cluster::new(scale);
            let mut counts = [0; 3];
            for n in 0..cluster.namespaces {
                for object in cluster.objects(n).unwrap() {
                    counts[match object {
                        Object::Namespace(_) => 0,
                        Object::Pod(_) => 1,
                        _ => 2,
                    }] += 1;
                }
            }
            assert_eq!(counts, [pods / 100, pods, policies]);
        }
    }
}
