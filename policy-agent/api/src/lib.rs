//! What plugin, agent, CLI and tests say to each other: the agent's HTTP interface on its Unix
//! socket, and the files of the run directory.
//!
//! ```text
//! RUN/agent.sock                       HTTP, JSON
//! RUN/agent.lock                       held by the agent that is in charge
//! RUN/node.json                        NodeInfo, written by the agent, read by the plugin
//! RUN/endpoints/<container>:<if>.json  Attachment, written by the plugin
//! RUN/ipam/                            the plugin's, see its documentation
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
pub mod drops;
pub mod status;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// Default of `--run-dir`.
pub const RUN_DIR: &str = "/run/fairlead";
/// Default of `--bpffs`.
pub const BPFFS: &str = "/sys/fs/bpf/fairlead";
/// Default of `--cni-conf-dir`.
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";
/// Name of the CNI configuration.
pub const CONFLIST: &str = "00-fairlead.conflist";
/// Name of the CNI network, unless configured otherwise.
pub const NETWORK: &str = "fairlead";

/// Paths below a run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(pub PathBuf);

impl RunDir {
    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }
    /// The lock of the agent in charge.
    pub fn lock(&self) -> PathBuf {
        self.0.join("agent.lock")
    }
    /// [`NodeInfo`].
    pub fn node(&self) -> PathBuf {
        self.0.join("node.json")
    }
    /// Folder of [`Attachment`]s.
    pub fn endpoints(&self) -> PathBuf {
        self.0.join("endpoints")
    }
    /// File of one [`Attachment`].
    pub fn endpoint(&self, container_id: &str, ifname: &str) -> PathBuf {
        self.endpoints().join(format!("{container_id}:{ifname}.json"))
    }
    /// The plugin's address state.
    pub fn ipam(&self) -> PathBuf {
        self.0.join("ipam")
    }
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// What the plugin must know of the node. Written by the agent before the conflist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Name of the node.
    pub node_name: String,
    /// `spec.podCIDRs`: where addresses come from.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNetwork>,
    /// MTU of pods in bytes.
    pub mtu: u32,
    /// Folder of the frozen pins: trampolines and the killed map.
    pub frozen: PathBuf,
    /// How long ADD waits for the agent, in milliseconds.
    pub add_timeout_ms: u64,
}

/// One attachment of a sandbox: body of `PUT /v1/endpoints`, and its file in the run directory.
///
/// The file is written before the interface is made, and removed when DEL has finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// CNI network name.
    pub network: String,
    /// CNI_CONTAINERID.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_NETNS.
    pub netns: String,
    /// The pod; `None` for an attachment that is not Kubernetes'.
    pub pod: Option<PodRef>,
    /// Name of the interface on the host.
    pub host_ifname: String,
    /// Its index: names the endpoint's slot, and is never given to another attachment.
    pub host_ifindex: u32,
    /// Its MAC address.
    pub host_mac: Mac,
    /// MAC address of the pod's interface.
    pub pod_mac: Mac,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// MTU of the pod's interface in bytes.
    pub mtu: u32,
    /// Traffic of this pod is shaped on its veth and must not be redirected past it.
    #[serde(default)]
    pub shaped: bool,
    /// Another interface of the sandbox had the default routes first: this one's are in a table of their
    /// own, which its addresses lead to.
    #[serde(default)]
    pub apart: bool,
}

/// A pod as the runtime names it in CNI_ARGS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID, where the runtime gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// A MAC address; `aa:bb:cc:dd:ee:ff` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A string that is not a MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address of six bytes in hexadecimal")]
pub struct InvalidMac(pub String);

impl std::str::FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(s: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(s.to_owned());
        let mut bytes = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What a program can react to.
    pub code: ErrorCode,
    /// What a person can read: names the object and the field.
    pub message: String,
}

/// Kinds of [`ApiError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request itself is wrong.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// Not now: not synced yet, or the pod's object has not arrived within the time limit.
    TryAgain,
    /// The interface does not carry this agent's programs, or is not what the request says.
    Interface,
    /// The slot of the interface's index is in use or was killed: take another index.
    SlotTaken,
    /// A fault of the agent.
    Internal,
}

/// One local endpoint: element of `GET /v1/endpoints`, answer to `PUT /v1/endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// The attachment.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Slot in the node's tables.
    pub slot: u32,
    /// Number of this endpoint among all that the node ever had.
    pub generation: u32,
    /// Whether packets pass at all.
    pub unlocked: bool,
    /// Whether its packets may skip the host's stack.
    #[serde(default)]
    pub fast_path: bool,
    /// Whether a policy selects it for ingress.
    pub ingress_isolated: bool,
    /// Whether a policy selects it for egress.
    pub egress_isolated: bool,
    /// Packets and bytes that passed, and drops by reason.
    pub counters: EndpointCounters,
}

/// Counters of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointCounters {
    /// What reached the pod.
    pub ingress: DirectionCounters,
    /// What left the pod.
    pub egress: DirectionCounters,
}

/// Counters of one direction of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionCounters {
    /// Packets passed.
    pub packets: u64,
    /// Bytes passed.
    pub bytes: u64,
    /// Packets dropped, by the reason's name.
    pub drops: std::collections::BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_round_trips() {
        let mac: Mac = "0a:00:ff:10:20:30".parse().unwrap();
        assert_eq!(mac.0, [0x0a, 0, 0xff, 0x10, 0x20, 0x30]);
        assert_eq!(mac.to_string(), "0a:00:ff:10:20:30");
        for bad in ["", "0a:00:ff:10:20", "0a:00:ff:10:20:30:40", "0g:00:ff:10:20:30", "a:00:ff:10:20:30"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn attachment_json_has_cni_names() {
        let a = Attachment {
            network: "n".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
            netns: "/run/netns/x".into(),
            pod: None,
            host_ifname: "fl0".into(),
            host_ifindex: 70001,
            host_mac: Mac([2; 6]),
            pod_mac: Mac([4; 6]),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            mtu: 1500,
            shaped: false,
            apart: false,
        };
        let json = serde_json::to_value(&a).unwrap();
        assert_eq!(json["containerID"], "c1");
        assert_eq!(json["hostIfindex"], 70001);
        assert_eq!(serde_json::from_value::<Attachment>(json).unwrap(), a);
    }
}
