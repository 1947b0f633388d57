//! `fairlead`: what people ask of an agent.

mod print;

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use fairlead_api::client::{Client, ClientError};
use fairlead_api::status::{Explanation, Status};
use fairlead_api::{BPFFS, CNI_CONF_DIR, EndpointStatus, RUN_DIR, RunDir};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::host::uninstall::{self, Places};
use crate::host::{bpffs, install};
use print::Style;

/// Looks at the agent of this node.
#[derive(Debug, Parser)]
#[command(name = "fairlead", version)]
pub struct Cli {
    /// Directory of the agent's socket.
    #[arg(long, global = true, value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
    /// Format of what is printed.
    #[arg(short, long, global = true, default_value = "text")]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Format of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The agent, its endpoints with their traffic, and whatever could not be done as told. Exit code 1
    /// where the agent is not ready.
    Status,
    /// The endpoints of this node.
    Endpoints,
    /// Whether a connection is allowed, and by which rule. Exit code 1 where it is not.
    Explain {
        /// Who opens it: a pod as NAMESPACE/NAME, or an IP address.
        #[arg(long)]
        from: String,
        /// To whom: a pod as NAMESPACE/NAME, or an IP address.
        #[arg(long)]
        to: String,
        /// On what port: 80/tcp, 53/udp, 9/sctp, icmp or other.
        #[arg(long)]
        port: String,
    },
    /// Put the CNI plugin where the container runtime looks for it.
    Install {
        /// Where to.
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        to: PathBuf,
        /// Where it lies [default: beside this executable].
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
    },
    /// Take away everything that Fairlead has made on this node. No agent may run. Exit code 1 where
    /// something is left.
    Uninstall {
        /// Look once more, and list what is left.
        #[arg(long)]
        verify: bool,
        /// Directory in a BPF file system.
        #[arg(long, value_name = "DIR", default_value = BPFFS)]
        bpffs: PathBuf,
        /// Directory of CNI configurations.
        #[arg(long, value_name = "DIR", default_value = CNI_CONF_DIR)]
        cni_conf_dir: PathBuf,
        /// Directory of CNI plugins.
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        cni_bin_dir: PathBuf,
    },
    /// Mount the BPF file system, unless it is mounted.
    MountBpffs {
        /// Where.
        #[arg(value_name = "DIR", default_value = "/sys/fs/bpf")]
        folder: PathBuf,
    },
}

/// Runs a command; the result is the exit code: 0 as asked, 1 the answer is no.
///
/// # Errors
/// Where the agent cannot be asked, or what it answered cannot be printed: exit code 2. That nobody
/// reads on is no error.
pub fn run(cli: &Cli, out: &mut impl Write, colour: bool) -> anyhow::Result<u8> {
    let client = Client::new(RunDir(cli.run_dir.clone()).socket()).with_timeout(Duration::from_secs(30));
    let style = Style { colour };
    let get = |path: &str| client.get::<Value>(path).map_err(|e| advise(e, cli));
    let (code, printed) = match &cli.command {
        Command::Status => {
            let value = get("/v1/status")?;
            let status = Status::deserialize(&value)?;
            let printed = match cli.output {
                Output::Json => json(out, &value),
                Output::Text => print::status(out, &status, style),
            };
            (u8::from(!status.ready), printed)
        }
        Command::Endpoints => {
            let value = get("/v1/endpoints")?;
            let printed = match cli.output {
                Output::Json => json(out, &value),
                Output::Text => print::endpoints(out, &Vec::<EndpointStatus>::deserialize(&value)?),
            };
            (0, printed)
        }
        Command::Install { to, from } => {
            let beside = std::env::current_exe()?;
            let from = from.as_deref().or(beside.parent()).unwrap_or(Path::new("/"));
            let changed = install::install(from, to).with_context(|| {
                format!("cannot install {} from {} to {}", install::PLUGIN, from.display(), to.display())
            })?;
            let value = json!({"installed": to.join(install::PLUGIN), "changed": changed});
            (0, done(out, cli.output, &value, if changed { "installed" } else { "is there already" }))
        }
        Command::Uninstall { verify, bpffs, cni_conf_dir, cni_bin_dir } => {
            let places = Places {
                run: RunDir(cli.run_dir.clone()),
                bpffs: bpffs.clone(),
                cni_conf_dir: cni_conf_dir.clone(),
                cni_bin_dir: cni_bin_dir.clone(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let report = runtime.block_on(uninstall::uninstall(&places, *verify))?;
            let clean = report.problems.is_empty() && report.left.is_empty();
            let printed = match cli.output {
                Output::Json => json(out, &serde_json::to_value(&report)?),
                Output::Text => print::uninstalled(out, &report, *verify),
            };
            (u8::from(!clean), printed)
        }
        Command::MountBpffs { folder } => {
            let changed = bpffs::mount_bpffs(folder)
                .with_context(|| format!("cannot mount the BPF file system at {}", folder.display()))?;
            let value = json!({"mounted": folder, "changed": changed});
            (0, done(out, cli.output, &value, if changed { "mounted" } else { "is mounted already" }))
        }
        Command::Explain { from, to, port } => {
            // Checked here too, so that nothing odd stands in the path.
            crate::api::party(from).map_err(|e| anyhow::anyhow!("--from: {e}"))?;
            crate::api::party(to).map_err(|e| anyhow::anyhow!("--to: {e}"))?;
            crate::api::target(port).map_err(|e| anyhow::anyhow!("--port: {e}"))?;
            let value =
                get(&format!("/v1/explain?from={}&to={}&port={}", encode(from), encode(to), encode(port)))?;
            let answer = Explanation::deserialize(&value)?;
            let printed = match cli.output {
                Output::Json => json(out, &value),
                Output::Text => print::explanation(out, &answer, (from, to, port), style),
            };
            (u8::from(!answer.allowed), printed)
        }
    };
    match printed.and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(code),
    }
}

/// Says what to do about an agent that is not there.
fn advise(e: ClientError, cli: &Cli) -> anyhow::Error {
    let ClientError::Connect { source, .. } = &e else { return e.into() };
    let advice = if source.kind() == ErrorKind::PermissionDenied {
        "Only root may ask it: try again as root.".to_owned()
    } else {
        format!("Is fairlead-agent running on this node, and is {} its --run-dir?", cli.run_dir.display())
    };
    anyhow::anyhow!("{e}\n{advice}")
}

/// Says what was done.
fn done(out: &mut impl Write, output: Output, value: &Value, text: &str) -> io::Result<()> {
    match output {
        Output::Json => json(out, value),
        Output::Text => writeln!(out, "{text}"),
    }
}

fn json(out: &mut impl Write, value: &Value) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
