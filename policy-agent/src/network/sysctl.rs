//! Kernel settings of this network namespace.

use std::fs;

/// Sets what routing pods needs; returns what could not be set.
pub(super) fn set(uplink: &str, ipv6: bool) -> Vec<String> {
    let mut problems = Vec::new();
    let mut ensure = |name: &str, good: &[&str], value: &str| {
        // Interface names may contain dots, so names are paths here.
        let path = format!("/proc/sys/net/{name}");
        let there = fs::read_to_string(&path).unwrap_or_default();
        if good.contains(&there.trim()) {
            return;
        }
        if let Err(e) = fs::write(&path, value) {
            problems
                .push(format!("sysctl net/{name} is {:?} and cannot be set to {value}: {e}", there.trim()));
        }
    };
    ensure("ipv4/ip_forward", &["1"], "1");
    // Loose: a pod's answer may leave by another way than its question came.
    ensure(&format!("ipv4/conf/{uplink}/rp_filter"), &["0", "2"], "2");
    if ipv6 {
        // A router heeds router advertisements only where it is told so.
        let accept_ra = format!("/proc/sys/net/ipv6/conf/{uplink}/accept_ra");
        if fs::read_to_string(accept_ra).is_ok_and(|v| v.trim() == "1") {
            ensure(&format!("ipv6/conf/{uplink}/accept_ra"), &["2"], "2");
        }
        ensure("ipv6/conf/all/forwarding", &["1"], "1");
    }
    problems
}
