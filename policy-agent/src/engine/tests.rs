mod overflow;
mod removal;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fairlead_api::{ApiError, Attachment, EndpointCounters, EndpointStatus, ErrorCode, Mac, PodRef};
use fairlead_index::{Batch, Change, Kind, ObjectId, Parsed, kubernetes};
use fairlead_policy::compiler::{Compiler, Limits};
use fairlead_policy::model::{NodeChanges, ObjectKey};
use fairlead_policy::tables::{Delta, Slot};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use super::{Engine, EngineHandle, Message, Options, Published, Snapshot, channel};
use crate::enforcer::{Enforcer, EnforcerError};

/// What was done to the fake, in order.
#[derive(Clone, Debug, PartialEq)]
enum Done {
    Register(Slot),
    Apply(Delta),
    Unlock(Slot),
    Remove(Slot),
    Addresses(usize, usize),
    Nodes(Vec<(String, bool)>),
    Exits(usize),
    Uplink(u32),
    Overlay(u32),
    Activate,
}

#[derive(Default)]
struct World {
    done: Vec<Done>,
    /// Errors of the next applies.
    failing: usize,
    /// Answer of every register.
    refuse: Option<EnforcerError>,
    /// Changes of nodes fail.
    refuse_nodes: bool,
    /// Endpoints stay.
    refuse_removals: bool,
}

/// An enforcer in memory that checks the order of what is done to it.
#[derive(Clone, Default)]
struct Fake {
    world: Arc<Mutex<World>>,
    locked: BTreeSet<Slot>,
    in_force: BTreeSet<Slot>,
    applied: u64,
}

impl Fake {
    fn push(&self, done: Done) {
        self.world.lock().unwrap().done.push(done);
    }
}

impl Enforcer for Fake {
    fn register(&mut self, attachment: &Attachment) -> Result<u32, EnforcerError> {
        if let Some(e) = self.world.lock().unwrap().refuse.clone() {
            return Err(e);
        }
        let slot = (attachment.host_ifindex & 4095) as Slot;
        assert!(self.locked.insert(slot), "slot {slot} twice");
        self.push(Done::Register(slot));
        Ok(attachment.host_ifindex)
    }

    fn unlock(&mut self, slot: Slot) -> Result<(), EnforcerError> {
        assert!(self.locked.contains(&slot));
        assert!(self.in_force.contains(&slot), "slot {slot} unlocked before its policy is in force");
        self.push(Done::Unlock(slot));
        Ok(())
    }

    fn remove(&mut self, slot: Slot, _: u32) -> Result<(), EnforcerError> {
        if self.world.lock().unwrap().refuse_removals {
            return Err(EnforcerError::Kernel("map endpoints: no memory".to_owned()));
        }
        self.locked.remove(&slot);
        self.in_force.remove(&slot);
        self.push(Done::Remove(slot));
        Ok(())
    }

    fn apply(&mut self, delta: &Delta) -> Result<(), EnforcerError> {
        let mut world = self.world.lock().unwrap();
        if world.failing > 0 {
            world.failing -= 1;
            return Err(EnforcerError::Kernel("map rows: full".to_owned()));
        }
        world.done.push(Done::Apply(delta.clone()));
        for (slot, policy) in &delta.endpoints {
            if policy.is_some() {
                self.in_force.insert(*slot);
            }
        }
        self.applied = delta.serial;
        Ok(())
    }

    fn settled(&mut self) -> Result<Option<u64>, EnforcerError> {
        Ok(Some(self.applied))
    }

    fn set_addresses(
        &mut self,
        own: &BTreeSet<IpAddr>,
        services: &BTreeSet<IpAddr>,
    ) -> Result<(), EnforcerError> {
        self.push(Done::Addresses(own.len(), services.len()));
        Ok(())
    }

    fn set_nodes(&mut self, changes: &NodeChanges) -> Result<(), EnforcerError> {
        let told = changes.iter().map(|(name, node)| (name.to_string(), node.is_some())).collect();
        let mut world = self.world.lock().unwrap();
        world.done.push(Done::Nodes(told));
        if world.refuse_nodes {
            return Err(EnforcerError::Kernel("map tunnels4: full".to_owned()));
        }
        Ok(())
    }

