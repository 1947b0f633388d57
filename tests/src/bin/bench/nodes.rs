//! How long after a Node object its pods can be reached, among few nodes and among many.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object};

use crate::Settings;
use crate::report::{Figure, Report, table};
use crate::stats::{Samples, ratios};

/// Numbers of nodes that are there meanwhile.
const CROWDS: [u32; 2] = [10, 1000];
const NODE: &str = "node-a";
/// The one that comes and goes.
const GUEST: &str = "guest";
const GUEST_CIDR: &str = "10.200.7.0/24";
/// How long the kernel's word may take.
const LOST: Duration = Duration::from_secs(10);

/// What the kernel says of, with the time at which it was heard.
struct Monitor {
    of: Of,
    lines: Receiver<(Instant, String)>,
    child: Child,
}

/// Of what.
#[derive(Clone, Copy)]
enum Of {
    /// Routes.
    Routes,
    /// The set of what is inside of the cluster, which is not masqueraded towards.
    Inside,
}

impl Of {
    /// A program that tells of it.
    fn command(self) -> Command {
        let (program, arguments) = match self {
            Self::Routes => ("ip", ["monitor", "route"]),
            Self::Inside => ("nft", ["monitor", "elements"]),
        };
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::piped());
        command
    }

    /// Whether a line of it says that the guest came, or is gone.
    fn says(self, line: &str, gone: bool) -> bool {
        match self {
            Self::Routes => line.contains(GUEST_CIDR) && line.starts_with("Deleted") == gone,
            Self::Inside => {
                line.contains(" inside4 ") && line.starts_with(if gone { "delete" } else { "add" })
            }
        }
    }
}

impl Monitor {
    async fn start(namespace: &Namespace, of: Of) -> Result<Self> {
        let mut child = namespace.run(move || of.command().spawn()).await?.context("cannot run a monitor")?;
        let output = child.stdout.take().context("a monitor has no output")?;
        let port = child.id().to_string();
        await_until("a monitor that listens", LOST, async || {
            // Columns: socket, protocol, port, groups.
            let sockets =
                namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/netlink")).await??;
            Ok(sockets.lines().any(|line| {
                let mut columns = line.split_whitespace().skip(2);
                columns.next() == Some(port.as_str()) && columns.next().is_some_and(|g| g != "00000000")
            }))
        })
        .await?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { of, lines, child })
    }

    /// When the guest came, or went.
    fn heard(&self, gone: bool) -> Result<Instant> {
        loop {
            let (at, line) =
                self.lines.recv_timeout(LOST).with_context(|| format!("no word of {GUEST_CIDR}"))?;
            if self.of.says(&line, gone) {
                return Ok(at);
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Gone already, if it cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn crowd(number: u32) -> Vec<Object> {
    let node = |n: u32| {
        let addresses = [format!("172.21.{}.{}", n / 250, n % 250 + 1), format!("fd21::{n:x}")];
        let cidrs = [format!("10.{}.{}.0/24", 100 + n / 256, n % 256), format!("fd10:99:0:{n:x}::/64")];
        let (addresses, cidrs) =
            (addresses.each_ref().map(String::as_str), cidrs.each_ref().map(String::as_str));
        world::node(&format!("crowd-{n}"), &addresses, &cidrs)
    };
    (0..number).map(node).collect()
}

/// Milliseconds from the object to the route and to the set, and from its end to the route's.
#[derive(Clone, Default)]
struct Times {
    arrival: Vec<f64>,
    inside: Vec<f64>,
    leave: Vec<f64>,
}

pub(crate) async fn run(settings: &Settings) -> Result<Report> {
    let rounds = settings.rounds.unwrap_or(if settings.full { 200 } else { 30 }) as usize;
    let own = world::node(NODE, &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]);
    let guest = world::node(GUEST, &["172.21.99.9", "fd21::ffff"], &[GUEST_CIDR, "fd10:98::/64"]);
    let mut clusters = Vec::new();
    for number in CROWDS {
        let cluster = Cluster::start(std::slice::from_ref(&own), &[]).await?;
        cluster.world().write("crowd.yaml", &crowd(number))?;
        let node = &cluster.node(NODE)?.namespace;
        await_until("routes to all nodes", Duration::from_secs(120), async || {
            let count = || Command::new("ip").args(["route", "show", "proto", "70"]).output();
            let routes = node.run(count).await??;
            Ok(String::from_utf8_lossy(&routes.stdout).lines().count() > number as usize)
        })
        .await?;
        let monitors = [Monitor::start(node, Of::Routes).await?, Monitor::start(node, Of::Inside).await?];
        clusters.push((cluster, monitors, Times::default()));
    }
    // One more than counts: the first finds everything cold.
    for round in 0..=rounds {
        for (cluster, [routes, inside], times) in &mut clusters {
            let begin = Instant::now();
            cluster.apply(&guest)?;
            let to_route = routes.heard(false)?.duration_since(begin);
            let to_inside = inside.heard(false)?.duration_since(begin);
            let begin = Instant::now();
            cluster.delete("Node", "", GUEST)?;
            let leave = routes.heard(true)?.duration_since(begin);
            // The set is what a round ends with: the next one begins when this one is over.
            inside.heard(true)?;
            if round > 0 {
                times.arrival.push(to_route.as_secs_f64() * 1e3);
                times.inside.push(to_inside.as_secs_f64() * 1e3);
                times.leave.push(leave.as_secs_f64() * 1e3);
            }
        }
    }
    let times: Vec<Times> = clusters.into_iter().map(|(_, _, times)| times).collect();
    report(&times)
}

fn report(times: &[Times]) -> Result<Report> {
    let mut report = Report::default();
    let mut rows = Vec::new();
    for (number, times) in CROWDS.iter().zip(times) {
        let (arrival, leave) = (Samples::new(times.arrival.clone())?, Samples::new(times.leave.clone())?);
        let inside = Samples::new(times.inside.clone())?;
        report
            .figures
            .push(Figure::new(format!("nodes.arrival_ms.at_{number}"), arrival.median(), "ms").at_most(5.0));
        report.figures.push(Figure::new(format!("nodes.leave_ms.at_{number}"), leave.median(), "ms"));
        report.figures.push(Figure::new(format!("nodes.inside_ms.at_{number}"), inside.median(), "ms"));
        rows.push(vec![number.to_string(), arrival.told(2), inside.told(2), leave.told(2)]);
    }
    let [few, many] = times else { bail!("{} crowds", times.len()) };
    let ratio = ratios(&many.arrival, &few.arrival)?.median();
    report.figures.push(Figure::new("nodes.arrival.at_1000_vs_10", ratio, "ratio").at_most(1.5));
    report.text = format!(
        "A Node object comes and goes, {} times, among others that stay. From before its file is written to the\n\
         kernel's word of its route; in between are the file system's notice, the index, the tables and the plan. Last\n\
         comes nftables' set of what is inside of the cluster, and with that the next change may begin.\n\n{}",
        few.arrival.len(),
        table(
            &["nodes that are there", "arrival to route, ms", "arrival to set, ms", "leave to no route, ms"],
            &rows
        )
    );
    Ok(report)
}
