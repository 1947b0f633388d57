//! `agent.sock`, and the HTTP server for probes and metrics.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use fairlead_api::status::Status;
use fairlead_api::{ApiError, Attachment, EndpointStatus, ErrorCode};
use fairlead_policy::explain::Party;
use fairlead_policy::model::{ObjectKey, Protocol};
use fairlead_policy::oracle::Target;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::drops::Log;
use crate::engine::{EngineHandle, Message};
use crate::metrics;
use crate::readiness::Readiness;

mod drops;

pub use drops::Filter;

/// Longest request body, in bytes.
const LONGEST_REQUEST: usize = 1 << 20;

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct Service {
    /// The way to the engine.
    pub engine: EngineHandle,
    /// Name of this node.
    pub node: Arc<str>,
    /// Whether the agent is ready.
    pub readiness: watch::Receiver<Readiness>,
    /// Loops that do not go on.
    pub stuck: watch::Receiver<Vec<&'static str>>,
    /// What was dropped.
    pub drops: Log,
}

struct Failure(ApiError);

impl From<ApiError> for Failure {
    fn from(e: ApiError) -> Self {
        Self(e)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::TryAgain => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Interface | ErrorCode::SlotTaken => StatusCode::CONFLICT,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self.0)).into_response()
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure(ApiError { code: ErrorCode::Invalid, message: message.into() })
}

/// What `agent.sock` serves.
pub fn router(service: Service) -> Router {
    Router::new()
        .route("/v1/endpoints", get(list).put(put))
        .route("/v1/endpoints/{container_id}/{ifname}", delete(remove))
        .route("/v1/status", get(status))
        .route("/v1/ready", get(ready))
        .route("/v1/explain", get(explain))
        .route("/v1/drops", get(drops::drops))
        .fallback(async || {
            Failure(ApiError { code: ErrorCode::NotFound, message: "there is no such path".to_owned() })
        })
        .layer(DefaultBodyLimit::max(LONGEST_REQUEST))
        .with_state(service)
}

/// What the HTTP server for probes and metrics serves.
pub fn probes(service: Service) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(service)
}

async fn put(
    State(service): State<Service>,
    body: axum::body::Bytes,
) -> Result<Json<EndpointStatus>, Failure> {
    let attachment: Attachment =
        serde_json::from_slice(&body).map_err(|e| invalid(format!("the body is no attachment: {e}")))?;
    let attachment = Box::new(attachment);
    let answer = service.engine.ask(|reply| Message::Put(attachment, reply)).await??;
    Ok(Json(answer))
}

async fn remove(
    State(service): State<Service>,
    UrlPath((container_id, ifname)): UrlPath<(String, String)>,
) -> Result<StatusCode, Failure> {
    service.engine.ask(|reply| Message::Delete { container_id, ifname, reply }).await??;
    Ok(StatusCode::NO_CONTENT)
}

async fn list(State(service): State<Service>) -> Result<Json<Vec<EndpointStatus>>, Failure> {
    Ok(Json(service.engine.ask(Message::Snapshot).await?.endpoints))
}

async fn status(State(service): State<Service>) -> Result<Json<Status>, Failure> {
    let snapshot = service.engine.ask(Message::Snapshot).await?;
    let readiness = service.readiness.borrow().clone();
    let mut problems = snapshot.problems;
    problems.extend(
        readiness
            .problems
            .into_iter()
            .map(|message| fairlead_index::Problem { message, ..Default::default() }),
    );
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: readiness.waiting_for.is_none(),
        waiting_for: readiness.waiting_for,
        node: service.node.to_string(),
        addresses: snapshot.addresses,
        uplink: readiness.uplink,
        policy_serial: snapshot.serial,
        counts: snapshot.counts,
        endpoints: snapshot.endpoints,
        problems,
    }))
}

