//! `cargo xtask bench`: builds, then runs the benchmarks of the `tests` crate.

use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use crate::process::Privilege;
use crate::{build, process, setup, workspace};

/// Arguments of `bench`.
#[derive(Args)]
pub(crate) struct Options {
    /// Sections to measure; all of them where none is named.
    sections: Vec<String>,
    /// The whole grid, an hour, instead of minutes.
    #[arg(long)]
    full: bool,
    /// Rounds of each comparison, instead of each section's own number.
    #[arg(long)]
    rounds: Option<u32>,
    /// Nodes between which the datapath is measured: 1 or 2.
    #[arg(long)]
    nodes: Option<u32>,
}

/// Builds and runs them.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::test_packages()?;
    setup::bpffs()?;
    build::run(&build::Options::default())?;
    process::run(build::release(&mut build::host_cargo("build")).args([
        "--package",
        "fairlead-tests",
        "--bin",
        "fairlead-bench",
    ]))?;
    let privilege = Privilege::detect();
    let mut bench = privilege.command("env")?;
    // What agents and plugins write lies on a tmpfs on a node too.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        bench.arg(format!("TMPDIR={}", memory.display()));
    }
    bench.arg(build::built("fairlead-bench")).arg("--root").arg(workspace::root()).args(&options.sections);
    if options.full {
        bench.arg("--full");
    }
    for (flag, value) in [("--rounds", options.rounds), ("--nodes", options.nodes)] {
        if let Some(value) = value {
            bench.args([flag, &value.to_string()]);
        }
    }
    let status = bench.stdin(Stdio::inherit()).status().context("cannot run the benchmarks")?;
    if privilege == Privilege::Sudo {
        // What root has written belongs to whoever owns the checkout.
        let mut own = privilege.command("chown")?;
        own.arg("-R").arg(format!("--reference={}", workspace::root().join("Cargo.toml").display()));
        process::run(own.arg(workspace::root().join("docs")).arg(workspace::target().join("bench")))?;
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
