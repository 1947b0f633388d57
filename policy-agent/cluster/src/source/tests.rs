//! The source before a server that says what it is told to say, over HTTP.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use fairlead_index::{Effect, Index, Object, ObjectId};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);
const PODS: &str = "/api/v1/pods";

enum Answer {
    Json(u16, Value),
    /// Events, and more of them until the sender goes.
    Stream(Vec<Value>, Option<UnboundedReceiver<Value>>),
}

#[derive(Default)]
struct Script {
    answers: BTreeMap<String, VecDeque<Answer>>,
    asked: Vec<(String, Option<String>)>,
    /// Bodies of what is not a question, with method and path.
    written: Vec<(String, Value)>,
}

/// A server with a script of answers for each path; other lists are empty, other watches silent.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Script>>);

impl Server {
    fn says(&self, path: &str, answer: Answer) {
        self.0.lock().unwrap().answers.entry(path.to_owned()).or_default().push_back(answer);
    }

    /// Requests whose path and query begin so, with their credentials.
    fn asked(&self, start: &str) -> Vec<(String, Option<String>)> {
        let script = self.0.lock().unwrap();
        script.asked.iter().filter(|(request, _)| request.starts_with(start)).cloned().collect()
    }

    async fn answer(State(server): State<Self>, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let credentials =
            request.headers().get(header::AUTHORIZATION).map(|v| v.to_str().unwrap().to_owned());
        let asks = request.method() == axum::http::Method::GET;
        let what = format!("{} {path}", request.method());
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let scripted = {
            let mut script = server.0.lock().unwrap();
            script.asked.push((format!("{path}?{query}"), credentials));
            if !asks {
                script.written.push((what, serde_json::from_slice(&body).unwrap()));
            }
            script.answers.get_mut(&path).and_then(VecDeque::pop_front)
        };
        let (_keep, silent) = unbounded_channel();
        let default = if query.contains("sendInitialEvents=true") {
            Answer::Stream(vec![end(1)], Some(silent))
        } else if query.contains("watch=true") {
            Answer::Stream(vec![], Some(silent))
        } else if query.is_empty() {
            status(404)
        } else {
            Answer::Json(200, json!({"metadata": {"resourceVersion": "1"}, "items": []}))
        };
        match scripted.unwrap_or(default) {
            Answer::Json(code, body) => {
                (StatusCode::from_u16(code).unwrap(), axum::Json(body)).into_response()
            }
            Answer::Stream(first, rest) => {
                let hold = _keep;
                let state = (VecDeque::from(first), rest, hold);
                let lines = futures_util::stream::unfold(state, async |(mut first, mut rest, hold)| {
                    let next = match (first.pop_front(), &mut rest) {
                        (Some(event), _) => Some(event),
                        (None, Some(rest)) => rest.recv().await,
                        (None, None) => None,
                    };
                    next.map(|e| (Ok::<_, Infallible>(format!("{e}\n")), (first, rest, hold)))
                });
                Body::from_stream(lines).into_response()
            }
        }
    }
}

fn pod(name: &str, revision: u64, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": revision.to_string(),
                     "uid": format!("uid-{name}"), "labels": {"app": app}},
        "spec": {"nodeName": "n", "containers": []},
    })
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

/// The end of a list that is streamed.
fn end(revision: u64) -> Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    let metadata = json!({"resourceVersion": revision.to_string(), "annotations": annotations});
    event("BOOKMARK", json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}))
}

fn status(code: u16) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                      "message": "no", "reason": "Because", "code": code});
    Answer::Json(code, body)
}

fn gone() -> Value {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": "too old resource version", "reason": "Expired", "code": 410});
    event("ERROR", status)
}

/// A running source, and what it has said.
struct Told {
    server: Server,
    events: UnboundedReceiver<Event>,
    wanted: UnboundedSender<ObjectKey>,
    index: Index,
    /// `app` of each pod.
    pods: BTreeMap<String, String>,
    removed: Vec<ObjectId>,
    problems: Vec<Problem>,
    synced: bool,
    kubeconfig: tempfile::NamedTempFile,
    url: String,
}

fn kubeconfig(url: &str, token: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "c", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    })
    .to_string()
}

/// Serves; returns the server's URL and a file with credentials.
async fn serve(server: &Server) -> (String, tempfile::NamedTempFile) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(Server::answer).with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kubeconfig(&url, "first")).unwrap();
    (url, file)
}

