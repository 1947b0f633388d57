//! The success object (specification, section 5, "ADD Success"), in every version.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::CniError;
use crate::version::CniVersion;

/// What ADD answers, and what `prevResult` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    /// Interfaces, those in the sandbox with `sandbox`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes of the sandbox.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Network namespace, absent on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Since 1.1.0.
    #[serde(rename = "socketPath", default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// Since 1.1.0.
    #[serde(rename = "pciID", default, skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// With prefix.
    pub address: IpNetwork,
    /// Default gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNetwork,
    /// Next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// Name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Success {
    /// Reads a result of any version.
    ///
    /// # Errors
    /// Code 7, naming `what` it is.
    pub fn from_json(value: &Value, what: &str) -> Result<Self, CniError> {
        let result: Self = serde_json::from_value(value.clone())
            .map_err(|e| CniError::configuration(format!("{what}: {e}")))?;
        for (i, ip) in result.ips.iter().enumerate() {
            if ip.interface.is_some_and(|n| n >= result.interfaces.len()) {
                return Err(CniError::configuration(format!("{what}: ips[{i}].interface is no interface")));
            }
        }
        Ok(result)
    }

    /// Writes the result as `version` has it.
    pub fn to_json(&self, version: CniVersion) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_else(|_| json!({}));
        let Some(object) = value.as_object_mut() else { return value };
        object.insert("cniVersion".to_owned(), version.as_str().into());
        let mut each = |list: &str, f: &dyn Fn(&mut serde_json::Map<String, Value>)| {
            let entries = object.get_mut(list).and_then(Value::as_array_mut);
            entries.into_iter().flatten().filter_map(Value::as_object_mut).for_each(f);
        };
        if version < CniVersion::V110 {
            each("interfaces", &|i| {
                i.retain(|key, _| !matches!(key.as_str(), "mtu" | "socketPath" | "pciID"))
            });
            each("routes", &|r| r.retain(|key, _| matches!(key.as_str(), "dst" | "gw")));
        }
        if version < CniVersion::V100 {
            each("ips", &|ip| {
                let v6 = ip.get("address").and_then(Value::as_str).is_some_and(|a| a.contains(':'));
                ip.insert("version".to_owned(), if v6 { "6" } else { "4" }.into());
            });
        }
        value
    }

    /// Appends what another result says, its interface numbers moved.
    pub fn append(&mut self, other: Self) {
        let moved = self.interfaces.len();
        self.interfaces.extend(other.interfaces);
        self.ips
            .extend(other.ips.into_iter().map(|ip| Ip { interface: ip.interface.map(|i| i + moved), ..ip }));
        self.routes.extend(other.routes);
        if !other.dns.is_empty() {
            self.dns = other.dns;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> Success {
        Success {
            interfaces: vec![
                Interface {
                    name: "fl0".into(),
                    mac: Some("0a:00:00:00:00:01".into()),
                    mtu: Some(1500),
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".into(),
                    sandbox: Some("/n".into()),
                    pci_id: Some("p".into()),
                    ..Interface::default()
                },
            ],
            ips: vec![
                Ip { address: "10.0.0.2/32".parse().unwrap(), gateway: None, interface: Some(1) },
                Ip {
                    address: "fd00::2/128".parse().unwrap(),
                    gateway: "fe80::1".parse().ok(),
                    interface: Some(1),
                },
            ],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: "169.254.1.1".parse().ok(),
                mtu: Some(1400),
                advmss: None,
                priority: Some(7),
                table: None,
                scope: None,
            }],
            dns: Dns::default(),
        }
    }

    #[test]
    fn each_version_has_its_fields_and_no_others() {
        let at = |v| result().to_json(v);
        assert_eq!(
            at(CniVersion::V031),
            json!({
                "cniVersion": "0.3.1",
                "interfaces": [{"name": "fl0", "mac": "0a:00:00:00:00:01"}, {"name": "eth0", "sandbox": "/n"}],
                "ips": [
                    {"address": "10.0.0.2/32", "interface": 1, "version": "4"},
                    {"address": "fd00::2/128", "gateway": "fe80::1", "interface": 1, "version": "6"},
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
            })
        );
        assert_eq!(at(CniVersion::V040)["ips"][0]["version"], "4");
        let v100 = at(CniVersion::V100);
        assert!(v100["ips"][0].get("version").is_none() && v100["interfaces"][0].get("mtu").is_none());
        let v110 = at(CniVersion::V110);
        assert_eq!(
            (&v110["interfaces"][0]["mtu"], &v110["interfaces"][1]["pciID"]),
            (&json!(1500), &json!("p"))
        );
        assert_eq!((&v110["routes"][0]["mtu"], &v110["routes"][0]["priority"]), (&json!(1400), &json!(7)));
    }

    #[test]
    fn every_version_can_be_read_back() {
        for version in CniVersion::ALL {
            let read = Success::from_json(&result().to_json(version), "prevResult").unwrap();
            assert_eq!(read.ips, result().ips);
            assert_eq!(read == result(), version == CniVersion::V110);
        }
        let bad = json!({"ips": [{"address": "10.0.0.1/32", "interface": 3}]});
        assert_eq!(Success::from_json(&bad, "prevResult").unwrap_err().code, 7);
        assert_eq!(Success::from_json(&json!({"ips": 3}), "prevResult").unwrap_err().code, 7);
    }

    #[test]
    fn appending_moves_interface_numbers() {
        let mut all = result();
        all.append(result());
        assert_eq!(all.ips[2].interface, Some(3));
        assert_eq!(all.interfaces.len(), 4);
    }
}
