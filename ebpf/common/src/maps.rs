//! Types and constants of the BPF maps: the binary interface between programs and agent.
//!
//! All types are `repr(C)` without implicit padding. Addresses and ports are in network byte order,
//! as they stand in a packet; everything else is in the host's.
//!
//! A policy value holds one alternative per *bank*. The generation word of [`State`] names the bank
//! in force (`generation % BANKS`); the agent prepares another bank and puts it in force for every
//! endpoint and both directions by one write of that word.

mod counts;
mod flows;

use core::net::IpAddr;

pub use counts::*;
pub use flows::*;

/// A map that outlives the agent that made it, pinned as `NAME-LAYOUT` in folder [`names::LASTING`].
/// All others are new with each start. See docs/decisions/0006.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lasting {
    /// Name of the map.
    pub name: &'static str,
    /// Version of its keys and values; another one is another map.
    pub layout: u32,
}

/// The maps that outlive an agent.
///
/// In `flows4`, `flows6`, `pending4`, `pending6`, `fragments4` and `fragments6` a new layout may only
/// append to the values, so that agents of different versions can take over from each other. What the
/// others hold starts anew with a new layout.
pub const LASTING: [Lasting; 11] = lasting(1);

/// [`LASTING`] with this layout of the flows.
pub const fn lasting(flows: u32) -> [Lasting; 11] {
    const fn map(name: &'static str, layout: u32) -> Lasting {
        Lasting { name, layout }
    }
    [
        map("flows4", flows),
        map("flows6", flows),
        map("pending4", flows),
        map("pending6", flows),
        map("fragments4", 1),
        map("fragments6", 1),
        map("drops", 1),
        map("passed", 1),
        map("events", 1),
        map("event_limits", 1),
        map("event_losses", 1),
    ]
}

/// Maps whose elements an agent takes over from one with other layouts, and the names under which its
/// programs look into that one's.
pub const TAKEN_OVER: [(&str, &str); 6] = [
    ("flows4", "old_flows4"),
    ("flows6", "old_flows6"),
    ("pending4", "old_pending4"),
    ("pending6", "old_pending6"),
    ("fragments4", "old_fragments4"),
    ("fragments6", "old_fragments6"),
];

/// Alternatives that a policy value holds, see the [module](self).
pub const BANKS: usize = 4;

/// Endpoint slots. An endpoint's slot is its interface index modulo this number.
pub const SLOTS: u32 = 4096;
/// Slot 0 is nobody: the mark of a packet that no pod sent.
pub const SLOT_NONE: u32 = 0;
/// The last slot is nobody either: it marks packets that came from outside the node, or that owe no
/// further egress verdict.
pub const SLOT_SETTLED: u32 = SLOTS - 1;

/// Slot of the endpoint whose host interface has index `ifindex`.
pub const fn slot_of(ifindex: u32) -> u32 {
    ifindex & (SLOTS - 1)
}

/// Whether an interface index may be given to an endpoint: its slot is not a reserved one.
pub const fn ifindex_usable(ifindex: u32) -> bool {
    !matches!(slot_of(ifindex), SLOT_NONE | SLOT_SETTLED)
}

/// Default of the mark's bits that hold a slot; kube-proxy uses 0x4000 and 0x8000.
pub const DEFAULT_MARK_MASK: u32 = 0x0fff_0000;

/// Names under which maps and programs are pinned.
pub mod names {
    /// Folder of what never changes, whatever the version: trampolines, [`PROGRAMS`], [`ACTIVE`] and
    /// [`KILLED`].
    pub const FROZEN: &str = "frozen";
    /// Frozen program: trampoline for tc ingress of a pod's host interface.
    pub const FROM_POD: &str = "from_pod";
    /// Frozen program: trampoline for tc egress of a pod's host interface.
    pub const TO_POD: &str = "to_pod";
    /// Frozen program: trampoline for tc ingress of the uplink.
    pub const FROM_UPLINK: &str = "from_uplink";
    /// Frozen program: trampoline for tc egress of the uplink.
    pub const TO_UPLINK: &str = "to_uplink";
    /// Frozen program: trampoline for tc ingress of the overlay device.
    pub const FROM_OVERLAY: &str = "from_overlay";
    /// Frozen program: trampoline for tc egress of the overlay device.
    pub const TO_OVERLAY: &str = "to_overlay";
    /// Frozen program: trampoline for XDP of the uplink. One that finds no program lets pass, for tc judges after it.
    pub const EARLY: &str = "early";
    /// Frozen map: program array of XDP with an entry for each half.
    pub const EARLY_PROGRAMS: &str = "early_programs";
    /// Frozen map: program array with two halves of [`super::HOOKS`] entries each.
    pub const PROGRAMS: &str = "programs";
    /// Frozen map: array of one u32, which half of [`PROGRAMS`] is in force (0 or 1).
    pub const ACTIVE: &str = "active";
    /// Frozen map: array of [`super::SLOTS`] u32, the interface index that was killed last in a slot.
    /// The CNI plugin's DEL writes it; an endpoint with that index drops everything.
    pub const KILLED: &str = "killed";
    /// Folder of the maps that outlive an agent, and of [`STATE`].
    pub const LASTING: &str = "lasting";
    /// The [`super::StateEntry`] of the agent that started last. In whatever layout, its value begins with
    /// the generation word.
    pub const STATE: &str = "state";
}

