//! The run directory in bad shape, and what reconcile makes of it.

use std::io::Write;
use std::path::Path;

use fairlead_api::Attachment;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::node::{Node, Pod};

const CIDRS: [&str; 2] = ["10.7.0.0/24", "fd07::/64"];

#[test]
fn reconcile_frees_what_is_gone_and_keeps_what_lives() {
    let Some(node) = Node::new(&CIDRS) else { return };
    let pods = ["kept", "gone", "broken", "lost"].map(|id| node.pod(id));
    for pod in &pods {
        node.add(pod).success();
    }
    let [kept, gone, broken, lost] = &pods;
    let used = |pod: &Pod| node.attachment(pod).unwrap().addresses.len();
    assert_eq!(used(kept), 2);
    // Gone: its interface too, as when a namespace ends. Broken: half a file. Lost: none.
    for pod in [gone, lost] {
        let host = node.attachment(pod).unwrap().host_ifname;
        assert!(std::process::Command::new("ip").args(["link", "del", &host]).status().unwrap().success());
    }
    std::fs::write(node.run.endpoint("broken", "eth0"), "{").unwrap();
    std::fs::remove_file(node.run.endpoint("lost", "eth0")).unwrap();
    std::fs::write(node.run.ipam().join("pools/10.7.0.0-24/state"), "garbage").unwrap();
    std::fs::write(node.run.ipam().join("ifindex"), "garbage").unwrap();

    let live = |a: &fairlead_api::Attachment| {
        let mut a = a.clone();
        if a.container_id == "gone" {
            a.netns = "/nowhere".into();
        }
        fairlead_cni::sandbox_lives(&a)
    };
    let done = fairlead_cni::reconcile(&node.run, live).unwrap();
    assert_eq!(done.removed.iter().map(|a| a.container_id.as_str()).collect::<Vec<_>>(), ["gone"]);
    assert_eq!(done.freed.iter().filter(|l| l.owner.container_id == "lost").count(), 2);
    assert_eq!(done.freed.len(), 2);
    assert_eq!(done.unreadable.len(), 1);
    assert_eq!(node.used(), ["10.7.0.2", "10.7.0.4", "fd07::2", "fd07::4"]);
    // Nothing that is in use is given again, neither address nor index.
    let highest = node.attachment(kept).unwrap().host_ifindex;
    let new = node.pod("new");
    node.add(&new).success();
    let new = node.attachment(&new).unwrap();
    assert!(new.host_ifindex > highest);
    assert_eq!(new.addresses[0].to_string(), "10.7.0.6");
    node.del(broken).success();
    node.del(kept).success();
    let left = node.used();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// Puts the run directory on a file system of its own, with room for so much.
fn on_small_file_system(node: &Node, options: &str) {
    let run = node.run.ipam().parent().unwrap().to_owned();
    mount(Some("tmpfs"), &run, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
    node.write_node(&CIDRS);
    node.start_agent();
}

/// Fills a file until nothing more can be written.
fn fill(path: &std::path::Path) {
    let mut file = std::fs::File::create(path).unwrap();
    let full = std::iter::repeat(()).find_map(|()| file.write_all(&[7; 4096]).err()).unwrap();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn a_full_file_system_fails_cleanly_wherever_it_gets_full() {
    let Some(node) = Node::new(&CIDRS) else { return };
    let (mut refused, mut cases) = (0, 0);
    // One inode more each time, until there are enough for ADD.
    for inodes in 3.. {
        cases += 1;
        on_small_file_system(&node, &format!("size=1m,nr_inodes={inodes}"));
        let pod = node.pod(&format!("p{inodes}"));
        let output = node.add(&pod);
        if !output.ok {
            assert_eq!(output.code(), 5, "{inodes} inodes: {}", output.stdout);
            assert_eq!(node.interfaces(), [""; 0], "{inodes} inodes");
            refused += 1;
        }
        node.del(&pod).success();
        node.assert_clean();
        // With room again nothing stands in the way.
        let run = node.run.ipam().parent().unwrap().to_owned();
        let more = Some("size=1m,nr_inodes=100");
        mount(None::<&str>, &run, None::<&str>, MsFlags::MS_REMOUNT, more).unwrap();
        node.add(&pod).success();
        assert_eq!(fairlead_cni::audit::audit(&node.run).unwrap().faults, [""; 0], "{inodes} inodes");
        node.del(&pod).success();
        node.assert_clean();
        // The agent's socket keeps it busy.
        umount2(&run, MntFlags::MNT_DETACH).unwrap();
        if output.ok {
            break;
        }
    }
    assert!(refused > 10, "only {refused} were refused");
    println!("cases: {cases}");
}

#[test]
fn where_nothing_more_can_be_written_del_works_and_add_comes_back() {
    let Some(node) = Node::new(&CIDRS) else { return };
    on_small_file_system(&node, "size=256k");
    let pods: Vec<Pod> = (0..4).map(|i| node.pod(&format!("p{i}"))).collect();
    for pod in &pods[..3] {
        node.add(pod).success();
    }
    let ballast = node.run.ipam().parent().unwrap().join("ballast");
    fill(&ballast);
    assert_eq!(node.add(&pods[3]).code(), 5);
    assert_eq!((node.interfaces().len(), node.used().len()), (3, 6));
    for pod in &pods[..2] {
        node.del(pod).success();
        node.del(pod).success();
    }
    fairlead_cni::reconcile(&node.run, fairlead_cni::sandbox_lives).unwrap();
    assert_eq!(node.used(), ["10.7.0.4", "fd07::4"]);
    std::fs::remove_file(&ballast).unwrap();
    node.add(&pods[3]).success();
    assert_eq!(fairlead_cni::audit::audit(&node.run).unwrap().faults, [""; 0]);
    for pod in &pods[2..] {
        node.del(pod).success();
    }
    node.assert_clean();
}

#[test]
fn files_that_are_cut_short_or_garbage_stop_nobody_and_are_mended() {
    let Some(node) = Node::new(&["10.7.0.0/28"]) else { return };
    let run = node.run.path().to_owned();
    let state = run.join("ipam/pools/10.7.0.0-28/state");
    let resting = run.join("ipam/pools/10.7.0.0-28/resting");
    let file = |path: &Path, content: &str| {
        let _ = std::fs::remove_file(path);
        std::fs::write(path, content).unwrap();
    };
    let link = |path: &Path, target: &str| {
        let _ = std::fs::remove_file(path);
        std::os::unix::fs::symlink(target, path).unwrap();
    };
    type Spoil<'a> = (&'a str, Box<dyn Fn(&Attachment) + 'a>);
    let used = |a: &Attachment| run.join("ipam/used").join(a.addresses[0].to_string());
    let spoils: Vec<Spoil<'_>> = vec![
        ("state, empty", Box::new(|_| file(&state, ""))),
        ("state, half", Box::new(|_| file(&state, "12345678901234567890"))),
        ("state, garbage", Box::new(|_| file(&state, &"x".repeat(40)))),
        ("counter of indexes, empty", Box::new(|_| file(&run.join("ipam/ifindex"), ""))),
        ("counter of indexes, garbage", Box::new(|_| file(&run.join("ipam/ifindex"), "ten"))),
        ("mark, garbage", Box::new(|_| link(&run.join("ipam/busy"), "x"))),
        ("mark, a file", Box::new(|_| file(&run.join("ipam/busy"), "x"))),
        ("reservation, cut short", Box::new(|a| link(&used(a), "10.7.0.2 10.7.0"))),
        ("reservation, a file", Box::new(|a| file(&used(a), ""))),
        ("reservation of no address", Box::new(|_| link(&run.join("ipam/used/what"), "what"))),
        ("reservation of nobody", Box::new(|_| link(&run.join("ipam/used/10.7.0.14"), "?"))),
        ("reservation elsewhere", Box::new(|_| link(&run.join("ipam/used/10.8.0.14"), "?"))),
        ("resting, cut short", Box::new(|_| link(&resting.join("0"), "10.7"))),
        ("resting, a file", Box::new(|_| file(&resting.join("7"), ""))),
        ("resting, no number", Box::new(|_| link(&resting.join("x"), "x"))),
        ("slot, garbage", Box::new(|_| link(&run.join("ipam/slots/77"), "x"))),
        ("attachment, half", Box::new(|_| file(&node.run.endpoint("ghost", "eth0"), "{\"half"))),
        (
            "attachment of another name",
            Box::new(|a| {
                file(&node.run.endpoint("ghost", "eth1"), &serde_json::to_string(a).unwrap());
            }),
        ),
        ("what was being written", Box::new(|_| file(&run.join("ipam/attachment"), "{"))),
    ];
    let living = node.pod("living");
    node.add(&living).success();
    let attachment = node.attachment(&living).unwrap();
    for (what, spoil) in &spoils {
        // Something rests and something is in use while it happens.
        let other = node.pod("other");
        node.add(&other).success();
        node.del(&other).success();
        spoil(&attachment);
        // Nobody is stopped, and nobody is given what another has.
        node.add(&other).success();
        assert_ne!(node.attachment(&other).unwrap().addresses, attachment.addresses, "{what}");
        assert_ne!(node.attachment(&other).unwrap().host_ifindex, attachment.host_ifindex, "{what}");
        node.del(&other).success();
        // And then all is as it was: each of the 13 addresses can be had, once.
        fairlead_cni::reconcile(&node.run, fairlead_cni::sandbox_lives).unwrap();
        assert_eq!(fairlead_cni::audit::audit(&node.run).unwrap().faults, [""; 0], "{what}");
        let mut ledger = fairlead_cni::Ledger::lock(&node.run).unwrap();
        let pools =
            fairlead_cni::ledger::node_pools(&fairlead_cni::ledger::read_node(&node.run).unwrap(), &[])
                .unwrap();
        let mut given = attachment.addresses.clone();
        for i in 0..12 {
            let owner = fairlead_ipam::Owner { container_id: format!("all{i}"), ifname: "eth0".to_owned() };
            let wanted = fairlead_cni::ledger::Wanted::OfSets { sets: pools.clone(), asked: Vec::new() };
            let claimed = ledger.claim(&owner, &wanted, |host_ifindex, addresses| Attachment {
                container_id: owner.container_id.clone(),
                host_ifindex,
                addresses,
                ..attachment.clone()
            });
            given.extend(claimed.unwrap_or_else(|e| panic!("{what}: {e}")).addresses);
        }
        given.sort();
        given.dedup();
        assert_eq!(given.len(), 13, "{what}: {given:?}");
        for i in 0..12 {
            let owner = fairlead_ipam::Owner { container_id: format!("all{i}"), ifname: "eth0".to_owned() };
            ledger.release(&owner).unwrap();
        }
    }
    node.del(&living).success();
    node.assert_clean();
    println!("cases: {}", spoils.len());
}

#[test]
fn a_record_that_is_lost_while_its_pod_lives_loses_no_address_to_another() {
    let Some(node) = Node::new(&["10.7.0.0/29"]) else { return };
    let pods: Vec<Pod> = (0..2).map(|i| node.pod(&format!("p{i}"))).collect();
    for pod in &pods {
        node.add(pod).success();
    }
    std::fs::remove_file(node.run.endpoint("p0", "eth0")).unwrap();
    std::fs::write(node.run.endpoint("p1", "eth0"), "").unwrap();
    for _ in 0..2 {
        fairlead_cni::reconcile(&node.run, fairlead_cni::sandbox_lives).unwrap();
        assert_eq!(node.used(), ["10.7.0.2", "10.7.0.3"]);
    }
    // It is told, and DEL takes care of it.
    let faults = fairlead_cni::audit::audit(&node.run).unwrap().faults;
    assert!(faults.iter().any(|f| f.contains("10.7.0.2")), "{faults:?}");
    for pod in &pods {
        node.del(pod).success();
    }
    node.assert_clean();
}

/// Makes this test's machine look as if it had started anew, as far as `/proc` tells.
fn another_boot(node: &Node, number: usize) {
    let file = node.dir.path().join(format!("boot{number}"));
    std::fs::write(&file, format!("00000000-0000-4000-8000-00000000000{number}\n")).unwrap();
    let path = "/proc/sys/kernel/random/boot_id";
    mount(Some(&file), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn after_a_reboot_nothing_of_before_counts() {
    let Some(node) = Node::new(&CIDRS) else { return };
    another_boot(&node, 1);
    assert_eq!(fairlead_cni::reconcile(&node.run, |_| true).unwrap().removed.len(), 0);
    let pods: Vec<Pod> = (0..3).map(|i| node.pod(&format!("p{i}"))).collect();
    for pod in &pods {
        node.add(pod).success();
    }
    node.del(&pods[2]).success();
    // Released long after the machine had started: by the clock that counts from boot that is to come.
    let resting = node.run.ipam().join("pools/10.7.0.0-24/resting/0");
    let late = std::time::Duration::from_secs(1 << 30);
    let late = nix::sys::time::TimeSpec::from_duration(late);
    let nofollow = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &resting, &late, &late, nofollow).unwrap();
    // The same boot: nothing is forgotten.
    assert_eq!(fairlead_cni::reconcile(&node.run, |_| true).unwrap().removed.len(), 0);
    assert_eq!(node.used().len(), 4);

    // The run directory was on a disk: all is there, but interfaces, pins and socket are gone. A path of
    // before may be another namespace now, and a name another's: what `live` says does not count.
    for interface in node.interfaces() {
        assert!(
            std::process::Command::new("ip").args(["link", "del", &interface]).status().unwrap().success()
        );
    }
    node.stop_agent();
    another_boot(&node, 2);
    assert_eq!(node.add(&pods[0]).code(), 11);
    let done = fairlead_cni::reconcile(&node.run, |_| true).unwrap();
    let mut removed: Vec<_> = done.removed.iter().map(|a| a.container_id.as_str()).collect();
    removed.sort_unstable();
    assert_eq!(removed, ["p0", "p1"]);
    node.assert_clean();
    assert_eq!(fairlead_cni::reconcile(&node.run, |_| true).unwrap().removed.len(), 0);
    node.start_agent();
    // Runtimes clean up after sandboxes of before, whose DELs come late; nothing of it is lost or twice.
    node.del(&pods[1]).success();
    for (pod, address) in pods.iter().zip(["10.7.0.2/32", "10.7.0.3/32", "10.7.0.4/32"]) {
        assert_eq!(node.add(pod).success()["ips"][0]["address"], address);
    }
    assert_eq!(fairlead_cni::audit::audit(&node.run).unwrap().faults, [""; 0]);

    // And where it was a tmpfs, there is nothing.
    for pod in &pods {
        node.del(pod).success();
    }
    node.stop_agent();
    another_boot(&node, 3);
    std::fs::remove_dir_all(node.run.path()).unwrap();
    std::fs::create_dir(node.run.path()).unwrap();
    fairlead_cni::reconcile(&node.run, |_| true).unwrap();
    assert_eq!(node.add(&pods[0]).code(), 11);
    node.write_node(&CIDRS);
    node.start_agent();
    assert_eq!(node.add(&pods[0]).success()["ips"][0]["address"], "10.7.0.2/32");
    assert_eq!(fairlead_cni::audit::audit(&node.run).unwrap().faults, [""; 0]);
}
