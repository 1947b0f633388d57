//! Taking away everything that Fairlead has made on a node, and looking for what is left.
//!
//! What is found is found by looking at the node, not by remembering: an agent that was killed, an older
//! version or half an uninstall leave the same kinds of things.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use fairlead_api::{Attachment, CONFLIST, RunDir};
use futures_util::TryStreamExt as _;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use serde::Serialize;

use super::install::PLUGIN;
use crate::network::links::OVERLAY;
use crate::network::{PROTOCOL, put_back, remove_table, sysctl_journal};

/// Where things of Fairlead's lie on a node.
#[derive(Clone, Debug)]
pub struct Places {
    /// Run directory.
    pub run: RunDir,
    /// Directory in a BPF file system.
    pub bpffs: PathBuf,
    /// Directory of CNI configurations.
    pub cni_conf_dir: PathBuf,
    /// Directory of CNI plugins.
    pub cni_bin_dir: PathBuf,
}

/// Something of Fairlead's on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// What it is: interface, route, rule, pin or file.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// What was found, with what it takes to remove it.
#[derive(Debug, Default)]
struct Found {
    interfaces: Vec<(String, u32)>,
    routes: Vec<RouteMessage>,
    rules: Vec<RuleMessage>,
    pins: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

/// What an uninstall did.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was there.
    pub found: Vec<Trace>,
    /// What could not be removed, and why.
    pub problems: Vec<String>,
    /// What is there still, where that was looked for.
    pub left: Vec<Trace>,
}

/// Takes everything away, goes on after errors, and looks once more if asked to.
///
/// # Errors
/// Where an agent runs, which would make it all again; and where the node cannot be looked at.
pub async fn uninstall(places: &Places, verify: bool) -> io::Result<Report> {
    let lock = match File::options().write(true).open(places.run.lock()) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Some(file),
            Err(fs::TryLockError::WouldBlock) => {
                return Err(io::Error::other(
                    "an agent runs on this node: end it first (delete the DaemonSet)",
                ));
            }
            Err(fs::TryLockError::Error(e)) => return Err(e),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let driver = tokio::spawn(connection);
    let found = Found::of(places, &handle).await?;
    let mut report = Report { found: found.traces(), ..Report::default() };
    report.problems = found.remove(places, &handle).await;
    drop(lock);
    if verify {
        report.left = Found::of(places, &handle).await?.traces();
    }
    driver.abort();
    Ok(report)
}

impl Found {
    async fn of(places: &Places, handle: &Handle) -> io::Result<Self> {
        let mut found = Self {
            interfaces: interfaces(handle, &attached(&places.run)).await?,
            routes: routes(handle).await?,
            rules: rules(handle).await?,
            ..Self::default()
        };
        below(&places.bpffs, &mut found.pins)?;
        for path in [places.cni_conf_dir.join(CONFLIST), places.run.path().to_owned()] {
            below(&path, &mut found.files)?;
        }
        // Beside the plugin: what an interrupted install has left.
        for name in [PLUGIN.to_owned(), format!(".{PLUGIN}.new")] {
            below(&places.cni_bin_dir.join(name), &mut found.files)?;
        }
        Ok(found)
    }

    fn traces(&self) -> Vec<Trace> {
        let trace = |kind, name| Trace { kind, name };
        let paths = |kind, paths: &[PathBuf]| {
            let traces: Vec<_> = paths.iter().map(|p| trace(kind, p.display().to_string())).collect();
            traces
        };
        let interfaces = self.interfaces.iter().map(|(name, _)| trace("interface", name.clone()));
        let routes = self.routes.iter().map(|route| trace("route", shown(route)));
        let rules = self.rules.iter().map(|rule| trace("rule", format!("{:?}", rule.attributes)));
        interfaces
            .chain(routes)
            .chain(rules)
            .chain(paths("pin", &self.pins))
            .chain(paths("file", &self.files))
            .collect()
    }

