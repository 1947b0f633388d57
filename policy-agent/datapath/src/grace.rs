//! When no packet can meet older state any more.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use tracing::error;

use crate::{Error, sys};

/// Follows the kernel's grace periods in a thread of its own: each takes milliseconds.
pub(crate) struct Grace {
    shared: Arc<(Mutex<GraceState>, Condvar)>,
}

struct GraceState {
    /// Generation that was put in force last.
    wanted: u32,
    /// No packet carries a generation older than this one.
    over: u32,
    failed: Option<String>,
    stop: bool,
}

impl Grace {
    pub(crate) fn start(generation: u32) -> Self {
        let state = GraceState { wanted: generation, over: generation, failed: None, stop: false };
        let shared = Arc::new((Mutex::new(state), Condvar::new()));
        let thread_shared = Arc::clone(&shared);
        thread::spawn(move || follow(&thread_shared));
        Self { shared }
    }

    /// A generation was put in force.
    pub(crate) fn passed(&self, generation: u32) {
        let (state, changed) = &*self.shared;
        state.lock().unwrap_or_else(PoisonError::into_inner).wanted = generation;
        changed.notify_all();
    }

    /// Whether no packet carries a generation older than this one.
    pub(crate) fn is_over(&self, generation: u32) -> bool {
        let (state, _) = &*self.shared;
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.over.wrapping_sub(generation) as i32 >= 0
    }

    /// Waits until no packet carries a generation older than this one.
    pub(crate) fn wait_for(&self, generation: u32) -> Result<(), Error> {
        let (state, changed) = &*self.shared;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        while (state.over.wrapping_sub(generation) as i32) < 0 {
            if let Some(failed) = &state.failed {
                return Err(Error::State { source: std::io::Error::other(failed.clone()) });
            }
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl Drop for Grace {
    fn drop(&mut self) {
        let (state, changed) = &*self.shared;
        state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        changed.notify_all();
    }
}

fn follow((state, changed): &(Mutex<GraceState>, Condvar)) {
    loop {
        let wanted = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            while state.wanted == state.over && !state.stop {
                state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                return;
            }
            state.wanted
        };
        let result = sys::grace_period();
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => state.over = wanted,
            Err(e) => {
                error!(error = %e, "the kernel cannot tell when packets are through");
                state.failed = Some(e.to_string());
                state.stop = true;
            }
        }
        changed.notify_all();
    }
}
