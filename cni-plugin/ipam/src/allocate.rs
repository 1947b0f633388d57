//! The order in which addresses are given out, over the atomic steps of a [`Store`].

use std::net::IpAddr;
use std::time::Duration;

use crate::{FRESH_FIRST, Lease, Owner, Pool, REST, Refused, Resting, State, Store};

/// Gives `owner` an address from the first of `pools` that has a fresh or rested one; when none has,
/// the one of them all that has rested longest.
///
/// # Errors
/// [`Refused::Exhausted`] when every address is in use.
pub fn allocate<S: Store>(
    store: &mut S,
    pools: &[Pool],
    owner: &Owner,
    now: Duration,
) -> Result<Lease, Refused<S::Error>> {
    for pool in pools {
        if let Some(lease) = allocate_unhurried(store, pool, owner, now)? {
            return Ok(lease);
        }
    }
    loop {
        let mut longest: Option<(&Pool, State, Resting)> = None;
        for pool in pools {
            let mut state = state(store, pool)?;
            if let Some(resting) = head(store, pool, &mut state)?
                && longest.is_none_or(|(_, _, other)| resting.since < other.since)
            {
                longest = Some((pool, state, resting));
            }
        }
        let Some((pool, mut state, resting)) = longest else {
            return Err(Refused::Exhausted(pools.iter().map(|p| p.name().to_owned()).collect()));
        };
        state.early += 1;
        if let Some(lease) = wake(store, pool, &mut state, resting, owner)? {
            return Ok(lease);
        }
    }
}

/// Gives `owner` just this address, rested or not.
///
/// # Errors
/// [`Refused::InUse`], or [`Refused::Outside`] when it is in none of `pools`.
pub fn reserve<S: Store>(
    store: &mut S,
    pools: &[Pool],
    address: IpAddr,
    owner: &Owner,
) -> Result<Lease, Refused<S::Error>> {
    let (pool, position) = pools
        .iter()
        .find_map(|pool| Some((pool, pool.position(address)?)))
        .ok_or(Refused::Outside(address))?;
    let state = state(store, pool)?;
    let lease = lease(pool, position, owner);
    let taken = if store.lease(address)?.is_some() {
        false
    } else if store.ahead(pool.name(), address)?.is_some() {
        store.wake_ahead(&lease)?
    } else if position < state.fresh
        && let Some(number) = number_of(store, pool, address)?
    {
        store.wake(number, &lease)?
    } else {
        store.take(&lease)?
    };
    if taken {
        return Ok(lease);
    }
    let owner = store.lease(address)?.map_or_else(|| owner.clone(), |lease| lease.owner);
    Err(Refused::InUse { address, owner })
}

