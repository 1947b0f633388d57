//! Two nodes with pods, Services and kube-proxy's rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fairlead_tests::cluster::{CLIENTS, Cluster};
use fairlead_tests::datagram::{Server, connected};
use fairlead_tests::fabric;
use fairlead_tests::namespace::{Namespace, sysctl};
use fairlead_tests::probe::{Outcome, connect_as};
use fairlead_tests::proxy::{self, Backend, Mode, Place, Port, Protocol, Service};
use fairlead_tests::world;
use serde_json::json;

use crate::table::{Client, Policy, Row, Target};

/// Namespace of the pods.
pub(crate) const NS: &str = "t";
/// Port of each Service behind which the backends serve.
pub(crate) const SERVED: u16 = 80;
/// Port of each Service behind which the backends answer with ICMP errors.
pub(crate) const REJECTED: u16 = 81;
/// Port of each Service behind which nobody serves but a test itself.
pub(crate) const PUSHED: u16 = 82;
/// What the backends' ports have more than the Service's.
pub(crate) const TARGET: u16 = 8000;
/// How long to wait for what should not come and is counted by nobody.
const SILENCE: Duration = Duration::from_millis(300);
/// How long anything else may take, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(10);

/// Pods and the nodes that they run on.
const PODS: [(&str, &str); 5] =
    [("a1", "node-a"), ("a2", "node-a"), ("a3", "node-a"), ("b1", "node-b"), ("b2", "node-b")];
/// Services, the pod behind each, and whether external traffic stays on its node.
const SERVICES: [(&str, Option<&str>, bool); 5] = [
    ("local", Some("a2"), false),
    ("remote", Some("b1"), false),
    ("own", Some("a1"), false),
    ("none", None, false),
    ("near", Some("b1"), true),
];

/// Drops that pods' own kernels cause by what they send unasked.
const NOISE: [&str; 3] = ["multicast", "neighbour_discovery", "spoofed_address"];

