//! A store in memory that can be killed before any step.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::{Lease, Resting, State, Store};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Killed;

#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) used: BTreeMap<IpAddr, Lease>,
    pub(crate) queue: BTreeMap<(String, u64), Resting>,
    pub(crate) ahead: BTreeMap<(String, IpAddr), Duration>,
    pub(crate) states: BTreeMap<String, State>,
    /// Steps until the kill.
    pub(crate) fuse: Cell<Option<u32>>,
    pub(crate) steps: Cell<u64>,
}

impl Memory {
    fn step(&self) -> Result<(), Killed> {
        self.steps.set(self.steps.get() + 1);
        match self.fuse.get() {
            Some(0) => Err(Killed),
            Some(n) => {
                self.fuse.set(Some(n - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// No address is in two places.
    pub(crate) fn check(&self) {
        let mut seen = BTreeSet::new();
        let places = self
            .used
            .keys()
            .chain(self.queue.values().map(|r| &r.address))
            .chain(self.ahead.keys().map(|k| &k.1));
        for address in places {
            assert!(seen.insert(*address), "{address} is in two places");
        }
    }
}

impl Store for Memory {
    type Error = Killed;

    fn state(&self, pool: &str) -> Result<Option<State>, Killed> {
        self.step()?;
        Ok(self.states.get(pool).copied())
    }
    fn set_state(&mut self, pool: &str, state: &State) -> Result<(), Killed> {
        self.step()?;
        self.states.insert(pool.to_owned(), *state);
        Ok(())
    }
    fn lease(&self, address: IpAddr) -> Result<Option<Lease>, Killed> {
        self.step()?;
        Ok(self.used.get(&address).cloned())
    }
    fn leases(&self) -> Result<Vec<Lease>, Killed> {
        self.step()?;
        Ok(self.used.values().cloned().collect())
    }
    fn take(&mut self, lease: &Lease) -> Result<bool, Killed> {
        self.step()?;
        if self.used.contains_key(&lease.address) {
            return Ok(false);
        }
        self.used.insert(lease.address, lease.clone());
        Ok(true)
    }
    fn rest(&mut self, lease: &Lease, number: u64, since: Duration) -> Result<bool, Killed> {
        self.step()?;
        let key = (lease.pool.clone(), number);
        if self.queue.contains_key(&key) {
            return Ok(false);
        }
        let address = self.used.remove(&lease.address).expect("rests from use").address;
        self.queue.insert(key, Resting { address, since });
        Ok(true)
    }
    fn resting(&self, pool: &str, number: u64) -> Result<Option<Resting>, Killed> {
        self.step()?;
        Ok(self.queue.get(&(pool.to_owned(), number)).copied())
    }
    fn all_resting(&self, pool: &str) -> Result<BTreeMap<u64, Resting>, Killed> {
        self.step()?;
        Ok(self.queue.iter().filter(|(k, _)| k.0 == pool).map(|(k, r)| (k.1, *r)).collect())
    }
    fn wake(&mut self, number: u64, lease: &Lease) -> Result<bool, Killed> {
        self.step()?;
        self.queue.remove(&(lease.pool.clone(), number)).expect("wakes from rest");
        let free = !self.used.contains_key(&lease.address);
        if free {
            self.used.insert(lease.address, lease.clone());
        }
        Ok(free)
    }
    fn forget(&mut self, pool: &str, number: u64) -> Result<(), Killed> {
        self.step()?;
        self.queue.remove(&(pool.to_owned(), number));
        Ok(())
    }
    fn rest_ahead(&mut self, lease: &Lease, since: Duration) -> Result<(), Killed> {
        self.step()?;
        self.used.remove(&lease.address).expect("rests from use");
        self.ahead.insert((lease.pool.clone(), lease.address), since);
        Ok(())
    }
    fn ahead(&self, pool: &str, address: IpAddr) -> Result<Option<Duration>, Killed> {
        self.step()?;
        Ok(self.ahead.get(&(pool.to_owned(), address)).copied())
    }
    fn all_ahead(&self, pool: &str) -> Result<Vec<IpAddr>, Killed> {
        self.step()?;
        Ok(self.ahead.keys().filter(|k| k.0 == pool).map(|k| k.1).collect())
    }
    fn wake_ahead(&mut self, lease: &Lease) -> Result<bool, Killed> {
        self.step()?;
        self.ahead.remove(&(lease.pool.clone(), lease.address)).expect("was ahead");
        let free = !self.used.contains_key(&lease.address);
        if free {
            self.used.insert(lease.address, lease.clone());
        }
        Ok(free)
    }
    fn queue_ahead(&mut self, pool: &str, address: IpAddr, number: u64) -> Result<bool, Killed> {
        self.step()?;
        if self.queue.contains_key(&(pool.to_owned(), number)) {
            return Ok(false);
        }
        let since = self.ahead.remove(&(pool.to_owned(), address)).expect("was ahead");
        self.queue.insert((pool.to_owned(), number), Resting { address, since });
        Ok(true)
    }
    fn unqueue(&mut self, pool: &str, address: IpAddr, number: u64) -> Result<(), Killed> {
        self.step()?;
        let resting = self.queue.remove(&(pool.to_owned(), number)).expect("was resting");
        self.ahead.insert((pool.to_owned(), address), resting.since);
        Ok(())
    }
}
