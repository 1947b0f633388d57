//! `cargo xtask costs`: instructions counted and compared with what was recorded. They depend on neither load
//! nor clock, so they tell on any machine when something has become dearer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::bpf_toolchain::{Compiler, LINKER_VERSION};
use crate::process::{Privilege, output};
use crate::{build, process, workspace};

/// Instructions that the verifier may walk of one program, on any kernel: half of its own limit
/// (`BPF_COMPLEXITY_LIMIT_INSNS`, a million), because other kernels walk more.
const MOST_VERIFIED: u64 = 500_000;
/// Work of the policy compiler that is counted: arguments of its example `counted_work`, the first of which
/// the others begin with.
const WORK: [&str; 3] = ["build", "pods", "policies"];

/// Arguments of `costs`.
#[derive(Args)]
pub(crate) struct Options {
    /// Write what is counted now into tests/costs.txt, for whoever means it.
    #[arg(long)]
    record: bool,
}

/// Counts of one kind that were made by the same tools.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    /// Of what.
    kind: String,
    /// What they also depend on: a compiler, a kernel.
    by: String,
    counts: BTreeMap<String, u64>,
}

/// How much a count may grow, in per cent.
fn tolerance(kind: &str) -> u64 {
    // A branch more or less moves the verifier's paths by far more than the code.
    if kind == VERIFIER { 25 } else { 10 }
}

const OBJECT: &str = "instructions in the eBPF object";
const VERIFIER: &str = "instructions that the verifier walks";
const COMPILER: &str = "instructions that the policy compiler executes";

fn file() -> PathBuf {
    workspace::root().join("tests/costs.txt")
}

/// Counts, and compares or records. Whether nothing has become dearer.
pub(crate) fn run(options: &Options) -> Result<()> {
    build::bpf_object()?;
    if options.record {
        let now = count()?;
        let mut recorded = read()?;
        for group in now {
            // What other kernels and compilers count stays.
            recorded.retain(|old| (&old.kind, &old.by) != (&group.kind, &group.by));
            recorded.push(group);
        }
        recorded.sort_by(|a, b| (&a.kind, &a.by).cmp(&(&b.kind, &b.by)));
        std::fs::write(file(), written(&recorded)).context("cannot write tests/costs.txt")?;
        println!("costs: recorded in tests/costs.txt");
        return Ok(());
    }
    compare()
}

/// Counts and compares, with the eBPF object as it was built last.
pub(crate) fn compare() -> Result<()> {
    check(&count()?)
}

fn count() -> Result<[Group; 3]> {
    Ok([object()?, verifier()?, compiler()?])
}

/// Compares what is counted with what was recorded.
fn check(now: &[Group]) -> Result<()> {
    let recorded = read()?;
    let mut dearer = Vec::new();
    for group in now {
        let before = recorded.iter().find(|old| (&old.kind, &old.by) == (&group.kind, &group.by));
        let Some(before) = before else {
            println!("costs: {} by {}: not recorded, so not compared", group.kind, group.by);
            for (name, count) in &group.counts {
                println!("  {name}: {count}");
            }
            continue;
        };
        println!("costs: {}, by {}", group.kind, group.by);
        dearer.extend(compared(before, group));
    }
    for group in now.iter().filter(|g| g.kind == VERIFIER) {
        for (name, count) in group.counts.iter().filter(|(_, count)| **count > MOST_VERIFIED) {
            dearer.push(format!("{name}: the verifier walks {count} instructions, at most {MOST_VERIFIED}"));
        }
    }
    if dearer.is_empty() {
        return Ok(());
    }
    bail!(
        "dearer than recorded:\n  {}\nIf that is meant: cargo xtask costs --record, and say why in the commit",
        dearer.join("\n  ")
    )
}

/// Shows each count beside the one before, and returns those that have grown too much, or are new.
fn compared(before: &Group, now: &Group) -> Vec<String> {
    let tolerance = tolerance(&now.kind);
    let mut dearer = Vec::new();
    for (name, &count) in &now.counts {
        let Some(&old) = before.counts.get(name) else {
            dearer.push(format!("{name}: {count}, and was not recorded"));
            continue;
        };
        let change = 100.0 * (count as f64 / old as f64 - 1.0);
        let told = format!("{name}: {count}, recorded {old} ({change:+.1} %)");
        if count > old + old * tolerance / 100 {
            dearer.push(format!("{told}, at most +{tolerance} %"));
        } else if count < old - old * tolerance / 100 {
            println!("  {told}: worth recording anew, or it may grow again unseen");
        } else {
            println!("  {told}");
        }
    }
    dearer
}

/// Sizes of the object's sections with code.
fn object() -> Result<Group> {
    let path = workspace::bpf_object();
    let sections = output(Command::new("readelf").arg("-SW").arg(&path))
        .with_context(|| format!("readelf cannot read {}", path.display()))?;
    let mut counts = BTreeMap::new();
    for (section, name) in [(".text", "functions"), ("classifier", "programs")] {
        // [Nr] Name Type Address Off Size …
        let size = sections.lines().find_map(|line| {
            let mut words = line.split(']').nth(1)?.split_whitespace();
            (words.next()? == section).then(|| words.nth(3))?
        });
        let size = size.with_context(|| format!("the object has no section {section}"))?;
        counts.insert(name.to_owned(), u64::from_str_radix(size, 16)? / 8);
    }
    let compiler = Compiler::detect().context("no compiler for the BPF target")?.describe();
    Ok(Group { kind: OBJECT.to_owned(), by: format!("{compiler}, bpf-linker {LINKER_VERSION}"), counts })
}

