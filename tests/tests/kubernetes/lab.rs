//! A node, its API server and its agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fairlead_api::EndpointStatus;
use fairlead_tests::agent::{self, Agent, Folders, Source};
use fairlead_tests::control_plane::{ControlPlane, PORT};
use fairlead_tests::fabric;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::runtime::{Attach, IFNAME, Runtime};
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Name of the node.
pub(crate) const NODE: &str = "node-a";
/// Time within which a change takes effect, at the very latest.
const SOON: Duration = Duration::from_secs(30);

/// A pod's sandbox.
pub(crate) struct Sandbox {
    _namespace: Namespace,
    pub(crate) attach: Attach,
}

/// A node, its API server and its agent.
pub(crate) struct Lab {
    // In the order of dropping: what runs first, folders last.
    agent: Option<Agent>,
    pub(crate) control: ControlPlane,
    pub(crate) folders: Folders,
    pub(crate) node: Arc<Namespace>,
    _fabric: Namespace,
    folder: TempDir,
    attachments: u32,
}

/// The objects of `manifests/fairlead.yaml`.
pub(crate) fn manifest() -> Vec<Object> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/fairlead.yaml");
    world::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

impl Lab {
    /// A node that the API server knows, with everything of the manifest applied, without an agent.
    pub(crate) async fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("fairlead-").tempdir().unwrap();
        let fabric = fabric::bridge("fabric").await.unwrap();
        let node = Arc::new(Namespace::new_node(NODE).await.unwrap());
        let addresses = ["172.20.0.11/24", "fd20::11/64"].map(|a| a.parse().unwrap());
        fabric::connect(&fabric, &node, &addresses).await.unwrap();
        let control = ControlPlane::start(node.clone(), &folder.path().join("control")).await.unwrap();
        for object in manifest() {
            control.apply(&object).await.unwrap();
        }
        let object = world::node(NODE, &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]);
        control.apply(&object).await.unwrap();
        let folders = Folders::below(&folder.path().join(NODE));
        Self { agent: None, control, folders, node, _fabric: fabric, folder, attachments: 0 }
    }

    /// The same, with an agent that has the rights of its service account.
    pub(crate) async fn with_agent() -> Self {
        let mut lab = Self::new().await;
        let token = lab.folder.path().join("token");
        std::fs::write(&token, lab.control.token("fairlead", "fairlead").await.unwrap()).unwrap();
        let kubeconfig = lab.kubeconfig(&json!({"tokenFile": token}));
        lab.start_agent(Source::Kubeconfig(&kubeconfig)).await;
        lab
    }

    /// Writes the agent's kubeconfig.
    pub(crate) fn kubeconfig(&self, user: &Value) -> PathBuf {
        let path = self.folder.path().join("kubeconfig");
        // Whole, because an agent may be reading it.
        let new = self.folder.path().join("kubeconfig.new");
        std::fs::write(&new, self.control.kubeconfig(PORT, user)).unwrap();
        std::fs::rename(new, &path).unwrap();
        path
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts (again) the agent, and waits until it is ready.
    pub(crate) async fn start_agent(&mut self, source: Source<'_>) {
        self.start_agent_with(source, &[]).await;
    }

    /// The same, with flags.
    pub(crate) async fn start_agent_with(&mut self, source: Source<'_>, flags: &[String]) {
        self.agent = None;
        let mut agent = Agent::spawn(&self.node, source, &self.folders, flags).await.unwrap();
        agent.await_ready(&self.node).await.unwrap();
        self.agent = Some(agent);
    }

    /// The agent's process.
    pub(crate) fn agent_id(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    pub(crate) async fn status(&self) -> Value {
        agent::get(&self.folders.run, "/v1/status").await.unwrap()
    }

    pub(crate) async fn endpoints(&self) -> Vec<EndpointStatus> {
        agent::get(&self.folders.run, "/v1/endpoints").await.unwrap()
    }

    /// Whether the agent says that a connection to port 80 is allowed.
    pub(crate) async fn allows(&self, from: &str, to: &str) -> bool {
        self.allows_on(from, to, 80).await
    }

    /// Whether the agent says that a connection is allowed.
    pub(crate) async fn allows_on(&self, from: &str, to: &str, port: u16) -> bool {
        let path = format!("/v1/explain?from={from}&to={to}&port={port}/tcp");
        let answer: Value = agent::get(&self.folders.run, &path).await.unwrap();
        answer["allowed"].as_bool().unwrap()
    }

    /// Waits until a connection is allowed, or is not.
    pub(crate) async fn until_allows(&self, from: &str, to: &str, wanted: bool) {
        let waited = await_until("policy", SOON, async || Ok(self.allows(from, to).await == wanted)).await;
        if let Err(e) = waited {
            panic!("{from} to {to}, wanted {wanted}: {e}\n{}", self.status().await["problems"]);
        }
    }

    /// Waits until the agent's status is as wanted.
    pub(crate) async fn until_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let waited = await_until(what, SOON, async || Ok(wanted(&self.status().await))).await;
        if let Err(e) = waited {
            panic!("{e}\n{:#}", self.status().await);
        }
    }

    /// ADD of a pod, as its kubelet's runtime would.
    pub(crate) async fn add(&mut self, pod: &Object) -> Result<Sandbox> {
        let text = |field: &str| pod["metadata"][field].as_str().context("metadata").map(str::to_owned);
        let (namespace, name, uid) = (text("namespace")?, text("name")?, text("uid")?);
        let sandbox = Namespace::new(&name).await?;
        self.attachments += 1;
        let container_id = format!("{name}-{}", self.attachments);
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &namespace),
            ("K8S_POD_NAME", &name),
            ("K8S_POD_INFRA_CONTAINER_ID", &container_id),
            ("K8S_POD_UID", &uid),
        ];
        let attach = Attach {
            netns: Some(sandbox.path()),
            ifname: IFNAME.to_owned(),
            args: args.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            container_id,
        };
        let runtime = Runtime { configurations: self.folders.cni.clone(), plugins: fairlead_tests::dist() };
        runtime.add(&self.node, &attach).await?;
        Ok(Sandbox { _namespace: sandbox, attach })
    }
}

/// A pod on the node, with labels.
pub(crate) fn pod(namespace: &str, name: &str, labels: Value) -> Object {
    let mut pod = world::pod(namespace, name, NODE, &[80]);
    pod["metadata"]["labels"] = labels;
    pod
}

/// The pod as its kubelet has written it once it runs: a pod without an address is nobody's peer.
pub(crate) fn running(mut pod: Object, address: &str) -> Object {
    pod["status"] = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
    pod
}

/// Ingress of `subject` from pods with a label, in namespaces with a label.
pub(crate) fn only_from(namespace: &str, subject: &str, pods: Value, namespaces: Value) -> Object {
    world::policy(
        namespace,
        subject,
        json!({
            "podSelector": {"matchLabels": {"app": subject}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": pods},
                                   "namespaceSelector": {"matchLabels": namespaces}}]}],
        }),
    )
}
