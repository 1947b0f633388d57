//! Every developer command of the project, and the bootstrap of its BPF toolchain.
//!
//! `cargo xtask COMMAND`: on a bare Debian 12 with rustup each command first sets up what it needs.
#![expect(clippy::print_stdout, reason = "a command-line tool: its output is for people")]

mod bench;
mod bpf_toolchain;
mod build;
mod cluster;
mod conformance;
mod costs;
mod demo;
mod doctor;
mod image;
mod kubernetes;
mod oci;
mod process;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of Fairlead.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and running needs. May be repeated.
    Setup,
    /// Say what is there, what is missing and how to get it. Exit code 1 where something is missing.
    Doctor,
    /// Build the eBPF object and the static executables into target/dist.
    Build(build::Options),
    /// The executables as an OCI image in target/image, made without a container engine.
    Image(image::Options),
    /// Build everything of Kubernetes that tests need into target/kubernetes.
    Kubernetes,
    /// Two real nodes on this machine: Kubernetes with containerd, and Fairlead installed.
    Cluster(cluster::Options),
    /// Kubernetes' own tests of the network on such clusters; writes docs/conformance.md.
    Conformance(conformance::Options),
    /// Format check, lints and all tests. With filters: only the tests whose names contain one of them.
    Test(test::Options),
    /// Two nodes, a real application, its policies: wired, enforced and measured.
    Demo(demo::Options),
    /// Count instructions of programs and policy compiler, and compare with what was recorded.
    Costs(costs::Options),
    /// Measure beside others, and write docs/performance.md and target/bench/results.json.
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    let result = match Arguments::parse().command {
        Command::Setup => done(setup::run()),
        Command::Doctor => Ok(doctor::run()),
        Command::Build(options) => done(build::run(&options)),
        Command::Image(options) => done(image::run(&options)),
        Command::Kubernetes => done(kubernetes::programs(&kubernetes::CONTROL).and_then(|folder| {
            println!("kubernetes: {} in {}", kubernetes::CONTROL.programs.join(", "), folder.display());
            kubernetes::nodes()
        })),
        Command::Cluster(options) => cluster::run(&options),
        Command::Conformance(options) => conformance::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Costs(options) => done(costs::run(&options)),
        Command::Bench(options) => bench::run(&options),
    };
    result.unwrap_or_else(|error| {
        // Without the backtrace that anyhow would add: what failed is another program.
        eprintln!("xtask: {error:#}");
        ExitCode::from(2)
    })
}
