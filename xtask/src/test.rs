//! `cargo xtask test`: format check, lints and every test, summed up in one line.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;

use crate::process::Privilege;
use crate::{build, costs, image, kubernetes, process, setup, workspace};

/// The one test that needs all of Kubernetes, which takes long to build.
const ON_REAL_NODES: &str = "fairlead_on_real_nodes";

/// Arguments of `test`.
#[derive(Args)]
pub(crate) struct Options {
    /// Only tests whose names contain one of these; without format check and lints.
    filters: Vec<String>,
    /// Instead of all that: a soak of this length (30s, 5m, 1h), random changes under random traffic.
    #[arg(long, value_name = "DURATION", conflicts_with = "filters")]
    soak: Option<Length>,
    /// Seed of the soak's changes; one that was printed repeats them.
    #[arg(long, requires = "soak")]
    seed: Option<u64>,
    /// Write the soak's result into docs/soak.md.
    #[arg(long, requires = "soak")]
    record: bool,
}

/// A length of time as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Length {
    seconds: u64,
}

impl std::str::FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not a length of time as 30s, 5m or 1h");
        let split = text.len().saturating_sub(1);
        let (number, unit) = text.split_at_checked(split).ok_or_else(error)?;
        let unit: u64 = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(error()),
        };
        let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
        seconds.filter(|&seconds| seconds > 0).map(|seconds| Self { seconds }).ok_or_else(error)
    }
}

/// What ran.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Rows of case tables that passed tests have said they went through.
    cases: u64,
}

/// Runs everything. The last line says how many passed and failed, also when a step could not run.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(length) = options.soak {
        return soak(length, options);
    }
    let mut tally = Tally::default();
    if options.filters.is_empty() {
        tally.step("format", process::run(process::cargo().args(["fmt", "--all", "--check"])));
    }
    if options.filters.is_empty() && process::output(process::cargo().args(["deny", "--version"])).is_some() {
        let mut deny = process::cargo();
        deny.args(["deny", "--offline", "check", "licenses", "bans", "sources"]);
        tally.step("licences and origins of dependencies", process::run(&mut deny));
    }
    match prepare(&options.filters) {
        Err(error) => tally.step("build", Err(error)),
        Ok((privilege, assets)) => {
            if options.filters.is_empty() {
                tally.step(
                    "lints",
                    process::run(build::host_cargo("clippy").args([
                        "--quiet",
                        "--all-targets",
                        "--",
                        "-D",
                        "warnings",
                    ])),
                );
                tally.step("costs", costs::compare());
            }
            let result = tests(privilege, &assets, &options.filters, &mut tally);
            if let Err(error) = result {
                tally.step("tests", Err(error));
            }
        }
    }
    if tally.ignored > 0 {
        println!("{} ignored, which counts as neither", tally.ignored);
    }
    println!("{} cases in tables", tally.cases);
    let good = tally.failed == 0 && tally.passed > 0;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the soak of the `tests` crate.
