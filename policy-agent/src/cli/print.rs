//! What the subcommands' output has in common: colours, tables, names.

use std::io::{self, Write};

use fairlead_api::{DirectionCounters, EndpointStatus};

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

    pub(super) fn good(self, text: &str) -> String {
        self.paint(32, text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint(31, text)
    }
}

/// Left-aligned columns, two spaces apart.
pub(super) fn table(out: &mut impl Write, head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
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

/// The endpoint's pod, or its sandbox where it is not Kubernetes'.
pub(super) fn pod(endpoint: &EndpointStatus) -> String {
    match &endpoint.attachment.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => format!("({})", endpoint.attachment.container_id.chars().take(12).collect::<String>()),
    }
}

pub(super) fn addresses(endpoint: &EndpointStatus) -> String {
    let all: Vec<String> = endpoint.attachment.addresses.iter().map(ToString::to_string).collect();
    all.join(",")
}

/// In what directions policies isolate it.
pub(super) fn isolated(endpoint: &EndpointStatus) -> &'static str {
    match (endpoint.unlocked, endpoint.ingress_isolated, endpoint.egress_isolated) {
        (false, ..) => "locked",
        (_, false, false) => "no",
        (_, true, false) => "ingress",
        (_, false, true) => "egress",
        (_, true, true) => "both",
    }
}

/// Packets dropped, whatever the reason.
pub(super) fn drops(counters: &DirectionCounters) -> u64 {
    counters.drops.values().sum()
}
