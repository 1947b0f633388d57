//! `Pod`.

use fairlead_policy::model::{NamedPort, ObjectKey, Pod};
use serde::Deserialize;
use serde_json::Value;

use super::meta::Meta;
use super::names::check_port_name;
use super::policy::{port_number, protocol};
use super::{address, collect, finish, part};
use crate::object::FieldError;

/// Fields that are read, as [`read_used`](super::read_used) takes them.
pub(super) const USED: &[&str] = &[
    "spec / nodeName",
    "spec / hostNetwork",
    "spec / containers / ports",
    "spec / initContainers / ports",
    "spec / initContainers / restartPolicy",
    "spec / containers / restartPolicy",
    "status / phase",
    "status / podIP",
    "status / podIPs",
];

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    ports: Option<Vec<Port>>,
    restart_policy: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    container_port: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

/// Reads and validates a pod.
pub(super) fn read(meta: &Meta<'_>, value: &Value) -> Result<Pod, Vec<FieldError>> {
    let mut errors = Vec::new();
    let labels = match meta.labels() {
        Ok(labels) => labels,
        Err(mut e) => {
            errors.append(&mut e);
            Default::default()
        }
    };
    let uid = collect(&mut errors, meta.runtime_uid()).unwrap_or_default();
    let spec: Spec = collect(&mut errors, part(value, "spec")).unwrap_or_default();
    let status: Status = collect(&mut errors, part(value, "status")).unwrap_or_default();
    let mut named = Vec::new();
    for (i, container) in spec.containers.iter().flatten().enumerate() {
        ports(container, &format!("spec.containers[{i}]"), &mut named, &mut errors);
    }
    for (i, container) in spec.init_containers.iter().flatten().enumerate() {
        // Sidecars: they run as long as the pod does. Other init containers have ended before.
        if container.restart_policy.as_deref() == Some("Always") {
            ports(container, &format!("spec.initContainers[{i}]"), &mut named, &mut errors);
        }
    }
    let mut ips = Vec::new();
    let mut add = |text: &str, field: String, errors: &mut Vec<FieldError>| {
        if !text.is_empty() {
            ips.extend(collect(errors, address(text).map_err(|e| FieldError::new(field, e))));
        }
    };
    match &status.pod_ips {
        Some(list) if !list.is_empty() => {
            for (i, entry) in list.iter().enumerate() {
                add(&entry.ip, format!("status.podIPs[{i}].ip"), &mut errors);
            }
        }
        _ => add(status.pod_ip.as_deref().unwrap_or_default(), "status.podIP".to_owned(), &mut errors),
    }
    finish(errors, || Pod {
        key: ObjectKey::new(&meta.namespace, &meta.name),
        uid,
        labels,
        ips,
        node: spec.node_name.filter(|name| !name.is_empty()),
        host_network: spec.host_network.unwrap_or(false),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        ports: named,
    })
}

fn ports(container: &Container, at: &str, named: &mut Vec<NamedPort>, errors: &mut Vec<FieldError>) {
    for (i, entry) in container.ports.iter().flatten().enumerate() {
        let Some(name) = entry.name.as_deref().filter(|name| !name.is_empty()) else { continue };
        let at = format!("{at}.ports[{i}]");
        let check = |field: &str, e: String| FieldError::new(format!("{at}.{field}"), e);
        let good_name = collect(errors, check_port_name(name).map_err(|e| check("name", e)));
        let protocol = protocol(entry.protocol.as_deref()).map_err(|e| check("protocol", e));
        let protocol = collect(errors, protocol);
        let port = port_number(entry.container_port).map_err(|e| check("containerPort", e));
        let port = collect(errors, port);
        if let (Some(()), Some(protocol), Some(port)) = (good_name, protocol, port) {
            named.push(NamedPort { name: name.to_owned(), protocol, port });
        }
    }
}
