//! Policies in force, through changes and without agents.

use fairlead_tests::cluster::{Cluster, SOON};
use fairlead_tests::wait::await_until;

use crate::{LIMIT, NS, OTHER, PORT, attempt, cluster, enforce, only_from, open};

const PODS: [(&str, &str); 3] = [("a1", "node-a"), ("a2", "node-a"), ("b1", "node-b")];

/// Asserts that `subject` is reached by `peer` on [`PORT`] alone, and that other directions are free.
async fn assert_only_from(cluster: &Cluster, subject: &str, peer: &str) -> usize {
    let mut cases = 0;
    for (client, _) in PODS {
        for (server, _) in PODS.into_iter().filter(|(server, _)| *server != client) {
            for port in [PORT, OTHER] {
                for ipv6 in [false, true] {
                    let outcome = attempt(cluster, client, server, port, ipv6).await;
                    let allowed = server != subject || (client == peer && port == PORT);
                    let right = if allowed { outcome.is_open() } else { outcome.is_silent() };
                    assert!(right, "{client} to {server}:{port}, IPv6 {ipv6}: {outcome:?}");
                    cases += 1;
                }
            }
        }
    }
    cases
}

#[tokio::test]
async fn a_policy_is_enforced_and_its_end_opens_again() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = cluster(&PODS).await;
    let mut cases = 0;
    for (subject, peer) in [("a1", "a2"), ("b1", "a1")] {
        let policy = only_from(subject, peer);
        enforce(&mut cluster, &policy, subject).await;
        cases += assert_only_from(&cluster, subject, peer).await;
        cluster.delete("NetworkPolicy", NS, policy["metadata"]["name"].as_str().unwrap()).unwrap();
        cluster.await_isolation(|_| (false, false)).await.unwrap();
        assert!(attempt(&cluster, "a2", subject, OTHER, false).await.is_open() || subject == "a2");
    }
    println!("cases: {cases}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn without_agents_policies_hold_and_the_next_agents_take_them_over() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = cluster(&PODS).await;
    enforce(&mut cluster, &only_from("b1", "a1"), "b1").await;
    let mut lasting = open(&cluster, "a1", "b1", false).await;
    for node in cluster.node_names() {
        cluster.kill_agent(&node).unwrap();
    }
    let mut cases = assert_only_from(&cluster, "b1", "a1").await;
    assert!(lasting.echoes(SOON).await.unwrap(), "an allowed connection lives without the agent");
    cluster.start_agents().await.unwrap();
    cases += assert_only_from(&cluster, "b1", "a1").await;
    assert!(lasting.echoes(SOON).await.unwrap(), "an allowed connection lives on under the next agent");
    // The new agents are in charge: they put another policy in force.
    cluster.delete("NetworkPolicy", NS, "b1-from-a1").unwrap();
    enforce(&mut cluster, &only_from("a1", "b1"), "a1").await;
    cases += assert_only_from(&cluster, "a1", "b1").await;
    println!("cases: {cases}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_permission_that_is_taken_away_ends_its_open_connections_and_no_others() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = cluster(&PODS).await;
    // On the same node, then from the other one.
    for (subject, peer, kept) in [("a1", "a2", "b1"), ("a1", "b1", "a2")] {
        let mut revoked =
            [open(&cluster, peer, subject, false).await, open(&cluster, peer, subject, true).await];
        let mut lasting =
            [open(&cluster, kept, subject, false).await, open(&cluster, kept, subject, true).await];
        enforce(&mut cluster, &only_from(subject, kept), subject).await;
        for (ipv6, connection) in revoked.iter_mut().enumerate() {
            assert!(!connection.echoes(LIMIT).await.unwrap_or(false), "{peer} to {subject}, IPv6 {ipv6}");
            assert!(
                !connection.echoes(LIMIT).await.unwrap_or(false),
                "{peer} to {subject}, IPv6 {ipv6}: revived"
            );
        }
        for (ipv6, connection) in lasting.iter_mut().enumerate() {
            assert!(connection.echoes(SOON).await.unwrap(), "{kept} to {subject}, IPv6 {ipv6}");
        }
        let name = format!("{subject}-from-{kept}");
        cluster.delete("NetworkPolicy", NS, &name).unwrap();
        cluster.await_isolation(|_| (false, false)).await.unwrap();
    }
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn denied_packets_are_counted_at_the_endpoint_that_denies_them() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = cluster(&PODS).await;
    enforce(&mut cluster, &only_from("b1", "a1"), "b1").await;
    let denied = async || {
        let endpoints = cluster.node("node-b").unwrap().endpoints().await.unwrap();
        let counters = &endpoints[0].counters;
        assert!(!counters.egress.drops.contains_key("egress_denied"), "{counters:?}");
        counters.ingress.drops.get("ingress_denied").copied().unwrap_or(0)
    };
    let before = denied().await;
    assert!(attempt(&cluster, "a2", "b1", PORT, false).await.is_silent());
    // A SYN, and the one that TCP sent again within the limit.
    await_until("counted", SOON, async || Ok(denied().await == before + 2)).await.unwrap();
    cluster.stop().await.unwrap();
}
