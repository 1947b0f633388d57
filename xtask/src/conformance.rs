//! `cargo xtask conformance`: Kubernetes' own tests of the network, on clusters of real nodes.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use crate::process::Privilege;
use crate::{build, cluster, kubernetes, process, workspace};

/// Arguments of `conformance`.
#[derive(Args)]
pub(crate) struct Options {
    /// Only clusters whose names contain this, as "iptables, IPv4".
    #[arg(long)]
    cluster: Option<String>,
    /// Only specs whose names match this: once more, after a run of all, which the table says.
    #[arg(long)]
    focus: Option<String>,
}

/// Builds and runs them, and writes docs/conformance.md.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    cluster::prepare()?;
    kubernetes::conformance()?;
    process::run(build::host_cargo("build").args(["--package", "fairlead-tests", "--bin", "conformance"]))?;
    let mut command = Privilege::detect().command(workspace::target().join("debug/conformance"))?;
    command
        .arg("--image")
        .arg(workspace::target().join("image/fairlead.tar"))
        .arg("--reports")
        .arg(workspace::target().join("conformance"))
        .arg("--document")
        .arg(workspace::root().join("docs/conformance.md"));
    for (flag, value) in [("--cluster", &options.cluster), ("--focus", &options.focus)] {
        if let Some(value) = value {
            command.args([flag, value]);
        }
    }
    let status = command.stdin(Stdio::null()).status().context("cannot run the specs")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
