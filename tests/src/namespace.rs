//! A network namespace with a thread that lives in it.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::{mpsc, oneshot};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace. It goes when this is dropped, and with the process at the latest.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    thread_id: i32,
    jobs: Option<mpsc::UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes one with its loopback interface up.
    pub async fn new(name: &str) -> Result<Self> {
        Self::start(name, || unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace"))
            .await
    }

    /// Makes one that has its own mounts too, as a node has: a fresh /sys, and a BPF file system in it.
    pub async fn new_node(name: &str) -> Result<Self> {
        Self::with_mounts(name, || {
            let none = None::<&Path>;
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)
                .context("cannot mount /sys")?;
            mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
                .context("cannot mount the BPF file system")
        })
        .await
    }

    /// Makes one with its own mounts, which `mounts` makes; they are not seen outside.
    pub(crate) async fn with_mounts(
        name: &str,
        mounts: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        Self::start(name, || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .context("cannot make network and mount namespaces")?;
            let none = None::<&Path>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("cannot keep mounts private")?;
            mounts()
        })
        .await
    }

    /// A thread in a network namespace that somebody else made, as a pod's sandbox.
    ///
    /// # Errors
    /// When there is none at the path.
    pub async fn entered(name: &str, path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).with_context(|| format!("no {}", path.display()))?;
        Self::spawn(name, move || nix::sched::setns(file, CloneFlags::CLONE_NEWNET).context("setns")).await
    }

    async fn start(name: &str, enter: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Self> {
        let namespace = Self::spawn(name, enter).await?;
        namespace
            .run(|| {
                // The kernel's defaults differ between machines; addresses are usable at once.
                for (key, value) in
                    [("ipv6/conf/all/disable_ipv6", "0"), ("ipv6/conf/default/accept_dad", "0")]
                {
                    sysctl(key, value)?;
                }
                anyhow::Ok(())
            })
            .await??;
        namespace.netlink(async |netlink| crate::fabric::up(&netlink, "lo").await).await?;
        Ok(namespace)
    }

    async fn spawn(name: &str, enter: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Self> {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let (ready, entered) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let result = enter().map(|()| nix::unistd::gettid().as_raw());
                let usable = result.is_ok();
                if ready.send(result).is_ok() && usable {
                    while let Some(job) = queue.blocking_recv() {
                        job();
                    }
                }
            })
            .context("cannot start a thread")?;
        let thread_id =
            entered.await.context("the namespace's thread died")?.with_context(|| name.to_owned())?;
        Ok(Self { name: name.to_owned(), thread_id, jobs: Some(jobs), thread: Some(thread) })
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path by which other processes can enter it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), self.thread_id))
    }

    /// The thread that lives in it: what `nsenter --target` takes.
    pub fn thread_id(&self) -> i32 {
        self.thread_id
    }

    /// Runs `work` inside, and waits for its result.
    pub async fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Result<R> {
        let (sender, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more when the caller was interrupted.
            let _ = sender.send(work());
        });
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .ok_or_else(|| anyhow!("the thread of namespace {} has ended", self.name))?;
        result.await.with_context(|| format!("work in namespace {} panicked", self.name))
    }

    /// Runs `work` inside with a netlink connection.
    pub async fn netlink<R: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(rtnetlink::Handle) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                work(handle).await
            })
        })
        .await?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, and whoever ran that work has been told.
            let _ = thread.join();
        }
    }
}

/// Sets a kernel parameter of the calling thread's network namespace.
///
/// # Errors
/// When /proc/sys/net has no such key or refuses the value.
pub fn sysctl(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    std::fs::write(&path, value).with_context(|| format!("cannot set {}", path.display()))
}
