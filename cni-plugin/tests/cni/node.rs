//! A node to wire pods on: a network namespace of its own, a BPF file system, a run directory and an
//! agent that says what the test wants.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use fairlead_api::{Attachment, EndpointCounters, EndpointStatus, NodeInfo, RunDir};
use fairlead_common::maps::{SLOTS, slot_of};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

/// Whether this test can run here; without privileges it must, where that is required.
pub(crate) fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let required = std::env::var("FAIRLEAD_REQUIRE_PRIVILEGED").is_ok_and(|v| v == "1");
    assert!(root || !required, "this test needs root");
    if !root {
        eprintln!("not run: needs root");
    }
    root
}

/// What the agent answers to the next PUT; `Unlock` when nothing is said.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Say {
    Unlock,
    Error(&'static str),
    Nothing,
}

#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) put: Vec<Attachment>,
    pub(crate) deleted: Vec<String>,
    pub(crate) say: VecDeque<Say>,
    pub(crate) endpoints: Vec<Attachment>,
    pub(crate) unready: bool,
    /// Whether endpoints are shown as locked.
    pub(crate) locked: bool,
}

pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) run: RunDir,
    pub(crate) heard: Arc<Mutex<Heard>>,
    pub(crate) programs: [u32; 2],
}

/// A pod's namespace, open as long as this lives.
pub(crate) struct Pod {
    pub(crate) file: File,
    pub(crate) path: String,
    pub(crate) id: String,
}

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) json: Value,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) ok: bool,
}

impl Output {
    /// The result of a call that must have succeeded.
    pub(crate) fn success(self) -> Value {
        assert!(self.ok, "{} {}", self.stdout, self.stderr);
        self.json
    }
    /// The code of a call that must have failed, with the rest of the error object as it must be.
    pub(crate) fn code(&self) -> u64 {
        assert!(!self.ok, "{}", self.stdout);
        assert!(self.json["msg"].as_str().is_some_and(|m| !m.is_empty()), "{}", self.stdout);
        assert!(self.json["cniVersion"].is_string(), "{}", self.stdout);
        self.json["code"].as_u64().unwrap()
    }
}

fn bpf<T>(command: i64, attributes: &T) -> RawFd {
    // SAFETY: the callers below fill the structures as linux/bpf.h has them.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    assert!(fd >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
    fd as RawFd
}

fn pin(fd: RawFd, path: &Path) {
    #[repr(C)]
    struct Pin(u64, u32, u32);
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    bpf(6, &Pin(path.as_ptr() as u64, fd as u32, 0));
}

/// Loads `r0 = verdict; exit` and pins it.
fn program(verdict: i32, path: &Path) -> u32 {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        code: u64,
        license: u64,
        log: [u64; 2],
        rest: [u64; 12],
    }
    let code: [u64; 2] = [0xb7 | u64::from(verdict as u32) << 32, 0x95];
    let license = c"GPL";
    let load = Load {
        kind: 3,
        count: 2,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    let fd = bpf(5, &load);
    pin(fd, path);
    #[repr(C)]
    struct Info(i32, u32, u64);
    let mut info = [0_u32; 2];
    bpf(15, &Info(fd, 8, info.as_mut_ptr() as u64));
    info[1]
}

pub(crate) fn killed_ifindex(frozen: &Path, slot: u32) -> u32 {
    #[repr(C)]
    struct Get(u64, u32, u32);
    #[repr(C)]
    struct Lookup(i32, u32, u64, u64, u64);
    let path = std::ffi::CString::new(frozen.join("killed").to_str().unwrap()).unwrap();
    let fd = bpf(7, &Get(path.as_ptr() as u64, 0, 0));
    let mut value = 0_u32;
    bpf(1, &Lookup(fd, 0, std::ptr::from_ref(&slot) as u64, std::ptr::from_mut(&mut value) as u64, 0));
    value
}

impl Drop for Node {
    fn drop(&mut self) {
        // Lazily: programs are still held there. The folder goes after it.
        let _ = umount2(&self.dir.path().join("bpf"), MntFlags::MNT_DETACH);
    }
}

impl Node {
    /// Moves this test's thread into a node. `None` without privileges.
    pub(crate) fn new(cidrs: &[&str]) -> Option<Self> {
        if !privileged() {
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bpffs = dir.path().join("bpf");
        let frozen = bpffs.join("frozen");
        std::fs::create_dir(&bpffs).unwrap();
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), none).unwrap();
        std::fs::create_dir(&frozen).unwrap();
        // TC_ACT_UNSPEC: go on to the stack.
        let programs = [program(-1, &frozen.join("from_pod")), program(-1, &frozen.join("to_pod"))];
        #[repr(C)]
        #[derive(Default)]
        struct Map {
            head: [u32; 5],
            rest: [u32; 13],
        }
        pin(bpf(0, &Map { head: [2, 4, 4, SLOTS, 0], ..Map::default() }), &frozen.join("killed"));

