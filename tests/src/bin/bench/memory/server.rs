//! What an API server says to a watch: all objects as a streamed list, the mark of its end, then nothing more.
//!
//! Objects are made while they are sent, so that only the agent holds them.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::world::{self, Object};
use futures_util::StreamExt as _;
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::population::{self, Population};

/// Address within the node's namespace.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
/// The revision of everything.
const REVISION: &str = "1000000";

/// What there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Everything {
    pub(crate) nodes: usize,
    pub(crate) population: Population,
    /// Pods of the measured node.
    pub(crate) endpoints: usize,
    /// Each with one EndpointSlice.
    pub(crate) services: usize,
}

/// A server of a cluster's objects.
#[derive(Debug)]
pub(crate) struct Server(JoinHandle<()>);

#[derive(Debug, Deserialize)]
struct Asked {
    watch: Option<bool>,
    #[serde(rename = "sendInitialEvents")]
    all: Option<bool>,
}

impl Everything {
    /// Number of objects.
    pub(crate) fn count(self) -> usize {
        let Self { nodes, population, endpoints, services } = self;
        1 + nodes
            + population.namespace_objects().count()
            + endpoints
            + population.pods
            + population.policies
            + 2 * services
    }

    /// Objects of a kind, by the name that it has in URLs.
    fn objects(self, plural: &str) -> Option<Box<dyn Iterator<Item = Object> + Send>> {
        let Self { nodes, population, endpoints, services } = self;
        Some(match plural {
            "nodes" => Box::new(std::iter::once(population::node()).chain((0..nodes).map(node))),
            "namespaces" => Box::new(population.namespace_objects()),
            "pods" => {
                let local = (0..endpoints).map(|number| population::local_pod(number).2);
                Box::new(local.chain(population.pod_objects()))
            }
            "networkpolicies" => Box::new(population.policy_objects()),
            "services" => Box::new((0..services).map(service)),
            "endpointslices" => Box::new((0..services).map(endpoint_slice)),
            _ => return None,
        })
    }
}

/// Another node of the cluster, with pod CIDRs of its own.
fn node(number: usize) -> Object {
    let (high, low) = (number / 250, number % 250 + 1);
    let pods = Ipv4Addr::from_bits((12 << 24) + number as u32 * 256);
    world::node(
        &format!("node-{number}"),
        &[&format!("172.21.{high}.{low}"), &format!("fd21::{number:x}")],
        &[&format!("{pods}/24"), &format!("fd12:0:0:{number:x}::/64")],
    )
}

/// What nobody of a network plugin reads of a pod, as large as it is in clusters: where it stands, and what.
fn unread() -> [(&'static str, String); 3] {
    let kinds = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let conditions = kinds.map(|kind| {
        json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    });
    let fields: Vec<_> = (0..20)
        .map(|n| json!({format!("f:field-{n}"): {".": {}, "f:name": {}, "f:value": {}, "f:valueFrom": {}}}))
        .collect();
    let managed = json!([{
        "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": fields},
    }]);
    let variables: Vec<_> =
        (0..20).map(|n| json!({"name": format!("SETTING_{n}"), "value": "a value of some length"})).collect();
    [
        (r#""status":{"#, format!(r#""conditions":{},"#, json!(conditions))),
        (r#""metadata":{"#, format!(r#""managedFields":{managed},"#)),
        (r#""containers":[{"#, format!(r#""env":{},"#, json!(variables))),
    ]
}

fn service(number: usize) -> Object {
    let address = Ipv4Addr::from_bits((10 << 24) + (96 << 16) + number as u32 + 1);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": population::namespace_name(number), "name": format!("service-{number}")},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address, format!("fd10:96::{:x}", number + 1)],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
    })
}

fn endpoint_slice(number: usize) -> Object {
    let endpoints: Vec<_> = (0..10)
        .map(|n| {
            let address = Ipv4Addr::from_bits((11 << 24) + (number * 10 + n) as u32);
            json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": format!("node-{n}")})
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": population::namespace_name(number), "name": format!("service-{number}-abcde"),
            "labels": {"kubernetes.io/service-name": format!("service-{number}")}},
        "endpoints": endpoints, "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}

async fn answer(
    State(everything): State<Arc<Everything>>,
    Path(plural): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Body, StatusCode> {
    // Lists in pages are not served: an agent that wanted them would never be ready.
    if asked.watch != Some(true) {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    let objects = everything.objects(&plural).ok_or(StatusCode::NOT_FOUND)?;
    // In this order: what comes before its type would have to be kept until that is known.
    let line = |kind: &str, object: &Value| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
    let silence = stream::pending::<Result<String, Infallible>>();
    if asked.all != Some(true) {
        return Ok(Body::from_stream(silence));
    }
    let unread = if plural == "pods" { unread().into() } else { Vec::new() };
    let added = objects.map(move |mut object| {
        object["metadata"]["resourceVersion"] = REVISION.into();
        let mut line = line("ADDED", &object);
        for (place, text) in &unread {
            if let Some(at) = line.find(place) {
                line.insert_str(at + place.len(), text);
            }
        }
        Ok::<_, Infallible>(line)
    });
    let mark = json!({
        "apiVersion": "v1", "kind": "Bookmark",
        "metadata": {"resourceVersion": REVISION, "annotations": {"k8s.io/initial-events-end": "true"}},
    });
    let end = stream::iter([Ok(line("BOOKMARK", &mark))]);
    // Kinds are told side by side, as a server with many threads does.
    let added = stream::iter(added).then(async |line| {
        tokio::task::yield_now().await;
        line
    });
    Ok(Body::from_stream(added.chain(end).chain(silence)))
}

impl Server {
    /// Serves in a namespace, at [`ADDRESS`].
    pub(crate) async fn open(namespace: &Namespace, everything: Everything) -> Result<Self> {
        let listener = namespace.run(|| std::net::TcpListener::bind(ADDRESS)).await??;
        listener.set_nonblocking(true).context("cannot serve without blocking")?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = Router::new()
            .route("/api/v1/{plural}", get(answer))
            .route("/apis/{group}/v1/{plural}", get(grouped))
            .with_state(Arc::new(everything));
        // An error ends the agent's watches, and with them the measurement.
        Ok(Self(tokio::spawn(async move { drop(axum::serve(listener, router).await) })))
    }

    /// A kubeconfig for it.
    pub(crate) fn kubeconfig() -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "measured",
            "clusters": [{"name": "measured", "cluster": {"server": format!("http://{ADDRESS}")}}],
            "users": [{"name": "agent", "user": {}}],
            "contexts": [{"name": "measured", "context": {"cluster": "measured", "user": "agent"}}],
        })
        .to_string()
    }
}

async fn grouped(
    everything: State<Arc<Everything>>,
    Path((_, plural)): Path<(String, String)>,
    asked: Query<Asked>,
) -> Result<Body, StatusCode> {
    answer(everything, Path(plural), asked).await
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}