/// Entries of one half of the program array.
pub const HOOKS: u32 = 8;
/// Index of `from_pod` within a half.
pub const HOOK_FROM_POD: u32 = 0;
/// Index of `to_pod` within a half.
pub const HOOK_TO_POD: u32 = 1;
/// Index of `from_uplink` within a half.
pub const HOOK_FROM_UPLINK: u32 = 2;
/// Index of `to_uplink` within a half.
pub const HOOK_TO_UPLINK: u32 = 3;
/// Index of `from_overlay` within a half.
pub const HOOK_FROM_OVERLAY: u32 = 4;
/// Index of `to_overlay` within a half.
pub const HOOK_TO_OVERLAY: u32 = 5;

/// Elements of map `queued`, an array: by [`vxlan::queued_at`](crate::vxlan::queued_at) the tick in which a packet of a tunnel's
/// flow was last left to the overlay device because it is to be segmented.
pub const QUEUED: u32 = 4096;
/// For how many ticks, that one included, all of such a flow is left to the device, which queues: nobody overtakes.
pub const QUEUED_FOR: u32 = 2;

/// Value of map `state`, an array of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateEntry {
    /// What a program reads once per packet.
    pub state: State,
    /// Changes whenever an address may have become somebody else's, after the maps that say whose; see
    /// [`Flow::behind`]. Never less than [`TOPOLOGY_FIRST`]; 0: nothing is kept.
    pub topology: u32,
}

/// The least [`StateEntry::topology`]: flows that have kept nothing yet look as if they had in one below.
pub const TOPOLOGY_FIRST: u32 = 1 << TOPOLOGY_BITS;
/// Bits of [`StateEntry::topology`] that stand beside a node's number in a flow.
pub const TOPOLOGY_BITS: u32 = u32::BITS - EXITS.trailing_zeros();

/// What holds for the whole node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The generation word; its bank is in force. Never 0 once policy is in place.
    pub generation: u32,
    /// [`STATE_FAST_PATH`], [`STATE_TAKE_OVER`].
    pub flags: u32,
    /// Bits of `skb->mark` that hold a slot.
    pub mark_mask: u32,
    /// Length of the kernel's tick (jiffy) in ns, for [`clock`](crate::flow::clock).
    pub jiffy: u32,
    /// UDP port of the overlay in network byte order, 0 for none.
    pub overlay_port: u16,
    /// Position of the lowest bit of `mark_mask`.
    pub mark_shift: u16,
    /// Network identifier (VNI) of the overlay.
    pub overlay_id: u32,
}

/// [`State::flags`]: packets may be redirected past the host's stack.
pub const STATE_FAST_PATH: u32 = 1;
/// [`State::flags`]: the agent before had flows in maps of another layout, and not all of them are in
/// this one's yet; see [`TAKEN_OVER`].
pub const STATE_TAKE_OVER: u32 = 2;

/// A signature that allows everything: the direction is not isolated.
pub const SIGNATURE_OPEN: u32 = 0;
/// A signature that denies everything, for rules that could not be put into the tables.
pub const SIGNATURE_CLOSED: u32 = 1;
/// First signature that the compiler gives out.
pub const SIGNATURE_FIRST: u32 = 2;

/// Atom of every address that no table knows. It never has rows: only default sets concern it.
pub const ATOM_WORLD: u32 = 0;
/// First atom that the compiler gives out.
pub const ATOM_FIRST: u32 = 1;