        let run = RunDir(dir.path().join("run"));
        std::fs::create_dir(run.path()).unwrap();
        for path in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
            std::fs::write(path, "1").unwrap();
        }
        let node = Self { dir, run, heard: Arc::default(), programs };
        node.write_node(cidrs);
        node.start_agent();
        Some(node)
    }

    pub(crate) fn frozen(&self) -> PathBuf {
        self.dir.path().join("bpf/frozen")
    }

    pub(crate) fn write_node(&self, cidrs: &[&str]) {
        self.write_node_with(cidrs, 10_000);
    }

    pub(crate) fn write_node_with(&self, cidrs: &[&str], add_timeout_ms: u64) {
        let info = NodeInfo {
            node_name: "n1".into(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            mtu: 1450,
            frozen: self.frozen(),
            add_timeout_ms,
        };
        std::fs::write(self.run.node(), serde_json::to_vec(&info).unwrap()).unwrap();
    }

    pub(crate) fn start_agent(&self) {
        let listener = UnixListener::bind(self.run.socket()).unwrap();
        let heard = Arc::clone(&self.heard);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let heard = Arc::clone(&heard);
                std::thread::spawn(move || serve(stream.unwrap(), &heard));
            }
        });
    }

    pub(crate) fn stop_agent(&self) {
        std::fs::remove_file(self.run.socket()).unwrap();
    }

    pub(crate) fn pod(&self, id: &str) -> Pod {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        Pod { file, path, id: id.to_owned() }
    }

    pub(crate) fn conf(&self) -> Value {
        json!({"cniVersion": "1.1.0", "name": "fairlead", "type": "fairlead-cni", "runDir": self.run.path()})
    }

    pub(crate) fn conf_with(&self, more: &Value) -> Value {
        let mut conf = self.conf();
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        conf
    }

    pub(crate) fn command(&self, environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead-cni"));
        command.env_clear().envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn call(&self, environment: &[(&str, &str)], input: &str) -> Output {
        let mut child = self.command(environment).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let json = if stdout.is_empty() { Value::Null } else { serde_json::from_str(&stdout).unwrap() };
        Output {
            json,
            stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            ok: output.status.success(),
        }
    }

    pub(crate) fn verb(&self, verb: &str, pod: &Pod, conf: &Value) -> Output {
        let environment = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &pod.id),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", &pod.path),
            ("CNI_PATH", "/nowhere"),
        ];
        self.call(&environment, &conf.to_string())
    }

    pub(crate) fn add(&self, pod: &Pod) -> Output {
        self.verb("ADD", pod, &self.conf())
    }

    pub(crate) fn del(&self, pod: &Pod) -> Output {
        self.verb("DEL", pod, &self.conf())
    }

    pub(crate) fn attachment(&self, pod: &Pod) -> Option<Attachment> {
        let bytes = std::fs::read(self.run.endpoint(&pod.id, "eth0")).ok()?;
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    /// Names of the addresses in use.
    pub(crate) fn used(&self) -> Vec<String> {
        names(&self.run.ipam().join("used"))
    }

    /// Interfaces on the node beside `lo`.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        let all = nix::net::if_::if_nameindex().unwrap();
        all.iter().map(|i| i.name().to_str().unwrap().to_owned()).filter(|n| n.starts_with("fl")).collect()
    }

    /// That nothing of any pod is left.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.used(), [""; 0]);
        assert_eq!(names(&self.run.endpoints()), [""; 0]);
        assert_eq!(names(&self.run.ipam().join("slots")), [""; 0]);
        assert_eq!(self.interfaces(), [""; 0]);
        assert!(!self.run.ipam().join("busy").is_symlink());
    }
}

impl Pod {
    /// Runs something in the pod's namespace.
    pub(crate) fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                nix::sched::setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                run()
            };
            scope.spawn(inside).join().unwrap()
        })
    }

    /// Rules of both families that say which table of routes a packet goes by.
    pub(crate) fn rules(&self) -> Vec<String> {
        let text = ["-4", "-6"].map(|family| {
            self.within(|| std::process::Command::new("ip").args([family, "rule", "list"]).output().unwrap())
        });
        text.into_iter()
            .flat_map(|o| String::from_utf8(o.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn serve(mut stream: UnixStream, heard: &Mutex<Heard>) {
    let mut text = String::new();
    let mut buffer = [0; 8192];
    let (head, body) = loop {
        let n = stream.read(&mut buffer).unwrap_or(0);
        if n == 0 {
            return;
        }
        text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                break (head.to_owned(), body.to_owned());
            }
        }
    };
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut heard = heard.lock().unwrap();
    let (status, answer) = match (method, path) {
        ("PUT", "/v1/endpoints") => {
            let attachment: Attachment = serde_json::from_str(&body).unwrap();
            heard.put.push(attachment.clone());
            match heard.say.pop_front().unwrap_or(Say::Unlock) {
                Say::Unlock => {
                    heard.endpoints.push(attachment.clone());
                    (200, serde_json::to_string(&status(attachment)).unwrap())
                }
                Say::Error(code) => (409, json!({"code": code, "message": "as told"}).to_string()),
                Say::Nothing => {
                    drop(heard);
                    // Until the other side gives up.
                    let _ = stream.read(&mut buffer);
                    return;
                }
            }
        }
        ("DELETE", path) => {
            heard.deleted.push(path.to_owned());
            heard.endpoints.retain(|a| !path.ends_with(&format!("/{}/{}", a.container_id, a.ifname)));
            (204, String::new())
        }
        ("GET", "/v1/endpoints") => {
            let shown = |a| EndpointStatus { unlocked: !heard.locked, ..status(a) };
            let all: Vec<EndpointStatus> = heard.endpoints.iter().cloned().map(shown).collect();
            (200, serde_json::to_string(&all).unwrap())
        }
        ("GET", "/v1/ready") if heard.unready => {
            (503, json!({"code": "try-again", "message": "not synced"}).to_string())
        }
        ("GET", "/v1/ready") => (200, String::new()),
        _ => (404, json!({"code": "not-found", "message": path}).to_string()),
    };
    let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
}

fn status(attachment: Attachment) -> EndpointStatus {
    EndpointStatus {
        slot: slot_of(attachment.host_ifindex),
        generation: 1,
        unlocked: true,
        fast_path: true,
        ingress_isolated: false,
        egress_isolated: false,
        counters: EndpointCounters::default(),
        attachment,
    }
}
