//! The soak: see `fairlead_tests::soak`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is for people")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use fairlead_tests::soak::{self, Options, Summary};

/// Random changes under random traffic.
#[derive(Parser)]
struct Arguments {
    /// For how many seconds.
    #[arg(long)]
    seconds: u64,
    /// What determines the mutations; chosen at random where it is absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Write the result into this file.
    #[arg(long)]
    record: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<bool> {
    allow_many_files()?;
    let chosen =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() % 1_000_000_007;
    let seed = arguments.seed.unwrap_or(u64::try_from(chosen)?);
    println!("Soak of {} s with --seed {seed}", arguments.seconds);
    let duration = Duration::from_secs(arguments.seconds);
    let summary = soak::run(Options { duration, seed }).await.with_context(|| format!("seed {seed}"))?;
    for line in summary.lines() {
        println!("{line}");
    }
    for fault in summary.faults() {
        println!("WRONG: {fault}");
    }
    if let Some(path) = &arguments.record {
        std::fs::write(path, document(&summary)?).with_context(|| path.display().to_string())?;
    }
    Ok(summary.is_good())
}

fn document(summary: &Summary) -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = std::thread::available_parallelism()?;
    let mut text = format!(
        "# Soak\n\nWritten by `cargo xtask test --soak DURATION --record`. Two nodes with an agent each, random \
         mutations\nof policies, labels and pods, agents killed, random probes; every verdict compared with the \
         oracle's.\nWhat a mutation changes may take 1 s; what it does not change must hold throughout.\n\n\
         Kernel {}, {cpus} CPUs. Result: {}.\n\n",
        kernel.trim(),
        if summary.is_good() { "good" } else { "WRONG" }
    );
    for line in summary.lines().into_iter().chain(summary.faults()) {
        text.push_str(&format!("- {line}\n"));
    }
    Ok(text)
}

/// Each probe under way is a socket.
fn allow_many_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const WANTED: u64 = 16_384;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < WANTED {
        setrlimit(Resource::RLIMIT_NOFILE, WANTED.min(hard), hard).context("cannot allow more open files")?;
    }
    Ok(())
}
