//! Agents that are killed, and an API server that does not answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_tests::control_plane::PORT;
use fairlead_tests::kubernetes::traffic::Flow;
use fairlead_tests::kubernetes::{Kubernetes, NAMES, SOON};
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object};
use serde_json::json;

use crate::{crowd, idle};

const KILLS: usize = 20;
const RESTARTS: usize = 3;
/// Port of an API server that no node knows.
const HIDDEN: u16 = 6444;
const AWAY: Duration = Duration::from_secs(60);

/// A flow that is allowed and one that is denied, between the nodes.
async fn flows(cluster: &Kubernetes) -> Result<(Flow, Flow)> {
    let (_, from) = crowd::pod(cluster, "crowd", NAMES[0], 1).await?;
    let (open, to_open) = crowd::pod(cluster, "crowd", NAMES[1], 2).await?;
    let (closed, to_closed) = crowd::pod(cluster, "crowd", NAMES[1], 3).await?;
    let name = closed["metadata"]["name"].as_str().context("no name")?;
    cluster
        .kubectl(&["label", "--overwrite", "pod", "-n", "crowd", name, "closed=yes", "app=closed"])
        .await?;
    let name = open["metadata"]["name"].as_str().context("no name")?;
    cluster.kubectl(&["label", "--overwrite", "pod", "-n", "crowd", name, "app=open"]).await?;
    let deny =
        world::policy("crowd", "deny-closed", json!({"podSelector": {"matchLabels": {"closed": "yes"}}}));
    cluster.apply(&[deny]).await?;
    let address = |pod| anyhow::Ok(SocketAddr::new(Kubernetes::address(pod, false)?, 9998));
    let (open, closed) = (address(&open)?, address(&closed)?);
    await_until("both policies in force", SOON, async || {
        let (a, b) =
            (Flow::start(&from, &to_open, open).await?, Flow::start(&from, &to_closed, closed).await?);
        await_until("traffic", SOON, async || Ok(b.so_far().sent >= 50)).await?;
        let (a, b) = (a.end().await, b.end().await);
        Ok(a.received == a.sent && b.received == 0)
    })
    .await?;
    Ok((Flow::start(&from, &to_open, open).await?, Flow::start(&from, &to_closed, closed).await?))
}

/// SIGKILL to both agents, again and again: by turns as soon as both are there, and when both are ready.
pub(crate) async fn kill(cluster: &Kubernetes) -> Result<()> {
    let (open, closed) = flows(cluster).await?;
    for round in 0..KILLS {
        if round % 2 == 0 {
            agents_ready(cluster).await?;
        }
        let agents = idle::agents(cluster)?;
        for &id in &agents {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(i32::try_from(id)?),
                nix::sys::signal::Signal::SIGKILL,
            )?;
        }
        await_until("new agents", SOON, async || {
            Ok(idle::agents(cluster).is_ok_and(|new| new.iter().all(|id| !agents.contains(id))))
        })
        .await?;
    }
    agents_ready(cluster).await?;
    println!("kill -9 of both agents, {KILLS} times: {}", told(open, closed).await);
    Ok(())
}

/// Waits until both agents say themselves that they are ready: the API server hears of it later.
async fn agents_ready(cluster: &Kubernetes) -> Result<()> {
    for machine in cluster.machines() {
        let run = fairlead_api::RunDir(machine.path("/run/fairlead"));
        await_until("an agent that is ready", SOON, async || {
            let status = fairlead_tests::agent::get::<fairlead_api::status::Status>(&run, "/v1/status").await;
            Ok(status.is_ok_and(|s| s.ready))
        })
        .await?;
    }
    Ok(())
}

/// A rolling restart of the DaemonSet.
pub(crate) async fn restart(cluster: &Kubernetes) -> Result<()> {
    let (open, closed) = flows(cluster).await?;
    for _ in 0..RESTARTS {
        cluster.kubectl(&["-n", "fairlead", "rollout", "restart", "daemonset/fairlead"]).await?;
        let status = ["-n", "fairlead", "rollout", "status", "daemonset/fairlead", "--timeout=180s"];
        cluster.kubectl(&status).await?;
    }
    println!("rolling restart of the DaemonSet, {RESTARTS} times: {}", told(open, closed).await);
    Ok(())
}

/// Ends both flows; what was lost of the allowed one, and what came through of the denied one.
async fn told(open: Flow, closed: Flow) -> String {
    let (open, closed) = (open.end().await, closed.end().await);
    format!(
        "{} of {} allowed datagrams lost, {} of {} denied ones through",
        open.sent - open.received,
        open.sent,
        closed.received,
        closed.sent
    )
}

/// Nodes cannot reach an API server for a minute. Another one, which they do not know, changes what is in etcd
/// meanwhile: a pod is relabelled, one deleted, one created, and a policy made.
pub(crate) async fn no_server(cluster: &mut Kubernetes) -> Result<()> {
    let (open, closed) = flows(cluster).await?;
    let pods = cluster.await_pods("crowd").await?;
    let mut own = pods.iter().filter(|p| p["spec"]["nodeName"] == NAMES[1]).skip(4);
    let name = |pod: Option<&Object>| Some(pod?["metadata"]["name"].as_str()?.to_owned());
    let relabelled = name(own.next()).context("no pod")?;
    let deleted = own.next().context("no pod")?.clone();
    let start = Instant::now();
    let control = cluster.control_mut();
    control.kill_server()?;
    control.start_server(HIDDEN).await?;
    let label = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "crowd", "name": relabelled, "labels": {"late": "yes"}},
    });
    let late = world::policy("crowd", "late", json!({"podSelector": {"matchLabels": {"late": "yes"}}}));
    let created = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "crowd", "name": "created", "labels": {"late": "yes"}},
        "spec": {
            "nodeName": NAMES[1],
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "pause", "image": "fairlead.dev/tests/pause:1", "command": ["/pause"]}],
        },
    });
    control
        .on(HIDDEN, async move |client| {
            for object in [label, late, created] {
                fairlead_tests::control_plane::apply(client.clone(), object, false).await?;
            }
            fairlead_tests::control_plane::delete(client, &deleted).await
        })
        .await?;
    tokio::time::sleep(AWAY.saturating_sub(start.elapsed())).await;
    let away = start.elapsed();
    control.start_server(PORT).await?;
    let back = Instant::now();
    let run = fairlead_api::RunDir(cluster.machine(NAMES[1])?.path("/run/fairlead"));
    let isolated = async |name: &str| {
        let endpoints: Vec<fairlead_api::EndpointStatus> =
            fairlead_tests::agent::get(&run, "/v1/endpoints").await?;
        anyhow::Ok(endpoints.iter().any(|e| {
            e.attachment.pod.as_ref().is_some_and(|p| p.name == name) && e.ingress_isolated && e.unlocked
        }))
    };
    await_until("the new policy", SOON, async || isolated(&relabelled).await).await?;
    let caught_up = back.elapsed();
    // That one waits for its kubelet, which asks the API server again at growing intervals, too.
    await_until("the new pod", SOON, async || isolated("created").await).await?;
    let started = back.elapsed();
    println!(
        "API server away for {:.0} s: {}; a policy and a label that had changed meanwhile held {:.1} s after it was back, and \
         the pod that its kubelet then started was wired after {:.1} s",
        away.as_secs_f64(),
        told(open, closed).await,
        caught_up.as_secs_f64(),
        started.as_secs_f64()
    );
    Ok(())
}
