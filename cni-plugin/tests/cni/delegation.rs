//! Addresses from another plugin.

use serde_json::{Value, json};

use crate::ipam::Ipam;
use crate::node::{Node, Pod, Say, names};

const CIDRS: [&str; 2] = ["10.7.0.0/24", "fd07::/64"];

#[test]
fn another_plugin_manages_the_addresses() {
    let Some(node) = Node::new(&CIDRS) else { return };
    let ipam = Ipam::install(&node);
    let pod = node.pod("a");
    let none = json!({});
    let result = ipam.verb(&node, "ADD", &pod, &none).success();
    assert_eq!(
        result["ips"][0],
        json!({"address": "192.0.2.9/32", "gateway": "169.254.1.1", "interface": 1})
    );
    assert_eq!(result["ips"][1]["address"], "2001:db8::9/128");
    assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.53"]}));
    assert_eq!(ipam.input("heard.ADD.a")["ipam"]["its"], "own");
    assert_eq!(ipam.heard(), ["heard.ADD.a"]);
    pod.within(|| std::net::UdpSocket::bind("192.0.2.9:9").unwrap());
    assert_eq!(node.used(), [""; 0]);

    // Twice: the first keeps what it has.
    assert_eq!(ipam.verb(&node, "ADD", &pod, &none).code(), 101);
    assert_eq!(ipam.heard(), [""; 0]);
    assert!(ipam.verb(&node, "CHECK", &pod, &json!({"prevResult": result})).ok);
    assert_eq!(ipam.heard(), ["heard.CHECK.a"]);
    ipam.fail("CHECK", true);
    assert_eq!(ipam.verb(&node, "CHECK", &pod, &json!({"prevResult": result})).code(), 222);
    assert!(ipam.verb(&node, "STATUS", &pod, &none).ok);
    ipam.fail("STATUS", true);
    assert_eq!(ipam.verb(&node, "STATUS", &pod, &none).code(), 222);
    ipam.heard();

    ipam.fail("DEL", true);
    assert_eq!(ipam.verb(&node, "DEL", &pod, &none).code(), 108);
    ipam.fail("DEL", false);
    ipam.verb(&node, "DEL", &pod, &none).success();
    ipam.verb(&node, "DEL", &pod, &none).success();
    node.assert_clean();
    ipam.heard();

    ipam.verb(&node, "ADD", &pod, &none).success();
    ipam.verb(&node, "GC", &pod, &json!({"cni.dev/valid-attachments": []})).success();
    assert_eq!(ipam.heard(), ["heard.ADD.a", "heard.DEL.a", "heard.GC.a"]);
    node.assert_clean();
}

#[test]
fn a_failure_gives_back_what_the_other_plugin_gave() {
    let Some(node) = Node::new(&CIDRS) else { return };
    let ipam = Ipam::install(&node);
    let pod = node.pod("a");
    ipam.fail("ADD", true);
    assert_eq!(ipam.verb(&node, "ADD", &pod, &json!({})).code(), 222);
    node.assert_clean();
    ipam.fail("ADD", false);
    ipam.heard();
    node.heard.lock().unwrap().say.push_back(Say::Error("internal"));
    assert_eq!(ipam.verb(&node, "ADD", &pod, &json!({})).code(), 106);
    assert_eq!(ipam.heard(), ["heard.ADD.a", "heard.DEL.a"]);
    node.assert_clean();
    assert_eq!(ipam.verb(&node, "ADD", &pod, &json!({"ipam": {"type": "not-there"}})).code(), 109);
    assert_eq!(ipam.verb(&node, "ADD", &pod, &json!({"ipam": {"type": "../sh"}})).code(), 7);
    node.assert_clean();
}

/// Debian's plugins know CNI 1.0.0 at most: they have neither GC nor STATUS, and must not be asked for
/// them, but where they could not serve ADD either, STATUS says so.
#[test]
fn plugins_that_speak_older_versions_are_asked_for_nothing_newer() {
    let Some(node) = Node::new(&CIDRS) else { return };
    for (kind, ipam) in [
        (
            "host-local",
            json!({"type": "host-local", "dataDir": node.dir.path().join("store"), "subnet": "10.9.0.0/29"}),
        ),
        ("static", json!({"type": "static", "addresses": [{"address": "10.9.1.5/24"}]})),
    ] {
        assert!(std::path::Path::new("/usr/lib/cni").join(kind).exists(), "{kind} (`cargo xtask setup`)");
        let (old, new) = (json!("1.0.0"), json!("1.1.0"));
        let call = |verb: &str, pod: &Pod, version: &Value, more: &Value| {
            let mut conf = node.conf_with(&json!({"cniVersion": version, "ipam": ipam}));
            for (key, value) in more.as_object().unwrap() {
                conf[key] = value.clone();
            }
            let environment = [
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", &pod.id),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", &pod.path),
                ("CNI_PATH", "/usr/lib/cni"),
            ];
            node.call(&environment, &conf.to_string())
        };
        let (pod, none) = (node.pod(&format!("of-{kind}")), json!({}));
        // In the newest version: ADD cannot be served, STATUS knows, GC has nothing to forward.
        let output = call("STATUS", &pod, &new, &none);
        assert_eq!(output.code(), 50);
        assert!(output.stdout.contains(kind), "{}", output.stdout);
        assert_eq!(call("ADD", &pod, &new, &none).code(), 1);
        node.assert_clean();
        call("GC", &pod, &new, &json!({"cni.dev/valid-attachments": []})).success();
        // In theirs: these verbs do not exist.
        let result = call("ADD", &pod, &old, &none).success();
        for verb in ["GC", "STATUS"] {
            assert_eq!(call(verb, &pod, &old, &none).code(), 1);
        }
        call("CHECK", &pod, &old, &json!({"prevResult": result})).success();
        // An attachment of theirs that GC cannot remove in the newer version stays on record, and is told.
        let output = call("GC", &pod, &new, &json!({"cni.dev/valid-attachments": []}));
        assert_eq!(output.code(), 108);
        assert!(output.stdout.contains(&pod.id), "{}", output.stdout);
        assert!(node.attachment(&pod).is_some());
        call("DEL", &pod, &old, &none).success();
        node.assert_clean();
        let held = names(&node.dir.path().join("store/fairlead"));
        assert!(!held.iter().any(|name| name.starts_with("10.9.")), "{held:?}");
        // Undone where a later step fails.
        node.heard.lock().unwrap().say.push_back(Say::Error("internal"));
        assert_eq!(call("ADD", &pod, &old, &none).code(), 106);
        node.assert_clean();
        let held = names(&node.dir.path().join("store/fairlead"));
        assert!(!held.iter().any(|name| name.starts_with("10.9.")), "{held:?}");
    }
}
