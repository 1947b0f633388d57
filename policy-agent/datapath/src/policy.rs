//! Policy tables: from a [`Delta`] to what the kernel holds, one generation at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;

use fairlead_common::maps::{
    ABSENT, BANKS, Banked, CLASS_SCTP, CLASS_TCP, CLASS_UDP, Cidr4, Cidr6, Endpoint, EndpointPolicy,
    PORT_CLASS_ELEMENTS, PortClasses, PortSet, RowKey, SET_ALL, STATE_FAST_PATH, STATE_TAKE_OVER, State,
    StateEntry, TOPOLOGY_FIRST, names,
};
use fairlead_policy::model::Protocol;
use fairlead_policy::tables::{Delta, PortClass, Slot};
use ipnetwork::IpNetwork;

use crate::banks::{BankedMap, Change};
use crate::clock;
use crate::grace::Grace;
use crate::map::{Map, MapError};
use crate::object::Object;
use crate::sys::{self, Plain, Shared};
use crate::writes::{self, Write};
use crate::{Error, Options, words4, words6};

/// The policy tables of one loaded object.
pub(crate) struct Policy {
    rows: BankedMap<RowKey>,
    peers4: BankedMap<u32>,
    peers6: BankedMap<[u32; 4]>,
    cidrs4: Cidrs<Cidr4>,
    cidrs6: Cidrs<Cidr6>,
    sets: Shared,
    set_count: u32,
    port_classes: Shared,
    state: Shared,
    endpoints: Map<u32, Endpoint>,
    /// What the kernel holds of each endpoint that is registered.
    registered: BTreeMap<Slot, Endpoint>,
    /// The rules in force of each endpoint that the compiler knows.
    rules: HashMap<Slot, EndpointPolicy>,
    /// Endpoints whose banks do not all say the same.
    unsettled: HashSet<Slot>,
    generation: u32,
    /// [`State::flags`].
    flags: u32,
    /// [`StateEntry::topology`].
    topology: u32,
    serial: u64,
    settled: u64,
    filled: bool,
    grace: Grace,
}

impl Policy {
    pub(crate) fn new(object: &Object, options: &Options) -> Result<Self, Error> {
        let sets: Map<u32, PortSet> = object.map("sets")?;
        let set_count = sets.max_entries();
        let state_map: Map<u32, StateEntry> = object.map("state")?;
        let port_classes: Map<u32, PortClasses> = object.map("port_classes")?;
        let last = last_state(&object.pins.lasting.join(names::STATE))?;
        let generation = last.generation.wrapping_add(1);
        let this = Self {
            rows: BankedMap::new(object.map("rows")?),
            peers4: BankedMap::new(object.map("peers4")?),
            peers6: BankedMap::new(object.map("peers6")?),
            cidrs4: Cidrs::new(object.map("cidrs4")?),
            cidrs6: Cidrs::new(object.map("cidrs6")?),
            sets: sets.shared()?,
            set_count,
            port_classes: port_classes.shared()?,
            state: state_map.shared()?,
            endpoints: object.map("endpoints")?,
            registered: BTreeMap::new(),
            rules: HashMap::new(),
            unsettled: HashSet::new(),
            generation,
            flags: if options.fast_path { STATE_FAST_PATH } else { 0 },
            topology: next_topology(last.topology),
            serial: 0,
            settled: 0,
            filled: false,
            grace: Grace::start(generation),
        };
        let jiffy = clock::jiffy().map_err(|source| Error::Clock { source })?;
        let state = State {
            generation,
            flags: this.flags | if object.take_over().is_needed() { STATE_TAKE_OVER } else { 0 },
            mark_mask: options.mark_mask,
            jiffy,
            overlay_port: options.overlay.map_or(0, |overlay| overlay.port.to_be()),
            mark_shift: (options.mark_mask.trailing_zeros() % 32) as u16,
            overlay_id: options.overlay.map_or(0, |overlay| overlay.id),
        };
        state_map.set(&0, &StateEntry { state, topology: this.topology })?;
        this.write_set(SET_ALL, &PortSet::ALL)?;
        for (protocol, class) in
            [(Protocol::Tcp, CLASS_TCP), (Protocol::Udp, CLASS_UDP), (Protocol::Sctp, CLASS_SCTP)]
        {
            this.write_ports(&PortClass { protocol, first: 0, last: u16::MAX, class })?;
        }
        debug_assert_eq!(port_classes.max_entries(), PORT_CLASS_ELEMENTS);
        // Before these tables can come into force: the next agent's generations start behind them.
        object.pin_state(&state_map)?;
        Ok(this)
    }

    /// The generation in force.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// An address may have become somebody else's, as the maps say already: nothing that flows keep of that holds any more.
    pub(crate) fn addresses_changed(&mut self) -> Result<(), Error> {
        self.topology = next_topology(self.topology);
        self.state.store_u32(TOPOLOGY_WORD, self.topology).map_err(|source| Error::State { source })
    }

