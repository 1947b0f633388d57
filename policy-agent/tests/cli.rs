//! The executable `fairlead` before an agent that says what the test wants: what it asks, what it
//! prints, and its exit codes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::{JoinHandle, spawn};

use fairlead_api::RunDir;
use serde_json::{Value, json};

fn fairlead(run_dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fairlead"))
        .arg("--run-dir")
        .arg(run_dir)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Answers one request in `run_dir`, and hands back its first line.
fn agent(run_dir: &Path, status: &'static str, answer: &Value) -> JoinHandle<String> {
    agent_says(run_dir, status, answer.to_string())
}

fn agent_says(run_dir: &Path, status: &'static str, body: String) -> JoinHandle<String> {
    let listener = UnixListener::bind(RunDir(run_dir.to_owned()).socket()).unwrap();
    spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        let mut buffer = [0; 4096];
        // GET has no body.
        while !asked.ends_with(b"\r\n\r\n") {
            let n = stream.read(&mut buffer).unwrap();
            assert!(n > 0, "the request broke off: {}", String::from_utf8_lossy(&asked));
            asked.extend_from_slice(&buffer[..n]);
        }
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        String::from_utf8(asked).unwrap().lines().next().unwrap().to_owned()
    })
}

/// One question to one answer; returns what was asked and what came of it.
fn ask(args: &[&str], status: &'static str, answer: &Value) -> (String, Output) {
    let run_dir = tempfile::tempdir().unwrap();
    let agent = agent(run_dir.path(), status, answer);
    let output = fairlead(run_dir.path(), args);
    // Ends an agent that was never asked; its reading fails then. One that was has gone.
    let _ = UnixStream::connect(RunDir(run_dir.path().to_owned()).socket());
    (agent.join().unwrap(), output)
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn complaint(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(text(output), "");
    std::str::from_utf8(&output.stderr).unwrap()
}

fn endpoint(name: &str, number: u32, addresses: &[&str]) -> Value {
    json!({
        "network": "fairlead",
        "containerID": format!("{number}123456789abcdef"),
        "ifname": "eth0",
        "netns": "/run/netns/x",
        "pod": {"namespace": "shop", "name": name},
        "hostIfname": format!("fl{number}"),
        "hostIfindex": 0x10000 + number,
        "hostMac": "02:00:00:00:00:01",
        "podMac": "02:00:00:00:00:02",
        "addresses": addresses,
        "mtu": 1450,
        "shaped": false,
        "slot": number,
        "generation": number,
        "unlocked": true,
        "fastPath": true,
        "ingressIsolated": true,
        "egressIsolated": false,
        "counters": {
            "ingress": {"packets": 12, "bytes": 1200, "drops": {"policy": 3, "forged": 0}},
            "egress": {"packets": 7, "bytes": 700, "drops": {}},
        },
    })
}

fn status() -> Value {
    json!({
        "version": "0.1.0",
        "ready": true,
        "node": "node-a",
        "addresses": ["192.0.2.1"],
        "uplink": "eth0",
        "policySerial": 9,
        "counts": {"nodes": 2, "namespaces": 3, "pods": 5, "policies": 4},
        "endpoints": [endpoint("web", 7, &["10.0.1.7", "fd00:1::7"]), endpoint("database", 11, &["10.0.1.11"])],
        "problems": [{
            "file": "shop.yaml", "line": 40, "object": "NetworkPolicy shop/web",
            "field": "spec.ingress[0].ports[0].port", "message": "70000 is not a port",
        }],
    })
}

#[test]
fn status_shows_the_agent_its_endpoints_and_problems() {
    let (asked, output) = ask(&["status"], "200 OK", &status());
    assert_eq!(asked, "GET /v1/status HTTP/1.1");
    // No terminal, so no colours.
    assert_eq!(
        text(&output),
        "\
Agent     0.1.0 on node node-a: ready
Uplink    eth0
Known     2 nodes, 3 namespaces, 5 pods, 4 policies (step 9 in force)

POD            ADDRESSES           ISOLATED  IN  DROPPED  OUT  DROPPED
shop/web       10.0.1.7,fd00:1::7  ingress   12  3        7    0
shop/database  10.0.1.11           ingress   12  3        7    0

Dropped, by reason
           6  in   policy

Problems (1)
  shop.yaml:40: NetworkPolicy shop/web: spec.ingress[0].ports[0].port: 70000 is not a port
"
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn status_says_what_an_agent_waits_for() {
    let mut answer = status();
    answer["ready"] = false.into();
    answer["waitingFor"] = "Node node-a is not known".into();
    answer["uplink"] = Value::Null;
    answer["endpoints"] = json!([]);
    answer["problems"] = json!([]);
    let (_, output) = ask(&["status"], "200 OK", &answer);
    assert_eq!(
        text(&output),
        "\
Agent     0.1.0 on node node-a: not ready (Node node-a is not known)
Uplink    -
Known     2 nodes, 3 namespaces, 5 pods, 4 policies (step 9 in force)

No endpoints.
"
    );
    assert_eq!(output.status.code(), Some(1));
    let (_, output) = ask(&["status", "-o", "json"], "200 OK", &answer);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), answer);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn endpoints_are_a_table() {
    let mut locked = endpoint("late", 11, &["10.0.1.11"]);
    locked["unlocked"] = false.into();
    locked["fastPath"] = false.into();
    let mut other = endpoint("-", 12, &["10.0.1.12"]);
    other["pod"] = Value::Null;
    other["egressIsolated"] = true.into();
    let answer = json!([endpoint("web", 7, &["10.0.1.7"]), locked, other]);
    let (asked, output) = ask(&["endpoints"], "200 OK", &answer);
    assert_eq!(asked, "GET /v1/endpoints HTTP/1.1");
    assert_eq!(
        text(&output),
        "\
POD             ADDRESSES  ISOLATED  PATH   INTERFACE  SLOT  IN  DROPPED  OUT  DROPPED  CONTAINER
shop/web        10.0.1.7   ingress   fast   fl7        7     12  3        7    0        7123456789ab
shop/late       10.0.1.11  locked    stack  fl11       11    12  3        7    0        11123456789a
(12123456789a)  10.0.1.12  both      fast   fl12       12    12  3        7    0        12123456789a
"
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn json_is_the_agents_answer() {
    for (args, answer) in
        [(["status", "-o", "json"], status()), (["endpoints", "-o", "json"], status()["endpoints"].clone())]
    {
        let (_, output) = ask(&args, "200 OK", &answer);
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), answer);
        assert_eq!(output.status.code(), Some(0));
    }
}

const EXPLAIN: [&str; 7] = ["explain", "--from", "shop/web", "--to", "shop/database", "--port", "5432/tcp"];

fn name(name: &str) -> Value {
    json!({"namespace": "shop", "name": name})
}

fn denied() -> Value {
    json!({
        "allowed": false,
        "egress": {
            "subject": name("web"), "peer": "10.0.1.11", "verdict": "not-isolated",
            "isolatedBy": [], "allowedBy": [],
        },
        "ingress": {
            "subject": name("database"), "peer": "10.0.1.7", "verdict": "denied",
            "isolatedBy": [name("closed"), name("only-backend")], "allowedBy": [],
        },
    })
}

#[test]
fn a_denied_connection_is_exit_code_1() {
    let (asked, output) = ask(&EXPLAIN, "200 OK", &denied());
    assert_eq!(asked, "GET /v1/explain?from=shop/web&to=shop/database&port=5432/tcp HTTP/1.1");
    assert_eq!(
        text(&output),
        "\
shop/web -> shop/database 5432/tcp: denied
  egress   open: no policy selects shop/web
  ingress  denied: shop/database is isolated by shop/closed, shop/only-backend and no rule allows it
"
    );
    assert_eq!(output.status.code(), Some(1));

    let (_, output) = ask(&[&EXPLAIN[..], &["-o", "json"]].concat(), "200 OK", &denied());
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), denied());
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_allowed_connection_names_every_rule() {
    let answer = json!({
        "allowed": true,
        "egress": null,
        "ingress": {
            "subject": name("database"), "peer": "2001:db8::5", "verdict": "allowed",
            "isolatedBy": [name("closed")],
            "allowedBy": [{"policy": name("backend"), "rule": 0}, {"policy": name("closed"), "rule": 2}],
        },
    });
    let args = ["explain", "--from", "2001:db8::5", "--to", "shop/database", "--port", "53/udp"];
    let (asked, output) = ask(&args, "200 OK", &answer);
    assert_eq!(asked, "GET /v1/explain?from=2001%3Adb8%3A%3A5&to=shop/database&port=53/udp HTTP/1.1");
    assert_eq!(
        text(&output),
        "\
2001:db8::5 -> shop/database 53/udp: allowed
  egress   no rules: 2001:db8::5 is not a pod
  ingress  allowed by
             shop/backend spec.ingress[0]
             shop/closed spec.ingress[2]
"
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn an_unknown_pod_is_closed() {
    let mut answer = denied();
    answer["ingress"]["verdict"] = "unknown".into();
    answer["ingress"]["isolatedBy"] = json!([]);
    let (_, output) = ask(&EXPLAIN, "200 OK", &answer);
    assert_eq!(
        text(&output).lines().last(),
        Some("  ingress  closed: shop/database or its namespace is not known")
    );
    assert_eq!(output.status.code(), Some(1));
}

fn dropped(policy: Value) -> Value {
    json!({
        "time": "2026-11-24T12:00:00.123Z",
        "reason": "ingress_denied",
        "direction": "ingress",
        "ifindex": 65543,
        "source": {"pod": name("web"), "address": "10.0.1.7", "port": 40000},
        "destination": {"pod": name("database"), "address": "10.0.1.11", "port": 5432},
        "protocol": "tcp",
        "policy": policy,
        "policyDirection": "ingress",
    })
}

/// Answers with lines.
fn ask_drops(args: &[&str], lines: &[Value]) -> (String, Output) {
    let run_dir = tempfile::tempdir().unwrap();
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let agent = agent_says(run_dir.path(), "200 OK", lines);
    let output = fairlead(run_dir.path(), args);
    (agent.join().unwrap(), output)
}

#[test]
fn drops_name_pods_and_the_rule_that_is_missing() {
    let mut revoked = dropped(denied()["ingress"].clone());
    revoked["reason"] = "flow_revoked".into();
    revoked["missed"] = 12.into();
    revoked["policyChanged"] = true.into();
    // The reply of the flow: the denied rule is the opener's.
    let mut closed = denied()["ingress"].clone();
    closed["peer"] = "fd00::7".into();
    let reply = json!({
        "time": "2026-11-24T12:00:00.125Z", "reason": "flow_revoked", "direction": "egress", "ifindex": 1,
        "source": {"pod": name("database"), "address": "fd00::11", "port": 5432},
        "destination": {"pod": name("web"), "address": "fd00::7", "port": 40000}, "protocol": "udp",
        "policy": closed, "policyDirection": "ingress",
    });
    let frame = json!({
        "time": "2026-11-24T12:00:00.126Z", "reason": "ether_type", "direction": "egress", "ifindex": 1,
        "source": {"pod": name("web")}, "destination": {}, "protocol": "ether 0x88cc",
    });
    let ping = json!({
        "time": "2026-11-24T12:00:00.127Z", "reason": "egress_denied", "direction": "egress", "ifindex": 1,
        "source": {"pod": name("web"), "address": "10.0.1.7"}, "destination": {"address": "192.0.2.9"},
        "protocol": "icmp",
        "policy": {"subject": name("web"), "peer": "192.0.2.9", "verdict": "denied",
                   "isolatedBy": [name("closed")], "allowedBy": []},
        "policyDirection": "egress",
    });
    let all = [dropped(denied()["ingress"].clone()), revoked, reply, frame, ping, json!({"skipped": 7})];
    let (asked, output) = ask_drops(&["drops"], &all);
    assert_eq!(asked, "GET /v1/drops?follow=false HTTP/1.1");
    assert_eq!(
        text(&output),
        "\
2026-11-24T12:00:00.123Z  shop/web 10.0.1.7:40000 -> shop/database 10.0.1.11:5432 tcp  ingress_denied
    no policy of shop/database allows ingress from shop/web on 5432/tcp; policies that isolate it: \
    shop/closed, shop/only-backend
(12 more drops of the next one's interface have no event)
2026-11-24T12:00:00.123Z  shop/web 10.0.1.7:40000 -> shop/database 10.0.1.11:5432 tcp  flow_revoked
    no policy of shop/database allows ingress from shop/web on 5432/tcp; policies that isolate it: \
    shop/closed, shop/only-backend (policy has changed since)
2026-11-24T12:00:00.125Z  shop/database [fd00::11]:5432 -> shop/web [fd00::7]:40000 udp  flow_revoked
    no policy of shop/database allows ingress from shop/web on 5432/udp; policies that isolate it: \
    shop/closed, shop/only-backend
2026-11-24T12:00:00.126Z  shop/web ? -> ? ether 0x88cc  ether_type
2026-11-24T12:00:00.127Z  shop/web 10.0.1.7 -> 192.0.2.9 icmp  egress_denied
    no policy of shop/web allows egress to 192.0.2.9 on icmp; policies that isolate it: shop/closed
(7 events came too fast to be shown)
"
        .replace("    shop/closed, shop/only", "shop/closed, shop/only")
    );
    assert_eq!(output.status.code(), Some(0));
    let (asked, output) = ask_drops(
        &["drops", "--follow", "--pod", "shop/web", "--reason", "ingress_denied", "-o", "json"],
        &all[..1],
    );
    assert_eq!(asked, "GET /v1/drops?follow=true&pod=shop/web&reason=ingress_denied HTTP/1.1");
    assert_eq!(text(&output), format!("{}\n", all[0]));
    let run_dir = tempfile::tempdir().unwrap();
    for (flag, word) in [("--pod", "10.0.0.1"), ("--reason", "fate")] {
        let output = fairlead(run_dir.path(), &["drops", flag, word]);
        assert!(complaint(&output).contains(&format!("{flag}: ")), "{output:?}");
    }
}

#[test]
fn what_cannot_be_asked_is_exit_code_2() {
    let run_dir = tempfile::tempdir().unwrap();
    let socket = RunDir(run_dir.path().to_owned()).socket();
    // Nobody there: the socket is named, and what to do.
    for args in [&["status"][..], &["endpoints"], &EXPLAIN] {
        let output = fairlead(run_dir.path(), args);
        assert!(complaint(&output).contains(&socket.display().to_string()), "{output:?}");
        let advice = format!(
            "Is fairlead-agent running on this node, and is {} its --run-dir?\n",
            run_dir.path().display()
        );
        assert!(complaint(&output).ends_with(&advice), "{output:?}");
    }
    // A wrong word is told by its flag, and before the agent is asked.
    for (flag, args) in [
        ("--from", ["web", "shop/database", "5432/tcp"]),
        ("--to", ["shop/web", "a/b/c", "5432/tcp"]),
        ("--port", ["shop/web", "shop/database", "0/tcp"]),
        ("--port", ["shop/web", "shop/database", "80/icmp"]),
    ] {
        let [from, to, port] = args;
        let output = fairlead(run_dir.path(), &["explain", "--from", from, "--to", to, "--port", port]);
        assert!(complaint(&output).contains(&format!("{flag}: ")), "{output:?}");
    }
    for args in [&[][..], &["stats"], &["explain"], &["status", "-o", "xml"]] {
        let output = fairlead(run_dir.path(), args);
        assert!(!complaint(&output).is_empty());
    }
}

#[test]
fn an_error_of_the_agent_is_told() {
    let answer = json!({"code": "try-again", "message": "the state of the world is not known yet"});
    let (_, output) = ask(&["status"], "503 Service Unavailable", &answer);
    assert_eq!(complaint(&output), "fairlead: the state of the world is not known yet\n");
    // An answer of another version is an error as well, not a wrong table.
    let (_, output) = ask(&["endpoints"], "200 OK", &json!([{"slot": 1}]));
    assert!(!complaint(&output).is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for (args, answer, code) in [
        (&["status"][..], status(), 0),
        (&["endpoints"], status()["endpoints"].clone(), 0),
        (&["endpoints", "-o", "json"], status()["endpoints"].clone(), 0),
        (&EXPLAIN, denied(), 1),
        (&[&EXPLAIN[..], &["-o", "json"]].concat(), denied(), 1),
    ] {
        let run_dir = tempfile::tempdir().unwrap();
        let agent = agent(run_dir.path(), "200 OK", &answer);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = Command::new(env!("CARGO_BIN_EXE_fairlead"))
            .arg("--run-dir")
            .arg(run_dir.path())
            .args(args)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        agent.join().unwrap();
        assert_eq!(std::str::from_utf8(&output.stderr).unwrap(), "", "{args:?}");
        assert_eq!(output.status.code(), Some(code), "{args:?}");
    }
}