    fn set_exits(&mut self, exits: &fairlead_datapath::Exits) -> Result<(), EnforcerError> {
        self.push(Done::Exits(exits.len()));
        Ok(())
    }

    fn attach_uplink(&mut self, ifindex: u32) -> Result<(), EnforcerError> {
        self.push(Done::Uplink(ifindex));
        Ok(())
    }

    fn attach_overlay(&mut self, ifindex: u32) -> Result<(), EnforcerError> {
        self.push(Done::Overlay(ifindex));
        Ok(())
    }

    fn activate(&mut self) -> Result<(), EnforcerError> {
        self.push(Done::Activate);
        Ok(())
    }

    fn counters(&self) -> Result<BTreeMap<u32, EndpointCounters>, EnforcerError> {
        Ok(BTreeMap::new())
    }

    fn generation(&self) -> u32 {
        1
    }

    fn frozen(&self) -> PathBuf {
        "/frozen".into()
    }

    fn interface_exists(&self, _: u32) -> bool {
        false
    }
}

/// An engine on a thread of its own.
pub(crate) struct Running {
    pub(crate) handle: EngineHandle,
    published: watch::Receiver<Published>,
    world: Arc<Mutex<World>>,
    asked: UnboundedReceiver<ObjectKey>,
}

impl Running {
    fn start(add_timeout: Duration, restored: Vec<Attachment>) -> Self {
        Self::within(Limits::default(), add_timeout, restored)
    }

    fn within(limits: Limits, add_timeout: Duration, restored: Vec<Attachment>) -> Self {
        let fake = Fake::default();
        let world = fake.world.clone();
        let (wanted, asked) = tokio::sync::mpsc::unbounded_channel();
        let options = Options {
            node_name: "n1".to_owned(),
            add_timeout,
            fast_path: true,
            restored,
            wanted: Some(wanted),
        };
        let (handle, inbox) = channel();
        let (engine, published) = Engine::new(fake, Compiler::new(limits), options, inbox);
        std::thread::spawn(move || engine.run());
        Self { handle, published, world, asked }
    }

    /// One that knows a node, two namespaces and the pod `shop/web`.
    pub(crate) async fn ready(add_timeout: Duration) -> Self {
        Self::ready_within(Limits::default(), add_timeout).await
    }

    async fn ready_within(limits: Limits, add_timeout: Duration) -> Self {
        let mut running = Self::within(limits, add_timeout, Vec::new());
        running.handle.tell(Message::OwnAddresses(BTreeSet::from(["192.0.2.1".parse().unwrap()])));
        running.batch(&[node(), namespace("shop"), namespace("default"), pod("web", "u1")]);
        running.handle.tell(Message::Synced);
        running.published.wait_for(|p| p.active).await.unwrap();
        running
    }

    pub(crate) fn batch(&self, objects: &[Value]) {
        let changes = objects.iter().map(|o| Change::Apply(parsed(o))).collect();
        self.handle.tell(Message::Batch(Batch { changes, problems: Vec::new() }));
    }

    fn delete(&self, kind: Kind, name: &str) {
        let id = ObjectId { kind, key: ObjectKey::new("shop", name) };
        self.handle.tell(Message::Batch(Batch { changes: vec![Change::Delete(id)], problems: Vec::new() }));
    }

    async fn put(&self, attachment: Attachment) -> Result<EndpointStatus, ApiError> {
        self.handle.ask(|reply| Message::Put(Box::new(attachment), reply)).await.unwrap()
    }

    pub(crate) async fn snapshot(&self) -> Snapshot {
        self.handle.ask(Message::Snapshot).await.unwrap()
    }

    /// What was done since the last call; questions are answered after the step that they came before.
    async fn done(&self) -> Vec<Done> {
        self.snapshot().await;
        std::mem::take(&mut self.world.lock().unwrap().done)
    }

