//! The agent dies while pods come and go, and the machine starts anew.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use fairlead_tests::cluster::{Cluster, Node, SOON};
use fairlead_tests::namespace::Namespace;
use fairlead_tests::probe::{Listener, connect};
use fairlead_tests::runtime::{self, Attach, CniError, IFNAME};
use fairlead_tests::wait::await_until;
use fairlead_tests::world;
use futures_util::future::join_all;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

const NODE: &str = "node-a";
const NS: &str = "t";
/// How long a connection may take; two SYNs fit in.
const LIMIT: Duration = Duration::from_millis(1500);
/// Pods that come and go.
const PODS: usize = 30;
/// Times that the agent is killed.
const KILLS: usize = 6;

/// A sandbox that its runtime may have attached.
struct Sandbox {
    name: String,
    namespace: Namespace,
    /// A container ID of its own for each attachment.
    attached: usize,
    /// What ADD said, while it is wired.
    result: Option<Value>,
    _listener: Listener,
}

impl Sandbox {
    async fn new(name: String) -> Self {
        let namespace = Namespace::new(&name).await.unwrap();
        let listener = Listener::open(&namespace, &name, 80).await.unwrap();
        Self { name, namespace, attached: 0, result: None, _listener: listener }
    }

    fn attach(&self) -> Attach {
        let args = [("IgnoreUnknown", "1"), ("K8S_POD_NAMESPACE", NS), ("K8S_POD_NAME", self.name.as_str())];
        Attach {
            container_id: format!("{}-{}", self.name, self.attached),
            netns: Some(self.namespace.path()),
            ifname: IFNAME.to_owned(),
            args: args.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.result.as_ref().map(|r| runtime::addresses(r).unwrap()).unwrap_or_default()
    }

    /// ADD where it is not wired, else DEL; whether it is wired then, and with what.
    async fn turn(&self, node: &Node) -> Result<Option<Value>, anyhow::Error> {
        match &self.result {
            None => node.runtime().add(&node.namespace, &self.attach()).await.map(Some),
            Some(result) => node.runtime().del(&node.namespace, &self.attach(), result).await.map(|()| None),
        }
    }
}

/// A step of a linear congruential generator.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// A node whose pods accept only those with the label `app: friend`.
async fn guarded(sandboxes: usize) -> Cluster {
    let mut objects = vec![
        world::node(NODE, &["172.20.0.11", "fd20::11"], &["10.244.1.0/25", "fd10:244:0:1::/64"]),
        world::namespace(NS, json!({})),
        world::policy(
            NS,
            "friends",
            json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}]}),
        ),
    ];
    let names = (0..sandboxes).map(|i| format!("p{i}")).chain(["friend", "stranger"].map(str::to_owned));
    objects.extend(names.map(|name| world::pod(NS, &name, NODE, &[80])));
    let mut cluster = Cluster::start(&objects, &[]).await.unwrap();
    for name in ["friend", "stranger"] {
        cluster.wire(NS, name).await.unwrap();
    }
    cluster
}