/// The port set without any class.
pub const SET_NONE: u32 = 0;
/// The port set with every class.
pub const SET_ALL: u32 = 1;
/// First port set that the compiler gives out.
pub const SET_FIRST: u32 = 2;

/// In a bank of a policy value: there is no such entry.
pub const ABSENT: u32 = u32::MAX;

/// Port class of ICMP and ICMPv6.
pub const CLASS_ICMP: u16 = 0;
/// Port class of every protocol but ICMP, TCP, UDP and SCTP.
pub const CLASS_OTHER: u16 = 1;
/// Class of all TCP ports at the start.
pub const CLASS_TCP: u16 = 2;
/// Class of all UDP ports at the start.
pub const CLASS_UDP: u16 = 3;
/// Class of all SCTP ports at the start.
pub const CLASS_SCTP: u16 = 4;
/// First class that the compiler gives out.
pub const CLASS_FIRST: u16 = 5;
/// Number of port classes.
pub const CLASSES: usize = 1024;

/// Value of map `sets`, an array: bit `c % 64` of word `c / 64` stands for class `c`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet(pub [u64; CLASSES / 64]);

impl PortSet {
    /// [`SET_NONE`].
    pub const NONE: Self = Self([0; CLASSES / 64]);
    /// [`SET_ALL`].
    pub const ALL: Self = Self([u64::MAX; CLASSES / 64]);

    /// Whether the set holds `class`. Classes beyond the last are in no set.
    #[inline(always)]
    pub fn contains(&self, class: u16) -> bool {
        match self.0.get(usize::from(class) / 64) {
            Some(word) => word >> (class % 64) & 1 == 1,
            None => false,
        }
    }

    /// Adds `class`; classes beyond the last are ignored.
    pub fn insert(&mut self, class: u16) {
        if let Some(word) = self.0.get_mut(usize::from(class) / 64) {
            *word |= 1 << (class % 64);
        }
    }

    /// Takes `class` away.
    pub fn remove(&mut self, class: u16) {
        if let Some(word) = self.0.get_mut(usize::from(class) / 64) {
            *word &= !(1 << (class % 64));
        }
    }
}

/// Ports of one element of map `port_classes`, an array of [`PORT_CLASS_ELEMENTS`]: element
/// `protocol * 16384 + port / 4`, member `port % 4`, with TCP 0, UDP 1, SCTP 2 and the port in the
/// host's byte order.
pub type PortClasses = [u16; 4];
/// Elements of map `port_classes`.
pub const PORT_CLASS_ELEMENTS: u32 = 3 * 65536 / 4;

/// The rules of one direction of an endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// The compiled rule set, [`SIGNATURE_OPEN`] where the direction is not isolated.
    pub signature: u32,
    /// Port set for peers without a row of this signature.
    pub default_set: u32,
}

impl Side {
    /// Not isolated.
    pub const OPEN: Self = Self { signature: SIGNATURE_OPEN, default_set: SET_ALL };
    /// Everything denied.
    pub const CLOSED: Self = Self { signature: SIGNATURE_CLOSED, default_set: SET_NONE };
}

/// The rules of both directions of an endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// What may reach the pod.
    pub ingress: Side,
    /// What the pod may reach.
    pub egress: Side,
}

impl EndpointPolicy {
    /// Not isolated in either direction.
    pub const OPEN: Self = Self { ingress: Side::OPEN, egress: Side::OPEN };
    /// Everything denied in both directions.
    pub const CLOSED: Self = Self { ingress: Side::CLOSED, egress: Side::CLOSED };
}

/// Addresses of one family that an endpoint can have.
pub const ENDPOINT_ADDRESSES: usize = 4;

