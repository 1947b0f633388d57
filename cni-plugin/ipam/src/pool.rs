//! Ranges of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// A range of addresses that may be given to pods, seen as positions from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    name: String,
    ipv6: bool,
    /// First address, as a number.
    first: u128,
    /// Positions.
    len: u64,
    /// Positions never given out: first and last of each run, ascending, no two touch.
    excluded: Vec<(u64, u64)>,
}

/// A range that no address can be given from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPool {
    /// Too small.
    #[error("{0} holds no address for pods: network, gateway and broadcast address are never given out")]
    Empty(IpNetwork),
    /// A bound that is not in the network.
    #[error("{address} is not an address for pods in {network}")]
    Outside {
        /// The bound.
        address: IpAddr,
        /// The network.
        network: IpNetwork,
    },
    /// Start after end.
    #[error("the range {start} to {end} in {network} is empty")]
    Reversed {
        /// First address.
        start: IpAddr,
        /// Last address.
        end: IpAddr,
        /// The network.
        network: IpNetwork,
    },
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

impl Pool {
    /// The addresses of a network but the first (its own, in IPv6 the routers' anycast address), the
    /// second (the gateway's by custom) and in IPv4 the last (broadcast).
    ///
    /// # Errors
    /// [`InvalidPool::Empty`] where nothing remains.
    pub fn new(network: IpNetwork) -> Result<Self, InvalidPool> {
        Self::within(network, None, None)
    }

    /// The same, from `start` to `end` inclusive where these are given.
    ///
    /// # Errors
    /// [`InvalidPool`], where nothing remains or a bound is not an address of the network for pods.
    pub fn within(
        network: IpNetwork,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
    ) -> Result<Self, InvalidPool> {
        let ipv6 = network.is_ipv6();
        let base = number(network.network());
        let top = number(network.broadcast());
        let first = base.saturating_add(2);
        let last = if ipv6 { top } else { top.saturating_sub(1) };
        if first > last {
            return Err(InvalidPool::Empty(network));
        }
        let inside = |address: IpAddr| {
            if address.is_ipv6() == ipv6 && (first..=last).contains(&number(address)) {
                Ok(number(address))
            } else {
                Err(InvalidPool::Outside { address, network })
            }
        };
        let from = start.map_or(Ok(first), inside)?;
        let to = end.map_or(Ok(last), inside)?;
        if from > to {
            let bound = |n| address(ipv6, n);
            return Err(InvalidPool::Reversed { start: bound(from), end: bound(to), network });
        }
        let mut name = format!("{}-{}", network.network(), network.prefix());
        for bound in [start, end].into_iter().flatten() {
            name.push_str(&format!("-{bound}"));
        }
        let len = u64::try_from(to - from).unwrap_or(u64::MAX - 1).saturating_add(1);
        Ok(Self { name, ipv6, first: from, len, excluded: Vec::new() })
    }

    /// The same without the addresses of the networks in `exclude`.
    #[must_use]
    pub fn excluding(mut self, exclude: &[IpNetwork]) -> Self {
        let top = self.first + u128::from(self.len - 1);
        let mut runs: Vec<(u64, u64)> = exclude
            .iter()
            .filter(|n| n.is_ipv6() == self.ipv6)
            .filter_map(|n| {
                let from = number(n.network()).max(self.first);
                let to = number(n.broadcast()).min(top);
                (from <= to).then_some(())?;
                let position = |n| u64::try_from(n - self.first).ok();
                Some((position(from)?, position(to)?))
            })
            .collect();
        runs.sort_unstable();
        self.excluded.clear();
        for (from, to) in runs {
            match self.excluded.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
                _ => self.excluded.push((from, to)),
            }
        }
        self
    }

    /// Name that the pool's state is stored under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it holds IPv6 addresses.
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// Number of addresses that can be given out.
    pub fn capacity(&self) -> u64 {
        self.len - self.excluded.iter().map(|(from, to)| to - from + 1).sum::<u64>()
    }

    /// The first position at or after `position` that may be given out.
    pub fn next(&self, position: u64) -> Option<u64> {
        let after = self.excluded.partition_point(|run| run.1 < position);
        let position = match self.excluded.get(after) {
            Some(&(from, to)) if from <= position => to.checked_add(1)?,
            _ => position,
        };
        (position < self.len).then_some(position)
    }

    /// The address at a position.
    pub fn address(&self, position: u64) -> IpAddr {
        address(self.ipv6, self.first + u128::from(position))
    }

    /// The position of an address that may be given out.
    pub fn position(&self, address: IpAddr) -> Option<u64> {
        if address.is_ipv6() != self.ipv6 {
            return None;
        }
        let position = u64::try_from(number(address).checked_sub(self.first)?).ok()?;
        (self.next(position) == Some(position)).then_some(position)
    }
}

fn address(ipv6: bool, number: u128) -> IpAddr {
    if ipv6 {
        return IpAddr::V6(Ipv6Addr::from(number));
    }
    IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)))
}
