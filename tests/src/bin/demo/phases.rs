//! The phases of the demonstration. Each ends with a line that counts.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_tests::cluster::{Cluster, SOON};
use fairlead_tests::probe::{Connection, Outcome, connect};
use fairlead_tests::shop::{self, KEPT, NAMESPACE, REVOKED};
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object, PodSpec};

use crate::matrix::{Matrix, Wanted, door_wants, shop_wants};

/// Time within which an echo must come back, or else the connection is dead: TCP has sent again by then.
const ECHO: Duration = Duration::from_millis(1500);

/// The demonstration's state.
pub(crate) struct Demo {
    /// The nodes and what is on them.
    pub(crate) cluster: Cluster,
    policies: Vec<Object>,
    colour: bool,
    /// Lines that did not count as they should.
    wrong: Vec<String>,
}

impl Demo {
    /// Starts the nodes and wires the shop's pods.
    pub(crate) async fn start(objects: Vec<Object>, colour: bool) -> Result<Self> {
        let start = Instant::now();
        let (policies, objects) = shop::split(objects);
        let mut cluster = Cluster::start(&objects, &[]).await?;
        println!("Two nodes, an agent on each, ready after {:.1} s.", start.elapsed().as_secs_f32());
        let pods = objects.iter().filter(|o| world::kind(o) == "Pod").map(PodSpec::of);
        let pods = pods.collect::<Result<Vec<_>>>()?;
        println!("{} pods, each wired by fairlead-cni:\n", pods.len());
        for spec in &pods {
            let pod = cluster.wire(&spec.namespace, &spec.name).await?;
            for port in spec.ports.clone() {
                pod.listen(port).await?;
            }
            let addresses: Vec<_> = pod.addresses.iter().map(|a| format!("{a:<18}")).collect();
            let addresses = addresses.join(" ");
            println!(
                "  {:<16} {}  {addresses} ADD took {:.1} ms",
                spec.name,
                spec.node,
                pod.took.as_secs_f32() * 1e3
            );
        }
        println!();
        println!(
            "In the matrices: # both ports open, o the served port only, . both closed, ! anything else;"
        );
        println!("each measured by real connections over IPv4 and IPv6.\n");
        Ok(Self { cluster, policies, colour, wrong: Vec::new() })
    }

    /// All phases.
    pub(crate) async fn run(&mut self) -> Result<()> {
        self.before().await?;
        let (mut revoked, mut kept) = self.after().await?;
        self.revoke(&mut revoked, &mut kept).await?;
        self.kill(&mut kept).await
    }

    async fn before(&mut self) -> Result<()> {
        let matrix = self.measure("Before the policies").await?;
        let open = matrix.count(false, |_, _| Some(Wanted::Both));
        let outside = matrix.count(true, |_, _| Some(Wanted::Both));
        self.line(
            &format!(
                "before policies: {} of {} pairs open on both ports; outside reaches {} of {}",
                open.0, open.1, outside.0, outside.1
            ),
            open == (132, 132) && outside == (12, 12),
        );
        Ok(())
    }

    async fn after(&mut self) -> Result<(Connection, Connection)> {
        self.cluster.world().write("policies.yaml", &self.policies)?;
        self.cluster.await_isolation(|_| (true, true)).await?;
        let matrix = self.measure("After the policies").await?;
        self.shop_line("after policies", &matrix, &[], "", true);
        Ok((self.open(REVOKED).await?, self.open(KEPT).await?))
    }

    async fn revoke(&mut self, revoked: &mut Connection, kept: &mut Connection) -> Result<()> {
        if !revoked.echoes(ECHO).await? {
            bail!("the connection that is to be cut is not open");
        }
        let (client, server) = REVOKED;
        println!(
            "A connection from {client} to {server} is open. Now the rule that allows it is taken away."
        );
        let start = Instant::now();
        self.cluster.world().write("policies.yaml", &shop::without_revoked(&self.policies)?)?;
        // A lost line cannot be told from a slow one, so each look has a connection of its own.
        await_until("the rule is out of force", SOON, async || {
            Ok(self.attempt(REVOKED, Duration::from_millis(50)).await?.is_silent())
        })
        .await?;
        println!("It was out of force after at most {} ms.\n", start.elapsed().as_millis());
        let dead = !revoked.echoes(ECHO).await.unwrap_or(false);
        let alive = kept.echoes(ECHO).await.unwrap_or(false);
        let matrix = self.measure(&format!("After the rule {client} to {server} was taken away")).await?;
        let more = match (dead, alive) {
            (true, true) => "its open connection dead, another's alive",
            (false, _) => "but its open connection LIVES",
            (true, false) => "but another's connection is DEAD",
        };
        self.shop_line(
            "after a rule is taken away",
            &matrix,
            &[REVOKED],
            &format!("; {more}"),
            dead && alive,
        );
        Ok(())
    }

