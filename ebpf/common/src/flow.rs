//! Conntrack: the flows of local endpoints.

mod record;

use core::cell::Cell;
use core::hint::cold_path;

use crate::address::Address;
use crate::judge::protocol;
use crate::maps::{
    EXITS, FLOW_ANSWERED, FLOW_FIN, FLOW_OPENED_HIGH, FLOW_RST, Flow, FlowKey, LastingFlow, LastingPending,
    NODE_NONE, PENDING_PLACES, Pending, PendingKey, SLOT_NONE, TOPOLOGY_BITS, TOPOLOGY_FIRST, Unanswered,
};
use crate::packet::tcp;

pub use record::{Opening, promote, record, record_answered, record_waiting};

/// Bits of a node's number in [`Flow::behind`].
const EXIT_BITS: u32 = EXITS.trailing_zeros();

/// Lifetimes in ticks of 2^30 ns (1.07 s) since the last packet.
pub mod lifetime {
    /// TCP that both ends have spoken on; RFC 5382 asks for at least 2 h 4 min.
    pub const TCP: u32 = 7200;
    /// TCP after FIN.
    pub const TCP_FIN: u32 = 112;
    /// TCP after RST.
    pub const TCP_RST: u32 = 10;
    /// UDP that both ends have spoken on; RFC 4787 asks for at least 2 min.
    pub const UDP: u32 = 168;
    /// ICMP echo.
    pub const ICMP: u32 = 56;
    /// Other protocols.
    pub const OTHER: u32 = 560;
    /// Flows that nobody has answered.
    pub const UNANSWERED: u32 = 56;
}

/// The clock of flows: ticks of 2^30 ns since the machine started, of the kernel's count of jiffies of this length in ns.
///
/// That count begins five minutes before 32 bits of it are full (`INITIAL_JIFFIES`, include/linux/jiffies.h).
#[inline(always)]
pub const fn clock(jiffies: u64, jiffy: u32) -> u32 {
    const BEFORE: u64 = 300 * 1_000_000_000;
    (jiffies.wrapping_sub(1 << 32).wrapping_mul(jiffy as u64).wrapping_add(BEFORE) >> 30) as u32
}

/// The tables of flows of one family.
pub trait FlowTables<A: Address>: Sized {
    /// Time in ticks of 2^30 ns.
    fn now(&self) -> u32;
    /// Maps `flows4` and `flows6`.
    fn flow(&self, key: &FlowKey<A>) -> Option<&Flow>;
    /// Puts a flow in the place of what the table knows; `false` where it could not.
    fn insert_flow(&self, key: &FlowKey<A>, flow: &Flow) -> bool;
    /// Forgets a flow.
    fn remove_flow(&self, key: &FlowKey<A>);
    /// Maps `pending4` and `pending6`.
    fn pending(&self, key: &PendingKey) -> Option<&Pending<A>>;
    /// Puts a flow in a place of its endpoint; `false` where it could not.
    fn insert_pending(&self, key: &PendingKey, pending: &Pending<A>) -> bool;
    /// Empties a place.
    fn remove_pending(&self, key: &PendingKey);
    /// Map `unanswered`.
    fn unanswered(&self, slot: u32) -> Option<&Unanswered>;

    /// Whether flows of an agent with another layout are still being taken over.
    fn takes_over(&self) -> bool;
    /// Maps `old_flows4` and `old_flows6`.
    fn old_flow(&self, key: &FlowKey<A>) -> Option<&LastingFlow>;
    /// Maps `old_pending4` and `old_pending6`.
    fn old_pending(&self, key: &PendingKey) -> Option<&LastingPending<A>>;

    /// [`take_over`]; as [`Self::locate`].
    #[inline(always)]
    fn take_over(&self, key: &FlowKey<A>, slots: [u32; 2], now: u32) -> bool {
        take_over(self, key, slots, now)
    }

    /// [`locate`]; the kernel's side has it as a function of its own, which the verifier walks once.
    #[inline(always)]
    fn locate(&self, key: &FlowKey<A>, slots: [u32; 2], now: u32) -> Option<PendingKey> {
        locate(self, key, slots, now)
    }

    /// [`record_answered`]; as [`Self::locate`].
    #[inline(always)]
    fn record_answered(&self, key: &FlowKey<A>, opening: &Opening) -> bool {
        record_answered(self, key, opening)
    }

