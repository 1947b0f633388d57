//! The demonstration: two nodes, an outside host and a real application, wired by `fairlead-cni`, its
//! policies enforced by real agents, measured by real connections.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is for people")]

mod matrix;
mod phases;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use fairlead_tests::interrupt::{interrupted, unless_interrupted};
use fairlead_tests::world;

use crate::phases::Demo;

/// Two nodes, a real application, its policies: wired, enforced and measured.
#[derive(Parser)]
struct Arguments {
    /// Folder of the project's manifests.
    #[arg(long)]
    manifests: PathBuf,
    /// Leave everything up at the end until Ctrl-C, and say how to look around.
    #[arg(long)]
    keep: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match demonstrate(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demonstrate(arguments: &Arguments) -> Result<()> {
    // The matrix is measured by many connections at a time.
    fairlead_tests::allow_open_files(4096)?;
    let objects = world::read(&arguments.manifests.join("online-boutique"))?;
    let phases = async {
        let mut demo = Demo::start(objects, std::io::stdout().is_terminal()).await?;
        demo.run().await?;
        anyhow::Ok(demo)
    };
    let mut demo = unless_interrupted(phases).await?;
    if arguments.keep {
        demo.guide().await?;
        interrupted().await?;
    }
    demo.result()?;
    demo.cluster.stop().await.context("taking everything down")?;
    println!("All of it is taken down.");
    Ok(())
}
