//! The maps, and how the verdict looks into them.

use core::cell::Cell;
use core::hint::cold_path;

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use fairlead_common::flow::{FlowTables, Opening, clock};
use fairlead_common::judge::{PeerTables, PolicyTables};
use fairlead_common::maps::{
    AddressInfo, Banked, DropKey, EXITS, Endpoint, EndpointPolicy, EventLimit, EventLosses, Exit,
    FirstFragment, Flow, FlowKey, FragmentKey, LastingFlow, LastingPending, NODE_NONE, PORT_CLASS_ELEMENTS,
    Passed, Pending, PendingKey, PortClasses, PortSet, QUEUED, RowKey, SLOTS, STATE_TAKE_OVER, Side, State,
    StateEntry, Unanswered,
};
use fairlead_common::packet::Parsed;
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::Tables;

use crate::steps::Steps;

/// `BPF_F_NO_PREALLOC`: memory grows with use.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`: the agent writes through shared memory, one word at a time.
const MMAPABLE: u32 = 1 << 10;
/// The same: the array's elements begin with a page, so that one of 64 bytes is one line of the processor's cache.
const BY_PAGE: u32 = MMAPABLE;

/// A value that all CPUs share, written word by word.
#[repr(transparent)]
pub(crate) struct Shared<T>(pub(crate) T);

// SAFETY: BPF programs of several CPUs do share these values; each word is written whole, and every
// combination of old and new words is a state that the code can meet anyway.
unsafe impl<T> Sync for Shared<T> {}

// Capacities are defaults: the agent sets them when it makes the maps.
#[map(name = "endpoints")]
static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(SLOTS, BY_PAGE);
#[map(name = "killed")]
static KILLED: Array<u32> = Array::with_max_entries(SLOTS, 0);
#[map(name = "state")]
static STATE: Array<StateEntry> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "peers4")]
static PEERS4: HashMap<u32, Banked> = HashMap::with_max_entries(262_144, NO_PREALLOC);
#[map(name = "peers6")]
static PEERS6: HashMap<[u32; 4], Banked> = HashMap::with_max_entries(262_144, NO_PREALLOC);
#[map(name = "cidrs4")]
static CIDRS4: LpmTrie<u32, Banked> = LpmTrie::with_max_entries(65_536, NO_PREALLOC);
#[map(name = "cidrs6")]
static CIDRS6: LpmTrie<[u32; 4], Banked> = LpmTrie::with_max_entries(65_536, NO_PREALLOC);
#[map(name = "rows")]
static ROWS: HashMap<RowKey, Banked> = HashMap::with_max_entries(1_048_576, NO_PREALLOC);
#[map(name = "sets")]
static SETS: Array<PortSet> = Array::with_max_entries(4096, MMAPABLE);
#[map(name = "port_classes")]
static PORT_CLASSES: Array<PortClasses> = Array::with_max_entries(PORT_CLASS_ELEMENTS, MMAPABLE);
#[map(name = "addresses4")]
static ADDRESSES4: HashMap<u32, AddressInfo> = HashMap::with_max_entries(65_536, NO_PREALLOC);
#[map(name = "addresses6")]
static ADDRESSES6: HashMap<[u32; 4], AddressInfo> = HashMap::with_max_entries(65_536, NO_PREALLOC);
#[map(name = "tunnels4")]
static TUNNELS4: HashMap<u32, u32> = HashMap::with_max_entries(65_536, NO_PREALLOC);
#[map(name = "tunnels6")]
static TUNNELS6: HashMap<[u32; 4], u32> = HashMap::with_max_entries(65_536, NO_PREALLOC);
#[map(name = "remotes4")]
static REMOTES4: LpmTrie<u32, u32> = LpmTrie::with_max_entries(65_536, NO_PREALLOC);
#[map(name = "remotes6")]
static REMOTES6: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(65_536, NO_PREALLOC);
#[map(name = "queued")]
static QUEUED_AT: Array<Shared<Cell<u32>>> = Array::with_max_entries(QUEUED, 0);
#[map(name = "exits4")]
static EXITS4: Array<Exit> = Array::with_max_entries(EXITS, BY_PAGE);
#[map(name = "exits6")]
static EXITS6: Array<Exit> = Array::with_max_entries(EXITS, BY_PAGE);
#[map(name = "flows4")]
static FLOWS4: LruHashMap<FlowKey<u32>, Shared<Flow>> = LruHashMap::with_max_entries(131_072, 0);
#[map(name = "flows6")]
static FLOWS6: LruHashMap<FlowKey<[u32; 4]>, Shared<Flow>> = LruHashMap::with_max_entries(65_536, 0);
#[map(name = "pending4")]
static PENDING4: HashMap<PendingKey, Shared<Pending<u32>>> = HashMap::with_max_entries(524_288, NO_PREALLOC);
#[map(name = "pending6")]
static PENDING6: HashMap<PendingKey, Shared<Pending<[u32; 4]>>> =
    HashMap::with_max_entries(524_288, NO_PREALLOC);
