//! A node for each contender, and sandboxes.

use anyhow::{Context, Result};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::world;
use serde_json::{Value, json};

use super::contender::{Call, Calls, Contender, Sandbox, Watch, at_once};

/// Index of Fairlead among the contenders.
pub(crate) const FAIRLEAD: usize = 0;
/// Index of ptp.
pub(crate) const PTP: usize = 1;
/// How many contenders there are.
pub(crate) const CONTENDERS: usize = 4;
/// Their names.
pub(crate) const NAMES: [&str; CONTENDERS] = ["Fairlead", "ptp", "bridge", "ptp, IPv4 only"];
/// Policies in force, each of which selects every pod that is made.
pub(crate) const POLICIES: usize = 10;
/// Where Debian keeps CNI plugins.
const DEBIAN: &str = "/usr/lib/cni";
const NODE: &str = "node-a";
const NAMESPACE: &str = "bench";

/// Nodes and sandboxes.
pub(crate) struct Lab {
    cluster: Cluster,
    /// The nodes of the others.
    nodes: [Namespace; CONTENDERS - 1],
    contenders: [Contender; CONTENDERS],
    watches: [Watch; CONTENDERS],
    sandboxes: Vec<Vec<(Namespace, Sandbox, Option<Value>)>>,
    count: usize,
}

fn policy(number: usize) -> world::Object {
    let peer = json!({"podSelector": {"matchLabels": {"app": format!("pod-{number}")}}});
    let block = json!({"ipBlock": {"cidr": format!("10.{number}.0.0/16"), "except": [format!("10.{number}.7.0/24")]}});
    let ports = json!([{"protocol": "TCP", "port": 8000 + number}, {"protocol": "UDP", "port": 53}]);
    world::policy(
        NAMESPACE,
        &format!("policy-{number}"),
        json!({
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [peer, block], "ports": ports}],
            "egress": [{"to": [block], "ports": ports}],
        }),
    )
}

/// The configuration of a Debian plugin with host-local below `folder`.
fn debian(kind: &str, ipv6: bool, folder: &std::path::Path) -> Value {
    let name = format!("{kind}-{}", if ipv6 { "dual" } else { "ipv4" });
    let families = if ipv6 { 2 } else { 1 };
    let ranges = [json!([{"subnet": "10.99.0.0/16"}]), json!([{"subnet": "fd99::/64"}])];
    let routes = [json!({"dst": "0.0.0.0/0"}), json!({"dst": "::/0"})];
    let mut configuration = json!({
        "cniVersion": "1.0.0", "name": name, "type": kind, "ipMasq": false,
        "ipam": {
            "type": "host-local", "dataDir": folder.join("host-local"),
            "ranges": &ranges[..families], "routes": &routes[..families],
        },
    });
    if kind == "bridge" {
        configuration["bridge"] = "cni0".into();
        configuration["isGateway"] = true.into();
    }
    configuration
}