/// What this kernel's verifier walks. Who loads the programs makes no difference: the debug build does, which tests need
/// anyway.
fn verifier() -> Result<Group> {
    process::run(build::host_cargo("build").args(["--example", "program_costs"]))?;
    let program = workspace::target().join("debug/examples/program_costs");
    // Mounts of its own: nothing is left, and no agent's pins are met.
    let script = r#"mount -t bpf bpf /sys/fs/bpf && exec "$0" /sys/fs/bpf/costs"#;
    let mut command = Privilege::detect().command("unshare")?;
    let text =
        output(command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(&program))
            .context("the programs cannot be loaded")?;
    let release = output(Command::new("uname").arg("-r")).context("uname names no kernel")?;
    Ok(Group { kind: VERIFIER.to_owned(), by: format!("Linux {release}"), counts: counts(&text)? })
}

/// What valgrind counts of the policy compiler.
fn compiler() -> Result<Group> {
    let mut cargo = build::host_cargo("build");
    process::run(build::release(&mut cargo).args([
        "--package",
        "fairlead-policy",
        "--example",
        "counted_work",
    ]))?;
    let program = build::built("examples").join("counted_work");
    let mut found = BTreeMap::new();
    for work in WORK {
        found.insert(work.to_owned(), executed(&program, work)?);
    }
    let build = found.get(WORK[0]).copied().unwrap_or(0);
    for work in &WORK[1..] {
        if let Some(count) = found.get_mut(*work) {
            *count = count.checked_sub(build).context("more work costs less")?;
        }
    }
    let rustc = output(Command::new("rustc").arg("-V")).context("rustc names no version")?;
    Ok(Group { kind: COMPILER.to_owned(), by: rustc, counts: found })
}

fn executed(program: &Path, work: &str) -> Result<u64> {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .arg(work)
        .output()
        .context("cannot run valgrind (`cargo xtask setup` installs it)")?;
    let text = String::from_utf8_lossy(&run.stderr);
    ensure!(run.status.success(), "valgrind: {}: {text}", run.status);
    let line = text.lines().find_map(|l| l.split_once("Collected : "));
    Ok(line.with_context(|| format!("valgrind counted nothing: {text}"))?.1.trim().parse()?)
}

/// Lines of a name and a number.
fn counts(text: &str) -> Result<BTreeMap<String, u64>> {
    text.lines()
        .map(|line| {
            let (name, count) = line.rsplit_once(' ').with_context(|| format!("no count in {line:?}"))?;
            Ok((name.to_owned(), count.parse().with_context(|| line.to_owned())?))
        })
        .collect()
}

fn read() -> Result<Vec<Group>> {
    match std::fs::read_to_string(file()) {
        Ok(text) => parsed(&text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).context("cannot read tests/costs.txt"),
    }
}

fn parsed(text: &str) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(head) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let (kind, by) = head.split_once(": ").with_context(|| format!("no kind in {line:?}"))?;
            groups.push(Group { kind: kind.to_owned(), by: by.to_owned(), counts: BTreeMap::new() });
            continue;
        }
        let group = groups.last_mut().with_context(|| format!("{line:?} belongs to nothing"))?;
        group.counts.extend(counts(line)?);
    }
    Ok(groups)
}

fn written(groups: &[Group]) -> String {
    let mut text = String::from(
        "# What was counted. Written by `cargo xtask costs --record`; docs/testing.md tells more.\n",
    );
    for group in groups {
        let _ = writeln!(text, "\n[{}: {}]", group.kind, group.by);
        for (name, count) in &group.counts {
            let _ = writeln!(text, "{name} {count}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(kind: &str, by: &str, counts: &[(&str, u64)]) -> Group {
        Group {
            kind: kind.to_owned(),
            by: by.to_owned(),
            counts: counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let groups = [
            group(OBJECT, "rustc 1.96 (a: b), bpf-linker 0.13.0", &[("functions", 12), ("programs", 3)]),
            group(VERIFIER, "Linux 6.18", &[("from_pod", 100)]),
        ];
        assert_eq!(parsed(&written(&groups)).unwrap(), groups);
        assert!(parsed("from_pod 1").is_err() && parsed("[x: y]\nfrom_pod many").is_err());
    }

    #[test]
    fn only_what_grows_beyond_the_tolerance_or_is_new_is_dearer() {
        let before = group(COMPILER, "x", &[("a", 1000), ("b", 1000), ("c", 1000)]);
        let now = group(COMPILER, "x", &[("a", 1100), ("b", 1101), ("c", 1), ("d", 1)]);
        let dearer = compared(&before, &now);
        assert_eq!(dearer.len(), 2, "{dearer:?}");
        assert!(dearer[0].starts_with("b: 1101, recorded 1000 (+10.1 %)") && dearer[1].starts_with("d: 1,"));
    }
}
