//! A handful of Kubernetes' own tests; `cargo xtask conformance` runs them all.

use fairlead_tests::kubernetes::{Kubernetes, specs};

/// Some of each kind, by the names of the specs. (Those of Services ask a name server, those of host ports leave chains of
/// `portmap` behind.)
const SPECS: [&str; 5] = [
    "Networking Granular Checks: Pods should function for intra-pod communication: http",
    "Networking Granular Checks: Pods should function for node-pod communication: http",
    "Netpol NetworkPolicy between server and client should support a 'default-deny-ingress' policy",
    "Netpol NetworkPolicy between server and client should enforce policy based on Ports",
    "Netpol NetworkPolicy between server and client should allow egress access to server in CIDR block",
];

/// Each of them is there, was run, and passed.
pub(super) async fn specs_pass(cluster: &Kubernetes) {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("specs.json");
    specs::run(cluster, &SPECS.join("|"), "SCTP", &report).await.unwrap();
    let mut ran = specs::read(&report).unwrap();
    ran.retain(|_, outcome| outcome.state != "skipped");
    let said = std::fs::read_to_string(report.with_extension("log")).unwrap_or_default();
    for spec in SPECS {
        assert!(ran.keys().any(|name| name.contains(spec)), "{spec} was not run: {said}");
    }
    for (name, outcome) in ran {
        assert_eq!(outcome.state, "passed", "{name}: {}\n{said}", outcome.message);
    }
}
