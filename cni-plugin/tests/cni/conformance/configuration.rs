//! Section 1: network configuration format.

use serde_json::json;

use super::{AUTHOR, RUNTIME, Row, at, conf, other, row, with};

pub(super) const ROWS: &[Row] = &[
    row("§1 cniVersion", "a version that the plugin does not speak is error 1", |node, pod| {
        for version in ["0.1.0", "0.2.0", "0.3.0", "2.0.0", "x"] {
            assert_eq!(with(node, pod, &[], &conf(node, &at(version))).code(), 1, "{version}");
        }
        let mut without = node.conf();
        without.as_object_mut().unwrap().remove("cniVersion");
        assert_eq!(with(node, pod, &[], &without.to_string()).code(), 1);
    }),
    other("§1 name", "SHOULD be unique on a host", AUTHOR),
    row(
        "§1 name",
        "MUST start with an alphanumeric, then those and _ . -; nothing that a path cannot hold",
        |node, pod| {
            for name in ["", ".a", "-a", "a/b", "a\\b", "a b", "ä"] {
                let output = with(node, pod, &[], &conf(node, &json!({"name": name})));
                assert_eq!(output.code(), 7, "{name}");
                assert!(output.json["msg"].as_str().unwrap().contains("name"));
            }
            for name in ["0", "A.b_c-9"] {
                let conf = node.conf_with(&json!({"name": name}));
                node.verb("ADD", pod, &conf).success();
                node.verb("DEL", pod, &conf).success();
            }
        },
    ),
    other("§1 disableCheck", "runtimes MUST NOT call CHECK then", RUNTIME),
    other("§1 disableGC", "runtimes MUST NOT call GC then", RUNTIME),
    other("§1 loadOnlyInlinedPlugins", "plugins from elsewhere MUST be appended to the list", RUNTIME),
    other("§1 plugins", "the final list MUST hold all plugins of the configuration", RUNTIME),
    other("§1 plugin objects", "runtimes MUST associate each with one network", RUNTIME),
    other("§1 plugin objects", "each MUST be validated, and each valid one invoked", RUNTIME),
    row(
        "§1 plugin objects",
        "the runtime MUST pass further fields through unchanged: the plugin bears with them",
        |node, pod| {
            let more =
                json!({"capabilities": {"x": true}, "keyA": ["y"], "args": {"z": 1}, "cni.dev/new": {}});
            with(node, pod, &[], &conf(node, &more)).success();
        },
    ),
    other("§1 type", "MUST NOT hold what a path cannot", AUTHOR),
    other("§1 reserved keys", "SHOULD NOT be used in configuration", AUTHOR),
    row(
        "§1 well-known keys",
        "plugins that consume them SHOULD respect their meaning: ipam and dns",
        |node, pod| {
            let keys = json!({
                "ipam": {"ranges": [[{"subnet": "10.9.0.0/24"}]]},
                "dns": {"nameservers": ["10.96.0.10"], "domain": "b", "search": ["a.b"], "options": ["ndots:5"]},
                "ipMasq": false,
            });
            let result = node.verb("ADD", pod, &node.conf_with(&keys)).success();
            assert_eq!(result["ips"][0]["address"], "10.9.0.2/32");
            assert_eq!(result["dns"], keys["dns"]);
        },
    ),
    row("§1 ipam.type", "MUST NOT hold what a path cannot", |node, pod| {
        for kind in ["../sh", "/bin/sh", "a/b", "."] {
            let output = with(node, pod, &[], &conf(node, &json!({"ipam": {"type": kind}})));
            assert_eq!(output.code(), 7, "{kind}");
            assert!(output.json["msg"].as_str().unwrap().contains("ipam.type"), "{}", output.stdout);
        }
    }),
    other("§1 other keys", "runtimes MUST preserve unknown fields", RUNTIME),
    row("§1 versions", "runtimes MUST select the highest: VERSION tells which there are", |node, _| {
        let answer = node.call(&[("CNI_COMMAND", "VERSION")], &at("1.1.0").to_string()).success();
        assert_eq!(answer["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }),
    row(
        "§1 versions",
        "the format MUST remain compatible within a major version: 1.0.0 means in 1.1.0 what it meant",
        |node, pod| {
            let mut results = Vec::new();
            for version in ["1.0.0", "1.1.0"] {
                let conf = node.conf_with(&at(version));
                let mut result = node.verb("ADD", pod, &conf).success();
                node.verb("DEL", pod, &conf).success();
                result.as_object_mut().unwrap().remove("interfaces");
                results.push((result["routes"].clone(), result["ips"].as_array().unwrap().len()));
            }
            assert_eq!(results[0], results[1]);
        },
    ),
];
