//! The environment variables of a call (specification, section 2, "Parameters").

use std::collections::BTreeMap;
use std::path::PathBuf;

use fairlead_api::PodRef;

use crate::error::{CniError, code};

/// CNI_COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// ADD
    Add,
    /// DEL
    Del,
    /// CHECK
    Check,
    /// GC
    Gc,
    /// STATUS
    Status,
    /// VERSION
    Version,
}

/// What the environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// CNI_CONTAINERID, valid.
    pub container_id: String,
    /// CNI_IFNAME, valid.
    pub ifname: String,
    /// CNI_NETNS; empty where DEL has none.
    pub netns: String,
    /// CNI_NETNS_OVERRIDE: the namespace may be the node's own.
    pub netns_override: bool,
    /// The pod, from CNI_ARGS.
    pub pod: Option<PodRef>,
    /// `IP` of CNI_ARGS: an address asked for, where the configuration names none.
    pub ip: Option<String>,
    /// CNI_PATH.
    pub path: Vec<PathBuf>,
}

fn wrong(msg: impl Into<String>) -> CniError {
    CniError::new(code::ENVIRONMENT, msg)
}

impl Command {
    /// Reads CNI_COMMAND.
    ///
    /// # Errors
    /// Code 4.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        Ok(match variable("CNI_COMMAND").as_deref() {
            Some("ADD") => Self::Add,
            Some("DEL") => Self::Del,
            Some("CHECK") => Self::Check,
            Some("GC") => Self::Gc,
            Some("STATUS") => Self::Status,
            Some("VERSION") => Self::Version,
            None | Some("") => return Err(wrong("CNI_COMMAND is missing")),
            Some(other) => {
                return Err(wrong(format!(
                    "CNI_COMMAND {other:?} is not ADD, DEL, CHECK, GC, STATUS or VERSION"
                )));
            }
        })
    }
}

impl Environment {
    /// Reads what `command` needs, all that is wrong with it in one error.
    ///
    /// # Errors
    /// Code 4.
    pub fn read(command: Command, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let get = |name| variable(name).filter(|v| !v.is_empty());
        let of_one = matches!(command, Command::Add | Command::Del | Command::Check);
        let mut faults = Vec::new();
        let mut required = |name, needed: bool| {
            let value = get(name);
            if needed && value.is_none() {
                faults.push(format!("{name} is missing"));
            }
            value.unwrap_or_default()
        };
        let container_id = required("CNI_CONTAINERID", of_one);
        let ifname = required("CNI_IFNAME", of_one);
        let netns = required("CNI_NETNS", matches!(command, Command::Add | Command::Check));
        if of_one && !container_id.is_empty() && !is_identifier(&container_id) {
            faults.push(format!(
                "CNI_CONTAINERID {container_id:?} must be letters, digits, '.', '_' and '-', beginning with a letter or digit"
            ));
        }
        // Both together name a file.
        if container_id.len() + ifname.len() > 200 {
            faults.push("CNI_CONTAINERID is longer than 200 bytes".to_owned());
        }
        if of_one && !ifname.is_empty() && !is_ifname(&ifname) {
            faults.push(format!(
                "CNI_IFNAME {ifname:?} is no interface name: at most 15 bytes, not '.' or '..', without '/', ':' or white space"
            ));
        }
        let (pod, ip) = match arguments(get("CNI_ARGS").as_deref().unwrap_or_default()) {
            Ok(arguments) => arguments,
            Err(fault) => {
                // DEL and GC must not fail for what they do not use.
                if matches!(command, Command::Add) {
                    faults.push(fault);
                }
                (None, None)
            }
        };
        if !faults.is_empty() {
            return Err(wrong(faults.join("; ")));
        }
        let netns_override = get("CNI_NETNS_OVERRIDE")
            .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "t" | "true"));
        let path = get("CNI_PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
        Ok(Self { container_id, ifname, netns, netns_override, pod, ip, path })
    }
}