    /// [`record_waiting`]; as [`Self::locate`].
    #[inline(always)]
    fn record_waiting(&self, key: &FlowKey<A>, opening: &Opening) -> bool {
        record_waiting(self, key, opening)
    }
}

impl<A: Address> FlowKey<A> {
    /// The key of a packet's flow, and which end (0 lower, 1 higher) its source is. Ports are in
    /// network byte order.
    #[inline(always)]
    pub fn of(
        source: &A,
        destination: &A,
        source_port: u16,
        destination_port: u16,
        protocol: u8,
    ) -> (Self, usize) {
        let source_low = if source.same(destination) {
            source_port <= destination_port
        } else {
            source.below(destination)
        };
        let protocol = u32::from(protocol);
        if source_low {
            let key = Self {
                low: *source,
                high: *destination,
                low_port: source_port,
                high_port: destination_port,
                protocol,
            };
            (key, 0)
        } else {
            let key = Self {
                low: *destination,
                high: *source,
                low_port: destination_port,
                high_port: source_port,
                protocol,
            };
            (key, 1)
        }
    }

    /// Equality, see [`Address`].
    #[inline(always)]
    pub fn same(&self, other: &Self) -> bool {
        self.low.same(&other.low)
            && self.high.same(&other.high)
            && self.low_port == other.low_port
            && self.high_port == other.high_port
            && self.protocol == other.protocol
    }

    /// The two places where an endpoint's table of pending flows may hold this one, never the same. Part of the layout
    /// of `pending4` and `pending6`.
    #[inline(always)]
    pub fn places(&self) -> [u32; 2] {
        let ports = u32::from(self.low_port) << 16 | u32::from(self.high_port);
        let mut hash = self.low.mix() ^ self.high.mix().rotate_left(15) ^ ports.wrapping_mul(0x9e37_79b1);
        hash ^= hash >> 16;
        hash = hash.wrapping_mul(0x85eb_ca6b) ^ self.protocol;
        hash ^= hash >> 13;
        hash = hash.wrapping_mul(0xc2b2_ae35);
        hash ^= hash >> 16;
        let (first, second) = (hash % PENDING_PLACES, (hash >> 16) % PENDING_PLACES);
        // One of 1,024 would have but one place, and could not make way.
        [first, if second == first { first ^ 1 } else { second }]
    }
}

impl From<LastingFlow> for Flow {
    #[inline(always)]
    fn from(lasting: LastingFlow) -> Self {
        let LastingFlow { endpoint: [e0, e1], judged: [j0, j1], seen, slots, flags } = lasting;
        Self {
            endpoint: [Cell::new(e0), Cell::new(e1)],
            judged: [Cell::new(j0), Cell::new(j1)],
            seen: Cell::new(seen),
            slots: Cell::new(slots),
            flags: Cell::new(flags),
            #[cfg(feature = "next-layout")]
            appended: Cell::new(0),
        }
    }
}

impl Flow {
    /// Slot of the endpoint at an end.
    #[inline(always)]
    pub fn slot(&self, end: usize) -> u32 {
        self.slots.get() >> ((end as u32 & 1) * 16) & 0xffff
    }

