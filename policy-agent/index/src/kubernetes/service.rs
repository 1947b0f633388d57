//! `Service`.

use std::collections::BTreeSet;

use fairlead_policy::model::ObjectKey;
use serde::Deserialize;
use serde_json::Value;

use super::meta::Meta;
use super::{address, collect, finish, part};
use crate::object::{FieldError, ServiceObject};

/// Fields that are read, as [`read_used`](super::read_used) takes them.
pub(super) const USED: &[&str] =
    &["spec / clusterIP", "spec / clusterIPs", "spec / externalIPs", "status / loadBalancer"];

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancer {
    ingress: Option<Vec<LoadBalancerIngress>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancerIngress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

impl LoadBalancerIngress {
    /// The address, if nodes translate it. "Setting this to 'Proxy' indicates that traffic is delivered to
    /// the node or pod with the destination set to the node's IP and node port or the pod's IP and port":
    /// nodes leave the balancer's address alone, so what pods send there leaves as it is.
    fn translated(&self) -> &str {
        match self.ip_mode.as_deref() {
            Some("Proxy") => "",
            _ => self.ip.as_deref().unwrap_or_default(),
        }
    }
}

/// Reads and validates the addresses of a Service.
pub(super) fn read(meta: &Meta<'_>, value: &Value) -> Result<ServiceObject, Vec<FieldError>> {
    let mut errors = Vec::new();
    let spec: Spec = collect(&mut errors, part(value, "spec")).unwrap_or_default();
    let balancer: LoadBalancer = collect(&mut errors, part(value, "status.loadBalancer")).unwrap_or_default();
    let mut addresses = BTreeSet::new();
    let mut add = |text: &str, field: String| {
        // Headless Services say "None", those that have no address yet say nothing.
        if !matches!(text, "" | "None") {
            addresses.extend(collect(&mut errors, address(text).map_err(|e| FieldError::new(field, e))));
        }
    };
    add(spec.cluster_ip.as_deref().unwrap_or_default(), "spec.clusterIP".to_owned());
    for (i, ip) in spec.cluster_ips.iter().flatten().enumerate() {
        add(ip, format!("spec.clusterIPs[{i}]"));
    }
    for (i, ip) in spec.external_ips.iter().flatten().enumerate() {
        add(ip, format!("spec.externalIPs[{i}]"));
    }
    for (i, entry) in balancer.ingress.iter().flatten().enumerate() {
        add(entry.translated(), format!("status.loadBalancer.ingress[{i}].ip"));
    }
    finish(errors, || ServiceObject { key: ObjectKey::new(&meta.namespace, &meta.name), addresses })
}
