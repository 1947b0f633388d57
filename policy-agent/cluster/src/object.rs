//! Objects as the API server sends them, with what is used of them and no more.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use fairlead_index::kubernetes::{self, NotAnObject};
use fairlead_index::{Kind, Parsed};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

/// A kind of objects, as a type.
pub trait Watched: fmt::Debug + Clone + Send + Sync + 'static {
    /// The kind.
    const KIND: Kind;
    /// Its name in URLs.
    const PLURAL: &'static str;
}

macro_rules! watched {
    ($($name:ident $plural:literal),*) => { $(
        #[doc = concat!("`", stringify!($name), "`.")]
        #[derive(Clone, Copy, Debug)]
        pub enum $name {}
        impl Watched for $name {
            const KIND: Kind = Kind::$name;
            const PLURAL: &'static str = $plural;
        }
    )* };
}

watched!(
    Node "nodes", Namespace "namespaces", Pod "pods", NetworkPolicy "networkpolicies", Service "services",
    EndpointSlice "endpointslices"
);

/// What was understood of an object, and when it was so.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The object, or why nobody can say which it is.
    pub parsed: Result<Parsed, NotAnObject>,
    /// `metadata.resourceVersion`: of two states of one object the greater is the newer. 0 where it is
    /// no number.
    pub revision: u64,
}

/// A [`Seen`] of a kind, for kube.
#[derive(Clone, Debug)]
pub struct Typed<K> {
    meta: ObjectMeta,
    /// What was understood.
    pub seen: Seen,
    kind: PhantomData<K>,
}

impl<'de, K: Watched> Deserialize<'de> for Typed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = kubernetes::read_used(K::KIND, deserializer)?;
        let text = |pointer| value.pointer(pointer).and_then(serde_json::Value::as_str).map(str::to_owned);
        let meta = ObjectMeta {
            name: text("/metadata/name"),
            resource_version: text("/metadata/resourceVersion"),
            ..ObjectMeta::default()
        };
        let revision = meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
        let parsed = kubernetes::read(&value).map(|(id, outcome)| Parsed { id, origin: None, outcome });
        Ok(Self { meta, seen: Seen { parsed, revision }, kind: PhantomData })
    }
}

impl<K: Watched> kube::Resource for Typed<K> {
    type DynamicType = ();
    // Those of the six kinds that have a namespace are asked for in all of them at once, or by name.
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::KIND.name().into()
    }
    fn group((): &()) -> Cow<'_, str> {
        K::KIND.api_version().rsplit_once('/').map_or("", |(group, _)| group).into()
    }
    fn version((): &()) -> Cow<'_, str> {
        let version = K::KIND.api_version();
        version.rsplit_once('/').map_or(version, |(_, version)| version).into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
