//! `cargo xtask setup`: from a bare Debian 12 with rustup to where everything builds and runs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::{self, Compiler, DEBIAN_LLVM, DEBIAN_PACKAGES, LINKER_VERSION};
use crate::doctor;
use crate::process::{self, Privilege, output};
use crate::workspace;

/// Debian's packages that only tests and benchmarks need.
const TEST_PACKAGES: [&str; 15] = [
    // tc, which a test asks what is attached.
    "iproute2",
    // The rules of kube-proxy, and what Fairlead is measured beside.
    "iptables",
    "nftables",
    "ipset",
    // Chained plugins, delegated IPAM, and what Fairlead is measured beside.
    "containernetworking-plugins",
    // A caller of CNI that is no Kubernetes, and what it runs containers with: runc needs cgroups.
    "podman",
    "crun",
    // Nodes of a cluster, and what tests call in their containers.
    "containerd",
    "runc",
    "curl",
    "hostname",
    "netcat-openbsd",
    // Instructions, counted.
    "valgrind",
    // Load.
    "iperf3",
    "sockperf",
];

/// The CNI project's own caller of plugins.
const CNITOOL: &str = "github.com/containernetworking/cni/cnitool@v1.3.1";

/// Installs what is missing and says what it found.
pub(crate) fn run() -> Result<()> {
    toolchain()?;
    test_packages()?;
    cnitool()?;
    bpffs()?;
    match doctor::missing() {
        missing if missing.is_empty() => {
            println!("setup: everything that Fairlead needs is here");
            Ok(())
        }
        missing => bail!(
            "setup cannot go on; missing:\n{}",
            missing.iter().map(|m| format!("  - {m}")).collect::<Vec<_>>().join("\n")
        ),
    }
}

/// What building needs, set up where it is missing.
pub(crate) fn toolchain() -> Result<(Compiler, std::path::PathBuf)> {
    let compiler = match Compiler::detect() {
        Some(compiler) => compiler,
        None => install_compiler()?,
    };
    println!("setup: BPF compiler: {}", compiler.describe());
    let linker = match bpf_toolchain::linker() {
        Some(linker) => linker,
        None => install_linker()?,
    };
    println!("setup: BPF linker: {}", relative(&linker));
    Ok((compiler, linker))
}

/// What tests and benchmarks need beyond building and running.
pub(crate) fn test_packages() -> Result<()> {
    if Path::new("/usr/bin/apt-get").exists() {
        return install_packages(&TEST_PACKAGES);
    }
    println!(
        "setup: no apt-get here: tests need what these Debian packages hold: {}",
        TEST_PACKAGES.join(" ")
    );
    Ok(())
}

/// Builds `cnitool`, where it is not there in this version.
pub(crate) fn cnitool() -> Result<()> {
    let bin = workspace::tools().join("bin");
    let built = bin.join("cnitool.version");
    if bin.join("cnitool").exists() && std::fs::read_to_string(&built).is_ok_and(|v| v == CNITOOL) {
        return Ok(());
    }
    println!("setup: building cnitool");
    process::run(Command::new("go").env("GOBIN", &bin).args(["install", CNITOOL]))
        .context("cnitool, which the tests call Fairlead with, needs go 1.21 or newer")?;
    std::fs::write(&built, CNITOOL).with_context(|| format!("cannot write {}", built.display()))
}

/// What running needs beyond building.
pub(crate) fn bpffs() -> Result<()> {
    if doctor::bpffs_mounted() {
        return Ok(());
    }
    println!("setup: mounting the BPF file system");
    let mut mount = Privilege::detect().command("mount")?;
    process::run(mount.args(["-t", "bpf", "bpf", "/sys/fs/bpf"]))
}

fn install_compiler() -> Result<Compiler> {
    // Debian's packages are a matched pair of compiler and prebuilt core, so they come first where there is an apt.
    if Path::new("/usr/bin/apt-get").exists() {
        match install_packages(&DEBIAN_PACKAGES) {
            Ok(()) if Compiler::detect().is_some() => {}
            Ok(()) => println!("setup: Debian's packages brought no usable compiler for the BPF target"),
            Err(error) => println!("setup: Debian's packages cannot be installed: {error:#}"),
        }
    }
    if Compiler::detect().is_none() {
        println!("setup: trying rustup's nightly with rust-src");
        process::run(Command::new("rustup").env_remove("RUSTUP_TOOLCHAIN").args([
            "toolchain",
            "install",
            "nightly",
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ]))?;
    }
    Compiler::detect().context(
        "no compiler for the BPF target: install rustup's nightly with rust-src, or on Debian 12 with \
         its security updates the packages rustc-web, cargo-web and libstd-rust-web-dev-bpf",
    )
}

fn install_linker() -> Result<std::path::PathBuf> {
    if !Path::new(DEBIAN_LLVM).exists() {
        if !Path::new("/usr/bin/apt-get").exists() {
            bail!("bpf-linker is not in PATH: get it as its documentation says (aya-rs/bpf-linker)");
        }
        install_packages(&DEBIAN_PACKAGES)?;
    }
    println!("setup: building bpf-linker {LINKER_VERSION} (a minute or two)");
    process::run(
        process::cargo()
            .env("LLVM_PREFIX", DEBIAN_LLVM)
            .args(["install", "--quiet", "--locked", "bpf-linker", "--version", LINKER_VERSION])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(workspace::tools()),
    )?;
    bpf_toolchain::linker().context("bpf-linker was built but does not run")
}

pub(crate) fn install_packages(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: installing Debian packages: {}", missing.join(" "));
    let privilege = Privilege::detect();
    let apt = || -> Result<Command> {
        // env, because sudo drops the environment.
        let mut command = privilege.command("env")?;
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        Ok(command)
    };
    process::run(apt()?.args(["update", "-qq"]))?;
    process::run(apt()?.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing))
}

fn installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package])).as_deref()
        == Some("installed")
}

fn relative(path: &Path) -> String {
    path.strip_prefix(workspace::root()).unwrap_or(path).display().to_string()
}
