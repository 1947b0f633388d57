use std::time::Duration;

use fairlead_api::client::{Client, ClientError, endpoint_path};
use fairlead_api::drops::End;
use fairlead_api::status::{Explanation, Status, Verdict};
use fairlead_api::{EndpointStatus, ErrorCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::engine::tests::{Running, attachment};
use fairlead_api::drops::{DropEvent, DropLine};
use fairlead_api::status::ObjectName;

/// An agent's socket with an engine behind it.
struct Served {
    _dir: tempfile::TempDir,
    client: Client,
    engine: Running,
    readiness: watch::Sender<Readiness>,
    drops: Log,
    path: std::path::PathBuf,
}

async fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let engine = Running::ready(Duration::from_millis(30)).await;
    let waiting_for = Some("something".to_owned());
    let (readiness, ready) = watch::channel(Readiness { waiting_for, ..Readiness::default() });
    let drops = Log::new(None);
    let (_, stuck) = watch::channel(Vec::new());
    let service = Service {
        engine: engine.handle.clone(),
        node: "n1".into(),
        readiness: ready,
        stuck,
        drops: drops.clone(),
    };
    let listener = listen_unix(&path).unwrap();
    // Left over from an agent that was killed: replaced.
    drop(listener);
    let listener = listen_unix(&path).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    tokio::spawn(async move { axum::serve(listener, router(service)).await });
    Served { _dir: dir, client: Client::new(&path), engine, readiness, drops, path }
}

/// Asks from a thread that may block.
async fn ask<T: Send + 'static>(
    served: &Served,
    question: impl FnOnce(&Client) -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ErrorCode> {
    let client = served.client.clone();
    let answer = tokio::task::spawn_blocking(move || question(&client)).await.unwrap();
    answer.map_err(|e| match e {
        ClientError::Answer(e) => e.code,
        other => panic!("{other}"),
    })
}

#[tokio::test]
async fn endpoints_over_the_socket() {
    let served = served().await;
    let put = |a| move |c: &Client| c.put::<_, EndpointStatus>("/v1/endpoints", &a);
    let status = ask(&served, put(attachment(5, Some(("web", "u1"))))).await.unwrap();
    assert!(status.unlocked);
    let unknown = ask(&served, put(attachment(6, Some(("nobody", ""))))).await;
    assert_eq!(unknown, Err(ErrorCode::TryAgain));
    let garbage = ask(&served, |c| c.put::<_, Value>("/v1/endpoints", &json!({"x": 1}))).await;
    assert_eq!(garbage, Err(ErrorCode::Invalid));
    let list = ask(&served, |c| c.get::<Vec<EndpointStatus>>("/v1/endpoints")).await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].attachment, attachment(5, Some(("web", "u1"))));
    for _ in 0..2 {
        ask(&served, |c| c.delete(&endpoint_path("c5", "eth0"))).await.unwrap();
    }
    let list = ask(&served, |c| c.get::<Vec<EndpointStatus>>("/v1/endpoints")).await.unwrap();
    assert_eq!(list, []);
    assert_eq!(ask(&served, |c| c.get::<Value>("/v2")).await, Err(ErrorCode::NotFound));
}

#[tokio::test]
async fn health_names_loops_that_are_stuck() {
    let engine = Running::ready(Duration::from_millis(30)).await;
    let (_, readiness) = watch::channel(Readiness::default());
    let (stuck, loops) = watch::channel(Vec::new());
    let engine = engine.handle.clone();
    let service = Service { engine, node: "n1".into(), readiness, stuck: loops, drops: Log::new(None) };
    assert_eq!(health(State(service.clone())).await.ok(), Some("ok\n"));
    stuck.send_replace(vec!["one", "another"]);
    let Failure(error) = health(State(service.clone())).await.unwrap_err();
    assert_eq!((error.code, &*error.message), (ErrorCode::Internal, "stuck: one and another"));
    stuck.send_replace(Vec::new());
    assert!(health(State(service)).await.is_ok());
}

