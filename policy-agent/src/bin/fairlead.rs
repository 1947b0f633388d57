//! `fairlead`: parses its words and asks the agent.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use fairlead_agent::cli::{Cli, run};

fn main() -> ExitCode {
    // Usage errors are exit code 2 with clap, too.
    let cli = Cli::parse();
    let out = std::io::stdout();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    match run(&cli, &mut out.lock(), colour) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("fairlead: {e:#}");
            ExitCode::from(2)
        }
    }
}