/// That attachments, reservations and kernel agree.
async fn agrees(node: &Node) {
    let checked = node.fairlead(&["ipam", "check"]).await.unwrap();
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// Whether the interface is there in the sandbox.
async fn has_interface(sandbox: &Sandbox) -> bool {
    sandbox.namespace.run(|| nix::net::if_::if_nametoindex(IFNAME).is_ok()).await.unwrap()
}

/// That just these are wired, each open to the friend and closed to the stranger.
async fn enforced(cluster: &Cluster, sandboxes: &[Sandbox], ipv6: bool) {
    let endpoints = cluster.node(NODE).unwrap().endpoints().await.unwrap();
    assert!(endpoints.iter().all(|e| e.unlocked), "{endpoints:?}");
    let known: BTreeSet<(String, Vec<IpAddr>)> =
        endpoints.into_iter().map(|e| (e.attachment.container_id, e.attachment.addresses)).collect();
    let wired = sandboxes.iter().filter(|s| s.result.is_some());
    let fixed = cluster.pods().map(|pod| (pod.attach.container_id.clone(), pod.addresses.clone()));
    let wanted: BTreeSet<_> =
        wired.clone().map(|s| (s.attach().container_id, s.addresses())).chain(fixed).collect();
    assert_eq!(known, wanted);
    let probes = wired.map(|sandbox| async move {
        let address = sandbox.addresses().into_iter().find(|a| a.is_ipv6() == ipv6).unwrap();
        let to = SocketAddr::new(address, 80);
        let from = |name| &cluster.pod(name).unwrap().namespace;
        // A busy machine may be late to answer; what is allowed is open in the end.
        await_until(&format!("the friend reaches {}", sandbox.name), SOON, async || {
            Ok(connect(from("friend"), to, LIMIT).await?.is_open())
        })
        .await
        .unwrap();
        let outcome = connect(from("stranger"), to, LIMIT).await.unwrap();
        assert!(outcome.is_silent(), "stranger to {}: {outcome:?}", sandbox.name);
    });
    join_all(probes).await;
}

#[tokio::test]
async fn an_agent_killed_while_thirty_come_and_go_leaves_each_whole_or_undone() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = guarded(PODS).await;
    let mut sandboxes = Vec::new();
    for i in 0..PODS {
        sandboxes.push(Sandbox::new(format!("p{i}")).await);
    }
    // Thirty ADDs at once and then fifteen DELs, undisturbed: how long that takes.
    let start = Instant::now();
    let node = cluster.node(NODE).unwrap();
    for (sandbox, result) in join_all(sandboxes.iter().map(|s| s.turn(node))).await.into_iter().enumerate() {
        sandboxes[sandbox].result = result.unwrap();
    }
    let undisturbed = start.elapsed();
    for (sandbox, result) in
        join_all(sandboxes[..PODS / 2].iter().map(|s| s.turn(node))).await.into_iter().enumerate()
    {
        sandboxes[sandbox].result = result.unwrap();
    }
    agrees(node).await;
    let seed = u64::from(std::process::id());
    println!("seed {seed}, thirty at once take {undisturbed:?}");
    let (mut random, mut failed, mut added) = (seed, 0, 0);
    for round in 0..KILLS {
        // Half of it ADDs, half DELs, at the same time; now and then the kill comes after the last.
        let node = cluster.node(NODE).unwrap();
        let agent = nix::unistd::Pid::from_raw(node.agent.as_ref().unwrap().id().cast_signed());
        let micros = u64::try_from(undisturbed.as_micros()).unwrap();
        let after = Duration::from_micros(next(&mut random) % micros);
        for sandbox in sandboxes.iter_mut().filter(|s| s.result.is_none()) {
            sandbox.attached += 1;
        }
        let killing = async {
            tokio::time::sleep(after).await;
            kill(agent, Signal::SIGKILL).unwrap();
        };
        let (results, ()) = tokio::join!(join_all(sandboxes.iter().map(|s| s.turn(node))), killing);
        for (sandbox, result) in sandboxes.iter_mut().zip(results) {
            match (sandbox.result.is_some(), result) {
                (_, Ok(result)) => {
                    added += usize::from(result.is_some());
                    sandbox.result = result;
                }
                (false, Err(error)) => {
                    let code = error.downcast_ref::<CniError>().map(|e| e.code);
                    assert_eq!(code, Some(11), "ADD of {}: {error:#}", sandbox.name);
                    failed += 1;
                }
                (true, Err(error)) => unreachable!("DEL of {}: {error:#}", sandbox.name),
            }
        }
        // Without the agent: those that failed are undone, and nothing is lost or twice.
        for sandbox in &sandboxes {
            let file = node.folders.run.endpoint(&sandbox.attach().container_id, IFNAME);
            let wired = sandbox.result.is_some();
            assert_eq!((file.exists(), has_interface(sandbox).await), (wired, wired), "{}", sandbox.name);
        }
        agrees(node).await;
        cluster.kill_agent(NODE).unwrap();
        cluster.start_agent(NODE).await.unwrap();
        agrees(cluster.node(NODE).unwrap()).await;
        enforced(&cluster, &sandboxes, round % 2 == 1).await;
    }
    println!("{failed} ADDs failed, {added} succeeded");
    let node = cluster.node(NODE).unwrap();
    for sandbox in sandboxes.iter_mut().filter(|s| s.result.is_some()) {
        sandbox.result = sandbox.turn(node).await.unwrap();
    }
    agrees(node).await;
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_node_that_starts_anew_begins_clean_whether_its_run_directory_lasted_or_not() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = guarded(2).await;
    for lasted in [true, false] {
        let mut sandboxes = [Sandbox::new("p0".to_owned()).await, Sandbox::new("p1".to_owned()).await];
        for sandbox in &mut sandboxes {
            sandbox.attached = usize::from(lasted);
            sandbox.result = sandbox.turn(cluster.node(NODE).unwrap()).await.unwrap();
        }
        // The power goes: processes, interfaces and pins are no more, and containers neither.
        cluster.kill_agent(NODE).unwrap();
        let node = cluster.node(NODE).unwrap();
        let (run, boot) =
            (node.folders.run.path().to_owned(), cluster.folder().join(format!("boot-{lasted}")));
        std::fs::write(&boot, format!("00000000-0000-4000-8000-{:012}\n", u8::from(lasted))).unwrap();
        let gone = node.namespace.run(move || {
            for interface in nix::net::if_::if_nameindex().unwrap().iter() {
                let name = interface.name().to_string_lossy().into_owned();
                if name.starts_with("fl") {
                    let del = ["link", "del", &name];
                    assert!(std::process::Command::new("ip").args(del).status().unwrap().success());
                }
            }
            std::fs::remove_dir_all(fairlead_tests::agent::BPFFS).unwrap();
            if !lasted {
                std::fs::remove_dir_all(&run).unwrap();
            }
            // What only the kernel can change: this machine's number of this start.
            let path = "/proc/sys/kernel/random/boot_id";
            mount(Some(&boot), path, None::<&Path>, MsFlags::MS_BIND, None::<&Path>)
        });
        gone.await.unwrap().unwrap();
        drop(sandboxes);
        cluster.start_agent(NODE).await.unwrap();
        let node = cluster.node(NODE).unwrap();
        assert_eq!(node.endpoints().await.unwrap(), []);
        agrees(node).await;
        // The first address again, for the order begins anew: nothing of before is reserved or rests.
        let mut sandbox = Sandbox::new("p0".to_owned()).await;
        sandbox.attached = 2 + usize::from(lasted);
        sandbox.result = sandbox.turn(node).await.unwrap();
        assert_eq!(sandbox.addresses()[0], "10.244.1.2".parse::<IpAddr>().unwrap());
        sandbox.result = sandbox.turn(node).await.unwrap();
        agrees(node).await;
    }
    cluster.stop().await.unwrap();
}