    /// Until this is dropped, the engine is held where it does something in the kernel.
    pub(crate) fn held(&self) -> impl Sized {
        self.world.lock().unwrap()
    }

    fn fail(&self, times: usize) {
        self.world.lock().unwrap().failing = times;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.tell(Message::Stop);
    }
}

fn parsed(object: &Value) -> Parsed {
    let (id, outcome) = kubernetes::read(object).unwrap();
    Parsed { id, origin: None, outcome }
}

fn node() -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
           "spec": {"podCIDRs": ["10.1.0.0/24"]},
           "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn pod(name: &str, uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": "n1"},
           "metadata": {"name": name, "namespace": "shop", "uid": uid, "labels": {"app": name}}})
}

pub(crate) fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

pub(crate) fn attachment(number: u32, pod: Option<(&str, &str)>) -> Attachment {
    Attachment {
        network: "fairlead".into(),
        container_id: format!("c{number}"),
        ifname: "eth0".into(),
        netns: "/run/netns/x".into(),
        pod: pod.map(|(name, uid)| PodRef {
            namespace: "shop".into(),
            name: name.into(),
            uid: (!uid.is_empty()).then(|| uid.into()),
        }),
        host_ifname: format!("fl{number}"),
        host_ifindex: 0x10000 + number,
        host_mac: Mac([2; 6]),
        pod_mac: Mac([4; 6]),
        addresses: vec![format!("10.1.0.{number}").parse().unwrap()],
        mtu: 1500,
        shaped: false,
        apart: false,
    }
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(30);

/// The steps among what was done.
fn applies(done: &[Done]) -> usize {
    done.iter().filter(|d| matches!(d, Done::Apply(_))).count()
}

#[tokio::test]
async fn an_endpoint_is_registered_judged_and_only_then_unlocked() {
    let engine = Running::ready(LONG).await;
    engine.batch(&[policy("deny", json!({"podSelector": {}}))]);
    let before = engine.done().await;
    assert_eq!(before.last().map(|d| matches!(d, Done::Apply(_))), Some(true));
    let status = engine.put(attachment(5, Some(("web", "u1")))).await.unwrap();
    assert!(status.unlocked && status.ingress_isolated && !status.egress_isolated);
    assert_eq!((status.slot, status.generation), (5, 0x10005));
    let done = engine.done().await;
    assert!(matches!(&done[..], [Done::Register(5), Done::Apply(_), Done::Unlock(5)]), "{done:?}");
    // The same again is answered without doing anything.
    assert_eq!(engine.put(attachment(5, Some(("web", "u1")))).await.unwrap().generation, 0x10005);
    assert_eq!(engine.done().await, []);
}

#[tokio::test]
async fn a_put_waits_for_the_pod_with_its_uid_and_namespace() {
    let engine = Running::ready(LONG).await;
    for (object, name, uid) in [(pod("late", "u2"), "late", "u2"), (pod("web", "u3"), "web", "u3")] {
        let number = 10 + name.len() as u32;
        let put = engine.put(attachment(number, Some((name, uid))));
        tokio::pin!(put);
        // Nothing is registered as long as the pod is not known.
        tokio::select! {
            biased;
            answer = &mut put => panic!("{answer:?}"),
            snapshot = engine.snapshot() => assert!(snapshot.endpoints.is_empty() || name == "web"),
        }
        assert_eq!(engine.snapshot().await.waiting, 1);
        // Other requests go on meanwhile.
        engine.batch(&[object]);
        assert!(put.await.unwrap().unlocked);
    }
}

#[tokio::test]
async fn a_pod_that_does_not_come_is_try_again_and_leaves_nothing() {
    let engine = Running::ready(SHORT).await;
    engine.done().await;
    for (pod, named) in [(("nobody", ""), "pod shop/nobody is not known"), (("web", "other"), "UID other")] {
        let error = engine.put(attachment(5, Some(pod))).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::TryAgain);
        assert!(error.message.contains(named), "{error}");
    }
    assert_eq!(engine.done().await, []);
    // Before the world is known: likewise.
    let engine = Running::start(SHORT, Vec::new());
    let error = engine.put(attachment(5, None)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::TryAgain);
}

