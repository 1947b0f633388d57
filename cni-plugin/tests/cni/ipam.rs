//! An IPAM plugin that others delegate to, which says what it was called with and fails as told.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::node::{Node, Output, Pod, names};

/// Leaves a file for each call but VERSION, and fails while there is a file `fail.VERB`.
const SCRIPT: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 9
if [ "$CNI_COMMAND" = VERSION ]; then
    echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}'
    exit
fi
cat > "heard.$CNI_COMMAND.$CNI_CONTAINERID"
env > "environment"
echo "other-ipam says $CNI_COMMAND" >&2
if [ -e "fail.$CNI_COMMAND" ]; then
    echo '{"cniVersion":"1.1.0","code":222,"msg":"as told"}'
    exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then
    echo '{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.9/24","gateway":"192.0.2.1"},{"address":"2001:db8::9/64"}],"dns":{"nameservers":["192.0.2.53"]}}'
fi
"#;

pub(crate) struct Ipam {
    pub(crate) path: PathBuf,
}

impl Ipam {
    pub(crate) fn install(node: &Node) -> Self {
        let path = node.dir.path().join("bin");
        std::fs::create_dir_all(&path).unwrap();
        let file = path.join("other-ipam");
        std::fs::write(&file, SCRIPT).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { path }
    }

    /// Calls Fairlead's plugin with `ipam.type` set to this one.
    pub(crate) fn verb(&self, node: &Node, verb: &str, pod: &Pod, more: &Value) -> Output {
        let mut conf = node.conf_with(&json!({"ipam": {"type": "other-ipam", "its": "own"}}));
        for (key, value) in more.as_object().unwrap() {
            conf[key] = value.clone();
        }
        let environment = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &pod.id),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", &pod.path),
            ("CNI_ARGS", "IgnoreUnknown=1;ITS=own"),
            ("CNI_PATH", self.path.to_str().unwrap()),
        ];
        node.call(&environment, &conf.to_string())
    }

    /// What it was called with: "heard.VERB.CONTAINER".
    pub(crate) fn heard(&self) -> Vec<String> {
        let heard: Vec<String> = names(&self.path).into_iter().filter(|n| n.starts_with("heard")).collect();
        for name in &heard {
            std::fs::remove_file(self.path.join(name)).unwrap();
        }
        heard
    }

    /// The configuration of a call.
    pub(crate) fn input(&self, heard: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.path.join(heard)).unwrap()).unwrap()
    }

    pub(crate) fn fail(&self, verb: &str, fail: bool) {
        let file = self.path.join(format!("fail.{verb}"));
        if fail { std::fs::write(file, "").unwrap() } else { std::fs::remove_file(file).unwrap() }
    }
}
