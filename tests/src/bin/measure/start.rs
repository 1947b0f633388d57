//! From the creation of sixty pods until the last is Ready, beside the reference plugins `ptp` and
//! `host-local` on the same kind of cluster.

use std::time::Instant;

use anyhow::{Context, Result};
use fairlead_tests::kubernetes::{Kubernetes, NAMES, Options, SOON, ready};
use fairlead_tests::wait::await_until;
use serde_json::json;

use crate::crowd;

const ROUNDS: usize = 3;

/// With the reference plugins, without policies and without other nodes: what a pod's start costs at least.
pub(crate) async fn ptp(options: Options) -> Result<()> {
    let cluster = Kubernetes::start(options).await?;
    await_until("nodes with pod CIDRs", SOON, async || {
        let nodes = cluster.get(&["nodes"]).await?;
        let nodes = nodes["items"].as_array().context("no items")?;
        Ok(nodes.len() == NAMES.len() && nodes.iter().all(|n| n["spec"]["podCIDRs"].is_array()))
    })
    .await?;
    for machine in cluster.machines() {
        let node = cluster.get(&["node", &machine.name]).await?;
        let ranges: Vec<_> = node["spec"]["podCIDRs"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|cidr| json!([{"subnet": cidr}]))
            .collect();
        let configuration = json!({
            "cniVersion": "1.0.0", "name": "ptp", "plugins": [{
                "type": "ptp",
                "ipam": {"type": "host-local", "ranges": ranges,
                         "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
            }],
        });
        std::fs::write(machine.path("/etc/cni/net.d/10-ptp.conflist"), configuration.to_string())?;
    }
    await_until("nodes Ready", SOON, async || {
        let nodes = cluster.get(&["nodes"]).await?;
        Ok(nodes["items"].as_array().context("no items")?.iter().all(ready))
    })
    .await?;
    measure(&cluster, "ptp + host-local").await
}

pub(crate) async fn fairlead(cluster: &Kubernetes) -> Result<()> {
    measure(cluster, "Fairlead").await
}

async fn measure(cluster: &Kubernetes, name: &str) -> Result<()> {
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let namespace = format!("start-{round}");
        let start = Instant::now();
        crowd::fill(cluster, &namespace, "start").await?;
        all.push(start.elapsed());
        cluster.kubectl(&["delete", "namespace", &namespace, "--timeout=180s"]).await?;
    }
    println!("start of 60 pods, {name}: {}", crate::summary(all));
    Ok(())
}
