//! Section 3: execution of network configurations. It binds runtimes, but for what a plugin must bear.

use super::{AUTHOR, RUNTIME, Row, other, row, with};
use crate::node::{Pod, Say};

pub(super) const ROWS: &[Row] = &[
    other("§3 lifecycle", "the runtime MUST make the network namespace first", RUNTIME),
    other("§3 lifecycle", "the runtime MUST NOT run two operations for one container at once", RUNTIME),
    other("§3 lifecycle", "the runtime MUST run either GC or ADD and DEL", RUNTIME),
    other("§3 lifecycle", "the runtime MUST wait for ADD and DEL before GC, and for GC before them", RUNTIME),
    row("§3 lifecycle", "plugins MUST bear concurrent calls for different containers", |node, _| {
        let pods: Vec<Pod> = (0..6).map(|i| node.pod(&format!("at-once-{i}"))).collect();
        std::thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(|| {
                    node.add(pod).success();
                    node.del(pod).success();
                });
            }
        });
    }),
    row("§3 lifecycle", "plugins MUST lock what they share, if necessary", |node, _| {
        let pods: Vec<Pod> = (0..6).map(|i| node.pod(&format!("sharing-{i}"))).collect();
        std::thread::scope(|scope| pods.iter().for_each(|pod| drop(scope.spawn(|| node.add(pod).success()))));
        let mut addresses: Vec<_> = pods.iter().flat_map(|p| node.attachment(p).unwrap().addresses).collect();
        let mut indexes: Vec<_> = pods.iter().map(|p| node.attachment(p).unwrap().host_ifindex).collect();
        addresses.sort();
        addresses.dedup();
        indexes.sort();
        indexes.dedup();
        assert_eq!((addresses.len(), indexes.len()), (12, 6));
        for pod in &pods {
            node.del(pod).success();
        }
    }),
    other("§3 lifecycle", "the runtime MUST see to it that DEL follows ADD", RUNTIME),
    row("§3 lifecycle", "DEL MUST be called even if ADD failed: it succeeds then", |node, pod| {
        node.heard.lock().unwrap().say.push_back(Say::Error("internal"));
        assert_eq!(node.add(pod).code(), 106);
        assert_eq!(with(node, pod, &[("CNI_IFNAME", Some("a/b"))], &node.conf().to_string()).code(), 4);
        node.del(pod).success();
    }),
    other("§3 lifecycle", "the configuration SHOULD NOT change between ADD and DEL", AUTHOR),
    other("§3 lifecycle", "the configuration SHOULD NOT change between attachments", AUTHOR),
    row("§3 parameters", "the container ID MUST NOT be empty", |node, pod| {
        let change = [("CNI_CONTAINERID", Some(""))];
        assert_eq!(with(node, pod, &change, &node.conf().to_string()).code(), 4);
    }),
    row("§3 parameters", "the container ID MUST start with an alphanumeric", |node, pod| {
        for id in ["_a", ".a", "-a", "ä"] {
            let change = [("CNI_CONTAINERID", Some(id))];
            assert_eq!(with(node, pod, &change, &node.conf().to_string()).code(), 4, "{id}");
        }
    }),
    other("§3 parameters", "the runtime MUST be told where plugins are", RUNTIME),
    other("§3 parameters", "the runtime MUST tell plugins so in CNI_PATH", RUNTIME),
    other("§3 adding", "the runtime MUST store the last plugin's result", RUNTIME),
    other("§3 checking", "the runtime MUST use the parameters of ADD", RUNTIME),
    other("§3 deriving", "the configuration MUST be transformed into one for a plugin", RUNTIME),
    other("§3 deriving", "runtimeConfig: the runtime MUST insert it", RUNTIME),
    other("§3 deriving", "prevResult: the runtime MUST insert it", RUNTIME),
    other("§3 deriving", "prevResult: MUST NOT be set for the first ADD", RUNTIME),
    other("§3 deriving", "capabilities: MUST NOT be set", RUNTIME),
    other("§3 deriving", "other fields SHOULD be passed on as they are", RUNTIME),
    other("§3 deriving runtimeConfig", "what plugin and runtime have SHOULD be inserted", RUNTIME),
];
