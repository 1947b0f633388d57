//! Whose an address is.

use super::*;

pub(super) fn add(table: &mut Table) {
    let web = || pods(match_labels(&[("app", "web")]));
    let everyone = || pods_in(LabelSelector::default(), LabelSelector::default());
    table.under(
        "hostNetwork",
        &[ingress(&[rule(&[everyone()], &[])])],
        &[
            ("such a pod does not enrol its node's address", DB, IN, "192.168.0.1", tcp(1), NO),
            ("nor does a node", DB, IN, "192.168.0.2", tcp(1), NO),
        ],
    );
    let mut on_host = cluster();
    if let Some(pod) = on_host.pods.get_mut(&ObjectKey::new("shop", "db")) {
        pod.host_network = true;
    }
    table.within(
        "hostNetwork subject",
        on_host,
        &[ingress(&[])],
        &[("no policy applies", DB, IN, "203.0.113.1", tcp(1), YES)],
    );
    table.under(
        "finished pod",
        &[ingress(&[
            rule(&[web()], &[port(Protocol::Tcp, 80)]),
            rule(&[block("10.0.0.40/32", &[])], &[port(Protocol::Tcp, 81)]),
        ])],
        &[
            ("its labels count no more", DB, IN, "10.0.0.40", tcp(80), NO),
            ("its bare address is in a block", DB, IN, "10.0.0.40", tcp(81), YES),
        ],
    );
    let mut reused = cluster();
    let mut new = pod("shop", "new", &[("app", "cache")], &["10.0.0.40"]);
    new.ports = vec![named("http", Protocol::Tcp, 9000)];
    reused.pods.insert(new.key.clone(), new);
    table.within(
        "address of a finished pod in use again",
        reused.clone(),
        &[
            ingress(&[
                rule(&[web()], &[port(Protocol::Tcp, 80)]),
                rule(&[pods(match_labels(&[("app", "cache")]))], &[port(Protocol::Tcp, 81)]),
            ]),
            egress(&[rule(&[], &[by_name(Protocol::Tcp, "http")])]),
        ],
        &[
            ("the live pod's labels", DB, IN, "10.0.0.40", tcp(81), YES),
            ("not the finished one's", DB, IN, "10.0.0.40", tcp(80), NO),
            ("the live pod's named ports", DB, OUT, "10.0.0.40", tcp(9000), YES),
        ],
    );
    let mut finished_ports = cluster();
    if let Some(pod) = finished_ports.pods.get_mut(&ObjectKey::new("shop", "done")) {
        pod.ports = vec![named("http", Protocol::Tcp, 9000)];
    }
    table.within(
        "named ports of a finished pod",
        finished_ports,
        &[egress(&[rule(&[], &[by_name(Protocol::Tcp, "http")])])],
        &[("count no more", DB, OUT, "10.0.0.40", tcp(9000), NO)],
    );
    // Both are live, on other nodes: each may be the one that is there.
    let mut shared = cluster();
    let mut twin = pod("other", "twin", &[("app", "cache")], &["10.0.1.10"]);
    twin.ports = vec![named("http", Protocol::Tcp, 9000)];
    shared.pods.insert(twin.key.clone(), twin);
    let both = [ingress(&[
        rule(
            &[pods_in(LabelSelector::default(), match_labels(&[("app", "web")]))],
            &[port(Protocol::Tcp, 80)],
        ),
        rule(
            &[pods_in(LabelSelector::default(), match_labels(&[("app", "cache")]))],
            &[port(Protocol::Tcp, 81)],
        ),
    ])];
    table.within(
        "two pods with one address",
        shared.clone(),
        &both,
        &[("one", DB, IN, "10.0.1.10", tcp(80), YES), ("the other", DB, IN, "10.0.1.10", tcp(81), YES)],
    );
    table.within(
        "named port of one of two pods with one address",
        shared.clone(),
        &[egress(&[
            rule(
                &[pods_in(LabelSelector::default(), match_labels(&[("app", "web")]))],
                &[by_name(Protocol::Tcp, "http")],
            ),
            rule(
                &[pods_in(LabelSelector::default(), match_labels(&[("app", "cache")]))],
                &[port(Protocol::Tcp, 81)],
            ),
        ])],
        &[
            ("its number", DB, OUT, "10.0.1.10", tcp(80), YES),
            ("not the other's, which has other ports", DB, OUT, "10.0.1.10", tcp(9000), NO),
            ("those are open too", DB, OUT, "10.0.1.10", tcp(81), YES),
        ],
    );
    shared.pods.remove(&ObjectKey::new("other", "web"));
    table.within(
        "two pods with one address, one removed",
        shared,
        &both,
        &[
            ("it is gone", DB, IN, "10.0.1.10", tcp(80), NO),
            ("the other stays", DB, IN, "10.0.1.10", tcp(81), YES),
        ],
    );
    // A local endpoint is certain; another pod's status is late.
    let mut stale = cluster();
    let ghost = pod("shop", "ghost", &[("app", "ghost")], &["10.0.0.10", "10.0.0.99"]);
    stale.pods.insert(ghost.key.clone(), ghost);
    table.within(
        "address of a local endpoint in an old pod's status",
        stale,
        &[ingress(&[
            rule(&[pods(match_labels(&[("app", "ghost")]))], &[port(Protocol::Tcp, 80)]),
            rule(&[web()], &[port(Protocol::Tcp, 81)]),
        ])],
        &[
            ("is not the old pod's", DB, IN, "10.0.0.10", tcp(80), NO),
            ("is the endpoint's", DB, IN, "10.0.0.10", tcp(81), YES),
            ("nor where the endpoint is no pod", DB, IN, "10.0.0.99", tcp(80), NO),
        ],
    );
    let mut early = cluster();
    if let Some(pod) = early.pods.get_mut(&ObjectKey::new("shop", "web")) {
        pod.ips.clear();
    }
    table.within(
        "local pod whose status has no address yet",
        early,
        &[ingress(&[rule(&[web()], &[])])],
        &[
            ("is a peer from ADD on", DB, IN, "10.0.0.10", tcp(1), YES),
            ("in both families", DB, IN, "fd00::10", tcp(1), YES),
        ],
    );
    let mut unknown = cluster();
    unknown.pods.remove(&ObjectKey::new("shop", "web"));
    table.within(
        "endpoint whose pod is not known yet",
        unknown,
        &[],
        &[
            ("is closed for ingress", WEB, IN, "10.0.0.20", tcp(1), NO),
            ("is closed for egress", WEB, OUT, "10.0.0.20", tcp(1), NO),
            ("others are not", DB, IN, "10.0.0.10", tcp(1), YES),
        ],
    );
    let mut nameless = cluster();
    nameless.namespaces.remove("shop");
    table.within(
        "endpoint whose namespace is not known yet",
        nameless,
        &[],
        &[("is closed", DB, IN, "10.0.0.10", tcp(1), NO)],
    );
    let mut nameless = cluster();
    nameless.namespaces.remove("other");
    table.within(
        "peer whose namespace is not known yet",
        nameless,
        &[ingress(&[rule(&[everyone()], &[])])],
        &[
            ("matches no namespaceSelector", DB, IN, "10.0.1.10", tcp(1), NO),
            ("others do", DB, IN, "10.0.0.10", tcp(1), YES),
        ],
    );
    table.under(
        "an attachment that is not a pod",
        &[ingress(&[
            rule(&[everyone()], &[port(Protocol::Tcp, 80)]),
            rule(&[block("10.0.0.99/32", &[])], &[port(Protocol::Tcp, 81)]),
        ])],
        &[
            ("matches no selector", DB, IN, "10.0.0.99", tcp(80), NO),
            ("but a block", DB, IN, "10.0.0.99", tcp(81), YES),
        ],
    );
}
