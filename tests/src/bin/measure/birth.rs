//! The first moments of a pod: never reachable without its policy, never closed without a cause.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairlead_tests::kubernetes::{Kubernetes, NAMES, SOON, ready};
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object};
use serde_json::json;
use tokio::net::TcpSocket;

use crate::crowd;

const PODS: usize = 100;
/// Pods that are born at the same time.
const LITTER: usize = 20;
const PORT: u16 = 8080;
/// Time after Ready during which the probes go on.
const AFTER: Duration = Duration::from_secs(3);

fn pod(namespace: &str, name: &str, node: &str) -> Object {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": "born"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "server", "image": "registry.k8s.io/e2e-test-images/agnhost:2.56",
                "args": ["porter"], "env": [{"name": "SERVE_PORT_8080", "value": "hello"}],
            }],
        },
    })
}

/// Two pods that are there already, one on each node, and their namespaces.
async fn clients(cluster: &Kubernetes, namespace: &str) -> Result<Vec<fairlead_tests::namespace::Namespace>> {
    let objects: Vec<Object> = NAMES
        .iter()
        .map(|node| {
            let mut pod = pod(namespace, &format!("client-{node}"), node);
            pod["metadata"]["labels"] = json!({"app": "client"});
            pod
        })
        .collect();
    cluster.apply(&objects).await?;
    cluster.await_pods(namespace).await?;
    let mut inside = Vec::new();
    for node in NAMES {
        inside.push(cluster.enter(namespace, &format!("client-{node}")).await?);
    }
    Ok(inside)
}

/// Sends a datagram to every address of a node's pods, round after round, as fast as it goes.
struct Spray {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Spray {
    fn start(socket: UdpSocket, targets: Vec<SocketAddr>) -> Self {
        let (stop, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (own_stop, own_rounds) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            while !own_stop.load(Ordering::Relaxed) {
                for target in &targets {
                    // An error about one is none about the next.
                    let _ = socket.send_to(b"knock", target);
                }
                own_rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, rounds, thread: Some(thread) }
    }
}

impl Drop for Spray {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Datagrams that a pod's stack has seen, to open ports and to closed ones.
fn datagrams() -> Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = table.lines().filter_map(|l| l.strip_prefix("Udp: "));
    let (names, values) = (lines.next().context("Udp")?, lines.next().context("Udp")?);
    let mut sum = 0;
    for (name, value) in names.split(' ').zip(values.split(' ')) {
        if ["InDatagrams", "NoPorts"].contains(&name) {
            sum += value.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// Pods under a default deny, probed from before their address is known until after they are Ready.
pub(crate) async fn denied(cluster: &Kubernetes) -> Result<()> {
    let namespace = "denied";
    cluster.apply(&[world::namespace(namespace, json!({}))]).await?;
    let inside = clients(cluster, namespace).await?;
    cluster
        .apply(&[world::policy(namespace, "deny", json!({"podSelector": {"matchLabels": {"app": "born"}}}))])
        .await?;
    crowd::known(cluster, 1).await?;
    let (mut reached, mut born, mut rounds, mut time) = (0, 0, 0, Duration::ZERO);
    let node = NAMES[1];
    let object = cluster.get(&["node", node]).await?;
    let cidr = object["spec"]["podCIDR"].as_str().context("podCIDR")?;
    let base: Ipv4Addr = cidr.split('/').next().context("podCIDR")?.parse()?;
    let targets: Vec<SocketAddr> = (1..255)
        .map(|last| {
            let [a, b, c, _] = base.octets();
            SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, last)), PORT)
        })
        .collect();
    while born < PODS {
        let start = Instant::now();
        let mut sprays = Vec::new();
        for client in &inside {
            let socket = client.run(|| UdpSocket::bind("0.0.0.0:0")).await??;
            sprays.push(Spray::start(socket, targets.clone()));
        }
        let objects: Vec<Object> =
            (0..LITTER).map(|i| pod(namespace, &format!("born-{}", born + i), node)).collect();
        cluster.apply(&objects).await?;
        await_until("born", SOON, async || {
            let pods = cluster.get(&["pods", "-n", namespace, "-l", "app=born"]).await?;
            let pods = pods["items"].as_array().context("no items")?;
            Ok(pods.len() == LITTER && pods.iter().all(ready))
        })
        .await?;
        tokio::time::sleep(AFTER).await;
        rounds += sprays.iter().map(|s| s.rounds.load(Ordering::Relaxed)).sum::<u64>();
        drop(sprays);
        time += start.elapsed();
        for i in 0..LITTER {
            let own = cluster.enter(namespace, &format!("born-{}", born + i)).await?;
            reached += usize::from(own.run(datagrams).await?? > 0);
        }
        born += LITTER;
        cluster.kubectl(&["delete", "pods", "-n", namespace, "-l", "app=born", "--timeout=180s"]).await?;
    }
    println!(
        "birth under default deny: {reached} of {born} pods were reached; each address probed every {:.1} ms",
        time.as_secs_f64() * 1e3 / rounds as f64
    );
    cluster.kubectl(&["delete", "namespace", namespace, "--timeout=180s"]).await?;
    Ok(())
}

/// Whether something listens at the port, in the calling thread's network.
fn listens() -> bool {
    let wanted = format!(":{PORT:04X} ");
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    tables.iter().filter_map(|t| std::fs::read_to_string(t).ok()).any(|table| {
        table.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(3) == Some(&"0A") && fields.get(1).is_some_and(|l| format!("{l} ").ends_with(&wanted))
        })
    })
}

