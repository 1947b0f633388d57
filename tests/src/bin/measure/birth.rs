//! The first moments of a pod: never reachable without its policy, never closed without a cause.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_tests::kubernetes::{self, Kubernetes, NAMES, SOON, ready};
use fairlead_tests::namespace::Namespace;
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object};
use serde_json::json;
use tokio::net::TcpSocket;

use crate::crowd;

const PODS: usize = 100;
/// Pods that are born at the same time. So few that the probes leave them time to start on two cores.
const LITTER: usize = 10;
const PORT: u16 = 8080;
/// Time between two rounds of probes.
const PERIOD: Duration = Duration::from_millis(1);
/// Addresses that are probed: those of a litter, of the open pod, and some more.
const NEXT: u32 = 16;
/// Name and label of the pod that nothing denies.
const OPEN: &str = "open";
/// Time after Ready during which the probes go on.
const AFTER: Duration = Duration::from_secs(3);
/// A first SYN that is lost is sent again after a second: what took longer than this has lost it.
const RESENT: Duration = Duration::from_millis(900);
/// Time that one of many attempts has.
const ATTEMPT: Duration = Duration::from_millis(10);
/// Time after which a client gives up.
const PATIENCE: Duration = Duration::from_secs(10);

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
async fn clients(cluster: &Kubernetes, namespace: &str) -> Result<Vec<Namespace>> {
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

/// Sends a datagram to every one of some addresses, once a millisecond.
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
            let mut next = Instant::now();
            while !own_stop.load(Ordering::Relaxed) {
                for target in &targets {
                    // An error about one is none about the next.
                    let _ = socket.send_to(b"knock", target);
                }
                own_rounds.fetch_add(1, Ordering::Relaxed);
                // A round that came late is followed at once by those that it has kept waiting.
                next += PERIOD;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
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

/// The next addresses that a node gives, as it does in order, after the one that was given last.
fn next_addresses(last: IpAddr) -> Result<Vec<SocketAddr>> {
    let IpAddr::V4(last) = last else { bail!("{last} is no IPv4 address") };
    let from = u32::from(last) + 1;
    Ok((from..from + NEXT).map(|a| SocketAddr::from((Ipv4Addr::from(a), PORT))).collect())
}

/// Address of a pod of a namespace, as the agent of its node has it from ADD.
async fn address_of(cluster: &Kubernetes, node: &str, namespace: &str, name: &str) -> Result<IpAddr> {
    let run = fairlead_api::RunDir(cluster.machine(node)?.path("/run/fairlead"));
    let endpoints: Vec<fairlead_api::EndpointStatus> =
        fairlead_tests::agent::get(&run, "/v1/endpoints").await?;
    endpoints
        .iter()
        .find(|e| e.attachment.pod.as_ref().is_some_and(|p| p.namespace == namespace && p.name == name))
        .and_then(|e| e.attachment.addresses.iter().find(|a| a.is_ipv4()).copied())
        .with_context(|| format!("{name} has no address"))
}

/// Pods under a default deny, probed from before their address is known until after they are Ready; and one
/// among them that nothing denies, which shows that the probes arrive.
pub(crate) async fn denied(cluster: &Kubernetes) -> Result<()> {
    let (namespace, node) = ("denied", NAMES[1]);
    cluster.apply(&[world::namespace(namespace, json!({}))]).await?;
    let inside = clients(cluster, namespace).await?;
    cluster
        .apply(&[world::policy(namespace, "deny", json!({"podSelector": {"matchLabels": {"app": "born"}}}))])
        .await?;
    crowd::known(cluster, 1).await?;
    let (mut reached, mut born, mut rounds, mut time) = (0, 0, 0, Duration::ZERO);
    let mut last = address_of(cluster, node, namespace, &format!("client-{node}")).await?;
    while born < PODS {
        let start = Instant::now();
        let targets = next_addresses(last)?;
        let mut sprays = Vec::new();
        for client in &inside {
            let socket = client.run(|| UdpSocket::bind("0.0.0.0:0")).await??;
            sprays.push(Spray::start(socket, targets.clone()));
        }
        let names: Vec<String> = (0..LITTER).map(|i| format!("born-{}", born + i)).collect();
        let mut objects: Vec<Object> = names.iter().map(|name| pod(namespace, name, node)).collect();
        let mut open = pod(namespace, OPEN, node);
        open["metadata"]["labels"] = json!({"app": OPEN});
        objects.push(open);
        cluster.apply(&objects).await?;
        await_until("born", SOON, async || {
            let pods = cluster.get(&["pods", "-n", namespace, "-l", "app!=client"]).await?;
            let pods = pods["items"].as_array().context("no items")?;
            Ok(pods.len() == LITTER + 1 && pods.iter().all(ready))
        })
        .await?;
        tokio::time::sleep(AFTER).await;
        rounds += sprays.iter().map(|s| s.rounds.load(Ordering::Relaxed)).sum::<u64>();
        drop(sprays);
        time += start.elapsed();
        for name in names.iter().map(String::as_str).chain([OPEN]) {
            let address = address_of(cluster, node, namespace, name).await?;
            if !targets.iter().any(|t| t.ip() == address) {
                bail!("{name} has {address}, which was not probed");
            }
            last = last.max(address);
            let own = cluster.enter(namespace, name).await?;
            let seen = own.run(datagrams).await??;
            match name {
                OPEN if seen == 0 => bail!("no probe has reached the pod that nothing denies"),
                OPEN => {}
                _ => reached += usize::from(seen > 0),
            }
        }
        born += LITTER;
        cluster.kubectl(&["delete", "pods", "-n", namespace, "-l", "app!=client", "--timeout=180s"]).await?;
    }
    println!(
        "birth under default deny: {reached} of {born} pods were reached; each address probed every {:.2} ms from each \
         node",
        time.as_secs_f64() * 1e3 * NAMES.len() as f64 / rounds as f64
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

/// How the policy of a client allows it to reach the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// By the block that all pods' addresses are of: before a pod is born.
    Block,
    /// By the pods' labels: on another node from when it is told whose the address is.
    Label,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Label => "label",
        }
    }
}

/// A pod on a node that connects to those that are born.
struct Client {
    by: By,
    node: &'static str,
    inside: Namespace,
}

/// What a client's first connection was like.
struct First {
    by: By,
    /// The client is on the pod's own node.
    near: bool,
    took: Duration,
}

impl Client {
    /// From when the container listens until a connection is there.
    async fn connect(&self, to: SocketAddr) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let socket = self.inside.run(TcpSocket::new_v4).await??;
            // One connection, whose SYN is sent again after a second, shows whether the first got through; how
            // long it takes until one would is shown by many.
            let patience = if self.by == By::Block { PATIENCE } else { ATTEMPT };
            let connected = tokio::time::timeout(patience, socket.connect(to)).await;
            if connected.is_ok_and(|c| c.is_ok()) || start.elapsed() >= PATIENCE {
                return Ok(start.elapsed());
            }
        }
    }
}

