//! The network configuration on standard input (specification, section 1).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use fairlead_api::Mac;
use fairlead_ipam::{Owner, Pool};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use crate::environment::{Command, is_identifier};
use crate::error::{CniError, code};
use crate::result::{Dns, Success};
use crate::version::CniVersion;

/// The plugin's `type`.
pub const TYPE: &str = "fairlead-cni";

/// A network configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `cniVersion`.
    pub version: CniVersion,
    /// `name`.
    pub name: String,
    /// `runDir`, absolute.
    pub run_dir: PathBuf,
    /// `mtu` in bytes, instead of the node's.
    pub mtu: Option<u32>,
    /// `dns`, or `runtimeConfig.dns` where there is one.
    pub dns: Dns,
    /// Where addresses come from.
    pub addresses: Addresses,
    /// `runtimeConfig.ips`, or `args.cni.ips`: addresses asked for.
    pub ips: Vec<IpAddr>,
    /// `runtimeConfig.mac`: the pod's hardware address.
    pub mac: Option<Mac>,
    /// A chained plugin shapes the pod: `runtimeConfig.bandwidth`, or `shaped` where that plugin's rates
    /// stand in the configuration.
    pub shaped: bool,
    /// `prevResult`, for ADD and CHECK.
    pub prev_result: Option<Success>,
    /// `cni.dev/valid-attachments`, or the older `cni.dev/attachments`.
    pub attachments: Option<BTreeSet<Owner>>,
    /// The whole of it, for plugins that this one delegates to.
    pub raw: Value,
}

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// The built-in allocator over the node's pod CIDRs, without these.
    Node {
        /// `ipam.exclude`.
        exclude: Vec<IpNetwork>,
    },
    /// The built-in allocator: one address from each set of ranges.
    Ranges(Vec<Vec<Pool>>),
    /// Another plugin: `ipam.type`.
    Delegated(String),
}

fn invalid(msg: impl Into<String>) -> CniError {
    CniError::configuration(msg)
}

/// An optional member of an object; `null` counts as absent.
fn member<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|v| !v.is_null())
}

fn string<'a>(object: &'a Map<String, Value>, key: &str, path: &str) -> Result<Option<&'a str>, CniError> {
    member(object, key)
        .map(|v| v.as_str().ok_or_else(|| invalid(format!("{path}{key}: {v} is not a string"))))
        .transpose()
}

fn object<'a>(
    of: &'a Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<Option<&'a Map<String, Value>>, CniError> {
    member(of, key)
        .map(|v| v.as_object().ok_or_else(|| invalid(format!("{path}{key}: {v} is not an object"))))
        .transpose()
}

fn list<'a>(object: &'a Map<String, Value>, key: &str, path: &str) -> Result<&'a [Value], CniError> {
    match member(object, key) {
        None => Ok(&[]),
        Some(v) => {
            v.as_array().map(Vec::as_slice).ok_or_else(|| invalid(format!("{path}{key}: {v} is not a list")))
        }
    }
}

/// The `cniVersion` as it stands there, for error objects about everything else.
pub fn spoken_version(input: &[u8]) -> &'static str {
    let value: Option<Value> = serde_json::from_slice(input).ok();
    let version = value.as_ref().and_then(|v| v.get("cniVersion")).and_then(Value::as_str);
    CniVersion::parse(version).unwrap_or(CniVersion::NEWEST).as_str()
}

/// Reads JSON that must be an object.
///
/// # Errors
/// Code 6.
pub fn decode(input: &[u8]) -> Result<Map<String, Value>, CniError> {
    match serde_json::from_slice(input) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(CniError::new(code::DECODE, "the network configuration is not a JSON object")),
        Err(e) => Err(CniError::new(code::DECODE, format!("the network configuration is not JSON: {e}"))),
    }
}