impl Told {
    async fn by(server: &Server) -> Self {
        let (url, kubeconfig_file) = serve(server).await;
        let (wanted, asked) = unbounded_channel();
        let access = Access::Kubeconfig(kubeconfig_file.path().to_owned());
        let mut source = Source::new(access, asked, LIMIT).await.unwrap();
        source.look_every = Duration::from_millis(20);
        let (tell, events) = unbounded_channel();
        tokio::spawn(source.run(move |event| tell.send(event).is_ok()));
        Self {
            server: server.clone(),
            events,
            wanted,
            index: Index::default(),
            pods: BTreeMap::new(),
            removed: Vec::new(),
            problems: Vec::new(),
            synced: false,
            kubeconfig: kubeconfig_file,
            url,
        }
    }

    async fn next(&mut self) {
        let event = tokio::time::timeout(LIMIT, self.events.recv()).await;
        match event.expect("the source says something").unwrap() {
            Event::Synced => self.synced = true,
            Event::Batch(batch) => {
                self.problems.clone_from(&batch.problems);
                for effect in self.index.update(batch) {
                    match effect {
                        Effect::Set(Object::Pod(pod)) => {
                            self.pods.insert(pod.key.name, pod.labels["app"].clone());
                        }
                        Effect::Removed(id) => {
                            self.pods.remove(&id.key.name);
                            self.removed.push(id);
                        }
                        Effect::Set(_) => {}
                    }
                }
            }
        }
    }

    async fn until(&mut self, what: impl Fn(&Self) -> bool) {
        while !what(self) {
            self.next().await;
        }
    }

    fn has(&self, pods: &[(&str, &str)]) -> bool {
        self.pods.iter().map(|(name, app)| (name.as_str(), app.as_str())).eq(pods.iter().copied())
    }

    fn removed(&self) -> Vec<&str> {
        self.removed.iter().map(|id| id.key.name.as_str()).collect()
    }
}

#[tokio::test]
async fn a_list_that_streams_and_the_changes_after_it() {
    let server = Server::default();
    let (more, rest) = unbounded_channel();
    let first = vec![event("ADDED", pod("a", 3, "x")), event("ADDED", pod("b", 2, "x")), end(5)];
    server.says(PODS, Answer::Stream(first, Some(rest)));
    let mut told = Told::by(&server).await;
    told.until(|t| t.synced).await;
    assert!(told.has(&[("a", "x"), ("b", "x")]));
    more.send(event("MODIFIED", pod("a", 6, "y"))).unwrap();
    more.send(event("ADDED", pod("c", 7, "x"))).unwrap();
    more.send(event("DELETED", pod("b", 8, "x"))).unwrap();
    told.until(|t| t.has(&[("a", "y"), ("c", "x")])).await;
    assert_eq!(told.removed(), ["b"]);
    assert_eq!(told.problems, []);
    // One request for each kind, and no list in pages.
    assert_eq!(server.asked(PODS).len(), 1);
    for path in ["/api/v1/nodes", "/api/v1/namespaces", "/api/v1/services"] {
        assert_eq!(server.asked(path).len(), 1, "{path}");
    }
    assert_eq!(server.asked("/apis/networking.k8s.io/v1/networkpolicies").len(), 1);
    assert_eq!(server.asked("/apis/discovery.k8s.io/v1/endpointslices").len(), 1);
}

#[tokio::test]
async fn a_server_that_streams_no_lists_is_asked_for_pages() {
    for refusal in [400, 422] {
        let server = Server::default();
        server.says(PODS, status(refusal));
        let page = |pods: Vec<Value>, more: Option<&str>| {
            let metadata = json!({"resourceVersion": "9", "continue": more});
            Answer::Json(200, json!({"metadata": metadata, "items": pods}))
        };
        server.says(PODS, page(vec![pod("a", 3, "x")], Some("next")));
        server.says(PODS, page(vec![pod("b", 4, "x")], None));
        let (more, rest) = unbounded_channel();
        server.says(PODS, Answer::Stream(vec![], Some(rest)));
        let mut told = Told::by(&server).await;
        told.until(|t| t.synced && t.has(&[("a", "x"), ("b", "x")])).await;
        more.send(event("DELETED", pod("a", 10, "x"))).unwrap();
        told.until(|t| t.has(&[("b", "x")])).await;
        let asked = server.asked(PODS);
        assert!(asked[2].0.contains("continue=next"), "{asked:?}");
        assert!(asked[3].0.contains("watch=true") && asked[3].0.contains("resourceVersion=9"), "{asked:?}");
        assert_eq!(told.problems, []);
    }
}

