//! `fairlead`: what people ask of an agent.

mod print;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use fairlead_api::client::Client;
use fairlead_api::status::{Explanation, Status};
use fairlead_api::{EndpointStatus, RUN_DIR, RunDir};
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
    /// The agent, its endpoints with their traffic, and whatever could not be done as told.
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
}

/// Runs a command; the result is the exit code: 0 as asked, 1 the answer is no.
///
/// # Errors
/// Where the agent cannot be asked, or what it answered cannot be printed: exit code 2.
pub fn run(cli: &Cli, out: &mut impl Write, colour: bool) -> anyhow::Result<u8> {
    let client = Client::new(RunDir(cli.run_dir.clone()).socket()).with_timeout(Duration::from_secs(30));
    let style = Style { colour };
    match &cli.command {
        Command::Status => {
            let value: Value = client.get("/v1/status")?;
            if !json(cli, out, &value)? {
                print::status(out, &serde_json::from_value::<Status>(value)?, style)?;
            }
            Ok(0)
        }
        Command::Endpoints => {
            let value: Value = client.get("/v1/endpoints")?;
            if !json(cli, out, &value)? {
                print::endpoints(out, &serde_json::from_value::<Vec<EndpointStatus>>(value)?)?;
            }
            Ok(0)
        }
        Command::Explain { from, to, port } => {
            // Checked here too, so that nothing odd stands in the path.
            crate::api::party(from).map_err(|e| anyhow::anyhow!("--from: {e}"))?;
            crate::api::party(to).map_err(|e| anyhow::anyhow!("--to: {e}"))?;
            crate::api::target(port).map_err(|e| anyhow::anyhow!("--port: {e}"))?;
            let path = format!("/v1/explain?from={}&to={}&port={}", encode(from), encode(to), encode(port));
            let value: Value = client.get(&path)?;
            let answer: Explanation = serde_json::from_value(value.clone())?;
            if !json(cli, out, &value)? {
                print::explanation(out, &answer, (from, to, port), style)?;
            }
            Ok(u8::from(!answer.allowed))
        }
    }
}

fn json(cli: &Cli, out: &mut impl Write, value: &Value) -> anyhow::Result<bool> {
    if cli.output != Output::Json {
        return Ok(false);
    }
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(true)
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
