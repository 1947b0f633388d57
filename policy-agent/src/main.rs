//! `fairlead-agent`: parses its flags and runs the agent.

use std::process::ExitCode;

use clap::Parser as _;
use fairlead_agent::settings::{Flags, LogFormat, SettingsError, Values};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    fairlead_agent::memory::give_back();
    let flags = Flags::parse();
    let (settings, format) = match settings(flags) {
        Ok(settings) => settings,
        Err(e) => {
            eprintln!("fairlead-agent: {e}");
            return ExitCode::from(2);
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => log.json().init(),
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("fairlead-agent: no runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(fairlead_agent::agent::run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn settings(flags: Flags) -> Result<(fairlead_agent::settings::Settings, LogFormat), SettingsError> {
    let values = match &flags.config {
        Some(path) => flags.values.or(Values::read(path)?),
        None => flags.values,
    };
    let format = values.log_format.unwrap_or_default();
    Ok((values.settle()?, format))
}
