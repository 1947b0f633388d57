//! `NetworkPolicy` of networking.k8s.io/v1, with the API server's defaults and validation
//! (`pkg/apis/networking/{v1/defaults.go,validation/validation.go}`).
//!
//! Unlike the API server's default, unknown fields within `spec` are errors: a rule whose restriction
//! is not understood would otherwise allow more than was meant.

use fairlead_policy::model::{
    LabelSelector, NetworkPolicy, ObjectKey, Peer, PortRule, PortSpec, Protocol, Rule, canonical_network,
};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use super::meta::Meta;
use super::names::check_port_name;
use super::selector::{self, Selector};
use super::{collect, finish, part};
use crate::object::FieldError;

/// Fields that are read, as [`read_used`](super::read_used) takes them: all, because a field that is not
/// known could restrict what the others allow.
pub(super) const USED: &[&str] = &["spec"];

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    pod_selector: Option<Selector>,
    ingress: Option<Vec<IngressRule>>,
    egress: Option<Vec<EgressRule>>,
    policy_types: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IngressRule {
    from: Option<Vec<PeerSpec>>,
    ports: Option<Vec<PortEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EgressRule {
    to: Option<Vec<PeerSpec>>,
    ports: Option<Vec<PortEntry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerSpec {
    pod_selector: Option<Selector>,
    namespace_selector: Option<Selector>,
    ip_block: Option<IpBlock>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IpBlock {
    cidr: String,
    except: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PortEntry {
    protocol: Option<String>,
    port: Option<IntOrString>,
    end_port: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a port's number or name")]
enum IntOrString {
    Int(i64),
    String(String),
}

/// Reads and validates a policy.
pub(super) fn read(meta: &Meta<'_>, value: &Value) -> Result<NetworkPolicy, Vec<FieldError>> {
    let spec: Spec = part(value, "spec").map_err(|e| vec![e])?;
    let mut errors = Vec::new();
    let subjects = spec.pod_selector.unwrap_or_default().convert("spec.podSelector", &mut errors);
    let mut ingress = Vec::new();
    for (i, rule) in spec.ingress.into_iter().flatten().enumerate() {
        let at = format!("spec.ingress[{i}]");
        ingress.push(Rule {
            peers: peers(rule.from, &format!("{at}.from"), &mut errors),
            ports: ports(rule.ports, &format!("{at}.ports"), &mut errors),
        });
    }
    let mut egress = Vec::new();
    for (i, rule) in spec.egress.into_iter().flatten().enumerate() {
        let at = format!("spec.egress[{i}]");
        egress.push(Rule {
            peers: peers(rule.to, &format!("{at}.to"), &mut errors),
            ports: ports(rule.ports, &format!("{at}.ports"), &mut errors),
        });
    }
    let (mut isolates_ingress, mut isolates_egress) = (false, false);
    let types = spec.policy_types.unwrap_or_default();
    for (i, name) in types.iter().enumerate() {
        match name.as_str() {
            "Ingress" => isolates_ingress = true,
            "Egress" => isolates_egress = true,
            other => errors.push(FieldError::new(
                format!("spec.policyTypes[{i}]"),
                format!("{other:?} is neither Ingress nor Egress"),
            )),
        }
    }
    if types.len() > 2 {
        errors.push(FieldError::new("spec.policyTypes", "has more than two entries"));
    }
    if types.is_empty() {
        // "Policies that do not contain an Ingress or Egress section …": Ingress always, Egress where
        // there is any egress rule.
        (isolates_ingress, isolates_egress) = (true, !egress.is_empty());
    }
    finish(errors, || NetworkPolicy {
        key: ObjectKey::new(&meta.namespace, &meta.name),
        subjects,
        ingress: isolates_ingress.then_some(ingress),
        egress: isolates_egress.then_some(egress),
    })
}

/// What stands in for a policy that cannot be read: it selects at least the pods that the policy does,
/// in at least its directions, and allows nothing.
pub(super) fn closed(meta: &Meta<'_>, value: &Value) -> NetworkPolicy {
    let subjects = selector::readable(value.pointer("/spec/podSelector"));
    let has_rules = |field: &str| match value.pointer(field) {
        None | Some(Value::Null) => false,
        Some(Value::Array(rules)) => !rules.is_empty(),
        Some(_) => true,
    };
    let types = match value.pointer("/spec/policyTypes") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(types)) => types.iter().map(Value::as_str).collect::<Option<Vec<_>>>(),
        Some(_) => None,
    };
    let (ingress, egress) = match types.as_deref() {
        Some([]) => (true, has_rules("/spec/egress")),
        Some(types) if types.iter().all(|t| matches!(*t, "Ingress" | "Egress")) => {
            (types.contains(&"Ingress"), types.contains(&"Egress"))
        }
        _ => (true, true),
    };
    NetworkPolicy {
        key: ObjectKey::new(&meta.namespace, &meta.name),
        subjects,
        ingress: ingress.then(Vec::new),
        egress: egress.then(Vec::new),
    }
}

fn peers(entries: Option<Vec<PeerSpec>>, at: &str, errors: &mut Vec<FieldError>) -> Vec<Peer> {
    let mut peers = Vec::new();
    for (i, entry) in entries.into_iter().flatten().enumerate() {
        let at = format!("{at}[{i}]");
        match (entry.ip_block, entry.pod_selector, entry.namespace_selector) {
            (None, None, None) => {
                errors.push(FieldError::new(at, "names no peer: podSelector, namespaceSelector or ipBlock"));
            }
            (Some(block), None, None) => {
                let block = ip_block(&block, &format!("{at}.ipBlock"), errors);
                peers.extend(block);
            }
            (Some(_), ..) => {
                errors.push(FieldError::new(
                    format!("{at}.ipBlock"),
                    "cannot stand beside podSelector or namespaceSelector",
                ));
            }
            (None, pods, namespaces) => {
                let pods = pods
                    .map_or_else(LabelSelector::default, |s| s.convert(&format!("{at}.podSelector"), errors));
                let namespaces = namespaces.map(|s| s.convert(&format!("{at}.namespaceSelector"), errors));
                peers.push(Peer::Pods { namespaces, pods });
            }
        }
    }
    peers
}

/// A network as `address/length`; the netmasks and bare addresses that other parsers take are errors
/// in Kubernetes.
pub(super) fn network(text: &str) -> Result<IpNetwork, String> {
    let error = || format!("{text:?} is not a CIDR (address/prefix length)");
    let (ip, prefix) = text.split_once('/').ok_or_else(error)?;
    if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return Err(error());
    }
    let network = IpNetwork::new(ip.parse().map_err(|_| error())?, prefix.parse().map_err(|_| error())?)
        .map_err(|_| error())?;
    Ok(canonical_network(network))
}

fn ip_block(block: &IpBlock, at: &str, errors: &mut Vec<FieldError>) -> Option<Peer> {
    let cidr = network(&block.cidr).map_err(|e| FieldError::new(format!("{at}.cidr"), e));
    let cidr = collect(errors, cidr);
    let mut except = Vec::new();
    for (i, text) in block.except.iter().flatten().enumerate() {
        let field = format!("{at}.except[{i}]");
        match network(text) {
            Err(e) => errors.push(FieldError::new(field, e)),
            Ok(inner) => {
                let within = cidr.is_none_or(|cidr| {
                    cidr.is_ipv4() == inner.is_ipv4()
                        && cidr.contains(inner.ip())
                        && cidr.prefix() < inner.prefix()
                });
                if within {
                    except.push(inner);
                } else {
                    let message = format!("{text} is not within, and smaller than, {}", block.cidr);
                    errors.push(FieldError::new(field, message));
                }
            }
        }
    }
    Some(Peer::IpBlock { cidr: cidr?, except })
}

/// A protocol's name; TCP where there is none.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{other:?} is none of TCP, UDP, SCTP")),
    }
}

