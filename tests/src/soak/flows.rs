//! Flows with numbers: of those that are always allowed nothing may be lost, of those that are always
//! denied nothing may come through.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::sockets::{Outcome, lost_segments};
use super::steady::{ALLOWED, CLOSED_BY_EGRESS, CLOSED_BY_INGRESS, Steady};

/// Time between two packets of a flow.
const PACE: Duration = Duration::from_millis(100);
/// Time for what was sent last to arrive.
const LINGER: Duration = Duration::from_secs(1);

/// What flowed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Flows that are always allowed.
    pub(super) allowed_flows: u64,
    /// Their packets, both directions.
    pub(super) allowed_packets: u64,
    /// Those that did not arrive, or not in order.
    pub(super) lost: u64,
    /// Flows that are always denied.
    pub(super) denied_flows: u64,
    /// Their packets.
    pub(super) denied_packets: u64,
    /// Those that arrived.
    pub(super) through: u64,
}

#[derive(Debug, Default)]
struct Counts {
    allowed: AtomicU64,
    lost: AtomicU64,
    denied: AtomicU64,
    through: AtomicU64,
}

/// Running flows.
#[derive(Debug)]
pub(super) struct Flows {
    stop: watch::Sender<bool>,
    clients: Vec<JoinHandle<Result<()>>>,
    servers: Vec<JoinHandle<()>>,
    counts: Arc<Counts>,
    broken: Arc<AtomicBool>,
    flows: [u64; 2],
}

impl Flows {
    /// Starts them: every pair of steady pods, each protocol and family.
    pub(super) async fn start(steady: Steady) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let counts = Arc::new(Counts::default());
        let mut flows = Self {
            stop,
            clients: Vec::new(),
            servers: Vec::new(),
            counts,
            broken: Arc::default(),
            flows: [0; 2],
        };
        let mut port = ALLOWED;
        for (netns, _) in &steady.pods {
            for closed in [CLOSED_BY_INGRESS, CLOSED_BY_EGRESS] {
                flows.servers.push(tokio::spawn(sink(netns.udp_server(closed)?, flows.counts.clone())));
                flows.servers.push(tokio::spawn(trap(netns.tcp_server(closed)?, flows.counts.clone())));
            }
        }
        for (i, (from, _)) in steady.pods.iter().enumerate() {
            for (_, (to, addresses)) in steady.pods.iter().enumerate().filter(|(j, _)| *j != i) {
                for address in addresses {
                    port += 1;
                    let at = SocketAddr::new(*address, port);
                    let server = to.udp_server(port)?;
                    flows.servers.push(tokio::spawn(mirror(server)));
                    let client = from.udp_client(at).await?;
                    let udp = udp(client, flows.counts.clone(), stopped.clone());
                    flows.clients.push(tokio::spawn(udp));
                    let listener = to.tcp_server(port)?;
                    let client = from.tcp(at)?;
                    let tcp = tcp(listener, client, at, flows.counts.clone(), stopped.clone());
                    flows.clients.push(tokio::spawn(tcp));
                    flows.flows[0] += 2;
                    for closed in [CLOSED_BY_INGRESS, CLOSED_BY_EGRESS] {
                        let at = SocketAddr::new(*address, closed);
                        let client = from.udp_client(at).await?;
                        let denied = denied(client, flows.counts.clone(), stopped.clone());
                        flows.clients.push(tokio::spawn(denied));
                        flows.flows[1] += 2;
                    }
                }
            }
        }
        // Connections, which take turns: each attempt is one SYN.
        let (counts, mut stopped) = (flows.counts.clone(), stopped);
        let broken = flows.broken.clone();
        flows.clients.push(tokio::spawn(async move {
            let pods = &steady.pods;
            let mut turn = 0;
            while !*stopped.borrow_and_update() {
                let (from, to) = (turn % pods.len(), (turn + 1 + turn / 4 % 2) % pods.len());
                let closed = if turn % 2 == 0 { CLOSED_BY_INGRESS } else { CLOSED_BY_EGRESS };
                let at = SocketAddr::new(pods[to].1[turn / 2 % 2], closed);
                counts.denied.fetch_add(1, Relaxed);
                match pods[from].0.try_tcp(at).await {
                    Outcome::Silence => {}
                    Outcome::Pass => drop(counts.through.fetch_add(1, Relaxed)),
                    Outcome::Fault(_) => broken.store(true, Relaxed),
                }
                turn += 1;
            }
            Ok(())
        }));
        Ok(flows)
    }

    /// What flowed so far.
    pub(super) fn tally(&self) -> Tally {
        Tally {
            allowed_flows: self.flows[0],
            allowed_packets: self.counts.allowed.load(Relaxed),
            lost: self.counts.lost.load(Relaxed),
            denied_flows: self.flows[1],
            denied_packets: self.counts.denied.load(Relaxed),
            through: self.counts.through.load(Relaxed),
        }
    }

    /// Ends them.
    ///
    /// # Errors
    /// When a flow broke, instead of losing packets.
    pub(super) async fn stop(mut self) -> Result<Tally> {
        self.stop.send_replace(true);
        for client in std::mem::take(&mut self.clients) {
            client.await.context("a flow panicked")??;
        }
        for server in &self.servers {
            server.abort();
        }
        ensure!(!self.broken.load(Relaxed), "an attempt to connect to a closed port was refused");
        Ok(self.tally())
    }
}

