//! ADD and DEL on a node of its own: what is made, how it is undone, and who may fail meanwhile.

use std::net::UdpSocket;
use std::time::Duration;

use crate::node::{Node, Pod, Say, killed_ifindex, names};
use fairlead_cni::bpf::Trampolines;
use fairlead_cni::netlink::Netlink;
use fairlead_cni::netns::Netns;
use fairlead_cni::{check, wire};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use serde_json::{Value, json};

const DUAL: [&str; 2] = ["10.7.0.0/24", "fd07::/64"];

#[test]
fn two_pods_reach_each_other_over_both_families() {
    let Some(node) = Node::new(&DUAL) else { return };
    let (a, b) = (node.pod("a"), node.pod("b"));
    let result = node.add(&a).success();
    node.add(&b).success();
    let attachment = node.attachment(&a).unwrap();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": attachment.host_ifname, "mac": attachment.host_mac.to_string(), "mtu": 1450},
                {"name": "eth0", "mac": attachment.pod_mac.to_string(), "mtu": 1450, "sandbox": a.path},
            ],
            "ips": [
                {"address": "10.7.0.2/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd07::2/128", "gateway": "fe80::1", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}],
        })
    );
    assert_eq!(node.heard.lock().unwrap().put[0], attachment);
    for (from, to) in [("10.7.0.2", "10.7.0.3"), ("fd07::2", "fd07::3")] {
        let receiver = b.within(|| UdpSocket::bind((to, 9)).unwrap());
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sender = a.within(|| UdpSocket::bind((from, 9)).unwrap());
        sender.send_to(b"hello", (to, 9)).unwrap();
        let mut buffer = [0; 16];
        let (n, peer) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..n], peer.ip().to_string().as_str()), (&b"hello"[..], from));
        receiver.send_to(b"back", peer).unwrap();
        sender.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(sender.recv_from(&mut buffer).unwrap().0, 4);
    }
    // lo works in the pod, and neither end has a link-local address.
    a.within(|| {
        let s = UdpSocket::bind("127.0.0.1:7").unwrap();
        s.send_to(b"x", "127.0.0.1:7").unwrap();
    });
    let addresses = |text: String| text.lines().map(|l| l.to_owned()).filter(|l| l.contains("eth0")).count();
    assert_eq!(a.within(|| addresses(std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap())), 1);
    for pod in [&a, &b] {
        node.del(pod).success();
    }
    node.assert_clean();
    assert_eq!(node.heard.lock().unwrap().deleted, ["/v1/endpoints/a/eth0", "/v1/endpoints/b/eth0"]);
}

#[test]
fn the_programs_are_attached_before_anything_is_up() {
    let Some(node) = Node::new(&DUAL) else { return };
    let pod = node.pod("a");
    node.add(&pod).success();
    let mut attachment = node.attachment(&pod).unwrap();
    assert_eq!(check::attached_programs(attachment.host_ifindex).unwrap(), node.programs.map(Some));
    node.del(&pod).success();
    // The same batch by itself.
    attachment.host_ifindex += 1;
    let netns = Netns::open(pod.path.as_ref()).unwrap();
    let trampolines = Trampolines::open(&node.frozen()).unwrap();
    let mut host = Netlink::open().unwrap();
    for result in host.batch(wire::create(&attachment, netns.raw_fd(), &trampolines)).unwrap() {
        result.unwrap();
    }
    assert_eq!(check::attached_programs(attachment.host_ifindex).unwrap(), node.programs.map(Some));
    let index = attachment.host_ifindex;
    let up = || {
        let links =
            Netlink::open().unwrap().dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
        let flags = links.into_iter().find_map(|link| match link {
            RouteNetlinkMessage::NewLink(link) if link.header.index == index => Some(link.header.flags),
            _ => None,
        });
        flags.unwrap().contains(LinkFlags::Up)
    };
    assert!(!up());
    assert!(!pod.within(up));
    // And this is how it looks when it is up.
    host.all(wire::host_side(&attachment)).unwrap();
    assert!(up());
}

#[test]
fn add_twice_is_an_error_and_del_twice_is_not() {
    let Some(node) = Node::new(&DUAL) else { return };
    let pod = node.pod("a");
    node.add(&pod).success();
    assert_eq!(node.add(&pod).code(), 101);
    assert_eq!(node.used().len(), 2);
    assert_eq!(node.del(&pod).success(), Value::Null);
    assert_eq!(node.del(&pod).success(), Value::Null);
    assert_eq!(node.del(&node.pod("never-there")).success(), Value::Null);
    node.assert_clean();
    // ADD and DEL of one interface name in a living namespace.
    node.add(&pod).success();
    node.del(&pod).success();
    node.assert_clean();
}

