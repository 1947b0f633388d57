//! Who is isolated, and whom selectors match.

use super::*;

/// An ingress rule for each shape of selector, against the same five peers.
fn ingress_from(table: &mut Table, group: &str, peers: &[Peer], expected: [bool; 5]) {
    let [web, plain, remote_web, remote_db, outside] = expected;
    table.under(
        group,
        &[ingress(&[rule(peers, &[])])],
        &[
            ("web of the same namespace", DB, IN, "10.0.0.10", tcp(1), web),
            ("pod without labels of the same namespace", DB, IN, "10.0.0.30", tcp(1), plain),
            ("web of another namespace", DB, IN, "10.0.1.10", tcp(1), remote_web),
            ("db of another namespace", DB, IN, "10.0.1.20", tcp(1), remote_db),
            ("outside", DB, IN, "203.0.113.1", tcp(1), outside),
        ],
    );
}

/// The same for egress.
fn egress_to(table: &mut Table, group: &str, peers: &[Peer], expected: [bool; 5]) {
    let [web, plain, remote_web, remote_db, outside] = expected;
    table.under(
        group,
        &[egress(&[rule(peers, &[])])],
        &[
            ("web of the same namespace", DB, OUT, "10.0.0.10", tcp(1), web),
            ("pod without labels of the same namespace", DB, OUT, "10.0.0.30", tcp(1), plain),
            ("web of another namespace", DB, OUT, "10.0.1.10", tcp(1), remote_web),
            ("db of another namespace", DB, OUT, "10.0.1.20", tcp(1), remote_db),
            ("outside", DB, OUT, "203.0.113.1", tcp(1), outside),
        ],
    );
}

