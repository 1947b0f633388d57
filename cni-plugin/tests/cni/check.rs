//! CHECK finds each thing that is not as ADD left it, and says which.

use serde_json::json;

use crate::node::{Node, Pod};

const CIDRS: [&str; 2] = ["10.7.0.0/24", "fd07::/64"];

#[test]
fn check_says_what_differs() {
    let Some(node) = Node::new(&CIDRS) else { return };
    let ip = |args: &str| {
        let status = std::process::Command::new("ip").args(args.split(' ')).status().unwrap();
        assert!(status.success(), "ip {args}");
    };
    type Break<'a> = (&'a str, Box<dyn Fn(&Pod, &str) + 'a>);
    let breaks: Vec<Break<'_>> = vec![
        ("MTU", Box::new(|_, host| ip(&format!("link set {host} mtu 1400")))),
        ("is down", Box::new(|_, host| ip(&format!("link set {host} down")))),
        ("no route to 10.7.0.", Box::new(|_, host| ip(&format!("route flush dev {host}")))),
        ("neighbour", Box::new(|_, host| ip(&format!("neigh flush nud permanent dev {host}")))),
        ("is not there", Box::new(|pod, _| pod.within(|| ip("addr flush dev eth0 scope global")))),
        ("no default route", Box::new(|pod, _| pod.within(|| ip("-6 route del default")))),
        ("neighbour", Box::new(|pod, _| pod.within(|| ip("neigh flush nud permanent dev eth0")))),
        ("no interface", Box::new(|_, host| ip(&format!("link del {host}")))),
        (
            "programs",
            Box::new(|_, host| {
                let index = nix::net::if_::if_nametoindex(host).unwrap();
                let mut netlink = fairlead_cni::netlink::Netlink::open().unwrap();
                netlink.all(vec![fairlead_cni::wire::remove_clsact(index)]).unwrap();
            }),
        ),
        ("agent", Box::new(|_, _| node.heard.lock().unwrap().endpoints.clear())),
    ];
    for (i, (word, spoil)) in breaks.iter().enumerate() {
        let pod = node.pod(&format!("c{i}"));
        let conf = node.conf_with(&json!({"prevResult": node.add(&pod).success()}));
        assert!(node.verb("CHECK", &pod, &conf).ok);
        spoil(&pod, &node.attachment(&pod).unwrap().host_ifname);
        let output = node.verb("CHECK", &pod, &conf);
        assert_eq!(output.code(), 105, "{word}");
        assert!(output.json["msg"].as_str().unwrap().contains(word), "{word}: {}", output.stdout);
        node.del(&pod).success();
    }
    // And a result that is another attachment's.
    let (a, b) = (node.pod("a"), node.pod("b"));
    let result = node.add(&a).success();
    node.add(&b).success();
    assert_eq!(node.verb("CHECK", &b, &node.conf_with(&json!({"prevResult": result}))).code(), 105);
}
