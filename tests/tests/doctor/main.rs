//! `fairlead doctor` on nodes that have one trouble each, really made; and its remedies, really taken.
#![expect(clippy::unwrap_used, reason = "tests, and what they share")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use fairlead_tests::fabric;
use fairlead_tests::namespace::Namespace;
use serde_json::{Value, json};

/// A node as it is before an install, and where its things lie.
struct Node {
    namespace: Namespace,
    _fabric: Namespace,
    folder: tempfile::TempDir,
    doctor: PathBuf,
}

impl Node {
    async fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("fairlead-").tempdir().unwrap();
        for name in ["run", "cni", "bin"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["fairlead-cni", "loopback"] {
            let path = folder.path().join("bin").join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let l2 = fabric::bridge("fabric").await.unwrap();
        let namespace = Namespace::new_node("node-a").await.unwrap();
        let addresses = ["172.20.0.11/24", "fd20::11/64"].map(|a| a.parse().unwrap());
        fabric::connect(&l2, &namespace, &addresses).await.unwrap();
        let node = Self { namespace, _fabric: l2, folder, doctor: fairlead_tests::dist().join("fairlead") };
        node.shell("ip route add default via 172.20.0.1").await;
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn shell(&self, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-euc", script]);
        let output = self.namespace.run(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    async fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(&self.doctor);
        command.arg("doctor").args(words).arg("--run-dir").arg(self.path("run"));
        command.arg("--cni-conf-dir").arg(self.path("cni")).arg("--cni-bin-dir").arg(self.path("bin"));
        self.namespace.run(move || command.output()).await.unwrap().unwrap()
    }

    /// Findings of a severity, and the exit code.
    async fn findings(&self, words: &[&str], severity: &str) -> (Vec<Value>, Option<i32>) {
        let output = self.run(&[words, &["-o", "json"]].concat()).await;
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| unreachable!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        let all = report["findings"].as_array().unwrap();
        assert_eq!(report["fine"], !all.iter().any(|f| f["severity"] == "trouble"));
        let some = all.iter().filter(|f| f["severity"] == severity).cloned().collect();
        (some, output.status.code())
    }

    async fn assert_fine(&self) {
        let (found, code) = self.findings(&[], "trouble").await;
        assert_eq!((found, code), (vec![], Some(0)));
    }

    /// The one trouble that there is: its check, what it says, its remedy.
    async fn trouble(&self, words: &[&str]) -> (String, String, String) {
        let (found, code) = self.findings(words, "trouble").await;
        assert_eq!((found.len(), code), (1, Some(1)), "{found:#?}");
        let field = |name: &str| found[0][name].as_str().unwrap().to_owned();
        (field("check"), field("what"), field("remedy"))
    }

    /// As an agent that has run here has left it.
    fn was_run(&self, mtu: u32) {
        let node = json!({
            "nodeName": "node-a", "podCIDRs": ["10.244.1.0/24", "fd10:244:0:1::/64"], "mtu": mtu,
            "frozen": "/sys/fs/bpf/fairlead/frozen", "addTimeoutMs": 10_000,
        });
        std::fs::write(self.path("run/node.json"), node.to_string()).unwrap();
    }
}

#[tokio::test]
async fn a_node_without_trouble_is_fine_and_every_check_says_so() {
    if !fairlead_tests::privileged() {
        return;
    }
    let node = Node::new().await;
    // As an agent sets them.
    node.shell(
        "for d in ipv4/conf/all ipv4/conf/default ipv4/conf/eth0; do
           echo 0 > /proc/sys/net/$d/send_redirects; echo 2 > /proc/sys/net/$d/rp_filter
         done
         echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
         echo 2 > /proc/sys/net/ipv6/conf/eth0/accept_ra",
    )
    .await;
    node.was_run(1500);
    node.assert_fine().await;
    let (fine, _) = node.findings(&[], "fine").await;
    let checks: BTreeSet<&str> = fine.iter().map(|f| f["check"].as_str().unwrap()).collect();
    let all = ["clock", "executables", "firewall", "kernel", "mtu", "otherPlugins", "routes", "sysctl"];
    assert_eq!(checks, all.into());
    let text = node.run(&[]).await;
    assert!(String::from_utf8_lossy(&text.stdout).ends_with("nothing stands in the way\n"), "{text:?}");
    // Usage and failure are something else than "no".
    assert_eq!(node.run(&["--nonsense"]).await.status.code(), Some(2));
}

#[tokio::test]
async fn what_the_agent_will_set_is_no_trouble_and_what_is_set_back_is() {
    if !fairlead_tests::privileged() {
        return;
    }
    let node = Node::new().await;
    node.shell("echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter; echo 0 > /proc/sys/net/ipv4/ip_forward")
        .await;
    node.assert_fine().await;
    let (notes, _) = node.findings(&[], "note").await;
    let told = |name: &str| notes.iter().any(|n| n["what"].as_str().unwrap().starts_with(name));
    assert!(
        told("net.ipv4.ip_forward is \"0\"") && told("net.ipv4.conf.eth0.rp_filter is \"1\""),
        "{notes:#?}"
    );
    node.was_run(1500);
    let (found, code) = node.findings(&[], "trouble").await;
    assert!(found.iter().all(|f| f["check"] == "sysctl") && found.len() == notes.len(), "{found:#?}");
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn firewalls_that_drop_what_is_forwarded_are_told_with_a_remedy_that_helps() {
    if !fairlead_tests::privileged() {
        return;
    }
    for (made, says) in [
        (
            "iptables-legacy -w 10 -P FORWARD DROP; iptables-legacy -w 10 -A FORWARD -i eth9 -j ACCEPT",
            "iptables (legacy)",
        ),
        ("ip6tables-legacy -w 10 -P FORWARD DROP", "ip6tables (legacy)"),
        (
            "iptables-legacy -w 10 -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
             iptables-legacy -w 10 -A FORWARD -j REJECT --reject-with icmp-host-prohibited",
            "iptables (legacy)",
        ),
        (
            "ip6tables-legacy -w 10 -A FORWARD -j DROP; ip6tables-legacy -w 10 -A INPUT -i fl+ -j ACCEPT",
            "ip6tables (legacy)",
        ),
        (
            "nft 'table inet rocky { chain forward { type filter hook forward priority 10; policy accept; \
             ct state established accept; counter reject with icmpx admin-prohibited; }; }'",
            "chain forward of table inet rocky",
        ),
        (
            "nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy drop; \
             ct state established accept; iifname \"lo\" accept; }; }'",
            "chain filter_FORWARD of table inet firewalld",
        ),
        (
            "nft 'table ip6 ufw { chain forward { type filter hook forward priority 0; policy drop; }; }'",
            "table ip6 ufw",
        ),
    ] {
        let node = Node::new().await;
        node.shell(made).await;
        let (check, what, remedy) = node.trouble(&[]).await;
        assert!(check == "firewall" && what.contains(says), "{what}");
        node.shell(&remedy).await;
        node.assert_fine().await;
    }
    // What drops elsewhere, or by a rule of its own choice, is somebody's intention.
    let node = Node::new().await;
    node.shell(
        "iptables-legacy -w 10 -P INPUT DROP; iptables-legacy -w 10 -A FORWARD -d 192.0.2.0/24 -j DROP
         nft 'table inet mine { chain in { type filter hook input priority 0; policy drop; }; \
                                chain forward { type filter hook forward priority 0; policy accept; \
                                                ip daddr 192.0.2.0/24 reject; }; }'",
    )
    .await;
    node.assert_fine().await;
    let firewall = async || {
        let (notes, _) = node.findings(&[], "note").await;
        notes.into_iter().filter(|n| n["check"] == "firewall").collect::<Vec<_>>()
    };
    assert_eq!(firewall().await, Vec::<Value>::new());
    // With an overlay it may be in the way.
    node.shell("ip link add fl-overlay type vxlan external dstport 8472").await;
    let notes = firewall().await;
    assert_eq!(notes.len(), 1, "{notes:#?}");
    assert!(notes[0]["what"].as_str().unwrap().contains("chain in of table inet mine"), "{notes:#?}");
    let remedy = notes[0]["remedy"].as_str().unwrap().split_once(": ").unwrap().1.to_owned();
    node.shell(&remedy).await;
    assert_eq!(firewall().await, Vec::<Value>::new());
}

#[tokio::test]
async fn what_other_plugins_left_is_found() {
    if !fairlead_tests::privileged() {
        return;
    }
    let node = Node::new().await;
    std::fs::write(node.path("cni/10-flannel.conflist"), "{}").unwrap();
    node.assert_fine().await;
    let (notes, _) = node.findings(&[], "note").await;
    assert!(notes.iter().any(|n| n["what"].as_str().unwrap().contains("10-flannel.conflist")), "{notes:#?}");
    std::fs::rename(node.path("cni/10-flannel.conflist"), node.path("cni/00-a.conflist")).unwrap();
    let (check, what, _) = node.trouble(&[]).await;
    assert!(check == "otherPlugins" && what.contains("00-a.conflist comes before"), "{what}");
    std::fs::remove_file(node.path("cni/00-a.conflist")).unwrap();

    for (name, made) in [
        ("cni0", "ip link add cni0 type bridge"),
        ("cali0123456789a", "ip link add cali0123456789a type veth peer name other"),
        ("kube-bridge", "ip link add kube-bridge type bridge"),
        ("flannel.1", "ip link add flannel.1 type vxlan id 1 dstport 4789 local 172.20.0.11 dev eth0"),
    ] {
        node.shell(made).await;
        let (check, what, _) = node.trouble(&[]).await;
        assert!(check == "otherPlugins" && what.contains(&format!("interface {name} is left")), "{what}");
        node.shell(&format!("ip link del {name}")).await;
        node.assert_fine().await;
    }
    for (made, what, unmade) in [
        (
            "iptables-legacy -w 10 -t nat -N FLANNEL-POSTRTG",
            "1 chains of iptables or nftables are left from Flannel",
            "iptables-legacy -w 10 -t nat -X FLANNEL-POSTRTG",
        ),
        (
            "nft 'table ip filter { chain cali-FORWARD { }; chain cali-INPUT { }; }'",
            "2 chains of iptables or nftables are left from Calico",
            "nft delete table ip filter",
        ),
    ] {
        node.shell(made).await;
        let (check, found, _) = node.trouble(&[]).await;
        assert!(check == "otherPlugins" && found.starts_with(what), "{found}");
        node.shell(unmade).await;
        node.assert_fine().await;
    }
    // The overlay's port is somebody else's.
    node.shell("ip link add mine type vxlan id 1 dstport 8472 local 172.20.0.11 dev eth0").await;
    let (check, what, _) = node.trouble(&[]).await;
    assert!(check == "otherPlugins" && what.contains("device mine has UDP port 8472"), "{what}");
}

#[tokio::test]
async fn packets_that_do_not_fit_and_routes_that_lead_elsewhere_are_found() {
    if !fairlead_tests::privileged() {
        return;
    }
    let node = Node::new().await;
    node.shell(
        "for d in ipv4/conf/all ipv4/conf/default ipv4/conf/eth0; do
           echo 0 > /proc/sys/net/$d/send_redirects; echo 2 > /proc/sys/net/$d/rp_filter
         done
         echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
         echo 2 > /proc/sys/net/ipv6/conf/eth0/accept_ra",
    )
    .await;
    node.was_run(1450);
    node.shell(
        "ip link add fl-overlay type vxlan external dstport 8472; ip addr add 172.20.0.11/32 dev fl-overlay
         ip link set eth0 mtu 1400",
    )
    .await;
    let (check, what, remedy) = node.trouble(&[]).await;
    assert!(check == "mtu" && what.contains("no more than 1350 through the overlay"), "{what}");
    assert!(remedy.contains("1350"), "{remedy}");
    node.was_run(1350);
    node.assert_fine().await;
    // A pod from before.
    node.shell("ip link add flabcdefgh23456 mtu 1450 type veth peer name inside").await;
    node.assert_fine().await;
    let (notes, _) = node.findings(&[], "note").await;
    assert!(notes.iter().any(|n| n["check"] == "mtu"), "{notes:#?}");

    node.shell("ip route add 10.244.2.0/24 via 172.20.0.12 proto 70 metric 17996").await;
    node.shell("ip route add 10.244.3.0/24 via 172.20.0.13 metric 5").await;
    node.assert_fine().await;
    node.shell("ip route add 10.244.2.0/24 via 172.20.0.99 metric 5").await;
    let (check, what, remedy) = node.trouble(&[]).await;
    assert!(check == "routes" && what.contains("route to 10.244.2.0/24"), "{what}");
    node.shell(remedy.split(',').next().unwrap()).await;
    node.assert_fine().await;
}

#[tokio::test]
async fn a_node_that_lacks_something_is_told_what() {
    if !fairlead_tests::privileged() {
        return;
    }
    let mut node = Node::new().await;
    for name in ["fairlead-cni", "loopback"] {
        let (path, aside) = (node.path("bin").join(name), node.path("aside"));
        std::fs::rename(&path, &aside).unwrap();
        let (check, what, _) = node.trouble(&[]).await;
        assert!(check == "executables" && what.contains(name), "{what}");
        std::fs::rename(&aside, &path).unwrap();
    }
    let folder = node.path("run").join("fairlead");
    let (check, what, _) = node.trouble(&["--bpffs", folder.to_str().unwrap()]).await;
    assert!(check == "kernel" && what.contains("no BPF file system"), "{what}");
    // The clock cannot be set for one node alone: an executable of next year instead.
    let copy = node.path("fairlead");
    let made = format!("cp {} {1}; touch -d '+1 year' {1}", node.doctor.display(), copy.display());
    node.shell(&made).await;
    let now = std::mem::replace(&mut node.doctor, copy);
    let (check, what, _) = node.trouble(&[]).await;
    assert!(check == "clock" && what.contains("behind"), "{what}");
    node.doctor = now;
    node.shell("ip route del default").await;
    let (check, _, _) = node.trouble(&[]).await;
    assert_eq!(check, "uplink");
}
