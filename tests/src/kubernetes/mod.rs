//! A real cluster on one machine: etcd, API server, controllers and scheduler in one network namespace,
//! and nodes with containerd, kubelet and kube-proxy in namespaces of their own, on one L2.
//!
//! `cargo xtask cluster up` builds and keeps one; tests make their own. The executables are Kubernetes'
//! own, which `cargo xtask` builds into `target/kubernetes`.

mod cgroup;
pub mod machine;
pub mod specs;
pub mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use kube::Client;
use serde_json::Value;
use tempfile::TempDir;

use crate::control_plane::{ControlPlane, Exposure, PORT, log_to, spawn};
use crate::fabric;
use crate::namespace::Namespace;
use crate::wait::await_until;
use crate::world::{self, Object};
use machine::Machine;

/// Addresses of the control plane on the nodes' L2.
const CONTROL: [&str; 2] = ["172.20.0.10/24", "fd20::10/64"];
/// Addresses of the nodes on their L2, by family as above.
const NODES: [[&str; 2]; 2] = [["172.20.0.11/24", "fd20::11/64"], ["172.20.0.12/24", "fd20::12/64"]];
/// Names of the nodes.
pub const NAMES: [&str; 2] = ["node-a", "node-b"];
/// Prefix of all pods' addresses, by family as above.
pub const PODS: [&str; 2] = ["10.244.0.0/16", "fd10:244::/56"];
/// Prefix of Services' addresses.
const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd10:96::/112"];
/// Addresses of the cluster's name server.
const DNS: [&str; 2] = ["10.96.0.10", "fd10:96::a"];
/// Time that anything of the cluster may take, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(180);

/// Families of addresses, the first one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// Both, IPv4 first.
    Dual,
    /// Both, IPv6 first: Services are IPv6 where they do not ask for another family.
    DualV6,
}

impl Families {
    fn pick<T>(self, [v4, v6]: [T; 2]) -> Vec<T> {
        match self {
            Self::V4 => vec![v4],
            Self::Dual => vec![v4, v6],
            Self::DualV6 => vec![v6, v4],
        }
    }

    fn prefixes(self, texts: [&str; 2]) -> Result<Vec<IpNetwork>> {
        self.pick(texts).into_iter().map(|text| Ok(text.parse()?)).collect()
    }
}

/// How kube-proxy translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// By iptables.
    Iptables,
    /// By nftables.
    Nftables,
}

impl Proxy {
    /// Its name in kube-proxy's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// What kind of cluster.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Families of addresses.
    pub families: Families,
    /// How kube-proxy translates.
    pub proxy: Proxy,
}

/// A cluster. All of it goes when this is dropped.
#[derive(Debug)]
pub struct Kubernetes {
    // In the order of dropping: what runs first, folders last.
    machines: Vec<Machine>,
    controllers: Vec<Child>,
    control: ControlPlane,
    namespace: Arc<Namespace>,
    options: Options,
    _fabric: Namespace,
    folder: TempDir,
}

impl Kubernetes {
    /// Starts everything; nodes are Ready only when something gives pods a network.
    ///
    /// # Errors
    /// Without root, when something is not built or installed, or does not get ready.
    pub async fn start(options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("fairlead-").tempdir()?;
        let fabric = fabric::bridge("fabric").await?;
        let namespace = Arc::new(Namespace::new("control").await?);
        let own = options.families.prefixes(CONTROL)?;
        fabric::connect(&fabric, &namespace, &own).await?;
        let exposure = Exposure {
            addresses: own.iter().map(IpNetwork::ip).collect(),
            services: options.families.prefixes(SERVICES)?,
        };
        let server = SocketAddr::new(own.first().context("no address")?.ip(), PORT);
        // The images take as long to unpack as the API server takes to start.
        let own = folder.path().join("control");
        let control = ControlPlane::start_exposed(namespace.clone(), &own, exposure);
        let machines = async {
            let mut machines = Vec::new();
            for (name, addresses) in NAMES.iter().zip(NODES) {
                let addresses = options.families.prefixes(addresses)?;
                machines.push(Machine::start(&fabric, folder.path(), name, &addresses).await?);
            }
            anyhow::Ok(machines)
        };
        let (control, machines) = tokio::try_join!(control, machines)?;
        let mut cluster =
            Self { machines, controllers: Vec::new(), control, namespace, options, _fabric: fabric, folder };
        std::fs::write(cluster.kubeconfig(), cluster.control.kubeconfig_for(server, &ControlPlane::admin()))?;
        cluster.start_controllers().await?;
        let pods = options.families.prefixes(PODS)?;
        for machine in &mut cluster.machines {
            machine.start_kubelet(&cluster.control, server, options.families.pick(DNS)[0]).await?;
            machine.start_proxy(&cluster.control, server, options.proxy, &pods).await?;
        }
        Ok(cluster)
    }

