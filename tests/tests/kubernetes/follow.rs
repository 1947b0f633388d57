//! What the API server says takes effect.

use fairlead_tests::agent::Source;
use fairlead_tests::world;
use serde_json::json;

use crate::lab::{Lab, manifest, only_from, pod, running};

#[tokio::test]
async fn the_agent_follows_the_api_server_with_the_rights_of_the_manifest() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut lab = Lab::with_agent().await;
    for object in [
        world::namespace("shop", json!({"team": "shop"})),
        world::namespace("other", json!({"team": "other"})),
        pod("shop", "web", json!({"app": "web"})),
        running(pod("other", "client", json!({"role": "client"})), "10.244.1.200"),
    ] {
        lab.control.apply(&object).await.unwrap();
    }
    let (from, to) = ("other/client", "shop/web");
    lab.until_status("all pods known", |s| s["counts"]["pods"] == 2).await;
    assert!(lab.allows(from, to).await);

    // A policy, created and changed.
    let policy = only_from("shop", "web", json!({"role": "client"}), json!({"team": "shop"}));
    lab.control.apply(&policy).await.unwrap();
    lab.until_allows(from, to, false).await;
    let wider = only_from("shop", "web", json!({"role": "client"}), json!({"team": "other"}));
    lab.control.apply(&wider).await.unwrap();
    lab.until_allows(from, to, true).await;

    // Labels of a namespace, and of a pod.
    lab.control.apply(&world::namespace("other", json!({"team": "none"}))).await.unwrap();
    lab.until_allows(from, to, false).await;
    lab.control.apply(&world::namespace("other", json!({"team": "other"}))).await.unwrap();
    lab.until_allows(from, to, true).await;
    lab.control
        .apply(&running(pod("other", "client", json!({"role": "server"})), "10.244.1.200"))
        .await
        .unwrap();
    lab.until_allows(from, to, false).await;
    lab.control
        .apply(&running(pod("other", "client", json!({"role": "client"})), "10.244.1.200"))
        .await
        .unwrap();
    lab.until_allows(from, to, true).await;

    // A pod that is created and added at once has its policy when ADD returns.
    let deny =
        world::policy("shop", "deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    lab.control.apply(&deny).await.unwrap();
    lab.until_status("the policy known", |s| s["counts"]["policies"] == 2).await;
    for i in 0..5 {
        let new = lab.control.apply(&pod("shop", &format!("new-{i}"), json!({"app": "new"}))).await.unwrap();
        let sandbox = lab.add(&new).await.unwrap();
        let endpoints = lab.endpoints().await;
        let endpoint =
            endpoints.iter().find(|e| e.attachment.container_id == sandbox.attach.container_id).unwrap();
        assert!(endpoint.unlocked && endpoint.ingress_isolated && endpoint.egress_isolated);
    }

    // Deletion.
    lab.control.delete(&deny).await.unwrap();
    lab.control.delete(&wider).await.unwrap();
    lab.until_status("the policies gone", |s| s["counts"]["policies"] == 0).await;
    lab.control.delete(&pod("other", "client", json!({}))).await.unwrap();
    lab.until_status("the pod gone", |s| s["counts"]["pods"] == 6).await;
    // Every right that was needed was there.
    assert_eq!(lab.status().await["problems"], json!([]));
}

#[tokio::test]
async fn a_client_certificate_is_replaced_without_a_restart() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut lab = Lab::new().await;
    let user = "system:serviceaccount:fairlead:fairlead";
    let user_files = ["client.pem", "client.key"].map(|name| lab.folder().join(name));
    let write = |lab: &Lab, user: &str| {
        let (certificate, key) = lab.control.certificate(user, "tests").unwrap();
        std::fs::write(&user_files[1], key).unwrap();
        std::fs::write(&user_files[0], certificate).unwrap();
    };
    write(&lab, user);
    let credentials = json!({"client-certificate": user_files[0], "client-key": user_files[1]});
    let kubeconfig = lab.kubeconfig(&credentials);
    lab.start_agent(Source::Kubeconfig(&kubeconfig)).await;
    // A user without rights: the new certificate is in use when it says so.
    write(&lab, "nobody");
    lab.until_status("without rights", |s| s["problems"].to_string().contains("forbidden")).await;
    write(&lab, user);
    lab.control.apply(&world::namespace("late", json!({}))).await.unwrap();
    lab.control.apply(&pod("late", "late", json!({}))).await.unwrap();
    lab.until_status("with rights again", |s| s["problems"] == json!([]) && s["counts"]["pods"] == 1).await;
}

#[tokio::test]
async fn the_api_server_accepts_every_object_of_the_manifests() {
    if !fairlead_tests::privileged() {
        return;
    }
    // What was applied is complete, and so is what would be applied again: nothing is left to chance.
    let lab = Lab::new().await;
    let taint = include_str!("../../../manifests/taint/rights.yaml");
    for object in manifest().into_iter().chain(world::parse(taint).unwrap()) {
        let accepted = lab.control.would_accept(&object).await.unwrap();
        assert_eq!(accepted["kind"], object["kind"]);
    }
    let mut wrong = manifest().into_iter().find(|o| o["kind"] == "DaemonSet").unwrap();
    wrong["spec"]["template"]["spec"]["hostNetwrok"] = json!(true);
    let error = format!("{:#}", lab.control.would_accept(&wrong).await.unwrap_err());
    assert!(error.contains("hostNetwrok"), "{error}");
}
