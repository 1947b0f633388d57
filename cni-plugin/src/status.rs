//! STATUS: whether ADD would work.

use std::time::Duration;

use fairlead_api::RunDir;
use fairlead_api::client::Client;
use serde_json::Value;

use crate::bpf::Trampolines;
use crate::config::{Addresses, Config};
use crate::delegate::Delegate;
use crate::environment::Environment;
use crate::error::{CniError, code};
use crate::ledger::{Ledger, node_pools, read_node};

/// How long STATUS waits for the agent; runtimes ask every few seconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers nothing when ADD can be served.
///
/// # Errors
/// Code 50 while the agent is not ready, 51 where its programs are gone and pods were wired with them, 100
/// when no address is left, 107 when no more pods have room.
pub fn status(environment: &Environment, config: &Config) -> Result<(), CniError> {
    let run = RunDir(config.run_dir.clone());
    let unavailable = |msg: String| CniError::new(code::NOT_AVAILABLE, msg);
    let node = read_node(&run).map_err(|e| unavailable(e.msg))?;
    Trampolines::open(&node.frozen).map_err(|e| {
        // What is attached to those pods jumps into nothing, which drops.
        let wired = std::fs::read_dir(run.endpoints()).is_ok_and(|mut entries| entries.next().is_some());
        let code = if wired { code::LIMITED } else { code::NOT_AVAILABLE };
        CniError::new(code, format!("the agent's programs are not there: {e}"))
    })?;
    Client::new(run.socket())
        .with_timeout(PATIENCE)
        .get::<Value>("/v1/ready")
        .map_err(|e| unavailable(format!("the agent is not ready: {e}")))?;
    let sets = match &config.addresses {
        Addresses::Node { exclude } => node_pools(&node, exclude).map_err(|e| unavailable(e.msg))?,
        Addresses::Ranges(sets) => sets.clone(),
        Addresses::Delegated(_) => {
            return Delegate::of(config, environment).map_or(Ok(()), |delegate| delegate.status());
        }
    };
    let mut ledger = Ledger::lock(&run)?;
    if !ledger.available(&sets)? {
        let msg = format!("every address of node {} is in use", node.node_name);
        return Err(CniError::new(code::EXHAUSTED, msg));
    }
    if !ledger.has_slot()? {
        let msg = format!("node {} has as many pods as it can", node.node_name);
        return Err(CniError::new(code::NO_SLOT, msg));
    }
    Ok(())
}
