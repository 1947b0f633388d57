//! How soon a policy that denies bites.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_tests::kubernetes::traffic::Flow;
use fairlead_tests::kubernetes::{Kubernetes, NAMES, SOON};
use fairlead_tests::wait::await_until;
use fairlead_tests::world;
use serde_json::json;

use crate::{crowd, summary};

const ROUNDS: usize = 20;
/// Nothing has come through for so long: it is over.
const SILENCE: Duration = Duration::from_millis(300);

/// From the API server's answer to a policy until the last datagram that came through, one every
/// millisecond, from the other node.
pub(crate) async fn measure(cluster: &Kubernetes, policies: usize) -> Result<()> {
    let (_, from) = crowd::pod(cluster, "crowd", NAMES[0], 0).await?;
    let (victim, to) = crowd::pod(cluster, "crowd", NAMES[1], 0).await?;
    let name = victim["metadata"]["name"].as_str().context("no name")?;
    cluster
        .kubectl(&["label", "--overwrite", "pod", "-n", "crowd", name, "victim=yes", "app=victim"])
        .await?;
    let deny =
        world::policy("crowd", "deny-victim", json!({"podSelector": {"matchLabels": {"victim": "yes"}}}));
    let address = SocketAddr::new(Kubernetes::address(&victim, false)?, 9999);
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        let flow = Flow::start(&from, &to, address).await?;
        await_until("traffic", SOON, async || Ok(flow.so_far().received >= 50)).await?;
        let object = deny.clone();
        let answered = cluster
            .with(async move |client| {
                fairlead_tests::control_plane::apply(client, object, false).await?;
                Ok(Instant::now())
            })
            .await?;
        await_until("silence", SOON, async || Ok(flow.last().is_some_and(|l| l.elapsed() > SILENCE))).await?;
        all.push(flow.last().context("no last datagram")?.saturating_duration_since(answered));
        drop(flow);
        cluster.kubectl(&["delete", "networkpolicy", "-n", "crowd", "deny-victim"]).await?;
        await_until("traffic again", SOON, async || {
            let flow = Flow::start(&from, &to, address).await?;
            await_until("traffic", SOON, async || Ok(flow.so_far().sent >= 20)).await?;
            Ok(flow.end().await.received > 0)
        })
        .await?;
    }
    println!("deny, with {policies} other policies: {}", summary(all));
    Ok(())
}