impl Config {
    /// Reads and validates a configuration, for one command.
    ///
    /// # Errors
    /// Code 6 where it is not JSON, 1 for its version, 7 for all else, naming the field.
    pub fn read(input: &[u8], command: Command) -> Result<Self, CniError> {
        let conf = decode(input)?;
        let version = CniVersion::parse(string(&conf, "cniVersion", "")?)?;
        let name = string(&conf, "name", "")?.unwrap_or_default();
        if !is_identifier(name) {
            return Err(invalid(format!(
                "name: {name:?} must be letters, digits, '.', '_' and '-', beginning with a letter or digit"
            )));
        }
        let run_dir = PathBuf::from(string(&conf, "runDir", "")?.unwrap_or(fairlead_api::RUN_DIR));
        if !run_dir.is_absolute() {
            return Err(invalid(format!("runDir: {run_dir:?} is not an absolute path")));
        }
        let mtu = member(&conf, "mtu")
            .filter(|v| v.as_u64() != Some(0))
            .map(|v| {
                v.as_u64()
                    .and_then(|n| u32::try_from(n).ok())
                    .filter(|n| (68..=65535).contains(n))
                    .ok_or_else(|| invalid(format!("mtu: {v} is not a number from 68 to 65535")))
            })
            .transpose()?;
        let empty = Map::new();
        let runtime = object(&conf, "runtimeConfig", "")?.unwrap_or(&empty);
        let dns = match (member(runtime, "dns"), member(&conf, "dns")) {
            (Some(v), _) => dns(v, "runtimeConfig.dns")?,
            (None, Some(v)) => dns(v, "dns")?,
            (None, None) => Dns::default(),
        };
        let mut ips = addresses(runtime, "runtimeConfig.")?;
        if ips.is_empty()
            && let Some(args) = object(&conf, "args", "")?
            && let Some(cni) = object(args, "cni", "args.")?
        {
            ips = addresses(cni, "args.cni.")?;
        }
        let mac = string(runtime, "mac", "runtimeConfig.")?.map(mac).transpose()?;
        // DEL, GC and STATUS must not fail for what they do not use.
        let prev_result = member(&conf, "prevResult")
            .filter(|_| matches!(command, Command::Add | Command::Check))
            .map(|v| Success::from_json(v, "prevResult"))
            .transpose()?;
        let attachments =
            match (member(&conf, "cni.dev/valid-attachments"), member(&conf, "cni.dev/attachments")) {
                (Some(_), _) => Some(attachments(&conf, "cni.dev/valid-attachments")?),
                (None, Some(_)) => Some(attachments(&conf, "cni.dev/attachments")?),
                (None, None) => None,
            };
        Ok(Self {
            version,
            name: name.to_owned(),
            run_dir,
            mtu,
            dns,
            addresses: source(&conf, runtime)?,
            ips,
            mac,
            shaped: shaped(&conf, runtime)?,
            prev_result,
            attachments,
            raw: Value::Object(conf),
        })
    }
}

fn shaped(conf: &Map<String, Value>, runtime: &Map<String, Value>) -> Result<bool, CniError> {
    let always = member(conf, "shaped")
        .map(|v| v.as_bool().ok_or_else(|| invalid(format!("shaped: {v} is not true or false"))))
        .transpose()?;
    let asked = member(runtime, "bandwidth").is_some_and(|b| b.as_object().is_none_or(|o| !o.is_empty()));
    Ok(asked || always == Some(true))
}

fn dns(value: &Value, path: &str) -> Result<Dns, CniError> {
    // Runtimes write `servers` and `searches` in the capability, the specification `nameservers` and `search`.
    let mut value = value.clone();
    if let Some(object) = value.as_object_mut() {
        for (from, to) in [("servers", "nameservers"), ("searches", "search")] {
            if let Some(v) = object.remove(from) {
                object.insert(to.to_owned(), v);
            }
        }
        object.retain(|_, v| !v.is_null());
    }
    serde_json::from_value(value).map_err(|e| invalid(format!("{path}: {e}")))
}

/// `ips`: addresses, with or without a prefix (which is always that of one address here).
fn addresses(object: &Map<String, Value>, path: &str) -> Result<Vec<IpAddr>, CniError> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for (i, value) in list(object, "ips", path)?.iter().enumerate() {
        let ip = value
            .as_str()
            .and_then(|s| s.parse::<IpNetwork>().ok())
            .ok_or_else(|| invalid(format!("{path}ips[{i}]: {value} is not an address")))?
            .ip();
        if ips.iter().any(|other| other.is_ipv6() == ip.is_ipv6()) {
            return Err(invalid(format!("{path}ips[{i}]: {ip} is a second address of its family")));
        }
        ips.push(ip);
    }
    Ok(ips)
}