#[test]
fn an_interface_of_that_name_is_left_alone() {
    let Some(node) = Node::new(&DUAL) else { return };
    let pod = node.pod("a");
    node.add(&pod).success();
    let other = Pod { file: pod.file.try_clone().unwrap(), path: pod.path.clone(), id: "other".into() };
    assert_eq!(node.add(&other).code(), 101);
    assert_eq!(node.used().len(), 2);
    assert_eq!(node.interfaces().len(), 1);
    node.del(&pod).success();
    node.assert_clean();
}

#[test]
fn an_agent_that_is_away_stuck_or_unwilling_leaves_nothing() {
    let Some(node) = Node::new(&DUAL) else { return };
    node.write_node_with(&DUAL, 300);
    let pod = node.pod("a");
    for (say, code) in [
        (Say::Error("try-again"), 11),
        (Say::Nothing, 11),
        (Say::Error("invalid"), 106),
        (Say::Error("interface"), 106),
        (Say::Error("internal"), 106),
    ] {
        node.heard.lock().unwrap().say.push_back(say);
        let begin = std::time::Instant::now();
        assert_eq!(node.add(&pod).code(), code, "{say:?}");
        assert!(begin.elapsed() < Duration::from_secs(5));
        node.assert_clean();
        let attachment = node.heard.lock().unwrap().put.last().unwrap().clone();
        let slot = attachment.host_ifindex & 4095;
        assert_eq!(killed_ifindex(&node.frozen(), slot), attachment.host_ifindex, "{say:?}");
    }
    node.stop_agent();
    assert_eq!(node.add(&pod).code(), 11);
    node.assert_clean();
    std::fs::remove_file(node.run.node()).unwrap();
    assert_eq!(node.add(&pod).code(), 11);
}

#[test]
fn a_slot_that_the_agent_refuses_is_replaced() {
    let Some(node) = Node::new(&DUAL) else { return };
    let pod = node.pod("a");
    node.heard.lock().unwrap().say.extend([Say::Error("slot-taken"), Say::Error("slot-taken")]);
    node.add(&pod).success();
    let tried: Vec<u32> = node.heard.lock().unwrap().put.iter().map(|a| a.host_ifindex).collect();
    assert_eq!(tried.len(), 3);
    assert!(tried.is_sorted_by(|a, b| a < b), "{tried:?}");
    assert_eq!(node.attachment(&pod).unwrap().host_ifindex, tried[2]);
    assert_eq!(node.interfaces().len(), 1);
    assert_eq!(names(&node.run.ipam().join("slots")), [(tried[2] & 4095).to_string()]);
    assert_eq!(node.used().len(), 2);
    node.del(&pod).success();
    node.assert_clean();
}

#[test]
fn an_index_or_a_namespace_that_cannot_be_had() {
    let Some(node) = Node::new(&["10.7.0.0/24"]) else { return };
    let first = node.pod("first");
    node.add(&first).success();
    let next = node.attachment(&first).unwrap().host_ifindex + 1;
    // Somebody else's interface has the next index, in the pod.
    let pod = node.pod("a");
    pod.within(|| {
        let status = std::process::Command::new("ip")
            .args(["link", "add", "x0", "index", &next.to_string(), "type", "veth", "peer", "name", "x1"])
            .status();
        assert!(status.unwrap().success());
    });
    node.add(&pod).success();
    assert!(node.attachment(&pod).unwrap().host_ifindex > next);
    for pod in [&first, &pod] {
        node.del(pod).success();
    }
    node.assert_clean();
    let gone = Pod { path: "/nowhere/netns".into(), file: pod.file.try_clone().unwrap(), id: "b".into() };
    assert_eq!(node.add(&gone).code(), 102);
    let file = Pod { path: "/etc/passwd".into(), file: pod.file.try_clone().unwrap(), id: "b".into() };
    assert_eq!(node.add(&file).code(), 102);
    let own = Pod { path: "/proc/self/ns/net".into(), file: pod.file.try_clone().unwrap(), id: "b".into() };
    assert_eq!(node.add(&own).code(), 102);
    node.assert_clean();
}

#[test]
fn del_needs_neither_agent_nor_namespace_nor_record() {
    let Some(node) = Node::new(&DUAL) else { return };
    let (a, b, c) = (node.pod("a"), node.pod("b"), node.pod("c"));
    for pod in [&a, &b, &c] {
        node.add(pod).success();
    }
    node.stop_agent();
    let index = node.attachment(&a).unwrap().host_ifindex;
    let gone = Pod { path: String::new(), file: a.file.try_clone().unwrap(), id: "a".into() };
    node.del(&gone).success();
    assert_eq!(killed_ifindex(&node.frozen(), index & 4095), index);
    // A record that cannot be read, and none at all.
    std::fs::write(node.run.endpoint("b", "eth0"), "{\"half").unwrap();
    node.del(&b).success();
    std::fs::remove_file(node.run.endpoint("c", "eth0")).unwrap();
    node.del(&c).success();
    assert_eq!(node.interfaces(), [""; 0]);
    node.assert_clean();
}

