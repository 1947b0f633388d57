//! What `fairlead ipam check` finds.

use std::process::Command;

use fairlead_cni::audit::audit;
use fairlead_common::maps::slot_of;

use crate::node::{Node, Pod};

const CIDRS: [&str; 2] = ["10.7.0.0/24", "fd07::/64"];

fn ip(args: &str) {
    assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success(), "ip {args}");
}

#[test]
fn what_agrees_is_shown_and_what_does_not_is_told() {
    let Some(node) = Node::new(&CIDRS) else { return };
    let pods = ["a", "b"].map(|id| node.pod(id));
    for pod in &pods {
        node.add(pod).success();
    }
    // The agent is not asked.
    node.stop_agent();
    let reserved = audit(&node.run).unwrap();
    assert_eq!(reserved.faults, [""; 0]);
    let shown: Vec<String> =
        reserved.addresses.iter().map(|a| format!("{} {}", a.address, a.container_id)).collect();
    assert_eq!(shown, ["10.7.0.2 a", "10.7.0.3 b", "fd07::2 a", "fd07::3 b"]);
    assert_eq!(reserved.pools.iter().map(|p| (p.used, p.resting)).collect::<Vec<_>>(), [(2, 0), (2, 0)]);
    node.del(&pods[1]).success();
    let reserved = audit(&node.run).unwrap();
    assert_eq!(reserved.faults, [""; 0]);
    assert_eq!(reserved.pools.iter().map(|p| (p.used, p.resting)).collect::<Vec<_>>(), [(1, 1), (1, 1)]);
    node.start_agent();

    type Break<'a> = (&'a str, Box<dyn Fn(&Node, &Pod) + 'a>);
    let host = |node: &Node, pod: &Pod| node.attachment(pod).unwrap().host_ifname;
    let breaks: Vec<Break<'_>> = vec![
        (
            "is not reserved",
            Box::new(|node, pod| {
                let address = node.attachment(pod).unwrap().addresses[0];
                std::fs::remove_file(node.run.ipam().join("used").join(address.to_string())).unwrap();
            }),
        ),
        (
            "slot",
            Box::new(|node, pod| {
                let slot = slot_of(node.attachment(pod).unwrap().host_ifindex);
                std::fs::remove_file(node.run.ipam().join("slots").join(slot.to_string())).unwrap();
            }),
        ),
        (
            "which has no such address",
            Box::new(|node, pod| {
                std::fs::remove_file(node.run.endpoint(&pod.id, "eth0")).unwrap();
            }),
        ),
        (
            "belongs to no attachment",
            Box::new(|node, pod| {
                std::fs::remove_file(node.run.endpoint(&pod.id, "eth0")).unwrap();
            }),
        ),
        ("has no interface", Box::new(move |node, pod| ip(&format!("link del {}", host(node, pod))))),
        ("no route to", Box::new(move |node, pod| ip(&format!("route flush dev {}", host(node, pod))))),
        (
            "attachment broken",
            Box::new(|node, pod| {
                std::fs::write(node.run.endpoint(&pod.id, "eth0"), "{").unwrap();
            }),
        ),
        (
            "10.7.0.2 belongs to a:eth0 and to broken:eth0",
            Box::new(|node, pod| {
                let mut twin = node.attachment(pod).unwrap();
                twin.addresses[0] = "10.7.0.2".parse().unwrap();
                std::fs::write(node.run.endpoint(&pod.id, "eth0"), serde_json::to_vec(&twin).unwrap())
                    .unwrap();
            }),
        ),
    ];
    for (word, spoil) in &breaks {
        let pod = node.pod("broken");
        node.add(&pod).success();
        spoil(&node, &pod);
        let faults = audit(&node.run).unwrap().faults;
        assert!(faults.iter().any(|f| f.contains(word)), "{word}: {faults:?}");
        // DEL and reconcile put it right.
        node.del(&pod).success();
        fairlead_cni::reconcile(&node.run, |a| a.container_id == "a").unwrap();
        assert_eq!(audit(&node.run).unwrap().faults, [""; 0], "after {word}");
    }
    println!("cases: {}", breaks.len());
}

#[test]
fn without_a_run_directory_it_is_an_error() {
    let nowhere = fairlead_api::RunDir("/nowhere/fairlead".into());
    assert_eq!(audit(&nowhere).unwrap_err().code, 5);
    assert!(!nowhere.path().exists());
}