    /// Everything is taken over: the programs need not look into the old maps any more.
    pub(crate) fn end_take_over(&self) -> Result<(), Error> {
        self.state.store_u32(1, self.flags).map_err(|source| Error::State { source })
    }

    /// Puts a step in force. After an error what was in force still is.
    pub(crate) fn apply(&mut self, delta: &Delta) -> Result<(), Error> {
        let next = self.generation.wrapping_add(1);
        let bank = next as usize % BANKS;
        let in_force = self.generation as usize % BANKS;
        for (id, set) in &delta.sets {
            self.write_set(*id, set)?;
        }
        for ports in &delta.ports {
            self.write_ports(ports)?;
        }

        let rows: Vec<_> = delta
            .rows
            .iter()
            .map(|((signature, atom), set)| change(RowKey { signature: *signature, atom: *atom }, *set))
            .collect();
        let mut peers4 = Vec::new();
        let mut peers6 = Vec::new();
        for (address, atom) in &delta.peers {
            match address {
                IpAddr::V4(a) => peers4.push(change(words4(*a), *atom)),
                IpAddr::V6(a) => peers6.push(change(words6(*a), *atom)),
            }
        }
        if self.filled && self.is_full(delta, rows.len(), peers4.len(), peers6.len()) {
            // What is leaving makes room once no packet can meet it.
            self.grace.wait_for(self.generation)?;
            self.settle_elements()?;
        }
        let cidrs4 = self.cidrs4.changes(&delta.cidrs);
        let cidrs6 = self.cidrs6.changes(&delta.cidrs);

        if !self.filled {
            // Nothing looks into these tables yet.
            self.rows.fill(&rows)?;
            self.peers4.fill(&peers4)?;
            self.peers6.fill(&peers6)?;
            self.cidrs4.map.fill(&cidrs4)?;
            self.cidrs6.map.fill(&cidrs6)?;
        } else {
            // The bank was in force BANKS generations ago: no packet may still carry that generation.
            self.grace.wait_for(next.wrapping_sub(BANKS as u32 - 1))?;
            self.rows.prepare(&rows, in_force, bank, |_| true)?;
            self.peers4.prepare(&peers4, in_force, bank, |_| true)?;
            self.peers6.prepare(&peers6, in_force, bank, |_| true)?;
            self.cidrs4.prepare(&cidrs4, in_force, bank)?;
            self.cidrs6.prepare(&cidrs6, in_force, bank)?;
        }
        self.prepare_endpoints(&delta.endpoints, bank)?;

        writes::make(Write::Generation, || self.state.store_u32(0, next))
            .map_err(|source| Error::State { source })?;
        self.generation = next;
        self.grace.passed(next);

        self.rows.commit();
        self.peers4.commit();
        self.peers6.commit();
        self.cidrs4.commit();
        self.cidrs6.commit();
        for (slot, rules) in &delta.endpoints {
            match rules {
                Some(rules) => self.rules.insert(*slot, *rules),
                None => self.rules.remove(slot),
            };
        }
        self.serial = delta.serial.max(self.serial);
        self.filled = true;
        Ok(())
    }

    /// If no packet can carry an older generation than the one in force: makes all banks say the
    /// same, and returns the serial of the last step, whose freed ids may be used again.
    pub(crate) fn settled(&mut self) -> Result<Option<u64>, Error> {
        if self.settled == self.serial || !self.grace.is_over(self.generation) {
            return Ok(None);
        }
        self.settle_elements()?;
        for slot in &self.unsettled {
            if let Some(entry) = self.registered.get_mut(slot) {
                // Where its rules are gone too, or an old bank would bring them back.
                entry.policy = [rules_of(&self.rules, *slot); BANKS];
                self.endpoints.set(&u32::from(*slot), entry)?;
            }
        }
        self.unsettled.clear();
        self.settled = self.serial;
        Ok(Some(self.serial))
    }

    fn settle_elements(&mut self) -> Result<(), Error> {
        self.rows.settle()?;
        self.peers4.settle()?;
        self.peers6.settle()?;
        self.cidrs4.map.settle()?;
        self.cidrs6.map.settle()?;
        Ok(())
    }

    fn is_full(&self, delta: &Delta, rows: usize, peers4: usize, peers6: usize) -> bool {
        self.rows.is_full(rows)
            || self.peers4.is_full(peers4)
            || self.peers6.is_full(peers6)
            || self.cidrs4.map.is_full(delta.cidrs.len())
            || self.cidrs6.map.is_full(delta.cidrs.len())
    }

