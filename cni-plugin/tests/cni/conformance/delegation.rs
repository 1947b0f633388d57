//! Section 4: plugin delegation.

use serde_json::json;

use super::{Row, other, row};
use crate::ipam::Ipam;

pub(super) const ROWS: &[Row] = &[
    row(
        "§4",
        "the IPAM plugin MUST determine addresses, gateway and routes: they are applied",
        |node, pod| {
            let result = Ipam::install(node).verb(node, "ADD", pod, &json!({})).success();
            assert_eq!(result["ips"][0]["address"], "192.0.2.9/32");
            pod.within(|| std::net::UdpSocket::bind("192.0.2.9:9").unwrap());
            Ipam::install(node).verb(node, "DEL", pod, &json!({})).success();
        },
    ),
    row("§4 protocol", "a delegated plugin MUST get the same environment", |node, pod| {
        let ipam = Ipam::install(node);
        ipam.verb(node, "ADD", pod, &json!({})).success();
        let environment = std::fs::read_to_string(ipam.path.join("environment")).unwrap();
        for variable in [
            "CNI_COMMAND=ADD",
            &format!("CNI_CONTAINERID={}", pod.id),
            "CNI_IFNAME=eth0",
            &format!("CNI_NETNS={}", pod.path),
            "CNI_ARGS=IgnoreUnknown=1;ITS=own",
            &format!("CNI_PATH={}", ipam.path.display()),
        ] {
            assert!(environment.lines().any(|line| line == variable), "{variable}: {environment}");
        }
        ipam.verb(node, "DEL", pod, &json!({})).success();
    }),
    row("§4 procedure", "SHOULD look the plugin up in CNI_PATH", |node, pod| {
        let ipam = Ipam::install(node);
        let output = ipam.verb(node, "ADD", pod, &json!({"ipam": {"type": "not-there"}}));
        assert_eq!(output.code(), 109);
        assert!(output.stdout.contains(ipam.path.to_str().unwrap()), "{}", output.stdout);
    }),
    row("§4 procedure", "SHOULD execute it with the configuration that it got itself", |node, pod| {
        let ipam = Ipam::install(node);
        let more = json!({"deep": {"list": [1, "two", null]}, "runtimeConfig": {"ips": ["192.0.2.9"]}});
        ipam.verb(node, "ADD", pod, &more).success();
        let mut wanted = node.conf_with(&json!({"ipam": {"type": "other-ipam", "its": "own"}}));
        for (key, value) in more.as_object().unwrap() {
            wanted[key] = value.clone();
        }
        assert_eq!(ipam.input(&format!("heard.ADD.{}", pod.id)), wanted);
        ipam.verb(node, "DEL", pod, &json!({})).success();
    }),
    row("§4 procedure", "SHOULD pass its standard error on", |node, pod| {
        let ipam = Ipam::install(node);
        let output = ipam.verb(node, "ADD", pod, &json!({}));
        assert!(output.stderr.contains("other-ipam says ADD"), "{}", output.stderr);
        ipam.verb(node, "DEL", pod, &json!({})).success();
    }),
    row("§4 procedure", "CHECK, DEL and GC MUST execute delegated plugins", |node, pod| {
        let ipam = Ipam::install(node);
        let result = ipam.verb(node, "ADD", pod, &json!({})).success();
        ipam.heard();
        ipam.verb(node, "CHECK", pod, &json!({"prevResult": result})).success();
        let valid = json!([{"containerID": pod.id, "ifname": "eth0"}]);
        ipam.verb(node, "GC", pod, &json!({"cni.dev/valid-attachments": valid})).success();
        ipam.verb(node, "DEL", pod, &json!({})).success();
        assert_eq!(ipam.heard(), ["CHECK", "DEL", "GC"].map(|v| format!("heard.{v}.{}", pod.id)));
    }),
    row("§4 procedure", "an error of theirs SHOULD be returned", |node, pod| {
        let ipam = Ipam::install(node);
        let result = ipam.verb(node, "ADD", pod, &json!({})).success();
        let valid = json!([{"containerID": pod.id, "ifname": "eth0"}]);
        let more = json!({"prevResult": result, "cni.dev/valid-attachments": valid});
        for (verb, code) in [("CHECK", 222), ("GC", 108), ("DEL", 108)] {
            ipam.fail(verb, true);
            let output = ipam.verb(node, verb, pod, &more);
            assert_eq!(output.code(), code, "{verb}");
            assert!(output.stdout.contains("as told"), "{}", output.stdout);
            ipam.fail(verb, false);
        }
        ipam.verb(node, "DEL", pod, &json!({})).success();
    }),
    row(
        "§4 procedure",
        "if it fails in ADD, DEL SHOULD be executed before the error returns",
        |node, pod| {
            let ipam = Ipam::install(node);
            ipam.heard();
            ipam.fail("ADD", true);
            assert_eq!(ipam.verb(node, "ADD", pod, &json!({})).code(), 222);
            ipam.fail("ADD", false);
            assert_eq!(ipam.heard(), ["ADD", "DEL"].map(|v| format!("heard.{v}.{}", pod.id)));
        },
    ),
    other(
        "§5 delegated plugins",
        "IPAM plugins MUST return an abbreviated result",
        "an IPAM plugin's: Fairlead's own allocator is no executable",
    ),
];