    async fn start_controllers(&mut self) -> Result<()> {
        let control = self.control.folder().to_owned();
        let list = |prefixes: Vec<&str>| prefixes.join(",");
        let mut manager = self.program("kube-controller-manager")?;
        manager
            .arg(format!("--service-account-private-key-file={}", control.join("signer.key").display()))
            .arg(format!("--root-ca-file={}", control.join("ca.pem").display()))
            .arg(format!("--cluster-cidr={}", list(self.options.families.pick(PODS))))
            .arg(format!("--service-cluster-ip-range={}", list(self.options.families.pick(SERVICES))))
            .args(["--allocate-node-cidrs", "--use-service-account-credentials", "--leader-elect=false"])
            .args(["--kube-api-qps=200", "--kube-api-burst=400", "--node-monitor-period=2s"]);
        let mut scheduler = self.program("kube-scheduler")?;
        scheduler.args(["--leader-elect=false", "--kube-api-qps=200", "--kube-api-burst=400"]);
        for command in [manager, scheduler] {
            self.controllers.push(spawn(&self.namespace, command).await?);
        }
        Ok(())
    }

    fn program(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(built("node").join(name));
        command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--bind-address=127.0.0.1");
        log_to(&mut command, &self.control.folder().join(format!("{name}.log")))?;
        Ok(command)
    }

    /// The control plane.
    pub fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// The control plane, to stop and start it.
    pub fn control_mut(&mut self) -> &mut ControlPlane {
        &mut self.control
    }

