//! Measures Fairlead beside others, interleaved, and writes what came out.
//!
//! Each section is a module with one function from [`Settings`] to [`Report`].
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is for people")]

mod across;
mod cni;
mod compile;
mod datapath;
mod document;
mod drops;
mod machine;
mod memory;
mod nodes;
mod plot;
mod population;
mod report;
mod start;
mod stats;
mod update;
mod verdict;

use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use fairlead_tests::interrupt::unless_interrupted;

use crate::document::Document;
use crate::report::Report;

/// Measures Fairlead beside others.
#[derive(Parser)]
pub(crate) struct Settings {
    /// Sections to measure; all of them where none is named.
    sections: Vec<String>,
    /// The whole grid instead of what takes minutes.
    #[arg(long)]
    full: bool,
    /// Rounds of each comparison.
    #[arg(long)]
    rounds: Option<u32>,
    /// Nodes between which the datapath is measured.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    nodes: u32,
    /// Root of the repository, for the results.
    #[arg(long)]
    root: PathBuf,
    /// Measures the compiler at this size in this process, and prints what came out.
    #[arg(long, hide = true)]
    compile_scale: Option<f64>,
}

/// A section's measuring.
type Measuring<'s> = Pin<Box<dyn Future<Output = Result<Report>> + 's>>;

/// A part of the benchmarks.
struct Section {
    /// Its name, and the first word of its figures' names.
    name: &'static str,
    /// Its title in the document.
    title: &'static str,
    /// Measures.
    run: fn(&Settings) -> Measuring<'_>,
}

/// Open files that all sections can do with.
const OPEN_FILES: u64 = 16_384;

/// All sections, in the document's order.
const SECTIONS: [Section; 10] = [
    Section { name: "datapath", title: "Between two pods", run: |s| Box::pin(datapath::run(s)) },
    Section { name: "across", title: "Between two nodes", run: |s| Box::pin(across::run(s)) },
    Section { name: "drops", title: "What is denied", run: |s| Box::pin(drops::run(s)) },
    Section { name: "verdict", title: "What a verdict costs", run: |s| Box::pin(verdict::run(s)) },
    Section {
        name: "compile",
        title: "What compiling policy costs",
        run: |s| Box::pin(async move { compile::run(s) }),
    },
    Section { name: "cni", title: "The CNI plugin beside ptp and bridge", run: |s| Box::pin(cni::run(s)) },
    Section { name: "update", title: "From a change to the first packet", run: |s| Box::pin(update::run(s)) },
    Section { name: "nodes", title: "Nodes that come and go", run: |s| Box::pin(nodes::run(s)) },
    Section { name: "start", title: "Starting", run: |s| Box::pin(start::run(s)) },
    Section { name: "memory", title: "Memory", run: |s| Box::pin(memory::run(s)) },
];

fn main() -> ExitCode {
    let settings = Settings::parse();
    let outcome = match settings.compile_scale {
        Some(scale) => compile::measure(scale).map(|()| true),
        None => measure(&settings),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether every target of what was measured is met.
fn measure(settings: &Settings) -> Result<bool> {
    if let Some(stray) = settings.sections.iter().find(|s| SECTIONS.iter().all(|known| known.name != **s)) {
        let known: Vec<&str> = SECTIONS.iter().map(|s| s.name).collect();
        bail!("no section {stray:?}; there are: {}", known.join(", "));
    }
    // The datapath between two nodes is a section of its own, so that neither takes the other's place.
    let asked = |s: &&Section| {
        settings.sections.is_empty()
            || settings.sections.iter().any(|word| match word.as_str() {
                "datapath" if settings.nodes == 2 => s.name == "across",
                word => word == s.name,
            })
    };
    fairlead_tests::allow_open_files(OPEN_FILES)?;
    // One thread: what it makes lives in the namespaces' own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut document = Document::open(&settings.root)?;
    let mut met = true;
    for section in SECTIONS.iter().filter(asked) {
        println!("bench: {}", section.name);
        let report = runtime
            .block_on(unless_interrupted((section.run)(settings)))
            .with_context(|| section.name.to_owned())?;
        for figure in &report.figures {
            println!("  {figure}");
        }
        met &= report.figures.iter().all(|f| f.met != Some(false));
        // After each, so that what was measured stays if the next one fails.
        document.replace(section, report, &command(settings, section))?;
    }
    println!("bench: written to docs/performance.md and target/bench/results.json");
    Ok(met)
}

/// What to type to measure a section as it was measured now.
fn command(settings: &Settings, section: &Section) -> String {
    let mut command = format!("cargo xtask bench {}", section.name);
    if settings.full {
        command.push_str(" --full");
    }
    if let Some(rounds) = settings.rounds {
        command.push_str(&format!(" --rounds {rounds}"));
    }
    command
}