    /// Which end opened the flow.
    #[inline(always)]
    pub fn opener(&self) -> usize {
        (self.flags.get() & FLOW_OPENED_HIGH) as usize
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub fn has(&self, flag: u32) -> bool {
        self.flags.get() & flag != 0
    }

    /// Whether the flow's lifetime has not passed. Another CPU's clock may be a tick ahead.
    #[inline(always)]
    pub fn alive(&self, protocol: u32, now: u32) -> bool {
        let age = now.wrapping_sub(self.seen.get()) as i32;
        age < self.lifetime(protocol) as i32
    }

    #[inline(always)]
    fn lifetime(&self, protocol: u32) -> u32 {
        let flags = self.flags.get();
        if flags & FLOW_RST != 0 {
            lifetime::TCP_RST
        } else if flags & FLOW_FIN != 0 {
            lifetime::TCP_FIN
        } else if flags & FLOW_ANSWERED == 0 {
            lifetime::UNANSWERED
        } else if protocol == protocol::TCP as u32 {
            lifetime::TCP
        } else if protocol == protocol::UDP as u32 {
            lifetime::UDP
        } else if protocol == protocol::ICMP as u32 || protocol == protocol::ICMP6 as u32 {
            lifetime::ICMP
        } else {
            lifetime::OTHER
        }
    }

    /// Number of the node that the pod at an end, which is no local endpoint's, was found to be behind while addresses were
    /// whose they are now; [`NODE_NONE`] where that was not looked up since. It spares a longest prefix match per packet.
    ///
    /// The number and the lower bits of the topology stand in one word, so that another CPU never meets one without the
    /// other; the upper bits, which change once in 262,144 times, in the slot that such an end does not need.
    #[inline(always)]
    pub fn behind(&self, end: usize, topology: u32) -> u32 {
        let kept = self.judged[end & 1].get();
        let is_now = self.slot(end) == topology >> TOPOLOGY_BITS && (kept ^ topology) << EXIT_BITS == 0;
        if is_now && topology >= TOPOLOGY_FIRST { kept >> TOPOLOGY_BITS } else { NODE_NONE }
    }

    /// Keeps what [`Self::behind`] says: a number below [`EXITS`].
    #[inline(always)]
    pub fn keep_behind(&self, end: usize, topology: u32, node: u32) {
        let shift = (end as u32 & 1) * 16;
        let slots = self.slots.get() & !(0xffff << shift) | topology >> TOPOLOGY_BITS << shift;
        if self.slots.get() != slots {
            self.slots.set(slots);
        }
        self.judged[end & 1].set(node << TOPOLOGY_BITS | topology << EXIT_BITS >> EXIT_BITS);
    }

    /// Notes a packet of the flow. Writes only what changes: the entry is shared by all CPUs.
    #[inline(always)]
    pub fn note(&self, now: u32, tcp_flags: u8, reply: bool) {
        let old = self.flags.get();
        let flags = old | noted(tcp_flags, reply);
        if flags != old {
            cold_path();
            self.flags.set(flags);
        }
        if self.seen.get() != now {
            cold_path();
            self.seen.set(now);
        }
    }
}

/// Flags of a flow that a packet of it sets.
#[inline(always)]
fn noted(tcp_flags: u8, reply: bool) -> u32 {
    let mut flags = if reply { FLOW_ANSWERED } else { 0 };
    if tcp_flags & tcp::FIN != 0 {
        flags |= FLOW_FIN;
    }
    if tcp_flags & tcp::RST != 0 {
        flags |= FLOW_RST;
    }
    flags
}

/// Where a flow lies that is among the answered ones.
const ANSWERED: PendingKey = PendingKey { slot: SLOT_NONE, place: 0 };

/// A flow that a packet belongs to, and the place of its endpoint's pending flows that holds it.
pub struct Known<'a> {
    /// The flow.
    pub flow: &'a Flow,
    /// Where it is pending, or [`ANSWERED`].
    pub place: PendingKey,
}

/// Looks a flow up: first among the answered ones, then among the pending ones of two endpoints.
#[inline(always)]
pub fn find<'a, A: Address + 'a, T: FlowTables<A>>(
    tables: &'a T,
    key: &FlowKey<A>,
    slots: [u32; 2],
    now: u32,
) -> Option<Known<'a>> {
    match answered(tables, key, now) {
        None => waiting(tables, key, slots, now),
        known => known,
    }
}

/// Looks a flow up among the answered ones, as nearly all packets' flows are.
#[inline(always)]
pub fn answered<'a, A: Address + 'a, T: FlowTables<A>>(
    tables: &'a T,
    key: &FlowKey<A>,
    now: u32,
) -> Option<Known<'a>> {
    match tables.flow(key) {
        Some(flow) if flow.alive(key.protocol, now) => Some(Known { flow, place: ANSWERED }),
        _ => {
            cold_path();
            None
        }
    }
}

/// Looks a flow up that is not [`answered`]: among the pending ones of two endpoints.
#[inline(always)]
pub fn waiting<'a, A: Address + 'a, T: FlowTables<A>>(
    tables: &'a T,
    key: &FlowKey<A>,
    slots: [u32; 2],
    now: u32,
) -> Option<Known<'a>> {
    let place = match tables.locate(key, slots, now) {
        Some(place) => place,
        None if tables.takes_over() && tables.take_over(key, slots, now) => ANSWERED,
        None => return None,
    };
    if place.slot == SLOT_NONE {
        return tables.flow(key).map(|flow| Known { flow, place });
    }
    // What lies there may have changed meanwhile.
    let pending = tables.pending(&place)?;
    if pending.key.same(key) { Some(Known { flow: &pending.flow, place }) } else { None }
}

