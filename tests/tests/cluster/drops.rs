//! `fairlead drops`.

use fairlead_api::drops::DropLine;
use fairlead_tests::cluster::{Cluster, SOON};
use fairlead_tests::wait::await_until;

use crate::{OTHER, PORT, attempt, cluster, enforce, only_from};

async fn drops(cluster: &Cluster, words: &[&str]) -> Vec<DropLine> {
    let words = [&["drops", "-o", "json"], words].concat();
    let output = cluster.node("node-b").unwrap().fairlead(&words).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[tokio::test]
async fn a_denied_connection_is_told_with_both_pods_and_the_policy() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut cluster = cluster(&[("a1", "node-a"), ("a2", "node-a"), ("b1", "node-b")]).await;
    enforce(&mut cluster, &only_from("b1", "a1"), "b1").await;
    assert!(attempt(&cluster, "a1", "b1", PORT, true).await.is_open());
    // Other packets are dropped, too: what pods send to multicast groups.
    let denied = ["--pod", "t/b1", "--reason", "ingress_denied"];
    for (from, port, ipv6) in [("a2", PORT, false), ("a1", OTHER, true)] {
        let before = drops(&cluster, &denied).await.len();
        assert!(attempt(&cluster, from, "b1", port, ipv6).await.is_silent());
        // A SYN, and the one that TCP sent again within the limit.
        await_until("told", SOON, async || Ok(drops(&cluster, &denied).await.len() >= before + 2))
            .await
            .unwrap();
        let all = drops(&cluster, &denied).await;
        assert_eq!(all.len(), before + 2);
        for line in &all[before..] {
            let DropLine::Event(event) = line else { panic!("{line:?}") };
            let name = |end: &fairlead_api::drops::End| end.pod.as_ref().unwrap().to_string();
            assert_eq!(
                (name(&event.source), name(&event.destination)),
                (format!("t/{from}"), "t/b1".to_owned())
            );
            assert_eq!(event.source.address, Some(cluster.pod(from).unwrap().address(ipv6).unwrap()));
            assert_eq!(event.destination.port, Some(port));
            assert_eq!((event.protocol.as_str(), event.direction.as_str()), ("tcp", "ingress"));
            let policy = event.policy.as_ref().unwrap();
            assert_eq!(
                policy.isolated_by.iter().map(ToString::to_string).collect::<Vec<_>>(),
                ["t/b1-from-a1"]
            );
            assert_eq!((policy.allowed_by.len(), event.missed, event.policy_changed), (0, 0, false));
        }
        assert_eq!(drops(&cluster, &["--pod", &format!("t/{from}")]).await.len(), 2);
    }
    assert_eq!(drops(&cluster, &["--reason", "egress_denied"]).await, []);
    let output = cluster.node("node-b").unwrap().fairlead(&["drops"]).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let wanted =
        "no policy of t/b1 allows ingress from t/a2 on 80/tcp; policies that isolate it: t/b1-from-a1";
    assert_eq!(text.lines().filter(|line| line.trim() == wanted).count(), 2, "{text}");
    cluster.stop().await.unwrap();
}