    /// The namespace in which the control plane runs.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// The nodes.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// A node by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        self.machines.iter().find(|m| m.name == name).with_context(|| format!("no node {name}"))
    }

    /// Credentials of an administrator, for clients in [`Kubernetes::namespace`] and on nodes.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Folder of everything that belongs to the cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// When it fails; with what it has said.
    pub async fn kubectl(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(built("node").join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(words).stdin(Stdio::null());
        // It keeps what it has learned of the API there.
        command.env("HOME", self.folder.path());
        let output = self.namespace.run(move || command.output()).await??;
        if !output.status.success() {
            bail!("kubectl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output)
    }

    /// What `kubectl get … -o json` says.
    ///
    /// # Errors
    /// When it fails.
    pub async fn get(&self, words: &[&str]) -> Result<Value> {
        let output = self.kubectl(&[&["get", "-o", "json"], words].concat()).await?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Works as an administrator at the API server.
    ///
    /// # Errors
    /// What the work returns, or that it takes too long.
    pub async fn with<R: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(Client) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.control.with(work).await
    }

    /// Imports Fairlead's image on all nodes and applies its manifest, as docs/install.md says.
    ///
    /// # Errors
    /// When the image is not there, or the API server refuses an object.
    pub async fn install(&self, image: &Path) -> Result<()> {
        for machine in &self.machines {
            machine.import(image).await?;
        }
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/fairlead.yaml");
        self.kubectl(&["apply", "-f", manifest]).await?;
        Ok(())
    }

    /// Runs the cluster's name server, as pods.
    ///
    /// # Errors
    /// When the API server refuses an object.
    pub async fn install_dns(&self) -> Result<()> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes/dns/coredns.yaml");
        let mut objects = world::parse(&std::fs::read_to_string(file)?)?;
        for service in objects.iter_mut().filter(|o| world::kind(o) == "Service") {
            service["spec"]["clusterIP"] = self.options.families.pick(DNS)[0].into();
        }
        self.apply(&objects).await
    }

    /// Waits until all nodes are Ready, and the DaemonSet of Fairlead on them.
    ///
    /// # Errors
    /// When that takes too long, with what hinders it.
    pub async fn await_ready(&self) -> Result<()> {
        let waited = async {
            await_until("all nodes Ready", SOON, async || {
                let nodes = self.get(&["nodes"]).await?;
                let items = nodes["items"].as_array().context("no items")?;
                Ok(items.len() == self.machines.len() && items.iter().all(ready))
            })
            .await?;
            self.kubectl(&["-n", "fairlead", "rollout", "status", "daemonset/fairlead", "--timeout=180s"])
                .await
        };
        if let Err(error) = waited.await {
            let describe = self.kubectl(&["describe", "nodes,pods", "-A"]).await?;
            let logs = self
                .kubectl(&[
                    "-n",
                    "fairlead",
                    "logs",
                    "-l",
                    "app.kubernetes.io/name=fairlead",
                    "--all-containers",
                ])
                .await;
            let logs = logs.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
            bail!("{error:#}\n{}\n{logs:?}", String::from_utf8_lossy(&describe.stdout));
        }
        Ok(())
    }

    /// Applies objects as an administrator.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub async fn apply(&self, objects: &[Object]) -> Result<()> {
        let objects = objects.to_vec();
        self.with(async move |client| {
            for object in objects {
                crate::control_plane::apply(client.clone(), object, false).await?;
            }
            Ok(())
        })
        .await
    }

    /// Waits until every pod of a namespace is Ready, and returns them.
    ///
    /// # Errors
    /// When that takes too long, with what hinders it.
    pub async fn await_pods(&self, namespace: &str) -> Result<Vec<Object>> {
        let mut pods = Vec::new();
        let waited = await_until("all pods Ready", SOON, async || {
            let all = self.get(&["pods", "-n", namespace]).await?;
            pods = all["items"].as_array().cloned().unwrap_or_default();
            Ok(!pods.is_empty() && pods.iter().all(ready))
        })
        .await;
        if let Err(error) = waited {
            let events = self.kubectl(&["get", "events", "-n", namespace]).await?;
            bail!("{error:#}\n{}", String::from_utf8_lossy(&events.stdout));
        }
        Ok(pods)
    }

    /// A thread in the network namespace of a pod's sandbox.
    ///
    /// # Errors
    /// When its node does not know it.
    pub async fn enter(&self, namespace: &str, name: &str) -> Result<Namespace> {
        for machine in &self.machines {
            let run = fairlead_api::RunDir(machine.path("/run/fairlead"));
            let endpoints: Vec<fairlead_api::EndpointStatus> =
                crate::agent::get(&run, "/v1/endpoints").await?;
            let own = endpoints.into_iter().map(|e| e.attachment);
            let mut own =
                own.filter(|a| a.pod.as_ref().is_some_and(|p| p.namespace == namespace && p.name == name));
            if let Some(attachment) = own.next() {
                return Namespace::entered(name, &machine.path(attachment.netns)).await;
            }
        }
        bail!("no node has a pod {namespace}/{name}")
    }

    /// Waits for Ctrl-C or SIGTERM.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn interrupted() -> Result<()> {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => Ok(result?),
            _ = terminate.recv() => Ok(()),
        }
    }

    /// Its address of a pod in a family.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(pod: &Object, ipv6: bool) -> Result<IpAddr> {
        let all = pod["status"]["podIPs"].as_array().into_iter().flatten();
        let mut all = all.filter_map(|a| a["ip"].as_str()?.parse::<IpAddr>().ok());
        all.find(|a| a.is_ipv6() == ipv6)
            .with_context(|| format!("{} has no address in this family", world::kind(pod)))
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        for child in &mut self.controllers {
            // Already gone, if it cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether a node or a pod is Ready.
pub fn ready(object: &Object) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Folder of what `cargo xtask` has built of Kubernetes.
pub fn built(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/kubernetes")).join(name)
}
