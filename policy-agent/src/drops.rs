//! Dropped packets as events: read from the datapath, explained by the engine, kept and handed on here.
//!
//! ```text
//! ring buffer ──records──▶ read ──▶ engine (names, policies) ──events──▶ Log: history ──▶ who asks
//!  (full: counted)          rests as it cost                              └ followers (slow: skipped, told)
//! ```
//!
//! Nothing here grows with what is dropped: a batch is read when the one before has been explained, the
//! history has a fixed length, and a follower that lags is told how many events it missed.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fairlead_api::drops::DropEvent;
use fairlead_datapath::{EventLosses, Events, Losses};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::engine::{EngineHandle, Message, Published};

/// Events that are kept for those who ask later.
const HISTORY: usize = 4096;
/// Events that a follower may lag behind.
const LAG: usize = 1024;
/// Records that are explained together.
const TOGETHER: usize = 64;
/// What is rested after a batch, in times of what it took: the engine spends a fifth of its time on
/// drops at most, however many there are.
const REST: u32 = 4;
/// The ring buffer is looked into at least this often.
const REGULARLY: Duration = Duration::from_secs(1);

struct Kept {
    history: VecDeque<Arc<DropEvent>>,
    seen: u64,
}

/// What was dropped lately, and who is to hear of more.
#[derive(Clone)]
pub struct Log {
    kept: Arc<Mutex<Kept>>,
    followers: broadcast::Sender<Arc<DropEvent>>,
    losses: Option<Arc<EventLosses>>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

/// Events that were seen, and drops that have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events since the agent started.
    pub seen: u64,
    /// Drops without an event.
    pub losses: Losses,
}

impl Log {
    /// An empty one. Without `losses` none are counted.
    pub fn new(losses: Option<EventLosses>) -> Self {
        let kept = Kept { history: VecDeque::with_capacity(HISTORY), seen: 0 };
        Self {
            kept: Arc::new(Mutex::new(kept)),
            followers: broadcast::Sender::new(LAG),
            losses: losses.map(Arc::new),
        }
    }

    /// Takes new events.
    pub fn push(&self, events: impl IntoIterator<Item = DropEvent>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events.into_iter().map(Arc::new) {
            kept.seen += 1;
            if kept.history.len() == HISTORY {
                kept.history.pop_front();
            }
            kept.history.push_back(event.clone());
            // Nobody may be following. Under the lock, so that who subscribes misses none.
            let _ = self.followers.send(event);
        }
    }

    /// The events that are kept, and those to come.
    pub fn subscribe(&self) -> (Vec<Arc<DropEvent>>, broadcast::Receiver<Arc<DropEvent>>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.history.iter().cloned().collect(), self.followers.subscribe())
    }

    /// How many there were.
    ///
    /// # Errors
    /// Where the kernel does not say what was lost.
    pub fn counts(&self) -> Result<Counts, fairlead_datapath::Error> {
        let losses = self.losses.as_ref().map(|losses| losses.read()).transpose()?.unwrap_or_default();
        let seen = self.kept.lock().unwrap_or_else(PoisonError::into_inner).seen;
        Ok(Counts { seen, losses })
    }
}

#[expect(deprecated, reason = "its successor is unsafe; the descriptor stays the same while it is watched")]
fn watched(events: Events) -> io::Result<AsyncFd<Events>> {
    AsyncFd::with_interest(events, Interest::READABLE)
}

/// Reads dropped packets for ever, from when the agent is in force; ends with the engine.
///
/// # Errors
/// Where the ring buffer cannot be waited for.
pub async fn read(
    events: Events,
    engine: EngineHandle,
    mut published: watch::Receiver<Published>,
    log: Log,
) -> io::Result<()> {
    // Before that, nobody knows the endpoints' names.
    if published.wait_for(|p| p.active).await.is_err() {
        return Ok(());
    }
    let mut events = watched(events)?;
    loop {
        let mut batch = Vec::new();
        while batch.len() < TOGETHER
            && let Some(record) = events.get_mut().take()
        {
            batch.push(record);
        }
        if batch.is_empty() {
            if let Ok(guard) = tokio::time::timeout(REGULARLY, events.readable()).await {
                // Cleared before it is read again, so that no notice is missed.
                guard?.clear_ready();
            }
            continue;
        }
        let started = Instant::now();
        let Ok(explained) = engine.ask(|reply| Message::Resolve(batch, reply)).await else {
            return Ok(());
        };
        log.push(explained);
        tokio::time::sleep(started.elapsed() * REST).await;
    }
}

/// RFC 3339 in UTC with milliseconds.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + month / 10, (month + 2) % 12 + 1);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_800, "2000-03-01T00:00:00.007Z"),
            (1_735_689_599, "2024-12-31T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7);
            assert_eq!(timestamp(time), text);
        }
    }
}
