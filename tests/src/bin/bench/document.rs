//! `docs/performance.md` and `target/bench/results.json`: a partial run replaces only its part.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::report::{Figure, Report, table};
use crate::{SECTIONS, Section, machine};

/// What has been measured so far.
pub(crate) struct Document {
    root: PathBuf,
    figures: Vec<Figure>,
    /// Rows of the table of targets. Those of sections that are not run stay as the document has them, whatever results lie
    /// about: they may be another run's than the one that the document tells of.
    rows: Vec<Vec<String>>,
    /// Text by section, its markers not included.
    parts: BTreeMap<String, String>,
}

/// Heading of the table of targets.
const TARGETS: &str = "## Targets\n\n";
/// The part that people write: it stays as it is.
const NOTES: &str = "notes";

fn begin(section: &str) -> String {
    format!("<!-- section: {section} -->\n")
}

fn end(section: &str) -> String {
    format!("<!-- end: {section} -->\n")
}

/// The part of a section in a document.
fn part(text: &str, section: &str) -> Option<String> {
    let (_, rest) = text.split_once(&begin(section))?;
    Some(rest.split_once(&end(section))?.0.to_owned())
}

/// The rows of a document's table of targets.
fn rows(text: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        let cells = line.strip_prefix("| `")?.strip_suffix(" |")?;
        Some(format!("`{cells}").split(" | ").map(str::to_owned).collect())
    };
    let (_, targets) = text.split_once(TARGETS).unwrap_or_default();
    targets.lines().take_while(|line| !line.starts_with("<!--")).filter_map(cells).collect()
}

