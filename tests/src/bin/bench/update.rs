//! From a change of an object to the first packet that meets it, and what the change does to others.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object};
use serde_json::{Value, json};

use crate::Settings;
use crate::population::{self, NODE, Population};
use crate::report::{Figure, Report, table};
use crate::stats::Samples;

const NAMESPACE: &str = "bench";
const SERVER: &str = "server";
const PORT: u16 = 7000;
/// The pods that send, each by a socket of its own: the one whose permission changes, one that is always
/// allowed, and one that never is.
const SENDERS: [&str; 3] = ["changing", "steady", "closed"];
const CHANGING: usize = 0;
const STEADY: usize = 1;
const CLOSED: usize = 2;
/// Time between two packets of a sender.
const PACE: Duration = Duration::from_micros(100);
/// As long without a packet, a sender is shut out: hundreds of packets.
const SILENCE: Duration = Duration::from_millis(40);
/// Time within which a change takes effect at the very latest.
const LATEST: Duration = Duration::from_secs(5);
/// Files that were written so recently are read again each time something changes.
const RACY: Duration = Duration::from_millis(2500);
/// Milliseconds that 99 of 100 changes may take.
const TARGET: f64 = 5.0;
const NICE: i32 = -20;

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// A rule of a policy.
    Policy,
    /// A label of a pod that a rule selects by.
    Label,
}

/// What the receiver saw of a sender.
#[derive(Debug, Default)]
struct Seen {
    sent: AtomicU64,
    received: AtomicU64,
    /// When the last packet came, in nanoseconds since the start; 0 before the first.
    last: AtomicU64,
    /// When the first came since this was set to 0.
    first: AtomicU64,
}

/// Senders and receiver.
struct Traffic {
    start: Instant,
    seen: Arc<[Seen; 3]>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<Result<()>>>,
}

impl Traffic {
    async fn start(cluster: &Cluster) -> Result<Self> {
        let start = Instant::now();
        let seen: Arc<[Seen; 3]> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let server = cluster.pod(SERVER)?;
        let sources: Vec<IpAddr> =
            SENDERS.iter().map(|name| cluster.pod(name)?.address(false)).collect::<Result<_>>()?;
        let socket = server.namespace.run(|| UdpSocket::bind(("0.0.0.0", PORT))).await??;
        socket.set_read_timeout(Some(SILENCE))?;
        let (told, ended) = (seen.clone(), stop.clone());
        threads.push(std::thread::spawn(move || receive(&socket, &sources, start, &told, &ended)));
        let to = SocketAddr::new(server.address(false)?, PORT);
        for (who, name) in SENDERS.iter().enumerate() {
            let socket = sender(&cluster.pod(name)?.namespace, to).await?;
            let (told, ended) = (seen.clone(), stop.clone());
            threads.push(std::thread::spawn(move || send(&socket, &told[who], &ended)));
        }
        Ok(Self { start, seen, stop, threads })
    }

    fn now(&self) -> u64 {
        nanoseconds(self.start)
    }

    /// Stops sending; then all that was not lost has come.
    async fn stop(mut self) -> Result<Arc<[Seen; 3]>> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
            joined.map_err(|_| anyhow::anyhow!("a thread of the traffic died"))??;
        }
        Ok(self.seen.clone())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// What is timed is Fairlead, not when this thread gets its turn.
fn urgent() {
    // SAFETY: numbers; no memory is passed.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
        libc::prctl(libc::PR_SET_TIMERSLACK, 1);
    }
}

async fn sender(from: &Namespace, to: SocketAddr) -> Result<UdpSocket> {
    let socket = from.run(|| UdpSocket::bind(("0.0.0.0", 0))).await??;
    socket.connect(to)?;
    Ok(socket)
}

fn send(socket: &UdpSocket, seen: &Seen, stop: &AtomicBool) -> Result<()> {
    urgent();
    while !stop.load(Ordering::Relaxed) {
        socket.send(&[7; 16])?;
        seen.sent.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PACE);
    }
    Ok(())
}

