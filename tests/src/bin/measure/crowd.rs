//! Sixty pods, and a thousand policies.

use anyhow::{Context, Result};
use fairlead_tests::kubernetes::{Kubernetes, NAMES, SOON};
use fairlead_tests::namespace::Namespace;
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object};
use serde_json::json;

/// Pods of each node.
pub(crate) const EACH: usize = 30;

/// Pods that do nothing, [`EACH`] on each node, all Ready.
pub(crate) async fn fill(cluster: &Kubernetes, namespace: &str, app: &str) -> Result<()> {
    cluster.apply(&objects(namespace, app)).await?;
    await_until(
        "a crowd",
        SOON,
        async || Ok(cluster.await_pods(namespace).await?.len() == EACH * NAMES.len()),
    )
    .await
}

pub(crate) fn objects(namespace: &str, app: &str) -> Vec<Object> {
    let mut objects = vec![world::namespace(namespace, json!({}))];
    for node in NAMES {
        objects.push(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"namespace": namespace, "name": node},
            "spec": {
                "replicas": EACH,
                "selector": {"matchLabels": {"on": node}},
                "template": {
                    "metadata": {"labels": {"on": node, "app": app}},
                    "spec": {
                        "nodeName": node,
                        "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "pause", "image": "fairlead.dev/tests/pause:1",
                                        "command": ["/pause"]}],
                    },
                },
            },
        }));
    }
    objects
}

/// That many policies over the crowd, each with peers, blocks and ports of its own.
pub(crate) async fn policies(cluster: &Kubernetes, count: usize) -> Result<()> {
    let policies: Vec<Object> = (0..count)
        .map(|i| {
            let block = format!("192.{}.{}.0/24", i / 200, i % 200);
            world::policy(
                "crowd",
                &format!("policy-{i}"),
                json!({
                    "podSelector": {"matchLabels": {"app": "web"}},
                    "ingress": [{
                        "from": [{"podSelector": {"matchLabels": {"client": format!("c{i}")}}},
                                 {"ipBlock": {"cidr": block}}],
                        "ports": [{"port": 1000 + i, "protocol": "TCP"}],
                    }],
                }),
            )
        })
        .collect();
    for part in policies.chunks(100) {
        cluster.apply(part).await?;
    }
    known(cluster, count).await
}

/// Waits until every agent has that many policies in force, at least.
pub(crate) async fn known(cluster: &Kubernetes, count: usize) -> Result<()> {
    for machine in cluster.machines() {
        let run = fairlead_api::RunDir(machine.path("/run/fairlead"));
        await_until("policies known", SOON, async || {
            let status: serde_json::Value = fairlead_tests::agent::get(&run, "/v1/status").await?;
            Ok(status["counts"]["policies"].as_u64().is_some_and(|n| n >= count as u64))
        })
        .await?;
    }
    Ok(())
}

/// One pod of a node, by number, with a thread in its network.
pub(crate) async fn pod(
    cluster: &Kubernetes,
    namespace: &str,
    node: &str,
    number: usize,
) -> Result<(Object, Namespace)> {
    let pods = cluster.await_pods(namespace).await?;
    let pod =
        pods.into_iter().filter(|p| p["spec"]["nodeName"] == node).nth(number).context("no such pod")?;
    let name = pod["metadata"]["name"].as_str().context("no name")?.to_owned();
    let inside = cluster.enter(namespace, &name).await?;
    Ok((pod, inside))
}
