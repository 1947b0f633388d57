//! A directory of manifests and an API server that hold the same mean the same.

use std::path::Path;

use fairlead_tests::agent::Source;
use fairlead_tests::world::{self, PodSpec, World};
use serde_json::Value;

use crate::lab::{Lab, NODE, running};

#[tokio::test]
async fn manifests_and_the_api_server_mean_the_same() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut lab = Lab::with_agent().await;
    let mut objects =
        world::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/online-boutique")).unwrap();
    objects.sort_by_key(|o| world::kind(o) != "Namespace");
    // The API server has these of its own; and the node is there already.
    objects.retain(|o| world::kind(o) != "Node" || o["metadata"]["name"] != NODE);
    for (i, object) in objects.iter_mut().filter(|o| world::kind(o) == "Pod").enumerate() {
        *object = running(object.clone(), &format!("10.244.1.{}", 100 + i));
    }
    for object in &objects {
        lab.control.apply(object).await.unwrap();
    }
    let pods: Vec<(String, u16)> = objects
        .iter()
        .filter(|o| world::kind(o) == "Pod")
        .map(|o| {
            let spec = PodSpec::of(o).unwrap();
            // The load generator serves nothing.
            (format!("{}/{}", spec.namespace, spec.name), spec.ports.first().copied().unwrap_or(80))
        })
        .collect();
    let policies = objects.iter().filter(|o| world::kind(o) == "NetworkPolicy").count();
    let all = move |s: &Value| s["counts"]["policies"] == policies && s["problems"] == serde_json::json!([]);
    lab.until_status("everything", all).await;
    let by_server = (matrix(&lab, &pods).await, counts(&lab).await);
    assert!(by_server.0.contains(&true) && by_server.0.contains(&false));

    let world = World::new(lab.folder().join("manifests")).unwrap();
    let own = world::node(NODE, &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]);
    for object in objects.iter().chain([&own]) {
        world.apply(object).unwrap();
    }
    lab.start_agent(Source::Manifests(world.path())).await;
    lab.until_status("everything", all).await;
    let by_manifests = (matrix(&lab, &pods).await, counts(&lab).await);
    assert_eq!(by_server, by_manifests);
    println!("cases: {}", by_server.0.len());
}

/// Who may reach whom.
async fn matrix(lab: &Lab, pods: &[(String, u16)]) -> Vec<bool> {
    let mut all = Vec::new();
    for (from, _) in pods {
        for (to, port) in pods {
            all.push(lab.allows_on(from, to, *port).await);
        }
    }
    all
}

/// What is known, but for the namespaces that every API server has.
async fn counts(lab: &Lab) -> Value {
    let mut counts = lab.status().await["counts"].clone();
    counts.as_object_mut().unwrap().remove("namespaces");
    counts
}