async fn sink(socket: UdpSocket, counts: Arc<Counts>) {
    let mut buffer = [0; 64];
    while socket.recv(&mut buffer).await.is_ok() {
        counts.through.fetch_add(1, Relaxed);
    }
}

async fn trap(listener: TcpListener, counts: Arc<Counts>) {
    while listener.accept().await.is_ok() {
        counts.through.fetch_add(1, Relaxed);
    }
}

async fn mirror(socket: UdpSocket) {
    let mut buffer = [0; 64];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        let _ = socket.send_to(&buffer[..length], client).await;
    }
}

async fn denied(socket: UdpSocket, counts: Arc<Counts>, stopped: watch::Receiver<bool>) -> Result<()> {
    while !*stopped.borrow() {
        socket.send(&[0; 8]).await.context("denied flow")?;
        counts.denied.fetch_add(1, Relaxed);
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

/// Numbers to a mirror: each must come back, in order.
async fn udp(socket: UdpSocket, counts: Arc<Counts>, stopped: watch::Receiver<bool>) -> Result<()> {
    let socket = Arc::new(socket);
    let receiver = socket.clone();
    let back = Arc::new(AtomicU64::new(0));
    let arrived = back.clone();
    let receiving: JoinHandle<std::io::Result<u64>> = tokio::spawn(async move {
        let (mut next, mut wrong) = (0_u64, 0);
        let mut buffer = [0; 8];
        loop {
            receiver.recv(&mut buffer).await?;
            if u64::from_ne_bytes(buffer) == u64::MAX {
                return Ok(wrong);
            }
            let number = u64::from_ne_bytes(buffer);
            wrong += u64::from(number != next);
            next = number + 1;
            arrived.fetch_add(1, Relaxed);
        }
    });
    let mut sent = 0_u64;
    while !*stopped.borrow() {
        socket.send(&sent.to_ne_bytes()).await.context("UDP flow")?;
        sent += 1;
        // There and back.
        counts.allowed.fetch_add(2, Relaxed);
        tokio::time::sleep(PACE).await;
    }
    tokio::time::sleep(LINGER).await;
    let missing = sent - back.load(Relaxed).min(sent);
    // The end is told, too; the connection is there.
    socket.send(&u64::MAX.to_ne_bytes()).await.context("UDP flow")?;
    let disordered = tokio::time::timeout(LINGER, receiving).await.context("UDP flow is dead")???;
    counts.lost.fetch_add(missing.max(disordered), Relaxed);
    Ok(())
}

/// Numbers both ways over a connection, which no segment may be lost of.
async fn tcp(
    listener: TcpListener,
    client: tokio::net::TcpSocket,
    at: SocketAddr,
    counts: Arc<Counts>,
    stopped: watch::Receiver<bool>,
) -> Result<()> {
    let connected =
        tokio::time::timeout(LINGER, async { tokio::join!(client.connect(at), listener.accept()) });
    let (client, server) = connected.await.with_context(|| format!("TCP flow to {at} does not open"))?;
    let (mut client, (mut server, _)) = (client?, server?);
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut number = 0_u64;
    while !*stopped.borrow() {
        client.write_all(&number.to_ne_bytes()).await?;
        server.write_all(&(!number).to_ne_bytes()).await?;
        let read = async { tokio::join!(server.read_u64_le(), client.read_u64_le()) };
        let (there, back) = tokio::time::timeout(10 * LINGER, read)
            .await
            .with_context(|| format!("TCP flow to {at} is dead after {number} rounds"))?;
        ensure!(
            (there?, back?) == (number.to_le(), (!number).to_le()),
            "TCP flow to {at} delivers something else"
        );
        counts.allowed.fetch_add(2, Relaxed);
        number += 1;
        tokio::time::sleep(PACE).await;
    }
    let lost = lost_segments(&client)? + lost_segments(&server)?;
    counts.lost.fetch_add(lost.into(), Relaxed);
    Ok(())
}
