//! `cargo xtask cluster`: a cluster of two real nodes on this machine, with Fairlead installed.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::process::Privilege;
use crate::{build, image, kubernetes, process, setup, workspace};

/// Arguments of `cluster`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build what it takes, start it, and return when both nodes are Ready.
    Up(Up),
    /// Take all of it down.
    Down,
    /// Measure Fairlead on a cluster that is made for this and taken down again.
    Measure {
        /// What to measure: start, deny, birth, reach, idle, restart, kill, away; all of it where nothing is named.
        sections: Vec<String>,
    },
    /// Run kubectl.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// What kubectl is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Run a command on a node, in its network and with its mounts.
    On {
        /// Name of the node, or `control` for the control plane's network.
        node: String,
        /// What to run there.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        words: Vec<String>,
    },
}

#[derive(Args)]
struct Up {
    /// How kube-proxy translates: iptables or nftables.
    #[arg(long, default_value = "iptables")]
    proxy: String,
    /// Families of addresses, the first one first: v4, dual or dual-v6.
    #[arg(long, default_value = "dual")]
    families: String,
    /// Leave Fairlead out: pods then have no network.
    #[arg(long)]
    bare: bool,
}

/// Does what is asked for.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    match &options.command {
        Action::Up(up) => self::up(up),
        Action::Down => down(),
        Action::Measure { sections } => measure(sections),
        Action::Kubectl { words } => {
            let kubectl = workspace::target().join("kubernetes/node/kubectl");
            let mut all = vec![kubectl.display().to_string(), "--kubeconfig".to_owned(), said("kubeconfig")?];
            all.extend(words.iter().cloned());
            enter("control", &all)
        }
        Action::On { node, words } => enter(node, words),
    }
}

/// Builds everything that a cluster is made of.
pub(crate) fn prepare() -> Result<()> {
    setup::test_packages()?;
    kubernetes::programs(&kubernetes::CONTROL)?;
    kubernetes::nodes()?;
    image::run(&image::Options::default())
}

fn up(up: &Up) -> Result<ExitCode> {
    if state().exists() && said("process").is_ok_and(|id| PathBuf::from("/proc").join(id).exists()) {
        bail!("a cluster is up: cargo xtask cluster down");
    }
    prepare()?;
    process::run(build::host_cargo("build").args(["--package", "fairlead-tests", "--bin", "cluster"]))?;
    let log = folder().join("log");
    std::fs::create_dir_all(folder()).context("cannot make a folder")?;
    // Of a cluster that was killed, or none.
    let _ = std::fs::remove_file(state());
    let to = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut keeper = Privilege::detect().command(workspace::target().join("debug/cluster"))?;
    keeper.arg("--ready").arg(state()).args(["--proxy", &up.proxy, "--families", &up.families]);
    if !up.bare {
        keeper.arg("--image").arg(workspace::target().join("image/fairlead.tar"));
    }
    // It outlives this process, and Ctrl-C in its terminal.
    keeper.stdin(Stdio::null()).stdout(to.try_clone()?).stderr(to).process_group(0);
    let mut keeper = keeper.spawn().context("cannot start the cluster")?;
    while !state().exists() {
        if let Some(status) = keeper.try_wait()? {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("the cluster ended with {status}:\n{said}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{}", std::fs::read_to_string(&log).unwrap_or_default().trim_end());
    let words = ["get", "nodes", "-o", "wide"].map(str::to_owned).to_vec();
    run(&Options { command: Action::Kubectl { words } })
}

fn down() -> Result<ExitCode> {
    let id = said("process")?;
    process::run(Privilege::detect().command("kill")?.arg(&id))?;
    while PathBuf::from("/proc").join(&id).exists() {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(sections: &[String]) -> Result<ExitCode> {
    prepare()?;
    process::run(build::host_cargo("build").args(["--package", "fairlead-tests", "--bin", "measure"]))?;
    let mut measure = Privilege::detect().command(workspace::target().join("debug/measure"))?;
    measure.arg("--image").arg(workspace::target().join("image/fairlead.tar")).args(sections);
    let status = measure.stdin(Stdio::null()).status().context("cannot measure")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a command in the network of the control plane or in all that a node has for itself.
fn enter(node: &str, words: &[String]) -> Result<ExitCode> {
    let mut command = Privilege::detect().command("nsenter")?;
    if node == "control" {
        command.arg(format!("--net={}", said("network")?));
    } else {
        let network = said(&format!("nodes.{node}.network"))?;
        let root = said(&format!("nodes.{node}.root"))?;
        let process = root.trim_start_matches("/proc/").split('/').next().unwrap_or_default().to_owned();
        command.arg(format!("--net={network}"));
        command.args(["--target", &process, "--mount", "--pid", "--uts"]);
    }
    let status = command.arg("--").args(words).status().context("cannot run nsenter")?;
    Ok(status.code().and_then(|c| u8::try_from(c).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn folder() -> PathBuf {
    workspace::target().join("cluster")
}

/// What the cluster has said of itself: lines of `name value`.
fn state() -> PathBuf {
    folder().join("ready")
}

/// One thing that the cluster has said.
fn said(name: &str) -> Result<String> {
    let text = std::fs::read_to_string(state()).context("no cluster is up: cargo xtask cluster up")?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(there, _)| *there == name);
    Ok(found.with_context(|| format!("the cluster has no {name}"))?.1.to_owned())
}
