//! `fairlead install`, `uninstall`, `doctor` and `mount-bpffs`: what is done to the node, without an agent.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use fairlead_api::status::Status;
use fairlead_api::{BPFFS, CNI_CONF_DIR, RunDir};
use serde_json::{Value, json};

use super::{Answer, Asking};
use crate::host::doctor::{self, Finding, Severity};
use crate::host::uninstall::{self, Places, Report};
use crate::host::{bpffs, install};

/// What is done to the node.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put the CNI plugin where the container runtime looks for it.
    Install {
        /// Where to.
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        to: PathBuf,
        /// Where it lies [default: beside this executable].
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
    },
    /// Take away everything that Fairlead has made on this node. No agent may run. Exit code 1 where
    /// something is left.
    Uninstall {
        /// Look once more, and list what is left.
        #[arg(long)]
        verify: bool,
        /// Directory in a BPF file system.
        #[arg(long, value_name = "DIR", default_value = BPFFS)]
        bpffs: PathBuf,
        /// Directory of CNI configurations.
        #[arg(long, value_name = "DIR", default_value = CNI_CONF_DIR)]
        cni_conf_dir: PathBuf,
        /// Directory of CNI plugins.
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        cni_bin_dir: PathBuf,
    },
    /// What in this node's environment stands in the way of pods' packets, and what to do about it. Exit code 1 where
    /// something does. Changes nothing.
    Doctor {
        /// Directory in a BPF file system.
        #[arg(long, value_name = "DIR", default_value = BPFFS)]
        bpffs: PathBuf,
        /// Directory of CNI configurations.
        #[arg(long, value_name = "DIR", default_value = CNI_CONF_DIR)]
        cni_conf_dir: PathBuf,
        /// Directory of CNI plugins.
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        cni_bin_dir: PathBuf,
    },
    /// Mount the BPF file system, unless it is mounted.
    MountBpffs {
        /// Where.
        #[arg(value_name = "DIR", default_value = "/sys/fs/bpf")]
        folder: PathBuf,
    },
}

pub(super) fn run(command: &Command, asking: &Asking, out: &mut impl Write) -> anyhow::Result<Answer> {
    match command {
        Command::Install { to, from } => {
            let beside = std::env::current_exe()?;
            let from = from.as_deref().or(beside.parent()).unwrap_or(Path::new("/"));
            let changed = install::install(from, to).with_context(|| {
                format!("cannot install {} from {} to {}", install::PLUGIN, from.display(), to.display())
            })?;
            let value = json!({"installed": to.join(install::PLUGIN), "changed": changed});
            Ok(done(asking, out, &value, if changed { "installed" } else { "is there already" }))
        }
        Command::Uninstall { verify, bpffs, cni_conf_dir, cni_bin_dir } => {
            let places = Places {
                run: RunDir(asking.run_dir.clone()),
                bpffs: bpffs.clone(),
                cni_conf_dir: cni_conf_dir.clone(),
                cni_bin_dir: cni_bin_dir.clone(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let report = runtime.block_on(uninstall::uninstall(&places, *verify))?;
            let clean = report.problems.is_empty() && report.left.is_empty();
            let value = serde_json::to_value(&report)?;
            let printed = asking.print(out, &value, |out| uninstalled(out, &report, *verify));
            Ok(Answer { code: u8::from(!clean), printed })
        }
        Command::Doctor { bpffs, cni_conf_dir, cni_bin_dir } => {
            let places = Places {
                run: RunDir(asking.run_dir.clone()),
                bpffs: bpffs.clone(),
                cni_conf_dir: cni_conf_dir.clone(),
                cni_bin_dir: cni_bin_dir.clone(),
            };
            // Before an install there is no agent to ask.
            let status = asking.client.get::<Status>("/v1/status").ok();
            let uplink = status.and_then(|status| status.uplink);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let findings = runtime.block_on(doctor::examine(&places, uplink.as_deref()))?;
            let trouble = findings.iter().any(|f| f.severity == Severity::Trouble);
            let value = json!({"fine": !trouble, "findings": findings});
            let printed = asking.print(out, &value, |out| examined(out, asking, &findings));
            Ok(Answer { code: u8::from(trouble), printed })
        }
        Command::MountBpffs { folder } => {
            let changed = bpffs::mount_bpffs(folder)
                .with_context(|| format!("cannot mount the BPF file system at {}", folder.display()))?;
            let value = json!({"mounted": folder, "changed": changed});
            Ok(done(asking, out, &value, if changed { "mounted" } else { "is mounted already" }))
        }
    }
}

/// Says what was done.
fn done(asking: &Asking, out: &mut impl Write, value: &Value, text: &str) -> Answer {
    Answer { code: 0, printed: asking.print(out, value, |out| writeln!(out, "{text}")) }
}

/// What was looked at.
fn examined(out: &mut impl Write, asking: &Asking, findings: &[Finding]) -> io::Result<()> {
    for Finding { check, severity, what, remedy } in findings {
        let word = match severity {
            Severity::Fine => asking.style.good("fine     "),
            Severity::Note => "note     ".to_owned(),
            Severity::Trouble => asking.style.bad("TROUBLE  "),
        };
        writeln!(out, "{word} {check}: {what}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "           remedy: {remedy}")?;
        }
    }
    let trouble = findings.iter().filter(|f| f.severity == Severity::Trouble).count();
    match trouble {
        0 => writeln!(out, "nothing stands in the way"),
        n => writeln!(out, "{n} things stand in the way"),
    }
}

/// What an uninstall did.
fn uninstalled(out: &mut impl Write, report: &Report, verified: bool) -> io::Result<()> {
    for trace in &report.found {
        writeln!(out, "found     {trace}")?;
    }
    for problem in &report.problems {
        writeln!(out, "PROBLEM   {problem}")?;
    }
    for trace in &report.left {
        writeln!(out, "LEFT      {trace}")?;
    }
    match (verified, report.left.len()) {
        (false, _) => writeln!(out, "removed {}; --verify would look again", report.found.len()),
        (true, 0) => writeln!(out, "removed {}; nothing of Fairlead's is left", report.found.len()),
        (true, left) => writeln!(out, "removed {}; {left} are left", report.found.len().saturating_sub(left)),
    }
}