    fn prepare_endpoints(
        &mut self,
        changes: &[(Slot, Option<EndpointPolicy>)],
        bank: usize,
    ) -> Result<(), Error> {
        let changed: HashMap<_, _> = changes.iter().copied().collect();
        self.unsettled.extend(changed.keys());
        for slot in &self.unsettled {
            let Some(entry) = self.registered.get_mut(slot) else {
                continue;
            };
            entry.policy[bank] = match changed.get(slot) {
                Some(rules) => rules.unwrap_or(EndpointPolicy::CLOSED),
                None => rules_of(&self.rules, *slot),
            };
            self.endpoints.set(&u32::from(*slot), entry)?;
        }
        Ok(())
    }

    /// Writes an endpoint's entry, with the rules that are in force for its slot.
    pub(crate) fn register(&mut self, slot: Slot, mut entry: Endpoint) -> Result<(), Error> {
        entry.policy = [rules_of(&self.rules, slot); BANKS];
        self.endpoints.set(&u32::from(slot), &entry)?;
        self.registered.insert(slot, entry);
        Ok(())
    }

    /// The entry of a slot.
    pub(crate) fn registered(&self, slot: Slot) -> Option<&Endpoint> {
        self.registered.get(&slot)
    }

    /// All entries.
    pub(crate) fn all_registered(&self) -> impl Iterator<Item = (Slot, &Endpoint)> {
        self.registered.iter().map(|(slot, entry)| (*slot, entry))
    }

    /// Sets an endpoint's flags.
    pub(crate) fn set_flags(&mut self, slot: Slot, flags: u32) -> Result<(), Error> {
        self.rewrite(slot, |entry| entry.flags = flags)
    }

    /// Says by which number the pod's network namespace is known.
    pub(crate) fn set_netns(&mut self, slot: Slot, number: u32) -> Result<(), Error> {
        self.rewrite(slot, |entry| entry.netns = number.wrapping_add(1))
    }

    /// Changes an endpoint's entry. What does not change is written again as it is.
    fn rewrite(&mut self, slot: Slot, change: impl FnOnce(&mut Endpoint)) -> Result<(), Error> {
        let Some(entry) = self.registered.get_mut(&slot) else {
            return Err(Error::UnknownSlot { slot: u32::from(slot) });
        };
        let mut new = *entry;
        change(&mut new);
        self.endpoints.set(&u32::from(slot), &new)?;
        *entry = new;
        Ok(())
    }

    /// Empties a slot.
    pub(crate) fn unregister(&mut self, slot: Slot) -> Result<(), Error> {
        if let Some(entry) = self.registered.get(&slot) {
            // First the flag, so that no reader meets a half-emptied entry that is unlocked.
            let locked = Endpoint { flags: 0, ..*entry };
            self.endpoints.set(&u32::from(slot), &locked)?;
            self.endpoints.set(&u32::from(slot), &EMPTY)?;
            self.registered.remove(&slot);
        }
        Ok(())
    }

    fn write_set(&self, id: u32, set: &PortSet) -> Result<(), Error> {
        if id >= self.set_count {
            return Err(Error::SetCapacity { id, capacity: self.set_count });
        }
        for (word, value) in set.0.iter().enumerate() {
            let element = id as usize * set.0.len() + word;
            writes::make(Write::Set(id), || self.sets.store_u64(element, *value))
                .map_err(|source| Error::State { source })?;
        }
        Ok(())
    }

    fn write_ports(&self, ports: &PortClass) -> Result<(), Error> {
        let base = match ports.protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 65536,
            Protocol::Sctp => 131_072,
        };
        for port in ports.first..=ports.last {
            let element = base + usize::from(port);
            let write = || self.port_classes.store_u16(element, ports.class);
            writes::make(Write::Port(ports.protocol, port), write)
                .map_err(|source| Error::State { source })?;
        }
        Ok(())
    }
}

/// The rules in force of a slot; what the compiler does not know is closed.
fn rules_of(rules: &HashMap<Slot, EndpointPolicy>, slot: Slot) -> EndpointPolicy {
    rules.get(&slot).copied().unwrap_or(EndpointPolicy::CLOSED)
}

pub(crate) const EMPTY: Endpoint = Endpoint {
    ifindex: 0,
    generation: 0,
    flags: 0,
    mtu: 0,
    policy: [EndpointPolicy::CLOSED; BANKS],
    macs: [0; 3],
    ipv4: [0; 4],
    ipv6: [[0; 4]; 4],
    netns: 0,
    reserved: [0; 4],
};

fn change<K>(key: K, value: Option<u32>) -> Change<K> {
    let next = value.unwrap_or(ABSENT);
    Change { key, next, value: next, before: ABSENT }
}

/// Regions of one family.
///
/// While a prefix is on its way in or out, the banks in which it does not exist must say what the
/// enclosing prefix says: a longest match has no second choice.
struct Cidrs<K> {
    map: BankedMap<K>,
    live: HashMap<IpNetwork, u32>,
    /// What the step that is being prepared changes of it.
    next: HashMap<IpNetwork, Option<u32>>,
}

