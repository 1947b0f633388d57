//! A machine that is a node: namespaces of its own, containerd, a kubelet, kube-proxy.
//!
//! Everything that runs on it is below an init process of a process namespace, so that nothing outlives
//! it, and writes to file systems in memory that only its mount namespace has.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use super::cgroup::Cgroup;
use super::{Proxy, built};
use crate::control_plane::{ControlPlane, log_to, spawn};
use crate::fabric;
use crate::namespace::Namespace;
use crate::wait::await_until;

/// Folders that each node has for itself.
const OWN: [&str; 8] = [
    "/run",
    "/opt/cni",
    "/etc/cni",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/pods",
    "/var/log/containers",
];
/// Where containerd listens.
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Where the distribution has the reference plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// What the kubelet would set for the whole machine: it finds that it is so already.
const KERNEL: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
/// Time that a part may take until it works, on a machine that is busy.
const READY: Duration = Duration::from_secs(120);

/// A node; everything on it ends when this is dropped.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its addresses on the nodes' L2, the first family first.
    pub addresses: Vec<IpAddr>,
    /// Its network and its mounts.
    pub namespace: Arc<Namespace>,
    proxy: Option<Child>,
    /// `unshare`, which runs the init process.
    init: Child,
    /// The init process itself.
    init_id: u32,
    folder: PathBuf,
    /// Last: what runs in it is killed before.
    cgroup: Cgroup,
}

impl Machine {
    /// Makes it and starts its containerd, with the images that tests need.
    pub(super) async fn start(
        fabric: &Namespace,
        folder: &Path,
        name: &str,
        addresses: &[IpNetwork],
    ) -> Result<Self> {
        let folder = folder.join(name);
        for part in ["cgroup", "kernel", "logs"] {
            fs::create_dir_all(folder.join(part)).context("cannot make a folder")?;
        }
        for own in OWN {
            fs::create_dir_all(own).with_context(|| format!("cannot make {own}"))?;
        }
        let cgroup = Cgroup::new(name)?;
        let held = folder.join("cgroup");
        let namespace = Arc::new(Namespace::with_mounts(name, move || mounts(&held)).await?);
        fabric::connect(fabric, &namespace, addresses).await?;
        // Addresses of Services lie nowhere: without a default route nobody on the node could ask for them.
        for gateway in super::CONTROL {
            let gateway: IpNetwork = gateway.parse()?;
            if addresses.iter().any(|a| a.is_ipv4() == gateway.is_ipv4()) {
                let everything = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse()?;
                fabric::route(&namespace, everything, gateway.ip()).await?;
            }
        }
        let (init, init_id) = start_init(&namespace, &folder, name).await?;
        let addresses = addresses.iter().map(|a| a.ip()).collect();
        let name = name.to_owned();
        let machine = Self { name, addresses, namespace, proxy: None, init, init_id, folder, cgroup };
        machine.start_containerd().await?;
        Ok(machine)
    }

    /// A command that will run on it. It has to be spawned in its namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init_id.to_string(), "--mount", "--pid", "--uts", "--"]);
        command.arg(program).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a command on it until it ends.
    ///
    /// # Errors
    /// When it cannot be run, or fails; with what it has said.
    pub async fn run(&self, program: &str, words: &[&str]) -> Result<Output> {
        let mut command = self.command(program);
        command.args(words).stdin(std::process::Stdio::null());
        let output = self.namespace.run(move || command.output()).await??;
        if !output.status.success() {
            bail!("{}: {program} {words:?}: {output:?}", self.name);
        }
        Ok(output)
    }

