//! Nodes, pods and what is between and around them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairlead_api::EndpointStatus;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{self, Agent, Folders, Source};
use crate::fabric;
use crate::namespace::{Namespace, sysctl};
use crate::probe::Listener;
use crate::runtime::{self, Attach, IFNAME, Runtime};
use crate::wait::await_until;
use crate::world::{self, NodeSpec, Object, PodSpec, World};

/// Addresses of the router to the world, on the nodes' L2.
pub const GATEWAYS: [&str; 2] = ["172.20.0.1", "fd20::1"];
/// Its addresses in a second subnet, whose nodes reach those of the first only through it.
const SECOND_GATEWAYS: [&str; 2] = ["172.21.0.1", "fd21::1"];
/// Length of the prefixes of the nodes' L2, by family as in [`GATEWAYS`].
const NODE_PREFIXES: [u8; 2] = [24, 64];
/// Addresses of a client in the world, beyond the router.
pub const CLIENTS: [&str; 2] = ["203.0.113.7", "2001:db8:113::7"];
/// Time within which a change of the world takes effect on a node, at the very latest.
pub const SOON: Duration = Duration::from_secs(10);

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// What its Node object says.
    pub spec: NodeSpec,
    /// Its namespaces.
    pub namespace: Namespace,
    /// Its folders.
    pub folders: Folders,
    /// Its agent, where one runs.
    pub agent: Option<Agent>,
    runtime: Runtime,
}

impl Node {
    async fn spawn_agent(&mut self, world: &World, flags: &[String]) -> Result<()> {
        self.agent = None;
        self.agent =
            Some(Agent::spawn(&self.namespace, Source::Manifests(world.path()), &self.folders, flags).await?);
        Ok(())
    }

    async fn await_agent(&mut self) -> Result<()> {
        self.agent.as_mut().context("no agent")?.await_ready(&self.namespace).await
    }

    /// Its agent's endpoints.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub async fn endpoints(&self) -> Result<Vec<EndpointStatus>> {
        agent::get(&self.folders.run, "/v1/endpoints").await
    }

    /// Its container runtime.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Runs `fairlead WORD… --run-dir RUN`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn fairlead(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(crate::dist().join("fairlead"));
        command.args(words).arg("--run-dir").arg(self.folders.run.path()).stdin(Stdio::null());
        Ok(self.namespace.run(move || command.output()).await??)
    }

    /// Packets that the node's stack has forwarded so far, both families.
    ///
    /// # Errors
    /// When /proc does not say.
    pub async fn forwarded(&self) -> Result<u64> {
        // /proc/net would be the main thread's.
        self.namespace
            .run(|| {
                let table = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
                let mut lines = table.lines().filter_map(|l| l.strip_prefix("Ip: "));
                let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
                let v4 = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "ForwDatagrams");
                let table = std::fs::read_to_string("/proc/thread-self/net/snmp6")?;
                let v6 = table.lines().find_map(|l| l.strip_prefix("Ip6OutForwDatagrams"));
                let (_, v4) = v4.context("no ForwDatagrams")?;
                Ok(v4.parse::<u64>()? + v6.context("no Ip6OutForwDatagrams")?.trim().parse::<u64>()?)
            })
            .await?
    }
}

/// A wired pod.
#[derive(Debug)]
pub struct Pod {
    /// What its Pod object says.
    pub spec: PodSpec,
    /// Its network namespace.
    pub namespace: Namespace,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What the runtime asked for.
    pub attach: Attach,
    /// What ADD answered.
    pub result: Value,
    /// How long ADD took.
    pub took: Duration,
    listeners: Vec<Listener>,
}

impl Pod {
    /// Opens a [`Listener`] in it under the pod's name.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn listen(&mut self, port: u16) -> Result<()> {
        self.listeners.push(Listener::open(&self.namespace, &self.spec.name, port).await?);
        Ok(())
    }

    /// Its address in a family.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self, ipv6: bool) -> Result<IpAddr> {
        let address = self.addresses.iter().copied().find(|a| a.is_ipv6() == ipv6);
        address.with_context(|| {
            format!("pod {} has no address in this family: {:?}", self.spec.name, self.addresses)
        })
    }
}

/// Nodes, pods and what is between and around them. Everything goes when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    // In the order of dropping: what runs first, folders last.
    pods: BTreeMap<String, Pod>,
    nodes: BTreeMap<String, Node>,
    outside: Namespace,
    fabric: Namespace,
    objects: BTreeMap<String, Object>,
    world: World,
    agent_flags: Vec<String>,
    folder: TempDir,
    attachments: u32,
}

