//! `cargo xtask demo`: builds, then runs the demonstration of the `tests` crate.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use crate::process::Privilege;
use crate::{build, process, setup, workspace};

/// Arguments of `demo`.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave nodes and pods up at the end, and say how to look around. Ctrl-C takes them down.
    #[arg(long)]
    keep: bool,
}

/// Builds and runs it.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::bpffs()?;
    build::run(&build::Options::default())?;
    process::run(build::host_cargo("build").args(["--package", "fairlead-tests", "--bin", "demo"]))?;
    let mut demo = Privilege::detect().command(workspace::target().join("debug/demo"))?;
    demo.arg("--manifests").arg(workspace::root().join("manifests"));
    if options.keep {
        demo.arg("--keep");
    }
    let status = demo.stdin(Stdio::inherit()).status().context("cannot run the demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