impl Document {
    /// Reads what is there.
    ///
    /// # Errors
    /// Where results are there and cannot be read.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let mut document =
            Self { root: root.to_owned(), figures: Vec::new(), rows: Vec::new(), parts: BTreeMap::new() };
        if let Ok(text) = fs::read_to_string(document.results()) {
            document.figures = serde_json::from_str(&text)
                .with_context(|| format!("{} is not what a run left", document.results().display()))?;
        }
        let text = fs::read_to_string(document.text()).unwrap_or_default();
        document.rows = rows(&text);
        for name in SECTIONS.iter().map(|section| section.name).chain([NOTES]) {
            if let Some(part) = part(&text, name) {
                document.parts.insert(name.to_owned(), part);
            }
        }
        Ok(document)
    }

    fn results(&self) -> PathBuf {
        self.root.join("target/bench/results.json")
    }

    fn text(&self) -> PathBuf {
        self.root.join("docs/performance.md")
    }

    /// Puts a section's report in the place of its last one, and writes everything.
    ///
    /// # Errors
    /// Where a figure is not named after its section, or something cannot be written.
    pub(crate) fn replace(&mut self, section: &Section, report: Report, command: &str) -> Result<()> {
        let prefix = format!("{}.", section.name);
        for figure in &report.figures {
            ensure!(figure.name.starts_with(&prefix), "figure {} is not named {prefix}…", figure.name);
        }
        self.rows.retain(|row| !row[0].starts_with(&format!("`{prefix}")));
        self.rows.extend(report.figures.iter().filter_map(row));
        // Section by section, each in its own order.
        self.rows.sort_by(|a, b| a[0].split('.').next().cmp(&b[0].split('.').next()));
        self.figures.retain(|f| !f.name.starts_with(&prefix));
        self.figures.extend(report.figures);
        let provenance =
            format!("`{command}`, commit {}, kernel {}.", machine::commit(&self.root), machine::kernel());
        let text = format!("## {}\n\n{provenance}\n\n{}\n", section.title, report.text.trim_end());
        self.parts.insert(section.name.to_owned(), text);
        for (name, svg) in &report.plots {
            write(&self.root.join("docs/img").join(name), svg)?;
        }
        write(&self.results(), &(serde_json::to_string_pretty(&self.figures)? + "\n"))?;
        write(&self.text(), &self.render())
    }

    fn render(&self) -> String {
        let mut text = String::from(
            "# Performance\n\n\
             Written by `cargo xtask bench`, but for the notes. Everything is measured side by side and interleaved\n\
             in one run on one machine, so ratios travel and times do not. Given are medians, in brackets the\n\
             quartiles; a ratio is the median of the ratios pair by pair, and *within noise* where its 95 %\n\
             confidence interval contains 1.\n\n\
             To repeat all of it, from a fresh clone on Debian 12 with rustup, as root or with sudo:\n\n\
             ```sh\ncargo xtask bench          # minutes\ncargo xtask bench --full   # an hour\n```\n\n",
        );
        let _ = writeln!(text, "- machine: {}", machine::machine());
        let _ = writeln!(text, "- system: {}, kernel {}", machine::system(), machine::kernel());
        let packages = machine::packages();
        let packages: Vec<String> =
            packages.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let _ = writeln!(text, "- beside and with: {}", packages.join(", "));
        let _ = writeln!(
            text,
            "- Fairlead {}, with the defaults that it ships with\n",
            env!("CARGO_PKG_VERSION")
        );
        if !self.rows.is_empty() {
            text.push_str(TARGETS);
            text.push_str(&table(&["figure", "measured", "beside", "target", ""], &self.rows));
            text.push('\n');
        }
        for name in [NOTES].into_iter().chain(SECTIONS.iter().map(|section| section.name)) {
            if let Some(part) = self.parts.get(name) {
                text.push_str(&begin(name));
                text.push_str(part);
                text.push_str(&end(name));
                text.push('\n');
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }
}

/// A figure's row in the table of targets, if it has a target.
fn row(f: &Figure) -> Option<Vec<String>> {
    let target = f.target?;
    let value = if f.unit == "ratio" { format!("{:.2}", f.value) } else { format!("{} {}", f.value, f.unit) };
    let beside = f.baseline.clone().unwrap_or_default();
    Some(vec![format!("`{}`", f.name), value, beside, target.to_string(), f.verdict().to_owned()])
}

fn write(path: &Path, content: &str) -> Result<()> {
    let told = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(told)?;
    }
    fs::write(path, content).with_context(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, value: f64, text: &str) -> Report {
        Report { figures: vec![Figure::new(name, value, "ms")], text: text.to_owned(), plots: Vec::new() }
    }

    #[test]
    fn a_run_replaces_its_section_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let section = SECTIONS.iter().find(|s| s.name == "cni").unwrap();
        let open = || Document::open(root.path()).unwrap();
        let mut document = open();
        document.figures.push(Figure::new("other.x", 7.0, "ns"));
        document.parts.insert(NOTES.to_owned(), "by hand\n".to_owned());
        document.replace(section, report("cni.a", 1.0, "first"), "c").unwrap();
        open().replace(section, report("cni.b", 2.0, "second"), "c").unwrap();
        let again = open();
        let names: Vec<&str> = again.figures.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["other.x", "cni.b"]);
        assert!(again.parts["cni"].contains("second") && !again.render().contains("first"));
        assert_eq!(again.parts[NOTES], "by hand\n");
        assert_eq!(fs::read_to_string(again.text()).unwrap(), again.render());
        assert!(open().replace(section, report("other.y", 1.0, ""), "c").is_err());
    }

    #[test]
    fn what_was_not_measured_again_keeps_its_targets_whatever_results_lie_about() {
        let root = tempfile::tempdir().unwrap();
        let section = |name: &str| SECTIONS.iter().find(|s| s.name == name).unwrap();
        let open = || Document::open(root.path()).unwrap();
        let reported = |name: &str, value: f64| Report {
            figures: vec![Figure::new(name, value, "ratio").beside("ptp".to_owned()).at_least(0.5)],
            ..report("unused", 0.0, "text")
        };
        for (name, figure) in [("cni", "cni.a"), ("update", "update.a")] {
            open().replace(section(name), reported(figure, 0.4), "c").unwrap();
        }
        // Gone, then another run's.
        let others = serde_json::to_string(&reported("cni.a", 0.9).figures).unwrap();
        for results in [None, Some(others)] {
            match results {
                None => fs::remove_file(open().results()).unwrap(),
                Some(text) => fs::write(open().results(), text).unwrap(),
            }
            open().replace(section("update"), reported("update.b", 0.6), "c").unwrap();
            let text = fs::read_to_string(open().text()).unwrap();
            let wanted = [
                ["`cni.a`", "0.40", "ptp", "0.5", "**not met**"],
                ["`update.b`", "0.60", "ptp", "0.5", "met"],
            ];
            assert_eq!(rows(&text), wanted);
            assert_eq!(text, open().render());
        }
    }
}