/// Whether a string may be a container ID or a network name.
pub fn is_identifier(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn is_ifname(s: &str) -> bool {
    !s.is_empty()
        && s.len() <= 15
        && s != "."
        && s != ".."
        && !s.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

/// The pod, and the address asked for.
fn arguments(args: &str) -> Result<(Option<PodRef>, Option<String>), String> {
    let mut known = BTreeMap::new();
    let mut unknown = Vec::new();
    let mut ignore_unknown = false;
    for arg in args.split(';').filter(|a| !a.is_empty()) {
        let (key, value) =
            arg.split_once('=').ok_or_else(|| format!("CNI_ARGS: {arg:?} is not KEY=VALUE"))?;
        match key {
            "IgnoreUnknown" => {
                ignore_unknown = matches!(value.to_ascii_lowercase().as_str(), "1" | "t" | "true");
            }
            "IP" | "K8S_POD_NAMESPACE" | "K8S_POD_NAME" | "K8S_POD_UID" | "K8S_POD_INFRA_CONTAINER_ID" => {
                known.insert(key, value.to_owned());
            }
            _ => unknown.push(key),
        }
    }
    if !unknown.is_empty() && !ignore_unknown {
        return Err(format!("CNI_ARGS: unknown {}, and no IgnoreUnknown=1", unknown.join(", ")));
    }
    let mut take = |key| known.remove(key).filter(|v: &String| !v.is_empty());
    let ip = take("IP");
    match (take("K8S_POD_NAMESPACE"), take("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => Ok((Some(PodRef { namespace, name, uid: take("K8S_POD_UID") }), ip)),
        // podman tells the container's name alone; Kubernetes always tells both.
        (None, _) => Ok((None, ip)),
        (Some(_), None) => Err("CNI_ARGS: K8S_POD_NAMESPACE without K8S_POD_NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(command: Command, variables: &[(&str, &str)]) -> Result<Environment, CniError> {
        Environment::read(command, &|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn all_that_is_missing_is_named() {
        let error = read(Command::Add, &[]).unwrap_err();
        assert_eq!(error.code, 4);
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            assert!(error.msg.contains(name), "{}", error.msg);
        }
        assert!(read(Command::Del, &[("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")]).is_ok());
        assert!(read(Command::Gc, &[]).is_ok() && read(Command::Status, &[]).is_ok());
    }

    #[test]
    fn identifiers_and_interface_names() {
        let try_id = |id| read(Command::Del, &[("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")]);
        for good in ["a", "0", "A.b_c-9"] {
            assert!(try_id(good).is_ok(), "{good}");
        }
        for bad in [".a", "-a", "a/b", "a b", "a:b", "..", "ü", "a\n", &"x".repeat(300)] {
            assert_eq!(try_id(bad).unwrap_err().code, 4, "{bad}");
        }
        let try_name = |name| read(Command::Del, &[("CNI_CONTAINERID", "a"), ("CNI_IFNAME", name)]);
        for good in ["eth0", "net1.5", "abcdefghijklmno"] {
            assert!(try_name(good).is_ok(), "{good}");
        }
        for bad in [".", "..", "a/b", "a:b", "a b", "abcdefghijklmnop", "a\t"] {
            assert_eq!(try_name(bad).unwrap_err().code, 4, "{bad}");
        }
    }

    #[test]
    fn the_pod_is_read_from_the_arguments() {
        let pod = |args| {
            let base =
                [("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "e"), ("CNI_NETNS", "/n"), ("CNI_ARGS", args)];
            read(Command::Add, &base).map(|e| e.pod)
        };
        let full = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=u;FOO=b";
        let expected = PodRef { namespace: "ns".into(), name: "p".into(), uid: Some("u".into()) };
        assert_eq!(pod(full).unwrap(), Some(expected));
        assert_eq!(pod("").unwrap(), None);
        assert_eq!(pod("IgnoreUnknown=true;FOO=bar").unwrap(), None);
        assert_eq!(pod("IgnoreUnknown=1;K8S_POD_NAME=podmans").unwrap(), None);
        for bad in ["FOO=bar", "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns", "nonsense"] {
            assert_eq!(pod(bad).unwrap_err().code, 4, "{bad}");
        }
    }
}
