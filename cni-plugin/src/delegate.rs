//! Address management by another plugin (specification, section 4, "Plugin delegation").

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fairlead_ipam::Owner;
use serde_json::Value;

use crate::config::{Addresses, Config};
use crate::environment::Environment;
use crate::error::{CniError, code};
use crate::result::Success;

/// The plugin that manages this network's addresses.
#[derive(Debug)]
pub struct Delegate<'a> {
    kind: &'a str,
    config: &'a Config,
    environment: &'a Environment,
}

impl<'a> Delegate<'a> {
    /// `None` where the built-in allocator does.
    pub fn of(config: &'a Config, environment: &'a Environment) -> Option<Self> {
        match &config.addresses {
            Addresses::Delegated(kind) => Some(Self { kind, config, environment }),
            Addresses::Node { .. } | Addresses::Ranges(_) => None,
        }
    }

    /// Whether the executable is there, so that nothing need be undone for its sake.
    ///
    /// # Errors
    /// Code 109.
    pub fn find(&self) -> Result<PathBuf, CniError> {
        let executable = |path: &PathBuf| {
            path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        };
        self.environment.path.iter().map(|folder| folder.join(self.kind)).find(executable).ok_or_else(|| {
            let searched: Vec<String> =
                self.environment.path.iter().map(|p| p.display().to_string()).collect();
            CniError::new(code::DELEGATE, format!("ipam.type: there is no plugin {:?}", self.kind))
                .details(format!("CNI_PATH: {}", searched.join(", ")))
        })
    }

    /// Has it reserve addresses.
    ///
    /// # Errors
    /// Its own, or code 109 where it gives none or cannot be run.
    pub fn add(&self) -> Result<Success, CniError> {
        let owner = Owner {
            container_id: self.environment.container_id.clone(),
            ifname: self.environment.ifname.clone(),
        };
        let output = self.run("ADD", Some(&owner))?;
        let result = Success::from_json(&output, &format!("result of ipam.type {:?}", self.kind))
            .map_err(|e| CniError::new(code::DELEGATE, e.msg))?;
        if result.ips.is_empty() {
            return Err(CniError::new(code::DELEGATE, format!("{:?} gave no address", self.kind)));
        }
        Ok(result)
    }

    /// Has it release what an owner has.
    ///
    /// # Errors
    /// Its own, or code 109.
    pub fn del(&self, owner: &Owner) -> Result<(), CniError> {
        self.run("DEL", Some(owner)).map(drop)
    }

    /// Has it check what this attachment has.
    ///
    /// # Errors
    /// Its own, or code 109.
    pub fn check(&self) -> Result<(), CniError> {
        let owner = Owner {
            container_id: self.environment.container_id.clone(),
            ifname: self.environment.ifname.clone(),
        };
        self.run("CHECK", Some(&owner)).map(drop)
    }

    /// Passes STATUS on.
    ///
    /// # Errors
    /// Its own, or code 109; 50 where it does not speak the configuration's version, and so could not
    /// serve ADD either.
    pub fn status(&self) -> Result<(), CniError> {
        if self.speaks()? {
            return self.run("STATUS", None).map(drop);
        }
        let msg = format!("ipam.type: {:?} does not speak CNI {}", self.kind, self.config.version);
        Err(CniError::new(code::NOT_AVAILABLE, msg))
    }

    /// Passes GC on, where it speaks the configuration's version: another has never given anything to
    /// this network.
    ///
    /// # Errors
    /// Its own, or code 109.
    pub fn gc(&self) -> Result<(), CniError> {
        if self.speaks()? { self.run("GC", None).map(drop) } else { Ok(()) }
    }

    /// Whether it speaks the version of the configuration, and so has that version's verbs. One that
    /// does not would take GC for a call without a container.
    fn speaks(&self) -> Result<bool, CniError> {
        let answer = self.run("VERSION", None)?;
        let spoken = answer.get("supportedVersions").and_then(Value::as_array);
        let version = self.config.version.as_str();
        Ok(spoken.is_some_and(|all| all.iter().any(|v| v.as_str() == Some(version))))
    }

    fn run(&self, verb: &str, owner: Option<&Owner>) -> Result<Value, CniError> {
        let path = self.find()?;
        let failed = |e: &dyn std::fmt::Display| {
            CniError::new(code::DELEGATE, format!("{} {verb}: {e}", path.display()))
        };
        let mut command = Command::new(&path);
        command.env("CNI_COMMAND", verb).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(owner) = owner {
            command.env("CNI_CONTAINERID", &owner.container_id).env("CNI_IFNAME", &owner.ifname);
        }
        let mut child = command.spawn().map_err(|e| failed(&e))?;
        if let Some(mut stdin) = child.stdin.take() {
            // It need not read all of it.
            let _ = stdin.write_all(self.config.raw.to_string().as_bytes());
        }
        let output = child.wait_with_output().map_err(|e| failed(&e))?;
        let json: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if output.status.success() {
            return match json {
                Some(json) => Ok(json),
                None if output.stdout.iter().all(u8::is_ascii_whitespace) => Ok(Value::Null),
                None => Err(failed(&"its answer is not JSON")),
            };
        }
        let error = json.and_then(|e| {
            Some(CniError {
                code: u32::try_from(e.get("code")?.as_u64()?).ok()?,
                msg: e.get("msg")?.as_str()?.to_owned(),
                details: e.get("details").and_then(Value::as_str).unwrap_or_default().to_owned(),
            })
        });
        Err(error.unwrap_or_else(|| failed(&output.status)))
    }
}
