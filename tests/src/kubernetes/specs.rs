//! Kubernetes' own tests of the network, run against a cluster.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Kubernetes, built};
use crate::control_plane::log_to;

/// How many specs at the same time: they wait for what is denied to time out.
const PROCESSES: &str = "6";

/// How a spec ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Ginkgo's word for it: `passed`, `failed`, `skipped` and so on.
    pub state: String,
    /// Why it failed.
    pub message: String,
}

/// Ginkgo's report of one suite.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    message: String,
}

/// Runs the specs whose names match `focus`, without those that match `skip`, in the control plane's network
/// namespace. What came out is in `report`, what they printed beside it.
///
/// # Errors
/// When they could not be run; not when specs failed.
pub async fn run(cluster: &Kubernetes, focus: &str, skip: &str, report: &Path) -> Result<()> {
    // A report of before must not be taken for this one's.
    let _ = std::fs::remove_file(report);
    let log = report.with_extension("log");
    let folder = report.parent().context("no folder")?.to_owned();
    // ginkgo starts processes of its own. They are below it in a process namespace, and so end with it.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--mount-proc", "--fork", "--kill-child=SIGKILL", "--"])
        .arg(built("ginkgo").join("ginkgo"))
        .arg(format!("--procs={PROCESSES}"))
        .args(["--no-color", "--timeout=3h", "--keep-going"])
        .arg(format!("--focus={focus}"))
        .arg(format!("--skip={skip}"))
        .arg(format!("--output-dir={}", folder.display()))
        .arg(format!("--json-report={}", report.file_name().context("no name")?.to_string_lossy()))
        .arg(built("e2e").join("e2e.test"))
        .arg("--")
        .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
        .arg(format!("--kubectl-path={}", built("node").join("kubectl").display()))
        .args(["--provider=skeleton", "--num-nodes=2", "--disable-log-dump"])
        .env("HOME", cluster.folder())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let _ = std::fs::remove_file(&log);
    log_to(&mut command, &log)?;
    command.stdin(Stdio::null());
    let mut child = cluster.namespace().run(move || command.spawn()).await??;
    let status = tokio::task::spawn_blocking(move || child.wait()).await??;
    if !report.exists() {
        bail!("the specs ended with {status}, and no report: {}", log.display());
    }
    Ok(())
}

/// How each spec of a report ended, by its name; those that were not selected were skipped.
///
/// # Errors
/// When it is not there, or no report.
pub fn read(report: &Path) -> Result<BTreeMap<String, Outcome>> {
    let text = std::fs::read_to_string(report).with_context(|| format!("no {}", report.display()))?;
    let suites: Vec<Suite> = serde_json::from_str(&text)?;
    let mut states = BTreeMap::new();
    for spec in suites.into_iter().flat_map(|s| s.spec_reports.unwrap_or_default()) {
        if spec.leaf_node_type != "It" {
            continue;
        }
        let mut words = spec.container_hierarchy_texts.unwrap_or_default();
        words.push(spec.leaf_node_text);
        let name = words.join(" ");
        states.insert(name, Outcome { state: spec.state, message: spec.failure.message });
    }
    Ok(states)
}
