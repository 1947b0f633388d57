//! Keeps a cluster until it is told to end: what `cargo xtask cluster up` starts.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is for people")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use fairlead_tests::kubernetes::{Families, Kubernetes, Options, Proxy};

/// A cluster of two real nodes, until SIGTERM or Ctrl-C.
#[derive(Parser)]
struct Arguments {
    /// Image of Fairlead; without it, pods have no network.
    #[arg(long)]
    image: Option<PathBuf>,
    /// How kube-proxy translates.
    #[arg(long, default_value = "iptables")]
    proxy: Mode,
    /// Families of addresses, the first one first.
    #[arg(long, default_value = "dual")]
    families: Addresses,
    /// File that is written when everything is ready: what is needed to enter it.
    #[arg(long)]
    ready: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Iptables,
    Nftables,
}

#[derive(Clone, Copy, ValueEnum)]
enum Addresses {
    V4,
    Dual,
    DualV6,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match keep(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn keep(arguments: &Arguments) -> Result<()> {
    let options = Options {
        proxy: match arguments.proxy {
            Mode::Iptables => Proxy::Iptables,
            Mode::Nftables => Proxy::Nftables,
        },
        families: match arguments.families {
            Addresses::V4 => Families::V4,
            Addresses::Dual => Families::Dual,
            Addresses::DualV6 => Families::DualV6,
        },
    };
    let start = std::time::Instant::now();
    let started = async {
        let cluster = Kubernetes::start(options).await?;
        if let Some(image) = &arguments.image {
            cluster.install(image).await?;
            cluster.await_ready().await?;
            cluster.install_dns().await?;
        }
        anyhow::Ok(cluster)
    };
    let cluster = tokio::select! {
        cluster = started => cluster?,
        // What was made is dropped with the future that made it.
        signal = Kubernetes::interrupted() => return signal,
    };
    // Lines of a name and a value, for `cargo xtask` and scripts.
    let mut text = format!("process {}\n", std::process::id());
    text += &format!("network {}\n", cluster.namespace().path().display());
    text += &format!("kubeconfig {}\n", cluster.kubeconfig().display());
    text += &format!("folder {}\n", cluster.folder().display());
    for machine in cluster.machines() {
        text += &format!("nodes.{}.network {}\n", machine.name, machine.namespace.path().display());
        text += &format!("nodes.{}.root {}\n", machine.name, machine.path("/").display());
    }
    let new = arguments.ready.with_extension("new");
    std::fs::write(&new, text).context("cannot write what is ready")?;
    std::fs::rename(&new, &arguments.ready)?;
    println!("ready after {:.1} s", start.elapsed().as_secs_f64());
    Kubernetes::interrupted().await?;
    std::fs::remove_file(&arguments.ready).context("cannot remove what is ready")?;
    Ok(())
}