fn receive(
    socket: &UdpSocket,
    sources: &[IpAddr],
    start: Instant,
    seen: &[Seen; 3],
    stop: &AtomicBool,
) -> Result<()> {
    urgent();
    let mut buffer = [0; 64];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((_, from)) => {
                let now = nanoseconds(start);
                let who = sources.iter().position(|s| *s == from.ip()).context("a packet of nobody's")?;
                seen[who].received.fetch_add(1, Ordering::Relaxed);
                seen[who].last.store(now, Ordering::Relaxed);
                let _ = seen[who].first.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            }
            // Nothing for a while: the end, where it was asked for.
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn pod(name: &str, friend: bool) -> Object {
    let mut pod = world::pod(NAMESPACE, name, NODE, &[PORT]);
    pod["metadata"]["labels"]["friend"] = if friend { "yes" } else { "no" }.into();
    pod
}

/// A policy that lets a pod in, by its name or as a friend.
fn policy(name: &str, peers: &[Value]) -> Object {
    world::policy(
        NAMESPACE,
        name,
        json!({
            "podSelector": {"matchLabels": {"app": SERVER}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": peers, "ports": [{"protocol": "UDP", "port": PORT}]}],
        }),
    )
}

fn selected(label: &str, value: &str) -> Value {
    json!({"podSelector": {"matchLabels": {label: value}}})
}

/// A node in a world of this size, and the pods that matter.
async fn lab(world: Population) -> Result<Cluster> {
    let mut cluster = population::node_with_pods(world, 0).await?;
    cluster.apply(&world::namespace(NAMESPACE, json!({})))?;
    cluster.apply(&policy("steady", &[selected("app", SENDERS[STEADY])]))?;
    cluster.apply(&policy("friends", &[selected("friend", "yes")]))?;
    cluster.apply(&policy("named", &[selected("app", "nobody")]))?;
    for name in SENDERS.iter().chain(&[SERVER]) {
        cluster.apply(&pod(name, false))?;
        cluster.wire(NAMESPACE, name).await?;
    }
    cluster.await_isolation(|pod| (pod.name == SERVER, false)).await?;
    Ok(cluster)
}

/// Opens or shuts the door to the changing pod, and returns after how many milliseconds its packets met that.
async fn change(cluster: &mut Cluster, traffic: &Traffic, what: Change, open: bool) -> Result<f64> {
    let seen = &traffic.seen[CHANGING];
    let object = match (what, open) {
        (Change::Policy, true) => policy("named", &[selected("app", SENDERS[CHANGING])]),
        (Change::Policy, false) => policy("named", &[selected("app", "nobody")]),
        (Change::Label, _) => {
            let mut object = pod(SENDERS[CHANGING], open);
            let addresses = &cluster.pod(SENDERS[CHANGING])?.addresses;
            let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            object["status"] = json!({"phase": "Running", "podIPs": ips});
            object
        }
    };
    seen.first.store(0, Ordering::Relaxed);
    let begin = traffic.now();
    cluster.apply(&object)?;
    let told = format!("{what:?} {}", if open { "opens" } else { "shuts" });
    let silence = u64::try_from(SILENCE.as_nanos())?;
    await_until(&told, LATEST, async || {
        Ok(if open {
            seen.first.load(Ordering::Relaxed) != 0
        } else {
            traffic.now().saturating_sub(seen.last.load(Ordering::Relaxed)) > silence
        })
    })
    .await?;
    let met = if open { &seen.first } else { &seen.last }.load(Ordering::Relaxed);
    if open {
        // A rest, so that each change is one of its own.
        tokio::time::sleep(SILENCE).await;
    }
    Ok(met.saturating_sub(begin) as f64 / 1e6)
}

pub(crate) async fn run(settings: &Settings) -> Result<Report> {
    let changes = settings.rounds.unwrap_or(if settings.full { 300 } else { 100 });
    let sizes: &[usize] = if settings.full { &[1_000, 10_000, 100_000] } else { &[10_000] };
    let mut report = Report::default();
    let mut rows = Vec::new();
    for &pods in sizes {
        let mut cluster = lab(Population { pods, policies: 1000 }).await?;
        tokio::time::sleep(RACY).await;
        let traffic = Traffic::start(&cluster).await?;
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..changes {
            for (what, times) in [Change::Policy, Change::Label].into_iter().zip(&mut times) {
                for open in [true, false] {
                    times.push(change(&mut cluster, &traffic, what, open).await?);
                }
            }
        }
        let seen = traffic.stop().await?;
        cluster.stop().await?;
        let count = |who: usize| {
            let seen: &Seen = &seen[who];
            (seen.sent.load(Ordering::Relaxed), seen.received.load(Ordering::Relaxed))
        };
        let (steady, closed) = (count(STEADY), count(CLOSED));
        ensure!(steady.0 > 0 && closed.0 > 0 && count(CHANGING).1 > 0, "nothing was sent");
        let mut all = Vec::new();
        for (name, what, times) in
            [("policy", "a rule of a policy", &times[0]), ("label", "a label of a pod", &times[1])]
        {
            let samples = Samples::new(times.clone())?;
            report.figures.push(Figure::new(
                format!("update.{name}.{pods}_pods.p99_ms"),
                samples.quantile(0.99),
                "ms",
            ));
            rows.push(row(pods, what, &samples));
            all.extend(times);
        }
        let samples = Samples::new(all)?;
        rows.push(row(pods, "both", &samples));
        let p99 = Figure::new(format!("update.{pods}_pods.p99_ms"), samples.quantile(0.99), "ms");
        report.figures.push(if pods == 10_000 { p99.at_most(TARGET) } else { p99 });
        for (name, lost) in [("steady_lost", steady.0.saturating_sub(steady.1)), ("closed_passed", closed.1)]
        {
            report
                .figures
                .push(Figure::new(format!("update.{pods}_pods.{name}"), lost as f64, "packets").at_most(0.0));
        }
        rows.push(vec![
            pods.to_string(),
            format!("lost of {} packets of a pod that stays allowed", steady.0),
            (steady.0.saturating_sub(steady.1)).to_string(),
            String::new(),
            String::new(),
            String::new(),
        ]);
        rows.push(vec![
            pods.to_string(),
            format!("passed of {} packets of a pod that never is", closed.0),
            closed.1.to_string(),
            String::new(),
            String::new(),
            String::new(),
        ]);
    }
    report.text = format!(
        "A file of manifests is renamed into its place, and a pod's packets, one each {} µs, are let through from then\n\
         on, or no more: milliseconds from just before the file is written until the first packet that comes, or the\n\
         last one. 1,000 policies in force; {} changes of each kind, half of which open and half shut. Meanwhile a pod\n\
         that stays allowed sends as many, and one that is never allowed.\n\n{}",
        PACE.as_micros(),
        changes * 2,
        table(&["pods in the cluster", "", "median", "p90", "p99", "most"], &rows)
    );
    Ok(report)
}

fn row(pods: usize, what: &str, samples: &Samples) -> Vec<String> {
    let mut row = vec![pods.to_string(), format!("{what}, ms")];
    row.extend([0.5, 0.9, 0.99, 1.0].map(|share| format!("{:.2}", samples.quantile(share))));
    row
}