async fn ready(State(service): State<Service>) -> Result<Json<Value>, Failure> {
    match service.readiness.borrow().waiting_for.clone() {
        None => Ok(Json(json!({"ready": true}))),
        Some(what) => {
            let message = format!("not ready: {what}");
            Err(ApiError { code: ErrorCode::TryAgain, message }.into())
        }
    }
}

async fn health(State(service): State<Service>) -> Result<&'static str, Failure> {
    let stuck = service.stuck.borrow().join(" and ");
    if stuck.is_empty() {
        return Ok("ok\n");
    }
    Err(ApiError { code: ErrorCode::Internal, message: format!("stuck: {stuck}") }.into())
}

async fn metrics(State(service): State<Service>) -> Result<Response, Failure> {
    let snapshot = service.engine.ask(Message::Snapshot).await?;
    let drops = service
        .drops
        .counts()
        .map_err(|e| ApiError { code: ErrorCode::Internal, message: format!("counting lost events: {e}") })?;
    let text = metrics::text(&snapshot, &service.readiness.borrow(), drops);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

#[derive(Deserialize)]
struct Question {
    from: String,
    to: String,
    port: String,
}

async fn explain(
    State(service): State<Service>,
    question: Result<Query<Question>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Failure> {
    let Query(question) = question.map_err(|e| invalid(e.body_text()))?;
    let from = party(&question.from).map_err(|e| invalid(format!("from: {e}")))?;
    let to = party(&question.to).map_err(|e| invalid(format!("to: {e}")))?;
    let target = target(&question.port).map_err(|e| invalid(format!("port: {e}")))?;
    let answer = service.engine.ask(|reply| Message::Explain { from, to, target, reply }).await?;
    let answer = serde_json::to_value(answer)
        .map_err(|e| ApiError { code: ErrorCode::Internal, message: e.to_string() })?;
    Ok(Json(answer))
}

/// A pod as `namespace/name`, or an address.
///
/// # Errors
/// Says what it should have been.
pub fn party(text: &str) -> Result<Party, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Party::Ip(address.to_canonical()));
    }
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Party::Pod(ObjectKey::new(namespace, name)))
        }
        _ => Err(format!("{text:?} is neither a pod as namespace/name nor an IP address")),
    }
}

/// A target as `80/tcp`, `80` (TCP), `icmp` or `other`.
///
/// # Errors
/// Says what it should have been.
pub fn target(text: &str) -> Result<Target, String> {
    let lower = text.to_ascii_lowercase();
    let error = || format!("{text:?} is none of 80/tcp, 53/udp, 9/sctp, icmp, other");
    match lower.as_str() {
        "icmp" => return Ok(Target::Icmp),
        "other" => return Ok(Target::Other),
        _ => {}
    }
    let (number, protocol) = lower.split_once('/').unwrap_or((&lower, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(error()),
    };
    match number.parse() {
        Ok(port) if port > 0 => Ok(Target::Port(protocol, port)),
        _ => Err(error()),
    }
}

/// Listens on the agent's socket, which only root may use. The lock of the run directory is held, so
/// a socket that is there is nobody's.
///
/// # Errors
/// Where the socket cannot be made.
pub fn listen_unix(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves probes and metrics for ever; an address that is taken (by the agent that is about to end) is
/// tried again.
pub async fn serve_probes(address: String, router: Router) {
    let mut said = false;
    let listener = loop {
        let mut bound = TcpListener::bind(&address).await;
        if let (Err(_), Some(port)) = (&bound, address.strip_prefix("[::]:")) {
            // A host without IPv6.
            bound = TcpListener::bind(format!("0.0.0.0:{port}")).await.or(bound);
        }
        match bound {
            Ok(listener) => break listener,
            Err(e) => {
                if !said {
                    tracing::warn!(address, "cannot listen for probes and metrics, trying again: {e}");
                    said = true;
                }
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    };
    if let Err(e) = axum::serve(listener, router).await {
        tracing::error!(address, "serving probes and metrics: {e}");
    }
}

#[cfg(test)]
mod tests;