/// Lets an address rest. Nothing happens, and the answer is `false`, if `owner` does not hold it.
///
/// # Errors
/// Those of the store.
pub fn release<S: Store>(
    store: &mut S,
    address: IpAddr,
    owner: &Owner,
    now: Duration,
) -> Result<bool, S::Error> {
    match store.lease(address)? {
        Some(lease) if lease.owner == *owner => {
            release_lease(store, &lease, now)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Frees the leases that are not `live`, whatever pool they are of, and says which those were; finds
/// what a kill has misplaced in `pools`.
///
/// # Errors
/// Those of the store.
pub fn reconcile<S: Store>(
    store: &mut S,
    pools: &[Pool],
    live: impl Fn(&Lease) -> bool,
    now: Duration,
) -> Result<Vec<Lease>, S::Error> {
    let mut freed = store.leases()?;
    freed.retain(|lease| !live(lease));
    for lease in &freed {
        release_lease(store, lease, now)?;
    }
    for pool in pools {
        let mut state = state(store, pool)?;
        for address in store.all_ahead(pool.name())? {
            if pool.position(address).is_some_and(|position| position < state.fresh) {
                queue(store, pool.name(), address, &mut state)?;
            }
        }
        // Several kills leave several numbers at and after the tail, and `head` does not look past a gap.
        if let Some((&last, _)) = store.all_resting(pool.name())?.last_key_value()
            && last >= state.tail
        {
            state.tail = last + 1;
            store.set_state(pool.name(), &state)?;
        }
    }
    Ok(freed)
}

/// Whether `pools` have an address left that nobody uses.
///
/// # Errors
/// Those of the store.
pub fn available<S: Store>(store: &mut S, pools: &[Pool]) -> Result<bool, S::Error> {
    for pool in pools {
        let mut state = state(store, pool)?;
        if head(store, pool, &mut state)?.is_some() {
            return Ok(true);
        }
        while let Some(position) = pool.next(state.fresh) {
            if store.lease(pool.address(position))?.is_none() {
                return Ok(true);
            }
            state.fresh = position + 1;
        }
    }
    Ok(false)
}

fn lease(pool: &Pool, position: u64, owner: &Owner) -> Lease {
    Lease { address: pool.address(position), pool: pool.name().to_owned(), position, owner: owner.clone() }
}

fn release_lease<S: Store>(store: &mut S, lease: &Lease, now: Duration) -> Result<(), S::Error> {
    let mut state = state_of(store, &lease.pool)?;
    if lease.position >= state.fresh {
        return store.rest_ahead(lease, now);
    }
    while !store.rest(lease, state.tail, now)? {
        state.tail += 1;
    }
    state.tail += 1;
    store.set_state(&lease.pool, &state)
}

/// Gives a fresh address, or one whose rest is over.
fn allocate_unhurried<S: Store>(
    store: &mut S,
    pool: &Pool,
    owner: &Owner,
    now: Duration,
) -> Result<Option<Lease>, S::Error> {
    let mut state = state(store, pool)?;
    loop {
        let fresh = pool.next(state.fresh);
        if let Some(position) = fresh
            && position < FRESH_FIRST
        {
            match take_fresh(store, pool, &mut state, position, owner, now)? {
                Some(lease) => return Ok(Some(lease)),
                None => continue,
            }
        }
        if let Some(resting) = head(store, pool, &mut state)?
            && now.saturating_sub(resting.since) >= REST
        {
            match wake(store, pool, &mut state, resting, owner)? {
                Some(lease) => return Ok(Some(lease)),
                None => continue,
            }
        }
        let Some(position) = fresh else { return Ok(None) };
        if let Some(lease) = take_fresh(store, pool, &mut state, position, owner, now)? {
            return Ok(Some(lease));
        }
    }
}

/// Gives the next address in order, unless it was asked for by name before and is in use or resting.
fn take_fresh<S: Store>(
    store: &mut S,
    pool: &Pool,
    state: &mut State,
    position: u64,
    owner: &Owner,
    now: Duration,
) -> Result<Option<Lease>, S::Error> {
    let lease = lease(pool, position, owner);
    let taken = match store.ahead(pool.name(), lease.address)? {
        None => store.take(&lease)?,
        Some(since) if now.saturating_sub(since) >= REST => store.wake_ahead(&lease)?,
        Some(_) => {
            // The state first: the other way round, a kill in between would leave an address in the
            // queue that the order has still to come past. This way `reconcile` finds it.
            state.fresh = position + 1;
            store.set_state(pool.name(), state)?;
            queue(store, pool.name(), lease.address, state)?;
            return Ok(None);
        }
    };
    // Only now: a kill before this line makes the next caller find the address in use and go on.
    state.fresh = position + 1;
    store.set_state(pool.name(), state)?;
    Ok(taken.then_some(lease))
}

/// Puts an address that is ahead at the end of the queue.
fn queue<S: Store>(store: &mut S, pool: &str, address: IpAddr, state: &mut State) -> Result<(), S::Error> {
    while !store.queue_ahead(pool, address, state.tail)? {
        state.tail += 1;
    }
    state.tail += 1;
    store.set_state(pool, state)
}

/// Gives the address at the head of the queue; `None` if that was no longer there to be given.
fn wake<S: Store>(
    store: &mut S,
    pool: &Pool,
    state: &mut State,
    resting: Resting,
    owner: &Owner,
) -> Result<Option<Lease>, S::Error> {
    let woken = match pool.position(resting.address) {
        Some(position) => {
            let lease = lease(pool, position, owner);
            store.wake(state.head, &lease)?.then_some(lease)
        }
        // The range has changed since.
        None => {
            store.forget(pool.name(), state.head)?;
            None
        }
    };
    state.head += 1;
    store.set_state(pool.name(), state)?;
    Ok(woken)
}

/// What has rested longest; moves `state` past numbers that are no longer there.
fn head<S: Store>(store: &S, pool: &Pool, state: &mut State) -> Result<Option<Resting>, S::Error> {
    loop {
        // At the tail too: it lags by one when its writer was killed.
        if let Some(resting) = store.resting(pool.name(), state.head)? {
            state.tail = state.tail.max(state.head + 1);
            return Ok(Some(resting));
        }
        if state.head >= state.tail {
            return Ok(None);
        }
        state.head += 1;
    }
}

fn number_of<S: Store>(store: &S, pool: &Pool, address: IpAddr) -> Result<Option<u64>, S::Error> {
    let resting = store.all_resting(pool.name())?;
    Ok(resting.into_iter().find(|(_, r)| r.address == address).map(|(number, _)| number))
}

fn state<S: Store>(store: &mut S, pool: &Pool) -> Result<State, S::Error> {
    state_of(store, pool.name())
}

/// A pool's state. A lost one starts anew, with what rests put where the order will come past it.
fn state_of<S: Store>(store: &mut S, pool: &str) -> Result<State, S::Error> {
    if let Some(state) = store.state(pool)? {
        return Ok(state);
    }
    for (number, resting) in store.all_resting(pool)? {
        store.unqueue(pool, resting.address, number)?;
    }
    let state = State::default();
    store.set_state(pool, &state)?;
    Ok(state)
}
