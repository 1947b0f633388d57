//! `Node`.

use fairlead_policy::model::Node;
use serde::Deserialize;
use serde_json::Value;

use super::meta::Meta;
use super::{address, collect, finish, part, policy::network};
use crate::object::FieldError;

/// Fields that are read, as [`read_used`](super::read_used) takes them.
pub(super) const USED: &[&str] = &["spec / podCIDR", "spec / podCIDRs", "status / addresses"];

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
struct Status {
    addresses: Option<Vec<Address>>,
}

#[derive(Deserialize)]
struct Address {
    r#type: String,
    address: String,
}

/// Reads and validates a node.
pub(super) fn read(meta: &Meta<'_>, value: &Value) -> Result<Node, Vec<FieldError>> {
    let mut errors = Vec::new();
    let spec: Spec = collect(&mut errors, part(value, "spec")).unwrap_or_default();
    let status: Status = collect(&mut errors, part(value, "status")).unwrap_or_default();
    let cidrs = spec.pod_cidrs.filter(|all| !all.is_empty());
    let single = cidrs.is_none();
    let mut pod_cidrs = Vec::new();
    for (i, text) in cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect()).iter().enumerate() {
        let field = || if single { "spec.podCIDR".to_owned() } else { format!("spec.podCIDRs[{i}]") };
        if text.is_empty() {
            continue;
        }
        pod_cidrs.extend(collect(&mut errors, network(text).map_err(|e| FieldError::new(field(), e))));
    }
    let (mut internal, mut others) = (Vec::new(), Vec::new());
    for (i, entry) in status.addresses.iter().flatten().enumerate() {
        let list = match entry.r#type.as_str() {
            "InternalIP" => &mut internal,
            "ExternalIP" => &mut others,
            // Host names and the DNS types are not addresses.
            _ => continue,
        };
        let field = || format!("status.addresses[{i}].address");
        list.extend(collect(&mut errors, address(&entry.address).map_err(|e| FieldError::new(field(), e))));
    }
    internal.append(&mut others);
    finish(errors, || Node { name: meta.name.clone(), addresses: internal, pod_cidrs })
}
