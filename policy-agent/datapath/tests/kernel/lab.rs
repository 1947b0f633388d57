//! A node in a namespace, with endpoints that exist as far as BPF_PROG_TEST_RUN needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};

use fairlead_common::maps::{
    DEFAULT_MARK_MASK, EndpointPolicy, SLOT_SETTLED, Side, UNANSWERED_AT_ONCE, names, slot_of,
};
use fairlead_common::reason::DropReason;
use fairlead_datapath::{
    Build, Capacities, Counters, Datapath, Early, Identity, Moment, Options, Overlay, TestRun, Write,
    test_run, test_run_xdp,
};
use fairlead_policy::model::{Node, NodeChanges};
use fairlead_policy::tables::{Delta, Slot};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::packets::udp_from;

/// `TC_ACT_UNSPEC`: goes on.
pub(crate) const PASS: i32 = -1;
/// `TC_ACT_SHOT`: dropped.
pub(crate) const DROP: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub(crate) const REDIRECT: i32 = 7;

/// `XDP_DROP` and `XDP_PASS`.
pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;

/// Nodes that come, and nodes that go.
pub(crate) fn nodes(there: &[Node], gone: &[&str]) -> NodeChanges {
    let there = there.iter().map(|node| (node.name.as_str().into(), Some(node.clone().into())));
    gone.iter().map(|name| ((*name).into(), None)).chain(there).collect()
}

/// Runs a test as root in its own namespaces. Without root it fails where
/// `FAIRLEAD_REQUIRE_PRIVILEGED=1`, else it says so and does nothing.
pub(crate) fn in_lab(test: impl FnOnce(&mut Lab)) {
    in_lab_where(false, test);
}

/// As [`in_lab`], twice: the second time each pod has as many flows that nobody answers as may lie among the answered ones,
/// so that all others wait in the pod's places.
pub(crate) fn in_both_labs(test: impl Fn(&mut Lab)) {
    in_lab_where(false, &test);
    in_lab_where(true, test);
}

fn in_lab_where(crowded: bool, test: impl FnOnce(&mut Lab)) {
    // SAFETY: no memory is involved.
    if unsafe { libc::geteuid() } != 0 {
        assert_ne!(
            std::env::var("FAIRLEAD_REQUIRE_PRIVILEGED").as_deref(),
            Ok("1"),
            "kernel tests need root"
        );
        eprintln!("not root: kernel test not run");
        return;
    }
    // SAFETY: changes this thread's namespaces only; the thread ends with the test.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    assert_eq!(unshared, 0, "{}", io::Error::last_os_error());
    let folder = tempfile::tempdir().unwrap();
    mount(None, "/", None, libc::MS_REC | libc::MS_PRIVATE);
    mount(Some("bpf"), folder.path().to_str().unwrap(), Some("bpf"), 0);
    let mut lab = Lab::open(folder, crowded);
    lab.datapath.activate().unwrap();
    test(&mut lab);
    // Lazily: the maps are still open. The folder itself goes with the lab.
    let path = CString::new(lab.folder.path().to_str().unwrap()).unwrap();
    // SAFETY: the string lives through the call.
    assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }, 0);
}

fn mount(source: Option<&str>, target: &str, kind: Option<&str>, flags: libc::c_ulong) {
    let text = |s: &str| CString::new(s).unwrap();
    let source = text(source.unwrap_or("none"));
    let target = text(target);
    let kind = text(kind.unwrap_or(""));
    // SAFETY: the strings live through the call.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    assert_eq!(result, 0, "mount: {}", io::Error::last_os_error());
}

/// The overlay of the lab's node.
pub(crate) const OVERLAY: Overlay = Overlay { port: 4799, id: 77 };

pub(crate) struct Lab {
    pub(crate) datapath: Datapath,
    programs: BTreeMap<&'static str, OwnedFd>,
    serial: u64,
    folder: tempfile::TempDir,
    /// See [`in_both_labs`].
    pub(crate) crowded: bool,
}

/// A pod of the lab.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) ifindex: u32,
    pub(crate) identity: Identity,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Pod {
    pub(crate) fn slot(&self) -> Slot {
        slot_of(self.ifindex) as Slot
    }

    /// `skb->mark` of what this pod sends.
    pub(crate) fn mark(&self) -> u32 {
        mark_of(u32::from(self.slot()))
    }
}

