//! Clusters of any size, as manifests.
//!
//! A hundred pods to a namespace: ten applications of ten replicas. The first ten namespaces have pods on
//! the measured node, and policies enough that each of those is selected by dozens.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use fairlead_api::status::Status;
use fairlead_tests::cluster::Cluster;
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object, World};
use serde_json::{Value, json};

/// The measured node.
pub(crate) const NODE: &str = "node-a";
const APPS: usize = 10;
const REPLICAS: usize = 10;
const TO_A_NAMESPACE: usize = APPS * REPLICAS;
/// Namespaces with pods on the measured node.
const BUSY: usize = 10;
/// Most policies of those.
const BUSY_POLICIES: usize = 110;
/// Time within which all policies are in force.
const IN_FORCE: Duration = Duration::from_secs(120);
/// Bytes of a file, which may have 4 MiB.
const FILE: usize = 3 << 20;

/// A cluster's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Population {
    /// Pods, all on other nodes.
    pub(crate) pods: usize,
    /// Policies.
    pub(crate) policies: usize,
}

fn app(number: usize) -> String {
    format!("{}-{number}", ["frontend", "api", "worker", "cache", "db"][number % 5])
}

fn tier(number: usize) -> &'static str {
    ["front", "back", "data"][number % 3]
}

/// Name of the `number`th namespace.
pub(crate) fn namespace_name(number: usize) -> String {
    format!("team-{:03}-{number}", number % 200)
}

fn pod_labels(namespace: usize, number: usize) -> Value {
    json!({
        "app.kubernetes.io/name": app(number),
        "app.kubernetes.io/instance": format!("{}-{}", app(number), namespace % 200),
        "app.kubernetes.io/version": format!("1.{}.0", namespace % 7),
        "app.kubernetes.io/managed-by": "Helm",
        "tier": tier(number),
        "pod-template-hash": format!("{:x}", (namespace * 31 + number * 7919) % 0xfff_ffff),
    })
}

/// A pod of the measured node: the `number`th, of up to 1,000.
pub(crate) fn local_pod(number: usize) -> (String, String, Object) {
    let (namespace, name) = (namespace_name(number % BUSY), format!("local-{number}"));
    let mut pod = world::pod(&namespace, &name, NODE, &[8080]);
    pod["metadata"]["labels"] = pod_labels(number % BUSY, number / BUSY % APPS);
    (namespace, name, pod)
}

/// The node itself, with room for as many pods as slots.
pub(crate) fn node() -> Object {
    world::node(NODE, &["172.20.0.11", "fd20::11"], &["10.244.0.0/16", "fd10:244::/64"])
}

impl Population {
    fn namespaces(self) -> usize {
        self.pods.div_ceil(TO_A_NAMESPACE).max(BUSY)
    }

    fn namespace(number: usize) -> Object {
        world::namespace(
            &namespace_name(number),
            json!({
                "kubernetes.io/metadata.name": namespace_name(number),
                "team": format!("team-{:03}", number % 200),
                "environment": (["production", "staging", "test"][number % 3]),
            }),
        )
    }