/// A port number, 1 to 65535.
pub(super) fn port_number(number: i64) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{number} is not a port number (1 to 65535)")),
    }
}

fn ports(entries: Option<Vec<PortEntry>>, at: &str, errors: &mut Vec<FieldError>) -> Vec<PortRule> {
    let mut rules = Vec::new();
    for (i, entry) in entries.into_iter().flatten().enumerate() {
        let at = format!("{at}[{i}]");
        let protocol =
            protocol(entry.protocol.as_deref()).map_err(|e| FieldError::new(format!("{at}.protocol"), e));
        let protocol = collect(errors, protocol);
        let port = collect(errors, port_spec(&entry, &at));
        if let (Some(protocol), Some(port)) = (protocol, port) {
            rules.push(PortRule { protocol, port });
        }
    }
    rules
}

fn port_spec(entry: &PortEntry, at: &str) -> Result<PortSpec, FieldError> {
    let port = |e| FieldError::new(format!("{at}.port"), e);
    let end = |e: String| FieldError::new(format!("{at}.endPort"), e);
    match (&entry.port, entry.end_port) {
        (None, None) => Ok(PortSpec::Any),
        (None, Some(_)) => Err(end("needs a port to start from".to_owned())),
        (Some(IntOrString::String(_)), Some(_)) => Err(end("cannot follow a named port".to_owned())),
        (Some(IntOrString::String(name)), None) => {
            check_port_name(name).map_err(port)?;
            Ok(PortSpec::Named(name.clone()))
        }
        (Some(IntOrString::Int(number)), None) => {
            let first = port_number(*number).map_err(port)?;
            Ok(PortSpec::Range { first, last: first })
        }
        (Some(IntOrString::Int(number)), Some(last)) => {
            let first = port_number(*number).map_err(port)?;
            let last = port_number(last).map_err(end)?;
            if last < first {
                return Err(end(format!("{last} is below port {first}")));
            }
            Ok(PortSpec::Range { first, last })
        }
    }
}
