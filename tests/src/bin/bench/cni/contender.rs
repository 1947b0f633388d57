//! Running a plugin's executable and timing it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fairlead_tests::namespace::Namespace;
use fairlead_tests::runtime::IFNAME;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};
use serde_json::Value;

/// `RTMGRP_LINK` and `RTM_DELLINK` of linux/rtnetlink.h.
const RTMGRP_LINK: u32 = 1;
const RTM_DELLINK: u16 = 17;
/// Time within which a link must be gone.
const GONE: Duration = Duration::from_secs(20);

/// A plugin with its configuration.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    /// The executable.
    pub(crate) executable: PathBuf,
    /// Folder of the executables that it may run.
    pub(crate) plugins: PathBuf,
    /// Its configuration.
    pub(crate) configuration: Value,
}

/// A sandbox to be attached.
#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    /// CNI_CONTAINERID
    pub(crate) container_id: String,
    /// CNI_NETNS
    pub(crate) netns: PathBuf,
    /// CNI_ARGS
    pub(crate) args: String,
}

/// A call that is over.
#[derive(Debug)]
pub(crate) struct Call {
    started: Instant,
    ended: Instant,
    /// What it printed.
    pub(crate) output: String,
    log: String,
}

impl Call {
    /// How long it took, in milliseconds.
    pub(crate) fn ms(&self) -> f64 {
        (self.ended - self.started).as_secs_f64() * 1e3
    }

    /// Adds the steps that Fairlead's log line tells of, in milliseconds.
    pub(crate) fn steps(&self, to: &mut BTreeMap<String, Vec<f64>>) {
        let mut inside = 0.0;
        for (name, time) in self.log.split_whitespace().filter_map(|w| w.strip_suffix("us")?.split_once('='))
        {
            let Ok(us) = time.parse::<f64>() else { continue };
            if name == "total" {
                inside = us / 1e3;
            } else {
                to.entry(name.to_owned()).or_default().push(us / 1e3);
            }
        }
        to.entry("process (spawn, exec, exit)".to_owned()).or_default().push(self.ms() - inside);
    }
}

/// A command that is ready to be started.
pub(crate) struct Ready {
    command: Command,
    what: String,
    output: File,
    log: File,
}

impl Contender {
    /// Prepares a call, so that nothing but the process is timed.
    pub(crate) fn ready(&self, verb: &str, sandbox: &Sandbox, previous: Option<&Value>) -> Result<Ready> {
        let mut configuration = self.configuration.clone();
        if let Some(previous) = previous {
            configuration["prevResult"] = previous.clone();
        }
        let mut input = tempfile::tempfile()?;
        input.write_all(&serde_json::to_vec(&configuration)?)?;
        input.rewind()?;
        let (output, log) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut command = Command::new(&self.executable);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &sandbox.container_id)
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_ARGS", &sandbox.args)
            .env("CNI_PATH", &self.plugins)
            .env("CNI_NETNS", &sandbox.netns)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(input)
            .stdout(output.try_clone()?)
            .stderr(Stdio::from(log.try_clone()?));
        Ok(Ready { command, what: format!("{} {verb}", self.executable.display()), output, log })
    }
}

impl Ready {
    /// Runs it in this thread's namespace.
    fn run(mut self) -> Result<Call> {
        let started = Instant::now();
        let status = self.command.status().with_context(|| format!("cannot run {}", self.what))?;
        let ended = Instant::now();
        let read = |mut file: File| {
            let mut text = String::new();
            file.rewind()?;
            file.read_to_string(&mut text)?;
            anyhow::Ok(text)
        };
        let (output, log) = (read(self.output)?, read(self.log)?);
        ensure!(status.success(), "{}: {status}: {output} {log}", self.what);
        Ok(Call { started, ended, output, log })
    }
}

/// Calls that were made at once.
#[derive(Debug)]
pub(crate) struct Calls {
    /// Each of them.
    pub(crate) calls: Vec<Call>,
    /// Until the last has returned, in milliseconds.
    pub(crate) returned: f64,
    /// Until the kernel has announced that as many links are gone, in milliseconds; 0 where nobody has
    /// waited for that.
    pub(crate) gone: f64,
}

/// Makes all of `calls` at once in a namespace.
pub(crate) async fn at_once(node: &Namespace, calls: Vec<Ready>) -> Result<Calls> {
    let (started, results) = node
        .run(move || {
            if calls.len() == 1 {
                return (Instant::now(), calls.into_iter().map(Ready::run).collect());
            }
            let gate = Arc::new(Barrier::new(calls.len() + 1));
            let threads: Vec<_> = calls
                .into_iter()
                .map(|call| {
                    let gate = gate.clone();
                    // A new thread is where its maker is: in the node's namespace.
                    std::thread::spawn(move || {
                        gate.wait();
                        call.run()
                    })
                })
                .collect();
            gate.wait();
            let started = Instant::now();
            let died = || Err(anyhow::anyhow!("a thread died"));
            (started, threads.into_iter().map(|t| t.join().unwrap_or_else(|_| died())).collect())
        })
        .await?;
    let calls = Result::<Vec<Call>>::from_iter::<Vec<Result<Call>>>(results)?;
    let first = calls.iter().map(|c| c.started).min().unwrap_or(started).min(started);
    let last = calls.iter().map(|c| c.ended).max().unwrap_or(started);
    Ok(Calls { calls, returned: (last - first).as_secs_f64() * 1e3, gone: 0.0 })
}

impl Calls {
    /// Waits until the kernel has announced as many links to be gone as calls were made.
    pub(crate) fn await_gone(mut self, watch: &Watch) -> Result<Self> {
        let first = self.calls.iter().map(|c| c.started).min().context("no calls")?;
        let mut last = first;
        for _ in &self.calls {
            let Ok(at) = watch.0.recv_timeout(GONE) else { bail!("a link was not gone within {GONE:?}") };
            last = at;
        }
        self.gone = (last - first).as_secs_f64() * 1e3;
        Ok(self)
    }
}

/// When links of a namespace went.
pub(crate) struct Watch(Receiver<Instant>);

impl Watch {
    /// Watches a namespace until the process ends.
    pub(crate) async fn start(node: &Namespace) -> Result<Self> {
        let (sender, receiver) = channel();
        node.run(move || {
            let netlink = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )?;
            setsockopt(&netlink, sockopt::RcvBufForce, &(16 << 20))?;
            bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK))?;
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(length) = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    let now = Instant::now();
                    for _ in 0..gone_in(&buffer[..length]) {
                        if sender.send(now).is_err() {
                            return;
                        }
                    }
                }
            });
            anyhow::Ok(())
        })
        .await??;
        Ok(Self(receiver))
    }

    /// Forgets what was before.
    pub(crate) fn forget(&self) {
        while self.0.try_recv().is_ok() {}
    }
}

/// How many links the messages say are gone; a bridge that loses a port says so in its own family.
fn gone_in(mut messages: &[u8]) -> usize {
    let mut count = 0;
    while let Some((header, _)) = messages.split_first_chunk::<17>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let (kind, family) = (u16::from_ne_bytes([header[4], header[5]]), header[16]);
        count += usize::from(kind == RTM_DELLINK && family == 0);
        messages = messages.get(length.max(17).next_multiple_of(4)..).unwrap_or_default();
    }
    count
}