#[test]
fn nothing_is_left_when_del_returns() {
    let Some(node) = Node::new(&DUAL) else { return };
    let pod = node.pod("a");
    for _ in 0..10 {
        node.add(&pod).success();
        let attachment = node.attachment(&pod).unwrap();
        node.del(&pod).success();
        let index = |name: &str| nix::net::if_::if_nametoindex(name).ok();
        assert_eq!(index(&attachment.host_ifname), None);
        assert_eq!(pod.within(|| (index("eth0"), index("lo"))), (None, Some(1)));
    }
}

#[test]
fn addresses_run_out_and_rest() {
    let Some(node) = Node::new(&["10.7.0.0/29"]) else { return };
    let pods: Vec<_> = (0..5).map(|n| node.pod(&format!("p{n}"))).collect();
    for pod in &pods {
        node.add(pod).success();
    }
    let more = node.pod("more");
    assert_eq!(node.add(&more).code(), 100);
    let status = |node: &Node| node.call(&[("CNI_COMMAND", "STATUS")], &node.conf().to_string());
    assert_eq!(status(&node).code(), 100);
    assert_eq!(node.used().len(), 5);
    node.del(&pods[3]).success();
    assert!(status(&node).ok);
    // Nothing else is free: the one that rests is given.
    assert_eq!(node.add(&more).success()["ips"][0]["address"], "10.7.0.5/32");
}

#[test]
fn what_is_asked_for_is_given_or_refused() {
    let Some(node) = Node::new(&DUAL) else { return };
    let (a, b) = (node.pod("a"), node.pod("b"));
    let asked = json!({"runtimeConfig": {"ips": ["10.7.0.77/24"], "mac": "02:00:00:00:00:77"}, "mtu": 1300});
    let result = node.verb("ADD", &a, &node.conf_with(&asked)).success();
    assert_eq!(result["ips"][0]["address"], "10.7.0.77/32");
    assert_eq!(result["ips"][1]["address"], "fd07::2/128");
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:77");
    assert_eq!(result["interfaces"][1]["mtu"], 1300);
    assert_eq!(node.verb("ADD", &b, &node.conf_with(&asked)).code(), 103);
    let outside = json!({"runtimeConfig": {"ips": ["10.8.0.1"]}});
    assert_eq!(node.verb("ADD", &b, &node.conf_with(&outside)).code(), 7);
    assert_eq!(node.used().len(), 2);
    let ranges = json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.10"}]]}});
    let result = node.verb("ADD", &b, &node.conf_with(&ranges)).success();
    assert_eq!(result["ips"], json!([{"address": "10.9.0.9/32", "gateway": "169.254.1.1", "interface": 1}]));
}

#[test]
fn a_namespace_without_ipv6_gets_it() {
    let Some(node) = Node::new(&DUAL) else { return };
    let pod = node.pod("a");
    pod.within(|| {
        for which in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
        }
    });
    node.add(&pod).success();
    pod.within(|| UdpSocket::bind("[fd07::2]:9").unwrap());
}

