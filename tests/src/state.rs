//! Everything of a node that Fairlead could have changed, to compare before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::namespace::Namespace;

/// What a command prints in the calling thread's namespaces.
///
/// # Errors
/// When it cannot be run, or fails.
pub fn said(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).output()?;
    if !output.status.success() {
        bail!("{program} {words:?}: {output:?}");
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// All files below a folder, with their contents where those can be read.
fn files(folder: &Path, all: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            all.insert(path.clone(), "a folder".to_owned());
            files(&path, all)?;
        } else {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            all.insert(path, text.trim().to_owned());
        }
    }
    Ok(())
}

/// Everything of a node that Fairlead could have changed: its network, and files below folders.
///
/// # Errors
/// When the node cannot be looked at.
pub async fn state(node: &Namespace, folders: &[&Path]) -> Result<BTreeMap<String, String>> {
    let folders: Vec<PathBuf> = folders.iter().map(|&f| f.to_owned()).collect();
    node.run(move || {
        let mut state = BTreeMap::new();
        for (name, program, words) in [
            ("links", "ip", &["-o", "link"][..]),
            ("addresses", "ip", &["-o", "address"]),
            ("routes", "ip", &["route", "show", "table", "all"]),
            ("routes6", "ip", &["-6", "route", "show", "table", "all"]),
            ("rules", "ip", &["rule"]),
            ("rules6", "ip", &["-6", "rule"]),
            ("neighbours", "ip", &["neigh", "show", "nud", "permanent"]),
            ("queues", "tc", &["qdisc"]),
            ("ingress", "tc", &["filter", "show", "dev", "eth0", "ingress"]),
            ("egress", "tc", &["filter", "show", "dev", "eth0", "egress"]),
            // Without counters, which are others'.
            ("nftables", "nft", &["--stateless", "list", "ruleset"]),
        ] {
            // Whether the kernel still looks for duplicates is no state of the node's.
            state.insert(name.to_owned(), said(program, words)?.replace(" tentative", ""));
        }
        let mut all = BTreeMap::new();
        for place in folders.iter().map(PathBuf::as_path).chain([Path::new("/proc/sys/net")]) {
            files(place, &mut all)?;
        }
        for (path, text) in all {
            state.insert(path.display().to_string(), text);
        }
        // What the kernel counts or draws by lot.
        state.retain(|name, _| {
            let varies = ["stable_secret", "nf_conntrack_count", "netdev_rss_key", "/random", "flush"];
            !varies.iter().any(|v| name.contains(v))
        });
        Ok(state)
    })
    .await?
}

/// What differs, by name.
pub fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differs = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    differs.map(|name| format!("{name}: {:?} -> {:?}", before.get(name), after.get(name))).collect()
}
