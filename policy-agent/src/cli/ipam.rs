//! `fairlead ipam`: what is reserved, and whether it agrees with the kernel. It reads the run directory and
//! the kernel itself, so the agent need not run.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use fairlead_api::RunDir;
use fairlead_cni::audit::{Reserved, audit};

use super::{Answer, Asking};

/// An ADD or DEL that is under way looks like something off: what is off twice, this far apart, is off.
const AGAIN: Duration = Duration::from_millis(300);

/// Arguments of `ipam`.
#[derive(Args, Debug)]
pub struct Options {
    /// More than to show them.
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do with reserved addresses.
#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Whether attachments, reservations and kernel agree. Exit code 1, and what is off, where they do not.
    Check,
}

pub(super) fn run(options: &Options, asking: &Asking, out: &mut impl Write) -> anyhow::Result<Answer> {
    let found = look(&RunDir(asking.run_dir.clone()))?;
    let printed = asking.print(out, &serde_json::to_value(&found)?, |out| match options.command {
        None => reserved(out, &found),
        Some(Command::Check) => faults(out, &found),
    });
    Ok(Answer { code: u8::from(options.command.is_some() && !found.faults.is_empty()), printed })
}

/// What is reserved, with what is off; looked at twice where something seems to be.
fn look(run: &RunDir) -> anyhow::Result<Reserved> {
    let first = audit(run)?;
    if first.faults.is_empty() {
        return Ok(first);
    }
    std::thread::sleep(AGAIN);
    let before: BTreeSet<String> = first.faults.into_iter().collect();
    let mut again = audit(run)?;
    again.faults.retain(|fault| before.contains(fault));
    Ok(again)
}

/// Prints what is reserved, for people.
fn reserved(out: &mut impl Write, reserved: &Reserved) -> io::Result<()> {
    for pool in &reserved.pools {
        writeln!(
            out,
            "pool {}: {} used, {} resting, {} given early",
            pool.pool, pool.used, pool.resting, pool.early
        )?;
    }
    if reserved.addresses.is_empty() {
        return writeln!(out, "no address is reserved");
    }
    writeln!(out, "{:<40} {:<17} {:<34} CONTAINER", "ADDRESS", "INTERFACE", "POD")?;
    for a in &reserved.addresses {
        let interface = a.host_ifname.as_deref().unwrap_or("-");
        let pod = a.pod.as_deref().unwrap_or("-");
        let elsewhere = if a.pool.is_none() { "  (another plugin's)" } else { "" };
        writeln!(
            out,
            "{:<40} {interface:<17} {pod:<34} {}:{}{elsewhere}",
            a.address, a.container_id, a.ifname
        )?;
    }
    Ok(())
}

/// Prints what is off, for people.
fn faults(out: &mut impl Write, reserved: &Reserved) -> io::Result<()> {
    for fault in &reserved.faults {
        writeln!(out, "{fault}")?;
    }
    match reserved.faults.len() {
        0 => writeln!(
            out,
            "{} addresses: attachments, reservations and kernel agree",
            reserved.addresses.len()
        ),
        n => writeln!(out, "{n} things are off"),
    }
}
