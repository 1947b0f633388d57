//! `fairlead drops`.

use std::io::{self, ErrorKind, Write};

use clap::Args;
use fairlead_api::drops::{DropEvent, DropLine, End};
use fairlead_api::status::{DirectionExplanation, Verdict};

use super::print::Style;
use super::{Answer, Asking, Output, encode};
use crate::api::Filter;

/// Arguments of `drops`.
#[derive(Debug, Args)]
pub struct Options {
    /// Go on with what is dropped from now on, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// Only packets from or to this pod, as NAMESPACE/NAME.
    #[arg(long)]
    pod: Option<String>,
    /// Only packets dropped for this reason, as `ingress_denied`.
    #[arg(long)]
    reason: Option<String>,
}

pub(super) fn run(options: &Options, asking: &Asking, out: &mut impl Write) -> anyhow::Result<Answer> {
    // Checked here too, so that a wrong word is told by its flag.
    Filter::new(options.pod.as_deref(), options.reason.as_deref())
        .map_err(|(flag, e)| anyhow::anyhow!("--{flag}: {e}"))?;
    let mut path = format!("/v1/drops?follow={}", options.follow);
    for (name, value) in [("pod", &options.pod), ("reason", &options.reason)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", encode(value)));
        }
    }
    let mut printed = Ok(());
    let asked = asking.client.lines(&path, |line| {
        printed = match asking.output {
            // The agent's line is what programs get.
            Output::Json => out.write_all(line).and_then(|()| out.write_all(b"\n")),
            Output::Text => serde_json::from_slice(line)
                .map_err(io::Error::from)
                .and_then(|line| print(out, &line, asking.style)),
        }
        // Whoever follows sees each at once.
        .and_then(|()| if options.follow { out.flush() } else { Ok(()) });
        printed.is_ok()
    });
    match printed {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(Answer { code: 0, printed: Err(e) }),
        Err(e) => Err(e.into()),
        Ok(()) => {
            asked.map_err(|e| asking.advise(e))?;
            Ok(Answer { code: 0, printed: Ok(()) })
        }
    }
}

fn print(out: &mut impl Write, line: &DropLine, style: Style) -> io::Result<()> {
    match line {
        DropLine::Skipped { skipped } => writeln!(out, "({skipped} events came too fast to be shown)"),
        DropLine::Event(event) => {
            if event.missed > 0 {
                writeln!(out, "({} more drops of the next one's interface have no event)", event.missed)?;
            }
            let (source, destination) = (end(&event.source), end(&event.destination));
            let reason = style.bad(&event.reason);
            writeln!(out, "{}  {source} -> {destination} {}  {reason}", event.time, event.protocol)?;
            if let Some(policy) = &event.policy {
                writeln!(out, "    {}", why(event, policy))?;
            }
            Ok(())
        }
    }
}

/// `shop/web 10.244.1.2:40112`
fn end(end: &End) -> String {
    let address = match (end.address, end.port) {
        (None, _) => "?".to_owned(),
        (Some(address), None) => address.to_string(),
        (Some(address), Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
    };
    match &end.pod {
        Some(pod) => format!("{pod} {address}"),
        None => address,
    }
}

/// Which rule is missing.
fn why(event: &DropEvent, policy: &DirectionExplanation) -> String {
    let subject = &policy.subject;
    // A revoked flow's packet may be a reply: what is denied is the tuple that opened the flow, whose
    // destination is the subject (ingress) or the peer that was asked about.
    let is_peer = |end: &End| end.address.is_some() && end.address == policy.peer;
    let (peer, own) = if is_peer(&event.source) && !is_peer(&event.destination) {
        (&event.source, &event.destination)
    } else {
        (&event.destination, &event.source)
    };
    let ingress = event.policy_direction.as_deref() == Some("ingress");
    let opened = if ingress { own } else { peer };
    let who = |end: &End| match (&end.pod, end.address) {
        (Some(pod), _) => pod.to_string(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "?".to_owned(),
    };
    let on = opened.port.map_or_else(|| event.protocol.clone(), |port| format!("{port}/{}", event.protocol));
    let mut text = match policy.verdict {
        Verdict::Denied => {
            let policies: Vec<String> = policy.isolated_by.iter().map(ToString::to_string).collect();
            let way = if ingress { "ingress from" } else { "egress to" };
            format!(
                "no policy of {subject} allows {way} {} on {on}; policies that isolate it: {}",
                who(peer),
                policies.join(", ")
            )
        }
        Verdict::Unknown => format!("{subject} or its namespace is not known"),
        Verdict::NotIsolated | Verdict::Allowed => "the policies now in force allow it".to_owned(),
    };
    if event.policy_changed {
        text.push_str(" (policy has changed since)");
    }
    text
}
