//! A long run of random changes under random traffic, in which no packet may be judged wrongly.
//!
//! Two nodes with real agents; pods that come and go by the real CNI executable. One thread probes pairs of
//! pods, another mutates policies, labels and pods and kills agents. What should become of a probe is the
//! oracle's answer over the manifests that were written; between a mutation and [`SETTLED`] later, what
//! both states say still has to hold.

mod flows;
pub mod history;
mod mutate;
mod prober;
mod random;
mod sockets;
mod steady;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_policy::model::ObjectKey;
use serde_json::json;
use tokio::sync::mpsc;

use crate::cluster::Cluster;
use crate::world::{self, Object};
use flows::Tally;
use history::{History, PORTS, PodId, Probed, SETTLED};
use mutate::{Mutation, Mutator, NAMESPACES};
use prober::{Counts, Prober, Wrong};
use sockets::Netns;
use steady::Steady;

/// Wrong verdicts that are explained; the others are only counted.
const EXPLAINED: u64 = 5;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For how long.
    pub duration: Duration,
    /// What determines all mutations.
    pub seed: u64,
}

/// What happened.
#[derive(Debug)]
pub struct Summary {
    /// Seed of the mutations.
    pub seed: u64,
    /// Time under mutations and probes.
    pub took: Duration,
    /// Mutations by name.
    pub mutations: BTreeMap<&'static str, u64>,
    /// Longest ADD.
    pub slowest_add: Duration,
    tally: Tally,
    counts: Arc<Counts>,
    /// What was wrong, for people.
    pub wrong: Vec<String>,
}

impl Summary {
    /// Whether nothing went wrong and there was enough of everything for that to mean something.
    pub fn is_good(&self) -> bool {
        self.faults().is_empty()
    }

    /// What went wrong, in short.
    pub fn faults(&self) -> Vec<String> {
        use std::sync::atomic::Ordering::Relaxed;
        let mut faults = Vec::new();
        let mut expect = |good: bool, fault: String| {
            if !good {
                faults.push(fault);
            }
        };
        let wrong = self.counts.wrong.load(Relaxed);
        expect(wrong == 0, format!("{wrong} wrong verdicts"));
        expect(self.tally.lost == 0, format!("{} packets of allowed flows lost", self.tally.lost));
        expect(self.tally.through == 0, format!("{} packets of denied flows through", self.tally.through));
        expect(self.tally.allowed_packets > 0 && self.tally.denied_packets > 0, "no flows".to_owned());
        let certain = self.counts.certain.load(Relaxed);
        expect(certain > 0, "no probe was judged".to_owned());
        for outcome in [&self.counts.passed, &self.counts.dropped] {
            expect(outcome.load(Relaxed) > 0, "probes passed never, or always".to_owned());
        }
        faults
    }

    /// Probes a second.
    pub fn rate(&self) -> f64 {
        self.counts.sent(None, None, None) as f64 / self.took.as_secs_f64()
    }

    /// The summary, a line for each thing.
    pub fn lines(&self) -> Vec<String> {
        use std::sync::atomic::Ordering::Relaxed;
        let mutations: u64 = self.mutations.values().sum();
        let kinds: Vec<String> = self.mutations.iter().map(|(name, n)| format!("{n} {name}")).collect();
        let counts = &self.counts;
        let share = |udp, ipv6, across| counts.sent(udp, ipv6, across);
        vec![
            format!("seed {}, {:.0} s", self.seed, self.took.as_secs_f64()),
            format!(
                "mutations: {mutations} ({:.2} a second): {}; slowest ADD {:.0} ms",
                mutations as f64 / self.took.as_secs_f64(),
                kinds.join(", "),
                self.slowest_add.as_secs_f64() * 1000.0
            ),
            format!(
                "probes: {} ({:.0} a second): {} TCP, {} UDP; {} IPv4, {} IPv6; {} on one node, {} across",
                share(None, None, None),
                self.rate(),
                share(Some(false), None, None),
                share(Some(true), None, None),
                share(None, Some(false), None),
                share(None, Some(true), None),
                share(None, None, Some(false)),
                share(None, None, Some(true)),
            ),
            format!(
                "verdicts: {} passed, {} dropped; {} had one right answer, {} fell into a change, {} into the \
                 end of a pod",
                counts.passed.load(Relaxed),
                counts.dropped.load(Relaxed),
                counts.certain.load(Relaxed),
                counts.either.load(Relaxed),
                counts.cancelled.load(Relaxed)
            ),
            format!("wrong verdicts: {}", counts.wrong.load(Relaxed)),
            format!(
                "always allowed: {} flows, {} packets, {} lost",
                self.tally.allowed_flows, self.tally.allowed_packets, self.tally.lost
            ),
            format!(
                "always denied: {} flows, {} packets, {} through",
                self.tally.denied_flows, self.tally.denied_packets, self.tally.through
            ),
        ]
    }
}

