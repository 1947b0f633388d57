//! Fairlead on a real cluster: installed by its manifest, beside containerd, kubelets and kube-proxy.
#![expect(clippy::unwrap_used, reason = "tests, and what they share")]

mod shop;
mod upstream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use fairlead_tests::kubernetes::machine::Machine;
use fairlead_tests::kubernetes::traffic::{Flow, Tally};
use fairlead_tests::kubernetes::{Families, Kubernetes, NAMES, Options, Proxy, SOON};
use fairlead_tests::state::{differences, state};
use fairlead_tests::wait::await_until;
use fairlead_tests::world::{self, Object};
use serde_json::{Value, json};

/// Namespace of the pods that only fill the nodes.
const CROWD: &str = "crowd";
/// Pods of each node, those of the shop with them.
const PODS: usize = 30;

/// The image, as `cargo xtask image` has made it.
fn image() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/image/fairlead.tar").canonicalize().unwrap()
}

/// What a node is like, but for what Kubernetes itself does to it: kube-proxy and the kubelet write rules when they start, and
/// forget those of a Service when it suits them.
async fn state_of(machine: &Machine) -> BTreeMap<String, String> {
    let (bin, cni) = (machine.path("/opt/cni"), machine.path("/etc/cni"));
    let places = [&bin, &cni, Path::new("/run/fairlead"), Path::new("/sys/fs/bpf")];
    let mut state = state(&machine.namespace, &places).await.unwrap();
    // The BPF file system stays mounted, since others may use it; the kernel puts these there.
    state.retain(|name, _| !["/sys/fs/bpf/maps.debug", "/sys/fs/bpf/progs.debug"].contains(&name.as_str()));
    let rules = state.get_mut("nftables").unwrap();
    *rules = not_of_iptables(rules);
    for program in ["iptables-save", "ip6tables-save"] {
        let saved = machine.run(program, &[]).await.unwrap();
        let saved = String::from_utf8(saved.stdout).unwrap();
        let others = saved.lines().filter(|line| line.starts_with("-A ") && !line.contains("KUBE-"));
        state.insert(program.to_owned(), others.collect::<Vec<_>>().join("\n"));
    }
    state
}

/// Those of nftables' tables that are not made by iptables, which has its own way of telling what is in its own.
fn not_of_iptables(rules: &str) -> String {
    let mut kept = true;
    let lines = rules.lines().filter(|line| {
        if let Some(table) = line.strip_prefix("table ") {
            let words: Vec<&str> = table.split_whitespace().collect();
            let theirs =
                matches!(words[..2], ["ip" | "ip6", "raw" | "mangle" | "nat" | "filter" | "security"]);
            kept = !theirs;
        }
        kept
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn tables_of_iptables_are_told_from_others() {
    let rules = "table ip nat {\n\tchain A {\n\t}\n}\ntable inet fairlead {\n\tset b {\n\t}\n}\ntable ip6 filter {\n}\n";
    assert_eq!(not_of_iptables(rules), "table inet fairlead {\n\tset b {\n\t}\n}");
}

// Its name is known to `cargo xtask test`, which builds what it needs.
#[tokio::test]
async fn fairlead_on_real_nodes() {
    if !fairlead_tests::privileged() {
        return;
    }
    let options = Options { families: Families::Dual, proxy: Proxy::Iptables };
    let cluster = Kubernetes::start(options).await.unwrap();
    // kube-proxy has written its rules, and the kubelet has said that it has no network.
    await_until("nodes known", SOON, async || {
        let nodes = cluster.get(&["nodes"]).await?;
        Ok(nodes["items"].as_array().is_some_and(|all| all.len() == NAMES.len()))
    })
    .await
    .unwrap();
    for machine in cluster.machines() {
        await_until("kube-proxy's rules", SOON, async || {
            let rules = machine.run("iptables-save", &["-t", "nat"]).await?;
            Ok(String::from_utf8_lossy(&rules.stdout).contains("default/kubernetes:https"))
        })
        .await
        .unwrap();
    }
    let mut before = Vec::new();
    for machine in cluster.machines() {
        before.push(state_of(machine).await);
    }

    cluster.install(&image()).await.unwrap();
    cluster.await_ready().await.unwrap();
    crowd(&cluster).await;
    shop::policies_hold(&cluster).await;
    restart(&cluster).await;
    upstream::specs_pass(&cluster).await;
    uninstall(&cluster, &before).await;
}

/// Fills the nodes with pods, and waits until all of them are Ready.
async fn crowd(cluster: &Kubernetes) {
    let shop = shop::objects();
    let of_shop = |node: &str| shop.iter().filter(|o| o["spec"]["nodeName"] == node).count();
    let mut objects = vec![world::namespace(CROWD, json!({}))];
    for node in NAMES {
        objects.push(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"namespace": CROWD, "name": node},
            "spec": {
                "replicas": PODS - of_shop(node),
                "selector": {"matchLabels": {"on": node}},
                "template": {
                    "metadata": {"labels": {"on": node}},
                    "spec": {
                        "nodeName": node,
                        "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "pause", "image": "fairlead.dev/tests/pause:1",
                                        "command": ["/pause"]}],
                    },
                },
            },
        }));
    }
    objects.extend(shop);
    cluster.apply(&objects).await.unwrap();
    let count = async |namespace| cluster.await_pods(namespace).await.unwrap().len();
    await_until("the whole crowd", SOON, async || {
        Ok(count(CROWD).await + count(fairlead_tests::shop::NAMESPACE).await == NAMES.len() * PODS)
    })
    .await
    .unwrap();
}