/// Value of map `endpoints`, an array of [`SLOTS`].
///
/// What each packet asks for stands in the first 64 bytes, the first address of each family with it, and the size is a
/// multiple of 64: in an array that begins with a page it is one line of the processor's cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Index of the interface on the host; 0 where the slot is free.
    pub ifindex: u32,
    /// Number of this endpoint among all that this node ever had; never 0, never given again.
    pub generation: u32,
    /// [`ENDPOINT_UNLOCKED`], [`ENDPOINT_FAST_PATH`].
    pub flags: u32,
    /// MTU of the pod's interface in bytes.
    pub mtu: u32,
    /// MAC addresses of the pod's interface, then of the host's, which is the pod's gateway: the first words of a
    /// frame to the pod. See [`mac_words`].
    pub macs: [u32; 3],
    /// IPv4 addresses, 0 where unused.
    pub ipv4: [u32; ENDPOINT_ADDRESSES],
    /// Number by which the host's network namespace knows the pod's, plus 1; 0 where that is not known.
    pub netns: u32,
    /// IPv6 addresses, 0 where unused.
    pub ipv6: [[u32; 4]; ENDPOINT_ADDRESSES],
    /// Rules, by bank.
    pub policy: [EndpointPolicy; BANKS],
    /// Zeroes.
    pub reserved: [u32; 4],
}

/// Two MAC addresses as they lie at the start of a frame.
pub const fn mac_words(destination: [u8; 6], source: [u8; 6]) -> [u32; 3] {
    let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (destination, source);
    [
        u32::from_ne_bytes([d0, d1, d2, d3]),
        u32::from_ne_bytes([d4, d5, s0, s1]),
        u32::from_ne_bytes([s2, s3, s4, s5]),
    ]
}

impl Endpoint {
    /// Whether six bytes are the MAC address of the pod's interface: its first word, and one that begins with the rest.
    #[inline(always)]
    pub const fn is_pod_mac(&self, first: u32, rest: u32) -> bool {
        let [pod, both, _] = self.macs;
        first == pod && u32::from_le(rest ^ both) & 0xffff == 0
    }
}

/// [`Endpoint::flags`]: policy is in place; without it everything is dropped.
pub const ENDPOINT_UNLOCKED: u32 = 1;
/// [`Endpoint::flags`]: packets may be redirected to and from this endpoint (no shaping on its veth).
pub const ENDPOINT_FAST_PATH: u32 = 2;

/// Key of map `rows`, a hash; its value is a port set id by bank.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// Signature.
    pub signature: u32,
    /// Atom.
    pub atom: u32,
}

/// Value of maps `peers4`, `peers6` (hashes by address), `cidrs4`, `cidrs6` (LPM tries): an atom by
/// bank; value of map `rows`: a port set id by bank. [`ABSENT`] where a bank has no entry.
pub type Banked = [u32; BANKS];

/// Key of map `cidrs4`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr4 {
    /// Prefix length in bits.
    pub prefix: u32,
    /// Address.
    pub address: u32,
}

/// Key of map `cidrs6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr6 {
    /// Prefix length in bits.
    pub prefix: u32,
    /// Address.
    pub address: [u32; 4],
}

/// Value of maps `addresses4` and `addresses6`, hashes by address: what the datapath must know of an
/// address besides its atom.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressInfo {
    /// [`ADDRESS_ENDPOINT`] and others.
    pub kind: u32,
    /// Slot of the endpoint, for [`ADDRESS_ENDPOINT`].
    pub slot: u32,
}

impl AddressInfo {
    /// What is said of an address that the maps do not hold.
    pub const UNKNOWN: Self = Self { kind: ADDRESS_UNKNOWN, slot: SLOT_NONE };
}

/// In place of a node's number: no other node has this address. Nodes are numbered from 1, by the
/// agent; the numbers mean nothing beyond its own maps `tunnels4`, `tunnels6` (hashes by address of a
/// node) and `remotes4`, `remotes6` (LPM tries by pod CIDR or address of a node).
pub const NODE_NONE: u32 = 0;

/// Value of maps `exits4` and `exits6`, arrays of [`EXITS`] by number of a node: how packets for pods of that node
/// leave without the host's stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Index of the interface, 0 where there is none: such packets go through the host's stack.
    pub ifindex: u32,
    /// What fits that way, in bytes.
    pub mtu: u32,
    /// To whom on the link of that interface.
    pub hop: NextHop,
    /// In place of an overlay device's work.
    pub tunnel: Tunnel,
    /// Zeroes: it fills a line of the processor's cache, as [`Endpoint`].
    pub reserved: [u32; 2],
}

/// A tunnel over IPv4 whose header a program puts on, see [`vxlan`](crate::vxlan).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Index of the interface on whose link the far end is; 0 where the overlay device has to put the header on.
    pub ifindex: u32,
    /// This node's address.
    pub source: u32,
    /// The other node's address.
    pub far: NextHop,
}