/// Dropped packets by pod, direction and reason.
#[derive(Debug, Default)]
pub(crate) struct Drops(BTreeMap<(String, &'static str, String), u64>);

impl Drops {
    /// What has been dropped since.
    pub(crate) fn since(&self, before: &Self) -> BTreeMap<(String, &'static str, String), u64> {
        let more = |(key, n): (&(String, &'static str, String), &u64)| {
            let more = n - before.0.get(key).copied().unwrap_or(0);
            (more > 0).then(|| (key.clone(), more))
        };
        self.0.iter().filter_map(more).collect()
    }
}

/// The scene.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    services: Vec<Service>,
    _servers: Vec<Server>,
}

impl Scene {
    pub(crate) async fn start(mode: Mode) -> Self {
        let objects = [
            world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]),
            world::node("node-b", &["172.20.0.12", "fd20::12"], &["10.244.2.0/24", "fd10:244:0:2::/64"]),
            world::namespace(NS, json!({})),
        ];
        let mut cluster = Cluster::start(&objects, &[]).await.unwrap();
        let mut servers = Vec::new();
        let (served, rejected) = (SERVED + TARGET, REJECTED + TARGET);
        for (name, node) in PODS {
            cluster.apply(&world::pod(NS, name, node, &[served, rejected])).unwrap();
            let pod = cluster.wire(NS, name).await.unwrap();
            pod.listen(served).await.unwrap();
            servers.push(Server::open(&pod.namespace, name, served).await.unwrap());
            // A closed UDP port answers with an ICMP error by itself; a TCP port must be told to.
            let reject = format!(
                "add table inet filter\n\
                 add chain inet filter input {{ type filter hook input priority 0 ; }}\n\
                 add rule inet filter input tcp dport {rejected} reject\n"
            );
            proxy::feed(&pod.namespace, "nft", &["-f", "-"], reject).await.unwrap();
            talkative(&pod.namespace).await;
        }
        let services = services(&cluster);
        for object in services.iter().flat_map(|s| s.objects(NS)) {
            cluster.apply(&object).unwrap();
        }
        for node in cluster.nodes() {
            let place = Place {
                node: node.spec.name.clone(),
                addresses: node.spec.addresses.clone(),
                pods: ["10.244.0.0/16", "fd10:244::/48"].map(|c| c.parse().unwrap()).into(),
                services: ["10.96.0.0/16", "fd10:96::/112"].map(|c| c.parse().unwrap()).into(),
            };
            proxy::apply(&node.namespace, mode, &place, &services).await.unwrap();
            talkative(&node.namespace).await;
        }
        // The world reaches external addresses by node-a.
        for (cidr, via) in [("198.51.100.0/23", "172.20.0.11"), ("2001:db8:51::/48", "fd20::11")] {
            fabric::route(cluster.outside(), cidr.parse().unwrap(), via.parse().unwrap()).await.unwrap();
        }
        Self { cluster, services, _servers: servers }
    }

    pub(crate) async fn stop(self) {
        self.cluster.stop().await.unwrap();
    }

    /// Puts policies in force.
    pub(crate) async fn enforce(&mut self, policies: &[Policy]) {
        for policy in policies {
            self.cluster.apply(&policy.object()).unwrap();
        }
        let isolated = |pod: &str, direction| {
            policies.iter().any(|p| p.subject == pod && p.direction.name() == direction)
        };
        let wanted = |pod: &world::PodSpec| (isolated(&pod.name, "ingress"), isolated(&pod.name, "egress"));
        self.cluster.await_isolation(wanted).await.unwrap();
    }

    /// Takes them away.
    pub(crate) async fn release(&mut self, policies: &[Policy]) {
        for policy in policies {
            let object = policy.object();
            let name = object["metadata"]["name"].as_str().unwrap();
            self.cluster.delete("NetworkPolicy", NS, name).unwrap();
        }
        self.cluster.await_isolation(|_| (false, false)).await.unwrap();
    }

    /// All that has been dropped so far.
    pub(crate) async fn drops(&self) -> Drops {
        let mut drops = Drops::default();
        for node in self.cluster.nodes() {
            for endpoint in node.endpoints().await.unwrap() {
                let pod = endpoint.attachment.pod.unwrap().name;
                let counters = endpoint.counters;
                for (direction, side) in [("ingress", counters.ingress), ("egress", counters.egress)] {
                    for (reason, n) in side.drops.into_iter().filter(|d| !NOISE.contains(&d.0.as_str())) {
                        drops.0.insert((pod.clone(), direction, reason), n);
                    }
                }
            }
        }
        drops
    }

    /// Address under which a client speaks when nothing translates it.
    pub(crate) fn address(&self, client: &Client, ipv6: bool) -> IpAddr {
        match client {
            Client::Pod(pod) => self.cluster.pod(pod).unwrap().address(ipv6).unwrap(),
            Client::Node(node) => self.node_address(node, ipv6),
            Client::Outside => CLIENTS[usize::from(ipv6)].parse().unwrap(),
        }
    }

    pub(crate) fn node_address(&self, node: &str, ipv6: bool) -> IpAddr {
        let addresses = &self.cluster.node(node).unwrap().spec.addresses;
        *addresses.iter().find(|a| a.is_ipv6() == ipv6).unwrap()
    }

    pub(crate) fn namespace(&self, client: &Client) -> &Namespace {
        match client {
            Client::Pod(pod) => &self.cluster.pod(pod).unwrap().namespace,
            Client::Node(node) => &self.cluster.node(node).unwrap().namespace,
            Client::Outside => self.cluster.outside(),
        }
    }

    /// Where a Service's port is reached.
    pub(crate) fn socket(&self, target: &Target, port: u16, protocol: Protocol, ipv6: bool) -> SocketAddr {
        let service = |name: &str| self.services.iter().find(|s| s.name == name).unwrap();
        let of = |all: &[IpAddr]| SocketAddr::new(*all.iter().find(|a| a.is_ipv6() == ipv6).unwrap(), port);
        match target {
            Target::ClusterIp(name) => of(&service(name).cluster_ips),
            Target::External(name) => of(&service(name).external_ips),
            Target::Balancer(name) => of(&service(name).balancer_ips),
            Target::NodePort(node, name) => {
                let port = service(name).ports.iter().find(|p| p.port == port && p.protocol == protocol);
                SocketAddr::new(self.node_address(node, ipv6), port.unwrap().node_port)
            }
        }
    }

    /// What becomes of an attempt: the server's name and the client's address as it sees it, or else.
    pub(crate) async fn attempt(&self, row: &Row, port: u16, protocol: Protocol, ipv6: bool) -> String {
        let to = self.socket(&row.to, port, protocol, ipv6);
        let source = matches!(row.from, Client::Outside).then(|| self.address(&row.from, ipv6));
        let from = self.namespace(&row.from);
        // Denied attempts are broken off by whoever sees the drop counted, long before.
        let limit = if row.expect.is_silence() { SILENCE } else { LIMIT };
        match protocol {
            Protocol::Tcp => match connect_as(from, source, to, limit).await.unwrap() {
                Outcome::Open(mut connection) => match connection.echoes(limit).await {
                    Ok(true) => format!("{} {}", connection.server, connection.seen_as),
                    other => format!("open, then {other:?}"),
                },
                Outcome::Silent => "silent".to_owned(),
                Outcome::Fault(fault) if fault.contains("refused") => "refused".to_owned(),
                Outcome::Fault(fault) => fault,
            },
            Protocol::Udp => {
                let socket = connected(from, source, to).await.unwrap();
                let exchange = async {
                    socket.send(b"who").await?;
                    let mut buffer = [0; 64];
                    let n = socket.recv(&mut buffer).await?;
                    std::io::Result::Ok(String::from_utf8_lossy(&buffer[..n]).trim_end().to_owned())
                };
                match tokio::time::timeout(limit, exchange).await {
                    Err(_) => "silent".to_owned(),
                    Ok(Ok(answer)) => answer,
                    // What kube-proxy rejects on its way out of the node ends the system call itself.
                    Ok(Err(e)) => match e.kind() {
                        std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::PermissionDenied => {
                            "refused".to_owned()
                        }
                        _ => e.to_string(),
                    },
                }
            }
        }
    }
}

