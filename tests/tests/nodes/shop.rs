//! Online Boutique's policies, with its workloads as real containers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use fairlead_tests::kubernetes::{Kubernetes, SOON};
use fairlead_tests::namespace::Namespace;
use fairlead_tests::shop::{CALLS, NAMESPACE, split};
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object, PodSpec};
use serde_json::json;
use tokio::net::TcpSocket;

/// How long a connection may take. What is denied costs all of it; a second SYN fits in.
const LIMIT: Duration = Duration::from_millis(1500);

fn all() -> Vec<Object> {
    world::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/online-boutique")).unwrap()
}

/// Its namespace and pods; each serves both of its ports.
pub(super) fn objects() -> Vec<Object> {
    let (_, mut objects) = split(all());
    objects.retain(|o| world::kind(o) != "Node");
    for pod in objects.iter_mut().filter(|o| world::kind(o) == "Pod") {
        let ports = PodSpec::of(pod).unwrap().ports;
        let served = ports.iter().map(|port| json!({"name": format!("SERVE_PORT_{port}"), "value": "hello"}));
        let container = &mut pod["spec"]["containers"][0];
        container["image"] = "registry.k8s.io/e2e-test-images/agnhost:2.56".into();
        container["args"] = json!(["porter"]);
        container["env"] = served.collect();
        container["readinessProbe"] = json!({
            "httpGet": {"path": "/", "port": ports[0]}, "periodSeconds": 1, "failureThreshold": 30,
        });
        pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
    }
    objects
}

/// Every pair of pods on both ports in both families is what the shop's policies want.
pub(super) async fn policies_hold(cluster: &Kubernetes) {
    let (policies, _) = split(all());
    let pods = cluster.await_pods(NAMESPACE).await.unwrap();
    let mut inside = BTreeMap::new();
    for pod in &pods {
        let name = PodSpec::of(pod).unwrap().name;
        inside.insert(name.clone(), cluster.enter(NAMESPACE, &name).await.unwrap());
    }
    let open = measure(&pods, &inside).await;
    assert!(open.values().all(|&open| open), "everything is open before: {open:#?}");
    cluster.apply(&policies).await.unwrap();
    let mut wrong = Vec::new();
    let waited = await_until("the shop's policies", SOON, async || {
        wrong = measure(&pods, &inside)
            .await
            .into_iter()
            .filter(|((client, server, second, _), open)| {
                *open != (CALLS.contains(&(client.as_str(), server.as_str())) && !second)
            })
            .collect();
        Ok(wrong.is_empty())
    })
    .await;
    assert!(waited.is_ok(), "{wrong:#?}");
}

/// Client, server, whether it is the second port, whether IPv6: whether it is open.
type Matrix = BTreeMap<(String, String, bool, bool), bool>;

async fn measure(pods: &[Object], inside: &BTreeMap<String, Namespace>) -> Matrix {
    let mut running = Vec::new();
    for pod in pods {
        let server = PodSpec::of(pod).unwrap();
        for (second, &port) in [false, true].into_iter().zip(&server.ports) {
            for ipv6 in [false, true] {
                let to = SocketAddr::new(Kubernetes::address(pod, ipv6).unwrap(), port);
                for (client, namespace) in inside.iter().filter(|(client, _)| **client != server.name) {
                    // A socket belongs to the namespace of the thread that makes it, whoever uses it.
                    let new = move || if ipv6 { TcpSocket::new_v6() } else { TcpSocket::new_v4() };
                    let socket = namespace.run(new).await.unwrap().unwrap();
                    let connect = tokio::spawn(async move {
                        tokio::time::timeout(LIMIT, socket.connect(to)).await.is_ok_and(|c| c.is_ok())
                    });
                    running.push(((client.clone(), server.name.clone(), second, ipv6), connect));
                }
            }
        }
    }
    let mut matrix = Matrix::new();
    for (pair, connect) in running {
        matrix.insert(pair, connect.await.unwrap());
    }
    matrix
}