    async fn kill(&mut self, kept: &mut Connection) -> Result<()> {
        for node in self.cluster.node_names() {
            self.cluster.kill_agent(&node)?;
        }
        let matrix = self.measure("After SIGKILL to both agents").await?;
        let alive = kept.echoes(ECHO).await.unwrap_or(false);
        let more = if alive { "; an open connection alive" } else { "; but an open connection is DEAD" };
        self.shop_line("after SIGKILL of the agents", &matrix, &[REVOKED], more, alive);
        Ok(())
    }

    /// What went wrong, if anything.
    pub(crate) fn result(&self) -> Result<()> {
        if self.wrong.is_empty() {
            Ok(())
        } else {
            bail!("not as it should be:\n  {}", self.wrong.join("\n  "))
        }
    }

    async fn measure(&self, title: &str) -> Result<Matrix> {
        let matrix = Matrix::measure(&self.cluster).await?;
        println!("{title}:\n{}", matrix.render(self.colour));
        Ok(matrix)
    }

    fn shop_line(&mut self, phase: &str, matrix: &Matrix, revoked: &[(&str, &str)], more: &str, good: bool) {
        let of = |wanted| {
            matrix.count(false, |client, server| {
                Some(shop_wants(revoked, client, server)).filter(|&w| w == wanted)
            })
        };
        let (open, closed) = (of(Wanted::Served), of(Wanted::Closed));
        let door = matrix.count(true, |_, server| Some(door_wants(server)));
        let edges = shop::CALLS.len() - revoked.len();
        let exact = open == (edges, edges) && closed == (132 - edges, 132 - edges) && door == (12, 12);
        let outside =
            if door.0 == door.1 { "outside reaches the frontend alone" } else { "outside is WRONG" };
        self.line(
            &format!(
                "{phase}: {} of {} allowed edges open, {} of {} other pairs closed; {outside}{more}",
                open.0, open.1, closed.0, closed.1
            ),
            exact && good,
        );
    }

    fn line(&mut self, line: &str, good: bool) {
        match (self.colour, good) {
            (true, true) => println!("\x1b[1;32m{line}\x1b[0m\n"),
            (true, false) => println!("\x1b[1;31m{line}\x1b[0m\n"),
            (false, _) => println!("{line}\n"),
        }
        if !good {
            self.wrong.push(line.to_owned());
        }
    }

    async fn attempt(&self, (client, server): (&str, &str), limit: Duration) -> Result<Outcome> {
        let server = self.cluster.pod(server)?;
        let port = server.spec.ports.first().context("no port")?;
        let to = std::net::SocketAddr::new(server.address(false)?, *port);
        connect(&self.cluster.pod(client)?.namespace, to, limit).await
    }

    async fn open(&self, call: (&str, &str)) -> Result<Connection> {
        match self.attempt(call, ECHO).await? {
            Outcome::Open(connection) => Ok(connection),
            other => bail!("{} cannot connect to {}: {other:?}", call.0, call.1),
        }
    }

    /// Starts the agents again, and says how to look around.
    pub(crate) async fn guide(&mut self) -> Result<()> {
        self.cluster.start_agents().await?;
        println!("Everything is left up, and the agents run again. To look around (as root):\n");
        for node in self.cluster.nodes() {
            println!(
                "  node {}:  nsenter --target {} --net --mount    (run directory {})",
                node.spec.name,
                node.namespace.thread_id(),
                node.folders.run.path().display()
            );
        }
        for name in [REVOKED.0, REVOKED.1] {
            let pod = self.cluster.pod(name)?;
            println!("  pod {name}:  nsenter --net={}", pod.namespace.path().display());
        }
        let dist = fairlead_tests::dist();
        for node in self.cluster.nodes() {
            println!("  {}/fairlead status --run-dir {}", dist.display(), node.folders.run.path().display());
        }
        println!("  objects in namespace {NAMESPACE}: {}\n", self.cluster.world().path().display());
        println!("Ctrl-C takes everything down.");
        Ok(())
    }
}