#[tokio::test]
async fn after_410_what_is_still_there_is_not_taken_away() {
    // Said in the stream, and said to a request that goes on from too old a revision.
    for in_stream in [true, false] {
        let server = Server::default();
        let mut first = vec![event("ADDED", pod("a", 3, "x")), event("ADDED", pod("b", 4, "x")), end(5)];
        first.extend(in_stream.then(gone));
        server.says(PODS, Answer::Stream(first, None));
        if !in_stream {
            server.says(PODS, status(410));
        }
        let (_more, rest) = unbounded_channel();
        let second = vec![event("ADDED", pod("b", 4, "x")), event("ADDED", pod("c", 8, "x")), end(9)];
        server.says(PODS, Answer::Stream(second, Some(rest)));
        let mut told = Told::by(&server).await;
        told.until(|t| t.has(&[("b", "x"), ("c", "x")])).await;
        assert_eq!(told.removed(), ["a"]);
        told.until(|t| t.problems.is_empty()).await;
    }
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let server = Server::default();
    let first = vec![event("ADDED", pod("a", 3, "x")), end(5), event("ADDED", pod("b", 6, "x"))];
    server.says(PODS, Answer::Stream(first, None));
    let (_more, rest) = unbounded_channel();
    // What was said already is said again.
    let again = vec![event("ADDED", pod("b", 6, "x")), event("MODIFIED", pod("a", 7, "y"))];
    server.says(PODS, Answer::Stream(again, Some(rest)));
    let mut told = Told::by(&server).await;
    told.until(|t| t.has(&[("a", "y"), ("b", "x")])).await;
    let asked = server.asked(PODS);
    assert!(asked[1].0.contains("resourceVersion=6"), "{asked:?}");
    assert_eq!(told.removed(), Vec::<&str>::new());
}

#[tokio::test]
async fn a_pod_that_is_waited_for_is_fetched_and_stays_as_it_is() {
    let server = Server::default();
    let (more, rest) = unbounded_channel();
    server.says(PODS, Answer::Stream(vec![end(5)], Some(rest)));
    let mut told = Told::by(&server).await;
    told.until(|t| t.synced).await;
    // The first attempt fails, the second does not.
    let path = "/api/v1/namespaces/ns/pods/a";
    server.says(path, status(500));
    server.says(path, Answer::Json(200, pod("a", 12, "new")));
    let namespace = json!({"metadata": {"name": "ns", "resourceVersion": "2", "labels": {"team": "t"}}});
    server.says("/api/v1/namespaces/ns", Answer::Json(200, namespace));
    told.wanted.send(ObjectKey::new("ns", "a")).unwrap();
    told.until(|t| t.has(&[("a", "new")])).await;
    assert_eq!(told.index.pod_uid(&ObjectKey::new("ns", "a")).as_deref(), Some("uid-a"));
    told.until(|t| t.index.has_namespace("ns")).await;
    // The watch lags behind.
    more.send(event("ADDED", pod("a", 10, "old"))).unwrap();
    more.send(event("ADDED", pod("b", 13, "x"))).unwrap();
    told.until(|t| t.pods.contains_key("b")).await;
    assert!(told.has(&[("a", "new"), ("b", "x")]));
    more.send(event("MODIFIED", pod("a", 14, "newer"))).unwrap();
    told.until(|t| t.has(&[("a", "newer"), ("b", "x")])).await;
}

#[tokio::test]
async fn while_the_server_fails_everything_stays_and_is_said() {
    let server = Server::default();
    server.says(PODS, Answer::Stream(vec![event("ADDED", pod("a", 3, "x")), end(5)], None));
    server.says(PODS, status(500));
    server.says(PODS, status(503));
    let (_more, rest) = unbounded_channel();
    server.says(PODS, Answer::Stream(vec![event("MODIFIED", pod("a", 9, "y"))], Some(rest)));
    let mut told = Told::by(&server).await;
    told.until(|t| !t.problems.is_empty()).await;
    assert!(told.problems[0].message.contains("watching Pod"), "{:?}", told.problems);
    assert!(told.has(&[("a", "x")]));
    told.until(|t| t.has(&[("a", "y")])).await;
    told.until(|t| t.problems.is_empty()).await;
    assert_eq!(told.removed(), Vec::<&str>::new());
}

