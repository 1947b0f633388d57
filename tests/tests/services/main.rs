//! Services and policy: kube-proxy's own rules in the nodes' namespaces, real agents, real connections.
#![expect(clippy::unwrap_used, reason = "tests, and what they share")]

mod fragments;
mod revoked;
mod scene;
mod table;

use std::collections::BTreeMap;

use fairlead_tests::cluster::SOON;
use fairlead_tests::proxy::{Mode, Protocol};
use fairlead_tests::wait::await_until;

use scene::{Drops, REJECTED, SERVED, Scene};
use table::{Expect, GROUPS, Group, Row, Seen};

/// Goes through the table with kube-proxy in one of its modes.
async fn table(mode: Mode) -> Option<u32> {
    if !fairlead_tests::privileged() {
        return None;
    }
    let mut scene = Scene::start(mode).await;
    let (mut cases, mut wrong) = (0_u32, Vec::new());
    for group in GROUPS {
        scene.enforce(group.policies).await;
        for row in group.rows {
            for ipv6 in [false, true] {
                for protocol in Protocol::ALL {
                    cases += 1;
                    if let Err(found) = case(&scene, row, protocol, ipv6).await {
                        wrong.push(describe(group, row, protocol, ipv6, &found));
                    }
                }
            }
        }
        scene.release(group.policies).await;
    }
    assert!(wrong.is_empty(), "{mode:?}: {} of {cases} wrong:\n{}", wrong.len(), wrong.join("\n"));
    scene.stop().await;
    Some(cases)
}

fn describe(group: &Group, row: &Row, protocol: Protocol, ipv6: bool, found: &str) -> String {
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    format!(
        "{}: {:?} to {:?}, {protocol:?}, {family}: {:?}: {found}",
        group.name, row.from, row.to, row.expect
    )
}

/// One row in one family and protocol: what becomes of the attempt, and what is counted where.
async fn case(scene: &Scene, row: &Row, protocol: Protocol, ipv6: bool) -> Result<(), String> {
    let before = scene.drops().await;
    let denied = match &row.expect {
        Expect::Denied(pod, direction) => {
            let key = ((*pod).to_owned(), direction.name(), direction.reason());
            return denied(scene, row, protocol, ipv6, &before, key).await;
        }
        Expect::Nothing => {
            let outcome = scene.attempt(row, SERVED, protocol, ipv6).await;
            (outcome == "silent").then_some(()).ok_or(outcome)
        }
        Expect::Refused => {
            let outcome = scene.attempt(row, SERVED, protocol, ipv6).await;
            (outcome == "refused").then_some(()).ok_or(outcome)
        }
        Expect::Open(server, seen) => {
            let client = match seen {
                Seen::Itself => scene.address(&row.from, ipv6),
                Seen::Node(node) => scene.node_address(node, ipv6),
            };
            let outcome = scene.attempt(row, SERVED, protocol, ipv6).await;
            if outcome == format!("{server} {client}") {
                // The backend's ICMP error finds its way back through the translation.
                let outcome = scene.attempt(row, REJECTED, protocol, ipv6).await;
                (outcome == "refused").then_some(()).ok_or(format!("open, but the rejected port: {outcome}"))
            } else {
                Err(outcome)
            }
        }
    };
    let counted = scene.drops().await.since(&before);
    match denied {
        Ok(()) if counted.is_empty() => Ok(()),
        Ok(()) => Err(format!("dropped {counted:?}")),
        Err(outcome) => Err(format!("{outcome}, dropped {counted:?}")),
    }
}

/// A denied attempt: its one packet is counted once, with the reason, at the right endpoint; nothing comes back.
async fn denied(
    scene: &Scene,
    row: &Row,
    protocol: Protocol,
    ipv6: bool,
    before: &Drops,
    key: (String, &'static str, &'static str),
) -> Result<(), String> {
    let mut counted = BTreeMap::new();
    let dropped = async {
        await_until("dropped", SOON, async || {
            counted = scene.drops().await.since(before);
            Ok(!counted.is_empty())
        })
        .await
    };
    tokio::select! {
        // The attempt is still waiting when its packet has been dropped; else it is not denied.
        biased;
        outcome = scene.attempt(row, SERVED, protocol, ipv6) => {
            let counted = scene.drops().await.since(before);
            Err(format!("{outcome}, dropped {counted:?}"))
        }
        dropped = dropped => {
            let (key, only) = (format!("{key:?}"), counted.iter().next().map(|(k, n)| (format!("{k:?}"), *n)));
            match dropped {
                Ok(()) if counted.len() == 1 && only == Some((key, 1)) => Ok(()),
                _ => Err(format!("dropped {counted:?}")),
            }
        }
    }
}

#[tokio::test]
async fn policy_holds_behind_services_in_kube_proxys_iptables_mode() {
    if let Some(cases) = table(Mode::Iptables).await {
        println!("cases: {cases}");
    }
}

#[tokio::test]
async fn policy_holds_behind_services_in_kube_proxys_nftables_mode() {
    if let Some(cases) = table(Mode::Nftables).await {
        println!("cases: {cases}");
    }
}