pub(super) fn add(table: &mut Table) {
    let everyone = LabelSelector::default;
    table.under(
        "no policy",
        &[],
        &[
            ("ingress is open", DB, IN, "203.0.113.1", tcp(1), YES),
            ("egress is open", DB, OUT, "203.0.113.1", udp(1), YES),
        ],
    );
    table.under(
        "ingress present and empty",
        &[ingress(&[])],
        &[
            ("ingress is closed to pods", DB, IN, "10.0.0.10", tcp(5432), NO),
            ("ingress is closed to the outside", DB, IN, "203.0.113.1", tcp(5432), NO),
            ("ingress is closed to ICMP", DB, IN, "10.0.0.10", Target::Icmp, NO),
            ("ingress is closed to other protocols", DB, IN, "10.0.0.10", Target::Other, NO),
            ("egress stays open", DB, OUT, "10.0.0.10", tcp(1), YES),
            ("who is not selected stays open", WEB, IN, "10.0.0.20", tcp(1), YES),
            ("IPv6 is closed too", DB, IN, "fd00::10", tcp(5432), NO),
        ],
    );
    table.under(
        "egress present and empty",
        &[egress(&[])],
        &[
            ("egress is closed", DB, OUT, "10.0.0.10", tcp(8080), NO),
            ("ingress stays open", DB, IN, "10.0.0.10", tcp(1), YES),
        ],
    );
    table.under(
        "neither direction",
        &[policy("none", everyone(), None, None)],
        &[
            ("ingress is open", DB, IN, "10.0.0.10", tcp(1), YES),
            ("egress is open", DB, OUT, "10.0.0.10", tcp(1), YES),
        ],
    );
    table.under(
        "empty podSelector",
        &[policy("all", everyone(), Some(vec![]), Some(vec![]))],
        &[
            ("selects every pod of the namespace", WEB, IN, "10.0.0.20", tcp(1), NO),
            ("and this one", DB, OUT, "10.0.0.10", tcp(1), NO),
            ("but no attachment that is not a pod", FOREIGN, IN, "10.0.0.20", tcp(1), YES),
        ],
    );
    let mut elsewhere = policy("all", everyone(), Some(vec![]), Some(vec![]));
    elsewhere.key.namespace = "other".to_owned();
    table.under(
        "policy of another namespace",
        &[elsewhere],
        &[("does not select", DB, IN, "10.0.0.10", tcp(1), YES)],
    );
    table.under(
        "several policies",
        &[
            ingress(&[]),
            policy("more", everyone(), Some(vec![rule(&[pods(match_labels(&[("app", "web")]))], &[])]), None),
        ],
        &[
            ("their rules add up", DB, IN, "10.0.0.10", tcp(1), YES),
            ("and allow nothing else", DB, IN, "10.0.0.30", tcp(1), NO),
        ],
    );
    table.under(
        "directions of one policy",
        &[policy(
            "both",
            match_labels(&[("app", "db")]),
            Some(vec![rule(&[pods(match_labels(&[("app", "web")]))], &[])]),
            Some(vec![rule(&[pods(everyone())], &[port(Protocol::Tcp, 1)])]),
        )],
        &[
            ("ingress by the ingress rules", DB, IN, "10.0.0.10", tcp(2), YES),
            ("not by the egress rules", DB, IN, "10.0.0.30", tcp(1), NO),
            ("egress by the egress rules", DB, OUT, "10.0.0.30", tcp(1), YES),
            ("not by the ingress rules", DB, OUT, "10.0.0.10", tcp(2), NO),
        ],
    );
    ingress_from(table, "rule without from", &[], [YES; 5]);
    ingress_from(table, "empty podSelector in from", &[pods(everyone())], [YES, YES, NO, NO, NO]);
    ingress_from(
        table,
        "empty namespaceSelector",
        &[pods_in(everyone(), everyone())],
        [YES, YES, YES, YES, NO],
    );
    let web = || match_labels(&[("app", "web")]);
    let test = || match_labels(&[("stage", "test")]);
    ingress_from(table, "podSelector", &[pods(web())], [YES, NO, NO, NO, NO]);
    ingress_from(table, "namespaceSelector", &[pods_in(test(), everyone())], [NO, NO, YES, YES, NO]);
    ingress_from(
        table,
        "In on namespaces",
        &[pods_in(expression("team", Operator::In(values(&["other", "third"]))), everyone())],
        [NO, NO, YES, YES, NO],
    );
    ingress_from(
        table,
        "Exists on namespaces",
        &[pods_in(expression("stage", Operator::Exists), everyone())],
        [NO, NO, YES, YES, NO],
    );
    ingress_from(table, "both in one peer", &[pods_in(test(), web())], [NO, NO, YES, NO, NO]);
    ingress_from(
        table,
        "both in two peers",
        &[pods_in(test(), everyone()), pods(web())],
        [YES, NO, YES, YES, NO],
    );
    ingress_from(
        table,
        "all namespaces with a podSelector",
        &[pods_in(everyone(), web())],
        [YES, NO, YES, NO, NO],
    );
    let by_name = match_labels(&[("kubernetes.io/metadata.name", "other")]);
    ingress_from(table, "namespace by its name", &[pods_in(by_name, everyone())], [NO, NO, YES, YES, NO]);
    ingress_from(table, "selector that matches nobody", &[pods(match_labels(&[("app", "none")]))], [NO; 5]);
    let anywhere = |operator| [pods_in(everyone(), expression("app", operator))];
    let some = || values(&["web", "cache"]);
    ingress_from(table, "In", &anywhere(Operator::In(some())), [YES, NO, YES, NO, NO]);
    ingress_from(table, "NotIn", &anywhere(Operator::NotIn(some())), [NO, YES, NO, YES, NO]);
    ingress_from(table, "Exists", &anywhere(Operator::Exists), [YES, NO, YES, YES, NO]);
    ingress_from(table, "DoesNotExist", &anywhere(Operator::DoesNotExist), [NO, YES, NO, NO, NO]);
    let stage = |operator| [pods_in(expression("stage", operator), everyone())];
    ingress_from(
        table,
        "NotIn on namespaces",
        &stage(Operator::NotIn(values(&["test"]))),
        [YES, YES, NO, NO, NO],
    );
    ingress_from(table, "DoesNotExist on namespaces", &stage(Operator::DoesNotExist), [YES, YES, NO, NO, NO]);
    let mut front = expression("app", Operator::Exists);
    front.requirements.extend(match_labels(&[("tier", "front")]).requirements);
    ingress_from(table, "requirements are ANDed", &[pods_in(everyone(), front)], [YES, NO, YES, NO, NO]);
    table.under(
        "egress peers",
        &[egress(&[rule(&[pods(web())], &[])])],
        &[
            ("the selected pod", DB, OUT, "10.0.0.10", tcp(8080), YES),
            ("under each of its addresses", DB, OUT, "fd00::10", tcp(8080), YES),
            ("no other", DB, OUT, "10.0.1.10", tcp(8080), NO),
        ],
    );
    egress_to(table, "rule without to", &[], [YES; 5]);
    egress_to(table, "empty podSelector in to", &[pods(everyone())], [YES, YES, NO, NO, NO]);
    egress_to(
        table,
        "empty namespaceSelector in to",
        &[pods_in(everyone(), everyone())],
        [YES, YES, YES, YES, NO],
    );
    egress_to(table, "both in one peer of to", &[pods_in(test(), web())], [NO, NO, YES, NO, NO]);
    egress_to(
        table,
        "both in two peers of to",
        &[pods_in(test(), everyone()), pods(web())],
        [YES, NO, YES, YES, NO],
    );
    egress_to(table, "to that matches nobody", &[pods(match_labels(&[("app", "none")]))], [NO; 5]);
    let subjects = expression("app", Operator::NotIn(values(&["web"])));
    table.under(
        "NotIn as podSelector",
        &[policy("subjects", subjects, Some(vec![]), None)],
        &[
            ("isolates the others", DB, IN, "10.0.0.10", tcp(1), NO),
            ("not these", WEB, IN, "10.0.0.20", tcp(1), YES),
        ],
    );
}
