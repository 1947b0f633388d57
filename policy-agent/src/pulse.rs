//! By which a loop shows that it goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a loop moves whenever it has got on.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// Moves it.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was moved.
    pub fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
