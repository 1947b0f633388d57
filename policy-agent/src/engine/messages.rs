//! What the engine is told and asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use fairlead_api::drops::DropEvent;
use fairlead_api::status::Problem;
use fairlead_api::{ApiError, Attachment, EndpointCounters, EndpointStatus, ErrorCode};
use fairlead_datapath::{DropRecord, Exits};
use fairlead_index::Batch;
use fairlead_policy::compiler::{self, Work};
use fairlead_policy::explain::{Explanation, Party};
use fairlead_policy::model::NodeChanges;
use fairlead_policy::oracle::Target;
use tokio::sync::oneshot;

use crate::pulse::Pulse;

/// Where an answer goes. Nobody waiting for it any more is no error.
#[derive(Debug)]
pub struct Reply<T>(oneshot::Sender<T>);

impl<T> Reply<T> {
    /// Answers.
    pub fn send(self, answer: T) {
        let _ = self.0.send(answer);
    }
}

/// What the engine is told and asked.
#[derive(Debug)]
pub enum Message {
    /// A source has changes that take effect together.
    Batch(Batch),
    /// The source has said everything that was there at the start.
    Synced,
    /// An endpoint is to be put in force.
    Put(Box<Attachment>, Reply<Result<EndpointStatus, ApiError>>),
    /// An endpoint is gone.
    Delete {
        /// CNI_CONTAINERID.
        container_id: String,
        /// CNI_IFNAME.
        ifname: String,
        /// The answer.
        reply: Reply<Result<(), ApiError>>,
    },
    /// The interface with this index is gone.
    LinkGone(u32),
    /// These are all the interfaces that there are.
    Links(BTreeSet<u32>),
    /// These are the node's own addresses.
    OwnAddresses(BTreeSet<IpAddr>),
    /// So packets for the pods of these nodes leave past the host's stack, from now on.
    Exits(Exits),
    /// This is the uplink.
    Uplink(u32, Reply<Result<(), String>>),
    /// This is the overlay device.
    Overlay(u32, Reply<Result<(), String>>),
    /// Nothing; who sends it looks whether it is taken.
    Beat,
    /// What is the state?
    Snapshot(Reply<Snapshot>),
    /// Why is a connection allowed or denied?
    Explain {
        /// Who opens it.
        from: Party,
        /// To whom.
        to: Party,
        /// On what port.
        target: Target,
        /// The answer.
        reply: Reply<Explanation>,
    },
    /// Whose are these dropped packets, and which policy decided?
    Resolve(Vec<DropRecord>, Reply<Vec<DropEvent>>),
    /// End.
    Stop,
}

/// The engine's state, for status and metrics.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Serial of the last step in force.
    pub serial: u64,
    /// Steps made.
    pub commits: u64,
    /// Steps that could not be put in force.
    pub failures: u64,
    /// ADDs that wait for their pod.
    pub waiting: u64,
    /// How much there is of what, by name.
    pub counts: BTreeMap<String, u64>,
    /// Tables: name, elements that policy needs, and the limit to them.
    pub tables: Vec<(&'static str, u64, u64)>,
    /// Rules that are not in force as they are, for want of room.
    pub overflow: Vec<compiler::Problem>,
    /// Work that the compiler has done, by kind.
    pub work: Work,
    /// Endpoints.
    pub endpoints: Vec<EndpointStatus>,
    /// Counters of interfaces that are no endpoint's, by index.
    pub others: BTreeMap<u32, EndpointCounters>,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// The way to the engine.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    messages: Sender<Message>,
    node_changes: Arc<Mutex<NodeChanges>>,
    pulse: Pulse,
}

/// The engine's end of the way to it.
#[derive(Debug)]
pub struct Inbox {
    pub(super) messages: Receiver<Message>,
    pub(super) node_changes: Arc<Mutex<NodeChanges>>,
    pub(super) pulse: Pulse,
}

/// A way to an engine that is yet to be made: what it is told waits for it.
pub fn channel() -> (EngineHandle, Inbox) {
    let (sender, messages) = mpsc::channel();
    let (node_changes, pulse) = (Arc::<Mutex<NodeChanges>>::default(), Pulse::default());
    let inbox = Inbox { messages, node_changes: node_changes.clone(), pulse: pulse.clone() };
    (EngineHandle { messages: sender, node_changes, pulse }, inbox)
}

impl EngineHandle {
    /// What moves whenever the engine has got on.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// What has become of nodes since the last call, without pod CIDRs that another node has. One part of the
    /// agent takes them: who sees to the network. [`Published::node_changes`](super::Published) says when there are any.
    pub fn take_node_changes(&self) -> NodeChanges {
        std::mem::take(&mut *self.node_changes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells something; `false` where the engine has ended.
    pub fn tell(&self, message: Message) -> bool {
        self.messages.send(message).is_ok()
    }

    /// Asks something.
    ///
    /// # Errors
    /// Where the engine has ended.
    pub async fn ask<T>(&self, question: impl FnOnce(Reply<T>) -> Message) -> Result<T, ApiError> {
        let (sender, answer) = oneshot::channel();
        let ended = || ApiError { code: ErrorCode::TryAgain, message: "the agent is ending".to_owned() };
        if !self.tell(question(Reply(sender))) {
            return Err(ended());
        }
        answer.await.map_err(|_| ended())
    }
}
