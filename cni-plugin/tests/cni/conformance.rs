//! The sentences of the CNI specification 1.1.0 that bind a plugin, one by one.
//!
//! Each row names the sentence's place, calls the executable, and says what must come of it.

use serde_json::{Value, json};

use crate::node::{Node, Output, Pod};

const CIDRS: [&str; 2] = ["10.7.0.0/24", "fd07::/64"];

struct Row {
    place: &'static str,
    sentence: &'static str,
    check: fn(&Node, &Pod),
}

fn base(pod: &Pod) -> Vec<(&'static str, String)> {
    vec![
        ("CNI_COMMAND", "ADD".into()),
        ("CNI_CONTAINERID", pod.id.clone()),
        ("CNI_IFNAME", "eth0".into()),
        ("CNI_NETNS", pod.path.clone()),
    ]
}

/// A call with some variables other than usual; `None` leaves one out.
fn with(node: &Node, pod: &Pod, change: &[(&str, Option<&str>)], input: &str) -> Output {
    let mut variables = base(pod);
    for (name, value) in change {
        variables.retain(|(n, _)| n != name);
        if let Some(value) = value {
            let name: &'static str = match *name {
                "CNI_COMMAND" => "CNI_COMMAND",
                "CNI_CONTAINERID" => "CNI_CONTAINERID",
                "CNI_IFNAME" => "CNI_IFNAME",
                "CNI_NETNS" => "CNI_NETNS",
                "CNI_ARGS" => "CNI_ARGS",
                "CNI_NETNS_OVERRIDE" => "CNI_NETNS_OVERRIDE",
                other => panic!("{other}"),
            };
            variables.push((name, (*value).to_owned()));
        }
    }
    let variables: Vec<(&str, &str)> = variables.iter().map(|(n, v)| (*n, v.as_str())).collect();
    node.call(&variables, input)
}

fn conf(node: &Node, change: &Value) -> String {
    node.conf_with(change).to_string()
}

fn at(version: &str) -> Value {
    json!({"cniVersion": version})
}