/// `skb->mark` that holds a slot.
pub(crate) fn mark_of(slot: u32) -> u32 {
    slot << DEFAULT_MARK_MASK.trailing_zeros()
}

/// Mark of what came from outside the node.
pub(crate) fn elsewhere() -> u32 {
    mark_of(SLOT_SETTLED)
}

impl Lab {
    fn open(folder: tempfile::TempDir, crowded: bool) -> Self {
        let datapath = Datapath::open(&options(&folder)).unwrap();
        let programs = ["from_pod", "to_pod", "from_uplink", "to_uplink"]
            .into_iter()
            .map(|name| (name, datapath.program(name).unwrap()))
            .collect();
        Self { datapath, programs, serial: 0, folder, crowded }
    }

    /// The next agent: a new datapath on the same pins, not in force yet.
    pub(crate) fn restart(&mut self) {
        self.restart_within(Capacities::default());
    }

    /// The next agent, with tables of these sizes.
    pub(crate) fn restart_within(&mut self, capacities: Capacities) {
        self.restart_as(Build::default(), capacities);
    }

    /// The next agent, of another version.
    pub(crate) fn restart_as(&mut self, build: Build, capacities: Capacities) {
        self.restart_with(Options { build, capacities, ..options(&self.folder) });
    }

    /// The next agent, which sends everything through the stack.
    pub(crate) fn restart_without_fast_path(&mut self) {
        self.restart_with(Options { fast_path: false, ..options(&self.folder) });
    }

    /// The next agent, with XDP in this mode.
    pub(crate) fn restart_early(&mut self, early: Early) {
        self.restart_with(Options { early, ..options(&self.folder) });
    }

    /// What XDP makes of a frame that reaches an uplink.
    pub(crate) fn early(&self, frame: &[u8]) -> u32 {
        let program = self.datapath.program("early").unwrap();
        test_run_xdp(program.as_fd(), frame).unwrap()
    }

    fn restart_with(&mut self, options: Options) {
        let datapath = Datapath::open(&options).unwrap();
        self.programs = ["from_pod", "to_pod", "from_uplink", "to_uplink"]
            .into_iter()
            .map(|name| (name, datapath.program(name).unwrap()))
            .collect();
        self.datapath = datapath;
    }

    /// A pod whose interface exists, known to the datapath but locked. `n` from 1 to 200.
    pub(crate) fn locked_pod(&mut self, n: u8) -> Pod {
        let pod = Self::pod_numbered(n);
        make_veth(pod.ifindex, pod.identity.host_mac);
        self.datapath.register_unattached(&pod.identity).unwrap();
        pod
    }