/// Two clients on each node, and policies of both kinds for them.
async fn allowed_clients(cluster: &Kubernetes, namespace: &str) -> Result<Vec<Client>> {
    let all = NAMES.into_iter().flat_map(|node| [By::Block, By::Label].map(|by| (node, by)));
    let name = |node: &str, by: By| format!("client-{node}-{}", by.name());
    let objects: Vec<Object> = all
        .clone()
        .map(|(node, by)| {
            let mut pod = pod(namespace, &name(node, by), node);
            pod["metadata"]["labels"] = json!({"app": "client", "by": by.name()});
            pod
        })
        .collect();
    cluster.apply(&objects).await?;
    cluster.await_pods(namespace).await?;
    let select = |app: &str| json!({"matchLabels": {"app": app}});
    let egress = |by: By, to: serde_json::Value| {
        let spec = json!({"podSelector": {"matchLabels": {"by": by.name()}}, "policyTypes": ["Egress"],
                          "egress": [{"to": [to]}]});
        world::policy(namespace, by.name(), spec)
    };
    cluster
        .apply(&[
            world::policy(
                namespace,
                "in",
                json!({"podSelector": select("born"), "ingress": [{"from": [{"podSelector": select("client")}]}]}),
            ),
            egress(By::Block, json!({"ipBlock": {"cidr": kubernetes::PODS[0]}})),
            egress(By::Label, json!({"podSelector": select("born")})),
        ])
        .await?;
    crowd::known(cluster, 3).await?;
    let mut clients = Vec::new();
    for (node, by) in all {
        clients.push(Client { by, node, inside: cluster.enter(namespace, &name(node, by)).await? });
    }
    Ok(clients)
}

/// Pods that clients may reach: from those whose own policy allows it already, the first connection after the
/// container listens succeeds.
pub(crate) async fn allowed(cluster: &Kubernetes) -> Result<()> {
    let namespace = "allowed";
    cluster.apply(&[world::namespace(namespace, json!({}))]).await?;
    let clients = allowed_clients(cluster, namespace).await?;
    let mut firsts = Vec::new();
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
        let to = SocketAddr::new(address_of(cluster, node, namespace, &name).await?, PORT);
        let heard = own
            .run(|| {
                let start = Instant::now();
                while !listens() && start.elapsed() < SOON {
                    std::thread::sleep(PERIOD);
                }
                listens()
            })
            .await?;
        if !heard {
            bail!("{name} does not listen");
        }
        let connections = clients.iter().map(|client| async move {
            anyhow::Ok(First { by: client.by, near: client.node == node, took: client.connect(to).await? })
        });
        firsts.extend(futures_util::future::try_join_all(connections).await?);
    }
    for (by, what) in [(By::Block, "the block of all pods"), (By::Label, "the pods' labels")] {
        for (near, on) in [(true, "the pod's own node"), (false, "the other node")] {
            let of = firsts.iter().filter(|f| f.by == by && f.near == near);
            let waits: Vec<Duration> = of.map(|f| f.took).collect();
            // A SYN that is lost is sent again after a second.
            let missed = waits.iter().filter(|took| **took >= RESENT).count();
            println!(
                "birth under an allow rule, clients on {on} whose egress allows {what}: {missed} of {} took longer \
                 than {} ms; {}",
                waits.len(),
                RESENT.as_millis(),
                crate::summary(waits.clone())
            );
        }
    }
    cluster.kubectl(&["delete", "namespace", namespace, "--timeout=180s"]).await?;
    Ok(())
}