#[map(name = "unanswered")]
static UNANSWERED: Array<Shared<Unanswered>> = Array::with_max_entries(SLOTS, 0);
#[map(name = "fragments4")]
static FRAGMENTS4: LruHashMap<FragmentKey<u32>, FirstFragment> = LruHashMap::with_max_entries(8192, 0);
#[map(name = "fragments6")]
static FRAGMENTS6: LruHashMap<FragmentKey<[u32; 4]>, FirstFragment> = LruHashMap::with_max_entries(8192, 0);
// Maps of an agent with other layouts, which take the places of these; see docs/decisions/0006.
#[map(name = "old_flows4")]
static OLD_FLOWS4: HashMap<FlowKey<u32>, LastingFlow> = HashMap::with_max_entries(1, NO_PREALLOC);
#[map(name = "old_flows6")]
static OLD_FLOWS6: HashMap<FlowKey<[u32; 4]>, LastingFlow> = HashMap::with_max_entries(1, NO_PREALLOC);
#[map(name = "old_pending4")]
static OLD_PENDING4: HashMap<PendingKey, LastingPending<u32>> = HashMap::with_max_entries(1, NO_PREALLOC);
#[map(name = "old_pending6")]
static OLD_PENDING6: HashMap<PendingKey, LastingPending<[u32; 4]>> =
    HashMap::with_max_entries(1, NO_PREALLOC);
#[map(name = "old_fragments4")]
static OLD_FRAGMENTS4: HashMap<FragmentKey<u32>, FirstFragment> = HashMap::with_max_entries(1, NO_PREALLOC);
#[map(name = "old_fragments6")]
static OLD_FRAGMENTS6: HashMap<FragmentKey<[u32; 4]>, FirstFragment> =
    HashMap::with_max_entries(1, NO_PREALLOC);
#[map(name = "drops")]
static DROPS: PerCpuHashMap<DropKey, u64> = PerCpuHashMap::with_max_entries(65_536, NO_PREALLOC);
#[map(name = "passed")]
static PASSED: PerCpuArray<Passed> = PerCpuArray::with_max_entries(SLOTS * 2, 0);
#[map(name = "events")]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
#[map(name = "event_limits")]
static EVENT_LIMITS: Array<Shared<Cell<EventLimit>>> = Array::with_max_entries(SLOTS, 0);
#[map(name = "event_losses")]
static EVENT_LOSSES: PerCpuArray<EventLosses> = PerCpuArray::with_max_entries(SLOTS, 0);

/// The node's state, read once per packet: its generation word decides which bank all look-ups use.
#[inline(always)]
pub(crate) fn state() -> Option<State> {
    let state = STATE.get_ptr(0)?;
    // SAFETY: the map holds one element for as long as the program runs; volatile, so that the word is
    // read exactly once.
    Some(unsafe { core::ptr::read_volatile(&raw const (*state).state) })
}