impl Cluster {
    /// Makes the nodes that are among `objects`, each with a running agent that knows all of them.
    ///
    /// # Errors
    /// Without root, when the kernel lacks something, or when an agent does not get ready.
    pub async fn start(objects: &[Object], agent_flags: &[&str]) -> Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("fairlead-").tempdir().context("cannot make a folder")?;
        let world = World::new(folder.path().join("manifests"))?;
        let fabric = fabric::bridge("fabric").await?;
        let outside = outside(&fabric).await?;
        let mut cluster = Self {
            pods: BTreeMap::new(),
            nodes: BTreeMap::new(),
            outside,
            fabric,
            objects: BTreeMap::new(),
            world,
            agent_flags: agent_flags.iter().map(|&f| f.to_owned()).collect(),
            folder,
            attachments: 0,
        };
        for object in objects {
            cluster.apply(object)?;
        }
        for object in objects.iter().filter(|o| world::kind(o) == "Node") {
            let spec = NodeSpec::of(object)?;
            let node = cluster.node_of(spec).await?;
            cluster.nodes.insert(node.spec.name.clone(), node);
        }
        cluster.start_agents().await?;
        Ok(cluster)
    }

    /// Starts (again) the agents of all nodes, and waits until they are ready.
    ///
    /// # Errors
    /// When one does not get ready.
    pub async fn start_agents(&mut self) -> Result<()> {
        for node in self.nodes.values_mut() {
            node.spawn_agent(&self.world, &self.agent_flags).await?;
        }
        // All load their programs at the same time.
        for node in self.nodes.values_mut() {
            node.await_agent().await?;
        }
        Ok(())
    }

    async fn node_of(&self, spec: NodeSpec) -> Result<Node> {
        let namespace = Namespace::new_node(&spec.name).await?;
        let addresses: Vec<IpNetwork> = spec.addresses.iter().map(|&a| on_l2(a)).collect::<Result<_>>()?;
        fabric::connect(&self.fabric, &namespace, &addresses).await?;
        for gateway in GATEWAYS.iter().chain(&SECOND_GATEWAYS) {
            let gateway: IpAddr = gateway.parse()?;
            if !addresses.iter().any(|a| a.contains(gateway)) {
                continue;
            }
            fabric::route(&namespace, default_route(gateway)?, gateway).await?;
        }
        for cidr in &spec.pod_cidrs {
            let via = spec.addresses.iter().find(|a| a.is_ipv6() == cidr.is_ipv6());
            fabric::route(
                &self.outside,
                *cidr,
                *via.with_context(|| format!("node without an address for {cidr}"))?,
            )
            .await?;
        }
        let folders = Folders::below(&self.folder.path().join(&spec.name));
        let runtime = Runtime { configurations: folders.cni.clone(), plugins: crate::dist() };
        Ok(Node { spec, namespace, folders, agent: None, runtime })
    }

    /// Starts (again) the agent of a node, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start_agent(&mut self, node: &str) -> Result<()> {
        let node = self.nodes.get_mut(node).with_context(|| format!("no node {node}"))?;
        node.spawn_agent(&self.world, &self.agent_flags).await?;
        node.await_agent().await
    }

    /// SIGKILL to the agent of a node.
    ///
    /// # Errors
    /// When none runs there.
    pub fn kill_agent(&mut self, node: &str) -> Result<()> {
        let running = self.nodes.get_mut(node).and_then(|n| n.agent.take());
        let status = running.with_context(|| format!("no agent on {node}"))?.kill()?;
        match std::os::unix::process::ExitStatusExt::signal(&status) {
            Some(9) => Ok(()),
            _ => bail!("the agent of {node} had ended before: {status}"),
        }
    }

    /// Makes a pod of an object that was applied: namespace, ADD, and what the kubelet then writes.
    ///
    /// # Errors
    /// A [`runtime::CniError`] where ADD failed.
    pub async fn wire(&mut self, namespace: &str, name: &str) -> Result<&mut Pod> {
        let key = key("Pod", namespace, name);
        let object = self.objects.get(&key).with_context(|| format!("no object {key}"))?.clone();
        let spec = PodSpec::of(&object)?;
        let node = self.nodes.get(&spec.node).with_context(|| format!("no node {}", spec.node))?;
        let sandbox = Namespace::new(name).await?;
        self.attachments += 1;
        let attach = attach(&spec, &object, &sandbox, self.attachments);
        let start = std::time::Instant::now();
        let result =
            node.runtime.add(&node.namespace, &attach).await.with_context(|| format!("ADD of {name}"))?;
        let took = start.elapsed();
        let addresses = runtime::addresses(&result)?;
        let mut object = object;
        object["status"] = json!({
            "phase": "Running",
            "hostIP": node.spec.addresses.first(),
            "podIP": addresses.first(),
            "podIPs": addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
        });
        self.apply(&object)?;
        let pod = Pod { spec, namespace: sandbox, addresses, attach, result, took, listeners: Vec::new() };
        Ok(self.pods.entry(name.to_owned()).insert_entry(pod).into_mut())
    }

    /// DEL of a pod, and the end of its namespace and object.
    ///
    /// # Errors
    /// A [`runtime::CniError`] where DEL failed; the namespace goes in any case.
    pub async fn unwire(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.remove(name).with_context(|| format!("no pod {name}"))?;
        let node = self.nodes.get(&pod.spec.node).with_context(|| format!("no node {}", pod.spec.node))?;
        let deleted = node.runtime.del(&node.namespace, &pod.attach, &pod.result).await;
        let gone = self.delete("Pod", &pod.spec.namespace, name);
        deleted.with_context(|| format!("DEL of {name}"))?;
        gone
    }

    /// Takes down pods by DEL, then agents; says what went wrong, after having gone on.
    ///
    /// # Errors
    /// All that went wrong.
    pub async fn stop(mut self) -> Result<()> {
        let mut wrong = Vec::new();
        for name in self.pods.keys().cloned().collect::<Vec<_>>() {
            if let Err(error) = self.unwire(&name).await {
                wrong.push(format!("{error:#}"));
            }
        }
        for node in self.nodes.values_mut() {
            if let Some(mut agent) = node.agent.take()
                && let Err(error) = agent.terminate().await
            {
                wrong.push(format!("agent of {}: {error:#}", node.spec.name));
            }
        }
        if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("; ")) }
    }

    /// Writes an object into the world.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn apply(&mut self, object: &Object) -> Result<()> {
        let mut object = object.clone();
        let field = |name| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let key = key(world::kind(&object), &field("namespace"), &field("name"));
        if world::kind(&object) == "Pod" && object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", key.to_lowercase().replace('/', "-")).into();
        }
        self.world.apply(&object)?;
        self.objects.insert(key, object);
        Ok(())
    }

    /// Removes an object from the world.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let key = key(kind, namespace, name);
        let object = self.objects.remove(&key).with_context(|| format!("no object {key}"))?;
        self.world.delete(&object)
    }

    /// Waits until the agents say of each pod whether it is isolated for ingress and egress.
    ///
    /// # Errors
    /// When that is not so soon.
    pub async fn await_isolation(&self, wanted: impl Fn(&PodSpec) -> (bool, bool)) -> Result<()> {
        for node in self.nodes.values() {
            let mut pods: Vec<&PodSpec> = self.pods.values().map(|p| &p.spec).collect();
            pods.retain(|p| p.node == node.spec.name);
            await_until("policies in force", SOON, async || {
                let endpoints = node.endpoints().await?;
                Ok(pods.iter().all(|pod| {
                    endpoints.iter().any(|e| {
                        let known = e.attachment.pod.as_ref();
                        known.is_some_and(|k| k.namespace == pod.namespace && k.name == pod.name)
                            && (e.ingress_isolated, e.egress_isolated) == wanted(pod)
                    })
                }))
            })
            .await
            .with_context(|| node.spec.name.clone())?;
        }
        Ok(())
    }

    /// A pod by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("no pod {name}"))
    }

    /// All pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// A node by name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Names of all nodes.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// The world's objects, to change several in one step.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The host outside.
    pub fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// The L2 between nodes: a bridge, with a port `p-NAME` for each.
    pub fn fabric(&self) -> &Namespace {
        &self.fabric
    }

    /// Folder of everything that belongs to the cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The router to the world, with the client beyond it.
