//! Whether the agent's loops go on, which `/healthz` tells.
//!
//! A loop that is busy, or gets little of a busy machine, is not stuck: it moves, if slowly. One is stuck that has not
//! moved for [`STUCK`] looks, though it had something to do. Looks are counted instead of time, so that whatever stops
//! the whole process for a while (a frozen control group, a machine that is suspended or out of memory) stops the
//! looks as well.
//!
//! Who looks has a thread of its own, together with the server for probes: neither waits for what it watches.

use std::time::Duration;

use tokio::sync::watch;

use crate::engine::{EngineHandle, Message};
use crate::pulse::Pulse;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks without a move after which a loop is stuck: one message or one endpoint takes milliseconds, and seconds where
/// the kernel removes many interfaces meanwhile.
const STUCK: u32 = 20;

/// Moves a pulse for ever, from the loop that runs this.
pub async fn beat(pulse: Pulse) {
    loop {
        pulse.beat();
        tokio::time::sleep(LOOK).await;
    }
}

/// One loop, as it is seen from outside.
#[derive(Debug)]
struct Watched {
    name: &'static str,
    pulse: Pulse,
    /// Beats at the last look.
    seen: u64,
    /// Looks since they were others.
    still: u32,
}

impl Watched {
    fn new(name: &'static str, pulse: Pulse) -> Self {
        Self { name, seen: pulse.beats(), pulse, still: 0 }
    }

    /// Looks; whether it is stuck.
    fn look(&mut self) -> bool {
        let beats = self.pulse.beats();
        self.still = if beats == self.seen { self.still.saturating_add(1) } else { 0 };
        self.seen = beats;
        self.still >= STUCK
    }
}

/// Looks at the engine and at the loop that everything else runs on.
#[derive(Debug)]
pub struct Watch {
    engine: Watched,
    main: Watched,
    handle: EngineHandle,
}

impl Watch {
    /// One of an engine, and of the loop that runs [`beat`] with `main`.
    pub fn new(handle: EngineHandle, main: Pulse) -> Self {
        let engine = Watched::new("the engine", handle.pulse().clone());
        Self { engine, main: Watched::new("the main loop", main), handle }
    }

    /// Looks once; names of loops that are stuck.
    fn look(&mut self) -> Vec<&'static str> {
        let stuck: Vec<_> = [&mut self.engine, &mut self.main]
            .into_iter()
            .filter_map(|l| l.look().then_some(l.name))
            .collect();
        // So that it has something to do until the next look, but no more with each look at one that is stuck.
        if self.engine.still == 0 {
            self.handle.tell(Message::Beat);
        }
        stuck
    }

    /// Looks for ever.
    pub async fn run(mut self, stuck: watch::Sender<Vec<&'static str>>) {
        loop {
            let now = self.look();
            stuck.send_if_modified(|before| {
                if *before == now {
                    return false;
                }
                if now.is_empty() {
                    tracing::warn!("{} got on again", before.join(" and "));
                } else {
                    tracing::error!("stuck: {}", now.join(" and "));
                }
                *before = now;
                true
            });
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::engine::tests::{Running, policy};

    /// An engine and who looks at it; the other loop always moves.
    async fn watched() -> (Running, Watch, Pulse) {
        let engine = Running::ready(Duration::from_secs(60)).await;
        let main = Pulse::default();
        let watch = Watch::new(engine.handle.clone(), main.clone());
        (engine, watch, main)
    }

    #[tokio::test]
    async fn an_engine_that_the_kernel_holds_is_stuck_until_it_gets_on() {
        let (engine, mut watch, main) = watched().await;
        let held = engine.held();
        engine.batch(&[policy("deny", json!({"podSelector": {}}))]);
        // It may get on a little before it comes to where it is held.
        let stuck = loop {
            main.beat();
            let stuck = watch.look();
            if !stuck.is_empty() {
                break stuck;
            }
        };
        assert_eq!(stuck, ["the engine"]);
        drop(held);
        engine.snapshot().await;
        main.beat();
        assert_eq!(watch.look(), [""; 0]);
    }

    #[tokio::test]
    async fn an_engine_that_gets_on_slowly_is_not_stuck() {
        let (engine, mut watch, main) = watched().await;
        for round in 0..5 {
            engine.snapshot().await;
            let held = engine.held();
            engine.batch(&[policy(&format!("deny-{round}"), json!({"podSelector": {}}))]);
            for _ in 0..STUCK {
                main.beat();
                assert_eq!(watch.look(), [""; 0]);
            }
            drop(held);
        }
    }

    #[tokio::test]
    async fn an_engine_without_work_is_not_stuck() {
        let (engine, mut watch, main) = watched().await;
        for _ in 0..2 * STUCK {
            main.beat();
            assert_eq!(watch.look(), [""; 0]);
            // Whatever it was told at the look has been taken.
            engine.snapshot().await;
        }
    }

    #[tokio::test]
    async fn the_main_loop_is_stuck_when_it_does_not_beat() {
        let (engine, mut watch, main) = watched().await;
        for look in 1..=STUCK {
            engine.snapshot().await;
            assert_eq!(watch.look().is_empty(), look < STUCK, "look {look}");
        }
        assert_eq!(watch.look(), ["the main loop"]);
        main.beat();
        assert_eq!(watch.look(), [""; 0]);
    }
}
