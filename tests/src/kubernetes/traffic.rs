//! Datagrams every millisecond between two pods, each counted: what a restart loses, and what it lets
//! through.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::namespace::Namespace;
use crate::wait::await_until;

/// Time between two datagrams.
const PERIOD: Duration = Duration::from_millis(1);
/// Time that the last one may take on its way.
const LAST: Duration = Duration::from_secs(2);

/// What was sent and what arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Those that the other pod has received, each once.
    pub received: u64,
}

/// A flow of datagrams; it ends when this is dropped.
#[derive(Debug)]
pub struct Flow {
    state: Arc<State>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    sent: AtomicU64,
    received: AtomicU64,
    /// Microseconds from `start` until the last one arrived.
    last: AtomicU64,
    start: OnceLock<Instant>,
    /// Nothing more is to be sent.
    sent_all: AtomicBool,
    /// Nothing more is waited for.
    over: AtomicBool,
}

impl State {
    fn tally(&self) -> Tally {
        // In this order, or more might have arrived than were sent.
        let received = self.received.load(Ordering::SeqCst);
        Tally { sent: self.sent.load(Ordering::SeqCst), received }
    }
}

impl Flow {
    /// Starts it from a pod to an address and port of another one, which must be free there.
    ///
    /// # Errors
    /// When there is no such address or way.
    pub async fn start(from: &Namespace, to: &Namespace, address: SocketAddr) -> Result<Self> {
        let receiver = to.run(move || UdpSocket::bind(address)).await?.context("no socket to receive")?;
        receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
        let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
        let connect = move || {
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            std::io::Result::Ok(socket)
        };
        let sender = from.run(connect).await?.context("no socket to send")?;
        let state = Arc::<State>::default();
        let own = state.clone();
        let sender = std::thread::spawn(move || {
            while !own.sent_all.load(Ordering::SeqCst) {
                let number = own.sent.fetch_add(1, Ordering::SeqCst);
                // An error about one before is none about this one; what does not leave counts as lost.
                let _ = sender.send(&number.to_be_bytes());
                std::thread::sleep(PERIOD);
            }
        });
        let own = state.clone();
        let receiver = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            let mut buffer = [0; 8];
            while !own.over.load(Ordering::SeqCst) {
                let arrived = receiver.recv(&mut buffer).is_ok();
                if arrived && seen.insert(u64::from_be_bytes(buffer)) {
                    let after = own.start.get_or_init(Instant::now).elapsed().as_micros();
                    own.last.store(u64::try_from(after).unwrap_or(u64::MAX), Ordering::SeqCst);
                    own.received.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Ok(Self { state, sender: Some(sender), receiver: Some(receiver) })
    }

    /// What was counted so far.
    pub fn so_far(&self) -> Tally {
        self.state.tally()
    }

    /// When the last one arrived, if any has.
    pub fn last(&self) -> Option<Instant> {
        let start = self.state.start.get()?;
        Some(*start + Duration::from_micros(self.state.last.load(Ordering::SeqCst)))
    }

    /// Ends it, after the last datagram has had its time to arrive.
    pub async fn end(mut self) -> Tally {
        self.state.sent_all.store(true, Ordering::SeqCst);
        // It can only have panicked, and then has sent less.
        let _ = self.sender.take().map(JoinHandle::join);
        // All may have arrived, or some never will.
        let state = &self.state;
        let all = async || Ok(state.tally().received == state.tally().sent);
        let _ = await_until("all datagrams", LAST, all).await;
        self.state.tally()
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.state.sent_all.store(true, Ordering::SeqCst);
        self.state.over.store(true, Ordering::SeqCst);
        for thread in [self.sender.take(), self.receiver.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }
}
