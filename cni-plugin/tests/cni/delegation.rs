//! Addresses from another plugin, the run directory in bad shape, and what reconcile makes of it.

use std::os::unix::fs::PermissionsExt;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::node::{Node, Output, Pod, names};

const CIDRS: [&str; 2] = ["10.7.0.0/24", "fd07::/64"];

/// Leaves a file for each call, and fails while there is a file `fail`.
const IPAM: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 9
cat > "heard.$CNI_COMMAND.$CNI_CONTAINERID"
if [ -e "fail.$CNI_COMMAND" ]; then
    echo '{"cniVersion":"1.1.0","code":222,"msg":"as told"}'
    exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then
    echo '{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.9/24","gateway":"192.0.2.1"},{"address":"2001:db8::9/64"}],"dns":{"nameservers":["192.0.2.53"]}}'
fi
"#;

struct Delegating {
    node: Node,
    path: std::path::PathBuf,
}

impl Delegating {
    fn new() -> Option<Self> {
        let node = Node::new(&CIDRS)?;
        let path = node.dir.path().join("bin");
        std::fs::create_dir(&path).unwrap();
        let file = path.join("other-ipam");
        std::fs::write(&file, IPAM).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { node, path })
    }

    fn verb(&self, verb: &str, pod: &Pod, more: &Value) -> Output {
        let mut conf = self.node.conf_with(&json!({"ipam": {"type": "other-ipam", "its": "own"}}));
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        let environment = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &pod.id),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", &pod.path),
            ("CNI_PATH", self.path.to_str().unwrap()),
        ];
        self.node.call(&environment, &conf.to_string())
    }

    fn heard(&self) -> Vec<String> {
        let heard: Vec<String> = names(&self.path).into_iter().filter(|n| n.starts_with("heard")).collect();
        for name in &heard {
            std::fs::remove_file(self.path.join(name)).unwrap();
        }
        heard
    }

    fn fail(&self, verb: &str, fail: bool) {
        let file = self.path.join(format!("fail.{verb}"));
        if fail { std::fs::write(file, "").unwrap() } else { std::fs::remove_file(file).unwrap() }
    }
}

#[test]
fn another_plugin_manages_the_addresses() {
    let Some(d) = Delegating::new() else { return };
    let pod = d.node.pod("a");
    let none = json!({});
    let result = d.verb("ADD", &pod, &none).success();
    assert_eq!(
        result["ips"][0],
        json!({"address": "192.0.2.9/32", "gateway": "169.254.1.1", "interface": 1})
    );
    assert_eq!(result["ips"][1]["address"], "2001:db8::9/128");
    assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.53"]}));
    let input = std::fs::read_to_string(d.path.join("heard.ADD.a")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&input).unwrap()["ipam"]["its"], "own");
    assert_eq!(d.heard(), ["heard.ADD.a"]);
    pod.within(|| std::net::UdpSocket::bind("192.0.2.9:9").unwrap());
    assert_eq!(d.node.used(), [""; 0]);

    // Twice: the first keeps what it has.
    assert_eq!(d.verb("ADD", &pod, &none).code(), 101);
    assert_eq!(d.heard(), [""; 0]);
    assert!(d.verb("CHECK", &pod, &json!({"prevResult": result})).ok);
    assert_eq!(d.heard(), ["heard.CHECK.a"]);
    d.fail("CHECK", true);
    assert_eq!(d.verb("CHECK", &pod, &json!({"prevResult": result})).code(), 222);
    assert!(d.verb("STATUS", &pod, &none).ok);
    d.fail("STATUS", true);
    assert_eq!(d.verb("STATUS", &pod, &none).code(), 222);
    d.heard();

    d.fail("DEL", true);
    assert_eq!(d.verb("DEL", &pod, &none).code(), 108);
    d.fail("DEL", false);
    d.verb("DEL", &pod, &none).success();
    d.verb("DEL", &pod, &none).success();
    d.node.assert_clean();
    d.heard();

    d.verb("ADD", &pod, &none).success();
    d.verb("GC", &pod, &json!({"cni.dev/valid-attachments": []})).success();
    assert_eq!(d.heard(), ["heard.ADD.a", "heard.DEL.a", "heard.GC.a"]);
    d.node.assert_clean();
}

#[test]
fn a_failure_gives_back_what_the_other_plugin_gave() {
    let Some(d) = Delegating::new() else { return };
    let pod = d.node.pod("a");
    d.fail("ADD", true);
    assert_eq!(d.verb("ADD", &pod, &json!({})).code(), 222);
    d.node.assert_clean();
    d.fail("ADD", false);
    d.heard();
    d.node.heard.lock().unwrap().say.push_back(crate::node::Say::Error("internal"));
    assert_eq!(d.verb("ADD", &pod, &json!({})).code(), 106);
    assert_eq!(d.heard(), ["heard.ADD.a", "heard.DEL.a"]);
    d.node.assert_clean();
    assert_eq!(d.verb("ADD", &pod, &json!({"ipam": {"type": "not-there"}})).code(), 109);
    assert_eq!(d.verb("ADD", &pod, &json!({"ipam": {"type": "../sh"}})).code(), 7);
    d.node.assert_clean();
}

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

#[test]
fn a_full_file_system_fails_cleanly() {
    let Some(node) = Node::new(&CIDRS) else { return };
    let options = "size=64k,nr_inodes=40";
    mount(
        Some("tmpfs"),
        &node.run.ipam().parent().unwrap().join("."),
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options),
    )
    .unwrap();
    node.write_node(&CIDRS);
    node.start_agent();
    let mut refused = 0;
    let mut wired = Vec::new();
    for i in 0..12 {
        let pod = node.pod(&format!("p{i}"));
        let output = node.add(&pod);
        if output.ok {
            wired.push(pod);
        } else {
            assert_eq!(output.code(), 5, "{}", output.stdout);
            refused += 1;
        }
    }
    assert!(refused > 0 && !wired.is_empty());
    assert_eq!(node.interfaces().len(), wired.len());
    assert_eq!(names(&node.run.endpoints()).len(), wired.len());
    assert_eq!(node.used().len(), 2 * wired.len());
    for pod in &wired {
        node.del(pod).success();
    }
    assert_eq!(node.used(), [""; 0]);
    node.add(&wired[0]).success();
}