fn mac(text: &str) -> Result<Mac, CniError> {
    let mac: Mac = text.parse().map_err(|e| invalid(format!("runtimeConfig.mac: {e}")))?;
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(invalid(format!("runtimeConfig.mac: {mac} cannot be an interface's address")));
    }
    Ok(mac)
}

fn attachments(conf: &Map<String, Value>, key: &str) -> Result<BTreeSet<Owner>, CniError> {
    list(conf, key, "")?
        .iter()
        .enumerate()
        .map(|(i, value)| {
            let field = |name: &str| value.get(name).and_then(Value::as_str).filter(|s| !s.is_empty());
            match (field("containerID"), field("ifname")) {
                (Some(id), Some(ifname)) => {
                    Ok(Owner { container_id: id.to_owned(), ifname: ifname.to_owned() })
                }
                // To leave one out would be to remove a pod that lives.
                _ => Err(invalid(format!("{key}[{i}]: {value} must have containerID and ifname"))),
            }
        })
        .collect()
}

fn source(conf: &Map<String, Value>, runtime: &Map<String, Value>) -> Result<Addresses, CniError> {
    let empty = Map::new();
    let ipam = object(conf, "ipam", "")?.unwrap_or(&empty);
    if let Some(kind) = string(ipam, "type", "ipam.")?.filter(|t| !t.is_empty() && *t != TYPE) {
        if kind.contains('/') || kind.starts_with('.') {
            return Err(invalid(format!("ipam.type: {kind:?} is not the name of an executable")));
        }
        return Ok(Addresses::Delegated(kind.to_owned()));
    }
    let mut exclude = Vec::new();
    for (i, value) in list(ipam, "exclude", "ipam.")?.iter().enumerate() {
        let network = value.as_str().and_then(|s| s.parse().ok());
        exclude.push(network.ok_or_else(|| invalid(format!("ipam.exclude[{i}]: {value} is not a CIDR")))?);
    }
    let (sets, path) = match list(runtime, "ipRanges", "runtimeConfig.")? {
        [] => (list(ipam, "ranges", "ipam.")?, "ipam.ranges"),
        sets => (sets, "runtimeConfig.ipRanges"),
    };
    if sets.is_empty() {
        return Ok(Addresses::Node { exclude });
    }
    let mut pools: Vec<Vec<Pool>> = Vec::new();
    for (i, set) in sets.iter().enumerate() {
        let set = set
            .as_array()
            .filter(|s| !s.is_empty())
            .ok_or_else(|| invalid(format!("{path}[{i}]: {set} is not a list of ranges")))?;
        let set: Vec<Pool> = set
            .iter()
            .enumerate()
            .map(|(k, range)| pool(range, &exclude, &format!("{path}[{i}][{k}]")))
            .collect::<Result<_, _>>()?;
        if set.iter().any(|p| p.is_ipv6() != set[0].is_ipv6()) {
            return Err(invalid(format!("{path}[{i}]: a set has ranges of both families")));
        }
        if pools.iter().any(|other| other[0].is_ipv6() == set[0].is_ipv6()) {
            return Err(invalid(format!("{path}[{i}]: a second set of its family")));
        }
        pools.push(set);
    }
    Ok(Addresses::Ranges(pools))
}

fn pool(range: &Value, exclude: &[IpNetwork], path: &str) -> Result<Pool, CniError> {
    let range = range.as_object().ok_or_else(|| invalid(format!("{path}: {range} is not an object")))?;
    let dotted = format!("{path}.");
    let subnet =
        string(range, "subnet", &dotted)?.ok_or_else(|| invalid(format!("{path}.subnet is missing")))?;
    let subnet: IpNetwork =
        subnet.parse().map_err(|_| invalid(format!("{path}.subnet: {subnet:?} is not a CIDR")))?;
    let bound = |key| -> Result<Option<IpAddr>, CniError> {
        string(range, key, &dotted)?
            .map(|s| s.parse().map_err(|_| invalid(format!("{path}.{key}: {s:?} is not an address"))))
            .transpose()
    };
    let pool = Pool::within(subnet, bound("rangeStart")?, bound("rangeEnd")?)
        .map_err(|e| invalid(format!("{path}: {e}")))?;
    let gateway: Vec<IpNetwork> = bound("gateway")?.map(IpNetwork::from).into_iter().collect();
    Ok(pool.excluding(&[exclude, &gateway].concat()))
}