/// Where a flow is pending with one of two endpoints. [`SLOT_NONE`] as slot: it is among the answered ones
/// now.
#[inline(always)]
pub fn locate<A: Address, T: FlowTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    slots: [u32; 2],
    now: u32,
) -> Option<PendingKey> {
    for slot in slots {
        if slot == SLOT_NONE {
            continue;
        }
        for place in key.places() {
            let place = PendingKey { slot, place };
            if let Some(pending) = tables.pending(&place)
                && pending.key.same(key)
                && pending.flow.alive(key.protocol, now)
            {
                return Some(place);
            }
        }
    }
    // It may have been answered since it was looked for there.
    if tables.flow(key).is_some_and(|flow| flow.alive(key.protocol, now)) { Some(ANSWERED) } else { None }
}

/// Takes a flow over from the maps of an agent with another layout, if it is there, whether anybody has
/// answered it or not. It is then judged as any other: at an older generation.
#[inline(always)]
pub fn take_over<A: Address, T: FlowTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    slots: [u32; 2],
    now: u32,
) -> bool {
    let taken = |old: &LastingFlow| {
        let flow = Flow::from(*old);
        flow.alive(key.protocol, now) && tables.insert_flow(key, &flow)
    };
    if let Some(old) = tables.old_flow(key) {
        return taken(old);
    }
    for slot in slots {
        if slot == SLOT_NONE {
            continue;
        }
        for place in key.places() {
            if let Some(old) = tables.old_pending(&PendingKey { slot, place })
                && old.key.same(key)
            {
                return taken(&old.flow);
            }
        }
    }
    false
}

/// Forgets a flow wherever it is.
#[inline(always)]
pub fn forget<A: Address, T: FlowTables<A>>(tables: &T, key: &FlowKey<A>, known: &Known<'_>) {
    if known.place.slot == SLOT_NONE {
        tables.remove_flow(key);
    } else {
        tables.remove_pending(&known.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn what_an_end_keeps_holds_for_that_topology_alone() {
        // As recorded: judged at some generation, the far end without a slot.
        for judged in [1, 7, TOPOLOGY_FIRST | 7, u32::MAX] {
            let lasting =
                LastingFlow { endpoint: [9, 0], judged: [judged; 2], seen: 0, slots: 0xabc, flags: 0 };
            let flow = Flow::from(lasting);
            for topology in [0, 1, 7, TOPOLOGY_FIRST, TOPOLOGY_FIRST | 7, u32::MAX] {
                assert_eq!(flow.behind(1, topology), NODE_NONE, "{judged}, {topology}");
            }
            for topology in [TOPOLOGY_FIRST, 3 * TOPOLOGY_FIRST - 1, u32::MAX] {
                for node in [1, 77, EXITS - 1] {
                    flow.keep_behind(1, topology, node);
                    assert_eq!(flow.behind(1, topology), node);
                    for other in
                        [topology ^ 1, topology ^ TOPOLOGY_FIRST, topology ^ 1 << 31, topology & 0xff, 0]
                    {
                        assert_eq!(flow.behind(1, other), NODE_NONE, "{topology}, {other}");
                    }
                    assert_eq!((flow.slot(0), flow.judged[0].get()), (0xabc, judged));
                }
            }
        }
    }

    #[test]
    fn the_clock_begins_at_0_and_goes_on_where_32_bits_of_jiffies_end() {
        for (jiffy, a_second) in [(10_000_000, 100), (4_000_000, 250), (3_333_333, 300), (1_000_000, 1000)] {
            let first = u64::from(u32::MAX) + 1 - 300 * a_second;
            assert!(clock(first, jiffy) <= 1, "{jiffy} ns");
            for seconds in [299, 300, 301, 86_400, 10 * 365 * 86_400] {
                let jiffies = first + seconds * SECOND / u64::from(jiffy);
                let wanted = ((seconds * SECOND) >> 30) as u32;
                assert!(clock(jiffies, jiffy).abs_diff(wanted) <= 1, "{jiffy} ns, {seconds} s");
            }
        }
    }
}
