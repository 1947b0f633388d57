//! Kubernetes' own tests of the network, run against Fairlead on a real cluster, and their table.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is for people")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use fairlead_tests::kubernetes::specs::{self, Outcome};
use fairlead_tests::kubernetes::{Families, Kubernetes, Options, Proxy};

/// What is run: by the names of the specs.
const FOCUS: &str = r"Netpol|Networking Granular Checks: Pods|\[sig-network\] HostPort|Services should serve a basic endpoint from pods";
/// What cannot run, as a part of its name, and why.
const UNABLE: (&str, &str) = ("SCTPConnectivity", "needs SCTP sockets, which the kernel here lacks");
/// Where a spec has not been run.
const ABSENT: &str = "not run";
/// What is below this in the document was written by people, and stays.
const NOTES: &str = "## Notes";

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
    /// Folder for reports; those that are there already go into the table too.
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
        let focus = arguments.focus.as_deref().unwrap_or(FOCUS);
        specs::run(&cluster, focus, UNABLE.0, &report).await?;
        for (spec, Outcome { state, message }) in specs::read(&report)? {
            if state == "failed" {
                good = false;
                println!(
                    "{name}: failed: {spec}\n{}",
                    message.lines().take(5).collect::<Vec<_>>().join("\n")
                );
            }
        }
    }
    let before = std::fs::read_to_string(&arguments.document).unwrap_or_default();
    let text = updated(&before, &arguments.reports)?;
    std::fs::write(&arguments.document, text).context("cannot write the table")?;
    Ok(good)
}

/// The report of a cluster: of all specs, or of those that were run once more.
fn report(folder: &Path, name: &str, again: bool) -> PathBuf {
    let again = if again { ".again" } else { "" };
    folder.join(format!("{}{again}.json", name.replace([',', ' '], "-")))
}

/// How the specs ended on one kind of cluster, by their names without the group's.
type Column = BTreeMap<String, String>;

/// What a report says of those that were selected.
fn column(folder: &Path, name: &str) -> Result<Column> {
    let again = report(folder, name, true);
    let again = if again.exists() { specs::read(&again)? } else { BTreeMap::new() };
    let mut column = Column::new();
    for (spec, Outcome { mut state, .. }) in specs::read(&report(folder, name, false))? {
        if state == "failed" && again.get(&spec).is_some_and(|then| then.state == "passed") {
            state = "passed in a second run".to_owned();
        }
        let unable = spec.contains(UNABLE.0);
        if state == "skipped" && unable {
            state = "needs SCTP".to_owned();
        }
        if state != "skipped" && (spec.contains("Netpol") || !unable) {
            column.insert(spec.replace("[sig-network] ", ""), state);
        }
    }
    Ok(column)
}

/// The document anew: of what was run here, and for the rest as it was.
fn updated(before: &str, reports: &Path) -> Result<String> {
    let (mut kept, notes) = parsed(before);
    let mut columns = Vec::new();
    for (name, _) in CLUSTERS {
        if report(reports, name, false).exists() {
            columns.push((name, column(reports, name)?));
        } else if let Some(column) = kept.remove(name) {
            columns.push((name, column));
        }
    }
    Ok(document(&columns, notes))
}

/// Columns of a document, and what people have written below its table.
fn parsed(document: &str) -> (BTreeMap<String, Column>, &str) {
    let (text, notes) = document.split_once(NOTES).unwrap_or((document, ""));
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim().trim_start_matches("| ").trim_end_matches(" |");
        line.split(" | ").map(|cell| cell.replace("\\|", "|")).collect()
    };
    let mut lines = text.lines().skip_while(|line| !line.starts_with("| spec |"));
    let names = lines.next().map(cells).unwrap_or_default();
    let mut columns = BTreeMap::<String, Column>::new();
    for row in lines.skip(1).filter(|line| line.starts_with("| ")).map(cells) {
        for (name, state) in names.iter().zip(&row).skip(1) {
            if state != ABSENT {
                columns.entry(name.clone()).or_default().insert(row[0].clone(), state.clone());
            }
        }
    }
    (columns, notes.trim())
}

/// The document of some columns.
fn document(columns: &[(&str, Column)], notes: &str) -> String {
    let mut text = String::from(
        "# Conformance\n\nKubernetes' own tests of the network, from the module `k8s.io/kubernetes` that \
         `tests/kubernetes/go.mod` names, run by\n`cargo xtask conformance`, which writes this file: a cluster of two \
         nodes (containerd, kubelets, kube-proxy), Fairlead installed by\n`manifests/fairlead.yaml`, one run each. \
         The columns are kube-proxy's mode and the families of addresses.\n\n",
    );
    let mut row = |first: &str, cells: &[&str]| {
        let _ = writeln!(text, "| {first} | {} |", cells.join(" | "));
    };
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let rule = vec!["---"; columns.len()];
    row("", &names);
    row("---", &rule);
    for (label, netpol) in [("`Netpol`, passed of 50", true), ("others, passed", false)] {
        let counted = columns.iter().map(|(_, column)| {
            let states = column.iter().filter(|(spec, _)| spec.contains("Netpol") == netpol);
            let (passed, all) = states.fold((0, 0), |(passed, all), (_, state)| {
                (passed + usize::from(state.starts_with("passed")), all + 1)
            });
            if netpol { format!("{passed}") } else { format!("{passed} of {all}") }
        });
        let counted: Vec<String> = counted.collect();
        row(label, &counted.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let _ = writeln!(
        text,
        "\nThree of the 50 (`{}`) cannot run: it {}. Each of the others is in the table.\n",
        UNABLE.0, UNABLE.1
    );
    let mut row = |first: &str, cells: &[&str]| {
        let _ = writeln!(text, "| {first} | {} |", cells.join(" | "));
    };
    row("spec", &names);
    row("---", &rule);
    let specs: BTreeSet<&String> = columns.iter().flat_map(|(_, column)| column.keys()).collect();
    for spec in specs {
        let cell = |column: &'_ Column| column.get(spec).map_or(ABSENT.to_owned(), String::clone);
        let cells: Vec<String> = columns.iter().map(|(_, column)| cell(column)).collect();
        row(&spec.replace('|', "\\|"), &cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    if !notes.is_empty() {
        let _ = write!(text, "\n{NOTES}\n\n{notes}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_run_again_stays_in_the_document() {
        let column = |states: &[(&str, &str)]| -> Column {
            states.iter().map(|(spec, state)| ((*spec).to_owned(), (*state).to_owned())).collect()
        };
        let first = column(&[("Netpol a | b", "passed"), ("Netpol SCTP", "needs SCTP"), ("Pods", "failed")]);
        let second = column(&[("Netpol a | b", "passed in a second run"), ("Netpol SCTP", "needs SCTP")]);
        let columns = [("iptables, IPv4", first.clone()), ("nftables, IPv4", second.clone())];
        let text = document(&columns, "By hand,\n\nin two paragraphs.");
        assert!(text.contains("| `Netpol`, passed of 50 | 1 | 1 |\n| others, passed | 0 of 1 | 0 of 0 |"));
        assert!(text.contains("| Pods | failed | not run |"));
        let (kept, notes) = parsed(&text);
        assert_eq!(notes, "By hand,\n\nin two paragraphs.");
        let wanted = columns.clone().map(|(name, column)| (name.to_owned(), column));
        assert_eq!(kept, wanted.into());
        // Without a report, everything stays.
        let none = std::env::temp_dir().join(format!("fairlead-no-reports-{}", std::process::id()));
        assert_eq!(updated(&text, &none).unwrap(), text);
    }
}
