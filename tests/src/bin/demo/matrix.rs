//! Who reaches whom, measured by real connections, all at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_tests::cluster::{CLIENTS, Cluster};
use fairlead_tests::probe::{Outcome, connect_as};
use fairlead_tests::shop;

/// How long a connection may take. What is denied costs all of it; a second SYN fits in.
const LIMIT: Duration = Duration::from_millis(1500);
/// Name of the client outside.
pub(crate) const OUTSIDE: &str = "(outside)";

/// What one client found of one server: each of both ports, in each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Families in which the served port answered.
    served: u8,
    /// Families in which the second port answered.
    second: u8,
    /// Connections that ended otherwise than a policy ends them, or reached or showed a wrong address.
    faults: u8,
}

/// What a pair should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Both ports open.
    Both,
    /// The served port open, the second closed.
    Served,
    /// Both closed.
    Closed,
}

impl Cell {
    fn is(self, wanted: Wanted) -> bool {
        let (served, second) = match wanted {
            Wanted::Both => (2, 2),
            Wanted::Served => (2, 0),
            Wanted::Closed => (0, 0),
        };
        (self.served, self.second, self.faults) == (served, second, 0)
    }

    fn symbol(self) -> char {
        match (self.served, self.second, self.faults) {
            (2, 2, 0) => '#',
            (2, 0, 0) => 'o',
            (0, 0, 0) => '.',
            _ => '!',
        }
    }
}

/// Results by client and server.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    cells: BTreeMap<(String, String), Cell>,
    /// What was odd, for people.
    faults: Vec<String>,
}

/// One connection to try.
struct Probe {
    client: String,
    source: Option<IpAddr>,
    server: String,
    to: SocketAddr,
    seen_as: IpAddr,
    second: bool,
}

impl Matrix {
    /// Tries every ordered pair of pods and every pod from outside, on both ports, in both families.
    pub(crate) async fn measure(cluster: &Cluster) -> Result<Self> {
        let probes = probes(cluster)?;
        let outcomes = join(probes.iter().map(|probe| async {
            let from = match cluster.pod(&probe.client) {
                Ok(pod) => &pod.namespace,
                Err(_) => cluster.outside(),
            };
            connect_as(from, probe.source, probe.to, LIMIT).await
        }))
        .await;
        let mut matrix = Self::default();
        for (probe, outcome) in probes.iter().zip(outcomes) {
            matrix.note(probe, outcome?);
        }
        Ok(matrix)
    }

    fn note(&mut self, probe: &Probe, outcome: Outcome) {
        let cell = self.cells.entry((probe.client.clone(), probe.server.clone())).or_default();
        let fault = match outcome {
            Outcome::Open(c) if c.server != probe.server => format!("answered by {}", c.server),
            Outcome::Open(c) if c.seen_as != probe.seen_as => format!("seen as {}", c.seen_as),
            Outcome::Open(_) => {
                *(if probe.second { &mut cell.second } else { &mut cell.served }) += 1;
                return;
            }
            Outcome::Silent => return,
            Outcome::Fault(fault) => fault,
        };
        cell.faults += 1;
        self.faults.push(format!("{} to {} ({}): {fault}", probe.client, probe.server, probe.to));
    }

    /// How many of the pairs that `wanted` names are what it says, of how many; pods only, or from
    /// outside only.
    pub(crate) fn count(
        &self,
        outside: bool,
        wanted: impl Fn(&str, &str) -> Option<Wanted>,
    ) -> (usize, usize) {
        let mut counts = (0, 0);
        for ((client, server), cell) in self.cells.iter().filter(|((c, _), _)| (c == OUTSIDE) == outside) {
            if let Some(wanted) = wanted(client, server) {
                counts.0 += usize::from(cell.is(wanted));
                counts.1 += 1;
            }
        }
        counts
    }

    /// The matrix as text: a row for each client.
    pub(crate) fn render(&self, colour: bool) -> String {
        let servers: BTreeSet<&String> = self.cells.keys().map(|(_, server)| server).collect();
        let clients: BTreeSet<&String> = self.cells.keys().map(|(client, _)| client).collect();
        let mut text = format!("  {:>16}", "from \\ to");
        for server in &servers {
            let _ = write!(text, " {:<4.4}", server);
        }
        text.push('\n');
        for client in clients {
            let _ = write!(text, "  {client:>16}");
            for server in &servers {
                let symbol =
                    self.cells.get(&(client.clone(), (*server).clone())).map_or(' ', |cell| cell.symbol());
                let code = match symbol {
                    '#' => "32;1",
                    'o' => "32",
                    '.' => "2",
                    _ => "31;1",
                };
                let _ = match colour {
                    true => write!(text, "  \x1b[{code}m{symbol}\x1b[0m  "),
                    false => write!(text, "  {symbol}  "),
                };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        for fault in self.faults.iter().take(10) {
            let _ = writeln!(text, "  ! {fault}");
        }
        text
    }
}

fn probes(cluster: &Cluster) -> Result<Vec<Probe>> {
    let mut probes = Vec::new();
    for server in cluster.pods() {
        let ports =
            server.spec.ports.get(..2).with_context(|| format!("{} needs two ports", server.spec.name))?;
        for (second, &port) in [false, true].into_iter().zip(ports) {
            for ipv6 in [false, true] {
                let to = SocketAddr::new(server.address(ipv6)?, port);
                let probe = |client: &str, source, seen_as| Probe {
                    client: client.to_owned(),
                    source,
                    server: server.spec.name.clone(),
                    to,
                    seen_as,
                    second,
                };
                for client in cluster.pods().filter(|c| c.spec.name != server.spec.name) {
                    probes.push(probe(&client.spec.name, None, client.address(ipv6)?));
                }
                let world: IpAddr = CLIENTS[usize::from(ipv6)].parse()?;
                probes.push(probe(OUTSIDE, Some(world), world));
            }
        }
    }
    Ok(probes)
}

/// Awaits all, at the same time, on this thread.
async fn join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(move |context| {
        let mut pending = false;
        for (future, output) in running.iter_mut().filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(context) {
                std::task::Poll::Ready(value) => *output = Some(value),
                std::task::Poll::Pending => pending = true,
            }
        }
        if pending {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(running.drain(..).filter_map(|(_, output)| output).collect())
    })
    .await
}

/// What the shop's policies want of pods: nothing but the calls, less `revoked`.
pub(crate) fn shop_wants(revoked: &[(&str, &str)], client: &str, server: &str) -> Wanted {
    let call = (client, server);
    match shop::CALLS.contains(&call) && !revoked.contains(&call) {
        true => Wanted::Served,
        false => Wanted::Closed,
    }
}

/// What they want of the world.
pub(crate) fn door_wants(server: &str) -> Wanted {
    if server == shop::DOOR { Wanted::Served } else { Wanted::Closed }
}
