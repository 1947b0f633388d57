//! Pods that come and go.

use std::collections::BTreeSet;

use fairlead_tests::cluster::{Cluster, SOON};
use fairlead_tests::runtime::CniError;
use fairlead_tests::world;

use crate::{NS, PORT, add, cluster, open};

/// Interfaces and routes of a node, the latter as the kernel prints them.
async fn traces(cluster: &Cluster, node: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let node = cluster.node(node).unwrap();
    let work = || {
        let names = std::fs::read_dir("/sys/class/net").unwrap();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        // Destination, gateway and interface; the reference counts and uses between them change.
        let v4 = std::fs::read_to_string("/proc/thread-self/net/route").unwrap();
        let routes = v4.lines().map(|l| l.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
        let v6 = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap();
        let routes = routes.chain(v6.lines().map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            [fields[0], fields[1], fields[4], fields[9]].join(" ")
        }));
        (names, routes.collect())
    };
    node.namespace.run(work).await.unwrap()
}

/// Files below a node's folder of endpoints.
fn recorded(cluster: &Cluster, node: &str) -> usize {
    std::fs::read_dir(cluster.node(node).unwrap().folders.run.endpoints()).unwrap().count()
}

#[tokio::test]
async fn del_leaves_nothing_and_may_be_repeated() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = cluster(&[("stays", "node-a")]).await;
    let before = traces(&cluster, "node-a").await;
    assert_eq!(recorded(&cluster, "node-a"), 1);
    add(&mut cluster, "goes", "node-a").await;
    assert_eq!(recorded(&cluster, "node-a"), 2);
    assert_ne!(traces(&cluster, "node-a").await, before);
    assert!(open(&cluster, "stays", "goes", false).await.echoes(SOON).await.unwrap());
    let pod = cluster.pod("goes").unwrap();
    let (attach, result) = (pod.attach.clone(), pod.result.clone());
    let node = cluster.node("node-a").unwrap();
    node.runtime().check(&node.namespace, &attach, &result).await.unwrap();
    cluster.unwire("goes").await.unwrap();
    assert_eq!(traces(&cluster, "node-a").await, before);
    assert_eq!(recorded(&cluster, "node-a"), 1);
    let node = cluster.node("node-a").unwrap();
    let endpoints = node.endpoints().await.unwrap();
    assert_eq!(endpoints.len(), 1, "{endpoints:?}");
    assert!(endpoints[0].unlocked);
    node.runtime().check(&node.namespace, &attach, &result).await.unwrap_err();
    node.runtime().del(&node.namespace, &attach, &result).await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn without_the_agent_del_works_and_add_fails_with_code_11_and_makes_nothing() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = cluster(&[("a1", "node-a")]).await;
    cluster.kill_agent("node-a").unwrap();
    let before = traces(&cluster, "node-a").await;
    cluster.apply(&world::pod(NS, "a2", "node-a", &[PORT])).unwrap();
    let error = cluster.wire(NS, "a2").await.map(drop).unwrap_err();
    let code = error.downcast_ref::<CniError>().map(|e| e.code);
    assert_eq!(code, Some(11), "{error:#}");
    assert_eq!(traces(&cluster, "node-a").await, before);
    assert_eq!(recorded(&cluster, "node-a"), 1);
    cluster.unwire("a1").await.unwrap();
    let (interfaces, _) = traces(&cluster, "node-a").await;
    assert_eq!(interfaces, BTreeSet::from(["eth0", "fl-overlay", "lo"].map(str::to_owned)));
    cluster.start_agent("node-a").await.unwrap();
    assert_eq!(cluster.node("node-a").unwrap().endpoints().await.unwrap(), []);
    cluster.wire(NS, "a2").await.unwrap();
    cluster.stop().await.unwrap();
}
