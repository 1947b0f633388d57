//! Which address a pod gets. Pure: no I/O, no clock; what is stored is behind [`Store`].
//!
//! A [`Pool`] is a range of addresses. Addresses never used come first, in order; released ones
//! queue up behind them in the order of their release. So an address is reused as late as can be,
//! and an allocation costs the same whatever number is in use.
//!
//! Every step of [`Store`] is atomic, and the steps are ordered so that a caller killed between any
//! two of them leaves no address with two owners and loses none: at worst an address stays reserved
//! for an owner that never came to be, which [`reconcile`] frees.
#![forbid(unsafe_code)]

mod allocate;
mod pool;

#[cfg(test)]
mod memory;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

pub use allocate::{allocate, available, reconcile, release, reserve};
pub use pool::{InvalidPool, Pool};

/// How long an address rests after its release, so that other nodes never see a new pod under an old
/// identity.
pub const REST: Duration = Duration::from_secs(30);

/// Addresses of a pool that are used once before any is used again. Bounds what is stored for the
/// vast ranges of IPv6.
pub const FRESH_FIRST: u64 = 1 << 16;

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.container_id, self.ifname)
    }
}

/// A reserved address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// Name of the pool that it came from.
    pub pool: String,
    /// Its position in that pool.
    pub position: u64,
    /// Who holds it.
    pub owner: Owner,
}

/// An address that waits to be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resting {
    /// The address.
    pub address: IpAddr,
    /// When it was released, on the same clock as every other time of this crate.
    pub since: Duration,
}

/// Where a pool stands. Advisory: a lost one is rebuilt, and one that lags behind its neighbours
/// after a kill is caught up with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// First position that was never given out in order.
    pub fresh: u64,
    /// Number of the address that rests longest.
    pub head: u64,
    /// Number that the next released address gets.
    pub tail: u64,
    /// Addresses that were given out before their rest was over, because nothing else was free.
    pub early: u64,
}

/// What is stored. Each method is one atomic step: a kill leaves it done or not done.
///
/// An address is *in use* (with a lease), *resting* (in a queue, under a number), or *ahead*
/// (released before the pool's order had reached it, which happens to addresses that were asked for
/// by name), or in none of these, and in no two of them.
pub trait Store {
    /// Why a step failed.
    type Error;

    /// The state of a pool; `None` where it was never written or cannot be read.
    ///
    /// # Errors
    /// Only where the store as a whole is unusable.
    fn state(&self, pool: &str) -> Result<Option<State>, Self::Error>;
    /// Writes the state of a pool.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn set_state(&mut self, pool: &str, state: &State) -> Result<(), Self::Error>;

    /// The lease of an address in use.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn lease(&self, address: IpAddr) -> Result<Option<Lease>, Self::Error>;
    /// All leases.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn leases(&self) -> Result<Vec<Lease>, Self::Error>;
    /// Nothing → in use. `false` if the address is in use already.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn take(&mut self, lease: &Lease) -> Result<bool, Self::Error>;

    /// In use → resting under number `number`. `false` if that number is taken.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn rest(&mut self, lease: &Lease, number: u64, since: Duration) -> Result<bool, Self::Error>;
    /// What rests under a number.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn resting(&self, pool: &str, number: u64) -> Result<Option<Resting>, Self::Error>;
    /// All that rests in a pool, with its number.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn all_resting(&self, pool: &str) -> Result<BTreeMap<u64, Resting>, Self::Error>;
    /// Resting under `number` → in use. `false`, and the number is free, if the address is in use.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn wake(&mut self, number: u64, lease: &Lease) -> Result<bool, Self::Error>;
    /// Resting under `number` → nothing.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn forget(&mut self, pool: &str, number: u64) -> Result<(), Self::Error>;

    /// In use → ahead.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn rest_ahead(&mut self, lease: &Lease, since: Duration) -> Result<(), Self::Error>;
    /// Since when an address has been ahead.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn ahead(&self, pool: &str, address: IpAddr) -> Result<Option<Duration>, Self::Error>;
    /// All that is ahead in a pool.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn all_ahead(&self, pool: &str) -> Result<Vec<IpAddr>, Self::Error>;
    /// Ahead → in use. `false`, and it is no longer ahead, if the address is in use.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn wake_ahead(&mut self, lease: &Lease) -> Result<bool, Self::Error>;
    /// Ahead → resting under `number`, since when it was. `false` if that number is taken.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn queue_ahead(&mut self, pool: &str, address: IpAddr, number: u64) -> Result<bool, Self::Error>;
    /// Resting under `number` → ahead, since when it was.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn unqueue(&mut self, pool: &str, address: IpAddr, number: u64) -> Result<(), Self::Error>;
}

/// Why no address was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused<E> {
    /// Every address of the pools is in use.
    #[error("no address is free in {}", .0.join(", "))]
    Exhausted(Vec<String>),
    /// The address that was asked for is in use.
    #[error("{address} is in use by {owner}")]
    InUse {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        owner: Owner,
    },
    /// The address that was asked for is in no pool, or is never given out.
    #[error("{0} is not an address that this node may give to a pod")]
    Outside(IpAddr),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] E),
}
