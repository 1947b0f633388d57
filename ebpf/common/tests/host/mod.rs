//! The kernel's maps as a program on the host has them, frames, and random numbers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;

use fairlead_common::address::Address;
use fairlead_common::flow::FlowTables;
use fairlead_common::judge::{PeerTables, PolicyTables};
use fairlead_common::maps::{
    AddressInfo, BANKS, Banked, Endpoint, EndpointPolicy, Exit, FirstFragment, Flow, FlowKey, FragmentKey,
    LastingFlow, LastingPending, NODE_NONE, Pending, PendingKey, PortClasses, PortSet, RowKey, SLOT_SETTLED,
    State, Unanswered, mac_words, slot_of,
};
use fairlead_common::packet::{Kind, Packet, Parsed};
use fairlead_common::reason::DropReason;
use fairlead_common::verdict::{
    Family, Hook, Tables, Verdict, error_from_pod, error_to_pod, from_pod, to_pod, to_uplink, unlocked,
};

/// A frame in memory.
pub(crate) struct Frame<'a>(pub(crate) &'a [u8]);

impl Packet for Frame<'_> {
    fn len(&self) -> u32 {
        self.0.len() as u32
    }

    fn at<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
        self.load(OFFSET as u32)
    }

    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let bytes = self.0.get(offset as usize..)?.get(..N * 4)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Some(words)
    }

    fn ether_type(&self) -> u16 {
        match self.0.get(12..14) {
            Some(&[a, b]) => u16::from_be_bytes([a, b]),
            _ => 0,
        }
    }

    fn vlan(&self) -> bool {
        false
    }

    fn gso_size(&self) -> u32 {
        0
    }
}

/// A map whose values, once found, stay: as in the kernel until no program runs.
struct Map<K, V: 'static>(RefCell<HashMap<K, &'static V>>);

impl<K: Copy + Eq + Hash, V> Map<K, V> {
    fn new() -> Self {
        Self(RefCell::new(HashMap::new()))
    }

    fn get(&self, key: &K) -> Option<&'static V> {
        self.0.borrow().get(key).copied()
    }

    fn set(&self, key: &K, value: V) {
        self.0.borrow_mut().insert(*key, Box::leak(Box::new(value)));
    }

    fn remove(&self, key: &K) {
        self.0.borrow_mut().remove(key);
    }
}

/// Tables of one family for a few endpoints; no peers, so that an endpoint's default sets decide.
pub(crate) struct Host<A: 'static> {
    endpoints: HashMap<u32, Endpoint>,
    pub addresses: HashMap<[u32; 4], AddressInfo>,
    /// Nodes by addresses of their pods.
    pub remotes: HashMap<[u32; 4], u32>,
    /// How packets for any of them leave.
    pub exit: Exit,
    flows: Map<FlowKey<A>, Flow>,
    pending: Map<PendingKey, Pending<A>>,
    /// One for all endpoints.
    pub unanswered: Unanswered,
    fragments: Map<FragmentKey<A>, FirstFragment>,
    pub now: Cell<u32>,
    /// 0: flows keep nothing.
    pub topology: u32,
    /// How often a node was looked for.
    pub looked_up: Cell<usize>,
}

impl<A: Address + Eq + Hash> Host<A> {
    pub(crate) fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(|e| (slot_of(e.ifindex), e)).collect(),
            addresses: HashMap::new(),
            remotes: HashMap::new(),
            exit: Exit::default(),
            flows: Map::new(),
            pending: Map::new(),
            unanswered: Unanswered::default(),
            fragments: Map::new(),
            now: Cell::new(1000),
            topology: 0,
            looked_up: Cell::new(0),
        }
    }

    /// Entries of flows, answered or not.
    pub(crate) fn flow_count(&self) -> usize {
        self.flow_counts().iter().sum()
    }

    /// Flows among the answered ones, and in places.
    pub(crate) fn flow_counts(&self) -> [usize; 2] {
        [self.flows.0.borrow().len(), self.pending.0.borrow().len()]
    }

    /// Forgets all flows that bear one of these flags, as if there had been no room.
    pub(crate) fn evict(&self, flags: u32) {
        self.flows.0.borrow_mut().retain(|_, flow| !flow.has(flags));
        self.pending.0.borrow_mut().retain(|_, pending| !pending.flow.has(flags));
    }

    pub(crate) fn set_policy(&mut self, ifindex: u32, policy: EndpointPolicy) {
        if let Some(endpoint) = self.endpoints.get_mut(&slot_of(ifindex)) {
            endpoint.policy = [policy; BANKS];
        }
    }
}

