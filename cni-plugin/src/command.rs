//! From environment and standard input to what goes to standard output.

use serde_json::{Map, Value, json};

use crate::config::{self, Config};
use crate::environment::{Command, Environment};
use crate::error::{CniError, code};
use crate::log::Log;
use crate::version::CniVersion;
use crate::{add, check, del, status};

/// What the plugin answers.
#[derive(Debug)]
pub struct Answer {
    /// For standard output; `None` where the specification has nothing there.
    pub output: Option<Value>,
    /// Whether it is an error object, and the exit code 1.
    pub failed: bool,
}

/// Does what the environment asks for with the configuration in `input`.
pub fn run(variable: &dyn Fn(&str) -> Option<String>, input: &[u8]) -> Answer {
    let mut log = Log::default();
    let mut run_dir = None;
    let result = dispatch(variable, input, &mut log, &mut run_dir);
    let word = |name| variable(name).unwrap_or_default();
    let what = format!("{} {} {}", word("CNI_COMMAND"), word("CNI_CONTAINERID"), word("CNI_IFNAME"));
    let (output, outcome) = match result {
        Ok(output) => (Ok(output), "ok".to_owned()),
        Err(error) => {
            let outcome = format!("error {}: {error}", error.code);
            (Err(error.to_json(config::spoken_version(input))), outcome)
        }
    };
    // STATUS comes every few seconds.
    if !(output.is_ok() && matches!(word("CNI_COMMAND").as_str(), "STATUS" | "VERSION")) {
        log.finish(run_dir.as_deref(), what.trim_end(), &outcome);
    }
    match output {
        Ok(output) => Answer { output, failed: false },
        Err(object) => Answer { output: Some(object), failed: true },
    }
}

fn dispatch(
    variable: &dyn Fn(&str) -> Option<String>,
    input: &[u8],
    log: &mut Log,
    run_dir: &mut Option<std::path::PathBuf>,
) -> Result<Option<Value>, CniError> {
    let command = Command::read(variable)?;
    if command == Command::Version {
        return version(input).map(Some);
    }
    let environment = Environment::read(command, variable)?;
    let config = Config::read(input, command)?;
    *run_dir = Some(config.run_dir.clone());
    let since = |oldest: CniVersion, name: &str| {
        if config.version >= oldest {
            return Ok(());
        }
        let msg = format!("cniVersion {} has no {name}, only {oldest} and later", config.version);
        Err(CniError::new(code::VERSION, msg))
    };
    match command {
        Command::Add => add::add(&environment, &config, log).map(|r| Some(r.to_json(config.version))),
        Command::Del => del::del(&environment, &config, log).map(|()| None),
        Command::Check => {
            since(CniVersion::V040, "CHECK")?;
            check::check(&environment, &config).map(|()| None)
        }
        Command::Gc => {
            since(CniVersion::V110, "GC")?;
            del::gc(&environment, &config, log).map(|()| None)
        }
        Command::Status => {
            since(CniVersion::V110, "STATUS")?;
            status::status(&environment, &config).map(|()| None)
        }
        Command::Version => version(input).map(Some),
    }
}

/// VERSION speaks every version, even those that come after this plugin.
fn version(input: &[u8]) -> Result<Value, CniError> {
    let conf = if input.iter().all(u8::is_ascii_whitespace) { Map::new() } else { config::decode(input)? };
    let asked = conf.get("cniVersion").and_then(Value::as_str);
    Ok(json!({
        "cniVersion": asked.unwrap_or(CniVersion::NEWEST.as_str()),
        "supportedVersions": CniVersion::ALL.map(CniVersion::as_str),
    }))
}