#[tokio::test]
async fn ready_and_status() {
    let served = served().await;
    assert_eq!(ask(&served, |c| c.get::<Value>("/v1/ready")).await, Err(ErrorCode::TryAgain));
    let status = ask(&served, |c| c.get::<Status>("/v1/status")).await.unwrap();
    assert_eq!((status.ready, status.waiting_for.as_deref()), (false, Some("something")));
    served.readiness.send_replace(Readiness { uplink: Some("up0".into()), ..Readiness::default() });
    ask(&served, |c| c.get::<Value>("/v1/ready")).await.unwrap();
    served.engine.batch(&[json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": {"policyTypes": ["x"]}})]);
    let status = ask(&served, |c| c.get::<Status>("/v1/status")).await.unwrap();
    assert!(status.ready);
    assert_eq!((status.node.as_str(), status.uplink.as_deref()), ("n1", Some("up0")));
    assert_eq!(status.counts["pods"], 1);
    assert_eq!(status.problems.len(), 1);
    assert_eq!(status.problems[0].object.as_deref(), Some("NetworkPolicy shop/p"));
    assert_eq!(status.problems[0].field.as_deref(), Some("spec.policyTypes[0]"));
}

#[tokio::test]
async fn explain_over_the_socket() {
    let served = served().await;
    let explain =
        |query: &'static str| ask(&served, move |c| c.get::<Explanation>(&format!("/v1/explain?{query}")));
    let answer = explain("from=192.0.2.9&to=shop/web&port=80/tcp").await.unwrap();
    assert!(answer.allowed && answer.egress.is_none());
    assert_eq!(answer.ingress.unwrap().verdict, Verdict::NotIsolated);
    served.engine.batch(&[json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": {"podSelector": {},
        "ingress": [{"ports": [{"port": 1}]}, {"ports": [{"port": 80}]}]}})]);
    let answer = explain("from=192.0.2.9&to=shop/web&port=80/tcp").await.unwrap();
    let ingress = answer.ingress.unwrap();
    assert_eq!((ingress.verdict, ingress.allowed_by[0].rule), (Verdict::Allowed, 1));
    let answer = explain("from=192.0.2.9&to=shop/web&port=81").await.unwrap();
    assert!(!answer.allowed);
    assert_eq!(answer.ingress.unwrap().isolated_by[0].to_string(), "shop/p");
    for query in ["from=x&to=shop/web&port=80", "from=192.0.2.9&to=shop/web", "from=1.2.3.4&to=a/b&port=0"] {
        assert_eq!(explain(query).await.unwrap_err(), ErrorCode::Invalid, "{query}");
    }
}

fn dropped(number: u16, pod: &str, reason: &str) -> DropEvent {
    let end = |name: &str, port| End {
        pod: Some(ObjectName { namespace: "shop".to_owned(), name: name.to_owned() }),
        address: Some("10.0.0.1".parse().unwrap()),
        port: Some(port),
    };
    DropEvent {
        time: "2026-11-24T12:00:00.000Z".to_owned(),
        reason: reason.to_owned(),
        direction: "ingress".to_owned(),
        ifindex: 7,
        source: end("web", number),
        destination: end(pod, 80),
        protocol: "tcp".to_owned(),
        missed: 0,
        policy: None,
        policy_direction: None,
        policy_changed: false,
    }
}

async fn lines(served: &Served, query: &'static str) -> Result<Vec<DropLine>, ErrorCode> {
    ask(served, move |c| {
        let mut lines = Vec::new();
        let path = format!("/v1/drops?{query}");
        c.lines(&path, |line| {
            lines.push(serde_json::from_slice(line).unwrap());
            true
        })?;
        Ok(lines)
    })
    .await
}

#[tokio::test]
async fn dropped_packets_are_kept_up_to_a_number_and_chosen_by_pod_and_reason() {
    let served = served().await;
    assert_eq!(lines(&served, "").await.unwrap(), []);
    let numbers = |lines: Vec<DropLine>| -> Vec<u16> {
        let number = |line| match line {
            DropLine::Event(event) => event.source.port.unwrap(),
            DropLine::Skipped { .. } => panic!("history skips nothing"),
        };
        lines.into_iter().map(number).collect()
    };
    served.drops.push([
        dropped(1, "db", "ingress_denied"),
        dropped(2, "cart", "ingress_denied"),
        dropped(3, "db", "malformed"),
    ]);
    for (query, wanted) in [
        ("", &[1, 2, 3][..]),
        ("follow=false", &[1, 2, 3]),
        ("pod=shop/db", &[1, 3]),
        ("pod=shop/web", &[1, 2, 3]),
        ("pod=other/db", &[]),
        ("reason=ingress_denied", &[1, 2]),
        ("pod=shop/db&reason=ingress_denied", &[1]),
    ] {
        assert_eq!(numbers(lines(&served, query).await.unwrap()), wanted, "{query}");
    }
    for query in ["pod=db", "pod=10.0.0.1", "reason=bad_luck", "follow=maybe"] {
        assert_eq!(lines(&served, query).await.unwrap_err(), ErrorCode::Invalid, "{query}");
    }
    served.drops.push((0..5000).map(|n| dropped(n, "db", "ingress_denied")));
    assert_eq!(numbers(lines(&served, "").await.unwrap()), (904..5000).collect::<Vec<_>>());
    assert_eq!(served.drops.counts().unwrap().seen, 5003);
}