/// The kernel's `struct bpf_redir_neigh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// `AF_INET` (2) or `AF_INET6` (10); 0 where the kernel's route is asked for each packet: a tunnel is in it.
    pub family: u32,
    /// The address in network byte order, that of IPv4 in the first word.
    pub address: [u32; 4],
}

impl NextHop {
    /// A neighbour.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        let word = |bytes: &[u8]| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        match address {
            IpAddr::V4(address) => Self { family: 2, address: [word(&address.octets()), 0, 0, 0] },
            IpAddr::V6(address) => {
                let octets = address.octets();
                let at = |i: usize| word(&octets[i..]);
                Self { family: 10, address: [at(0), at(4), at(8), at(12)] }
            }
        }
    }
}

/// Elements of maps `exits4` and `exits6`. Nodes with greater numbers are reached through the host's stack.
pub const EXITS: u32 = 16_384;

/// [`AddressInfo::kind`]: nothing is known of the address.
pub const ADDRESS_UNKNOWN: u32 = 0;
/// [`AddressInfo::kind`]: address of a local endpoint.
pub const ADDRESS_ENDPOINT: u32 = 1;
/// [`AddressInfo::kind`]: one of this node's own addresses.
pub const ADDRESS_OWN: u32 = 2;
/// [`AddressInfo::kind`]: a Service's address (ClusterIP, ExternalIP, LoadBalancer IP).
pub const ADDRESS_SERVICE: u32 = 3;
/// [`AddressInfo::kind`]: an address of another node.
pub const ADDRESS_NODE: u32 = 4;
/// [`AddressInfo::kind`]: an address of another node that is a Service's too (ExternalIP,
/// LoadBalancer IP): packets may come from it.
pub const ADDRESS_NODE_SERVICE: u32 = 5;

#[cfg(test)]
mod tests {
    use core::mem::{align_of, size_of};

    use super::*;

    /// The sizes are the binary interface: a change in what lasts is a new layout in [`LASTING`].
    #[test]
    #[cfg(not(feature = "next-layout"))]
    fn layouts_are_pinned() {
        assert_eq!((size_of::<State>(), size_of::<StateEntry>()), (24, 28));
        assert_eq!(EXITS << TOPOLOGY_BITS, 0, "a node's number and these bits fill a word");
        assert_eq!((size_of::<Exit>(), size_of::<NextHop>(), size_of::<Tunnel>()), (64, 20, 28));
        assert_eq!(size_of::<PortSet>(), 128);
        assert_eq!(size_of::<EndpointPolicy>(), 16);
        assert_eq!((size_of::<Endpoint>(), core::mem::offset_of!(Endpoint, ipv6)), (192, 48));
        assert_eq!(size_of::<RowKey>(), 8);
        assert_eq!(size_of::<Cidr6>(), 20);
        assert_eq!(size_of::<FlowKey<u32>>(), 16);
        assert_eq!(size_of::<FlowKey<[u32; 4]>>(), 40);
        assert_eq!(size_of::<Flow>(), 28);
        assert_eq!(size_of::<Pending<u32>>(), 44);
        assert_eq!(size_of::<Pending<[u32; 4]>>(), 68);
        assert_eq!((size_of::<LastingFlow>(), size_of::<LastingPending<u32>>()), (28, 44));
        assert_eq!(size_of::<FragmentKey<u32>>(), 20);
        assert_eq!(size_of::<FirstFragment>(), 8);
        assert_eq!(size_of::<DropKey>(), 8);
        assert_eq!(size_of::<DropEvent>(), 56);
        assert_eq!(align_of::<DropEvent>(), 4);
        assert_eq!(size_of::<EventLimit>(), 16);
        assert_eq!(size_of::<EventLosses>(), 16);
    }

    #[test]
    fn port_set_bits() {
        let mut set = PortSet::NONE;
        set.insert(0);
        set.insert(1023);
        set.insert(1024);
        assert!(set.contains(0) && set.contains(1023));
        assert!(!set.contains(1) && !set.contains(1024));
        set.remove(1023);
        assert!(!set.contains(1023));
        assert!(PortSet::ALL.contains(700) && !PortSet::ALL.contains(2000));
    }

    #[test]
    fn reserved_slots_are_not_usable() {
        assert!(!ifindex_usable(4096) && !ifindex_usable(4095) && !ifindex_usable(8191));
        assert!(ifindex_usable(4097) && ifindex_usable(4094));
    }
}
