//! How a flow begins: where it lies until somebody answers. See docs/decisions/0035.

use core::hint::cold_path;

use super::{FlowTables, Known, lifetime, noted};
use crate::address::Address;
use crate::maps::{
    FLOW_COUNTED, FLOW_OPENED_HIGH, Flow, FlowKey, LastingFlow, Pending, PendingKey, SLOT_NONE,
    UNANSWERED_AT_ONCE, Unanswered,
};

/// A flow to be recorded.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Slot of the endpoint in whose places it waits for an answer.
    pub owner: u32,
    /// The end that opened it.
    pub opener: usize,
    /// The end that the packet comes from.
    pub source: usize,
    /// Flags of [`Flow`] besides the opener's.
    pub flags: u32,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// Policy generation at which the endpoints' rules allowed it.
    pub generation: u32,
    /// Slot and generation of the local endpoint at the packet's source, 0 for none.
    pub sender: (u32, u32),
    /// Slot and generation of the local endpoint at the packet's destination, 0 for none.
    pub receiver: (u32, u32),
    /// Time in ticks.
    pub now: u32,
}

impl Opening {
    /// See [`Flow::charged`].
    #[inline(always)]
    fn charged(&self) -> u32 {
        let (own, other) = if self.opener == self.source {
            (self.sender, self.receiver)
        } else {
            (self.receiver, self.sender)
        };
        if own.1 != 0 { own.0 } else { other.0 }
    }

    /// The flow, with more flags.
    #[inline(always)]
    fn flow(&self, flags: u32) -> LastingFlow {
        let end = |end: usize| if end == self.source { self.sender } else { self.receiver };
        let (low, high) = (end(0), end(1));
        let opened = if self.opener == 1 { FLOW_OPENED_HIGH } else { 0 };
        LastingFlow {
            endpoint: [low.1, high.1],
            judged: [self.generation; 2],
            seen: self.now,
            slots: low.0 & 0xffff | high.0 << 16,
            flags: self.flags | opened | noted(self.tcp_flags, self.opener != self.source) | flags,
        }
    }
}

impl Flow {
    /// Slot of the endpoint that a flow is counted with while nobody has answered it: the local opener's, or the receiver's
    /// where the opener is not local.
    #[inline(always)]
    fn charged(&self) -> u32 {
        let opener = self.opener();
        self.slot(if self.endpoint[opener].get() != 0 { opener } else { 1 - opener })
    }

    /// Becomes another flow of the same key, which is far less work than to put one in its place. Whoever reads a part of the
    /// one and a part of the other reads a flow that the rules have allowed.
    #[inline(always)]
    fn begin(&self, opening: &Opening) {
        // All fields by name, so that one that a later version appends cannot be left as it was.
        let Self {
            endpoint: [e0, e1],
            judged: [j0, j1],
            seen,
            slots,
            flags,
            #[cfg(feature = "next-layout")]
            appended,
        } = opening.flow(self.flags.get() & FLOW_COUNTED).into();
        self.flags.set(flags.get());
        self.slots.set(slots.get());
        self.judged[0].set(j0.get());
        self.judged[1].set(j1.get());
        self.endpoint[0].set(e0.get());
        self.endpoint[1].set(e1.get());
        self.seen.set(seen.get());
        #[cfg(feature = "next-layout")]
        self.appended.set(appended.get());
    }
}

impl Unanswered {
    /// Counts a flow, if there may be another one.
    ///
    /// What is never answered, or forgotten before, is not counted down: so the count begins anew once all that was counted
    /// before has died. CPUs that count at once may lose one of each other's now and then, up or down: no bound is worth a locked
    /// instruction for each flow.
    #[inline(always)]
    fn admit(&self, now: u32) -> bool {
        if now.wrapping_sub(self.since.get()) > lifetime::UNANSWERED {
            self.since.set(now);
            self.count.set(0);
        }
        let admitted = self.count.get() < UNANSWERED_AT_ONCE;
        if admitted {
            self.count.set(self.count.get() + 1);
        }
        admitted
    }

    /// Counts one down that was answered.
    #[inline(always)]
    fn answered(&self) {
        // It may have been counted before the count began anew.
        if self.count.get() > 0 {
            self.count.set(self.count.get() - 1);
        }
    }
}