#[tokio::test]
async fn an_object_that_cannot_be_read_does_not_stop_the_others() {
    let server = Server::default();
    let (_more, rest) = unbounded_channel();
    let mut strange = pod("strange", 3, "x");
    strange["spec"] = json!("a text");
    let first = vec![event("ADDED", strange), event("ADDED", pod("a", 4, "x")), end(5)];
    server.says(PODS, Answer::Stream(first, Some(rest)));
    let mut told = Told::by(&server).await;
    told.until(|t| t.synced).await;
    assert!(told.has(&[("a", "x")]));
    let problems = told.index.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].object.as_deref(), Some("Pod ns/strange"));
    assert_eq!(problems[0].field.as_deref(), Some("spec"));
}

#[tokio::test]
async fn new_credentials_are_taken_without_a_restart() {
    let server = Server::default();
    let mut told = Told::by(&server).await;
    told.until(|t| t.synced).await;
    let with = |server: &Server, token: &str| {
        let token = format!("Bearer {token}");
        server.asked(PODS).iter().filter(|(_, c)| c.as_deref() == Some(&token)).count()
    };
    assert_eq!((with(&server, "first"), with(&server, "second")), (1, 0));
    // Half written: the old ones stay.
    std::fs::write(told.kubeconfig.path(), "{").unwrap();
    told.until(|t| t.problems.iter().any(|p| p.message.contains("new credentials"))).await;
    let (_more, rest) = unbounded_channel();
    server.says(PODS, Answer::Stream(vec![event("ADDED", pod("a", 3, "x")), end(5)], Some(rest)));
    std::fs::write(told.kubeconfig.path(), kubeconfig(&told.url, "second")).unwrap();
    told.until(|t| t.has(&[("a", "x")]) && t.problems.is_empty()).await;
    assert_eq!((with(&server, "first"), with(&told.server, "second")), (1, 1));
}

fn problem(object: &str, message: &str) -> Problem {
    Problem { object: Some(object.to_owned()), message: message.to_owned(), ..Problem::default() }
}

#[tokio::test]
async fn a_problem_is_an_event_on_its_object_once() {
    let server = Server::default();
    let (_url, file) = serve(&server).await;
    let access = Access::Kubeconfig(file.path().to_owned());
    let mut reporter = crate::Reporter::new(access, "n");
    let path = "/api/v1/namespaces/ns/events";
    server.says(path, status(500));
    for _ in 0..2 {
        server.says(path, Answer::Json(201, json!({"metadata": {}, "involvedObject": {}})));
    }
    let pod = problem("Pod ns/a", "its ingress is closed");
    // Without an object, or about another node: nothing to say it on.
    let problems = [pod.clone(), problem("Node other", "x"), Problem { object: None, ..pod.clone() }];
    assert!(reporter.report(&problems).await.is_err());
    reporter.report(&problems).await.unwrap();
    reporter.report(&problems).await.unwrap();
    let written = || server.0.lock().unwrap().written.clone();
    let all = written();
    assert_eq!(all.len(), 2, "tried twice, told once: {all:?}");
    let (what, event) = &all[1];
    assert_eq!(what, &format!("POST {path}"));
    assert_eq!(
        event["involvedObject"],
        json!({"apiVersion": "v1", "kind": "Pod", "namespace": "ns", "name": "a"})
    );
    assert_eq!((&event["type"], &event["message"]), (&json!("Warning"), &json!("its ingress is closed")));
    // Another agent gives it the same name.
    assert_eq!(event["metadata"]["name"], all[0].1["metadata"]["name"]);
    // Gone, and back.
    reporter.report(&[]).await.unwrap();
    reporter.report(&problems).await.unwrap();
    assert_eq!(written().len(), 3);
}

#[tokio::test]
async fn the_taint_of_a_node_that_waits_goes_and_no_other() {
    let server = Server::default();
    let (_url, file) = serve(&server).await;
    let reporter = crate::Reporter::new(Access::Kubeconfig(file.path().to_owned()), "n");
    let node = |taints: Value| {
        let metadata = json!({"name": "n", "resourceVersion": "7"});
        Answer::Json(200, json!({"metadata": metadata, "spec": {"taints": taints}}))
    };
    let other = json!({"key": "other", "effect": "NoExecute"});
    let waits = json!({"key": crate::report::TAINT, "effect": "NoSchedule"});
    server.says("/api/v1/nodes/n", node(json!([other, waits])));
    server.says("/api/v1/nodes/n", node(json!([other])));
    assert_eq!(reporter.remove_taint().await, Ok(true));
    server.says("/api/v1/nodes/n", node(json!([other])));
    assert_eq!(reporter.remove_taint().await, Ok(false));
    let written = server.0.lock().unwrap().written.clone();
    let patch = json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": [other]}});
    assert_eq!(written, [("PATCH /api/v1/nodes/n".to_owned(), patch)]);
}