impl<A> PolicyTables for Host<A> {
    fn row(&self, _: &RowKey) -> Option<&Banked> {
        None
    }

    fn set(&self, id: u32) -> Option<&PortSet> {
        match id {
            0 => Some(&PortSet::NONE),
            1 => Some(&PortSet::ALL),
            _ => None,
        }
    }

    fn port_classes(&self, _: u32) -> Option<&PortClasses> {
        Some(&[2; 4])
    }
}

impl<A> PeerTables<A> for Host<A> {
    fn peer(&self, _: &A) -> Option<&Banked> {
        None
    }

    fn cidr(&self, _: &A) -> Option<&Banked> {
        None
    }
}

impl<A: Address + Eq + Hash> FlowTables<A> for Host<A> {
    fn now(&self) -> u32 {
        self.now.get()
    }

    fn flow(&self, key: &FlowKey<A>) -> Option<&Flow> {
        self.flows.get(key)
    }

    fn insert_flow(&self, key: &FlowKey<A>, flow: &Flow) -> bool {
        self.flows.set(key, flow.clone());
        true
    }

    fn remove_flow(&self, key: &FlowKey<A>) {
        self.flows.remove(key);
    }

    fn pending(&self, key: &PendingKey) -> Option<&Pending<A>> {
        self.pending.get(key)
    }

    fn insert_pending(&self, key: &PendingKey, pending: &Pending<A>) -> bool {
        self.pending.set(key, pending.clone());
        true
    }

    fn remove_pending(&self, key: &PendingKey) {
        self.pending.remove(key);
    }

    fn unanswered(&self, _: u32) -> Option<&Unanswered> {
        Some(&self.unanswered)
    }

    fn takes_over(&self) -> bool {
        false
    }

    fn old_flow(&self, _: &FlowKey<A>) -> Option<&LastingFlow> {
        None
    }

    fn old_pending(&self, _: &PendingKey) -> Option<&LastingPending<A>> {
        None
    }
}

impl<A: Address + Eq + Hash> Tables<A> for Host<A> {
    fn endpoint(&self, slot: u32) -> Option<&Endpoint> {
        self.endpoints.get(&slot)
    }

    fn killed(&self, _: u32) -> u32 {
        0
    }

    fn address(&self, address: &A) -> AddressInfo {
        self.addresses.get(&address.words()).copied().unwrap_or(AddressInfo::UNKNOWN)
    }

    fn topology(&self) -> u32 {
        self.topology
    }

    fn remote(&self, address: &A) -> u32 {
        self.looked_up.set(self.looked_up.get() + 1);
        self.remotes.get(&address.words()).copied().unwrap_or(NODE_NONE)
    }

