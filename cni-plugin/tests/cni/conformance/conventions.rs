//! The conventions beside the specification (CONVENTIONS.md).

use serde_json::json;

use super::{AUTHOR, RUNTIME, Row, conf, other, row, with};

pub(super) const ROWS: &[Row] = &[
    row(
        "conventions, plugins",
        "SHOULD support them where they make sense: ips, mac, ipRanges, dns, bandwidth",
        |node, pod| {
            let runtime = json!({"runtimeConfig": {
                "ips": ["10.9.0.7/24"],
                "mac": "02:00:00:00:00:77",
                "ipRanges": [[{"subnet": "10.9.0.0/24", "gateway": "10.9.0.1"}]],
                "dns": {"servers": ["10.96.0.11"], "searches": ["c"]},
                "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 100_000},
            }});
            let result = node.verb("ADD", pod, &node.conf_with(&runtime)).success();
            assert_eq!(result["ips"][0]["address"], "10.9.0.7/32");
            assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:77");
            assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.11"], "search": ["c"]}));
            assert!(node.attachment(pod).unwrap().shaped);
        },
    ),
    row(
        "conventions, plugins",
        "SHOULD accept arguments by them where they do the same: ranges as host-local has them",
        |node, pod| {
            let ranges =
                json!([[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.9"}]]);
            let result =
                node.verb("ADD", pod, &node.conf_with(&json!({"ipam": {"ranges": ranges}}))).success();
            assert_eq!(result["ips"][0]["address"], "10.9.0.9/32");
        },
    ),
    other("conventions, plugins", "what is missing SHOULD be proposed", "the authors of plugins"),
    other("conventions, runtimes", "authors SHOULD follow them", RUNTIME),
    other("conventions, runtimes", "users SHOULD be able to choose the plugin", RUNTIME),
    row(
        "conventions, capabilities",
        "an expected field that is malformed SHOULD be an error",
        |node, pod| {
            for (field, value) in [
                ("mtu", json!("big")),
                ("mtu", json!(20)),
                ("mtu", json!(70000)),
                ("runDir", json!("relative")),
                ("runDir", json!(7)),
                ("shaped", json!("yes")),
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
    ),
    row(
        "conventions, capabilities",
        "an expected field that the plugin cannot act on SHOULD be an error",
        |node, pod| {
            let outside = json!({"runtimeConfig": {"ips": ["10.8.0.1"]}});
            assert_eq!(with(node, pod, &[], &conf(node, &outside)).code(), 7);
        },
    ),
    other("conventions, capabilities", "are RECOMMENDED for what a plugin is to act on", RUNTIME),
    other("conventions, capabilities", "dynamic information SHOULD be in runtimeConfig", RUNTIME),
    other("conventions, capabilities", "they SHOULD be declared in the configuration", AUTHOR),
    row(
        "conventions, args",
        "SHOULD be used for what is optional; who does not understand it SHOULD ignore it",
        |node, pod| {
            let args = json!({"args": {"cni": {"labels": [{"key": "app", "value": "x"}]}, "else": [7]}});
            with(node, pod, &[], &conf(node, &args)).success();
        },
    ),
    other("conventions, args", "runtimes SHOULD NOT require that they are understood", RUNTIME),
    other("conventions, args", "runtimes SHOULD NOT expect an error", RUNTIME),
    other("conventions, args", "are RECOMMENDED for what a plugin may ignore", RUNTIME),
    row(
        "conventions, CNI_ARGS",
        "args SHOULD be used instead: its ips, and else IP of CNI_ARGS, are given",
        |node, pod| {
            let args = json!({"args": {"cni": {"ips": ["10.7.0.42/24"]}}});
            let result = node.verb("ADD", pod, &node.conf_with(&args)).success();
            assert_eq!(result["ips"][0]["address"], "10.7.0.42/32");
            node.del(pod).success();
            let ip = [("CNI_ARGS", Some("IP=10.7.0.43/24"))];
            let result = with(node, pod, &ip, &node.conf().to_string()).success();
            assert_eq!(result["ips"][0]["address"], "10.7.0.43/32");
            node.del(pod).success();
            let ip = [("CNI_ARGS", Some("IP=nonsense"))];
            let output = with(node, pod, &ip, &node.conf().to_string());
            assert_eq!(output.code(), 4);
            assert!(output.stdout.contains("CNI_ARGS"), "{}", output.stdout);
        },
    ),
    row("conventions, CNI_ARGS", "a field that args has too MUST be ignored", |node, pod| {
        let args = conf(node, &json!({"args": {"cni": {"ips": ["10.7.0.44"]}}}));
        for ip in ["IP=10.7.0.45", "IP=nonsense"] {
            let result = with(node, pod, &[("CNI_ARGS", Some(ip))], &args).success();
            assert_eq!(result["ips"][0]["address"], "10.7.0.44/32");
            node.del(pod).success();
        }
    }),
    other(
        "conventions, chaining",
        "plugins that take any interface SHOULD configure an existing one",
        "plugins that are agnostic of the interface: this one makes its own",
    ),
    other(
        "conventions, chaining",
        "bridge SHOULD accept a previous result with a host's interface",
        "the bridge plugin's",
    ),
];
