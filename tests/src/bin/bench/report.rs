//! What a section hands back.

use serde::{Deserialize, Serialize};

/// A measured number with a stable name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// `section.…`, never renamed.
    pub(crate) name: String,
    /// The number.
    pub(crate) value: f64,
    /// Of what: `ratio`, `ms`, `ns`, …
    pub(crate) unit: String,
    /// What it was measured beside, and that one's own number.
    pub(crate) baseline: Option<String>,
    /// What it should be at most, or at least.
    pub(crate) target: Option<f64>,
    /// Whether it is.
    pub(crate) met: Option<bool>,
}

impl Figure {
    /// A number.
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &str) -> Self {
        // What lies beyond a tenth of a per cent is noise.
        let rounded = format!("{value:.3e}").parse().unwrap_or(value);
        Self {
            name: name.into(),
            value: rounded,
            unit: unit.to_owned(),
            baseline: None,
            target: None,
            met: None,
        }
    }

    /// Measured beside this.
    pub(crate) fn beside(mut self, baseline: impl Into<String>) -> Self {
        self.baseline = Some(baseline.into());
        self
    }

    /// It should be at most this.
    pub(crate) fn at_most(mut self, target: f64) -> Self {
        self.target = Some(target);
        self.met = Some(self.value <= target);
        self
    }

    /// It should be at least this.
    pub(crate) fn at_least(mut self, target: f64) -> Self {
        self.target = Some(target);
        self.met = Some(self.value >= target);
        self
    }

    /// "met", "not met", or nothing where there is no target.
    pub(crate) fn verdict(&self) -> &'static str {
        match self.met {
            None => "",
            Some(true) => "met",
            Some(false) => "**not met**",
        }
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} = {} {}", self.name, self.value, self.unit)?;
        if let Some(baseline) = &self.baseline {
            write!(f, " (beside {baseline})")?;
        }
        if let Some(target) = self.target {
            write!(f, ", target {target}: {}", self.verdict().trim_matches('*'))?;
        }
        Ok(())
    }
}

/// What a section hands back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Its numbers.
    pub(crate) figures: Vec<Figure>,
    /// Its part of the document, in Markdown, without the title.
    pub(crate) text: String,
    /// Pictures: file name in docs/img, and SVG.
    pub(crate) plots: Vec<(String, String)>,
}

/// A table in Markdown.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|&c| c.to_owned()).collect();
    let rule: Vec<String> =
        head.iter().enumerate().map(|(i, _)| if i == 0 { "---" } else { "---:" }.to_owned()).collect();
    let mut text = line(&head) + &line(&rule);
    for row in rows {
        text.push_str(&line(row));
    }
    text
}
