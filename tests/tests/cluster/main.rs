//! Clusters in network namespaces: real agents, the real CNI executable, real connections.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

mod boxes;
mod connectivity;
mod drops;
mod enforcement;
mod lifecycle;
mod locked;
mod path;
mod soak;
mod vlan;

use std::net::SocketAddr;
use std::time::Duration;

use fairlead_tests::cluster::{Cluster, SOON};
use fairlead_tests::probe::{Connection, Outcome, connect};
use fairlead_tests::world::{self, Object};
use serde_json::json;

/// Namespace of the pods.
const NS: &str = "t";
/// Port that pods serve.
const PORT: u16 = 80;
/// Second port that pods serve.
const OTHER: u16 = 81;
/// How long to wait for what should not come; two SYNs fit in.
const LIMIT: Duration = Duration::from_millis(1500);

/// Two nodes and the namespace.
fn base() -> Vec<Object> {
    vec![
        world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
        world::node("node-b", &["172.20.0.12", "fd20::12"], &["10.244.2.0/24", "fd10:244:0:2::/64"]),
        world::namespace(NS, json!({})),
    ]
}

/// A cluster with pods (name, node), each of which listens on both ports.
async fn cluster(pods: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::start(&base(), &[]).await.unwrap();
    for (name, node) in pods {
        add(&mut cluster, name, node).await;
    }
    cluster
}

async fn add(cluster: &mut Cluster, name: &str, node: &str) {
    cluster.apply(&world::pod(NS, name, node, &[PORT, OTHER])).unwrap();
    let pod = cluster.wire(NS, name).await.unwrap();
    pod.listen(PORT).await.unwrap();
    pod.listen(OTHER).await.unwrap();
}

/// Ingress of `subject` only from `peer`, only on [`PORT`].
fn only_from(subject: &str, peer: &str) -> Object {
    world::policy(
        NS,
        &format!("{subject}-from-{peer}"),
        json!({
            "podSelector": {"matchLabels": {"app": subject}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": peer}}}], "ports": [{"port": PORT}]}],
        }),
    )
}

/// Puts a policy for ingress of `subject` in force.
async fn enforce(cluster: &mut Cluster, policy: &Object, subject: &str) {
    cluster.apply(policy).unwrap();
    cluster.await_isolation(|pod| (pod.name == subject, false)).await.unwrap();
}

/// What becomes of an attempt that is expected to fail.
async fn attempt(cluster: &Cluster, from: &str, to: &str, port: u16, ipv6: bool) -> Outcome {
    attempt_within(cluster, (from, to, port), ipv6, LIMIT).await
}

async fn attempt_within(
    cluster: &Cluster,
    (from, to, port): (&str, &str, u16),
    ipv6: bool,
    limit: Duration,
) -> Outcome {
    let to = SocketAddr::new(cluster.pod(to).unwrap().address(ipv6).unwrap(), port);
    connect(&cluster.pod(from).unwrap().namespace, to, limit).await.unwrap()
}

async fn open(cluster: &Cluster, from: &str, to: &str, ipv6: bool) -> Connection {
    match attempt_within(cluster, (from, to, PORT), ipv6, SOON).await {
        Outcome::Open(connection) => connection,
        other => panic!("{from} to {to}, IPv6 {ipv6}: {other:?}"),
    }
}
