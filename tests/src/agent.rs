//! A real agent on a node.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairlead_api::RunDir;
use serde::de::DeserializeOwned;

use crate::http;
use crate::namespace::Namespace;
use crate::wait::await_until;

/// Where the agent pins, in its node's own BPF file system.
pub const BPFFS: &str = "/sys/fs/bpf/fairlead";
/// Port of /readyz and others, within the node.
const HTTP_PORT: u16 = 9470;
/// Time that an agent may take until it is ready.
const READY: Duration = Duration::from_secs(60);
/// Time that it may take to answer, or to end.
const ANSWER: Duration = Duration::from_secs(10);

/// Folders of one node.
#[derive(Clone, Debug)]
pub struct Folders {
    /// `--run-dir`
    pub run: RunDir,
    /// `--cni-conf-dir`
    pub cni: PathBuf,
    /// What the agent prints.
    pub log: PathBuf,
}

impl Folders {
    /// Those below `root`.
    pub fn below(root: &Path) -> Self {
        Self { run: RunDir(root.join("run")), cni: root.join("cni"), log: root.join("agent.log") }
    }
}

/// Where an agent takes the state of the world from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A folder of manifests.
    Manifests(&'a Path),
    /// An API server.
    Kubeconfig(&'a Path),
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    folders: Folders,
}

impl Agent {
    /// Starts it in a node's namespaces, without waiting until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn spawn(
        node: &Namespace,
        source: Source<'_>,
        folders: &Folders,
        flags: &[String],
    ) -> Result<Self> {
        for folder in [folders.run.path(), &folders.cni] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(&folders.log)
            .with_context(|| format!("cannot open {}", folders.log.display()))?;
        let executable = crate::dist().join("fairlead-agent");
        let mut command = Command::new(&executable);
        match source {
            Source::Manifests(folder) => command.arg("--manifests").arg(folder),
            Source::Kubeconfig(file) => command.arg("--kubeconfig").arg(file),
        };
        command
            .arg("--run-dir")
            .arg(folders.run.path())
            .args(["--bpffs", BPFFS, "--node-name", node.name()])
            .arg("--cni-conf-dir")
            .arg(&folders.cni)
            .arg("--http-listen")
            .arg(SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT)).to_string())
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for whoever runs the agents, not for them.
            .process_group(0);
        die_with_parent(&mut command);
        as_in_its_container(&mut command);
        let child = node
            .run(move || command.spawn())
            .await?
            .with_context(|| format!("cannot run {} (`cargo xtask build` makes it)", executable.display()))?;
        Ok(Self { child, folders: folders.clone() })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or takes too long; with what it has printed.
    pub async fn await_ready(&mut self, node: &Namespace) -> Result<()> {
        let child = &mut self.child;
        let waited = await_until("ready", READY, async || {
            if let Some(status) = child.try_wait()? {
                bail!("ended: {status}");
            }
            node.run(ready).await
        })
        .await;
        waited.map_err(|error| {
            let log = std::fs::read_to_string(&self.folders.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            anyhow::anyhow!("agent of {}: {error:#}\nits last words:\n{last}", node.name())
        })
    }

    /// What `GET path` on its socket answers.
    ///
    /// # Errors
    /// When it does not answer with a success, or with something else than `T`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        get(&self.folders.run, path).await
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// SIGTERM, and its exit status.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM)?;
        let mut status = None;
        let child = &mut self.child;
        await_until("ended after SIGTERM", ANSWER, async || {
            status = child.try_wait()?;
            Ok(status.is_some())
        })
        .await?;
        status.context("no exit status")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Already gone, if it cannot be killed.
        let _ = self.kill();
    }
}

/// What `GET path` on the socket of an agent answers.
///
/// # Errors
/// When it does not answer with a success, or with something else than `T`.
pub async fn get<T: DeserializeOwned>(run: &RunDir, path: &str) -> Result<T> {
    let (socket, path) = (run.socket(), path.to_owned());
    let asked = path.clone();
    // Blocking, so on a thread of its own: an agent that is stuck must not block the probes.
    let (sender, answer) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let ask = || {
            let stream =
                UnixStream::connect(&socket).with_context(|| format!("no agent at {}", socket.display()))?;
            stream.set_read_timeout(Some(ANSWER))?;
            http::get(stream, &path)
        };
        let _ = sender.send(ask());
    });
    let (status, body) = answer.await??;
    if status != 200 {
        bail!("GET {asked}: {status}: {body}");
    }
    serde_json::from_str(&body).with_context(|| format!("GET {asked}: {body}"))
}

/// Whether the agent of the calling thread's node says that it is ready.
fn ready() -> bool {
    let ask = || {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, HTTP_PORT))?;
        stream.set_read_timeout(Some(ANSWER))?;
        http::get(stream, "/readyz")
    };
    ask().is_ok_and(|(status, _)| status == 200)
}

/// Numbers of the capabilities that `manifests/fairlead.yaml` gives the agent: NET_ADMIN, PERFMON, BPF.
const CAPABILITIES: [libc::c_ulong; 3] = [12, 38, 39];

/// Gives a child the capabilities that an agent has on a cluster, and no others: much of what root may do
/// goes unnoticed otherwise.
fn as_in_its_container(command: &mut Command) {
    let drop = || {
        for capability in (0..64).filter(|c| !CAPABILITIES.contains(c)) {
            // SAFETY: one system call, without pointers. It says no to numbers that the kernel has not.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made; nothing is allocated or locked.
    unsafe { command.pre_exec(drop) };
}

/// Makes a child die with the thread that starts it, so that none outlives a killed test.
pub(crate) fn die_with_parent(command: &mut Command) {
    let set =
        || nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(std::io::Error::from);
    // SAFETY: between fork and exec only one system call is made; nothing is allocated or locked.
    unsafe { command.pre_exec(set) };
}
