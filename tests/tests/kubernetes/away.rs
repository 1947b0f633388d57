//! The API server away, and back.

use fairlead_tests::control_plane::{apply, delete};
use fairlead_tests::runtime::CniError;
use fairlead_tests::world;
use serde_json::json;

use crate::lab::{Lab, only_from, pod, running};

#[tokio::test]
async fn while_the_api_server_is_away_all_stays_and_known_pods_start() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut lab = Lab::with_agent().await;
    let web = pod("shop", "web", json!({"app": "web"}));
    lab.control.apply(&world::namespace("shop", json!({"team": "shop"}))).await.unwrap();
    let web_made = lab.control.apply(&web).await.unwrap();
    let known = lab.control.apply(&pod("shop", "known", json!({"app": "web"}))).await.unwrap();
    let goes = pod("shop", "goes", json!({}));
    lab.control.apply(&goes).await.unwrap();
    let policy = only_from("shop", "web", json!({"role": "client"}), json!({"team": "shop"}));
    lab.control.apply(&policy).await.unwrap();
    lab.until_status("everything", |s| s["counts"]["pods"] == 3 && s["counts"]["policies"] == 1).await;
    let _web = lab.add(&web_made).await.unwrap();
    let serial = lab.status().await["policySerial"].clone();

    lab.control.kill_server().unwrap();
    lab.until_status("said that it is away", |s| s["problems"].to_string().contains("API server")).await;
    assert_eq!(lab.status().await["policySerial"], serial);
    assert!(!lab.allows("shop/known", "shop/web").await);
    // What is known suffices.
    let _known = lab.add(&known).await.unwrap();
    assert!(lab.endpoints().await.iter().all(|e| e.unlocked && e.ingress_isolated));
    // What is not known does not.
    let mut unknown = pod("shop", "unknown", json!({"role": "client"}));
    unknown["metadata"]["uid"] = json!("u-unknown");
    let error = lab.add(&unknown).await.map(|_| ()).unwrap_err();
    assert_eq!(error.downcast_ref::<CniError>().map(|e| e.code), Some(11), "{error:#}");
    assert_eq!(lab.endpoints().await.len(), 2);

    // The world goes on, where the agent does not see it.
    let elsewhere = 6444;
    lab.control.start_server(elsewhere).await.unwrap();
    let client = running(pod("shop", "client", json!({"role": "client"})), "10.244.1.200");
    let changed = client.clone();
    lab.control
        .on(elsewhere, async move |api| {
            delete(api.clone(), &goes).await?;
            apply(api.clone(), changed, false).await?;
            apply(api, pod("shop", "known", json!({"app": "web", "role": "client"})), false).await
        })
        .await
        .unwrap();
    lab.control.start_server(fairlead_tests::control_plane::PORT).await.unwrap();
    lab.until_allows("shop/client", "shop/web", true).await;
    lab.until_allows("shop/known", "shop/web", true).await;
    lab.until_status("caught up", |s| s["counts"]["pods"] == 3 && s["problems"] == json!([])).await;
    // No endpoint was closed or opened meanwhile by a list that takes away and puts back.
    assert!(lab.endpoints().await.iter().all(|e| e.unlocked && e.ingress_isolated && !e.egress_isolated));
    let client = lab.control.apply(&client).await.unwrap();
    let _client = lab.add(&client).await.unwrap();
}
