//! `fairlead explain`.

use std::io::{self, Write};

use clap::Args;
use fairlead_api::status::{DirectionExplanation, Explanation, Verdict};
use serde::Deserialize as _;

use super::print::Style;
use super::{Answer, Asking, encode};

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct Options {
    /// Who opens it: a pod as NAMESPACE/NAME, or an IP address.
    #[arg(long)]
    from: String,
    /// To whom: a pod as NAMESPACE/NAME, or an IP address.
    #[arg(long)]
    to: String,
    /// On what port: 80/tcp, 53/udp, 9/sctp, icmp or other.
    #[arg(long)]
    port: String,
}

pub(super) fn run(options: &Options, asking: &Asking, out: &mut impl Write) -> anyhow::Result<Answer> {
    let Options { from, to, port } = options;
    // Checked here too, so that nothing odd stands in the path.
    crate::api::party(from).map_err(|e| anyhow::anyhow!("--from: {e}"))?;
    crate::api::party(to).map_err(|e| anyhow::anyhow!("--to: {e}"))?;
    crate::api::target(port).map_err(|e| anyhow::anyhow!("--port: {e}"))?;
    let path = format!("/v1/explain?from={}&to={}&port={}", encode(from), encode(to), encode(port));
    let value = asking.get(&path)?;
    let answer = Explanation::deserialize(&value)?;
    let printed = asking.print(out, &value, |out| print(out, &answer, (from, to, port), asking.style));
    Ok(Answer { code: u8::from(!answer.allowed), printed })
}

fn print(
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