/// Lets a namespace send as many ICMP errors as are asked for.
async fn talkative(namespace: &Namespace) {
    let work = || {
        sysctl("ipv4/icmp_ratelimit", "0").unwrap();
        sysctl("ipv6/icmp/ratelimit", "0").unwrap();
    };
    namespace.run(work).await.unwrap();
}

fn services(cluster: &Cluster) -> Vec<Service> {
    let service = |(i, (name, backend, local)): (usize, &(&str, Option<&str>, bool))| {
        let both = |v4: &str, v6: &str| -> Vec<IpAddr> {
            [format!("{v4}{}", i + 1), format!("{v6}{}", i + 1)].map(|a| a.parse().unwrap()).into()
        };
        let ports = Protocol::ALL.into_iter().flat_map(|protocol| {
            [SERVED, REJECTED, PUSHED].map(|port| Port {
                protocol,
                port,
                target: port + TARGET,
                node_port: 30000 + 100 * u16::try_from(i).unwrap() + port,
            })
        });
        let backends = backend.iter().map(|name| {
            let pod = cluster.pod(name).unwrap();
            Backend { addresses: pod.addresses.clone(), node: pod.spec.node.clone() }
        });
        Service {
            name: (*name).to_owned(),
            cluster_ips: both("10.96.0.", "fd10:96::"),
            external_ips: both("198.51.100.", "2001:db8:51::"),
            balancer_ips: both("198.51.101.", "2001:db8:51:1::"),
            local: *local,
            ports: ports.collect(),
            backends: backends.collect(),
        }
    };
    SERVICES.iter().enumerate().map(service).collect()
}
