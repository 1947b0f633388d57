//! Kubernetes' own tests of the network, run against Fairlead on a real cluster, and their table.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is for people")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;
use fairlead_tests::control_plane::log_to;
use fairlead_tests::kubernetes::{Families, Kubernetes, Options, Proxy, built};
use serde::Deserialize;

/// What is run: by the names of the specs.
const FOCUS: &str = r"Netpol|Networking Granular Checks: Pods|\[sig-network\] HostPort|Services should serve a basic endpoint from pods";
/// What cannot run, as a part of its name, and why.
const UNABLE: (&str, &str) = ("SCTPConnectivity", "needs SCTP sockets, which the kernel here lacks");
/// How many specs at the same time: they wait for what is denied to time out.
const PROCESSES: &str = "3";

/// The clusters on which they are run.
const CLUSTERS: [(&str, Options); 4] = [
    ("iptables, IPv4", Options { proxy: Proxy::Iptables, families: Families::V4 }),
    ("nftables, IPv4", Options { proxy: Proxy::Nftables, families: Families::V4 }),
    ("iptables, dual stack", Options { proxy: Proxy::Iptables, families: Families::Dual }),
    ("nftables, IPv6 first", Options { proxy: Proxy::Nftables, families: Families::DualV6 }),
];

/// Kubernetes' own tests of the network.
#[derive(Parser)]
struct Arguments {
    /// Image of Fairlead.
    #[arg(long)]
    image: PathBuf,
    /// Folder for reports; what others have left there is put into the table too.
    #[arg(long)]
    reports: PathBuf,
    /// The table.
    #[arg(long)]
    document: PathBuf,
    /// Only clusters whose names contain this.
    #[arg(long)]
    cluster: Option<String>,
    /// Only specs whose names match this: once more, after a run of all, which the table says.
    #[arg(long)]
    focus: Option<String>,
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = async {
        tokio::select! {
            result = conform(&arguments) => result,
            signal = Kubernetes::interrupted() => signal.and_then(|()| bail!("interrupted")),
        }
    };
    match run.await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn conform(arguments: &Arguments) -> Result<bool> {
    std::fs::create_dir_all(&arguments.reports).context("cannot make the folder of reports")?;
    let wanted = |name: &str| arguments.cluster.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let mut good = true;
    for (name, options) in CLUSTERS.iter().filter(|(name, _)| wanted(name)) {
        println!("{name}: starting a cluster");
        let cluster = Kubernetes::start(*options).await?;
        cluster.install(&arguments.image).await?;
        cluster.await_ready().await?;
        cluster.install_dns().await?;
        cluster.await_pods("kube-system").await?;
        let report = report(&arguments.reports, name, arguments.focus.is_some());
        run_specs(&cluster, arguments.focus.as_deref().unwrap_or(FOCUS), &report).await?;
        for (spec, (state, message)) in read(&report)? {
            if state == "failed" {
                good = false;
                println!(
                    "{name}: failed: {spec}\n{}",
                    message.lines().take(5).collect::<Vec<_>>().join("\n")
                );
            }
        }
    }
    std::fs::write(&arguments.document, document(&arguments.reports)?).context("cannot write the table")?;
    Ok(good)
}

/// The report of a cluster: of all specs, or of those that were run once more.
fn report(folder: &Path, name: &str, again: bool) -> PathBuf {
    let again = if again { ".again" } else { "" };
    folder.join(format!("{}{again}.json", name.replace([',', ' '], "-")))
}

/// Runs the specs in the control plane's network namespace.
async fn run_specs(cluster: &Kubernetes, focus: &str, report: &Path) -> Result<()> {
    // A report of before must not be taken for this one's.
    let _ = std::fs::remove_file(report);
    let log = report.with_extension("log");
    let folder = report.parent().context("no folder")?.to_owned();
    let mut command = Command::new(built("ginkgo").join("ginkgo"));
    command
        .arg(format!("--procs={PROCESSES}"))
        .args(["--no-color", "--timeout=3h", "--keep-going"])
        .arg(format!("--focus={focus}"))
        .arg(format!("--skip={}", UNABLE.0))
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

/// State and message of each spec by its name.
fn read(report: &Path) -> Result<BTreeMap<String, (String, String)>> {
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
        states.insert(name, (spec.state, spec.failure.message));
    }
    Ok(states)
}

/// The table of everything that has been run.
fn document(reports: &Path) -> Result<String> {
    let mut columns = Vec::new();
    let mut rows: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    for (name, _) in CLUSTERS {
        let path = report(reports, name, false);
        if !path.exists() {
            continue;
        }
        let again = report(reports, name, true);
        let again = if again.exists() { read(&again)? } else { BTreeMap::new() };
        for (spec, (mut state, _)) in read(&path)? {
            if state == "failed" && again.get(&spec).is_some_and(|(state, _)| state == "passed") {
                state = "passed in a second run".to_owned();
            }
            let selected = state != "skipped" || spec.contains(UNABLE.0);
            let netpol = spec.contains("Netpol");
            if selected && (netpol || !spec.contains(UNABLE.0)) {
                rows.entry(spec).or_default().insert(columns.len(), state);
            }
        }
        columns.push(name);
    }
    let count = |column: usize, netpol: bool| {
        let states = rows.iter().filter(|(spec, _)| spec.contains("Netpol") == netpol);
        let states: Vec<_> = states.filter_map(|(_, states)| states.get(&column)).collect();
        (states.iter().filter(|s| s.starts_with("passed")).count(), states.len())
    };
    let mut text = String::from(
        "# Conformance\n\nKubernetes' own tests of the network, from the module `k8s.io/kubernetes` that \
         `tests/kubernetes/go.mod` names, run by\n`cargo xtask conformance`, which writes this file: a cluster of two \
         nodes (containerd, kubelets, kube-proxy), Fairlead installed by\n`manifests/fairlead.yaml`, one run each. \
         The columns are kube-proxy's mode and the families of addresses.\n\n| | ",
    );
    let _ = writeln!(text, "{} |\n|---|{}", columns.join(" | "), "---|".repeat(columns.len()));
    for (label, netpol) in [("`Netpol`, passed of 50", true), ("others, passed", false)] {
        let cells: Vec<String> = (0..columns.len())
            .map(|column| match count(column, netpol) {
                (passed, _) if netpol => format!("{passed}"),
                (passed, all) => format!("{passed} of {all}"),
            })
            .collect();
        let _ = writeln!(text, "| {label} | {} |", cells.join(" | "));
    }
    let _ = writeln!(
        text,
        "\nThree of the 50 (`{}`) cannot run: it {}. Each of the others is in the table.\n\n| spec | {} |\n|---|{}",
        UNABLE.0,
        UNABLE.1,
        columns.join(" | "),
        "---|".repeat(columns.len())
    );
    for (spec, states) in &rows {
        let cells: Vec<&str> = (0..columns.len())
            .map(|column| match states.get(&column).map(String::as_str) {
                Some("skipped") => "needs SCTP",
                Some(state) => state,
                None => "not run",
            })
            .collect();
        let name = spec.replace("[sig-network] ", "").replace('|', "\\|");
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    Ok(text)
}