#[test]
fn a_second_interface_of_a_pod_is_reached_and_answers_by_its_own_routes() {
    let Some(node) = Node::new(&DUAL) else { return };
    let (pod, other) = (node.pod("two"), node.pod("other"));
    let before = pod.rules();
    let on = |verb: &str, ifname: &str, more: &Value| {
        let environment = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "two"),
            ("CNI_IFNAME", ifname),
            ("CNI_NETNS", pod.path.as_str()),
        ];
        node.call(&environment, &node.conf_with(more).to_string())
    };
    let none = json!({});
    let first = on("ADD", "eth0", &none).success();
    let second = on("ADD", "net1", &none).success();
    node.add(&other).success();
    // Its routes are told with their table, and not at all where a result cannot say so.
    assert_eq!(first["routes"][0].get("table"), None);
    assert!(second["routes"].as_array().unwrap().iter().all(|route| route["table"].as_u64() > Some(0xffff)));
    let old = on("ADD", "net2", &json!({"cniVersion": "1.0.0"})).success();
    assert_eq!(old.get("routes"), None);
    on("DEL", "net2", &none).success();
    for (ifname, result) in [("eth0", &first), ("net1", &second)] {
        assert!(on("CHECK", ifname, &json!({"prevResult": result})).ok);
    }
    // TCP is answered from the address that was asked, over its own interface.
    for ip in [&first, &second].into_iter().flat_map(|r| r["ips"].as_array().unwrap()) {
        let address: std::net::IpAddr =
            ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
        let listener = pod.within(|| std::net::TcpListener::bind((address, 80)).unwrap());
        let to = listener.local_addr().unwrap();
        other.within(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap());
    }
    on("DEL", "net1", &none).success();
    assert_eq!(pod.rules(), before);
    // GC of what is not listed takes the rules along, and leaves the other interface.
    on("ADD", "net1", &none).success();
    let listed =
        json!([{"containerID": "two", "ifname": "eth0"}, {"containerID": other.id, "ifname": "eth0"}]);
    assert!(on("GC", "eth0", &json!({"cni.dev/valid-attachments": listed})).ok);
    assert_eq!(pod.rules(), before);
    assert!(on("CHECK", "eth0", &json!({"prevResult": first})).ok);
    // Undone where a later step fails.
    node.heard.lock().unwrap().say.push_back(Say::Error("internal"));
    assert_eq!(on("ADD", "net1", &none).code(), 106);
    assert_eq!(pod.rules(), before);
    on("DEL", "eth0", &none).success();
    node.del(&other).success();
    node.assert_clean();

    // And where another plugin's interface had the default route first, and the pod no IPv6.
    pod.within(|| {
        for which in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
        }
        for args in [
            "link add x0 type veth peer name x1",
            "addr add 192.0.2.2/24 dev x0",
            "link set x0 up",
            "link set x1 up",
            "route add default via 192.0.2.1",
        ] {
            assert!(std::process::Command::new("ip").args(args.split(' ')).status().unwrap().success());
        }
    });
    let result = on("ADD", "net1", &none).success();
    assert!(on("CHECK", "net1", &json!({"prevResult": result})).ok);
    let address = result["ips"][1]["address"].as_str().unwrap().strip_suffix("/128").unwrap();
    pod.within(|| {
        let output = std::process::Command::new("ip").args(["route", "show", "default"]).output().unwrap();
        let defaults = String::from_utf8(output.stdout).unwrap();
        assert!(
            defaults.starts_with("default via 192.0.2.1 dev x0") && defaults.lines().count() == 1,
            "{defaults}"
        );
        UdpSocket::bind((address, 9)).unwrap();
    });
    on("DEL", "net1", &none).success();
    node.assert_clean();
}

#[test]
fn thirty_at_once() {
    let Some(node) = Node::new(&DUAL) else { return };
    let pods: Vec<_> = (0..30).map(|n| node.pod(&format!("p{n}"))).collect();
    let all = |verb: &str| {
        let children: Vec<_> = pods
            .iter()
            .map(|pod| {
                let mut child = node
                    .command(&[
                        ("CNI_COMMAND", verb),
                        ("CNI_CONTAINERID", &pod.id),
                        ("CNI_IFNAME", "eth0"),
                        ("CNI_NETNS", &pod.path),
                    ])
                    .spawn()
                    .unwrap();
                let input = node.conf().to_string();
                std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
                child
            })
            .collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    };
    all("ADD");
    assert_eq!(node.used().len(), 60);
    assert_eq!(node.interfaces().len(), 30);
    all("DEL");
    node.assert_clean();
}

#[test]
fn the_same_container_added_by_many_at_once_is_added_once() {
    let Some(node) = Node::new(&DUAL) else { return };
    let pod = node.pod("a");
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..8).map(|_| scope.spawn(|| node.add(&pod))).collect();
        callers.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let (done, refused): (Vec<_>, Vec<_>) = outputs.into_iter().partition(|o| o.ok);
    assert_eq!(done.len(), 1);
    assert!(refused.iter().all(|o| o.code() == 101));
    assert_eq!((node.used().len(), node.interfaces().len()), (2, 1));
    node.del(&pod).success();
    node.assert_clean();
}

#[test]
fn an_address_is_not_given_again_at_once_and_no_index_ever() {
    let Some(node) = Node::new(&DUAL) else { return };
    let (mut addresses, mut indexes) = (Vec::new(), Vec::new());
    for n in 0..6 {
        let pod = node.pod(&format!("p{n}"));
        node.add(&pod).success();
        let attachment = node.attachment(&pod).unwrap();
        assert!(fairlead_common::maps::ifindex_usable(attachment.host_ifindex));
        addresses.push(attachment.addresses[0]);
        indexes.push(attachment.host_ifindex);
        node.del(&pod).success();
    }
    assert!(addresses.is_sorted_by(|a, b| a < b), "{addresses:?}");
    assert!(indexes.is_sorted_by(|a, b| a < b) && indexes[0] > 0x10000, "{indexes:?}");
}
