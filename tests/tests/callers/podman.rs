//! podman with its CNI backend: containers from a local root file system, wired by Fairlead.

use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fairlead_tests::namespace::Namespace;
use fairlead_tests::wait::await_until;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::Lab;

/// Tells its name to whoever connects, over either family.
const SERVER: &str = r#"
    my $s = IO::Socket::IP->new(LocalHost => "::", LocalPort => 80, V6Only => 0, Listen => 5) or die "$@";
    while (my $c = $s->accept) { print $c "I am $ARGV[0]"; close $c }
"#;
/// Prints what the server at an address says.
const CLIENT: &str = r#"
    my $c = IO::Socket::IP->new(PeerHost => $ARGV[0], PeerPort => 80, Timeout => 5) or die "$ARGV[0]: $@";
    print <$c>;
"#;

/// podman on a node, with folders of its own.
struct Podman<'a> {
    node: &'a Namespace,
    folder: tempfile::TempDir,
}

impl<'a> Podman<'a> {
    async fn new(lab: &'a Lab) -> Self {
        let node = lab.node();
        let mounted = node.run(|| {
            let none = None::<&Path>;
            // podman and crun want one hierarchy of cgroups, and podman keeps what it has below /run.
            mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)?;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)
        });
        mounted.await.unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("rootfs");
        for name in ["usr", "etc", "proc", "dev", "sys", "run", "tmp", "var"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["bin", "lib", "lib64"] {
            symlink(Path::new("usr").join(name), root.join(name)).unwrap();
        }
        let configurations = &lab.cluster.node("node-a").unwrap().folders.cni;
        let settings = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{:?}]\nnetwork_config_dir = {configurations:?}\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n",
            lab.bin.path()
        );
        std::fs::write(folder.path().join("containers.conf"), settings).unwrap();
        Self { node, folder }
    }

    async fn call(&self, words: &[&str]) -> String {
        let folder = self.folder.path();
        let mut command = Command::new("podman");
        for (flag, below) in [("--root", "root"), ("--runroot", "runroot"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(folder.join(below));
        }
        command.args(["--runtime", "crun", "--storage-driver", "vfs"]).args(words);
        command.env("CONTAINERS_CONF", folder.join("containers.conf"));
        let said = self.node.run(move || command.output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.status.success(), "{words:?}: {text} {}", String::from_utf8_lossy(&said.stderr));
        text
    }

    async fn start(&self, name: &str, more: &[&str]) {
        let rootfs = self.folder.path().join("rootfs");
        // No cgroups: this machine's controllers may be another hierarchy's.
        let plain = ["run", "--detach", "--network", "fairlead", "--cgroups", "disabled", "--name", name];
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let perl = ["--volume", "/usr:/usr:ro", "--rootfs", rootfs.to_str().unwrap(), "/usr/bin/perl"];
        let program = ["-MIO::Socket::IP", "-e", SERVER, name];
        self.call(&[&plain[..], &limits, more, &perl, &program].concat()).await;
    }

    /// What a container hears from an address; nothing while nobody listens there.
    async fn hears(&self, container: &str, address: IpAddr) -> String {
        let to = address.to_string();
        self.call(&["exec", container, "/usr/bin/perl", "-MIO::Socket::IP", "-e", CLIENT, &to]).await
    }
}

/// What the node hears from an address.
async fn node_hears(node: &Namespace, address: IpAddr) -> Option<String> {
    let heard = node.run(move || {
        let mut stream = std::net::TcpStream::connect((address, 80))?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).map(|_| text)
    });
    heard.await.unwrap().ok()
}

#[tokio::test]
async fn containers_of_podman_reach_each_other_and_the_node_and_go_cleanly() {
    let Some(lab) = Lab::new(&["portmap"]).await else { return };
    let podman = Podman::new(&lab).await;
    assert!(podman.call(&["network", "ls", "--format", "{{.Name}}"]).await.lines().any(|n| n == "fairlead"));
    for name in ["one", "two"] {
        podman.start(name, &[]).await;
    }
    podman.start("three", &["--ip", "10.244.1.77", "--mac-address", "02:00:00:00:00:77"]).await;

    // What podman knows is what Fairlead has, and none of it is a pod of Kubernetes.
    let endpoints = lab.cluster.node("node-a").unwrap().endpoints().await.unwrap();
    assert_eq!(endpoints.len(), 3);
    let mut all = Vec::new();
    for name in ["one", "two", "three"] {
        let text = podman
            .call(&["inspect", "--format", "{{.Id}} {{json .NetworkSettings.Networks.fairlead}}", name])
            .await;
        let (id, network) = text.split_once(' ').unwrap();
        let network: Value = serde_json::from_str(network).unwrap();
        let endpoint = endpoints.iter().find(|e| e.attachment.container_id == id).unwrap();
        assert!(endpoint.unlocked && endpoint.attachment.pod.is_none());
        let [v4, v6] = endpoint.attachment.addresses[..] else { unreachable!("{endpoint:?}") };
        assert_eq!(network["IPAddress"], json!(v4));
        assert_eq!(network["GlobalIPv6Address"], json!(v6));
        all.push((name, [v4, v6]));
    }
    assert_eq!(all[2].1[0], "10.244.1.77".parse::<IpAddr>().unwrap());
    for (name, addresses) in &all {
        for address in addresses {
            // The node's answer says that the server listens.
            await_until("the container listens", Duration::from_secs(20), async || {
                Ok(node_hears(podman.node, *address).await == Some(format!("I am {name}")))
            })
            .await
            .unwrap();
        }
    }
    for (from, _) in &all {
        for (name, addresses) in all.iter().filter(|(name, _)| name != from) {
            for address in addresses {
                assert_eq!(podman.hears(from, *address).await, format!("I am {name}"), "{from} to {address}");
            }
        }
    }
    // And the node, from a container.
    let node = lab.cluster.node("node-a").unwrap().spec.addresses.clone();
    for address in node {
        let listener =
            podman.node.run(move || std::net::TcpListener::bind((address, 80))).await.unwrap().unwrap();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::Write::write_all(&mut stream, b"I am the node").unwrap();
        });
        assert_eq!(podman.hears("one", address).await, "I am the node");
        answering.join().unwrap();
    }

    podman.call(&["rm", "--force", "--time", "0", "one", "two", "three"]).await;
    assert_eq!(lab.interfaces().await, [""; 0]);
    let node = lab.cluster.node("node-a").unwrap();
    assert!(node.endpoints().await.unwrap().is_empty());
    let shown = node.fairlead(&["ipam", "-o", "json"]).await.unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["addresses"], &shown["faults"]), (&json!([]), &json!([])));
    lab.cluster.stop().await.unwrap();
}