    pub(crate) fn pod_numbered(n: u8) -> Pod {
        let ifindex = 0x10000 + u32::from(n);
        let v4 = Ipv4Addr::new(10, 1, 0, n);
        let v6 = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, n.into());
        let identity = Identity {
            ifindex,
            host_mac: [0x02, 0, 0, 0, 1, n],
            pod_mac: [0x02, 0, 0, 0, 2, n],
            addresses: vec![IpAddr::V4(v4), IpAddr::V6(v6)],
            mtu: 1500,
            fast_path: true,
        };
        Pod { ifindex, identity, v4, v6 }
    }

    /// An endpoint with an index and addresses of the caller's choice, locked.
    pub(crate) fn endpoint(&mut self, ifindex: u32, addresses: &[IpAddr]) -> Pod {
        let mut pod = Self::pod_numbered(1);
        pod.ifindex = ifindex;
        pod.identity.ifindex = ifindex;
        pod.identity.addresses = addresses.to_vec();
        for address in addresses {
            match address {
                IpAddr::V4(a) => pod.v4 = *a,
                IpAddr::V6(a) => pod.v6 = *a,
            }
        }
        make_veth(ifindex, pod.identity.host_mac);
        self.datapath.register_unattached(&pod.identity).unwrap();
        pod
    }

    /// An unlocked pod that no policy selects.
    pub(crate) fn pod(&mut self, n: u8) -> Pod {
        let pod = self.locked_pod(n);
        self.apply(Delta { endpoints: vec![(pod.slot(), Some(EndpointPolicy::OPEN))], ..Delta::default() });
        self.datapath.unlock(pod.slot()).unwrap();
        if self.crowded {
            let nobody = Ipv4Addr::new(192, 0, 2, 1).into();
            for port in 0..UNANSWERED_AT_ONCE as u16 {
                assert_eq!(self.send(&pod, &udp_from(&pod, nobody, 1 + port, 9)).result, PASS);
            }
        }
        pod
    }

    /// An unlocked pod with an interface of its own that no policy selects and that the fast path is not for.
    pub(crate) fn shaped(&mut self, identity: &Identity) -> Pod {
        assert!(!identity.fast_path);
        let n = identity.host_mac[5];
        let pod = Pod { identity: identity.clone(), ..Self::pod_numbered(n) };
        make_veth(pod.ifindex, pod.identity.host_mac);
        self.datapath.register_unattached(&pod.identity).unwrap();
        self.apply(Delta { endpoints: vec![(pod.slot(), Some(EndpointPolicy::OPEN))], ..Delta::default() });
        self.datapath.unlock(pod.slot()).unwrap();
        pod
    }

    /// Puts a step in force.
    pub(crate) fn apply(&mut self, delta: Delta) {
        let delta = self.numbered(delta);
        self.datapath.apply(&delta).unwrap();
    }

    pub(crate) fn numbered(&mut self, mut delta: Delta) -> Delta {
        self.serial += 1;
        delta.serial = self.serial;
        delta
    }

    /// Runs a program on a packet at a pod's interface.
    pub(crate) fn run(&self, program: &str, packet: &[u8], ifindex: u32, mark: u32) -> TestRun {
        test_run(self.programs[program].as_fd(), packet, ifindex, mark, 0, 1).unwrap()
    }

    /// The pod sends a packet.
    pub(crate) fn send(&self, pod: &Pod, packet: &[u8]) -> TestRun {
        self.run("from_pod", packet, pod.ifindex, 0)
    }

    /// A packet from outside the node reaches the pod's interface.
    pub(crate) fn deliver(&self, pod: &Pod, packet: &[u8]) -> TestRun {
        self.run("to_pod", packet, pod.ifindex, elsewhere())
    }

    pub(crate) fn counters(&self, pod: &Pod) -> Counters {
        self.datapath.counters().unwrap().remove(&pod.ifindex).unwrap_or_default()
    }

    /// Names of the pins that outlive an agent.
    pub(crate) fn lasting(&self) -> BTreeSet<String> {
        let folder = self.folder.path().join("fairlead").join(names::LASTING);
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub(crate) fn programs(&self, name: &str) -> &OwnedFd {
        &self.programs[name]
    }
}

/// Puts rules of a pod in force.
pub(crate) fn policy(lab: &mut Lab, pod: &Pod, ingress: Side, egress: Side) {
    let policy = EndpointPolicy { ingress, egress };
    lab.apply(Delta { endpoints: vec![(pod.slot(), Some(policy))], ..Delta::default() });
}

/// For [`observed`](fairlead_datapath::observed): a kernel that takes nothing more into a map.
pub(crate) fn refusing(map: &'static str) -> impl FnMut(Moment) -> io::Result<()> {
    move |moment| match moment {
        Moment::Before(Write::Element(name)) if name == map => Err(io::ErrorKind::OutOfMemory.into()),
        _ => Ok(()),
    }
}

/// Another node with one address and no pods.
pub(crate) fn other_node(address: IpAddr) -> Node {
    Node { name: "other".to_owned(), addresses: vec![address], pod_cidrs: Vec::new() }
}

/// Drops of one reason, as counters have them.
pub(crate) fn only(reason: DropReason, count: u64) -> BTreeMap<DropReason, u64> {
    BTreeMap::from([(reason, count)])
}

fn options(folder: &tempfile::TempDir) -> Options {
    Options { overlay: Some(OVERLAY), ..Options::new(folder.path().join("fairlead")) }
}

fn make_veth(ifindex: u32, mac: [u8; 6]) {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(format!("p{ifindex}")));
    link.attributes = vec![
        LinkAttribute::IfName(format!("h{ifindex}")),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
    message.header.flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.send_to(&buffer, &SocketAddr::new(0, 0), 0).unwrap();
    let (bytes, _) = socket.recv_from_full().unwrap();
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).unwrap();
    match answer.payload {
        NetlinkPayload::Error(e) => assert!(e.code.is_none(), "veth {ifindex}: {}", e.to_io()),
        other => panic!("{other:?}"),
    }
}