/// Keys of longest-prefix maps.
pub(crate) trait CidrKey: Plain + Copy + Eq + std::hash::Hash {
    fn of(network: &IpNetwork) -> Option<Self>;
    fn network(&self) -> Option<IpNetwork>;
}

impl CidrKey for Cidr4 {
    fn of(network: &IpNetwork) -> Option<Self> {
        match network {
            IpNetwork::V4(n) => Some(Self { prefix: n.prefix().into(), address: words4(n.network()) }),
            IpNetwork::V6(_) => None,
        }
    }

    fn network(&self) -> Option<IpNetwork> {
        let address = IpAddr::from(self.address.to_ne_bytes());
        IpNetwork::new(address, u8::try_from(self.prefix).ok()?).ok()
    }
}

impl CidrKey for Cidr6 {
    fn of(network: &IpNetwork) -> Option<Self> {
        match network {
            IpNetwork::V6(n) => Some(Self { prefix: n.prefix().into(), address: words6(n.network()) }),
            IpNetwork::V4(_) => None,
        }
    }

    fn network(&self) -> Option<IpNetwork> {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(self.address) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        IpNetwork::new(IpAddr::from(bytes), u8::try_from(self.prefix).ok()?).ok()
    }
}

impl<K: CidrKey> Cidrs<K> {
    fn new(map: Map<K, Banked>) -> Self {
        Self { map: BankedMap::new(map), live: HashMap::new(), next: HashMap::new() }
    }

    fn changes(&mut self, delta: &[(IpNetwork, Option<u32>)]) -> Vec<Change<K>> {
        let mut keys: HashMap<K, Option<u32>> = self.map.leaving().map(|key| (key, None)).collect();
        self.next.clear();
        for (network, atom) in delta {
            let Some(key) = K::of(network) else { continue };
            keys.insert(key, *atom);
            self.next.insert(*network, *atom);
        }
        let before = |network: &IpNetwork| self.live.get(network).copied();
        let after =
            |network: &IpNetwork| self.next.get(network).map_or_else(|| before(network), |atom| *atom);
        keys.into_iter()
            .map(|(key, atom)| {
                let around = |of: &dyn Fn(&IpNetwork) -> Option<u32>| {
                    key.network().and_then(|n| enclosing(of, &n)).unwrap_or(ABSENT)
                };
                Change {
                    key,
                    next: atom.unwrap_or(ABSENT),
                    value: atom.unwrap_or_else(|| around(&after)),
                    before: around(&before),
                }
            })
            .collect()
    }

    fn prepare(&mut self, changes: &[Change<K>], in_force: usize, bank: usize) -> Result<(), MapError> {
        let live = &self.live;
        let may_exist = |key: &K| key.network().is_some_and(|network| live.contains_key(&network));
        self.map.prepare(changes, in_force, bank, may_exist)
    }

    fn commit(&mut self) {
        for (network, atom) in self.next.drain() {
            match atom {
                Some(atom) => self.live.insert(network, atom),
                None => self.live.remove(&network),
            };
        }
        self.map.commit();
    }
}

/// What the longest prefix around `network`, itself excluded, says where each says what `of` tells.
fn enclosing(of: &dyn Fn(&IpNetwork) -> Option<u32>, network: &IpNetwork) -> Option<u32> {
    (0..network.prefix()).rev().find_map(|prefix| {
        let wider = IpNetwork::new(network.ip(), prefix).ok()?;
        let wider = IpNetwork::new(wider.network(), prefix).ok()?;
        of(&wider)
    })
}

/// Place of [`StateEntry::topology`] among the words of its entry.
const TOPOLOGY_WORD: usize = std::mem::offset_of!(StateEntry, topology) / 4;

fn next_topology(last: u32) -> u32 {
    last.wrapping_add(1).max(TOPOLOGY_FIRST)
}

/// What the last agent had reached; zeroes if there was none, or its version had no such thing.
#[derive(Default)]
struct Last {
    generation: u32,
    topology: u32,
}

fn last_state(pin: &Path) -> Result<Last, Error> {
    use std::os::fd::AsFd as _;
    let error = Error::at(pin);
    let map = match sys::obj_get(pin) {
        Ok(map) => map,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Last::default()),
        Err(source) => return Err(error(source)),
    };
    // Another version's may be longer or shorter: what is new comes last.
    let words = sys::map_info(map.as_fd()).map_err(&error)?.value_size.div_ceil(4);
    let mut state = vec![0u32; words as usize];
    sys::lookup(map.as_fd(), &0u32, &mut state).map_err(error)?;
    let word = |i: usize| state.get(i).copied().unwrap_or(0);
    Ok(Last { generation: word(0), topology: word(TOPOLOGY_WORD) })
}