/// Whether what is missed is looked for in the maps of the agent before.
#[inline(always)]
fn takes_over() -> bool {
    let Some(state) = STATE.get_ptr(0) else { return false };
    // SAFETY: as above; the agent takes the bit away once, while programs run.
    let flags = unsafe { core::ptr::read_volatile(&raw const (*state).state.flags) };
    flags & STATE_TAKE_OVER != 0
}

/// Number of the node that has an IPv4 address, [`NODE_NONE`] where none has.
#[inline(always)]
pub(crate) fn tunnel4(address: u32) -> u32 {
    // SAFETY: not preallocated: an element lives until no program that found it runs.
    unsafe { TUNNELS4.get(&address) }.copied().unwrap_or(NODE_NONE)
}

/// As [`tunnel4`], for IPv6.
#[inline(always)]
pub(crate) fn tunnel6(address: [u32; 4]) -> u32 {
    // SAFETY: as above.
    unsafe { TUNNELS6.get(&address) }.copied().unwrap_or(NODE_NONE)
}

/// When a packet of a tunnel's flow was last left to a device that queues.
#[inline(always)]
pub(crate) fn queued(element: u32) -> Option<&'static Cell<u32>> {
    QUEUED_AT.get(element).map(|tick| &tick.0)
}

/// Counts a dropped packet.
#[inline(always)]
pub(crate) fn count_drop(key: &DropKey) {
    if let Some(count) = DROPS.get_ptr_mut(key) {
        // SAFETY: the value is this CPU's own.
        unsafe { *count += 1 };
    } else {
        // Full: the packet is dropped uncounted, which is all that can be done here.
        let _ = DROPS.insert(key, 1, 0);
    }
}

/// Counts a packet that passed.
#[inline(always)]
pub(crate) fn count_passed(slot: u32, direction: u16, bytes: u32) {
    if let Some(passed) = PASSED.get_ptr_mut(slot * 2 + u32::from(direction)) {
        // SAFETY: the value is this CPU's own.
        unsafe {
            (*passed).packets += 1;
            (*passed).bytes += u64::from(bytes);
        }
    }
}

/// The slot's allowance of events.
#[inline(always)]
pub(crate) fn event_limit(slot: u32) -> Option<&'static Cell<EventLimit>> {
    EVENT_LIMITS.get(slot).map(|limit| &limit.0)
}

/// Counts a drop that has no event.
#[inline(always)]
pub(crate) fn count_lost(slot: u32, full: bool) {
    if let Some(losses) = EVENT_LOSSES.get_ptr_mut(slot) {
        // SAFETY: the value is this CPU's own.
        unsafe {
            if full {
                (*losses).full += 1;
            } else {
                (*losses).limited += 1;
            }
        }
    }
}

/// Time in ticks of 2^30 ns.
#[inline(always)]
pub(crate) fn coarse() -> u32 {
    // SAFETY: the helper has no preconditions.
    (unsafe { bpf_ktime_get_coarse_ns() } >> 30) as u32
}

/// [`coarse`], to a tick, by what the kernel counts anyway: a load in place of two calls for each packet.
#[inline(always)]
pub(crate) fn now() -> u32 {
    let Some(state) = STATE.get_ptr(0) else { return 0 };
    // SAFETY: as in `state`; the agent writes this word before any program can run. The helper has no preconditions.
    unsafe { clock(bpf_jiffies64(), (*state).state.jiffy) }
}

/// [`StateEntry::topology`] as it is now.
#[inline(always)]
fn topology() -> u32 {
    let Some(state) = STATE.get_ptr(0) else { return 0 };
    // SAFETY: as in `state`; the agent writes this word while programs run.
    unsafe { core::ptr::read_volatile(&raw const (*state).topology) }
}

/// The maps.
#[derive(Clone, Copy)]
pub(crate) struct Maps;

