//! Section 5: result types.

use serde_json::json;

use super::{Row, at, conf, other, row, with};

pub(super) const ROWS: &[Row] = &[
    row("§5", "plugins MUST output results, which SHOULD be JSON on standard output", |node, pod| {
        let output = node.add(pod);
        assert!(output.ok && output.json.is_object(), "{}", output.stdout);
        assert!(serde_json::from_str::<serde_json::Value>(&output.stderr).is_err(), "the log is no result");
    }),
    row(
        "§5 ADD",
        "MUST output cniVersion, interfaces, ips and routes as the version has them",
        |node, pod| {
            for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                let conf = node.conf_with(&at(version));
                let result = node.verb("ADD", pod, &conf).success();
                assert_eq!(result["cniVersion"], version);
                let old = version.starts_with('0');
                assert_eq!(result["ips"][0].get("version"), old.then_some(&json!("4")), "{version}");
                assert_eq!(result["ips"][1].get("version"), old.then_some(&json!("6")), "{version}");
                assert_eq!(result["interfaces"][0].get("mtu").is_some(), version == "1.1.0");
                assert_eq!(
                    result["routes"],
                    json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}])
                );
                node.verb("DEL", pod, &conf).success();
            }
        },
    ),
    row(
        "§5 ADD",
        "sandbox SHOULD be CNI_NETNS for what is in the container, nothing on the host",
        |node, pod| {
            let result = node.add(pod).success();
            assert!(result["interfaces"][0].get("sandbox").is_none());
            assert_eq!(result["interfaces"][1]["sandbox"], pod.path);
        },
    ),
    row("§5 ADD", "interface says which interface an address SHOULD be applied to", |node, pod| {
        let result = node.add(pod).success();
        for ip in result["ips"].as_array().unwrap() {
            assert_eq!(result["interfaces"][ip["interface"].as_u64().unwrap() as usize]["name"], "eth0");
        }
    }),
    row("§5 ADD", "dns of the configuration is in the result, in the order it has", |node, pod| {
        let dns = json!({"dns": {"nameservers": ["10.96.0.10", "10.96.0.9"], "search": ["b", "a.b"]}});
        assert_eq!(node.verb("ADD", pod, &node.conf_with(&dns)).success()["dns"], dns["dns"]);
    }),
    row("§5 ADD", "MUST output prevResult with what is modified", |node, pod| {
        let before = json!({
            "interfaces": [{"name": "other0", "mac": "02:00:00:00:00:09"}],
            "routes": [{"dst": "192.0.2.0/24", "gw": "192.0.2.1", "mtu": 1400, "priority": 7}],
            "dns": {"nameservers": ["192.0.2.53"]},
        });
        let result = node.verb("ADD", pod, &node.conf_with(&json!({"prevResult": before}))).success();
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
        for list in ["interfaces", "routes"] {
            assert_eq!(result[list][0], before[list][0]);
        }
        assert_eq!(result["dns"], before["dns"]);
    }),
    other(
        "§5 ADD",
        "who changes nothing MUST output the same result",
        "plugins that change nothing: this one always makes an interface",
    ),
    row("§5 VERSION", "MUST output the cniVersion of the input, and the versions spoken", |node, _| {
        for asked in ["0.4.0", "1.1.0", "9.9.9"] {
            let answer = node.call(&[("CNI_COMMAND", "VERSION")], &at(asked).to_string()).success();
            let all = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
            assert_eq!(answer, json!({"cniVersion": asked, "supportedVersions": all}));
        }
    }),
    row("§5 error", "SHOULD have cniVersion, code and msg, and details where there is more", |node, pod| {
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let bad = json!({"cniVersion": version, "name": ""});
            let output = with(node, pod, &[], &conf(node, &bad));
            assert_eq!(output.code(), 7);
            assert_eq!(output.json["cniVersion"], version);
        }
        let output = with(node, pod, &[], &conf(node, &at("9.9.9")));
        assert!(output.json["details"].as_str().unwrap().contains("1.1.0"), "{}", output.stdout);
    }),
    other(
        "§5 error 2",
        "the message MUST have key and value of the unsupported field",
        "plugins that refuse unknown fields: this one bears with them",
    ),
    row("§5 error 4", "the message MUST have the names of the invalid variables", |node, pod| {
        let change = [("CNI_CONTAINERID", Some("-a")), ("CNI_IFNAME", Some("a/b")), ("CNI_NETNS", None)];
        let output = with(node, pod, &change, &node.conf().to_string());
        assert_eq!(output.code(), 4);
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            assert!(output.json["msg"].as_str().unwrap().contains(name), "{}", output.stdout);
        }
    }),
    row("§5 error 11", "a condition that SHOULD clear up: the agent is away", |node, pod| {
        node.stop_agent();
        assert_eq!(node.add(pod).code(), 11);
        node.start_agent();
        node.add(pod).success();
    }),
    row("§5 error 100+", "codes of its own are from 100 on", |node, pod| {
        node.add(pod).success();
        assert!(node.add(pod).code() >= 100);
        assert!(with(node, pod, &[("CNI_NETNS", Some("/etc"))], &node.conf().to_string()).code() >= 100);
    }),
];
