//! Callers that are not ours: the CNI project's `cnitool`, with plugins of the CNI project before and
//! behind. They call the executables that were built, on nodes with running agents.
#![expect(clippy::unwrap_used, reason = "tests, and what they share")]

mod chained;
mod killed;
mod podman;
mod verbs;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fairlead_tests::cluster::Cluster;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::world;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

/// Where Debian's containernetworking-plugins are.
const DEBIAN: &str = "/usr/lib/cni";

/// A cluster of one node, and a folder of plugins that its agent installs Fairlead's into.
struct Lab {
    cluster: Cluster,
    bin: tempfile::TempDir,
}

/// What `cnitool` said.
struct Said {
    ok: bool,
    out: String,
    err: String,
}

impl Said {
    fn success(self) -> Value {
        assert!(self.ok, "{} {}", self.out, self.err);
        if self.out.trim().is_empty() { Value::Null } else { serde_json::from_str(&self.out).unwrap() }
    }
}

impl Lab {
    /// `None` without privileges. `plugins`: those of Debian that are installed on the node.
    async fn new(plugins: &[&str]) -> Option<Self> {
        if !fairlead_tests::privileged() {
            return None;
        }
        let bin = tempfile::tempdir().unwrap();
        for plugin in plugins {
            let executable = Path::new(DEBIAN).join(plugin);
            assert!(executable.exists(), "{} (`cargo xtask setup`)", executable.display());
            symlink(executable, bin.path().join(plugin)).unwrap();
        }
        let node =
            world::node("node-a", &["172.20.0.11", "fd20::11"], &["10.244.1.0/24", "fd10:244:0:1::/64"]);
        let flags = ["--cni-bin-dir", bin.path().to_str().unwrap()];
        let cluster = Cluster::start(&[node], &flags).await.unwrap();
        // cnitool keeps its cache below /var/lib/cni.
        let mounted = cluster
            .node("node-a")
            .unwrap()
            .namespace
            .run(|| mount(Some("tmpfs"), "/var/lib", Some("tmpfs"), MsFlags::empty(), None::<&Path>));
        mounted.await.unwrap().unwrap();
        Some(Self { cluster, bin })
    }

    fn node(&self) -> &Namespace {
        &self.cluster.node("node-a").unwrap().namespace
    }

    /// `cnitool VERB NETWORK NETNS` on the node.
    async fn cnitool(&self, verb: &str, network: &str, pod: &Namespace, capabilities: &Value) -> Said {
        let tool = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/bin/cnitool"));
        assert!(tool.exists(), "{} (`cargo xtask setup`)", tool.display());
        let mut command = Command::new(tool);
        command
            .args([verb, network])
            .arg(pod.path())
            .env("CNI_PATH", self.bin.path())
            .env("NETCONFPATH", &self.cluster.node("node-a").unwrap().folders.cni)
            .env("CAP_ARGS", capabilities.to_string())
            .stdin(Stdio::null());
        let output = self.node().run(move || command.output()).await.unwrap().unwrap();
        Said {
            ok: output.status.success(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// A second network, of these plugins, in the version that Debian's speak.
    fn network(&self, name: &str, plugins: &Value) {
        let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins});
        let folder = &self.cluster.node("node-a").unwrap().folders.cni;
        std::fs::write(folder.join(format!("90-{name}.conflist")), list.to_string()).unwrap();
    }

    /// Fairlead's own entry in a list.
    fn fairlead(&self, more: &Value) -> Value {
        let run = self.cluster.node("node-a").unwrap().folders.run.path().to_owned();
        let mut entry = json!({"type": "fairlead-cni", "runDir": run});
        for (key, value) in more.as_object().unwrap() {
            entry[key] = value.clone();
        }
        entry
    }

    /// Names of the node's interfaces that an attachment brought.
    async fn interfaces(&self) -> Vec<String> {
        let names = self.node().run(|| {
            let all = nix::net::if_::if_nameindex().unwrap();
            all.iter().map(|i| i.name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        });
        let mut names = names.await.unwrap();
        names.retain(|n| n != "fl-overlay" && (n.starts_with("fl") || n.starts_with("bwp")));
        names.sort();
        names
    }

    /// Output of a command on the node that must succeed.
    async fn node_says(&self, command: &str) -> String {
        run(self.node(), command).await
    }
}

async fn run(namespace: &Namespace, command: &str) -> String {
    let mut words = command.split(' ').map(str::to_owned);
    let mut process = Command::new(words.next().unwrap());
    process.args(words).stdin(Stdio::null());
    let output = namespace.run(move || process.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Addresses in a result, in its order.
fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}
