//! Tables and sentences.

use std::collections::BTreeMap;
use std::io::{self, Write};

use fairlead_api::status::{DirectionExplanation, Explanation, Status, Verdict};
use fairlead_api::{DirectionCounters, EndpointStatus};

use crate::host::uninstall::Report;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Whether the reader sees colours.
    pub(super) colour: bool,
}

impl Style {
    fn paint(self, code: u8, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn good(self, text: &str) -> String {
        self.paint(32, text)
    }

    fn bad(self, text: &str) -> String {
        self.paint(31, text)
    }
}

/// Left-aligned columns, two spaces apart.
fn table(out: &mut impl Write, head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count());
        cells.chain(head.get(i).map(|h| h.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let head: Vec<String> = head.iter().map(|&h| h.to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}

fn pod(endpoint: &EndpointStatus) -> String {
    match &endpoint.attachment.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => format!("({})", endpoint.attachment.container_id.chars().take(12).collect::<String>()),
    }
}

fn addresses(endpoint: &EndpointStatus) -> String {
    let all: Vec<String> = endpoint.attachment.addresses.iter().map(ToString::to_string).collect();
    all.join(",")
}

fn isolated(endpoint: &EndpointStatus) -> &'static str {
    match (endpoint.unlocked, endpoint.ingress_isolated, endpoint.egress_isolated) {
        (false, ..) => "locked",
        (_, false, false) => "no",
        (_, true, false) => "ingress",
        (_, false, true) => "egress",
        (_, true, true) => "both",
    }
}

fn drops(counters: &DirectionCounters) -> u64 {
    counters.drops.values().sum()
}

pub(super) fn endpoints(out: &mut impl Write, endpoints: &[EndpointStatus]) -> io::Result<()> {
    let rows: Vec<Vec<String>> = endpoints
        .iter()
        .map(|e| {
            vec![
                pod(e),
                addresses(e),
                isolated(e).to_owned(),
                e.attachment.host_ifname.clone(),
                e.slot.to_string(),
                e.attachment.pod_mac.to_string(),
                e.attachment.mtu.to_string(),
                e.attachment.container_id.chars().take(12).collect(),
            ]
        })
        .collect();
    let head = ["POD", "ADDRESSES", "ISOLATED", "INTERFACE", "SLOT", "MAC", "MTU", "CONTAINER"];
    table(out, &head, &rows)
}

pub(super) fn status(out: &mut impl Write, status: &Status, style: Style) -> io::Result<()> {
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

pub(super) fn explanation(
    out: &mut impl Write,
    answer: &Explanation,
    (from, to, port): (&str, &str, &str),
    style: Style,
) -> io::Result<()> {
    let verdict = if answer.allowed { style.good("allowed") } else { style.bad("denied") };
    writeln!(out, "{from} -> {to} {port}: {verdict}")?;
    for (name, field, end, direction) in
        [("egress ", "egress", from, &answer.egress), ("ingress", "ingress", to, &answer.ingress)]
    {
        match direction {
            None => writeln!(out, "  {name}  no rules: {end} is not a pod")?,
            Some(direction) => explain_direction(out, name, field, direction, style)?,
        }
    }
    Ok(())
}

fn explain_direction(
    out: &mut impl Write,
    name: &str,
    field: &str,
    direction: &DirectionExplanation,
    style: Style,
) -> io::Result<()> {
    let subject = &direction.subject;
    let policies: Vec<String> = direction.isolated_by.iter().map(ToString::to_string).collect();
    match direction.verdict {
        Verdict::NotIsolated => {
            writeln!(out, "  {name}  {}: no policy selects {subject}", style.good("open"))
        }
        Verdict::Unknown => {
            writeln!(out, "  {name}  {}: {subject} or its namespace is not known", style.bad("closed"))
        }
        Verdict::Denied => writeln!(
            out,
            "  {name}  {}: {subject} is isolated by {} and no rule allows it",
            style.bad("denied"),
            policies.join(", ")
        ),
        Verdict::Allowed => {
            writeln!(out, "  {name}  {} by", style.good("allowed"))?;
            for rule in &direction.allowed_by {
                writeln!(out, "             {} spec.{field}[{}]", rule.policy, rule.rule)?;
            }
            Ok(())
        }
    }
}

/// What an uninstall did.
pub(super) fn uninstalled(out: &mut impl Write, report: &Report, verified: bool) -> io::Result<()> {
    for trace in &report.found {
        writeln!(out, "found     {trace}")?;
    }
    for problem in &report.problems {
        writeln!(out, "PROBLEM   {problem}")?;
    }
    for trace in &report.left {
        writeln!(out, "LEFT      {trace}")?;
    }
    match (verified, report.left.len()) {
        (false, _) => writeln!(out, "removed {}; --verify would look again", report.found.len()),
        (true, 0) => writeln!(out, "removed {}; nothing of Fairlead's is left", report.found.len()),
        (true, left) => writeln!(out, "removed {}; {left} are left", report.found.len().saturating_sub(left)),
    }
}
