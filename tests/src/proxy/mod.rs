//! What kube-proxy does to a node: Services as NAT rules, in its modes iptables and nftables.
//!
//! The rules are those that kube-proxy 1.34 writes by default (no `masqueradeAll`, pods told by the
//! cluster's CIDR, NodePorts on all of the node's addresses), of as much as the model of a Service has.

mod iptables;
mod nftables;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use serde_json::json;

use crate::namespace::Namespace;
use crate::world::Object;

/// kube-proxy's `--proxy-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Chains `KUBE-*` in the tables of iptables.
    Iptables,
    /// A table `kube-proxy` for each family.
    Nftables,
}

/// Protocol of a Service's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// As rules name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// As Kubernetes names it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A port of a Service.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Its protocol.
    pub protocol: Protocol,
    /// Port of the Service.
    pub port: u16,
    /// Port of the backends.
    pub target: u16,
    /// Port on every node, for both protocols.
    pub node_port: u16,
}

/// A pod behind a Service.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node that it runs on.
    pub node: String,
}

/// A Service of type LoadBalancer, with its endpoints.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// ClusterIPs, one for each family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`.
    pub balancer_ips: Vec<IpAddr>,
    /// Whether `externalTrafficPolicy` is `Local` rather than `Cluster`.
    pub local: bool,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its endpoints, all of them ready.
    pub backends: Vec<Backend>,
}

impl Service {
    /// The objects that the API server has of it: a Service, and an EndpointSlice for each family.
    pub fn objects(&self, namespace: &str) -> Vec<Object> {
        let name = |p: &Port| format!("{}-{}", p.protocol.name(), p.port);
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|p| {
                json!({
                    "name": name(p), "protocol": p.protocol.kind(), "port": p.port,
                    "targetPort": p.target, "nodePort": p.node_port,
                })
            })
            .collect();
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": namespace, "name": self.name},
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": self.cluster_ips.first(), "clusterIPs": self.cluster_ips,
                "externalIPs": self.external_ips,
                "externalTrafficPolicy": if self.local { "Local" } else { "Cluster" },
                "ports": ports,
            },
            "status": {"loadBalancer": {
                "ingress": self.balancer_ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
            }},
        });
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|p| json!({"name": name(p), "protocol": p.protocol.kind(), "port": p.target}))
            .collect();
        let slices = [false, true].map(|ipv6| {
            let endpoints: Vec<_> = self
                .backends
                .iter()
                .map(|b| {
                    let addresses: Vec<_> = b.addresses.iter().filter(|a| a.is_ipv6() == ipv6).collect();
                    json!({
                        "addresses": addresses, "nodeName": b.node,
                        "conditions": {"ready": true, "serving": true, "terminating": false},
                    })
                })
                .collect();
            let family = if ipv6 { "IPv6" } else { "IPv4" };
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {
                    "namespace": namespace, "name": format!("{}-{}", self.name, family.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": self.name},
                },
                "ports": ports, "endpoints": endpoints,
            })
        });
        std::iter::once(service).chain(slices).collect()
    }
}

/// What kube-proxy knows of the node that it runs on, and of its cluster.
#[derive(Clone, Debug)]
pub struct Place {
    /// Name of the node.
    pub node: String,
    /// The node's addresses.
    pub addresses: Vec<IpAddr>,
    /// `--cluster-cidr`, one for each family: what is a pod.
    pub pods: Vec<IpNetwork>,
    /// Range of ClusterIPs, one for each family.
    pub services: Vec<IpNetwork>,
}

/// One family's view of a Service's port, with the addresses and backends that it has there.
struct View<'a> {
    /// As rules' comments and names of chains in nftables have it.
    name: String,
    /// For names of chains.
    hash: String,
    port: Port,
    cluster: Vec<IpAddr>,
    external: Vec<IpAddr>,
    balancer: Vec<IpAddr>,
    local: bool,
    backends: Vec<(IpAddr, &'a str)>,
}

/// What the rules of one family are made of.
struct Family<'a> {
    place: &'a Place,
    pods: IpNetwork,
    services: IpNetwork,
    ipv6: bool,
    views: Vec<View<'a>>,
}

impl<'a> Family<'a> {
    fn new(place: &'a Place, services: &'a [Service], ipv6: bool) -> Result<Self> {
        let of = |all: &[IpAddr]| all.iter().copied().filter(|a| a.is_ipv6() == ipv6).collect();
        let cidr = |all: &[IpNetwork], what| {
            all.iter().copied().find(|c| c.is_ipv6() == ipv6).with_context(|| format!("no {what} here"))
        };
        let views = services
            .iter()
            .flat_map(|s| s.ports.iter().map(move |p| (s, p)))
            .map(|(s, p)| {
                let name = format!("t/{}/{}/p{}", s.name, p.protocol.name(), p.port);
                let backends = s
                    .backends
                    .iter()
                    .flat_map(|b| b.addresses.iter().map(|a| (*a, b.node.as_str())))
                    .filter(|(a, _)| a.is_ipv6() == ipv6)
                    .collect();
                View {
                    hash: hash(&name),
                    name,
                    port: *p,
                    cluster: of(&s.cluster_ips),
                    external: of(&s.external_ips),
                    balancer: of(&s.balancer_ips),
                    local: s.local,
                    backends,
                }
            })
            .collect();
        Ok(Self {
            place,
            pods: cidr(&place.pods, "pod CIDR")?,
            services: cidr(&place.services, "Service CIDR")?,
            ipv6,
            views,
        })
    }

    /// Whether a backend runs on this node.
    fn is_here(&self, node: &str) -> bool {
        node == self.place.node
    }
}

/// The part of a chain's name that tells it from others.
fn hash(of: &str) -> String {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    format!("{:016X}", hasher.finish())
}

/// An address and a port as destination of a translation.
fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// Makes the rules of a node in both families, once: there must be none before.
///
/// # Errors
/// What the tools say.
pub async fn apply(node: &Namespace, mode: Mode, place: &Place, services: &[Service]) -> Result<()> {
    for ipv6 in [false, true] {
        let family = Family::new(place, services, ipv6)?;
        let (tool, arguments, rules): (_, &[&str], _) = match mode {
            Mode::Iptables => {
                let tool = if ipv6 { "ip6tables-restore" } else { "iptables-restore" };
                (tool, &["--noflush"], iptables::rules(&family))
            }
            Mode::Nftables => ("nft", &["-f", "-"], nftables::rules(&family)),
        };
        feed(node, tool, arguments, rules).await?;
    }
    Ok(())
}

/// Runs a tool in a namespace on what it reads from its standard input.
///
/// # Errors
/// When it fails, with what it says.
pub async fn feed(node: &Namespace, tool: &'static str, arguments: &[&str], input: String) -> Result<()> {
    let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
    let work = move || -> Result<()> {
        let mut child = Command::new(tool)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {tool}"))?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{tool}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    };
    node.run(work).await?
}
