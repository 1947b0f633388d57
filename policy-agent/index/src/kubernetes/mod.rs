//! Kubernetes objects as JSON values → the model, validated as the API server validates them.

mod meta;
mod names;
mod node;
mod pod;
mod policy;
mod selector;
mod service;
mod used;

use std::net::IpAddr;

use fairlead_policy::model::{Namespace, ObjectKey};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::object::{FieldError, Kind, Object, ObjectId, Outcome};

use meta::Meta;

pub use used::read_used;

/// A document that is no object of a known kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotAnObject {
    /// What it calls itself, as far as that can be read.
    pub object: Option<String>,
    /// The field that is wrong.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
}

/// Reads one object. A `List` has been taken apart before, see [`unpack`].
///
/// # Errors
/// Where kind or name cannot be read, so that nobody can say which object is meant.
pub fn read(value: &Value) -> Result<(ObjectId, Outcome), NotAnObject> {
    let field = |name: &str| value.get(name).and_then(Value::as_str);
    let error = |object: Option<String>, field: &str, message: String| NotAnObject {
        object,
        field: Some(field.to_owned()),
        message,
    };
    if !value.is_object() {
        let message = "this document is not an object with apiVersion, kind and metadata".to_owned();
        return Err(NotAnObject { object: None, field: None, message });
    }
    let plain = |name: &str| value.pointer(name).and_then(Value::as_str);
    let (namespace, name) = (plain("/metadata/namespace"), plain("/metadata/name"));
    let kind_name =
        field("kind").ok_or_else(|| error(None, "kind", "is missing or not a string".to_owned()))?;
    let called = match (namespace, name) {
        (Some(namespace), Some(name)) => Some(format!("{kind_name} {namespace}/{name}")),
        (None, Some(name)) => Some(format!("{kind_name} {name}")),
        _ => Some(kind_name.to_owned()),
    };
    let api_version = field("apiVersion")
        .ok_or_else(|| error(called.clone(), "apiVersion", "is missing or not a string".to_owned()))?;
    let kind =
        Kind::from_name(kind_name).filter(|kind| kind.api_version() == api_version).ok_or_else(|| {
            error(called.clone(), "kind", format!("{kind_name} of {api_version} is unknown here and ignored"))
        })?;
    let meta = Meta::read(kind, value).map_err(|e| NotAnObject {
        object: called.clone(),
        field: Some(e.field),
        message: e.message,
    })?;
    let id = ObjectId {
        kind,
        key: ObjectKey::new(if kind.namespaced() { meta.namespace.as_str() } else { "" }, &meta.name),
    };
    let outcome = match kind {
        Kind::Node => good(node::read(&meta, value).map(Object::Node)),
        Kind::Namespace => good(meta.labels().map(|mut labels| {
            // The API server sets it, and nobody else may.
            labels.insert("kubernetes.io/metadata.name".to_owned(), meta.name.clone());
            Object::Namespace(Namespace { name: meta.name.clone(), labels })
        })),
        Kind::Pod => good(pod::read(&meta, value).map(Object::Pod)),
        Kind::Service => good(service::read(&meta, value).map(Object::Service)),
        Kind::EndpointSlice => Outcome::Good(Object::EndpointSlice(id.key.clone())),
        Kind::NetworkPolicy => match policy::read(&meta, value) {
            Ok(policy) => Outcome::Good(Object::NetworkPolicy(policy)),
            Err(errors) => {
                Outcome::Bad { errors, instead: Some(Object::NetworkPolicy(policy::closed(&meta, value))) }
            }
        },
    };
    Ok((id, outcome))
}

fn good(result: Result<Object, Vec<FieldError>>) -> Outcome {
    match result {
        Ok(object) => Outcome::Good(object),
        Err(errors) => Outcome::Bad { errors, instead: None },
    }
}

/// Takes a `List` (or `PodList` and the like) apart; anything else is itself.
pub fn unpack(value: Value) -> Vec<Value> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let (kind, api_version) = (text("kind"), text("apiVersion"));
    let item_kind = kind.as_deref().and_then(|kind| kind.strip_suffix("List")).map(str::to_owned);
    match (item_kind, value) {
        (Some(item_kind), Value::Object(mut list)) if matches!(list.get("items"), Some(Value::Array(_))) => {
            let Some(Value::Array(items)) = list.remove("items") else { return Vec::new() };
            items
                .into_iter()
                .flat_map(|mut item| {
                    // Items of a typed list may leave out what the list's kind already says.
                    if let (Value::Object(item), false) = (&mut item, item_kind.is_empty()) {
                        item.entry("kind").or_insert_with(|| item_kind.clone().into());
                        if let Some(version) = &api_version {
                            item.entry("apiVersion").or_insert_with(|| version.clone().into());
                        }
                    }
                    unpack(item)
                })
                .collect()
        }
        (_, value) => vec![value],
    }
}

/// Deserialises a part of an object; an absent part is its default. `at` is the part's path.
fn part<T: DeserializeOwned + Default>(value: &Value, at: &str) -> Result<T, FieldError> {
    let pointer = format!("/{}", at.replace('.', "/"));
    match value.pointer(&pointer) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => serde_path_to_error::deserialize(value).map_err(|e| {
            let path = e.path().to_string();
            let field = match path.as_str() {
                "." | "" => at.to_owned(),
                path if path.starts_with('[') => format!("{at}{path}"),
                path => format!("{at}.{path}"),
            };
            FieldError::new(field, e.into_inner().to_string())
        }),
    }
}

/// An address as it is meant: IPv4-mapped IPv6 is IPv4.
fn address(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_canonical()),
        Err(_) => Err(format!("{text:?} is not an IP address")),
    }
}

/// Collects errors, so that one look tells all that is wrong.
fn collect<T>(errors: &mut Vec<FieldError>, result: Result<T, FieldError>) -> Option<T> {
    result.map_err(|e| errors.push(e)).ok()
}

fn finish<T>(errors: Vec<FieldError>, value: impl FnOnce() -> T) -> Result<T, Vec<FieldError>> {
    if errors.is_empty() { Ok(value()) } else { Err(errors) }
}
