//! After an uninstall a node is as it was.
#![expect(clippy::unwrap_used, reason = "tests, and what they share")]

use std::path::Path;
use std::process::{Command, Output};

use fairlead_tests::agent::{Agent, BPFFS, Folders, Source};
use fairlead_tests::fabric;
use fairlead_tests::namespace::{Namespace, sysctl};
use fairlead_tests::runtime::{Attach, IFNAME, Runtime};
use fairlead_tests::state::{differences, said, state};
use fairlead_tests::world::{self, World};
use serde_json::{Value, json};

async fn uninstall(node: &Namespace, folders: &Folders, bin: &Path) -> Output {
    let mut command = Command::new(fairlead_tests::dist().join("fairlead"));
    command.args(["uninstall", "--verify", "-o", "json", "--bpffs", BPFFS]);
    command.arg("--run-dir").arg(folders.run.path());
    command.arg("--cni-conf-dir").arg(&folders.cni).arg("--cni-bin-dir").arg(bin);
    node.run(move || command.output()).await.unwrap().unwrap()
}

#[tokio::test]
async fn an_uninstall_leaves_the_node_as_it_was() {
    if !fairlead_tests::privileged() {
        return;
    }
    let folder = tempfile::Builder::new().prefix("fairlead-").tempdir().unwrap();
    let world = World::new(folder.path().join("manifests")).unwrap();
    let host = folder.path().join("host");
    let (bin, folders) = (host.join("bin"), Folders::below(&host));
    for made in [&bin, &folders.cni] {
        std::fs::create_dir_all(made).unwrap();
    }
    // What others have there.
    std::fs::write(bin.join("loopback"), "another plugin").unwrap();
    std::fs::write(folders.cni.join("10-other.conflist"), "{}").unwrap();
    let other = world::node("node-b", &["172.20.0.12"], &["10.244.2.0/24", "fd10:244:0:2::/64"]);
    let own = world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]);
    let pod = world::pod("t", "web", "node-a", &[80]);
    for object in [&own, &other, &world::namespace("t", json!({})), &pod] {
        world.apply(object).unwrap();
    }
    let fabric = fabric::bridge("fabric").await.unwrap();
    let node = Namespace::new_node("node-a").await.unwrap();
    let addresses = ["172.20.0.11/24", "fd20::11/64"].map(|a| a.parse().unwrap());
    fabric::connect(&fabric, &node, &addresses).await.unwrap();
    node.run(|| {
        // As a host is that is no router yet, with strict filters and a route of somebody else's.
        for (key, value) in [
            ("ipv4/ip_forward", "0"),
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/default/rp_filter", "1"),
            ("ipv4/conf/eth0/rp_filter", "1"),
            ("ipv6/conf/all/forwarding", "0"),
        ] {
            sysctl(key, value).unwrap();
        }
        said("ip", &["route", "add", "198.51.100.0/24", "via", "172.20.0.99"]).unwrap();
        said("nft", &["add", "table", "inet", "others"]).unwrap();
    })
    .await
    .unwrap();
    let before = state(&node, &[&host, Path::new("/sys/fs/bpf")]).await.unwrap();

    let mut agent = Agent::spawn(&node, Source::Manifests(world.path()), &folders, &[]).await.unwrap();
    agent.await_ready(&node).await.unwrap();
    let installer = fairlead_tests::dist().join("fairlead");
    let install = Command::new(installer).args(["install", "--to"]).arg(&bin).output().unwrap();
    assert!(install.status.success(), "{install:?}");
    let sandbox = Namespace::new("web").await.unwrap();
    let args = [("K8S_POD_NAMESPACE", "t"), ("K8S_POD_NAME", "web"), ("IgnoreUnknown", "1")];
    let attach = Attach {
        container_id: "c1".to_owned(),
        netns: Some(sandbox.path()),
        ifname: IFNAME.to_owned(),
        args: args.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
    };
    let runtime = Runtime { configurations: folders.cni.clone(), plugins: bin.clone() };
    // The configuration that counts is the first by name: the agent's.
    runtime.add(&node, &attach).await.unwrap();
    let changed = differences(&before, &state(&node, &[&host, Path::new("/sys/fs/bpf")]).await.unwrap());
    for what in ["links", "routes", "nftables", "/sys/fs/bpf", "ip_forward", "00-fairlead.conflist"] {
        assert!(changed.iter().any(|c| c.contains(what)), "{what} should have changed: {changed:#?}");
    }

    // Not while an agent would make it all again.
    let refused = uninstall(&node, &folders, &bin).await;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert_eq!(agent.terminate().await.unwrap().code(), Some(0));
    let done = uninstall(&node, &folders, &bin).await;
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((done.status.code(), &report["left"], &report["problems"]), (Some(0), &json!([]), &json!([])));
    let kinds = |report: &Value| {
        let found = report["found"].as_array().unwrap().iter();
        found.map(|t| t["kind"].as_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(kinds(&report), ["file", "interface", "pin", "route", "rule"].map(str::to_owned).into());
    // The log of the agent is the test's.
    std::fs::remove_file(&folders.log).unwrap();
    let left = differences(&before, &state(&node, &[&host, Path::new("/sys/fs/bpf")]).await.unwrap());
    assert_eq!(left, Vec::<String>::new());

    // Twice is fine.
    let again = uninstall(&node, &folders, &bin).await;
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((again.status.code(), &report["found"]), (Some(0), &json!([])));
}
