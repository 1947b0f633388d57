//! The node's network in namespaces: real agents, the real CNI executable, real connections.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

mod churn;
mod early;
mod header;
mod many;
mod masquerade;
mod model;
mod offload;
mod size;
mod straight;
mod topology;
mod tunnel;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use fairlead_tests::cluster::Cluster;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::probe::{Connection, Outcome, connect};
use fairlead_tests::world::{self, Object};
use serde_json::json;

/// Namespace of the pods.
const NS: &str = "t";
/// Port that everybody serves.
const PORT: u16 = 80;
/// How long a connection may take, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(10);

/// Two nodes and the namespace.
fn two_nodes() -> Vec<Object> {
    vec![
        world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
        world::node("node-b", &["172.20.0.12", "fd20::12"], &["10.244.2.0/24", "fd10:244:0:2::/64"]),
        world::namespace(NS, json!({})),
    ]
}

async fn add(cluster: &mut Cluster, name: &str, node: &str) {
    cluster.apply(&world::pod(NS, name, node, &[PORT])).unwrap();
    cluster.wire(NS, name).await.unwrap().listen(PORT).await.unwrap();
}

/// What commands say in a namespace, the first of which that fails ends the test.
async fn shell(namespace: &Namespace, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", script]);
    let output = namespace.run(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn open(from: &Namespace, to: IpAddr) -> Connection {
    match connect(from, SocketAddr::new(to, PORT), LIMIT).await.unwrap() {
        Outcome::Open(connection) => connection,
        other => panic!("{} to {to}: {other:?}", from.name()),
    }
}
