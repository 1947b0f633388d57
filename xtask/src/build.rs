//! `cargo xtask build`: the eBPF object, then the executables that carry and use it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::{bpf_toolchain, process, setup, workspace};

/// What is built for people and nodes.
pub(crate) const EXECUTABLES: [&str; 3] = ["fairlead-cni", "fairlead-agent", "fairlead"];
/// Crates with those executables.
const PACKAGES: [&str; 2] = ["fairlead-cni", "fairlead-agent"];
/// Name of the "executable" of crate fairlead-ebpf, which is the object.
const BPF_BIN: &str = "fairlead";
/// Static executables without musl: glibc is linked in.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Arguments of `build`.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Debug executables, not static, into target/dist-debug: quicker to build. Tests take them when
    /// FAIRLEAD_DIST names that folder.
    #[arg(long)]
    debug: bool,
    /// Only the eBPF object.
    #[arg(long)]
    bpf: bool,
}

/// Builds what the options ask for.
pub(crate) fn run(options: &Options) -> Result<()> {
    bpf_object()?;
    if options.bpf {
        return Ok(());
    }
    let (folder, built) = if options.debug {
        process::run(host_cargo("build").args(PACKAGES.map(|p| format!("--package={p}"))))?;
        (workspace::target().join("dist-debug"), workspace::target().join("debug"))
    } else {
        process::run(release(&mut host_cargo("build")).args(PACKAGES.map(|p| format!("--package={p}"))))?;
        (workspace::dist(), workspace::target().join(STATIC_TARGET).join("release"))
    };
    for name in EXECUTABLES {
        install(&built.join(name), &folder.join(name))?;
    }
    println!("build: {} in {}", EXECUTABLES.join(", "), folder.display());
    Ok(())
}

/// Makes a build one of static release executables.
pub(crate) fn release(cargo: &mut std::process::Command) -> &mut std::process::Command {
    cargo
        // With an explicit target the flag spares build scripts and procedural macros, which cannot be
        // static.
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
        .args(["--release", "--target", STATIC_TARGET])
}

/// Where a [`release`] build leaves an executable.
pub(crate) fn built(name: &str) -> PathBuf {
    workspace::target().join(STATIC_TARGET).join("release").join(name)
}

/// cargo with a subcommand for code that runs on this machine.
pub(crate) fn host_cargo(subcommand: &str) -> std::process::Command {
    let mut command = process::cargo();
    command.arg(subcommand).arg("--target-dir").arg(workspace::target());
    command
}

/// Builds the eBPF object into target/dist.
pub(crate) fn bpf_object() -> Result<PathBuf> {
    let object = workspace::bpf_object();
    bpf(&object, &[])?;
    println!("build: {}", object.display());
    Ok(object)
}

/// Builds the eBPF object with a made-up next layout of the flows, for the test of upgrades.
pub(crate) fn next_bpf_object() -> Result<()> {
    bpf(&workspace::next_bpf_object(), &["--features", "next-layout"])
}

fn bpf(object: &Path, arguments: &[&str]) -> Result<()> {
    let (compiler, linker) = setup::toolchain()?;
    let mut flags = OsString::from("-C debuginfo=2 -C link-arg=--btf -C linker=");
    flags.push(&linker);
    // Its own folder: the other compiler would otherwise throw away what the project's own has built.
    let folder = workspace::target().join("bpf");
    process::run(
        compiler
            .cargo_build()
            .env("RUSTFLAGS", flags)
            // The linker optimises everything at once; rustc's own LTO knows nothing of the target.
            .env("CARGO_PROFILE_RELEASE_LTO", "false")
            .env("CARGO_PROFILE_RELEASE_STRIP", "none")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .args(["--package", "fairlead-ebpf", "--release", "--target-dir"])
            .arg(&folder)
            .args(arguments),
    )?;
    install(&folder.join(bpf_toolchain::TARGET).join("release").join(BPF_BIN), object)
}

/// Puts a file in its place by rename, because the old one may be running; leaves an equal one alone,
/// because cargo looks at times.
fn install(from: &Path, to: &Path) -> Result<()> {
    let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if std::fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let folder = to.parent().unwrap_or(to);
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let beside = to.with_extension("new");
    std::fs::copy(from, &beside).with_context(|| format!("cannot write {}", beside.display()))?;
    std::fs::rename(&beside, to).with_context(|| format!("cannot write {}", to.display()))
}