impl Lab {
    /// Makes all of it, with `sandboxes` for each contender.
    pub(crate) async fn start(sandboxes: usize) -> Result<Self> {
        let mut objects = vec![
            world::node(NODE, &["172.20.0.11", "fd20::11"], &["10.244.0.0/16", "fd10:244::/64"]),
            world::namespace(NAMESPACE, json!({})),
        ];
        objects.extend((0..POLICIES).map(policy));
        objects.extend((0..sandboxes).map(|i| world::pod(NAMESPACE, &format!("pod-{i}"), NODE, &[8000])));
        let cluster = Cluster::start(&objects, &[]).await?;
        let nodes = [
            Namespace::new("ptp-node").await?,
            Namespace::new("bridge-node").await?,
            Namespace::new("ptp4-node").await?,
        ];
        let runtime = cluster.node(NODE)?.runtime();
        let list = runtime.configuration()?;
        let mut ours = list["plugins"][0].clone();
        ours["cniVersion"] = list["cniVersion"].clone();
        ours["name"] = list["name"].clone();
        let fairlead = Contender {
            executable: runtime.plugins.join("fairlead-cni"),
            plugins: runtime.plugins.clone(),
            configuration: ours,
        };
        let other = |kind: &str, ipv6| Contender {
            executable: std::path::Path::new(DEBIAN).join(kind),
            plugins: DEBIAN.into(),
            configuration: debian(kind, ipv6, cluster.folder()),
        };
        let contenders = [fairlead, other("ptp", true), other("bridge", true), other("ptp", false)];
        let watches = [
            Watch::start(&cluster.node(NODE)?.namespace).await?,
            Watch::start(&nodes[0]).await?,
            Watch::start(&nodes[1]).await?,
            Watch::start(&nodes[2]).await?,
        ];
        let mut all = Vec::new();
        for name in NAMES {
            let mut of_one = Vec::new();
            for i in 0..sandboxes {
                let namespace = Namespace::new(&format!("{name}-{i}")).await?;
                let sandbox = Sandbox { container_id: String::new(), netns: namespace.path(), args: args(i) };
                of_one.push((namespace, sandbox, None));
            }
            all.push(of_one);
        }
        let mut lab = Self { cluster, nodes, contenders, watches, sandboxes: all, count: 0 };
        // Files and pages that the first call finds cold belong to no contender.
        for who in 0..CONTENDERS {
            lab.add(who, 0).await?;
            lab.del(who, 0).await?;
        }
        Ok(lab)
    }

    fn node(&self, who: usize) -> Result<&Namespace> {
        if who == FAIRLEAD { Ok(&self.cluster.node(NODE)?.namespace) } else { Ok(&self.nodes[who - 1]) }
    }

    async fn added(&mut self, who: usize, pods: std::ops::Range<usize>) -> Result<Calls> {
        let mut calls = Vec::new();
        for pod in pods.clone() {
            self.count += 1;
            let (_, sandbox, _) = &mut self.sandboxes[who][pod];
            sandbox.container_id = format!("c{:08}", self.count);
            calls.push(self.contenders[who].ready("ADD", sandbox, None)?);
        }
        let done = at_once(self.node(who)?, calls).await?;
        for (pod, call) in pods.zip(&done.calls) {
            let result = serde_json::from_str(&call.output).with_context(|| call.output.clone())?;
            self.sandboxes[who][pod].2 = Some(result);
        }
        Ok(done)
    }

    async fn deleted(&mut self, who: usize, pods: std::ops::Range<usize>) -> Result<Calls> {
        let mut calls = Vec::new();
        for (_, sandbox, result) in &mut self.sandboxes[who][pods] {
            calls.push(self.contenders[who].ready("DEL", sandbox, result.take().as_ref())?);
        }
        self.watches[who].forget();
        at_once(self.node(who)?, calls).await?.await_gone(&self.watches[who])
    }

    /// ADD of one pod.
    pub(crate) async fn add(&mut self, who: usize, pod: usize) -> Result<Call> {
        self.added(who, pod..pod + 1).await?.calls.pop().context("no call")
    }

    /// DEL of one pod.
    pub(crate) async fn del(&mut self, who: usize, pod: usize) -> Result<Calls> {
        self.deleted(who, pod..pod + 1).await
    }

    /// ADD of the first `count` pods at once; milliseconds until the last has returned.
    pub(crate) async fn add_many(&mut self, who: usize, count: usize) -> Result<f64> {
        Ok(self.added(who, 0..count).await?.returned)
    }

    /// DEL of the first `count` pods at once.
    pub(crate) async fn del_many(&mut self, who: usize, count: usize) -> Result<Calls> {
        self.deleted(who, 0..count).await
    }

    /// SIGKILL to the agent.
    pub(crate) fn kill_agent(&mut self) -> Result<()> {
        self.cluster.kill_agent(NODE)
    }

    /// Starts it again.
    pub(crate) async fn start_agent(&mut self) -> Result<()> {
        self.cluster.start_agent(NODE).await
    }

    /// Takes everything down.
    pub(crate) async fn stop(self) -> Result<()> {
        self.cluster.stop().await
    }
}

fn args(pod: usize) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME=pod-{pod};K8S_POD_UID=uid-pod-{NAMESPACE}-pod-{pod}"
    )
}