#[tokio::test]
async fn the_source_is_asked_once_for_a_pod_that_is_not_known() {
    let mut engine = Running::ready(LONG).await;
    engine.put(attachment(5, Some(("web", "u1")))).await.unwrap();
    let handle = engine.handle.clone();
    let late = attachment(6, Some(("late", "u2")));
    let put =
        tokio::spawn(async move { handle.ask(|reply| Message::Put(Box::new(late), reply)).await.unwrap() });
    assert_eq!(engine.asked.recv().await, Some(ObjectKey::new("shop", "late")));
    engine.batch(&[pod("other", "")]);
    engine.batch(&[pod("late", "u2")]);
    assert!(put.await.unwrap().unwrap().unlocked);
    assert!(engine.asked.try_recv().is_err());
}

#[tokio::test]
async fn a_sandbox_without_a_pod_is_unlocked_at_once_and_isolated_by_nothing() {
    let engine = Running::ready(LONG).await;
    engine.batch(&[policy("deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))]);
    let status = engine.put(attachment(5, None)).await.unwrap();
    assert!(status.unlocked && !status.ingress_isolated && !status.egress_isolated);
}

#[tokio::test]
async fn a_batch_is_one_step() {
    let engine = Running::ready(LONG).await;
    engine.put(attachment(5, Some(("web", "u1")))).await.unwrap();
    engine.done().await;
    let open = json!({"podSelector": {}, "ingress": [{}]});
    engine.batch(&[policy("a", open.clone()), policy("b", json!({"podSelector": {}})), pod("x", "")]);
    let done = engine.done().await;
    assert_eq!(applies(&done), 1, "{done:?}");
    engine.delete(Kind::NetworkPolicy, "a");
    assert_eq!(applies(&engine.done().await), 1);
    assert!(engine.snapshot().await.endpoints[0].ingress_isolated);
}

#[tokio::test]
async fn a_delete_locks_first_and_answers_a_put_that_waits() {
    let engine = Running::ready(LONG).await;
    engine.put(attachment(5, Some(("web", "u1")))).await.unwrap();
    engine.done().await;
    let gone = |reply| Message::Delete { container_id: "c5".into(), ifname: "eth0".into(), reply };
    engine.handle.ask(gone).await.unwrap().unwrap();
    let done = engine.done().await;
    assert!(matches!(&done[..], [Done::Remove(5), Done::Apply(_)]), "{done:?}");
    // Twice is fine.
    engine.handle.ask(gone).await.unwrap().unwrap();
    let (put, ()) = tokio::join!(engine.put(attachment(6, Some(("nobody", "")))), async {
        while engine.snapshot().await.waiting == 0 {}
        let gone = |reply| Message::Delete { container_id: "c6".into(), ifname: "eth0".into(), reply };
        engine.handle.ask(gone).await.unwrap().unwrap();
    });
    assert_eq!(put.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn an_interface_that_is_gone_takes_its_endpoint_with_it() {
    let engine = Running::ready(LONG).await;
    engine.put(attachment(5, None)).await.unwrap();
    engine.put(attachment(6, None)).await.unwrap();
    // Another interface in the same slot.
    engine.handle.tell(Message::LinkGone(0x20005));
    assert_eq!(engine.snapshot().await.endpoints.len(), 2);
    engine.handle.tell(Message::LinkGone(0x10005));
    assert_eq!(engine.snapshot().await.endpoints.len(), 1);
    engine.handle.tell(Message::Links(BTreeSet::from([1, 0x10006])));
    assert_eq!(engine.snapshot().await.endpoints.len(), 1);
    engine.handle.tell(Message::Links(BTreeSet::from([1])));
    assert_eq!(engine.snapshot().await.endpoints.len(), 0);
}

#[tokio::test]
async fn a_step_that_fails_opens_nothing_and_is_made_up_for() {
    let engine = Running::ready(LONG).await;
    engine.put(attachment(5, Some(("web", "u1")))).await.unwrap();
    engine.done().await;
    engine.fail(1);
    // A new endpoint: refused, undone, never unlocked.
    let error = engine.put(attachment(6, None)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Internal);
    assert!(error.message.contains("map rows: full"), "{error}");
    let done = engine.done().await;
    assert!(matches!(&done[..], [Done::Register(6), Done::Remove(6), ..]), "{done:?}");
    assert!(!done.contains(&Done::Unlock(6)));
    // A policy: reported, and with the next step in force together with what was missed.
    engine.fail(1);
    engine.batch(&[policy("deny", json!({"podSelector": {}}))]);
    let snapshot = engine.snapshot().await;
    assert!(snapshot.problems.iter().any(|p| p.message.contains("map rows: full")), "{snapshot:?}");
    assert!(engine.snapshot().await.failures >= 1);
    engine.batch(&[pod("other", "")]);
    engine.batch(&[policy("more", json!({"podSelector": {"matchLabels": {"app": "web"}}, "egress": [{}]}))]);
    let mut last = BTreeMap::new();
    for done in engine.done().await {
        if let Done::Apply(delta) = done {
            last.extend(delta.endpoints);
        }
    }
    let policy = last[&5].expect("in force");
    assert_ne!(policy.ingress, fairlead_common::maps::Side::OPEN);
    assert_eq!(engine.snapshot().await.problems, []);
}

#[tokio::test]
async fn what_the_kernel_refuses_is_said_with_its_code() {
    let engine = Running::ready(LONG).await;
    for (refusal, code) in [
        (EnforcerError::Taken("x".into()), ErrorCode::SlotTaken),
        (EnforcerError::Interface("x".into()), ErrorCode::Interface),
        (EnforcerError::Invalid("x".into()), ErrorCode::Invalid),
        (EnforcerError::Kernel("x".into()), ErrorCode::Internal),
    ] {
        engine.world.lock().unwrap().refuse = Some(refusal);
        assert_eq!(engine.put(attachment(5, None)).await.unwrap_err().code, code);
    }
    engine.world.lock().unwrap().refuse = None;
    engine.put(attachment(5, None)).await.unwrap();
    let mut same_slot = attachment(6, None);
    same_slot.host_ifindex = 0x20005;
    assert_eq!(engine.put(same_slot).await.unwrap_err().code, ErrorCode::SlotTaken);
    let mut same_address = attachment(6, None);
    same_address.addresses = attachment(5, None).addresses;
    let error = engine.put(same_address).await.unwrap_err();
    assert!(error.code == ErrorCode::Invalid && error.message.contains("10.1.0.5 belongs to c5:eth0"));
    for change in [
        (|a: &mut Attachment| a.container_id = "a/b".into()) as fn(&mut Attachment),
        |a| a.ifname = String::new(),
        |a| a.host_ifindex = 0x11000,
        |a| a.addresses.clear(),
        |a| a.addresses = vec!["127.0.0.1".parse().unwrap()],
        |a| a.addresses = (1..6).map(|i| format!("10.1.1.{i}").parse().unwrap()).collect(),
        |a| a.mtu = 1,
    ] {
        let mut wrong = attachment(7, None);
        change(&mut wrong);
        assert_eq!(engine.put(wrong).await.unwrap_err().code, ErrorCode::Invalid);
    }
}

#[tokio::test]
async fn a_new_agent_takes_over_before_it_is_in_force() {
    let restored = vec![attachment(5, Some(("web", "u1"))), attachment(6, None)];
    let mut engine = Running::start(LONG, restored);
    engine.batch(&[node(), namespace("shop"), pod("web", "u1")]);
    engine.handle.tell(Message::Synced);
    // Without its own addresses it could not tell the node from strangers.
    assert_eq!(engine.done().await, []);
    engine.handle.tell(Message::OwnAddresses(BTreeSet::new()));
    engine.published.wait_for(|p| p.active).await.unwrap();
    let done = engine.done().await;
    assert!(
        matches!(
            &done[..],
            [
                Done::Addresses(1, 0),
                Done::Register(5),
                Done::Register(6),
                Done::Apply(_),
                Done::Unlock(5),
                Done::Unlock(6),
                Done::Activate
            ]
        ),
        "{done:?}"
    );
}

#[tokio::test]
async fn what_is_deleted_before_the_takeover_stays_gone() {
    let mut engine =
        Running::start(LONG, vec![attachment(5, None), attachment(6, None), attachment(7, None)]);
    let gone = |reply| Message::Delete { container_id: "c5".into(), ifname: "eth0".into(), reply };
    engine.handle.ask(gone).await.unwrap().unwrap();
    engine.handle.tell(Message::LinkGone(0x10006));
    engine.handle.tell(Message::OwnAddresses(BTreeSet::new()));
    engine.handle.tell(Message::Synced);
    engine.published.wait_for(|p| p.active).await.unwrap();
    let registered: Vec<Done> =
        engine.done().await.into_iter().filter(|d| matches!(d, Done::Register(_))).collect();
    assert_eq!(registered, [Done::Register(7)]);
}

#[tokio::test]
async fn garbage_changes_neither_activity_nor_policy() {
    let engine = Running::ready(LONG).await;
    engine.put(attachment(5, Some(("web", "u1")))).await.unwrap();
    engine.batch(&[policy("a", json!({"podSelector": {}, "ingress": [{}]}))]);
    engine.done().await;
    engine.batch(&[policy("a", json!({"podSelector": {}, "ingress": [{"ports": [{"port": 0}]}]}))]);
    assert_eq!(applies(&engine.done().await), 0);
    assert!(engine.published.borrow().active);
    let problems = engine.snapshot().await.problems;
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].field.as_deref(), Some("spec.ingress[0].ports[0].port"));
}

#[tokio::test]
async fn services_and_nodes_reach_the_datapath() {
    let engine = Running::ready(LONG).await;
    engine.done().await;
    engine.batch(&[
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
               "spec": {"clusterIP": "10.96.0.1", "externalIPs": ["9.9.9.9"]}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"},
               "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}}),
    ]);
    let told = |name: &str, there| Done::Nodes(vec![(name.to_owned(), there)]);
    assert_eq!(engine.done().await, [told("n2", true), Done::Addresses(1, 2)]);
    let taken = engine.handle.take_node_changes();
    assert_eq!(taken.keys().map(|name| &**name).collect::<Vec<_>>(), ["n1", "n2"]);
    assert_eq!(engine.published.borrow().node_changes, 2);
    // Of what fails nothing is lost, and what has not changed is not told.
    engine.world.lock().unwrap().refuse_nodes = true;
    let gone = ObjectId { kind: Kind::Node, key: ObjectKey::new("", "n2") };
    engine.handle.tell(Message::Batch(Batch { changes: vec![Change::Delete(gone)], problems: Vec::new() }));
    assert!(engine.snapshot().await.problems.iter().any(|p| p.message.contains("map tunnels4: full")));
    engine.world.lock().unwrap().refuse_nodes = false;
    engine.batch(&[node()]);
    // How often it was refused hangs on the steps that there were.
    let tried = engine.done().await;
    assert!(tried.len() >= 2 && tried.iter().all(|done| *done == told("n2", false)), "{tried:?}");
    assert_eq!(engine.snapshot().await.problems, []);
    engine.batch(&[node()]);
    assert_eq!(engine.done().await, []);
    assert_eq!(engine.handle.take_node_changes(), [("n2".into(), None)].into());
    let uplink = engine.handle.ask(|reply| Message::Uplink(3, reply)).await.unwrap();
    assert_eq!((uplink, engine.done().await), (Ok(()), vec![Done::Uplink(3)]));
    let overlay = engine.handle.ask(|reply| Message::Overlay(4, reply)).await.unwrap();
    assert_eq!((overlay, engine.done().await), (Ok(()), vec![Done::Overlay(4)]));
}
