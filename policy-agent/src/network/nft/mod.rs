//! Fairlead's one table in nftables, `inet fairlead`: masquerade, and the end of what leaves unjudged.
//!
//! ```text
//! chain masquerade  postrouting, srcnat:  from this node's pods, to nobody of the cluster: masquerade
//! chain leaving     forward:              owes a verdict, and no device there would give it: drop
//! chain tunnel-in   prerouting, raw:      for the overlay's port: not tracked
//! chain tunnel-out  output, raw:          the same
//! ```
//!
//! Tables of others are neither read nor changed. See docs/decisions/0015.

mod dump;
mod inside;
mod message;
mod socket;
mod table;
#[cfg(test)]
mod tests;

use std::io;

pub(crate) use dump::{Closed, Ruleset};
pub(super) use inside::Inside;
use socket::Nfnetlink;
pub(super) use table::Contents;

/// The table as it was last put in force.
#[derive(Default)]
pub(super) struct Table {
    socket: Option<Nfnetlink>,
    /// What it holds besides what was inside when that was settled last; `None` where it is to be made anew.
    there: Option<Contents>,
    generation: u32,
}

impl Table {
    /// Puts the contents in force at once: element by element where only sets differ, else anew.
    /// Returns how many messages that took.
    ///
    /// # Errors
    /// What the kernel says; then the table is as it was.
    pub(super) fn ensure(&mut self, wanted: &Contents, inside: &mut Inside) -> io::Result<usize> {
        let changed = self.there.as_ref().and_then(|there| there.changed_to(wanted, inside));
        let batch = changed.unwrap_or_else(|| wanted.whole(inside));
        if batch.messages() == 0 {
            inside.settled();
            return Ok(0);
        }
        let messages = batch.messages();
        let result = self.socket().and_then(|socket| {
            socket.commit(batch)?;
            socket.generation()
        });
        match result {
            Ok(generation) => {
                self.generation = generation;
                self.there = Some(wanted.clone());
                inside.settled();
                Ok(messages)
            }
            Err(e) => {
                // What is there is not known for sure any more: the next time makes it anew.
                self.there = None;
                Err(e)
            }
        }
    }

    /// Looks whether anybody has changed any rules since. If so, the next [`Self::ensure`] makes the
    /// table anew, since somebody may have flushed all.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn look(&mut self) -> io::Result<()> {
        let generation = self.socket()?.generation()?;
        if generation != self.generation {
            self.there = None;
        }
        Ok(())
    }

    /// Takes the table away; that there is none is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        self.there = None;
        self.socket()?.commit(table::removal())
    }

    fn socket(&mut self) -> io::Result<&Nfnetlink> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            none => Ok(none.insert(Nfnetlink::open()?)),
        }
    }
}