/// How long the flow that lies in a place has been silent, in ticks; `None` where the place is free for `key`: nothing lies
/// there, or what is dead or the flow itself.
#[inline(always)]
fn taken<A: Address, T: FlowTables<A>>(
    tables: &T,
    place: &PendingKey,
    key: &FlowKey<A>,
    now: u32,
) -> Option<u32> {
    let there = tables.pending(place)?;
    if there.key.same(key) || !there.flow.alive(there.key.protocol, now) {
        return None;
    }
    Some(now.wrapping_sub(there.flow.seen.get()))
}

/// Moves the flow that lies in place `from` to the other one that it may have; `false` where that is taken. `place`, of the
/// same endpoint, is written to: one key for all look-ups, for the sake of BPF's stack.
#[inline(always)]
fn make_way<A: Address, T: FlowTables<A>>(tables: &T, place: &mut PendingKey, from: u32, now: u32) -> bool {
    place.place = from;
    let Some(there) = tables.pending(place) else { return true };
    let [first, second] = there.key.places();
    place.place = if first == from { second } else { first };
    taken(tables, place, &there.key, now).is_none() && tables.insert_pending(place, there)
}

/// The place of an endpoint that a flow gets: the first that is free, or whose flow has another place to go; else the one
/// whose flow has been silent for longer. Of 64 flows that are opened at once so one is lost in 5,000 times, where without
/// making way it were one in twelve.
#[inline(always)]
fn free_place<A: Address, T: FlowTables<A>>(tables: &T, key: &FlowKey<A>, slot: u32, now: u32) -> PendingKey {
    let [first, second] = key.places();
    let mut place = PendingKey { slot, place: first };
    let Some(age) = taken(tables, &place, key, now) else { return place };
    place.place = second;
    let Some(other_age) = taken(tables, &place, key, now) else { return place };
    let chosen = if make_way(tables, &mut place, first, now) {
        first
    } else if make_way(tables, &mut place, second, now) || age <= other_age {
        second
    } else {
        first
    };
    place.place = chosen;
    place
}

/// Records a flow that nobody has answered yet: among the answered ones where that may be, else in one of its endpoint's
/// places. `false` where there was no memory.
#[inline(always)]
pub fn record<A: Address, T: FlowTables<A>>(tables: &T, key: &FlowKey<A>, opening: &Opening) -> bool {
    tables.record_answered(key, opening) || tables.record_waiting(key, opening)
}

/// Records a flow among the answered ones, where an older one of its key lies there already or it is one of few of its
/// endpoint that nobody has answered.
#[inline(always)]
pub fn record_answered<A: Address, T: FlowTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    opening: &Opening,
) -> bool {
    // What is said there of an older flow must not answer for this one.
    if let Some(there) = tables.flow(key) {
        there.begin(opening);
        return true;
    }
    match tables.unanswered(opening.charged()) {
        Some(unanswered) if unanswered.admit(opening.now) => {
            tables.insert_flow(key, &opening.flow(FLOW_COUNTED).into())
        }
        _ => false,
    }
}

/// Records a flow in one of its endpoint's places.
#[inline(always)]
pub fn record_waiting<A: Address, T: FlowTables<A>>(tables: &T, key: &FlowKey<A>, opening: &Opening) -> bool {
    // First, so that what it needs of BPF's stack is free again for the value.
    let place = free_place(tables, key, opening.owner, opening.now);
    tables.insert_pending(&place, &Pending { key: *key, flow: opening.flow(0).into() })
}

/// Moves a flow that was answered out of its endpoint's places, or no longer counts it.
#[inline(always)]
pub fn promote<A: Address, T: FlowTables<A>>(tables: &T, key: &FlowKey<A>, known: &Known<'_>) -> bool {
    let flow = known.flow;
    if known.place.slot == SLOT_NONE {
        if flow.has(FLOW_COUNTED) {
            cold_path();
            flow.flags.set(flow.flags.get() & !FLOW_COUNTED);
            if let Some(unanswered) = tables.unanswered(flow.charged()) {
                unanswered.answered();
            }
        }
        return true;
    }
    cold_path();
    let moved = tables.insert_flow(key, flow);
    if moved {
        tables.remove_pending(&known.place);
    }
    moved
}
