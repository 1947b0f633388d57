//! Every verb, as libcni calls it.

use std::net::SocketAddr;
use std::time::Duration;

use fairlead_tests::namespace::Namespace;
use fairlead_tests::probe::{Listener, Outcome, connect};
use fairlead_tests::wait::await_until;
use serde_json::json;

use crate::{Lab, addresses};

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn cnitool_with_every_verb_in_the_newest_version() {
    let Some(lab) = Lab::new(&[]).await else { return };
    let (a, b) = (Namespace::new("a").await.unwrap(), Namespace::new("b").await.unwrap());
    let none = json!({});
    lab.cnitool("status", "fairlead", &a, &none).await.success();
    let result = lab.cnitool("add", "fairlead", &a, &none).await.success();
    // No other plugin is there, so it is the newest that the list names.
    assert_eq!(result["cniVersion"], "1.1.0");
    assert!(result["interfaces"][1]["mtu"].is_u64());
    let other = lab.cnitool("add", "fairlead", &b, &none).await.success();
    assert!(!lab.cnitool("add", "fairlead", &a, &none).await.ok, "twice");
    for pod in [&a, &b] {
        lab.cnitool("check", "fairlead", pod, &none).await.success();
    }
    // Pods, and the node.
    let _listener = Listener::open(&b, "b", 80).await.unwrap();
    for address in addresses(&other) {
        let to = SocketAddr::new(address.parse().unwrap(), 80);
        for from in [&a, lab.node()] {
            assert!(matches!(connect(from, to, LIMIT).await.unwrap(), Outcome::Open(_)), "{to}");
        }
    }
    crate::run(&a, "ip addr flush dev eth0 scope global").await;
    let said = lab.cnitool("check", "fairlead", &a, &none).await;
    assert!(!said.ok && said.err.contains("is not there"), "{}", said.err);
    for _ in 0..2 {
        lab.cnitool("del", "fairlead", &a, &none).await.success();
    }
    assert_eq!(lab.interfaces().await.len(), 1);
    // cnitool lists nothing as valid.
    lab.cnitool("gc", "fairlead", &a, &none).await.success();
    lab.cluster.node("node-a").unwrap().endpoints().await.unwrap();
    assert_eq!(lab.interfaces().await, [""; 0]);
    lab.cluster.stop().await.unwrap();
}

#[tokio::test]
async fn capabilities_reach_the_plugin_through_libcni() {
    let Some(lab) = Lab::new(&[]).await else { return };
    let a = Namespace::new("a").await.unwrap();
    let asked = json!({
        "ips": ["10.244.1.77", "fd10:244:0:1::77"],
        "mac": "02:00:00:00:00:77",
        "dns": {"servers": ["10.96.0.10"], "searches": ["svc"]},
    });
    let result = lab.cnitool("add", "fairlead", &a, &asked).await.success();
    assert_eq!(addresses(&result), ["10.244.1.77", "fd10:244:0:1::77"]);
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:77");
    assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.10"], "search": ["svc"]}));
    lab.cnitool("check", "fairlead", &a, &asked).await.success();
    lab.cnitool("del", "fairlead", &a, &asked).await.success();
    let ranges = json!({"ipRanges": [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9"}]]});
    let result = lab.cnitool("add", "fairlead", &a, &ranges).await.success();
    assert_eq!(addresses(&result), ["10.9.0.9"]);
    lab.cnitool("del", "fairlead", &a, &ranges).await.success();
    lab.cluster.stop().await.unwrap();
}

#[tokio::test]
async fn the_configuration_stays_when_the_agent_ends() {
    let Some(lab) = Lab::new(&["portmap"]).await else { return };
    let folder = lab.cluster.node("node-a").unwrap().folders.cni.clone();
    let before = std::fs::read(folder.join("00-fairlead.conflist")).unwrap();
    let installed = std::fs::read(lab.bin.path().join("fairlead-cni")).unwrap();
    assert_eq!(installed, std::fs::read(fairlead_tests::dist().join("fairlead-cni")).unwrap());
    let node = lab.cluster.node("node-a").unwrap();
    let agent = nix::unistd::Pid::from_raw(node.agent.as_ref().unwrap().id().cast_signed());
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGTERM).unwrap();
    await_until("the agent is gone", Duration::from_secs(10), async || Ok(node.endpoints().await.is_err()))
        .await
        .unwrap();
    assert_eq!(std::fs::read(folder.join("00-fairlead.conflist")).unwrap(), before);
    assert!(lab.bin.path().join("fairlead-cni").exists());
}

#[tokio::test]
async fn fairlead_ipam_tells_what_is_reserved_without_an_agent() {
    let Some(mut lab) = Lab::new(&[]).await else { return };
    let (a, none) = (Namespace::new("a").await.unwrap(), json!({}));
    let result = lab.cnitool("add", "fairlead", &a, &none).await.success();
    lab.cluster.kill_agent("node-a").unwrap();
    let node = lab.cluster.node("node-a").unwrap();
    let shown = node.fairlead(&["ipam", "-o", "json"]).await.unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["addresses"][0]["address"], "10.244.1.2");
    assert_eq!(shown["addresses"][0]["hostIfname"], result["interfaces"][0]["name"]);
    assert_eq!(shown["faults"], json!([]));
    assert_eq!(node.fairlead(&["ipam", "check"]).await.unwrap().status.code(), Some(0));
    let host = result["interfaces"][0]["name"].as_str().unwrap();
    lab.node_says(&format!("ip route flush dev {host}")).await;
    let checked = node.fairlead(&["ipam", "check"]).await.unwrap();
    assert_eq!(checked.status.code(), Some(1));
    let text = String::from_utf8(checked.stdout).unwrap();
    assert!(text.contains(&format!("there is no route to 10.244.1.2 over {host}")), "{text}");
    let said = lab.cnitool("del", "fairlead", &a, &none).await;
    assert!(said.ok, "{}", said.err);
}
