//! `fairlead status`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use fairlead_api::status::Status;
use serde::Deserialize as _;

use super::print::{Style, addresses, drops, isolated, pod, table};
use super::{Answer, Asking};

pub(super) fn run(asking: &Asking, out: &mut impl Write) -> anyhow::Result<Answer> {
    let value = asking.get("/v1/status")?;
    let status = Status::deserialize(&value)?;
    let printed = asking.print(out, &value, |out| print(out, &status, asking.style));
    Ok(Answer { code: u8::from(!status.ready), printed })
}

fn print(out: &mut impl Write, status: &Status, style: Style) -> io::Result<()> {
    let ready = match (status.ready, &status.waiting_for) {
        (true, _) => style.good("ready"),
        (false, None) => style.bad("not ready"),
        (false, Some(what)) => format!("{} ({what})", style.bad("not ready")),
    };
    writeln!(out, "Agent     {} on node {}: {ready}", status.version, status.node)?;
    writeln!(out, "Uplink    {}", status.uplink.as_deref().unwrap_or("-"))?;
    let count = |name: &str| status.counts.get(name).copied().unwrap_or_default();
    writeln!(
        out,
        "Known     {} nodes, {} namespaces, {} pods, {} policies (step {} in force)",
        count("nodes"),
        count("namespaces"),
        count("pods"),
        count("policies"),
        status.policy_serial
    )?;
    writeln!(out)?;
    let mut rows = Vec::new();
    let mut reasons: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for endpoint in &status.endpoints {
        let (ingress, egress) = (&endpoint.counters.ingress, &endpoint.counters.egress);
        rows.push(vec![
            pod(endpoint),
            addresses(endpoint),
            isolated(endpoint).to_owned(),
            ingress.packets.to_string(),
            drops(ingress).to_string(),
            egress.packets.to_string(),
            drops(egress).to_string(),
        ]);
        for (direction, counters) in [("in", ingress), ("out", egress)] {
            for (reason, n) in counters.drops.iter().filter(|(_, n)| **n > 0) {
                *reasons.entry((direction, reason)).or_default() += n;
            }
        }
    }
    let head = ["POD", "ADDRESSES", "ISOLATED", "IN", "DROPPED", "OUT", "DROPPED"];
    if rows.is_empty() {
        writeln!(out, "No endpoints.")?;
    } else {
        table(out, &head, &rows)?;
    }
    if !reasons.is_empty() {
        writeln!(out, "\nDropped, by reason")?;
        for ((direction, reason), n) in reasons {
            writeln!(out, "  {n:>10}  {direction:<3}  {reason}")?;
        }
    }
    if !status.problems.is_empty() {
        writeln!(out, "\n{}", style.bad(&format!("Problems ({})", status.problems.len())))?;
        for problem in &status.problems {
            writeln!(out, "  {problem}")?;
        }
    }
    Ok(())
}