#[tokio::test]
async fn a_follower_that_does_not_read_holds_nobody_up_and_is_told_what_it_missed() {
    use std::io::{BufRead as _, Write as _};
    const FLOOD: u64 = 50_000;
    let served = served().await;
    let path = served.path.clone();
    let (asked, following) = tokio::sync::oneshot::channel();
    let (go, flooded) = std::sync::mpsc::channel();
    let reader = tokio::task::spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.write_all(b"GET /v1/drops?follow=true HTTP/1.0\r\n\r\n").unwrap();
        let mut lines = std::io::BufReader::new(stream).lines().map(Result::unwrap);
        // The first event after the head: it is being followed.
        lines.find(|line| line.starts_with('{')).unwrap();
        asked.send(()).unwrap();
        flooded.recv().unwrap();
        let (mut seen, mut skipped, mut last) = (0, 0, None);
        while last != Some(u16::MAX) {
            match serde_json::from_str(&lines.next().unwrap()).unwrap() {
                DropLine::Event(event) => (seen, last) = (seen + 1, event.source.port),
                DropLine::Skipped { skipped: n } => skipped += n,
            }
        }
        (seen, skipped)
    });
    served.drops.push([dropped(1, "db", "ingress_denied")]);
    following.await.unwrap();
    for _ in 0..FLOOD {
        served.drops.push([dropped(2, "db", "ingress_denied")]);
        // As the reader of the ring buffer does between batches.
        tokio::task::yield_now().await;
    }
    served.drops.push([dropped(u16::MAX, "db", "ingress_denied")]);
    // The agent answers others meanwhile.
    ask(&served, |c| c.get::<Status>("/v1/status")).await.unwrap();
    go.send(()).unwrap();
    let (seen, skipped): (u64, u64) = reader.await.unwrap();
    assert_eq!(seen + skipped, FLOOD + 1);
    assert!(skipped > 0, "{seen} events were kept for a reader that did not read");
}

#[tokio::test]
async fn metrics_are_well_formed_and_documented() {
    let served = served().await;
    let mut pod = attachment(5, Some(("web", "u1")));
    pod.host_ifname = "a\"b\\c".into();
    ask(&served, move |c| c.put::<_, EndpointStatus>("/v1/endpoints", &pod)).await.unwrap();
    let snapshot = served.engine.handle.ask(Message::Snapshot).await.unwrap();
    let text = metrics::text(&snapshot, &Readiness::default(), crate::drops::Counts::default());
    assert!(text.contains("fairlead_ready 1\n"));
    let line = r#"fairlead_endpoint_unlocked{namespace="shop",pod="web",interface="a\"b\\c"} 1"#;
    assert!(text.lines().any(|l| l == line), "{text}");
    let documented = include_str!("../../../docs/metrics.md");
    let families: Vec<&str> =
        text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(families.len() > 10);
    for family in families {
        assert!(documented.contains(&format!("`{family}`")), "{family} is not in docs/metrics.md");
    }
}

#[test]
fn parties_and_targets() {
    assert_eq!(party("::ffff:10.0.0.1"), Ok(Party::Ip("10.0.0.1".parse().unwrap())));
    assert_eq!(party("a/b"), Ok(Party::Pod(ObjectKey::new("a", "b"))));
    for wrong in ["", "a", "/b", "a/", "a/b/c", "10.0.0.0/8/1"] {
        assert!(party(wrong).is_err(), "{wrong}");
    }
    assert_eq!(target("80"), Ok(Target::Port(Protocol::Tcp, 80)));
    assert_eq!(target("53/UDP"), Ok(Target::Port(Protocol::Udp, 53)));
    assert_eq!(target("icmp"), Ok(Target::Icmp));
    for wrong in ["", "0", "65536", "80/xyz", "http", "-1"] {
        assert!(target(wrong).is_err(), "{wrong}");
    }
}
