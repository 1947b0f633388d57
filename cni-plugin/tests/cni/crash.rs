//! `kill -9` of the plugin before each of its system calls, which is every point at which what it
//! has done so far can be told apart from outside.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use crate::node::{Node, Pod};

const CIDRS: [&str; 2] = ["10.7.0.0/28", "fd07::/64"];

/// Runs a verb and kills it before its system call number `at`. `false` if it ended by itself.
fn killed_at(node: &Node, pod: &Pod, verb: &str, ifname: &str, at: usize) -> bool {
    let mut command = node.command(&[
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", &pod.id),
        ("CNI_IFNAME", ifname),
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
        if !killed_at(&node, &pod, "ADD", "eth0", at) {
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
        let killed = killed_at(&node, &pod, "DEL", "eth0", at);
        node.del(&pod).success();
        node.assert_clean();
        if !killed {
            break;
        }
        at += 1;
    }
    assert!(at > 60, "only {at} system calls seen");
}

#[test]
fn a_second_interface_killed_at_any_system_call_leaves_the_first_as_it_was() {
    if !alone("crash::a_second_interface_killed_at_any_system_call_leaves_the_first_as_it_was") {
        return;
    }
    let Some(node) = Node::new(&CIDRS) else { return };
    let pod = node.pod("two");
    let result = node.add(&pod).success();
    let second = |verb: &str| {
        let environment = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", pod.id.as_str()),
            ("CNI_IFNAME", "net1"),
            ("CNI_NETNS", pod.path.as_str()),
        ];
        node.call(&environment, &node.conf().to_string()).success();
    };
    let state = || (node.used(), node.interfaces(), pod.rules());
    let before = state();
    let (mut at, mut adds, mut dels) = (1, 0, 0);
    loop {
        let add = killed_at(&node, &pod, "ADD", "net1", at);
        second("DEL");
        assert_eq!(state(), before, "ADD killed at system call {at}");
        second("ADD");
        assert_ne!(state().2, before.2, "it has no rules of its own");
        let del = killed_at(&node, &pod, "DEL", "net1", at);
        second("DEL");
        assert_eq!(state(), before, "DEL killed at system call {at}");
        (adds, dels) = (adds + usize::from(add), dels + usize::from(del));
        if !add && !del {
            break;
        }
        at += 1;
    }
    assert!(adds > 100 && dels > 60, "only {adds} and {dels} system calls seen");
    let check = json!({"prevResult": result});
    assert!(node.verb("CHECK", &pod, &node.conf_with(&check)).ok);
    node.del(&pod).success();
    node.assert_clean();
}

/// A step of a linear congruential generator: where a kill lands differs from run to run anyway.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn random_kills_from_outside_leave_no_address_twice_and_none_lost() {
    let Some(node) = Node::new(&CIDRS) else { return };
    let pods: Vec<Pod> = (0..6).map(|i| node.pod(&format!("p{i}"))).collect();
    let mut random = 7;
    let mut killed = 0;
    for round in 0..25 {
        let verb = if round % 2 == 0 { "ADD" } else { "DEL" };
        let calls: Vec<_> = pods
            .iter()
            .map(|pod| {
                let mut child = node
                    .command(&[
                        ("CNI_COMMAND", verb),
                        ("CNI_CONTAINERID", &pod.id),
                        ("CNI_IFNAME", "eth0"),
                        ("CNI_NETNS", &pod.path),
                    ])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                let _ = child.stdin.take().unwrap().write_all(node.conf().to_string().as_bytes());
                (child, std::time::Duration::from_micros(next(&mut random) % 30_000))
            })
            .collect();
        std::thread::scope(|scope| {
            let ends: Vec<_> = calls
                .into_iter()
                .map(|(mut child, after)| {
                    scope.spawn(move || {
                        std::thread::sleep(after);
                        let _ = child.kill();
                        !child.wait().unwrap().success()
                    })
                })
                .collect();
            killed += ends.into_iter().map(|end| end.join().unwrap()).filter(|killed| *killed).count();
        });
        let mut addresses: Vec<_> =
            pods.iter().filter_map(|pod| node.attachment(pod)).flat_map(|a| a.addresses).collect();
        let all = addresses.len();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), all, "round {round}: an address with two owners");
    }
    assert!(killed > 10, "only {killed} were killed");
    for pod in &pods {
        node.del(pod).success();
    }
    fairlead_cni::reconcile(&node.run, fairlead_cni::sandbox_lives).unwrap();
    node.assert_clean();
    assert_eq!(fairlead_cni::audit::audit(&node.run).unwrap().faults, [""; 0]);
}
