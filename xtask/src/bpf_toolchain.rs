//! The two ways to compile Rust for the BPF target.
//!
//! Either way, `bpf-linker` links what rustc emits. Its LLVM must be at least as new as that of rustc.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{self, output};
use crate::workspace;

/// Target triple of the object.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Version of bpf-linker that `setup` builds.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// Debian's packages with a compiler and `core` for the BPF target, and what bpf-linker is built with.
pub(crate) const DEBIAN_PACKAGES: [&str; 8] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "libxml2-dev",
    // libstdc++, which LLVM is linked with.
    "g++",
];
/// Where Debian's llvm-22-dev is.
pub(crate) const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";
/// First minor version of rustc 1.x that compiles the workspace.
const MINOR: u32 = 95;

/// A compiler for the BPF target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// rustup's nightly, which builds `core` from its rust-src component.
    Nightly,
    /// Debian's rustc with a prebuilt `core`.
    Debian,
}

impl Compiler {
    /// The compiler that is there, if any. rustup's comes first: it is the usual one.
    pub(crate) fn detect() -> Option<Self> {
        [Self::Nightly, Self::Debian].into_iter().find(|c| c.present())
    }

    fn present(self) -> bool {
        match self {
            Self::Nightly => output(rustup_run("nightly").args(["rustc", "--print", "sysroot"]))
                .is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/core").is_dir()),
            Self::Debian => {
                Path::new("/usr/lib/rustlib").join(TARGET).is_dir()
                    && Path::new("/usr/bin/cargo").exists()
                    && output(Command::new("/usr/bin/rustc").arg("--version")).as_deref().and_then(minor)
                        >= Some(MINOR)
            }
        }
    }

    /// What it is, for people.
    pub(crate) fn describe(self) -> String {
        let (name, version) = match self {
            Self::Nightly => {
                ("rustup's nightly with rust-src", output(rustup_run("nightly").args(["rustc", "-V"])))
            }
            Self::Debian => (
                "Debian's rustc-web with libstd-rust-web-dev-bpf",
                output(Command::new("/usr/bin/rustc").arg("-V")),
            ),
        };
        format!("{name} ({})", version.unwrap_or_else(|| "version unknown".to_owned()))
    }

    /// A cargo that compiles for the BPF target with this compiler.
    pub(crate) fn cargo_build(self) -> Command {
        let mut command = match self {
            Self::Nightly => {
                let mut command = rustup_run("nightly");
                command.args(["cargo", "build", "-Z", "build-std=core"]);
                command
            }
            Self::Debian => {
                let mut command = Command::new("/usr/bin/cargo");
                process::without_leftovers(&mut command);
                // Options that only this target knows are unstable; Debian's compiler is a release.
                command.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", "/usr/bin/rustc").arg("build");
                command
            }
        };
        command.current_dir(workspace::root()).args(["--target", TARGET]);
        command
    }
}

/// `rustup run TOOLCHAIN`, which never installs anything.
fn rustup_run(toolchain: &str) -> Command {
    let mut command = Command::new("rustup");
    process::without_leftovers(&mut command);
    command.env_remove("RUSTUP_TOOLCHAIN").args(["run", toolchain]);
    command
}

/// N of "rustc 1.N.0".
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

/// The linker to use: this checkout's own, else one in PATH.
pub(crate) fn linker() -> Option<PathBuf> {
    let own = workspace::tools().join("bin/bpf-linker");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(own)
        .chain(std::env::split_paths(&path).map(|folder| folder.join("bpf-linker")))
        .find(|candidate| output(Command::new(candidate).arg("--version")).is_some())
}

#[cfg(test)]
mod tests {
    use super::minor;

    #[test]
    fn version_of_rustc() {
        assert_eq!(minor("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"), Some(96));
        assert_eq!(minor("rustc 1.97.0-nightly (e50aa6fba 2026-05-19)"), Some(97));
        assert_eq!(minor("cargo 1.96.0"), None);
        assert_eq!(minor(""), None);
    }
}
