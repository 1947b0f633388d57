//! The boxes themselves: what other tests take for granted.

use std::net::SocketAddr;
use std::time::Duration;

use fairlead_tests::fabric;
use fairlead_tests::namespace::Namespace;
use fairlead_tests::probe::{Listener, Outcome, connect};
use fairlead_tests::wait::await_until;

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn boxes_reach_each_other_over_the_fabric_and_probes_tell_open_silent_and_refused_apart() {
    if !fairlead_tests::privileged() {
        return;
    }
    let l2 = fabric::bridge("fabric").await.unwrap();
    let a = Namespace::new("a").await.unwrap();
    let b = Namespace::new_node("b").await.unwrap();
    fabric::connect(&l2, &a, &["172.20.0.2/24".parse().unwrap(), "fd20::2/64".parse().unwrap()])
        .await
        .unwrap();
    fabric::connect(&l2, &b, &["172.20.0.3/24".parse().unwrap(), "fd20::3/64".parse().unwrap()])
        .await
        .unwrap();
    let _listener = Listener::open(&b, "b", 80).await.unwrap();
    for (server, client) in [("172.20.0.3", "172.20.0.2"), ("fd20::3", "fd20::2")] {
        let to = |port| SocketAddr::new(server.parse().unwrap(), port);
        let Outcome::Open(mut open) = connect(&a, to(80), LIMIT).await.unwrap() else {
            panic!("{server} is not open")
        };
        assert_eq!((open.server.as_str(), open.seen_as), ("b", client.parse().unwrap()));
        assert!(open.echoes(LIMIT).await.unwrap());
        assert!(
            matches!(connect(&a, to(81), LIMIT).await.unwrap(), Outcome::Fault(_)),
            "refused is not silent"
        );
    }
    // Nobody has this address; the kernel gives up on it after three seconds.
    let nobody = "172.20.0.99:80".parse().unwrap();
    assert!(connect(&a, nobody, Duration::from_millis(300)).await.unwrap().is_silent());
}

#[tokio::test]
async fn a_node_has_its_own_sys_and_bpf_file_system() {
    if !fairlead_tests::privileged() {
        return;
    }
    let node = Namespace::new_node("n").await.unwrap();
    let (devices, bpf) = node
        .run(|| {
            let names = std::fs::read_dir("/sys/class/net").unwrap();
            let names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            std::fs::create_dir("/sys/fs/bpf/fairlead-tests-probe").unwrap();
            (names, nix::sys::statfs::statfs("/sys/fs/bpf").unwrap().filesystem_type())
        })
        .await
        .unwrap();
    assert_eq!(devices, ["lo"]);
    assert_eq!(bpf, nix::sys::statfs::BPF_FS_MAGIC);
    assert!(!std::path::Path::new("/sys/fs/bpf/fairlead-tests-probe").exists(), "visible outside");
    let thread = format!("/proc/self/task/{}", node.thread_id());
    drop(node);
    await_until("the thread is gone", LIMIT, async || Ok(!std::path::Path::new(&thread).exists()))
        .await
        .unwrap();
}