/// A rolling restart of the DaemonSet: no packet of an allowed flow is lost, no denied one comes through.
async fn restart(cluster: &Kubernetes) {
    let pods = cluster.await_pods(CROWD).await.unwrap();
    let on = |node: &str, number: usize| -> Object {
        pods.iter().filter(|p| p["spec"]["nodeName"] == node).nth(number).unwrap().clone()
    };
    let name = |pod: &Object| pod["metadata"]["name"].as_str().unwrap().to_owned();
    let [client, near, far] = [on(NAMES[0], 0), on(NAMES[0], 1), on(NAMES[1], 0)];
    let denied = on(NAMES[1], 1);
    for (pod, role) in [(&client, "client"), (&near, "open"), (&far, "open"), (&denied, "closed")] {
        let label = format!("role={role}");
        cluster.kubectl(&["label", "pod", "-n", CROWD, &name(pod), &label]).await.unwrap();
    }
    let only_open = |role: &str, from: Value| {
        world::policy(
            CROWD,
            role,
            json!({"podSelector": {"matchLabels": {"role": role}}, "ingress": [{"from": [from]}]}),
        )
    };
    let clients = json!({"podSelector": {"matchLabels": {"role": "client"}}});
    let nobody = json!({"podSelector": {"matchLabels": {"role": "nobody"}}});
    cluster.apply(&[only_open("open", clients), only_open("closed", nobody)]).await.unwrap();
    let from = cluster.enter(CROWD, &name(&client)).await.unwrap();
    let mut flows = Vec::new();
    for (pod, open) in [(&near, true), (&far, true), (&denied, false)] {
        let to = cluster.enter(CROWD, &name(pod)).await.unwrap();
        for ipv6 in [false, true] {
            let address = SocketAddr::new(Kubernetes::address(pod, ipv6).unwrap(), 9999);
            await_until("policy in force", SOON, async || {
                let flow = Flow::start(&from, &to, address).await?;
                await_until("traffic", SOON, async || Ok(flow.so_far().sent >= 20)).await?;
                let Tally { sent, received } = flow.end().await;
                Ok(received == if open { sent } else { 0 })
            })
            .await
            .unwrap();
            flows.push((Flow::start(&from, &to, address).await.unwrap(), open));
        }
    }
    let words = ["-n", "fairlead", "rollout"];
    cluster.kubectl(&[&words[..], &["restart", "daemonset/fairlead"]].concat()).await.unwrap();
    let status = ["status", "daemonset/fairlead", "--timeout=180s"];
    cluster.kubectl(&[&words[..], &status].concat()).await.unwrap();
    for (flow, open) in flows {
        let before = flow.so_far().sent;
        await_until("traffic after the restart", SOON, async || Ok(flow.so_far().sent > before + 100))
            .await
            .unwrap();
        let Tally { sent, received } = flow.end().await;
        assert_eq!(received, if open { sent } else { 0 }, "of {sent}, open: {open}");
    }
}

/// Takes Fairlead away: the nodes are as they were.
async fn uninstall(cluster: &Kubernetes, before: &[BTreeMap<String, String>]) {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/fairlead.yaml");
    let shop = fairlead_tests::shop::NAMESPACE;
    cluster.kubectl(&["delete", "namespace", CROWD, shop, "--timeout=180s"]).await.unwrap();
    cluster.kubectl(&["delete", "-f", manifest, "--timeout=180s"]).await.unwrap();
    for (machine, before) in cluster.machines().iter().zip(before) {
        let command = fairlead_tests::dist().join("fairlead");
        await_until("sandboxes gone", SOON, async || {
            let out = machine
                .run("ctr", &["-a", "/run/containerd/containerd.sock", "-n", "k8s.io", "c", "ls", "-q"]);
            Ok(out.await?.stdout.is_empty())
        })
        .await
        .unwrap();
        let done = machine.run(command.to_str().unwrap(), &["uninstall", "--verify", "-o", "json"]).await;
        let report: Value = serde_json::from_slice(&done.unwrap().stdout).unwrap();
        assert_eq!((&report["left"], &report["problems"]), (&json!([]), &json!([])), "{}", machine.name);
        let mut left = Vec::new();
        let waited = await_until("the node as it was", SOON, async || {
            left = differences(before, &state_of(machine).await);
            Ok(left.is_empty())
        })
        .await;
        assert!(waited.is_ok(), "{}: {left:#?}", machine.name);
    }
}
