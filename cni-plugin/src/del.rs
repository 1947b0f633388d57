//! DEL and GC: what is asked for is gone afterwards, and asking again is no error.

use std::time::Duration;

use fairlead_api::client::{Client, endpoint_path};
use fairlead_api::{Attachment, RunDir};
use fairlead_ipam::Owner;
use nix::net::if_::if_nametoindex;

use crate::add;
use crate::bpf;
use crate::config::Config;
use crate::delegate::Delegate;
use crate::environment::Environment;
use crate::error::{CniError, code};
use crate::ledger::{self, Ledger, host_ifname, interface_name, owner_of};
use crate::log::Log;
use crate::unlink;

/// How long DEL waits for the agent. It finds out by itself what it was not told.
const FAREWELL: Duration = Duration::from_secs(1);

/// Removes an attachment.
///
/// # Errors
/// Code 108 where something could not be removed; all else is removed nevertheless.
pub fn del(environment: &Environment, config: &Config, log: &mut Log) -> Result<(), CniError> {
    let run = RunDir(config.run_dir.clone());
    let owner = Owner { container_id: environment.container_id.clone(), ifname: environment.ifname.clone() };
    let attachment = match Ledger::attachment(&run, &owner) {
        Ok(Some(a)) if a.network != config.name => {
            log.note(format!("{owner} is of network {}, not {}", a.network, config.name));
            return Ok(());
        }
        Ok(attachment) => attachment,
        Err(e) => {
            log.note(e.msg);
            None
        }
    };
    remove(&run, &owner, attachment.as_ref(), Delegate::of(config, environment).as_ref(), log)
}

/// Removes every attachment of the network that is not listed as valid. Without a list, which the
/// specification asks for and libcni leaves out for callers that name none: those whose sandbox is
/// gone, for to take it for an empty one would be to remove pods that live.
///
/// # Errors
/// Code 108 where something could not be removed, all else is.
pub fn gc(environment: &Environment, config: &Config, log: &mut Log) -> Result<(), CniError> {
    let run = RunDir(config.run_dir.clone());
    let stale = |a: &Attachment| match &config.attachments {
        Some(valid) => !valid.contains(&owner_of(a)),
        None => !ledger::sandbox_lives(a),
    };
    if !run.path().exists() {
        return Ok(());
    }
    let (attachments, _) = Ledger::lock(&run)?.attachments()?;
    let mut faults = Vec::new();
    let delegate = Delegate::of(config, environment);
    for attachment in attachments {
        let owner = owner_of(&attachment);
        if attachment.network == config.name && stale(&attachment) {
            log.note(format!("removing {owner}"));
            if let Err(e) = remove(&run, &owner, Some(&attachment), delegate.as_ref(), log) {
                faults.push(format!("{owner}: {}", e.msg));
            }
        }
    }
    if let Some(delegate) = &delegate {
        faults.extend(delegate.gc().err().map(|e| e.msg));
    }
    // What an attachment left that nobody knows any more; of which network it was nobody knows either.
    let unlisted = |owner: &Owner| config.attachments.as_ref().is_none_or(|valid| !valid.contains(owner));
    match Ledger::lock(&run).and_then(|mut ledger| ledger.sweep(unlisted)) {
        Ok(swept) => {
            for lease in swept.freed {
                log.note(format!("{} of {} freed: there is no such attachment", lease.address, lease.owner));
            }
            for entry in swept.unreadable {
                log.note(format!("{}: {}", entry.owner, entry.why));
            }
            for what in swept.mended {
                log.note(what);
            }
        }
        Err(e) => faults.push(e.msg),
    }
    if faults.is_empty() { Ok(()) } else { Err(CniError::new(code::INCOMPLETE, faults.join("; "))) }
}

/// The interface on the host: as recorded, or the one of its name where there is no record.
fn interface(owner: &Owner, attachment: Option<&Attachment>) -> Option<u32> {
    match attachment {
        Some(a) => (interface_name(a.host_ifindex)? == a.host_ifname).then_some(a.host_ifindex),
        None => if_nametoindex(host_ifname(owner).as_str()).ok(),
    }
}

fn remove(
    run: &RunDir,
    owner: &Owner,
    attachment: Option<&Attachment>,
    delegate: Option<&Delegate<'_>>,
    log: &mut Log,
) -> Result<(), CniError> {
    let mut faults = Vec::new();
    let index = interface(owner, attachment);
    // First of all, so that it is dead whatever comes next.
    if let Some(index) = index.or(attachment.map(|a| a.host_ifindex))
        && let Ok(node) = ledger::read_node(run)
        && let Err(e) = bpf::kill(&node.frozen, index)
    {
        log.note(format!("kill: {e}"));
    }
    log.step("kill");
    if let Some(index) = index {
        faults.extend(unlink::remove(index).err());
    }
    if let Some(a) = attachment.filter(|a| a.apart) {
        add::remove_rules(a, log);
    }
    log.step("link");
    // An address of an interface that is still there must not be given to another.
    if faults.is_empty()
        && let Some(delegate) = delegate
    {
        faults.extend(delegate.del(owner).err().map(|e| e.msg));
        log.step("delegate");
    }
    let known =
        attachment.is_some() || index.is_some() || run.endpoint(&owner.container_id, &owner.ifname).exists();
    if known {
        let client = Client::new(run.socket()).with_timeout(FAREWELL);
        if let Err(e) = client.delete(&endpoint_path(&owner.container_id, &owner.ifname)) {
            log.note(format!("agent: {e}"));
        }
        log.step("agent");
        if faults.is_empty() {
            let released = Ledger::lock(run).and_then(|mut ledger| ledger.release(owner));
            faults.extend(released.err().map(|e| e.msg));
        }
        log.step("release");
    } else if run.ipam().join("busy").is_symlink() {
        // An ADD was killed before it was written down, maybe this one: locking cleans up after it.
        faults.extend(Ledger::lock(run).err().map(|e| e.msg));
    }
    if faults.is_empty() { Ok(()) } else { Err(CniError::new(code::INCOMPLETE, faults.join("; "))) }
}
