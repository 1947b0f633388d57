//! `ipBlock`.

use super::*;

pub(super) fn add(table: &mut Table) {
    let from = |peers: &[Peer]| [ingress(&[rule(peers, &[])])];
    table.under(
        "ipBlock with except",
        &from(&[block("10.0.0.0/8", &["10.0.1.0/24"])]),
        &[
            ("below the block", DB, IN, "9.255.255.255", tcp(1), NO),
            ("first address", DB, IN, "10.0.0.0", tcp(1), YES),
            ("a pod in the block", DB, IN, "10.0.0.10", tcp(1), YES),
            ("before the except", DB, IN, "10.0.0.255", tcp(1), YES),
            ("first of the except", DB, IN, "10.0.1.0", tcp(1), NO),
            ("a pod in the except", DB, IN, "10.0.1.10", tcp(1), NO),
            ("last of the except", DB, IN, "10.0.1.255", tcp(1), NO),
            ("after the except", DB, IN, "10.0.2.0", tcp(1), YES),
            ("last address", DB, IN, "10.255.255.255", tcp(1), YES),
            ("above the block", DB, IN, "11.0.0.0", tcp(1), NO),
            ("no IPv6", DB, IN, "fd00::10", tcp(1), NO),
        ],
    );
    table.under(
        "overlapping blocks",
        &[ingress(&[
            rule(&[block("10.0.0.0/8", &["10.0.1.0/24"])], &[port(Protocol::Tcp, 80)]),
            rule(&[block("10.0.1.0/25", &[])], &[port(Protocol::Tcp, 81)]),
        ])],
        &[
            ("one rule's except does not cancel the other's block", DB, IN, "10.0.1.10", tcp(81), YES),
            ("nor does the other's block cancel the except", DB, IN, "10.0.1.10", tcp(80), NO),
            ("each with its ports", DB, IN, "10.0.0.10", tcp(81), NO),
            ("as written", DB, IN, "10.0.0.10", tcp(80), YES),
            ("rest of the except", DB, IN, "10.0.1.200", tcp(81), NO),
        ],
    );
    table.under(
        "overlapping blocks of one rule",
        &from(&[block("10.0.0.0/8", &["10.0.1.0/24"]), block("10.0.1.0/24", &["10.0.1.10/32"])]),
        &[
            ("except given back by the other block", DB, IN, "10.0.1.20", tcp(1), YES),
            ("except of both", DB, IN, "10.0.1.10", tcp(1), NO),
        ],
    );
    table.under(
        "overlapping blocks of IPv6",
        &[ingress(&[
            rule(&[block("fd00::/8", &["fd00:1::/64"])], &[port(Protocol::Tcp, 80)]),
            rule(&[block("fd00:1::/80", &[])], &[port(Protocol::Tcp, 81)]),
        ])],
        &[
            ("one rule's except does not cancel the other's block", DB, IN, "fd00:1::10", tcp(81), YES),
            ("nor does the other's block cancel the except", DB, IN, "fd00:1::10", tcp(80), NO),
            ("each with its ports", DB, IN, "fd00::10", tcp(81), NO),
            ("as written", DB, IN, "fd00::10", tcp(80), YES),
            ("rest of the except", DB, IN, "fd00:1::1:0:0:1", tcp(81), NO),
        ],
    );
    table.under(
        "except within except",
        &from(&[block("10.0.0.0/8", &["10.0.0.0/16", "10.0.1.0/24"])]),
        &[("in both", DB, IN, "10.0.1.10", tcp(1), NO), ("in the wider", DB, IN, "10.0.0.10", tcp(1), NO)],
    );
    table.under(
        "everything of IPv4",
        &from(&[block("0.0.0.0/0", &[])]),
        &[
            ("a pod", DB, IN, "10.0.0.10", tcp(1), YES),
            ("the outside", DB, IN, "255.255.255.255", tcp(1), YES),
            ("a node", DB, IN, "192.168.0.2", Target::Icmp, YES),
            ("no IPv6 pod", DB, IN, "fd00::10", tcp(1), NO),
            ("no IPv6 outside", DB, IN, "2001:db8::1", tcp(1), NO),
        ],
    );
    table.under(
        "everything of IPv6",
        &from(&[block("::/0", &["fd00:1::/32"])]),
        &[
            ("a pod", DB, IN, "fd00::10", tcp(1), YES),
            ("the except", DB, IN, "fd00:1::10", tcp(1), NO),
            ("the outside", DB, IN, "2001:db8::1", tcp(1), YES),
            ("no IPv4 pod", DB, IN, "10.0.0.10", tcp(1), NO),
            ("a mapped address on the wire is IPv6", DB, IN, "::ffff:10.0.0.10", tcp(1), YES),
        ],
    );
    table.under(
        "single addresses",
        &from(&[block("10.0.0.10/32", &[]), block("fd00:1::10/128", &[])]),
        &[
            ("IPv4", DB, IN, "10.0.0.10", tcp(1), YES),
            ("its neighbour", DB, IN, "10.0.0.11", tcp(1), NO),
            ("IPv6", DB, IN, "fd00:1::10", tcp(1), YES),
            ("its IPv6 neighbour", DB, IN, "fd00:1::11", tcp(1), NO),
        ],
    );
    table.under(
        "host bits set",
        &from(&[block("10.0.1.77/24", &["10.0.1.10/31"])]),
        &[
            ("the whole block", DB, IN, "10.0.1.200", tcp(1), YES),
            ("less the whole except", DB, IN, "10.0.1.11", tcp(1), NO),
            ("not beyond", DB, IN, "10.0.2.0", tcp(1), NO),
        ],
    );
    table.under(
        "host bits set, IPv6",
        &from(&[block("fd00:1::77/64", &["fd00:1::10/127"])]),
        &[
            ("the whole block", DB, IN, "fd00:1::ffff", tcp(1), YES),
            ("less the whole except", DB, IN, "fd00:1::11", tcp(1), NO),
            ("not beyond", DB, IN, "fd00:1:0:1::", tcp(1), NO),
        ],
    );
    table.under(
        "everything of IPv4 in its mapped form",
        &from(&[block("::ffff:0:0/96", &[])]),
        &[
            ("a pod", DB, IN, "10.0.0.10", tcp(1), YES),
            ("the outside", DB, IN, "203.0.113.1", tcp(1), YES),
            ("no IPv6 pod", DB, IN, "fd00::10", tcp(1), NO),
        ],
    );
    table.under(
        "IPv4-mapped written form",
        &from(&[block("::ffff:10.0.1.0/120", &["::ffff:10.0.1.10/128"])]),
        &[
            ("means IPv4", DB, IN, "10.0.1.20", tcp(1), YES),
            ("its except too", DB, IN, "10.0.1.10", tcp(1), NO),
            ("is no IPv6", DB, IN, "::ffff:10.0.1.20", tcp(1), NO),
        ],
    );
    table.under(
        "ipBlock and selector",
        &[ingress(&[
            rule(&[block("10.0.1.0/24", &[])], &[port(Protocol::Tcp, 80)]),
            rule(
                &[pods_in(LabelSelector::default(), match_labels(&[("app", "web")]))],
                &[port(Protocol::Tcp, 81)],
            ),
        ])],
        &[
            ("a pod that both match, by block", DB, IN, "10.0.1.10", tcp(80), YES),
            ("a pod that both match, by selector", DB, IN, "10.0.1.10", tcp(81), YES),
            ("only the block", DB, IN, "10.0.1.20", tcp(80), YES),
            ("only the block, not the other's port", DB, IN, "10.0.1.20", tcp(81), NO),
            ("only the selector", DB, IN, "10.0.0.10", tcp(81), YES),
            ("only the selector, not the other's port", DB, IN, "10.0.0.10", tcp(80), NO),
        ],
    );
    table.under(
        "ingress from another node",
        &from(&[block("192.168.0.2/32", &[])]),
        &[
            ("by its address", DB, IN, "192.168.0.2", tcp(1), YES),
            ("no other address", DB, IN, "192.168.0.3", tcp(1), NO),
            ("none of its pods", DB, IN, "10.0.1.10", tcp(1), NO),
        ],
    );
    table.under(
        "egress to single addresses",
        &[egress(&[rule(&[block("10.0.0.10/32", &[]), block("fd00:1::10/128", &[])], &[])])],
        &[
            ("IPv4", DB, OUT, "10.0.0.10", tcp(1), YES),
            ("its neighbour", DB, OUT, "10.0.0.11", tcp(1), NO),
            ("IPv6", DB, OUT, "fd00:1::10", tcp(1), YES),
            ("its IPv6 neighbour", DB, OUT, "fd00:1::11", tcp(1), NO),
        ],
    );
    table.under(
        "egress to a node",
        &[egress(&[rule(&[block("192.168.0.2/32", &[])], &[])])],
        &[
            ("another node by its address", DB, OUT, "192.168.0.2", tcp(1), YES),
            ("no other address", DB, OUT, "192.168.0.3", tcp(1), NO),
        ],
    );
    table.under(
        "egress to the outside only",
        &[egress(&[rule(&[block("0.0.0.0/0", &["10.0.0.0/8", "192.168.0.0/16"])], &[])])],
        &[
            ("outside", DB, OUT, "203.0.113.1", tcp(443), YES),
            ("no pod", DB, OUT, "10.0.1.10", tcp(80), NO),
            ("no node", DB, OUT, "192.168.0.2", tcp(1), NO),
        ],
    );
}
