//! Ids that packets may still carry for a while after they were freed.

use std::collections::BTreeSet;

/// Gives out ids, lowest first.
#[derive(Debug)]
pub(super) struct Ids {
    next: u32,
    free: BTreeSet<u32>,
    waiting: Vec<(u64, u32)>,
}

impl Ids {
    /// Ids from `first`.
    pub(super) fn new(first: u32) -> Self {
        Self { next: first, free: BTreeSet::new(), waiting: Vec::new() }
    }

    /// An id that nobody uses.
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Commit `serial` frees an id.
    pub(super) fn free(&mut self, serial: u64, id: u32) {
        self.waiting.push((serial, id));
    }

    /// Ids freed by commits up to `serial` may be used again.
    pub(super) fn settled(&mut self, serial: u64) {
        let free = &mut self.free;
        self.waiting.retain(|&(at, id)| {
            let waits = at > serial;
            if !waits {
                free.insert(id);
            }
            waits
        });
    }
}
