//! `kill -9` of the plugin before each of its system calls, which is every point at which what it
//! has done so far can be told apart from outside.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::node::{Node, Pod};

const CIDRS: [&str; 2] = ["10.7.0.0/28", "fd07::/64"];

/// Runs a verb and kills it before its system call number `at`. `false` if it ended by itself.
fn killed_at(node: &Node, pod: &Pod, verb: &str, at: usize) -> bool {
    let mut command = node.command(&[
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", &pod.id),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", &pod.path),
    ]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: one system call between fork and exec.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from)) };
    #[expect(clippy::zombie_processes, reason = "the loop below waits for it and for its threads")]
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(node.conf().to_string().as_bytes()).unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    assert!(matches!(waitpid(pid, None).unwrap(), WaitStatus::Stopped(_, Signal::SIGTRAP)));
    ptrace::setoptions(
        pid,
        Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL,
    )
    .unwrap();
    ptrace::syscall(pid, None).unwrap();
    let mut stops = 0;
    let mut done = false;
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                stops += 1;
                // Each call stops twice, on its way in and out.
                if stops == 2 * at && !done {
                    kill(pid, Signal::SIGKILL).unwrap();
                    done = true;
                }
                let _ = ptrace::syscall(thread, None);
            }
            Ok(WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, _, _)) if ended == pid => break,
            Ok(WaitStatus::Stopped(thread, signal)) => {
                let signal = Some(signal).filter(|s| !matches!(s, Signal::SIGSTOP | Signal::SIGTRAP));
                let _ = ptrace::syscall(thread, signal);
            }
            Ok(WaitStatus::PtraceEvent(thread, _, _)) => {
                let _ = ptrace::syscall(thread, None);
            }
            Ok(_) => {}
            Err(e) => panic!("{e}"),
        }
    }
    done
}

/// Children of other tests would be reaped here by mistake: this runs in a process of its own.
fn alone(test: &str) -> bool {
    if std::env::var_os("FAIRLEAD_CRASH_TEST").is_some() {
        return true;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("FAIRLEAD_CRASH_TEST", "1")
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

#[test]
fn add_killed_at_any_system_call() {
    if !alone("crash::add_killed_at_any_system_call") {
        return;
    }
    let Some(node) = Node::new(&CIDRS) else { return };
    let neighbour = node.pod("neighbour");
    node.add(&neighbour).success();
    let theirs = node.used();
    let mut at = 1;
    loop {
        let pod = node.pod(&format!("p{at}"));
        if !killed_at(&node, &pod, "ADD", at) {
            node.del(&pod).success();
            break;
        }
        if at % 2 == 0 {
            // The runtime asks for it to be removed, as it must after a failed ADD.
            node.del(&pod).success();
        } else {
            // The sandbox goes without a word: what is left is for reconcile.
            fairlead_cni::reconcile(&node.run, |a| a.container_id == "neighbour").unwrap();
            node.del(&pod).success();
        }
        assert_eq!(node.used(), theirs, "killed at system call {at}");
        assert_eq!(node.interfaces().len(), 1, "killed at system call {at}");
        node.add(&pod).success();
        node.del(&pod).success();
        at += 1;
    }
    assert!(at > 100, "only {at} system calls seen");
    node.del(&neighbour).success();
    node.assert_clean();
}

#[test]
fn del_killed_at_any_system_call() {
    if !alone("crash::del_killed_at_any_system_call") {
        return;
    }
    let Some(node) = Node::new(&CIDRS) else { return };
    let mut at = 1;
    loop {
        let pod = node.pod(&format!("p{at}"));
        node.add(&pod).success();
        let killed = killed_at(&node, &pod, "DEL", at);
        node.del(&pod).success();
        node.assert_clean();
        if !killed {
            break;
        }
        at += 1;
    }
    assert!(at > 60, "only {at} system calls seen");
}
