//! What sources say.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::status::Problem;
use fairlead_policy::model::{Namespace, NetworkPolicy, Node, ObjectKey, Pod};

/// Kinds of objects that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Node.
    Node,
    /// `v1` Namespace.
    Namespace,
    /// `v1` Pod.
    Pod,
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice: known, but nothing depends on it, because it is
    /// kube-proxy that translates.
    EndpointSlice,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Node, Self::Namespace, Self::Pod, Self::NetworkPolicy, Self::Service, Self::EndpointSlice];

    /// `kind` of the object.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    /// `apiVersion` of the object.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Node | Self::Namespace | Self::Pod | Self::Service => "v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn namespaced(self) -> bool {
        !matches!(self, Self::Node | Self::Namespace)
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Kind.
    pub kind: Kind,
    /// Namespace and name; the namespace is empty for kinds that have none.
    pub key: ObjectKey,
}

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ObjectKey { namespace, name } = &self.key;
        if namespace.is_empty() {
            write!(f, "{} {name}", self.kind.name())
        } else {
            write!(f, "{} {namespace}/{name}", self.kind.name())
        }
    }
}

/// The addresses under which a Service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceObject {
    /// Namespace and name.
    pub key: ObjectKey,
    /// ClusterIPs, external IPs and load balancer IPs.
    pub addresses: BTreeSet<IpAddr>,
}

/// An object that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A node.
    Node(Node),
    /// A namespace.
    Namespace(Namespace),
    /// A pod.
    Pod(Pod),
    /// A policy.
    NetworkPolicy(NetworkPolicy),
    /// A Service.
    Service(ServiceObject),
    /// An EndpointSlice.
    EndpointSlice(ObjectKey),
}

/// A field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// Path of the field, as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl FieldError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// An object as a source saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What it is called.
    pub id: ObjectId,
    /// Where it stands, for sources that are files.
    pub origin: Option<Origin>,
    /// The object, or what is wrong with it.
    pub outcome: Outcome,
}

/// Where an object stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// Name of the file.
    pub file: Arc<str>,
    /// Line at which its document starts, from 1.
    pub line: usize,
}

/// Whether an object was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was.
    Good(Object),
    /// It was not.
    Bad {
        /// Everything that is wrong with it.
        errors: Vec<FieldError>,
        /// What holds where the object was never understood before: a policy that denies at least
        /// what the object selects.
        instead: Option<Object>,
    },
}

/// One change of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "changes are moved once each, and nearly all are of the large kind"
)]
pub enum Change {
    /// The object is there, or has changed.
    Apply(Parsed),
    /// The object is gone.
    Delete(ObjectId),
    /// Of this kind there are these and no others. Those that are new or have changed were applied before.
    Only(Kind, HashSet<ObjectKey>),
}

/// Changes that take effect together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// What is wrong with the source itself, all of it: replaces what an earlier batch said.
    pub problems: Vec<Problem>,
}

/// What a watched source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Changes.
    Batch(Batch),
    /// Everything that was there at the start has been said.
    Synced,
}
