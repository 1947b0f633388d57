//! The one thread that decides.
//!
//! Everything that changes what is enforced comes to it as a [`Message`]. What has queued up is taken
//! together, then one [`step`](Engine::step) compiles it, puts it in force, and only then unlocks and
//! answers. An endpoint is never unlocked before a step that contains its rules was applied.

mod drops;
mod endpoints;
mod messages;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::PoisonError;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use fairlead_api::status::Problem;
use fairlead_datapath::Exits;
use fairlead_index::{Effect, Index, Object};
use fairlead_policy::compiler::Compiler;
use fairlead_policy::model::{NodeChanges, ObjectKey};
use fairlead_policy::tables::{Delta, Slot};
use tokio::sync::watch;

use crate::enforcer::{Enforcer, EnforcerError};
use endpoints::{Local, Waiting};

pub use messages::{EngineHandle, Inbox, Message, Reply, Snapshot, channel};

/// Time after which a step is looked at again, to reuse its ids.
const SETTLE: Duration = Duration::from_millis(20);
/// Messages that are taken together at most, so that none waits for ever.
const TOGETHER: usize = 4096;
/// Time after which a step that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What others see of the engine's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The state of the world is known and enforced.
    pub active: bool,
    /// The source has said everything that was there at the start.
    pub synced: bool,
    /// How often nodes have changed: see [`EngineHandle::take_node_changes`].
    pub node_changes: u64,
}

/// How an engine is to work.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this node.
    pub node_name: String,
    /// How long a PUT waits for its pod.
    pub add_timeout: Duration,
    /// Whether packets may skip the host's stack.
    pub fast_path: bool,
    /// Attachments that were there at the start, with their interfaces.
    pub restored: Vec<fairlead_api::Attachment>,
    /// Who is told of pods that a PUT waits for, where the source can be asked for one.
    pub wanted: Option<tokio::sync::mpsc::UnboundedSender<ObjectKey>>,
}

/// The engine.
pub struct Engine<E> {
    options: Options,
    enforcer: E,
    compiler: Compiler,
    index: Index,
    endpoints: BTreeMap<Slot, Local>,
    /// Interfaces of endpoints that are gone and that the datapath would not let go of.
    unremoved: BTreeMap<Slot, u32>,
    waiting: Vec<Waiting>,
    /// A step that could not be put in force, to be tried again.
    pending: Option<Delta>,
    retry_at: Option<Instant>,
    settle_at: Option<Instant>,
    synced: bool,
    active: bool,
    own: Option<BTreeSet<IpAddr>>,
    addresses_told: bool,
    /// Other nodes, and exits, that are yet to be told to the datapath.
    untold_nodes: NodeChanges,
    untold_exits: Exits,
    /// Changes of nodes that are not published yet.
    unpublished: NodeChanges,
    /// Serial of the last step in force.
    serial: u64,
    commits: u64,
    failures: u64,
    /// What was said to be wrong with the state of the world.
    said: BTreeSet<Problem>,
    /// What was said not to fit.
    overflow: BTreeSet<Problem>,
    /// What the kernel refused.
    problems: BTreeMap<String, Problem>,
    published: watch::Sender<Published>,
    /// Messages; changes of nodes that nobody has taken; a pulse that is moved after each message, endpoint and step.
    inbox: Inbox,
    questions: Vec<Message>,
}

impl<E: Enforcer> Engine<E> {
    /// An engine at the end of a way to it, and what it publishes.
    pub fn new(
        enforcer: E,
        compiler: Compiler,
        options: Options,
        inbox: Inbox,
    ) -> (Self, watch::Receiver<Published>) {
        let (published, receiver) = watch::channel(Published::default());
        let engine = Self {
            options,
            enforcer,
            compiler,
            index: Index::default(),
            endpoints: BTreeMap::new(),
            unremoved: BTreeMap::new(),
            waiting: Vec::new(),
            pending: None,
            retry_at: None,
            settle_at: None,
            synced: false,
            active: false,
            own: None,
            addresses_told: false,
            untold_nodes: NodeChanges::new(),
            untold_exits: Exits::new(),
            unpublished: NodeChanges::new(),
            serial: 0,
            commits: 0,
            failures: 0,
            said: BTreeSet::new(),
            overflow: BTreeSet::new(),
            problems: BTreeMap::new(),
            published,
            inbox,
            questions: Vec::new(),
        };
        (engine, receiver)
    }