/// Pods that clients may reach, whose own policy allows it: the first connection after the container
/// listens succeeds, from both nodes.
pub(crate) async fn allowed(cluster: &Kubernetes) -> Result<()> {
    let namespace = "allowed";
    cluster.apply(&[world::namespace(namespace, json!({}))]).await?;
    let inside = clients(cluster, namespace).await?;
    let select = |app: &str| json!({"matchLabels": {"app": app}});
    cluster
        .apply(&[
            world::policy(
                namespace,
                "in",
                json!({"podSelector": select("born"), "ingress": [{"from": [{"podSelector": select("client")}]}]}),
            ),
            world::policy(
                namespace,
                "out",
                json!({"podSelector": select("client"), "policyTypes": ["Egress"],
                       "egress": [{"to": [{"podSelector": select("born")}]}]}),
            ),
        ])
        .await?;
    crowd::known(cluster, 2).await?;
    let (mut missed, mut near, mut waits) = (0, 0, Vec::new());
    for number in 0..PODS {
        let (name, node) = (format!("born-{number}"), NAMES[number % NAMES.len()]);
        cluster.apply(&[pod(namespace, &name, node)]).await?;
        let mut own = None;
        await_until("a sandbox", SOON, async || {
            own = cluster.enter(namespace, &name).await.ok();
            Ok(own.is_some())
        })
        .await?;
        let own = own.context("no sandbox")?;
        await_until("listens", SOON, async || own.run(listens).await).await?;
        let run = fairlead_api::RunDir(cluster.machine(node)?.path("/run/fairlead"));
        let endpoints: Vec<fairlead_api::EndpointStatus> =
            fairlead_tests::agent::get(&run, "/v1/endpoints").await?;
        let address = endpoints
            .iter()
            .find(|e| e.attachment.pod.as_ref().is_some_and(|p| p.namespace == namespace && p.name == name))
            .and_then(|e| e.attachment.addresses.iter().find(|a| a.is_ipv4()).copied())
            .context("no address")?;
        for (client, from) in NAMES.iter().zip(&inside) {
            let socket = from.run(TcpSocket::new_v4).await??;
            let start = Instant::now();
            let to = SocketAddr::new(address, PORT);
            let open = tokio::time::timeout(Duration::from_secs(10), socket.connect(to)).await;
            let took = start.elapsed();
            // A SYN that is lost is sent again after a second.
            let first = open.is_ok_and(|c| c.is_ok()) && took < Duration::from_millis(900);
            missed += usize::from(!first);
            near += usize::from(!first && *client == node);
            waits.push(took);
        }
    }
    println!(
        "birth under an allow rule: {missed} of {} first probes missed ({near} of them from the pod's own node); {}",
        PODS * NAMES.len(),
        crate::summary(waits)
    );
    cluster.kubectl(&["delete", "namespace", namespace, "--timeout=180s"]).await?;
    Ok(())
}
