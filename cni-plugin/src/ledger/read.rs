//! What can be read of the ledger beyond what its own changes need.

use std::io;

use fairlead_ipam::{Owner, Store as _};

use super::Ledger;
use crate::error::{CniError, IoContext};
use crate::store::entries;

/// Whether a name is one that [`host_ifname`](super::host_ifname) gives.
pub fn is_host_ifname(name: &str) -> bool {
    name.len() == 15
        && name
            .strip_prefix("fl")
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b)))
}

/// How much of a pool is in use.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PoolUse {
    /// Its name.
    pub pool: String,
    /// Addresses in use.
    pub used: usize,
    /// Addresses that wait to be used again.
    pub resting: usize,
    /// Addresses that were given again before their rest was over, so far.
    pub early: u64,
}

impl Ledger {
    /// The pools that addresses were ever given from.
    ///
    /// # Errors
    /// Code 5.
    pub fn pools(&self) -> Result<Vec<PoolUse>, CniError> {
        let leases = self.leases()?;
        let mut names = entries(&self.run.ipam().join("pools")).context(|| "pools".to_owned())?;
        names.sort();
        let of = |pool: String| {
            let resting = self.disk.all_resting(&pool)?.len() + self.disk.all_ahead(&pool)?.len();
            let early = self.disk.state(&pool)?.unwrap_or_default().early;
            Ok(PoolUse { used: leases.iter().filter(|l| l.pool == pool).count(), resting, early, pool })
        };
        names.into_iter().map(of).collect::<io::Result<_>>().context(|| "pools".to_owned())
    }

    /// What of the addresses cannot be read, below `RUN/ipam`.
    ///
    /// # Errors
    /// Code 5.
    pub fn unreadable(&self) -> Result<Vec<String>, CniError> {
        let broken = self.disk.unreadable().context(|| "addresses".to_owned())?;
        let used = broken.used.into_iter().map(|name| format!("used/{name}"));
        let resting = broken.resting.into_iter().map(|(pool, name)| format!("pools/{pool}/resting/{name}"));
        Ok(used.chain(resting).collect())
    }

    /// Reserved slots: slot, interface index, owner.
    ///
    /// # Errors
    /// Code 5.
    pub fn slots(&self) -> Result<Vec<(u32, u32, Owner)>, CniError> {
        let names = entries(&self.run.ipam().join("slots")).context(|| "slots".to_owned())?;
        let of = |name: &String| {
            let slot = name.parse().ok()?;
            let (index, owner) = self.slot(slot)?;
            Some((slot, index, owner))
        };
        Ok(names.iter().filter_map(of).collect())
    }
}
