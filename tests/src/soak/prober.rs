//! Probes at random, all from one thread.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::flows::Flows;
use super::history::{Expected, History, PORTS, Probed, Question};
use super::random::Random;
use super::sockets::{Netns, Outcome, echo};
use super::steady::Steady;

/// Time between two volleys of probes.
const VOLLEY: Duration = Duration::from_millis(10);
/// Probes of a volley: 1,200 a second.
const PROBES: u32 = 12;

/// What was probed.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// By UDP, IPv6, across nodes.
    sent: [AtomicU64; 8],
    pub(super) passed: AtomicU64,
    pub(super) dropped: AtomicU64,
    /// Judged against exactly one verdict.
    pub(super) certain: AtomicU64,
    /// Either verdict was right, since a mutation was under way.
    pub(super) either: AtomicU64,
    /// Given up, since a pod was deleted.
    pub(super) cancelled: AtomicU64,
    pub(super) wrong: AtomicU64,
}

impl Counts {
    /// Probes sent that are of UDP, IPv6, or across nodes, as asked.
    pub(super) fn sent(&self, udp: Option<bool>, ipv6: Option<bool>, across: Option<bool>) -> u64 {
        let is = |wanted: Option<bool>, bit: usize| wanted.is_none_or(|wanted| wanted == (bit != 0));
        let chosen = self.sent.iter().enumerate();
        let chosen = chosen.filter(|(i, _)| is(udp, i & 1) && is(ipv6, i & 2) && is(across, i & 4));
        chosen.map(|(_, n)| n.load(Relaxed)).sum()
    }
}

/// A probe with the wrong outcome.
#[derive(Clone, Debug)]
pub(super) struct Wrong {
    pub(super) question: Question,
    pub(super) from: Probed,
    pub(super) to: Probed,
    pub(super) expected: Expected,
    pub(super) outcome: Outcome,
    /// On a socket that had been used for the same question before.
    pub(super) reused: bool,
    /// Since the last mutation, when it was sent and when it was over.
    pub(super) age: [Duration; 2],
}

enum Order {
    Add(Box<Probed>, u8, Netns, oneshot::Sender<Result<()>>),
    Remove(super::history::PodId, oneshot::Sender<()>),
    Flows(Box<Steady>, oneshot::Sender<Result<Flows>>),
    Stop(oneshot::Sender<()>),
}