fn soak(length: Length, options: &Options) -> Result<ExitCode> {
    setup::bpffs()?;
    build::run(&build::Options::default())?;
    process::run(build::host_cargo("build").args(["--package", "fairlead-tests", "--bin", "soak"]))?;
    let mut soak = Privilege::detect().command(workspace::target().join("debug/soak"))?;
    soak.arg("--seconds").arg(length.seconds.to_string());
    if let Some(seed) = options.seed {
        soak.arg("--seed").arg(seed.to_string());
    }
    if options.record {
        soak.arg("--record").arg(workspace::root().join("docs/soak.md"));
    }
    let status = soak.stdin(Stdio::null()).status().context("cannot run the soak")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds what the tests need that are run.
fn prepare(filters: &[String]) -> Result<(Privilege, PathBuf)> {
    setup::test_packages()?;
    setup::cnitool()?;
    setup::bpffs()?;
    build::run(&build::Options::default())?;
    build::next_bpf_object()?;
    let assets = kubernetes::programs(&kubernetes::CONTROL)?;
    if filters.is_empty() || filters.iter().any(|filter| ON_REAL_NODES.contains(filter.as_str())) {
        kubernetes::nodes()?;
        kubernetes::conformance()?;
        image::run(&image::Options::default())?;
    }
    Ok((Privilege::detect(), assets))
}

/// Runs the tests of the workspace's default members, as root.
fn tests(privilege: Privilege, assets: &Path, filters: &[String], tally: &mut Tally) -> Result<()> {
    let mut command = build::host_cargo("test");
    command
        .env("FAIRLEAD_REQUIRE_PRIVILEGED", "1")
        .env("FAIRLEAD_DIST", workspace::dist())
        .env(kubernetes::ASSETS, assets)
        .arg("--no-fail-fast")
        .arg("--")
        .arg("--show-output")
        .args(filters)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if privilege == Privilege::Sudo {
        // Built as this user, run as root.
        command.env(
            format!("CARGO_TARGET_{}_RUNNER", host_triple()?.to_uppercase().replace('-', "_")),
            "sudo --preserve-env=FAIRLEAD_REQUIRE_PRIVILEGED,FAIRLEAD_DIST,KUBEBUILDER_ASSETS,CARGO_MANIFEST_DIR,\
             RUST_BACKTRACE",
        );
    }
    let mut child = command.spawn().context("cannot run cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let failed_before = tally.failed;
    let mut reader = Reader::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what cargo test prints")?;
        if reader.shown(&line, tally) {
            println!("{line}");
        }
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    // A test executable that does not build, or dies, prints no result line.
    if !status.success() && tally.failed == failed_before {
        anyhow::bail!("cargo test ended with {status} without naming a failed test");
    }
    Ok(())
}

fn host_triple() -> Result<String> {
    process::output(Command::new("rustc").arg("-vV"))
        .and_then(|v| v.lines().find_map(|l| l.strip_prefix("host: ").map(str::to_owned)))
        .context("rustc -vV names no host")
}

impl Tally {
    /// Counts a step that is not a test executable's.
    fn step(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                println!("{name} failed: {error:#}");
                self.failed += 1;
            }
        }
    }

    /// Takes the numbers of "test result: ok. 3 passed; 0 failed; 1 ignored; …".
    fn add(&mut self, result: &str) {
        let mut before = 0;
        for word in result.split([' ', ';', '.']) {
            match word {
                "passed" => self.passed += before,
                "failed" => self.failed += before,
                "ignored" => self.ignored += before,
                _ => {}
            }
            before = word.parse().unwrap_or(0);
        }
    }
}

/// Reads the output of test executables, line by line.
#[derive(Default)]
struct Reader {
    /// Within the output of tests that passed, which nobody needs to read.
    successes: bool,
}

impl Reader {
    /// Takes what counts from the line; whether the line is to be shown.
    fn shown(&mut self, line: &str, tally: &mut Tally) -> bool {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.successes = false;
            tally.add(result);
            return true;
        }
        match line {
            "successes:" => self.successes = true,
            "failures:" => self.successes = false,
            _ => {}
        }
        if self.successes
            && let Some(cases) = line.strip_prefix("cases: ").and_then(|n| n.trim().parse::<u64>().ok())
        {
            tally.cases += cases;
        }
        !self.successes && !line.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of(output: &str) -> (Tally, Vec<&str>) {
        let (mut tally, mut reader) = (Tally::default(), Reader::default());
        let shown = output.lines().filter(|line| reader.shown(line, &mut tally)).collect();
        (tally, shown)
    }

    #[test]
    fn result_lines_are_summed_and_only_passed_tests_bring_cases() {
        let (tally, shown) = tally_of(
            "running 2 tests\ntest a ... ok\ntest b ... ok\n\nsuccesses:\n\n---- a stdout ----\ncases: 40\nnoise\n\n\
             successes:\n    a\n    b\n\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out\n\
             running 2 tests\nsuccesses:\n---- c stdout ----\ncases: 2\nfailures:\n---- d stdout ----\ncases: 7\nwrong\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s",
        );
        assert_eq!(tally, Tally { passed: 3, failed: 1, ignored: 1, cases: 42 });
        assert!(shown.contains(&"wrong") && shown.contains(&"test a ... ok") && !shown.contains(&"noise"));
    }

    #[test]
    fn lengths_of_time() {
        for (text, seconds) in [("30s", Some(30)), ("5m", Some(300)), ("1h", Some(3600))] {
            assert_eq!(text.parse::<Length>().ok().map(|l| l.seconds), seconds, "{text}");
        }
        for text in ["", "s", "0s", "5", "1.5m", "-1s", "5µ", "18446744073709551615h"] {
            assert!(text.parse::<Length>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_in_a_step_counts_as_failed() {
        let mut tally = Tally::default();
        tally.step("x", Err(anyhow::anyhow!("no")));
        tally.step("y", Ok(()));
        assert_eq!((tally.passed, tally.failed), (1, 1));
    }
}
