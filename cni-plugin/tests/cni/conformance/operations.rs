//! Section 2: execution protocol.

use serde_json::{Value, json};

use super::{RUNTIME, Row, check, conf, ip, other, row, silent, verb, with};
use crate::ipam::Ipam;
use crate::node::{Node, Pod};

/// Each of `variables`, left out or empty, is error 4 and named.
fn required(node: &Node, pod: &Pod, command: &str, variables: &[&'static str]) {
    for variable in variables {
        for value in [None, Some("")] {
            let change = [("CNI_COMMAND", Some(command)), (*variable, value)];
            let output = with(node, pod, &change, &node.conf().to_string());
            assert_eq!(output.code(), 4, "{command} {variable}");
            assert!(output.json["msg"].as_str().unwrap().contains(variable), "{}", output.stdout);
        }
    }
}

/// Up to DEL.
pub(super) const ROWS: &[Row] = &[
    row("§2 overview", "the configuration comes as JSON on standard input: else error 6", |node, pod| {
        for input in ["", "{", "[]", "nonsense", "\u{0}"] {
            assert_eq!(with(node, pod, &[], input).code(), 6, "{input:?}");
        }
    }),
    row(
        "§2 overview",
        "the runtime MUST run plugins on the node: no pod gets the node's namespace",
        |node, pod| {
            let own = [("CNI_NETNS", Some("/proc/self/ns/net"))];
            assert_eq!(with(node, pod, &own, &node.conf().to_string()).code(), 102);
            let told = [own[0], ("CNI_NETNS_OVERRIDE", Some("true"))];
            // Past that check: both ends cannot have one index in one namespace, which is the kernel's to say.
            assert_ne!(with(node, pod, &told, &node.conf().to_string()).code(), 102);
        },
    ),
    row("§2 CNI_CONTAINERID", "MUST NOT be empty", |node, pod| {
        for command in ["ADD", "DEL", "CHECK"] {
            required(node, pod, command, &["CNI_CONTAINERID"]);
        }
    }),
    row("§2 CNI_CONTAINERID", "MUST start with an alphanumeric, then those and _ . -", |node, pod| {
        for command in ["ADD", "DEL", "CHECK"] {
            for id in ["-a", ".a", "a/../b", "a:b", "a b"] {
                let change = [("CNI_COMMAND", Some(command)), ("CNI_CONTAINERID", Some(id))];
                assert_eq!(with(node, pod, &change, &node.conf().to_string()).code(), 4, "{command} {id}");
            }
        }
        let conf = node.conf().to_string();
        with(node, pod, &[("CNI_CONTAINERID", Some("0.a_b-C"))], &conf).success();
        with(node, pod, &[("CNI_COMMAND", Some("DEL")), ("CNI_CONTAINERID", Some("0.a_b-C"))], &conf)
            .success();
    }),
    row("§2 CNI_IFNAME", "a name that the plugin cannot use MUST be an error", |node, pod| {
        for name in [".", "..", "a/b", "sixteen-letters-", "a b", "a:b", "../x"] {
            let change = [("CNI_IFNAME", Some(name))];
            assert_eq!(with(node, pod, &change, &node.conf().to_string()).code(), 4, "{name:?}");
        }
    }),
    row("§2 errors", "MUST exit with 0 on success and with something else on failure", |node, pod| {
        assert!(node.add(pod).ok);
        assert!(!node.add(pod).ok);
        assert!(node.del(pod).ok);
    }),
    row("§2 errors", "SHOULD print an error object on failure", |node, pod| {
        // `code` looks at cniVersion, code and msg.
        assert_eq!(with(node, pod, &[("CNI_NETNS", Some("/nowhere"))], &node.conf().to_string()).code(), 102);
    }),
    row("§2 ADD", "SHOULD make the interface CNI_IFNAME in CNI_NETNS", |node, pod| {
        let change = [("CNI_IFNAME", Some("net7"))];
        with(node, pod, &change, &node.conf().to_string()).success();
        pod.within(|| assert!(nix::net::if_::if_nametoindex("net7").is_ok()));
        with(node, pod, &[change[0], ("CNI_COMMAND", Some("DEL"))], &node.conf().to_string()).success();
        pod.within(|| assert!(nix::net::if_::if_nametoindex("net7").is_err()));
    }),
    row("§2 ADD", "MUST print a result on standard output, and nothing else", |node, pod| {
        // `call` parses all of standard output as one document.
        let output = node.add(pod);
        assert!(output.ok && output.json["ips"].is_array() && !output.stderr.is_empty());
    }),
    row("§2 ADD", "MUST pass a prevResult through, or modify it", |node, pod| {
        let before = json!({
            "interfaces": [{"name": "other0", "sandbox": pod.path}],
            "ips": [{"address": "192.0.2.7/24", "interface": 0}],
            "routes": [{"dst": "192.0.2.0/24"}],
        });
        let result = node.verb("ADD", pod, &node.conf_with(&json!({"prevResult": before}))).success();
        assert_eq!(result["interfaces"][0], before["interfaces"][0]);
        assert_eq!(result["ips"][0], before["ips"][0]);
        assert_eq!(result["routes"][0], before["routes"][0]);
        assert_eq!(
            (&result["interfaces"][2]["name"], &result["ips"][1]["interface"]),
            (&json!("eth0"), &json!(2))
        );
    }),
    row("§2 ADD", "an interface of that name in the container MUST be an error", |node, pod| {
        pod.within(|| ip("link add eth0 type veth peer name x1"));
        assert_eq!(node.add(pod).code(), 101);
        node.assert_clean();
        pod.within(|| assert!(nix::net::if_::if_nametoindex("eth0").is_ok(), "it is not ours to remove"));
    }),
    row("§2 ADD", "runtimes SHOULD NOT repeat ADD: it is refused, and the first one stays", |node, pod| {
        let result = node.add(pod).success();
        assert_eq!(node.add(pod).code(), 101);
        silent(&check(node, pod, &result));
        // Under another name it is another attachment.
        let change = [("CNI_IFNAME", Some("eth1"))];
        with(node, pod, &change, &node.conf().to_string()).success();
        with(node, pod, &[change[0], ("CNI_COMMAND", Some("DEL"))], &node.conf().to_string()).success();
        silent(&check(node, pod, &result));
    }),
    row("§2 ADD", "REQUIRED: CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME", |node, pod| {
        required(node, pod, "ADD", &["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]);
        for command in ["add", "REMOVE"] {
            let output = with(node, pod, &[("CNI_COMMAND", Some(command))], &node.conf().to_string());
            assert_eq!(output.code(), 4, "{command}");
        }
    }),
    row("§2 ADD", "CNI_ARGS are key-value pairs, and tell of the pod", |node, pod| {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=7-7;X=y";
        with(node, pod, &[("CNI_ARGS", Some(args))], &node.conf().to_string()).success();
        let heard = node.heard.lock().unwrap().put.last().unwrap().pod.clone().unwrap();
        assert_eq!((heard.namespace.as_str(), heard.name.as_str()), ("shop", "cart"));
        assert_eq!(heard.uid.as_deref(), Some("7-7"));
        assert_eq!(with(node, pod, &[("CNI_ARGS", Some("X"))], &node.conf().to_string()).code(), 4);
    }),
    row("§2 DEL", "SHOULD delete the interface CNI_IFNAME in CNI_NETNS", |node, pod| {
        node.add(pod).success();
        silent(&node.del(pod));
        pod.within(|| assert!(nix::net::if_::if_nametoindex("eth0").is_err()));
    }),
    other("§2 DEL", "prevResult MUST be given", RUNTIME),
    row("§2 DEL", "SHOULD return without error if prevResult is empty", |node, pod| {
        for previous in [Value::Null, json!({}), json!(""), json!({"ips": 3})] {
            node.add(pod).success();
            silent(&node.verb("DEL", pod, &node.conf_with(&json!({"prevResult": previous}))));
            node.assert_clean();
        }
    }),
    row(
        "§2 DEL",
        "SHOULD complete as far as possible, even if resources or state are missing",
        |node, pod| {
            node.add(pod).success();
            node.stop_agent();
            std::fs::rename(node.run.node(), node.run.path().join("aside")).unwrap();
            std::fs::remove_dir_all(node.run.ipam().join("used")).unwrap();
            silent(&node.del(pod));
            std::fs::rename(node.run.path().join("aside"), node.run.node()).unwrap();
            node.start_agent();
        },
    ),
    row("§2 DEL", "an IPAM SHOULD release even if the namespace is gone", |node, pod| {
        node.add(pod).success();
        let gone = [("CNI_COMMAND", Some("DEL")), ("CNI_NETNS", Some("/nowhere/gone"))];
        silent(&with(node, pod, &gone, &node.conf().to_string()));
        assert_eq!(node.used(), [""; 0]);
        node.add(pod).success();
        let without = [("CNI_COMMAND", Some("DEL")), ("CNI_NETNS", None)];
        silent(&with(node, pod, &without, &node.conf().to_string()));
        assert_eq!(node.used(), [""; 0]);
    }),
    row("§2 DEL", "SHOULD delegate DEL even if namespace or interface is gone", |node, pod| {
        let ipam = Ipam::install(node);
        ipam.verb(node, "ADD", pod, &json!({})).success();
        ip(&format!("link del {}", node.attachment(pod).unwrap().host_ifname));
        ipam.heard();
        ipam.verb(node, "DEL", pod, &json!({})).success();
        assert_eq!(ipam.heard(), [format!("heard.DEL.{}", pod.id)]);
    }),
    row("§2 DEL", "MUST accept several for one attachment, and succeed if it is missing", |node, pod| {
        node.add(pod).success();
        ip(&format!("link del {}", node.attachment(pod).unwrap().host_ifname));
        for _ in 0..3 {
            silent(&node.del(pod));
        }
    }),
    row("§2 DEL", "REQUIRED: CNI_COMMAND, CNI_CONTAINERID, CNI_IFNAME", |node, pod| {
        required(node, pod, "DEL", &["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME"]);
    }),
];

/// CHECK, STATUS, VERSION and GC.
pub(super) const CHECK_AND_AFTER: &[Row] = &[
    row("§2 CHECK", "MUST consult prevResult for interfaces and addresses", |node, pod| {
        let result = node.add(pod).success();
        for (pointer, wrong) in [
            ("/ips/0/address", "10.7.0.99/32"),
            ("/interfaces/1/name", "eth7"),
            ("/interfaces/1/mac", "02:00:00:00:00:01"),
        ] {
            let mut other = result.clone();
            *other.pointer_mut(pointer).unwrap() = json!(wrong);
            assert_eq!(check(node, pod, &other).code(), 105, "{pointer}");
        }
    }),
    row("§2 CHECK", "MUST allow for what a later plugin has modified", |node, pod| {
        let mut result = node.add(pod).success();
        pod.within(|| {
            ip("-6 route del default");
            ip("link set eth0 mtu 1300");
        });
        assert_eq!(check(node, pod, &result).code(), 105);
        // The later plugin has told so in its result.
        result["routes"].as_array_mut().unwrap().pop();
        result["interfaces"][1]["mtu"] = json!(1300);
        silent(&check(node, pod, &result));
    }),
    row(
        "§2 CHECK",
        "a missing interface, address or route of the result SHOULD be an error",
        |node, pod| {
            for (wrong, word) in [
                ("link set eth0 down", "is down"),
                ("addr flush dev eth0 scope global", "is not there"),
                ("route del default", "no default route"),
                ("link del eth0", "no interface"),
            ] {
                let result = node.add(pod).success();
                pod.within(|| ip(wrong));
                let output = check(node, pod, &result);
                assert_eq!(output.code(), 105, "{wrong}");
                assert!(output.stdout.contains(word), "{wrong}: {}", output.stdout);
                node.del(pod).success();
            }
        },
    ),
    row("§2 CHECK", "missing firewall rules SHOULD be an error: the programs", |node, pod| {
        let result = node.add(pod).success();
        let index = node.attachment(pod).unwrap().host_ifindex;
        let mut netlink = fairlead_cni::netlink::Netlink::open().unwrap();
        netlink.all(vec![fairlead_cni::wire::remove_clsact(index)]).unwrap();
        assert_eq!(check(node, pod, &result).code(), 105);
    }),
    row("§2 CHECK", "wrong shaping SHOULD be an error: a bucket that pods pass by", |node, pod| {
        let result = node.add(pod).success();
        let host = node.attachment(pod).unwrap().host_ifname;
        let bucket = format!("qdisc add dev {host} root tbf rate 1mbit burst 10k latency 10ms");
        assert!(std::process::Command::new("tc").args(bucket.split(' ')).status().unwrap().success());
        assert_eq!(check(node, pod, &result).code(), 105);
    }),
    row("§2 CHECK", "a missing reservation SHOULD be an error", |node, pod| {
        let result = node.add(pod).success();
        let address = node.attachment(pod).unwrap().addresses[1];
        let used = node.run.ipam().join("used").join(address.to_string());
        let lease = std::fs::read_link(&used).unwrap();
        for other in [None, Some(format!("{address} fd07::-64 0 another eth0")), Some("nonsense".to_owned())]
        {
            let _ = std::fs::remove_file(&used);
            other.iter().for_each(|target| std::os::unix::fs::symlink(target, &used).unwrap());
            let output = check(node, pod, &result);
            assert_eq!(output.code(), 105, "{other:?}");
            assert!(output.stdout.contains(&format!("{address} is not reserved")), "{}", output.stdout);
        }
        std::fs::remove_file(&used).unwrap();
        std::os::unix::fs::symlink(lease, &used).unwrap();
        silent(&check(node, pod, &result));
    }),
    row("§2 CHECK", "a daemon that is away SHOULD be an error", |node, pod| {
        let result = node.add(pod).success();
        node.stop_agent();
        assert_eq!(check(node, pod, &result).code(), 11);
        node.start_agent();
        silent(&check(node, pod, &result));
    }),
    row("§2 CHECK", "a container that cannot be reached SHOULD be an error", |node, pod| {
        let result = node.add(pod).success();
        node.heard.lock().unwrap().locked = true;
        let output = check(node, pod, &result);
        node.heard.lock().unwrap().locked = false;
        assert_eq!(output.code(), 105);
        assert!(output.stdout.contains("locked"), "{}", output.stdout);
        ip(&format!("route flush dev {}", node.attachment(pod).unwrap().host_ifname));
        assert_eq!(check(node, pod, &result).code(), 105);
    }),
    row("§2 CHECK", "MUST work immediately after ADD", |node, pod| {
        for _ in 0..5 {
            let result = node.add(pod).success();
            silent(&check(node, pod, &result));
            node.del(pod).success();
        }
    }),
    row("§2 CHECK", "SHOULD call delegated plugins, and pass their errors on", |node, pod| {
        let ipam = Ipam::install(node);
        let result = ipam.verb(node, "ADD", pod, &json!({})).success();
        let more = json!({"prevResult": result});
        silent(&ipam.verb(node, "CHECK", pod, &more));
        ipam.fail("CHECK", true);
        assert_eq!(ipam.verb(node, "CHECK", pod, &more).code(), 222);
        ipam.fail("CHECK", false);
        ipam.verb(node, "DEL", pod, &json!({})).success();
    }),
    row("§2 CHECK", "runtimes MUST NOT call it without an ADD: it is refused", |node, pod| {
        let result = node.add(pod).success();
        node.del(pod).success();
        assert_eq!(check(node, pod, &result).code(), 105);
    }),
    other("§2 CHECK", "runtimes MUST NOT call it under disableCheck", RUNTIME),
    row("§2 CHECK", "runtimes MUST give prevResult: without it, or before 0.4.0, an error", |node, pod| {
        let result = node.add(pod).success();
        assert_eq!(node.verb("CHECK", pod, &node.conf()).code(), 7);
        let old = node.conf_with(&json!({"cniVersion": "0.3.1", "prevResult": result}));
        assert_eq!(node.verb("CHECK", pod, &old).code(), 1);
    }),
    row("§2 CHECK", "REQUIRED: CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME", |node, pod| {
        required(node, pod, "CHECK", &["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]);
    }),
    other("§2 CHECK", "the parameters MUST be those of ADD", RUNTIME),
    row("§2 STATUS", "MUST exit with 0 if ADD can be served", |node, _| {
        silent(&verb(node, "STATUS", &json!({})))
    }),
    row("§2 STATUS", "MUST exit with an error if ADD cannot be served; has come with 1.1.0", |node, _| {
        assert_eq!(verb(node, "STATUS", &json!({"cniVersion": "1.0.0"})).code(), 1);
        node.heard.lock().unwrap().unready = true;
        assert_eq!(verb(node, "STATUS", &json!({})).code(), 50);
        node.heard.lock().unwrap().unready = false;
        std::fs::rename(node.run.node(), node.run.path().join("aside")).unwrap();
        assert_eq!(verb(node, "STATUS", &json!({})).code(), 50);
        std::fs::rename(node.run.path().join("aside"), node.run.node()).unwrap();
        silent(&verb(node, "STATUS", &json!({})));
    }),
    row("§2 STATUS", "a daemon that is away SHOULD be an error", |node, _| {
        node.stop_agent();
        assert_eq!(verb(node, "STATUS", &json!({})).code(), 50);
        node.start_agent();
    }),
    row("§2 STATUS", "exhausted resources SHOULD be an error: addresses and slots", |node, pod| {
        let one = json!({"ipam": {"ranges": [[{"subnet": "10.9.0.0/30"}]]}});
        silent(&verb(node, "STATUS", &one));
        node.verb("ADD", pod, &node.conf_with(&one)).success();
        assert_eq!(verb(node, "STATUS", &one).code(), 100);
        let other = node.pod("one-too-many");
        assert_eq!(node.verb("ADD", &other, &node.conf_with(&one)).code(), 100);
        node.del(pod).success();
        let slots = node.run.ipam().join("slots");
        for slot in 0..4096 {
            // A few are of the index of this node's other interfaces, or never used.
            let _ = std::os::unix::fs::symlink(
                format!("{} all eth0", 0x10_0000 + slot),
                slots.join(slot.to_string()),
            );
        }
        assert_eq!(verb(node, "STATUS", &json!({})).code(), 107);
        assert_eq!(node.add(&other).code(), 107);
        std::fs::remove_dir_all(slots).unwrap();
        silent(&verb(node, "STATUS", &json!({})));
    }),
    row("§2 STATUS", "MUST NOT rely on its being called: 51 only where pods are cut off", |node, pod| {
        let (there, aside) = (node.frozen().join("from_pod"), node.frozen().join("aside"));
        std::fs::rename(&there, &aside).unwrap();
        assert_eq!(verb(node, "STATUS", &json!({})).code(), 50);
        std::fs::rename(&aside, &there).unwrap();
        node.add(pod).success();
        std::fs::rename(&there, &aside).unwrap();
        assert_eq!(verb(node, "STATUS", &json!({})).code(), 51);
        std::fs::rename(&aside, &there).unwrap();
        silent(&verb(node, "STATUS", &json!({})));
    }),
    row("§2 STATUS", "other calls SHOULD be expected even if it returns an error", |node, pod| {
        node.heard.lock().unwrap().unready = true;
        assert_eq!(verb(node, "STATUS", &json!({})).code(), 50);
        node.add(pod).success();
        node.del(pod).success();
        node.heard.lock().unwrap().unready = false;
    }),
    row("§2 STATUS", "MUST execute delegated plugins", |node, pod| {
        let ipam = Ipam::install(node);
        ipam.heard();
        silent(&ipam.verb(node, "STATUS", pod, &json!({})));
        assert_eq!(ipam.heard().len(), 1);
    }),
    row("§2 STATUS", "an error of a delegated plugin SHOULD be returned", |node, pod| {
        let ipam = Ipam::install(node);
        ipam.fail("STATUS", true);
        assert_eq!(ipam.verb(node, "STATUS", pod, &json!({})).code(), 222);
        ipam.fail("STATUS", false);
    }),
    row("§2 VERSION", "SHOULD print a version result", |node, _| {
        let version = |input: &str| node.call(&[("CNI_COMMAND", "VERSION")], input);
        assert_eq!(version("").success()["cniVersion"], "1.1.0");
        assert_eq!(version("{").code(), 6);
    }),
    row("§2 VERSION", "REQUIRED: CNI_COMMAND", |node, pod| required(node, pod, "VERSION", &["CNI_COMMAND"])),
    row(
        "§2 GC",
        "SHOULD remove as much as possible, and nothing of another network or that is valid",
        |node, pod| {
            let (stale, other) = (node.pod("stale"), node.pod("other"));
            node.add(pod).success();
            node.add(&stale).success();
            let elsewhere = node.conf_with(&json!({"name": "elsewhere"}));
            node.verb("ADD", &other, &elsewhere).success();
            // Without a list nothing that lives is removed.
            silent(&verb(node, "GC", &json!({})));
            assert_eq!(node.used().len(), 6);
            let valid = json!([{"containerID": pod.id, "ifname": "eth0"}]);
            silent(&verb(
                node,
                "GC",
                &json!({"cni.dev/valid-attachments": valid, "cni.dev/attachments": []}),
            ));
            assert!(node.attachment(&stale).is_none());
            assert!(node.attachment(pod).is_some() && node.attachment(&other).is_some());
            assert_eq!((node.used().len(), node.interfaces().len()), (4, 2));
            // The list's older name.
            silent(&verb(node, "GC", &json!({"cni.dev/attachments": []})));
            assert!(node.attachment(pod).is_none() && node.attachment(&other).is_some());
            node.verb("DEL", &other, &elsewhere).success();
        },
    ),
    row(
        "§2 GC",
        "SHOULD remove reservations of attachments that are not listed, or that nobody knows",
        |node, pod| {
            let lost = node.pod("lost");
            node.add(pod).success();
            node.add(&lost).success();
            ip(&format!("link del {}", node.attachment(&lost).unwrap().host_ifname));
            std::fs::remove_file(node.run.endpoint("lost", "eth0")).unwrap();
            let valid = json!([{"containerID": pod.id, "ifname": "eth0"}]);
            silent(&verb(node, "GC", &json!({"cni.dev/valid-attachments": valid})));
            assert_eq!(node.used().len(), 2);
        },
    ),
    row("§2 GC", "SHOULD complete without error; has come with 1.1.0", |node, pod| {
        node.add(pod).success();
        ip(&format!("link del {}", node.attachment(pod).unwrap().host_ifname));
        node.stop_agent();
        silent(&verb(node, "GC", &json!({"cni.dev/valid-attachments": []})));
        node.start_agent();
        assert_eq!(verb(node, "GC", &json!({"cniVersion": "1.0.0", "cni.dev/attachments": []})).code(), 1);
    }),
    row("§2 GC", "if an error is met, SHOULD continue, and report it", |node, pod| {
        let (ipam, broken) = (Ipam::install(node), node.pod("broken"));
        for pod in [pod, &broken] {
            ipam.verb(node, "ADD", pod, &json!({})).success();
            // The script gives the same address to all; only one is wired with it.
            node.heard.lock().unwrap().endpoints.clear();
        }
        ipam.fail("DEL", true);
        let output = ipam.verb(node, "GC", pod, &json!({"cni.dev/valid-attachments": []}));
        assert_eq!(output.code(), 108);
        for pod in [pod, &broken] {
            assert!(output.stdout.contains(&pod.id), "{}", output.stdout);
        }
        assert_eq!(node.interfaces(), [""; 0]);
        ipam.fail("DEL", false);
        silent(&ipam.verb(node, "GC", pod, &json!({"cni.dev/valid-attachments": []})));
    }),
    row("§2 GC", "MUST forward to delegated plugins", |node, pod| {
        let ipam = Ipam::install(node);
        ipam.heard();
        silent(&ipam.verb(node, "GC", pod, &json!({"cni.dev/valid-attachments": []})));
        let heard = format!("heard.GC.{}", pod.id);
        assert_eq!(ipam.input(&heard)["cni.dev/valid-attachments"], json!([]));
        assert_eq!(ipam.heard(), [heard]);
    }),
    other("§2 GC", "the runtime MUST NOT use it in place of DEL", RUNTIME),
    row(
        "§2 GC",
        "the runtime MUST give a configuration with the list: a malformed one is an error",
        |node, pod| {
            node.add(pod).success();
            for valid in [json!([{"ifname": "eth0"}]), json!([{"containerID": "x"}]), json!({}), json!(["x"])]
            {
                let output = verb(node, "GC", &json!({"cni.dev/valid-attachments": valid}));
                assert_eq!(output.code(), 7, "{valid}");
            }
            assert_eq!(node.used().len(), 2);
            assert_eq!(node.call(&[("CNI_COMMAND", "GC")], "").code(), 6);
        },
    ),
    row("§2 GC", "REQUIRED: CNI_COMMAND, CNI_PATH, which only delegation needs", |node, pod| {
        required(node, pod, "GC", &["CNI_COMMAND"]);
        let more = conf(node, &json!({"ipam": {"type": "other-ipam"}, "cni.dev/valid-attachments": []}));
        let output = node.call(&[("CNI_COMMAND", "GC")], &more);
        assert_eq!(output.code(), 108);
        assert!(output.stdout.contains("there is no plugin"), "{}", output.stdout);
    }),
];