/// Runs a soak.
///
/// # Errors
/// When something broke, instead of being wrong: what was wrong is in the summary.
pub async fn run(options: Options) -> Result<Summary> {
    let mut soak = Soak::start(options.seed).await?;
    let result = soak.mutate(options.duration).await;
    soak.finish(result).await
}

struct Soak {
    cluster: Cluster,
    mutator: Mutator,
    seed: u64,
    /// The world as written, by file.
    objects: BTreeMap<String, Object>,
    /// Pods that are probed: what their object's file is called, and what they are.
    pods: Vec<(String, Probed)>,
    incarnations: PodId,
    history: Arc<History>,
    counts: Arc<Counts>,
    prober: Prober,
    wrong: mpsc::UnboundedReceiver<Wrong>,
    explained: Vec<String>,
    flows: Option<flows::Flows>,
    mutations: BTreeMap<&'static str, u64>,
    last: Instant,
    started: Instant,
    slowest_add: Duration,
}

fn file(object: &Object) -> String {
    let field = |name: &str| object["metadata"][name].as_str().unwrap_or("-").to_owned();
    format!("{}/{}/{}", world::kind(object), field("namespace"), field("name"))
}

impl Soak {
    async fn start(seed: u64) -> Result<Self> {
        let mut objects = vec![
            world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
            world::node("node-b", &["172.20.0.12", "fd20::12"], &["10.244.2.0/24", "fd10:244:0:2::/64"]),
        ];
        objects.extend(NAMESPACES.map(|name| world::namespace(name, json!({"role": "x"}))));
        objects.extend(steady::objects());
        let cluster = Cluster::start(&objects, &[]).await?;
        let (history, counts) = (Arc::new(History::default()), Arc::new(Counts::default()));
        let (sender, wrong) = mpsc::unbounded_channel();
        let prober = Prober::start(history.clone(), counts.clone(), sender, seed ^ 1)?;
        let mut soak = Self {
            cluster,
            mutator: Mutator::new(seed),
            seed,
            objects: objects.into_iter().map(|o| (file(&o), o)).collect(),
            pods: Vec::new(),
            incarnations: 0,
            history,
            counts,
            prober,
            wrong,
            explained: Vec::new(),
            flows: None,
            mutations: BTreeMap::new(),
            last: Instant::now(),
            started: Instant::now(),
            slowest_add: Duration::ZERO,
        };
        let mut pods = Vec::new();
        for (name, node) in steady::PODS {
            let pod = world::pod(steady::NAMESPACE, name, node, &[]);
            soak.cluster.apply(&pod)?;
            let pod = soak.cluster.wire(steady::NAMESPACE, name).await?;
            pods.push((Netns(File::open(pod.namespace.path())?), [pod.address(false)?, pod.address(true)?]));
        }
        // The other node learns of a pod's address after ADD.
        tokio::time::sleep(SETTLED).await;
        soak.flows = Some(soak.prober.flows(Steady { pods }).await?);
        for place in 0..mutate::PODS {
            soak.add(place).await?;
        }
        soak.started = Instant::now();
        Ok(soak)
    }

    /// Says what the world will be, so that it is known before it is.
    fn announce(&mut self) -> Result<()> {
        let pods: Vec<Probed> = self.pods.iter().map(|(_, pod)| pod.clone()).collect();
        self.history.push(self.objects.values(), &pods)?;
        self.last = Instant::now();
        Ok(())
    }

    /// A pod in a place: its namespace and node are the place's, all else is new.
    async fn add(&mut self, place: usize) -> Result<()> {
        let id = self.incarnations;
        self.incarnations += 1;
        let (namespace, node) = (NAMESPACES[place % 2], ["node-a", "node-b"][place / 2 % 2]);
        let name = format!("p{place}-{id}");
        let mut object = world::pod(namespace, &name, node, &[]);
        object["metadata"]["uid"] = format!("uid-{id}").into();
        object["metadata"]["labels"] = self.mutator.labels();
        object["spec"]["containers"][0]["ports"] = json!([
            {"name": "web-tcp", "containerPort": PORTS[id as usize % 2], "protocol": "TCP"},
            {"name": "web-udp", "containerPort": PORTS[id as usize / 2 % 2], "protocol": "UDP"},
        ]);
        self.cluster.apply(&object)?;
        let pod = self.cluster.wire(namespace, &name).await?;
        let addresses: [IpAddr; 2] = [pod.address(false)?, pod.address(true)?];
        let netns = Netns(File::open(pod.namespace.path())?);
        self.slowest_add = self.slowest_add.max(pod.took);
        // As `wire` has written it.
        object["status"] = json!({"phase": "Running", "podIP": addresses[0],
                                  "podIPs": addresses.map(|ip| json!({"ip": ip}))});
        let probed = Probed { id, key: ObjectKey::new(namespace, &name), addresses };
        let name = file(&object);
        self.objects.insert(name.clone(), object);
        self.pods.push((name, probed.clone()));
        self.announce()?;
        self.prober.add(probed, (place / 2 % 2) as u8, netns).await
    }