const ROWS: &[Row] = &[
    Row {
        place: "1, network configuration: cniVersion",
        sentence: "a plugin that does not speak the version answers error 1",
        check: |node, pod| {
            for version in ["0.1.0", "0.2.0", "0.3.0", "2.0.0", "x"] {
                assert_eq!(with(node, pod, &[], &conf(node, &at(version))).code(), 1, "{version}");
            }
            let mut without = node.conf();
            without.as_object_mut().unwrap().remove("cniVersion");
            assert_eq!(with(node, pod, &[], &without.to_string()).code(), 1);
        },
    },
    Row {
        place: "1, network configuration: name",
        sentence: "must start with an alphanumeric, then those and _ . -",
        check: |node, pod| {
            for name in ["", ".a", "-a", "a/b", "a b"] {
                let output = with(node, pod, &[], &conf(node, &json!({"name": name})));
                assert_eq!(output.code(), 7, "{name}");
                assert!(output.json["msg"].as_str().unwrap().contains("name"));
            }
        },
    },
    Row {
        place: "1, plugin configuration",
        sentence: "a field that is not understood as it is, is an error that names it (7)",
        check: |node, pod| {
            for (field, value) in [
                ("mtu", json!("big")),
                ("mtu", json!(20)),
                ("mtu", json!(70000)),
                ("runDir", json!("relative")),
                ("runDir", json!(7)),
                ("ipam", json!([])),
                ("dns", json!({"nameservers": 3})),
                ("runtimeConfig", json!({"mac": "zz"})),
                ("runtimeConfig", json!({"mac": "01:00:00:00:00:01"})),
                ("runtimeConfig", json!({"ips": ["10.0.0.300"]})),
                ("runtimeConfig", json!({"ips": ["10.7.0.9", "10.7.0.10"]})),
                ("runtimeConfig", json!({"ipRanges": [[{"subnet": "10.0.0.0/32"}]]})),
                ("prevResult", json!({"ips": [{"address": "x"}]})),
            ] {
                let output = with(node, pod, &[], &conf(node, &json!({field: value})));
                assert_eq!(output.code(), 7, "{field}: {value}");
                assert!(output.json["msg"].as_str().unwrap().contains(field), "{}", output.stdout);
            }
        },
    },
    Row {
        place: "2, overview: input",
        sentence: "the configuration is JSON on standard input; what is not is error 6",
        check: |node, pod| {
            for input in ["", "{", "[]", "nonsense", "\u{0}"] {
                assert_eq!(with(node, pod, &[], input).code(), 6, "{input:?}");
            }
        },
    },
    Row {
        place: "2, parameters: CNI_COMMAND",
        sentence: "indicates the operation: ADD, DEL, CHECK, GC, STATUS or VERSION",
        check: |node, pod| {
            for command in [None, Some(""), Some("add"), Some("REMOVE")] {
                let output = with(node, pod, &[("CNI_COMMAND", command)], &node.conf().to_string());
                assert_eq!(output.code(), 4, "{command:?}");
            }
        },
    },
    Row {
        place: "2, parameters: CNI_CONTAINERID",
        sentence: "must not be empty, must start with an alphanumeric, then those and _ . -",
        check: |node, pod| {
            for command in ["ADD", "DEL", "CHECK"] {
                for id in [None, Some("-a"), Some("a/../b"), Some("a:b")] {
                    let change = [("CNI_COMMAND", Some(command)), ("CNI_CONTAINERID", id)];
                    assert_eq!(
                        with(node, pod, &change, &node.conf().to_string()).code(),
                        4,
                        "{command} {id:?}"
                    );
                }
            }
        },
    },
    Row {
        place: "2, parameters: CNI_IFNAME",
        sentence: "if the plugin cannot use this name it must return an error",
        check: |node, pod| {
            for name in [None, Some("."), Some("a/b"), Some("sixteen-letters-"), Some("a b"), Some("../x")] {
                let change = [("CNI_IFNAME", name)];
                assert_eq!(with(node, pod, &change, &node.conf().to_string()).code(), 4, "{name:?}");
            }
        },
    },
    Row {
        place: "2, parameters: CNI_NETNS",
        sentence: "ADD and CHECK need it; one that is none has its own code",
        check: |node, pod| {
            for (netns, code) in [(None, 4), (Some("/nowhere"), 102), (Some("/etc"), 102)] {
                let output = with(node, pod, &[("CNI_NETNS", netns)], &node.conf().to_string());
                assert_eq!(output.code(), code, "{netns:?}");
            }
        },
    },
    Row {
        place: "2, parameters: CNI_ARGS",
        sentence: "key-value pairs; the agent hears of the pod",
        check: |node, pod| {
            let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=7-7;X=y";
            with(node, pod, &[("CNI_ARGS", Some(args))], &node.conf().to_string()).success();
            let heard = node.heard.lock().unwrap().put.last().unwrap().pod.clone().unwrap();
            assert_eq!((heard.namespace.as_str(), heard.name.as_str()), ("shop", "cart"));
            assert_eq!(heard.uid.as_deref(), Some("7-7"));
            assert_eq!(with(node, pod, &[("CNI_ARGS", Some("X"))], &node.conf().to_string()).code(), 4);
        },
    },
    Row {
        place: "2, ADD",
        sentence: "a repeated ADD of the same container, network and name is an error",
        check: |node, pod| {
            node.add(pod).success();
            assert_eq!(node.add(pod).code(), 101);
        },
    },
    Row {
        place: "2, ADD and 5, success",
        sentence: "the result is in the version of the configuration",
        check: |node, pod| {
            for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                let conf = node.conf_with(&at(version));
                let result = node.verb("ADD", pod, &conf).success();
                assert_eq!(result["cniVersion"], version);
                let old = version.starts_with('0');
                assert_eq!(result["ips"][0].get("version"), old.then_some(&json!("4")), "{version}");
                assert_eq!(result["ips"][1].get("version"), old.then_some(&json!("6")), "{version}");
                assert_eq!(result["interfaces"][0].get("mtu").is_some(), version == "1.1.0");
                assert_eq!(result["interfaces"][1]["sandbox"], pod.path);
                node.verb("DEL", pod, &conf).success();
            }
        },
    },
    Row {
        place: "2, ADD: prevResult, and 3, chained plugins",
        sentence: "a plugin that is given a prevResult must pass it on",
        check: |node, pod| {
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
        },
    },
    Row {
        place: "5, success: dns",
        sentence: "what the configuration says of name resolution is in the result",
        check: |node, pod| {
            let dns =
                json!({"dns": {"nameservers": ["10.96.0.10"], "search": ["a.b"], "options": ["ndots:5"]}});
            let result = node.verb("ADD", pod, &node.conf_with(&dns)).success();
            assert_eq!(result["dns"], dns["dns"]);
            node.del(pod).success();
            let runtime = json!({"runtimeConfig": {"dns": {"servers": ["10.96.0.11"], "searches": ["c"]}}});
            let result = node.verb("ADD", pod, &node.conf_with(&runtime)).success();
            assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.11"], "search": ["c"]}));
        },
    },
    Row {
        place: "2, DEL",
        sentence: "should complete without error even if resources are missing, and twice",
        check: |node, pod| {
            node.add(pod).success();
            let gone = [("CNI_COMMAND", Some("DEL")), ("CNI_NETNS", None)];
            for _ in 0..2 {
                let output = with(node, pod, &gone, &node.conf().to_string());
                assert!(output.ok && output.stdout.is_empty(), "{}", output.stdout);
            }
        },
    },
    Row {
        place: "2, CHECK",
        sentence: "requires prevResult (7); not before 0.4.0 (1)",
        check: |node, pod| {
            let result = node.add(pod).success();
            assert_eq!(node.verb("CHECK", pod, &node.conf()).code(), 7);
            let old = node.conf_with(&json!({"cniVersion": "0.3.1", "prevResult": result}));
            assert_eq!(node.verb("CHECK", pod, &old).code(), 1);
            let output = node.verb("CHECK", pod, &node.conf_with(&json!({"prevResult": result})));
            assert!(output.ok && output.stdout.is_empty(), "{}", output.stdout);
        },
    },
    Row {
        place: "2, GC",
        sentence: "must remove what is not valid, nothing else, and only of its own network",
        check: |node, pod| {
            let (stale, other) = (node.pod("stale"), node.pod("other"));
            node.add(pod).success();
            node.add(&stale).success();
            let elsewhere = node.conf_with(&json!({"name": "elsewhere"}));
            node.verb("ADD", &other, &elsewhere).success();
            let gc = |more: Value| node.call(&[("CNI_COMMAND", "GC")], &node.conf_with(&more).to_string());
            // Without a list nothing that lives is removed.
            assert!(gc(json!({})).ok);
            assert_eq!(node.used().len(), 6);
            assert_eq!(gc(json!({"cni.dev/valid-attachments": [{"ifname": "eth0"}]})).code(), 7);
            assert_eq!(gc(json!({"cniVersion": "1.0.0", "cni.dev/attachments": []})).code(), 1);
            let valid = json!([{"containerID": pod.id, "ifname": "eth0"}]);
            let output = gc(json!({"cni.dev/valid-attachments": valid, "cni.dev/attachments": []}));
            assert!(output.ok && output.stdout.is_empty(), "{}", output.stdout);
            assert!(node.attachment(&stale).is_none());
            assert!(node.attachment(pod).is_some() && node.attachment(&other).is_some());
            assert_eq!(node.used().len(), 4);
            assert!(gc(json!({"cni.dev/attachments": []})).ok);
            assert!(node.attachment(pod).is_none() && node.attachment(&other).is_some());
            node.verb("DEL", &other, &elsewhere).success();
        },
    },
    Row {
        place: "2, STATUS",
        sentence: "answers nothing when ADD can be served, else an error (50)",
        check: |node, _| {
            let status =
                |more: Value| node.call(&[("CNI_COMMAND", "STATUS")], &node.conf_with(&more).to_string());
            let output = status(json!({}));
            assert!(output.ok && output.stdout.is_empty(), "{}", output.stdout);
            assert_eq!(status(json!({"cniVersion": "1.0.0"})).code(), 1);
            node.heard.lock().unwrap().unready = true;
            assert_eq!(status(json!({})).code(), 50);
            node.heard.lock().unwrap().unready = false;
            node.stop_agent();
            assert_eq!(status(json!({})).code(), 50);
            node.start_agent();
            std::fs::rename(node.run.node(), node.run.path().join("aside")).unwrap();
            assert_eq!(status(json!({})).code(), 50);
            std::fs::rename(node.run.path().join("aside"), node.run.node()).unwrap();
            assert!(status(json!({})).ok);
        },
    },
    Row {
        place: "2, VERSION",
        sentence: "the version that was asked in, and all that are spoken",
        check: |node, _| {
            let version = |input: &str| node.call(&[("CNI_COMMAND", "VERSION")], input);
            let all = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
            for asked in ["0.4.0", "1.1.0", "9.9.9"] {
                let answer = version(&at(asked).to_string()).success();
                assert_eq!(answer, json!({"cniVersion": asked, "supportedVersions": all}));
            }
            assert_eq!(version("").success()["cniVersion"], "1.1.0");
            assert_eq!(version("{").code(), 6);
        },
    },
    Row {
        place: "5, error",
        sentence: "cniVersion as in the configuration, code, msg; exit code not 0; all on standard output",
        check: |node, pod| {
            for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                let bad = json!({"cniVersion": version, "name": ""});
                let output = with(node, pod, &[], &conf(node, &bad));
                assert_eq!(output.code(), 7);
                assert_eq!(output.json["cniVersion"], version);
                assert!(!output.stderr.is_empty());
            }
        },
    },
    Row {
        place: "2, ADD",
        sentence: "if an interface of the requested name already exists, the plugin must return with an error",
        check: |node, pod| {
            pod.within(|| {
                let add = ["link", "add", "eth0", "type", "veth", "peer", "name", "x1"];
                assert!(std::process::Command::new("ip").args(add).status().unwrap().success());
            });
            assert_eq!(node.add(pod).code(), 101);
            node.assert_clean();
            pod.within(|| assert!(nix::net::if_::if_nametoindex("eth0").is_ok(), "it is not ours to remove"));
        },
    },
    Row {
        place: "2, ADD: output",
        sentence: "non-zero on failure, zero on success; standard output holds one JSON object or nothing",
        check: |node, pod| {
            // `call` parses all of standard output as one document.
            let output = node.add(pod);
            assert!(output.ok && output.json.is_object() && !output.stderr.is_empty());
            let output = node.add(pod);
            assert!(!output.ok && output.json.is_object());
            assert!(node.del(pod).stdout.is_empty());
        },
    },
    Row {
        place: "2, parameters: CNI_NETNS_OVERRIDE",
        sentence: "the node's own namespace is refused, unless told otherwise",
        check: |node, pod| {
            let own = [("CNI_NETNS", Some("/proc/self/ns/net"))];
            assert_eq!(with(node, pod, &own, &node.conf().to_string()).code(), 102);
            let told = [own[0], ("CNI_NETNS_OVERRIDE", Some("true"))];
            // Past that check: both ends cannot have one index in one namespace, which is the kernel's to say.
            assert_ne!(with(node, pod, &told, &node.conf().to_string()).code(), 102);
        },
    },
    Row {
        place: "2, DEL",
        sentence: "must accept multiple DEL calls; nothing of what is missing is an error",
        check: |node, pod| {
            node.add(pod).success();
            let host = node.attachment(pod).unwrap().host_ifname;
            assert!(
                std::process::Command::new("ip").args(["link", "del", &host]).status().unwrap().success()
            );
            node.del(pod).success();
            node.del(pod).success();
        },
    },
    Row {
        place: "2, CHECK",
        sentence: "must allow for a later chained plugin to have modified networking resources, e.g. routes",
        check: |node, pod| {
            let mut result = node.add(pod).success();
            pod.within(|| {
                for args in ["-6 route del default", "link set eth0 mtu 1300"] {
                    let status = std::process::Command::new("ip").args(args.split(' ')).status();
                    assert!(status.unwrap().success());
                }
            });
            let check =
                |result: &Value| node.verb("CHECK", pod, &node.conf_with(&json!({"prevResult": result})));
            assert_eq!(check(&result).code(), 105);
            // The later plugin has told so in its result.
            result["routes"].as_array_mut().unwrap().pop();
            result["interfaces"][1]["mtu"] = json!(1300);
            assert!(check(&result).ok, "{}", check(&result).stdout);
        },
    },
    Row {
        place: "2, CHECK",
        sentence: "the plugin must consult the prevResult to determine the expected interfaces and addresses",
        check: |node, pod| {
            let result = node.add(pod).success();
            for (pointer, wrong) in [
                ("/ips/0/address", "10.7.0.99/32"),
                ("/interfaces/1/name", "eth7"),
                ("/interfaces/1/mac", "02:00:00:00:00:01"),
            ] {
                let mut other = result.clone();
                *other.pointer_mut(pointer).unwrap() = json!(wrong);
                let output = node.verb("CHECK", pod, &node.conf_with(&json!({"prevResult": other})));
                assert_eq!(output.code(), 105, "{pointer}");
            }
        },
    },
    Row {
        place: "2, GC",
        sentence: "if an error is encountered, a plugin should continue, and report the errors",
        check: |node, pod| {
            let broken = node.pod("broken");
            node.add(pod).success();
            node.add(&broken).success();
            // What cannot be read is no reason to stop.
            std::fs::write(node.run.endpoint("broken", "eth0"), "{").unwrap();
            let gc = json!({"cni.dev/valid-attachments": []});
            let output = node.call(&[("CNI_COMMAND", "GC")], &node.conf_with(&gc).to_string());
            assert!(output.ok, "{}", output.stdout);
            assert!(output.stderr.contains("broken"), "{}", output.stderr);
            assert!(node.attachment(pod).is_none());
            node.del(&broken).success();
        },
    },
    Row {
        place: "2, STATUS",
        sentence: "other operations are to be expected even if STATUS returns an error",
        check: |node, pod| {
            node.heard.lock().unwrap().unready = true;
            assert_eq!(node.call(&[("CNI_COMMAND", "STATUS")], &node.conf().to_string()).code(), 50);
            node.add(pod).success();
            node.del(pod).success();
            node.heard.lock().unwrap().unready = false;
        },
    },
    Row {
        place: "5, error: 50 and 51",
        sentence: "51: not available, and existing containers in the network may have limited connectivity",
        check: |node, pod| {
            let (there, aside) = (node.frozen().join("from_pod"), node.frozen().join("aside"));
            let status = || node.call(&[("CNI_COMMAND", "STATUS")], &node.conf().to_string());
            std::fs::rename(&there, &aside).unwrap();
            assert_eq!(status().code(), 50);
            std::fs::rename(&aside, &there).unwrap();
            node.add(pod).success();
            std::fs::rename(&there, &aside).unwrap();
            assert_eq!(status().code(), 51);
            std::fs::rename(&aside, &there).unwrap();
            assert!(status().ok);
        },
    },
    Row {
        place: "3, lifecycle & ordering",
        sentence: "must handle being executed concurrently across different containers",
        check: |node, _| {
            let pods: Vec<Pod> = (0..6).map(|i| node.pod(&format!("at-once-{i}"))).collect();
            std::thread::scope(|scope| {
                for pod in &pods {
                    scope.spawn(|| {
                        node.add(pod).success();
                        node.del(pod).success();
                    });
                }
            });
        },
    },
    Row {
        place: "5, success: interfaces and ips",
        sentence: "sandbox is the value of CNI_NETNS, or empty on the host; interface is an index into the list",
        check: |node, pod| {
            let result = node.add(pod).success();
            assert!(result["interfaces"][0].get("sandbox").is_none());
            assert_eq!(result["interfaces"][1]["sandbox"], pod.path);
            for ip in result["ips"].as_array().unwrap() {
                assert_eq!(result["interfaces"][ip["interface"].as_u64().unwrap() as usize]["name"], "eth0");
            }
        },
    },
    Row {
        place: "5, error: 4",
        sentence: "the message must contain the names of invalid variables",
        check: |node, pod| {
            let change = [("CNI_CONTAINERID", Some("-a")), ("CNI_IFNAME", Some("a/b")), ("CNI_NETNS", None)];
            let output = with(node, pod, &change, &node.conf().to_string());
            assert_eq!(output.code(), 4);
            for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
                assert!(output.json["msg"].as_str().unwrap().contains(name), "{}", output.stdout);
            }
        },
    },
    Row {
        place: "5, error: 11",
        sentence: "a transient condition that should clear up is code 11",
        check: |node, pod| {
            node.stop_agent();
            assert_eq!(node.add(pod).code(), 11);
            node.start_agent();
            node.add(pod).success();
        },
    },
];

#[test]
fn every_sentence_of_the_specification() {
    let Some(node) = Node::new(&CIDRS) else { return };
    for (i, row) in ROWS.iter().enumerate() {
        eprintln!("{}: {}", row.place, row.sentence);
        let pod = node.pod(&format!("row{i}"));
        (row.check)(&node, &pod);
        node.del(&pod).success();
        node.assert_clean();
    }
    println!("cases: {}", ROWS.len());
}