/// The thread that probes.
#[derive(Debug)]
pub(super) struct Prober {
    orders: mpsc::UnboundedSender<Order>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Prober {
    pub(super) fn start(
        history: Arc<History>,
        counts: Arc<Counts>,
        wrong: mpsc::UnboundedSender<Wrong>,
        seed: u64,
    ) -> Result<Self> {
        let (orders, mut queue) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = async move {
            let mut state = State {
                random: Random::new(seed),
                pods: Vec::new(),
                shared: Arc::new(Shared { history, counts, wrong, used: Mutex::default() }),
                number: 0,
            };
            let mut volleys = tokio::time::interval(VOLLEY);
            // After a pause the missed ones follow, so that the rate holds.
            volleys.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
            loop {
                tokio::select! {
                    biased;
                    order = queue.recv() => match order {
                        None => return,
                        Some(Order::Stop(done)) => {
                            let _ = done.send(());
                            return;
                        }
                        Some(order) => state.obey(order).await,
                    },
                    _ = volleys.tick() => state.volley(),
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("prober".to_owned()).spawn(move || runtime.block_on(work))?;
        Ok(Self { orders, thread: Some(thread) })
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        self.orders.send(order(sender)).map_err(|_| anyhow!("the prober has ended"))?;
        answer.await.context("the prober has ended")
    }

    /// Probes from and to a pod from now on.
    pub(super) async fn add(&self, pod: Probed, node: u8, netns: Netns) -> Result<()> {
        self.order(|done| Order::Add(Box::new(pod), node, netns, done)).await?
    }

    /// Leaves a pod alone: when this returns, no socket of its is left.
    pub(super) async fn remove(&self, pod: super::history::PodId) -> Result<()> {
        self.order(|done| Order::Remove(pod, done)).await
    }

    /// Starts the flows that nothing may touch.
    pub(super) async fn flows(&self, steady: Steady) -> Result<Flows> {
        self.order(|done| Order::Flows(Box::new(steady), done)).await?
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        self.order(Order::Stop).await?;
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Err(_)) => Err(anyhow!("the prober panicked")),
            _ => Ok(()),
        }
    }
}

struct Target {
    pod: Probed,
    node: u8,
    netns: Netns,
    alive: AtomicBool,
}

struct Served {
    target: Arc<Target>,
    servers: Vec<JoinHandle<()>>,
}

struct Shared {
    history: Arc<History>,
    counts: Arc<Counts>,
    wrong: mpsc::UnboundedSender<Wrong>,
    /// UDP sockets whose flow is known.
    used: Mutex<HashMap<Question, UdpSocket>>,
}

impl Shared {
    fn used(&self) -> std::sync::MutexGuard<'_, HashMap<Question, UdpSocket>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct State {
    random: Random,
    pods: Vec<Served>,
    shared: Arc<Shared>,
    number: u64,
}

impl State {
    async fn obey(&mut self, order: Order) {
        match order {
            Order::Add(pod, node, netns, done) => {
                let result = self.add(*pod, node, netns).map_err(anyhow::Error::from);
                let _ = done.send(result);
            }
            Order::Remove(id, done) => {
                if let Some(at) = self.pods.iter().position(|p| p.target.pod.id == id) {
                    let served = self.pods.swap_remove(at);
                    served.target.alive.store(false, Relaxed);
                    for server in served.servers {
                        server.abort();
                        let _ = server.await;
                    }
                    self.shared.used().retain(|question, _| question.from != id && question.to != id);
                }
                let _ = done.send(());
            }
            Order::Flows(steady, done) => {
                let _ = done.send(Flows::start(*steady).await);
            }
            Order::Stop(_) => {}
        }
    }

    fn add(&mut self, pod: Probed, node: u8, netns: Netns) -> std::io::Result<()> {
        let mut servers = Vec::new();
        for port in PORTS {
            servers.push(tokio::spawn(serve_tcp(netns.tcp_server(port)?)));
            servers.push(tokio::spawn(serve_udp(netns.udp_server(port)?)));
        }
        let target = Arc::new(Target { pod, node, netns, alive: AtomicBool::new(true) });
        self.pods.push(Served { target, servers });
        Ok(())
    }

    fn volley(&mut self) {
        if self.pods.len() < 2 {
            return;
        }
        for _ in 0..PROBES {
            let from = self.random.below(self.pods.len());
            let to = (from + 1 + self.random.below(self.pods.len() - 1)) % self.pods.len();
            let (from, to) = (self.pods[from].target.clone(), self.pods[to].target.clone());
            let question = Question {
                from: from.pod.id,
                to: to.pod.id,
                udp: self.random.below(2) == 1,
                port: self.random.below(PORTS.len()),
                ipv6: self.random.below(2) == 1,
            };
            self.number += 1;
            let reuse = self.random.below(2) == 1;
            tokio::spawn(probe(self.shared.clone(), question, from, to, reuse, self.number));
        }
    }
}

async fn serve_tcp(listener: TcpListener) {
    // Fails only for a connection that has been reset already.
    loop {
        drop(listener.accept().await);
    }
}

async fn serve_udp(socket: UdpSocket) {
    let mut buffer = [0; 64];
    loop {
        if let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            // A client that is gone is no error of the server's.
            let _ = socket.send_to(&buffer[..length], client).await;
        }
    }
}

async fn probe(
    shared: Arc<Shared>,
    question: Question,
    from: Arc<Target>,
    to: Arc<Target>,
    reuse: bool,
    number: u64,
) {
    let kind =
        usize::from(question.udp) | usize::from(question.ipv6) << 1 | usize::from(from.node != to.node) << 2;
    shared.counts.sent[kind].fetch_add(1, Relaxed);
    let address = SocketAddr::new(to.pod.addresses[usize::from(question.ipv6)], PORTS[question.port]);
    let sent = Instant::now();
    let mut reused = false;
    let outcome = if question.udp {
        let used = if reuse { shared.used().remove(&question) } else { None };
        reused = used.is_some();
        let socket = match used {
            Some(socket) => Ok(socket),
            None => from.netns.udp_client(address).await,
        };
        match socket {
            Ok(socket) => {
                let outcome = echo(&socket, number).await;
                if from.alive.load(Relaxed) && to.alive.load(Relaxed) {
                    shared.used().insert(question, socket);
                }
                outcome
            }
            Err(e) => Outcome::Fault(format!("socket: {e}")),
        }
    } else {
        from.netns.try_tcp(address).await
    };
    let done = Instant::now();
    if !from.alive.load(Relaxed) || !to.alive.load(Relaxed) {
        shared.counts.cancelled.fetch_add(1, Relaxed);
        return;
    }
    let expected = shared.history.expected(question, sent, done);
    let right = match (&outcome, expected) {
        (Outcome::Pass, Expected::Drop) | (Outcome::Silence, Expected::Pass) | (Outcome::Fault(_), _) => {
            false
        }
        (Outcome::Pass | Outcome::Silence, _) => true,
    };
    let passed = if outcome == Outcome::Pass { &shared.counts.passed } else { &shared.counts.dropped };
    passed.fetch_add(1, Relaxed);
    let certain = if expected == Expected::Either { &shared.counts.either } else { &shared.counts.certain };
    certain.fetch_add(1, Relaxed);
    if !right {
        shared.counts.wrong.fetch_add(1, Relaxed);
        let age = [shared.history.age(sent), shared.history.age(done)];
        let (from, to) = (from.pod.clone(), to.pod.clone());
        // Whoever reads it may have ended the soak.
        let _ = shared.wrong.send(Wrong { question, from, to, expected, outcome, reused, age });
    }
}