impl PolicyTables for Maps {
    #[inline(always)]
    fn row(&self, key: &RowKey) -> Option<&Banked> {
        // SAFETY: not preallocated: an element lives until no program that found it runs.
        unsafe { ROWS.get(key) }
    }

    #[inline(always)]
    fn set(&self, id: u32) -> Option<&PortSet> {
        SETS.get(id)
    }

    #[inline(always)]
    fn port_classes(&self, element: u32) -> Option<&PortClasses> {
        PORT_CLASSES.get(element)
    }
}

macro_rules! family {
    ($address:ty, $bits:literal, $peers:ident, $cidrs:ident, $addresses:ident, $remotes:ident, $exits:ident, $flows:ident, $pending:ident, $fragments:ident, $old_flows:ident, $old_pending:ident, $old_fragments:ident) => {
        impl PeerTables<$address> for Maps {
            #[inline(always)]
            fn peer(&self, address: &$address) -> Option<&Banked> {
                // SAFETY: not preallocated, see `row`.
                unsafe { $peers.get(address) }
            }

            #[inline(always)]
            fn cidr(&self, address: &$address) -> Option<&Banked> {
                $cidrs.get(Key::new($bits, *address))
            }

            #[inline(always)]
            fn judge(&self, generation: u32, side: Side, peer: &$address, protocol: u8, port: u16) -> bool {
                <$address>::judge(generation, side, peer, protocol, port)
            }

            #[inline(always)]
            fn judge_both(
                &self,
                generation: u32,
                sides: &EndpointPolicy,
                peer: &$address,
                protocol: u8,
                ports: [u16; 2],
            ) -> (bool, bool) {
                <$address>::judge_both(generation, sides, peer, protocol, ports)
            }
        }

        impl FlowTables<$address> for Maps {
            #[inline(always)]
            fn now(&self) -> u32 {
                now()
            }

            #[inline(always)]
            fn flow(&self, key: &FlowKey<$address>) -> Option<&Flow> {
                // SAFETY: an LRU element may be reused for another flow while it is looked at; its
                // generations then do not fit the packet's endpoints, or the flow is as allowed.
                unsafe { $flows.get(key) }.map(|flow| &flow.0)
            }

            #[inline(always)]
            fn insert_flow(&self, key: &FlowKey<$address>, flow: &Flow) -> bool {
                // SAFETY: `Shared` is transparent.
                let flow = unsafe { &*core::ptr::from_ref(flow).cast::<Shared<Flow>>() };
                $flows.insert(key, flow, 0).is_ok()
            }

            #[inline(always)]
            fn remove_flow(&self, key: &FlowKey<$address>) {
                // It may be gone already.
                let _ = $flows.remove(key);
            }

            #[inline(always)]
            fn pending(&self, key: &PendingKey) -> Option<&Pending<$address>> {
                // SAFETY: not preallocated, see `row`.
                unsafe { $pending.get(key) }.map(|pending| &pending.0)
            }

            #[inline(always)]
            fn insert_pending(&self, key: &PendingKey, pending: &Pending<$address>) -> bool {
                // SAFETY: `Shared` is transparent.
                let pending = unsafe { &*core::ptr::from_ref(pending).cast::<Shared<Pending<$address>>>() };
                $pending.insert(key, pending, 0).is_ok()
            }

            #[inline(always)]
            fn remove_pending(&self, key: &PendingKey) {
                // It may be gone already.
                let _ = $pending.remove(key);
            }

            #[inline(always)]
            fn unanswered(&self, slot: u32) -> Option<&Unanswered> {
                UNANSWERED.get(slot).map(|unanswered| &unanswered.0)
            }

            #[inline(always)]
            fn takes_over(&self) -> bool {
                takes_over()
            }

            #[inline(always)]
            fn old_flow(&self, key: &FlowKey<$address>) -> Option<&LastingFlow> {
                // SAFETY: see `flow`.
                unsafe { $old_flows.get(key) }
            }

            #[inline(always)]
            fn old_pending(&self, key: &PendingKey) -> Option<&LastingPending<$address>> {
                // SAFETY: not preallocated, see `row`.
                unsafe { $old_pending.get(key) }
            }

            #[inline(always)]
            fn take_over(&self, key: &FlowKey<$address>, slots: [u32; 2], now: u32) -> bool {
                <$address>::take_over(key, slots, now)
            }

            #[inline(always)]
            fn locate(&self, key: &FlowKey<$address>, slots: [u32; 2], now: u32) -> Option<PendingKey> {
                <$address>::locate(key, slots, now)
            }

            #[inline(always)]
            fn record_answered(&self, key: &FlowKey<$address>, opening: &Opening) -> bool {
                <$address>::record_answered(key, opening)
            }

            #[inline(always)]
            fn record_waiting(&self, key: &FlowKey<$address>, opening: &Opening) -> bool {
                <$address>::record_waiting(key, opening)
            }
        }

        impl Tables<$address> for Maps {
            #[inline(always)]
            fn topology(&self) -> u32 {
                topology()
            }

            #[inline(always)]
            fn endpoint(&self, slot: u32) -> Option<&Endpoint> {
                ENDPOINTS.get(slot)
            }

            #[inline(always)]
            fn killed(&self, slot: u32) -> u32 {
                KILLED.get(slot).copied().unwrap_or(0)
            }

            #[inline(always)]
            fn address(&self, address: &$address) -> AddressInfo {
                // SAFETY: not preallocated, see `row`.
                match unsafe { $addresses.get(address) } {
                    Some(info) => *info,
                    None => AddressInfo::UNKNOWN,
                }
            }

            #[inline(always)]
            fn remote(&self, address: &$address) -> u32 {
                $remotes.get(Key::new($bits, *address)).copied().unwrap_or(NODE_NONE)
            }

            #[inline(always)]
            fn exit(&self, node: u32) -> Option<&Exit> {
                $exits.get(node)
            }

            #[inline(always)]
            fn remote_apart(&self, address: &$address) -> u32 {
                <$address>::remote_apart(address)
            }

            #[inline(always)]
            fn whereabouts(&self, address: &$address) -> (u32, bool) {
                <$address>::whereabouts(address)
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$address>) -> Option<FirstFragment> {
                // SAFETY: see `flow`; a reused element is another allowed datagram's.
                if let Some(first) = unsafe { $fragments.get(key) } {
                    return Some(*first);
                }
                // SAFETY: as above.
                if takes_over() { unsafe { $old_fragments.get(key) }.copied() } else { None }
            }

            #[inline(always)]
            fn insert_fragment(&self, key: &FragmentKey<$address>, first: &FirstFragment) {
                // Where it does not fit, the later fragments are dropped.
                let _ = $fragments.insert(key, first, 0);
            }

            #[inline(always)]
            fn resolve_fragment(&self, ifindex: u32, p: &mut Parsed<$address>) -> Result<(), DropReason> {
                // Most packets are none: a call less.
                if p.fragment {
                    cold_path();
                    <$address>::resolve_fragment(ifindex, p)
                } else {
                    Ok(())
                }
            }
        }
    };
}

family!(
    u32,
    32,
    PEERS4,
    CIDRS4,
    ADDRESSES4,
    REMOTES4,
    EXITS4,
    FLOWS4,
    PENDING4,
    FRAGMENTS4,
    OLD_FLOWS4,
    OLD_PENDING4,
    OLD_FRAGMENTS4
);
family!(
    [u32; 4],
    128,
    PEERS6,
    CIDRS6,
    ADDRESSES6,
    REMOTES6,
    EXITS6,
    FLOWS6,
    PENDING6,
    FRAGMENTS6,
    OLD_FLOWS6,
    OLD_PENDING6,
    OLD_FRAGMENTS6
);
