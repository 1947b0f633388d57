//! `fairlead`: what people ask of an agent. One module for each subcommand.

mod drops;
mod endpoints;
mod explain;
mod host;
mod ipam;
mod print;
mod status;

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use fairlead_api::client::{Client, ClientError};
use fairlead_api::{RUN_DIR, RunDir};
use serde_json::Value;

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
    /// The endpoints of this node: what is attached, how it is enforced, and its packets.
    Endpoints,
    /// The addresses that are reserved on this node; needs no agent.
    Ipam(ipam::Options),
    /// Whether a connection is allowed, and by which rule. Exit code 1 where it is not.
    Explain(explain::Options),
    /// Packets that were dropped lately: from whom to whom, why, and which policy denied them.
    Drops(drops::Options),
    /// What is done to the node itself.
    #[command(flatten)]
    Host(host::Command),
}

/// What an answer comes to.
struct Answer {
    /// The exit code: 0 as asked, 1 the answer is no.
    code: u8,
    /// Whether it could be printed.
    printed: io::Result<()>,
}

/// How the agent is asked, and how its answers are printed.
struct Asking {
    client: Client,
    run_dir: PathBuf,
    output: Output,
    style: Style,
}

impl Asking {
    fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.client.get::<Value>(path).map_err(|e| self.advise(e))
    }

    /// Prints the agent's answer: as it is for programs, by `text` for people.
    fn print<W: Write>(
        &self,
        out: &mut W,
        value: &Value,
        text: impl FnOnce(&mut W) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.output {
            Output::Json => json(out, value),
            Output::Text => text(out),
        }
    }

    /// Says what to do about an agent that is not there.
    fn advise(&self, e: ClientError) -> anyhow::Error {
        let ClientError::Connect { source, .. } = &e else { return e.into() };
        let advice = if source.kind() == ErrorKind::PermissionDenied {
            "Only root may ask it: try again as root.".to_owned()
        } else {
            format!(
                "Is fairlead-agent running on this node, and is {} its --run-dir?",
                self.run_dir.display()
            )
        };
        anyhow::anyhow!("{e}\n{advice}")
    }
}

/// Runs a command; the result is the exit code: 0 as asked, 1 the answer is no.
///
/// # Errors
/// Where the agent cannot be asked, or what it answered cannot be printed: exit code 2. That nobody
/// reads on is no error.
pub fn run(cli: &Cli, out: &mut impl Write, colour: bool) -> anyhow::Result<u8> {
    let asking = Asking {
        client: Client::new(RunDir(cli.run_dir.clone()).socket()).with_timeout(Duration::from_secs(30)),
        run_dir: cli.run_dir.clone(),
        output: cli.output,
        style: Style { colour },
    };
    let answer = match &cli.command {
        Command::Status => status::run(&asking, out),
        Command::Endpoints => endpoints::run(&asking, out),
        Command::Ipam(options) => ipam::run(options, &asking, out),
        Command::Explain(options) => explain::run(options, &asking, out),
        Command::Drops(options) => drops::run(options, &asking, out),
        Command::Host(command) => host::run(command, &asking, out),
    }?;
    match answer.printed.and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(answer.code),
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
