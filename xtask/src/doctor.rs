//! `cargo xtask doctor`: what is there, what is missing and how to get it.

use std::path::Path;
use std::process::{Command, ExitCode};

use crate::bpf_toolchain::{self, Compiler};
use crate::process::{Privilege, output};

/// One thing that is needed.
struct Check {
    name: &'static str,
    /// What was found, or what to do about it.
    outcome: Result<String, String>,
}

/// Prints all checks.
pub(crate) fn run() -> ExitCode {
    let checks = checks();
    for Check { name, outcome } in &checks {
        match outcome {
            Ok(found) => println!("ok       {name}: {found}"),
            Err(remedy) => println!("MISSING  {name}: {remedy}"),
        }
    }
    if checks.iter().all(|c| c.outcome.is_ok()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is missing, with the remedy.
pub(crate) fn missing() -> Vec<String> {
    checks()
        .into_iter()
        .filter_map(|c| c.outcome.err().map(|remedy| format!("{}: {remedy}", c.name)))
        .collect()
}

fn checks() -> Vec<Check> {
    let privilege = Privilege::detect();
    vec![
        Check { name: "root", outcome: root(privilege) },
        Check { name: "kernel", outcome: kernel() },
        Check { name: "kernel type information (BTF)", outcome: btf() },
        Check { name: "network namespaces", outcome: namespaces(privilege) },
        Check { name: "clsact and cls_bpf", outcome: cls_bpf(privilege) },
        Check { name: "BPF file system", outcome: bpffs() },
        Check {
            name: "BPF compiler",
            outcome: Compiler::detect()
                .map(Compiler::describe)
                .ok_or_else(|| "`cargo xtask setup` installs one".to_owned()),
        },
        Check {
            name: "BPF linker",
            outcome: bpf_toolchain::linker()
                .map(|path| path.display().to_string())
                .ok_or_else(|| "`cargo xtask setup` builds bpf-linker".to_owned()),
        },
    ]
}

fn root(privilege: Privilege) -> Result<String, String> {
    match privilege {
        Privilege::Root => Ok("this user".to_owned()),
        Privilege::Sudo => Ok("through sudo".to_owned()),
        Privilege::None => Err("run as root, or install sudo and allow this user to use it; \
             without it only building and unit tests work"
            .to_owned()),
    }
}

fn kernel() -> Result<String, String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|e| {
        format!("/proc/sys/kernel/osrelease cannot be read ({e}): Fairlead runs on Linux with /proc mounted")
    })?;
    Ok(format!("{} (tested on 6.18)", release.trim()))
}

fn btf() -> Result<String, String> {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(PATH).exists() {
        Ok(PATH.to_owned())
    } else {
        Err(format!("{PATH} is not there: boot a kernel with CONFIG_DEBUG_INFO_BTF=y (Debian's own have it)"))
    }
}

/// Runs a shell command in a new network namespace.
fn in_namespace(privilege: Privilege, script: &str) -> Result<(), String> {
    let mut command = privilege.command("unshare").map_err(|e| e.to_string())?;
    let output = command
        .args(["--net", "sh", "-c", script])
        .output()
        .map_err(|e| format!("unshare (Debian package util-linux): {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

fn namespaces(privilege: Privilege) -> Result<String, String> {
    in_namespace(privilege, "true").map(|()| "can be made".to_owned()).map_err(|error| {
        format!("cannot be made ({error}): needs CONFIG_NET_NS and, in a container, CAP_SYS_ADMIN")
    })
}

fn cls_bpf(privilege: Privilege) -> Result<String, String> {
    if output(Command::new("tc").arg("-V")).is_none() {
        return Err("tc, which tries it out, is not there: install the Debian package iproute2".to_owned());
    }
    // A classic program of one instruction that passes everything.
    in_namespace(
        privilege,
        "tc qdisc add dev lo clsact && tc filter add dev lo ingress bpf bytecode '1,6 0 0 0'",
    )
    .map(|()| "can be attached".to_owned())
    .map_err(|error| {
        format!(
            "cannot be attached ({error}): boot a kernel with NET_SCH_INGRESS, NET_CLS_ACT and NET_CLS_BPF"
        )
    })
}

/// Whether /sys/fs/bpf is one.
pub(crate) fn bpffs_mounted() -> bool {
    std::fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| {
        mounts.lines().any(|line| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some("/sys/fs/bpf") && fields.next() == Some("bpf")
        })
    })
}

fn bpffs() -> Result<String, String> {
    if bpffs_mounted() {
        Ok("/sys/fs/bpf".to_owned())
    } else {
        Err("`cargo xtask setup` mounts it (mount -t bpf bpf /sys/fs/bpf)".to_owned())
    }
}