async fn outside(fabric: &Namespace) -> Result<Namespace> {
    let outside = Namespace::new("outside").await?;
    let addresses: Vec<IpNetwork> =
        GATEWAYS.iter().chain(&SECOND_GATEWAYS).map(|a| on_l2(a.parse()?)).collect::<Result<_>>()?;
    fabric::connect(fabric, &outside, &addresses).await?;
    outside
        .run(|| {
            sysctl("ipv4/ip_forward", "1")?;
            // In and out by one interface: nodes of two subnets are to stay on their way through it.
            sysctl("ipv4/conf/all/send_redirects", "0")?;
            sysctl("ipv4/conf/eth0/send_redirects", "0")?;
            sysctl("ipv6/conf/all/forwarding", "1")
        })
        .await??;
    outside
        .netlink(async |netlink| {
            let index = nix::net::if_::if_nametoindex("lo")?;
            for address in CLIENTS {
                let address = IpNetwork::from(address.parse::<IpAddr>()?);
                netlink.address().add(index, address.ip(), address.prefix()).execute().await?;
            }
            Ok(())
        })
        .await?;
    Ok(outside)
}

/// A node's or the router's address with the prefix of their L2.
fn on_l2(address: IpAddr) -> Result<IpNetwork> {
    Ok(IpNetwork::new(address, NODE_PREFIXES[usize::from(address.is_ipv6())])?)
}

/// The default route of a family.
fn default_route(gateway: IpAddr) -> Result<IpNetwork> {
    Ok(if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse()?)
}

/// What a runtime asks for when it makes a pod's sandbox.
fn attach(spec: &PodSpec, object: &Object, sandbox: &Namespace, number: u32) -> Attach {
    let container_id = format!("{}-{}-{number}", spec.namespace, spec.name);
    let args = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", spec.namespace.as_str()),
        ("K8S_POD_NAME", spec.name.as_str()),
        ("K8S_POD_INFRA_CONTAINER_ID", container_id.as_str()),
        ("K8S_POD_UID", object["metadata"]["uid"].as_str().unwrap_or_default()),
    ];
    Attach {
        netns: Some(sandbox.path()),
        ifname: IFNAME.to_owned(),
        args: args.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        container_id,
    }
}

fn key(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}