    /// Removes it, in an order in which nothing new comes of it: the runtime's configuration first.
    async fn remove(self, places: &Places, handle: &Handle) -> Vec<String> {
        let mut problems = Vec::new();
        let mut failed = |what: &str, e: &dyn fmt::Display| problems.push(format!("{what}: {e}"));
        let conflist = places.cni_conf_dir.join(CONFLIST);
        if let Err(e) = gone(fs::remove_file(&conflist)) {
            failed(&conflist.display().to_string(), &e);
        }
        for (name, index) in self.interfaces {
            if let Err(e) = handle.link().del(index).execute().await
                && !is_gone(&e)
            {
                failed(&format!("interface {name}"), &e);
            }
        }
        for route in self.routes {
            let name = shown(&route);
            // Some went with their interface.
            if let Err(e) = handle.route().del(route).execute().await
                && !is_gone(&e)
            {
                failed(&format!("route {name}"), &e);
            }
        }
        for rule in self.rules {
            if let Err(e) = handle.rule().del(rule).execute().await
                && !is_gone(&e)
            {
                failed("rule", &e);
            }
        }
        if let Err(e) = remove_table() {
            failed("nftables", &e);
        }
        for problem in put_back(&sysctl_journal(&places.run)) {
            failed("settings", &problem);
        }
        // Links that are pinned there end with their pins, and so do the programs of the uplink.
        for folder in [&places.bpffs, places.run.path()] {
            if let Err(e) = gone(fs::remove_dir_all(folder)) {
                failed(&folder.display().to_string(), &e);
            }
        }
        for name in [PLUGIN.to_owned(), format!(".{PLUGIN}.new")] {
            let path = places.cni_bin_dir.join(name);
            if let Err(e) = gone(fs::remove_file(&path)) {
                failed(&path.display().to_string(), &e);
            }
        }
        problems
    }
}

/// That something is not there is what was wanted.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_gone(e: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(e) = e else { return false };
    [libc::ENODEV, libc::ESRCH, libc::ENOENT].contains(&e.raw_code().abs())
}

/// A path and all that is below it, deepest last.
fn below(path: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    found.push(path.to_owned());
    if metadata.is_dir() {
        let mut entries = fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        for entry in entries {
            below(&entry, found)?;
        }
    }
    Ok(())
}

/// Names of interfaces that attachments have recorded.
fn attached(run: &RunDir) -> BTreeSet<String> {
    let entries = fs::read_dir(run.endpoints()).into_iter().flatten().flatten();
    let read = entries.filter_map(|entry| fs::read(entry.path()).ok());
    read.filter_map(|text| Some(serde_json::from_slice::<Attachment>(&text).ok()?.host_ifname)).collect()
}

/// Interfaces that have been recorded, or are named as only Fairlead names them.
async fn interfaces(handle: &Handle, recorded: &BTreeSet<String>) -> io::Result<Vec<(String, u32)>> {
    let mut found = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(io::Error::other)? {
        for attribute in &link.attributes {
            if let LinkAttribute::IfName(name) = attribute
                && (recorded.contains(name) || is_ours(name))
            {
                found.push((name.clone(), link.header.index));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// `fl` with 13 digits of base 32, as [`fairlead_cni::ledger::host_ifname`] makes them; and devices of
/// the node that are Fairlead's by name.
fn is_ours(name: &str) -> bool {
    let digit = |b: u8| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b);
    name.strip_prefix("fl").is_some_and(|rest| rest.len() == 13 && rest.bytes().all(digit)) || name == OVERLAY
}

async fn routes(handle: &Handle) -> io::Result<Vec<RouteMessage>> {
    let mut found = Vec::new();
    let queries = [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ];
    for query in queries {
        let mut routes = handle.route().get(query).execute();
        while let Some(route) = routes.try_next().await.map_err(io::Error::other)? {
            if route.header.protocol == PROTOCOL {
                found.push(route);
            }
        }
    }
    Ok(found)
}

async fn rules(handle: &Handle) -> io::Result<Vec<RuleMessage>> {
    let mut found = Vec::new();
    for family in [IpVersion::V4, IpVersion::V6] {
        let mut rules = handle.rule().get(family).execute();
        while let Some(rule) = rules.try_next().await.map_err(io::Error::other)? {
            let ours =
                |a: &RuleAttribute| matches!(a, RuleAttribute::Protocol(protocol) if *protocol == PROTOCOL);
            if rule.attributes.iter().any(ours) {
                found.push(rule);
            }
        }
    }
    Ok(found)
}

/// A route's destination, for people.
pub(super) fn shown(route: &RouteMessage) -> String {
    use netlink_packet_route::route::{RouteAddress, RouteAttribute};
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(a)) => Some(a.to_string()),
        RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some(a.to_string()),
        _ => None,
    });
    let length = route.header.destination_prefix_length;
    to.map_or_else(|| "default".to_owned(), |to| format!("{to}/{length}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_fairlead_names_is_its_own() {
        for id in ["a", "0123456789abcdef"] {
            let owner = fairlead_ipam::Owner { container_id: id.to_owned(), ifname: "eth0".to_owned() };
            let name = fairlead_cni::ledger::host_ifname(&owner);
            assert!(is_ours(&name), "{name}");
        }
        for other in ["eth0", "flannel.1", "fl", "flabcdefghijk01", "cali0123456789a", "lo"] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