    fn pod(number: usize) -> Object {
        let (namespace, of) = (number / TO_A_NAMESPACE, number % TO_A_NAMESPACE / REPLICAS);
        let mut pod = world::pod(
            &namespace_name(namespace),
            &format!("{}-{:05x}", app(of), number % REPLICAS * 7919),
            &format!("node-{}", number % 1000),
            &[8080],
        );
        // 10.244 is the measured node's own.
        let address = Ipv4Addr::from_bits((11 << 24) + number as u32);
        pod["metadata"]["labels"] = pod_labels(namespace, of);
        pod["metadata"]["uid"] = format!("00000000-0000-4000-8000-{number:012x}").into();
        pod["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
        pod["status"] = json!({
            "phase": "Running", "podIP": address,
            "podIPs": [{"ip": address}, {"ip": format!("fd11::{:x}:{:x}", number >> 16, number & 0xffff)}],
        });
        pod
    }

    /// Where the `number`th policy is, and which one of that namespace it is.
    fn place(self, number: usize) -> (usize, usize) {
        let busy = self.policies.min(BUSY * BUSY_POLICIES);
        if number < busy || self.namespaces() == BUSY {
            return (number % BUSY, number / BUSY);
        }
        let (rest, others) = (number - busy, self.namespaces() - BUSY);
        (BUSY + rest % others, rest / others)
    }

    fn policy(self, number: usize) -> Object {
        let (namespace, p) = self.place(number);
        let labelled = |name: &str, value: String| json!({"matchLabels": {name: value}});
        let subjects = match p % 3 {
            0 => json!({}),
            1 => labelled("tier", tier(p / 3).to_owned()),
            _ => labelled("app.kubernetes.io/name", app(p / 3 % APPS)),
        };
        let own = json!({"podSelector": labelled("app.kubernetes.io/name", app(p % APPS))});
        let team = json!({
            "namespaceSelector": labelled("team", format!("team-{:03}", (namespace * 7 + p) % 200)),
            "podSelector": labelled("app.kubernetes.io/name", app(p % APPS)),
        });
        let block = (namespace * BUSY_POLICIES + p) % 50_000;
        let cidr = |offset: u32, length: u8| {
            format!("{}/{length}", Ipv4Addr::from_bits((100 << 24) + block as u32 * 4096 + offset))
        };
        let outside = json!({"ipBlock": {"cidr": cidr(0, 20), "except": [cidr(256, 24)]}});
        let port = 1024 + (namespace * 13 + p * 17) % 150;
        let mut spec = json!({
            "podSelector": subjects, "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [own, team.clone()], "ports": [{"protocol": "TCP", "port": port}]},
                {"from": [outside], "ports": [{"protocol": "TCP", "port": port, "endPort": port + 10}]},
            ],
        });
        if p % 4 == 0 {
            spec["policyTypes"] = json!(["Ingress", "Egress"]);
            let ports = json!([{"protocol": "TCP", "port": "http"}, {"protocol": "TCP", "port": 443}]);
            spec["egress"] = json!([{"to": [team], "ports": ports}]);
        }
        world::policy(&namespace_name(namespace), &format!("policy-{p:04}"), spec)
    }

    /// Its namespaces.
    pub(crate) fn namespace_objects(self) -> impl Iterator<Item = Object> + Send {
        (0..self.namespaces()).map(Self::namespace)
    }

    /// Its pods.
    pub(crate) fn pod_objects(self) -> impl Iterator<Item = Object> + Send {
        (0..self.pods).map(Self::pod)
    }

    /// Its policies.
    pub(crate) fn policy_objects(self) -> impl Iterator<Item = Object> + Send {
        (0..self.policies).map(move |number| self.policy(number))
    }

    /// Writes it, and takes away what another had written.
    pub(crate) fn write(self, world: &World) -> Result<()> {
        world.remove_all("population-")?;
        let (mut text, mut files) = (String::new(), 0);
        for object in self.namespace_objects().chain(self.pod_objects()).chain(self.policy_objects()) {
            text.push_str(&serde_json::to_string(&object)?);
            text.push('\n');
            if text.len() > FILE {
                world.write_text(&format!("population-{files:04}.json"), &std::mem::take(&mut text))?;
                files += 1;
            }
        }
        world.write_text(&format!("population-{files:04}.json"), &text)
    }
}

/// A node in this world with this many pods of its own, wired.
pub(crate) async fn node_with_pods(population: Population, endpoints: usize) -> Result<Cluster> {
    let mut objects = vec![node()];
    objects.extend((0..endpoints).map(|number| local_pod(number).2));
    let mut cluster = Cluster::start(&objects, &[]).await?;
    population.write(cluster.world())?;
    await_policies(&cluster, population.policies).await?;
    for number in 0..endpoints {
        let (namespace, name, _) = local_pod(number);
        cluster.wire(&namespace, &name).await?;
    }
    Ok(cluster)
}

/// Waits until as many policies are in force.
pub(crate) async fn await_policies(cluster: &Cluster, policies: usize) -> Result<()> {
    let run = &cluster.node(NODE)?.folders.run;
    await_until("all policies in force", IN_FORCE, async || {
        let status: Status = fairlead_tests::agent::get(run, "/v1/status").await?;
        Ok(status.counts.get("policies").copied() == Some(policies as u64))
    })
    .await
}