    /// A path of it as others see it.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        // A symbolic link to /run, which would lead to this process's own.
        let run = path.strip_prefix("/var/run").map(|rest| Path::new("/run").join(rest));
        let path = run.as_deref().unwrap_or(path);
        let root = PathBuf::from(format!("/proc/{}/root", self.init_id));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// What its parts have written.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Puts a program where containerd looks for plugins of CNI.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn install_plugin(&self, from: &Path) -> Result<()> {
        let name = from.file_name().context("no name")?;
        let to = self.path("/opt/cni/bin").join(name);
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        Ok(())
    }

    async fn spawn(&self, name: &str, mut command: Command) -> Result<Child> {
        log_to(&mut command, &self.logs().join(format!("{name}.log")))?;
        spawn(&self.namespace, command).await
    }

    async fn start_containerd(&self) -> Result<()> {
        let bin = self.path("/opt/cni/bin");
        fs::create_dir_all(&bin)?;
        fs::create_dir_all(self.path("/etc/cni/net.d"))?;
        // The others chain some of these; loopback is containerd's own.
        for plugin in ["loopback", "portmap", "bandwidth", "ptp", "host-local"] {
            self.install_plugin(&Path::new(PLUGINS).join(plugin))?;
        }
        let configuration = self.path("/run/containerd.toml");
        fs::write(&configuration, CONTAINERD_TOML)?;
        let mut command = self.command("containerd");
        command.args(["--config", "/run/containerd.toml"]);
        // Killed with the init process.
        drop(self.spawn("containerd", command).await?);
        await_until("containerd", READY, async || Ok(self.ctr(&["version"]).await.is_ok())).await?;
        let images = built("images");
        for image in ["pause.tar", "coredns.tar", "agnhost.tar"] {
            self.import(&images.join(image)).await?;
        }
        Ok(())
    }

    async fn ctr(&self, words: &[&str]) -> Result<Output> {
        self.run("ctr", &[&["-a", CONTAINERD, "-n", "k8s.io"], words].concat()).await
    }

    /// Gives its containerd an image.
    ///
    /// # Errors
    /// When the file is not there, or is no image.
    pub async fn import(&self, image: &Path) -> Result<()> {
        let image = image.to_str().context("a path that is not UTF-8")?;
        self.ctr(&["images", "import", image]).await.map(drop)
    }

    /// Starts the kubelet, as a node of the cluster.
    pub(super) async fn start_kubelet(
        &self,
        control: &ControlPlane,
        server: SocketAddr,
        dns: &str,
    ) -> Result<()> {
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let names: Vec<&str> = addresses.iter().map(String::as_str).chain([self.name.as_str()]).collect();
        let (certificate, key) = control.server_certificate(&self.name, &names)?;
        let (client, client_key) =
            control.certificate(&format!("system:node:{}", self.name), "system:nodes")?;
        let file = |name: &str| self.folder.join(name);
        let user = json!({"client-certificate": file("client.pem"), "client-key": file("client.key")});
        let configuration = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": control.folder().join("ca.pem")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": file("server.pem"),
            "tlsPrivateKeyFile": file("server.key"),
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup.path(),
            "failCgroupV1": false,
            "failSwapOn": false,
            "clusterDomain": "cluster.local",
            "clusterDNS": [dns],
            "resolvConf": file("resolv.conf"),
            // The disk is the machine's, not the node's.
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%",
                             "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "localStorageCapacityIsolation": false,
            "registryPullQPS": 0,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "eventRecordQPS": 0,
            "volumePluginDir": "/var/lib/kubelet/plugins-exec",
            // What is killed again and again is to be back at once, not after five minutes.
            "featureGates": {"KubeletCrashLoopBackOffMax": true},
            "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        });
        for (name, content) in [
            ("server.pem", certificate),
            ("server.key", key),
            ("client.pem", client),
            ("client.key", client_key),
            ("kubeconfig", control.kubeconfig_for(server, &user)),
            ("kubelet.json", configuration.to_string()),
            ("resolv.conf", "nameserver 192.0.2.53\n".to_owned()),
        ] {
            fs::write(file(name), content).with_context(|| format!("cannot write {name}"))?;
        }
        let mut command = self.command(built("node").join("kubelet"));
        command
            .arg("--config")
            .arg(file("kubelet.json"))
            .arg("--kubeconfig")
            .arg(file("kubeconfig"))
            .arg(format!("--hostname-override={}", self.name))
            .arg(format!("--node-ip={}", addresses.join(",")))
            .arg("--cert-dir=/var/lib/kubelet/pki");
        // Killed with the init process.
        drop(self.spawn("kubelet", command).await?);
        Ok(())
    }

    /// Starts kube-proxy, or another one in its place.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_proxy(
        &mut self,
        control: &ControlPlane,
        server: SocketAddr,
        mode: Proxy,
        pods: &[IpNetwork],
    ) -> Result<()> {
        self.stop_proxy()?;
        let kubeconfig = self.folder.join("kube-proxy.kubeconfig");
        fs::write(&kubeconfig, control.kubeconfig_for(server, &ControlPlane::admin()))?;
        let pods: Vec<String> = pods.iter().map(ToString::to_string).collect();
        let configuration: Value = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode.name(),
            "hostnameOverride": self.name,
            "clusterCIDR": pods.join(","),
            "clientConnection": {"kubeconfig": kubeconfig},
            // Only a machine's first network namespace may set these.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "iptables": {"minSyncPeriod": "100ms"},
            "nftables": {"minSyncPeriod": "100ms"},
        });
        let file = self.folder.join("kube-proxy.json");
        fs::write(&file, configuration.to_string())?;
        let mut command = Command::new(built("node").join("kube-proxy"));
        command.arg("--config").arg(file).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        self.proxy = Some(self.spawn("kube-proxy", command).await?);
        Ok(())
    }

    fn stop_proxy(&mut self) -> Result<()> {
        if let Some(mut proxy) = self.proxy.take() {
            proxy.kill()?;
            proxy.wait()?;
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Already gone, if they cannot be killed.
        let _ = self.stop_proxy();
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

/// Gives the calling thread's mount namespace what a node has for itself. `held` is an empty folder.
fn mounts(held: &Path) -> Result<()> {
    let none = None::<&Path>;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    // A fresh /sys shows the node's devices; the control groups are the machine's.
    mount(Some("/sys/fs/cgroup"), held, none, bind, none).context("cannot bind the control groups")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("cannot mount /sys")?;
    mount(Some(held), "/sys/fs/cgroup", none, MsFlags::MS_MOVE, none)
        .context("cannot move the control groups")?;
    for own in OWN {
        mount(Some("tmpfs"), own, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .with_context(|| format!("cannot mount {own}"))?;
    }
    // What a container mounts for its host is to be seen on it.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("cannot share mounts")
}

/// Starts the process that all others of the node are below.
async fn start_init(namespace: &Namespace, folder: &Path, name: &str) -> Result<(Child, u32)> {
    let mut script = format!("set -e\necho {name} > /proc/sys/kernel/hostname\n");
    for (key, value) in KERNEL {
        let file = folder.join("kernel").join(key.replace('/', "."));
        fs::write(&file, format!("{value}\n"))?;
        script += &format!("mount --bind {} /proc/sys/{key}\n", file.display());
    }
    let ready = folder.join("init-is-ready");
    script += &format!("echo > {}\nexec {}", ready.display(), built("pause").join("pause").display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "unchanged", "--pid", "--mount-proc", "--uts"]).args([
        "--fork",
        "--kill-child=SIGKILL",
        "sh",
        "-c",
        &script,
    ]);
    log_to(&mut command, &folder.join("logs/init.log"))?;
    let mut init = spawn(namespace, command).await?;
    await_until("a node's first process", READY, async || match init.try_wait()? {
        Some(status) => bail!("{status}: {:?}", fs::read_to_string(folder.join("logs/init.log"))),
        None => Ok(ready.exists()),
    })
    .await?;
    let id = init.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    let child = children.split_whitespace().next().context("no first process")?.parse()?;
    Ok((init, child))
}

/// containerd's configuration: what it does in the file systems of a node.
const CONTAINERD_TOML: &str = r#"
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/run/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "fairlead.dev/tests/pause:1"
  # Not everybody who is root may lower it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#;