    fn exit(&self, node: u32) -> Option<&Exit> {
        (node != NODE_NONE).then_some(&self.exit)
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FirstFragment> {
        self.fragments.get(key).copied()
    }

    fn insert_fragment(&self, key: &FragmentKey<A>, first: &FirstFragment) {
        self.fragments.set(key, *first);
    }
}

/// The node's state, generation 1.
pub(crate) const STATE: State = State {
    generation: 1,
    flags: fairlead_common::maps::STATE_FAST_PATH,
    mark_mask: 0x0fff_0000,
    jiffy: 4_000_000,
    mark_shift: 16,
    overlay_port: 0,
    overlay_id: 0,
};

/// The interface index of endpoint `n`.
pub(crate) const fn ifindex(n: u8) -> u32 {
    0x10000 + n as u32
}

/// Endpoint `n`, unlocked, with addresses 10.1.0.n and fd00:1::n.
pub(crate) fn endpoint(n: u8, policy: EndpointPolicy) -> Endpoint {
    let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
    Endpoint {
        ifindex: ifindex(n),
        generation: ifindex(n),
        flags: fairlead_common::maps::ENDPOINT_UNLOCKED | fairlead_common::maps::ENDPOINT_FAST_PATH,
        mtu: 1500,
        policy: [policy; BANKS],
        macs: mac_words([2, 0, 0, 0, 2, n], [2, 0, 0, 0, 1, n]),
        ipv4: [word([10, 1, 0, n]), 0, 0, 0],
        ipv6: [[word([0xfd, 0, 0, 1]), 0, 0, word([0, 0, 0, n])], [0; 4], [0; 4], [0; 4]],
        netns: 0,
        reserved: [0; 4],
    }
}

/// What the programs of `ebpf/` do with a frame that a pod sends, the check of its MAC apart.
pub(crate) fn sends<A: Family + Eq + Hash>(
    host: &Host<A>,
    n: u8,
    frame: &[u8],
) -> (Verdict, Option<Parsed<A>>) {
    let packet = Frame(frame);
    let refused = |reason| {
        let dropped = fairlead_common::verdict::Dropped { reason, ifindex: ifindex(n), direction: 1 };
        Verdict::Drop(dropped)
    };
    let endpoint = match unlocked(host, ifindex(n)) {
        Ok(endpoint) => endpoint,
        Err(reason) => return (refused(reason), None),
    };
    let mut p = match fairlead_common::packet::parse::<A, _>(&packet) {
        Ok(p) => p,
        Err(reason) => return (refused(reason), None),
    };
    let hook = Hook { ifindex: ifindex(n), mark: 0, made_here: false };
    let verdict = if p.kind == Kind::IcmpError {
        error_from_pod(host, &STATE, &packet, endpoint, &p)
    } else {
        from_pod(host, &STATE, &packet, &hook, endpoint, &mut p)
    };
    (verdict, Some(p))
}

/// What they do with a frame from outside that reaches a pod.
pub(crate) fn receives<A: Family + Eq + Hash>(
    host: &Host<A>,
    n: u8,
    frame: &[u8],
) -> Result<Verdict, DropReason> {
    let packet = Frame(frame);
    let endpoint = unlocked(host, ifindex(n))?;
    let mut p = fairlead_common::packet::parse::<A, _>(&packet)?;
    let hook = Hook { ifindex: ifindex(n), mark: SLOT_SETTLED, made_here: false };
    Ok(if p.kind == Kind::IcmpError {
        error_to_pod(host, &STATE, &packet, &hook, endpoint, &p)
    } else {
        to_pod(host, &STATE, &hook, endpoint, &mut p)
    })
}

/// What they do with a frame of a pod that leaves the node.
pub(crate) fn leaves<A: Family + Eq + Hash>(host: &Host<A>, n: u8, frame: &[u8]) -> Verdict {
    let mut p = Parsed::empty();
    let parsed = A::parse_into(&Frame(frame), &mut p);
    let hook = Hook { ifindex: 2, mark: slot_of(ifindex(n)), made_here: false };
    to_uplink(host, &STATE, &hook, parsed, &mut p)
}

/// A comparison by random packets: given whether of IPv6, a seed and the number of steps, how often what is worth seeing was
/// seen.
pub(crate) type Comparison<const N: usize> = fn(bool, u64, usize) -> [usize; N];

/// Runs a comparison for IPv4 and the one for IPv6 with this many seeds. All of what is to be seen must be seen more than
/// `least` times with each. Returns how many steps that were.
pub(crate) fn compared<const N: usize>(
    families: [Comparison<N>; 2],
    seeds: u64,
    steps: usize,
    least: usize,
) -> usize {
    let mut cases = 0;
    for seed in 1..=seeds {
        for (v6, compare) in [false, true].into_iter().zip(families) {
            let seen = compare(v6, seed, steps);
            assert!(seen.iter().all(|&n| n > least), "seed {seed}: {seen:?}");
            cases += steps;
        }
    }
    cases
}

/// Counts up each of what a step has seen.
pub(crate) fn count<const N: usize>(seen: &mut [usize; N], step: [bool; N]) {
    for (count, is_so) in seen.iter_mut().zip(step) {
        *count += usize::from(is_so);
    }
}

/// xorshift64*: small, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    pub(crate) fn byte(&mut self) -> u8 {
        (self.next() >> 40) as u8
    }
}