    async fn remove(&mut self, at: usize) -> Result<()> {
        let (name, pod) = self.pods.remove(at);
        self.prober.remove(pod.id).await?;
        self.objects.remove(&name);
        self.announce()?;
        self.cluster.unwire(&pod.key.name).await
    }

    async fn mutate(&mut self, duration: Duration) -> Result<()> {
        while self.started.elapsed() < duration {
            let pods: Vec<String> = self.pods.iter().map(|(name, _)| name.clone()).collect();
            let mutation = self.mutator.next(&self.objects, &pods);
            *self.mutations.entry(mutation.name()).or_default() += 1;
            match mutation {
                Mutation::Apply(object) => {
                    self.objects.insert(file(&object), object.clone());
                    self.announce()?;
                    self.cluster.apply(&object)?;
                }
                Mutation::Delete(object) => {
                    self.objects.remove(&file(&object));
                    self.announce()?;
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                    self.cluster.delete("NetworkPolicy", namespace, name)?;
                }
                Mutation::Replace(place) => {
                    let prefix = format!("p{place}-");
                    let at = self.pods.iter().position(|(_, pod)| pod.key.name.starts_with(&prefix));
                    self.remove(at.with_context(|| format!("nobody is in place {place}"))?).await?;
                    self.add(place).await?;
                }
                Mutation::Kill(node) => {
                    // What was written last has to be in force: nobody else is there to do it.
                    tokio::time::sleep(SETTLED.saturating_sub(self.last.elapsed())).await;
                    self.cluster.kill_agent(node)?;
                    self.cluster.start_agent(node).await?;
                }
            }
            self.explain().await?;
            let pause = Duration::from_millis(self.mutator.pause());
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Says more of the first wrong verdicts, as soon as they are known.
    async fn explain(&mut self) -> Result<()> {
        while let Ok(wrong) = self.wrong.try_recv() {
            if self.explained.len() as u64 >= EXPLAINED {
                continue;
            }
            let (question, mut text) = (wrong.question, String::new());
            let _ = writeln!(
                text,
                "{:.3} s: {} -> {} {} over IPv{}{}: {:?}, expected {:?}; {:.3} s after the last mutation when \
                 sent, {:.3} s when over",
                self.started.elapsed().as_secs_f64(),
                wrong.from.key,
                wrong.to.key,
                question.target(),
                if question.ipv6 { 6 } else { 4 },
                if wrong.reused { ", on a flow that was known" } else { "" },
                wrong.outcome,
                wrong.expected,
                wrong.age[0].as_secs_f64(),
                wrong.age[1].as_secs_f64(),
            );
            let address = |pod: &Probed| pod.addresses[usize::from(question.ipv6)].to_string();
            let (from, to, port) = (address(&wrong.from), address(&wrong.to), question.target());
            for node in self.cluster.nodes() {
                let said = node.fairlead(&["explain", "--from", &from, "--to", &to, "--port", &port]).await?;
                let _ = write!(text, "{}: {}", node.spec.name, String::from_utf8_lossy(&said.stdout));
                let drops = node.fairlead(&["drops", "--pod", &wrong.to.key.to_string()]).await?;
                let drops = String::from_utf8_lossy(&drops.stdout).into_owned();
                for line in drops.lines().rev().take(6).collect::<Vec<_>>().into_iter().rev() {
                    let _ = writeln!(text, "{} drops: {line}", node.spec.name);
                }
            }
            for object in self.objects.values().filter(|o| o["metadata"]["namespace"] != steady::NAMESPACE) {
                let _ = writeln!(text, "{object}");
            }
            eprintln!("{text}");
            self.explained.push(text);
        }
        Ok(())
    }

    async fn finish(mut self, result: Result<()>) -> Result<Summary> {
        let took = self.started.elapsed();
        let flows = self.flows.take().context("no flows")?;
        // What broke first is told first.
        result?;
        let tally = flows.stop().await?;
        self.explain().await?;
        self.prober.stop().await?;
        self.cluster.stop().await.context("taking everything down")?;
        ensure!(took > Duration::ZERO, "no time has passed");
        Ok(Summary {
            seed: self.seed,
            took,
            mutations: self.mutations,
            slowest_add: self.slowest_add,
            tally,
            counts: self.counts,
            wrong: self.explained,
        })
    }
}