    /// Works until [`Message::Stop`], or until nobody can send any more. What is enforced stays so.
    pub fn run(mut self) {
        loop {
            let message = match self.next_deadline() {
                None => self.inbox.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.inbox.messages.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match message {
                Ok(message) => {
                    if !self.take(message) {
                        return;
                    }
                    for _ in 0..TOGETHER {
                        let Ok(message) = self.inbox.messages.try_recv() else { break };
                        if !self.take(message) {
                            return;
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.step(Instant::now());
            self.inbox.pulse.beat();
            self.answer_questions();
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|w| w.deadline);
        waiting.chain(self.settle_at).chain(self.retry_at).min()
    }

    /// Takes one message; `false` to end.
    fn take(&mut self, message: Message) -> bool {
        self.inbox.pulse.beat();
        match message {
            Message::Stop => return false,
            Message::Batch(batch) => {
                for effect in self.index.update(batch) {
                    self.affect(effect);
                }
                self.take_nodes();
                let problems = BTreeSet::from_iter(self.index.problems());
                for problem in problems.difference(&self.said) {
                    tracing::warn!("{problem}");
                }
                self.said = problems;
            }
            Message::Beat => {}
            Message::Synced => self.synced = true,
            Message::Put(attachment, reply) => self.put(*attachment, reply),
            Message::Delete { container_id, ifname, reply } => {
                self.delete(&container_id, &ifname);
                reply.send(Ok(()));
            }
            Message::LinkGone(ifindex) => self.link_gone(ifindex),
            Message::Links(there) => self.links(&there),
            Message::OwnAddresses(own) => {
                self.addresses_told &= self.own.as_ref() == Some(&own);
                self.own = Some(own);
            }
            Message::Exits(exits) => self.untold_exits.extend(exits),
            Message::Uplink(ifindex, reply) => {
                reply.send(self.enforcer.attach_uplink(ifindex).map_err(|e| e.to_string()));
            }
            Message::Overlay(ifindex, reply) => {
                reply.send(self.enforcer.attach_overlay(ifindex).map_err(|e| e.to_string()));
            }
            // Answered after the step, so that they see what was said before them in force.
            question @ (Message::Snapshot(_) | Message::Explain { .. } | Message::Resolve(..)) => {
                self.questions.push(question);
            }
        }
        true
    }

    fn answer_questions(&mut self) {
        for question in std::mem::take(&mut self.questions) {
            match question {
                Message::Snapshot(reply) => reply.send(self.snapshot()),
                Message::Explain { from, to, target, reply } => {
                    reply.send(self.compiler.explain(&from, &to, target));
                }
                Message::Resolve(records, reply) => reply.send(self.resolve(&records)),
                _ => {}
            }
        }
    }

    fn affect(&mut self, effect: Effect) {
        use fairlead_index::Kind;
        match effect {
            Effect::Set(Object::Namespace(namespace)) => self.compiler.set_namespace(&namespace),
            Effect::Set(Object::Pod(pod)) => self.compiler.set_pod(&pod),
            Effect::Set(Object::NetworkPolicy(policy)) => self.compiler.set_policy(&policy),
            Effect::Set(Object::Service(_)) => self.addresses_told = false,
            Effect::Set(Object::Node(_) | Object::EndpointSlice(_)) => {}
            Effect::Removed(id) => match id.kind {
                Kind::Namespace => self.compiler.remove_namespace(&id.key.name),
                Kind::Pod => self.compiler.remove_pod(&id.key),
                Kind::NetworkPolicy => self.compiler.remove_policy(&id.key),
                Kind::Service => self.addresses_told = false,
                Kind::Node | Kind::EndpointSlice => {}
            },
        }
    }

    /// What a batch means for nodes: for others than it names, too, where pod CIDRs overlap.
    fn take_nodes(&mut self) {
        for (name, node) in self.index.node_changes() {
            if *name == *self.options.node_name {
                self.addresses_told = false;
            } else {
                self.untold_nodes.insert(name.clone(), node.clone());
            }
            self.unpublished.insert(name, node);
        }
    }

    /// Puts in force whatever has changed, then unlocks and answers.
    fn step(&mut self, now: Instant) {
        if self.synced && self.own.is_some() {
            self.take_out_rest();
            self.tell_nodes();
            self.tell_addresses();
            self.tell_exits();
            if !self.active {
                self.restore();
            }
            self.admit();
            let retry = self.retry_at.is_some_and(|at| at <= now);
            if self.compiler.is_dirty() || !self.active || retry {
                self.put_in_force(now);
            }
            if self.settle_at.is_some_and(|at| at <= now) {
                self.settle(now);
            }
        }
        self.expire(now);
        let changes = std::mem::take(&mut self.unpublished);
        let changed = u64::from(!changes.is_empty());
        // Whoever has panicked with it had taken all, or nothing.
        self.inbox.node_changes.lock().unwrap_or_else(PoisonError::into_inner).extend(changes);
        self.published.send_if_modified(|there| {
            let before = *there;
            let node_changes = before.node_changes + changed;
            *there = Published { active: self.active, synced: self.synced, node_changes };
            *there != before
        });
    }

    fn tell_nodes(&mut self) {
        if self.untold_nodes.is_empty() {
            return;
        }
        let result = self.enforcer.set_nodes(&self.untold_nodes);
        if self.told("nodes", "other nodes", result) {
            self.untold_nodes.clear();
        }
    }

    fn tell_addresses(&mut self) {
        if self.addresses_told {
            return;
        }
        let mut own = self.own.clone().unwrap_or_default();
        own.extend(self.index.node(&self.options.node_name).iter().flat_map(|node| &node.addresses));
        let result = self.enforcer.set_addresses(&own, &self.index.service_addresses());
        self.addresses_told = self.told("addresses", "addresses", result);
    }

    fn tell_exits(&mut self) {
        if self.untold_exits.is_empty() {
            return;
        }
        let result = self.enforcer.set_exits(&self.untold_exits);
        if self.told("exits", "ways to other nodes", result) {
            self.untold_exits.clear();
        }
    }

    /// Whether the datapath has taken what it was told. If not it is told again, with the next step or after
    /// [`RETRY`], whichever comes first.
    fn told(&mut self, topic: &str, what: &str, result: Result<(), EnforcerError>) -> bool {
        if result.is_err() {
            self.retry_at.get_or_insert(Instant::now() + RETRY);
        }
        let told = result.is_ok();
        self.note(topic, result.err().map(|e| format!("telling {what} to the datapath: {e}")));
        told
    }

    /// Commits, applies, unlocks, answers.
    fn put_in_force(&mut self, now: Instant) {
        let told = self.addresses_told
            && self.untold_nodes.is_empty()
            && self.untold_exits.is_empty()
            && self.unremoved.is_empty();
        self.retry_at = (!told).then(|| now + RETRY);
        let mut delta = self.compiler.commit();
        self.report_overflow();
        if let Some(older) = self.pending.take() {
            delta = older.then(delta);
        }
        self.commits += 1;
        if let Err(e) = self.enforcer.apply(&delta) {
            self.failures += 1;
            let message = format!(
                "policy could not be put in force: {e}; what was in force stays, new endpoints stay locked"
            );
            self.note("apply", Some(message.clone()));
            self.pending = Some(delta);
            self.retry_at = Some(now + RETRY);
            self.refuse_admitted(&message);
            return;
        }
        self.note("apply", None);
        self.serial = delta.serial;
        // Not later for every step: under steady change it would never come.
        self.settle_at.get_or_insert(now + SETTLE);
        self.unlock_all();
        if !self.active {
            match self.enforcer.activate() {
                Ok(()) => {
                    self.active = true;
                    self.note("activate", None);
                }
                Err(e) => {
                    self.retry_at = Some(now + RETRY);
                    self.note("activate", Some(format!("the datapath could not be put in force: {e}")));
                    return;
                }
            }
        }
        self.answer_admitted();
    }

    fn settle(&mut self, now: Instant) {
        match self.enforcer.settled() {
            Ok(Some(serial)) => {
                self.compiler.settled(serial);
                self.settle_at = (serial < self.serial).then(|| now + SETTLE);
                if self.compiler.is_dirty() {
                    // What did not fit may now.
                    self.retry_at.get_or_insert(now);
                }
                self.note("settle", None);
            }
            Ok(None) => self.settle_at = Some(now + SETTLE),
            Err(e) => {
                self.settle_at = Some(now + RETRY);
                self.note("settle", Some(format!("cleaning up older policy: {e}")));
            }
        }
    }

    /// Says what does not fit, once.
    fn report_overflow(&mut self) {
        let overflow: BTreeSet<Problem> =
            self.compiler.problems().iter().map(status::overflow_problem).collect();
        for problem in overflow.difference(&self.overflow) {
            tracing::error!("{problem}");
        }
        for problem in self.overflow.difference(&overflow) {
            tracing::info!("no longer: {problem}");
        }
        self.overflow = overflow;
    }

    /// Keeps or forgets what the kernel refused.
    fn note(&mut self, topic: &str, message: Option<String>) {
        match message {
            None => {
                self.problems.remove(topic);
            }
            Some(message) => {
                let problem = Problem { message, ..Problem::default() };
                if self.problems.get(topic) != Some(&problem) {
                    tracing::error!("{problem}");
                }
                self.problems.insert(topic.to_owned(), problem);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
