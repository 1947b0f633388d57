//! What it was measured on.

use std::process::Command;

/// What a program prints first, or nothing.
fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned)
}

/// A value of a "key: value" or "KEY=value" file.
fn value(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    let value = line.split_once([':', '=']).map(|(_, v)| v)?;
    Some(value.trim().trim_matches('"').to_owned())
}

/// The machine in one line.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let model = value("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory = value("/proc/meminfo", "MemTotal")
        .and_then(|m| m.split(' ').next()?.parse::<u64>().ok())
        .map_or_else(String::new, |kib| format!(", {} GiB", (kib + (1 << 19)) >> 20));
    let virtual_machine =
        value("/proc/cpuinfo", "flags").is_some_and(|f| f.split(' ').any(|w| w == "hypervisor"));
    let kind = if virtual_machine { ", a virtual machine" } else { "" };
    format!("{model}, {cores} cores{memory}{kind}")
}

/// The kernel's release.
pub(crate) fn kernel() -> String {
    first_line("uname", &["-r"]).unwrap_or_else(|| "unknown".to_owned())
}

/// The distribution.
pub(crate) fn system() -> String {
    value("/etc/os-release", "PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned())
}

/// The commit that is checked out in `root`, marked where files differ from it.
pub(crate) fn commit(root: &std::path::Path) -> String {
    let root = root.display().to_string();
    // Whoever runs this as root need not own the checkout.
    let safe = format!("safe.directory={root}");
    first_line("git", &["-c", &safe, "-C", &root, "describe", "--always", "--dirty", "--exclude=*"])
        .unwrap_or_else(|| "unknown commit".to_owned())
}

/// Versions of the Debian packages that Fairlead is measured beside and with.
pub(crate) fn packages() -> Vec<(String, String)> {
    ["containernetworking-plugins", "iptables", "ipset", "nftables", "iperf3", "sockperf"]
        .iter()
        .filter_map(|name| {
            let version = first_line("dpkg-query", &["-W", "-f=${Version}", name])?;
            Some(((*name).to_owned(), version))
        })
        .collect()
}
