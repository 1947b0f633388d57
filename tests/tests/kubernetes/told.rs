//! What the agent says to the API server, and what a stuck one says to its kubelet.

use std::time::Duration;

use fairlead_tests::agent::Source;
use fairlead_tests::http;
use fairlead_tests::wait::await_until;
use fairlead_tests::world;
use kube::api::{Api, DynamicObject, ListParams};
use kube::discovery::ApiResource;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::lab::{Lab, NODE};

/// Time within which something is told: the agent looks every 15 seconds.
const TOLD: Duration = Duration::from_secs(90);

/// All objects of a kind.
async fn all(lab: &Lab, version: &'static str, kind: &'static str) -> Vec<Value> {
    lab.control
        .with(async move |client| {
            let gvk = kube::api::GroupVersionKind::gvk("", version, kind);
            let api = Api::<DynamicObject>::all_with(client, &ApiResource::from_gvk(&gvk));
            let list = api.list(&ListParams::default()).await?;
            Ok(list.items.into_iter().map(|o| serde_json::to_value(o).unwrap()).collect())
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn what_cannot_be_honoured_is_said_at_the_object_once() {
    if !fairlead_tests::privileged() {
        return;
    }
    let lab = Lab::with_agent().await;
    // The API server takes it; only the first of both by name can have the addresses.
    let twin = world::node("a-twin", &["172.20.0.12"], &["10.244.1.0/24"]);
    lab.control.apply(&twin).await.unwrap();
    lab.until_status("a problem", |s| s["problems"].to_string().contains("overlaps")).await;
    let mut events = Vec::new();
    await_until("an event", TOLD, async || {
        events = all(&lab, "v1", "Event").await;
        events.retain(|e| e["reason"] == "FairleadProblem");
        Ok(!events.is_empty())
    })
    .await
    .unwrap();
    assert_eq!(events.len(), 1, "{events:#?}");
    let object = &events[0]["involvedObject"];
    assert_eq!((&object["kind"], &object["name"]), (&json!("Node"), &json!(NODE)));
    assert_eq!(events[0]["type"], "Warning");
}

#[tokio::test]
async fn a_ready_agent_takes_its_taint_away_and_no_other() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut lab = Lab::new().await;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/taint/rights.yaml");
    for object in world::parse(&std::fs::read_to_string(path).unwrap()).unwrap() {
        lab.control.apply(&object).await.unwrap();
    }
    let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
    let mut node = world::node(NODE, &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]);
    node["spec"]["taints"] = json!([taint("fairlead.dev/agent-not-ready"), taint("example.org/other")]);
    lab.control.apply(&node).await.unwrap();
    let token = lab.folder().join("token");
    std::fs::write(&token, lab.control.token("fairlead", "fairlead").await.unwrap()).unwrap();
    let kubeconfig = lab.kubeconfig(&json!({"tokenFile": token}));
    lab.start_agent_with(Source::Kubeconfig(&kubeconfig), &["--remove-taint".to_owned()]).await;
    await_until("no taint", TOLD, async || {
        let nodes = all(&lab, "v1", "Node").await;
        let taints = nodes[0]["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let keys: Vec<_> = taints.iter().map(|t| t["key"].as_str().unwrap_or_default()).collect();
        assert!(keys.contains(&"example.org/other"), "{keys:?}");
        Ok(keys == ["example.org/other"])
    })
    .await
    .unwrap();
}

/// Status and body of `/healthz`.
async fn health(lab: &Lab) -> (u16, String) {
    let ask = || {
        let stream = std::net::TcpStream::connect(("127.0.0.1", 9470))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        http::get(stream, "/healthz")
    };
    lab.node.run(ask).await.unwrap().unwrap_or_default()
}

/// A thread that does not run until this is dropped; all others of its process go on.
struct Held {
    let_go: Option<std::sync::mpsc::Sender<()>>,
    tracer: Option<std::thread::JoinHandle<()>>,
}

impl Held {
    /// Holds the thread of a process that has this name.
    async fn new(process: u32, name: &str) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let named = tasks
            .flatten()
            .find(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|c| c.trim() == name))
            .unwrap();
        let thread = Pid::from_raw(named.file_name().to_str().unwrap().parse().unwrap());
        // Whoever traces a thread is a thread itself: it holds the other one until it is told to let go.
        let (held, is_held) = tokio::sync::oneshot::channel();
        let (let_go, told) = std::sync::mpsc::channel::<()>();
        let tracer = std::thread::spawn(move || {
            ptrace::seize(thread, ptrace::Options::empty()).unwrap();
            ptrace::interrupt(thread).unwrap();
            waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
            held.send(()).unwrap();
            // Also when the test has failed.
            let _ = told.recv();
            ptrace::detach(thread, None).unwrap();
        });
        is_held.await.unwrap();
        Self { let_go: Some(let_go), tracer: Some(tracer) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.let_go.take());
        let joined = self.tracer.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || joined.is_none_or(|j| j.is_ok()));
    }
}

#[tokio::test]
async fn loops_that_are_stuck_are_found_by_the_liveness_probe() {
    if !fairlead_tests::privileged() {
        return;
    }
    let lab = Lab::with_agent().await;
    assert_eq!(health(&lab).await.0, 200);
    let engine = Held::new(lab.agent_id(), "engine").await;
    let says = async |stuck: &str| Ok(health(&lab).await.1.contains(&format!("stuck: {stuck}\"")));
    await_until("the engine", TOLD, async || says("the engine").await).await.unwrap();
    assert_eq!(health(&lab).await.0, 500);
    // The probe is answered whatever else is stuck.
    let main = Held::new(lab.agent_id(), "fairlead-agent").await;
    await_until("both", TOLD, async || says("the engine and the main loop").await).await.unwrap();
    drop(engine);
    await_until("the other", TOLD, async || says("the main loop").await).await.unwrap();
    assert_eq!(health(&lab).await.0, 500);
    drop(main);
    await_until("healthy again", TOLD, async || Ok(health(&lab).await.0 == 200)).await.unwrap();
}
