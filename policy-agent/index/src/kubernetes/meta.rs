//! `metadata`.

use std::collections::BTreeMap;

use fairlead_policy::model::Labels;
use serde::Deserialize;
use serde_json::Value;

use super::names::{check_label_key, check_label_value, check_name, check_namespace};
use super::part;
use crate::object::{FieldError, Kind};

/// Annotation of a static pod: what the runtime calls its UID.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Fields that are read of every kind, as [`read_used`](super::read_used) takes them. The API server's
/// revision orders what is known of one object.
pub(super) const USED: &[&str] = &[
    "metadata / name",
    "metadata / namespace",
    "metadata / uid",
    "metadata / resourceVersion",
    "metadata / annotations / kubernetes.io/config.hash",
];

/// What names an object; the rest of `metadata` is read where it is needed.
pub(super) struct Meta<'a> {
    pub(super) name: String,
    pub(super) namespace: String,
    object: &'a Value,
}

#[derive(Default, Deserialize)]
struct Names {
    name: Option<String>,
    namespace: Option<String>,
}

impl<'a> Meta<'a> {
    /// Reads `metadata.name` and `metadata.namespace`. An object without a namespace is in `default`.
    pub(super) fn read(kind: Kind, object: &'a Value) -> Result<Self, FieldError> {
        let names: Names = part(object, "metadata")?;
        let name = names.name.ok_or_else(|| FieldError::new("metadata.name", "is missing"))?;
        let check = if kind == Kind::Namespace { check_namespace } else { check_name };
        check(&name).map_err(|e| FieldError::new("metadata.name", e))?;
        let namespace = match names.namespace {
            Some(namespace) if !namespace.is_empty() => namespace,
            _ => "default".to_owned(),
        };
        if kind.namespaced() {
            check_namespace(&namespace).map_err(|e| FieldError::new("metadata.namespace", e))?;
        }
        Ok(Self { name, namespace, object })
    }

    /// `metadata.labels`.
    pub(super) fn labels(&self) -> Result<Labels, Vec<FieldError>> {
        let labels: Labels = part(self.object, "metadata.labels").map_err(|e| vec![e])?;
        let mut errors = Vec::new();
        for (key, value) in &labels {
            if let Err(e) = check_label_key(key) {
                errors.push(FieldError::new("metadata.labels", e));
            }
            if let Err(e) = check_label_value(value) {
                errors.push(FieldError::new(format!("metadata.labels[{key:?}]"), e));
            }
        }
        if errors.is_empty() { Ok(labels) } else { Err(errors) }
    }

    /// What a runtime calls the pod's UID: for static pods not the mirror pod's, but the hash of their
    /// configuration.
    pub(super) fn runtime_uid(&self) -> Result<String, FieldError> {
        let annotations: BTreeMap<String, Value> = part(self.object, "metadata.annotations")?;
        if let Some(Value::String(hash)) = annotations.get(CONFIG_HASH) {
            return Ok(hash.clone());
        }
        part::<Option<String>>(self.object, "metadata.uid").map(Option::unwrap_or_default)
    }
}
