//! Protocols, numbers, names and ranges.

use super::*;
use Protocol::{Sctp, Tcp, Udp};

pub(super) fn add(table: &mut Table) {
    let web = || pods(match_labels(&[("app", "web")]));
    table.under(
        "rule without ports",
        &[ingress(&[rule(&[web()], &[])])],
        &[
            ("any TCP port", DB, IN, "10.0.0.10", tcp(0), YES),
            ("any UDP port", DB, IN, "10.0.0.10", udp(65535), YES),
            ("any SCTP port", DB, IN, "10.0.0.10", sctp(1), YES),
            ("ICMP", DB, IN, "10.0.0.10", Target::Icmp, YES),
            ("ICMPv6", DB, IN, "fd00::10", Target::Icmp, YES),
            ("every other protocol", DB, IN, "10.0.0.10", Target::Other, YES),
        ],
    );
    table.under(
        "egress rule without ports",
        &[egress(&[rule(&[web()], &[])])],
        &[
            ("any TCP port", DB, OUT, "10.0.0.10", tcp(65535), YES),
            ("any UDP port", DB, OUT, "10.0.0.10", udp(1), YES),
            ("any SCTP port", DB, OUT, "10.0.0.10", sctp(1), YES),
            ("ICMP", DB, OUT, "10.0.0.10", Target::Icmp, YES),
            ("ICMPv6", DB, OUT, "fd00::10", Target::Icmp, YES),
            ("every other protocol", DB, OUT, "10.0.0.10", Target::Other, YES),
            ("nothing of it to others", DB, OUT, "10.0.0.30", Target::Icmp, NO),
        ],
    );
    table.under(
        "egress rule with ports",
        &[egress(&[rule(&[web()], &[any(Tcp), any(Udp), any(Sctp)])])],
        &[
            ("any port", DB, OUT, "10.0.0.10", sctp(65535), YES),
            ("no ICMP", DB, OUT, "10.0.0.10", Target::Icmp, NO),
            ("no ICMPv6", DB, OUT, "fd00::10", Target::Icmp, NO),
            ("no other protocol", DB, OUT, "10.0.0.10", Target::Other, NO),
        ],
    );
    table.under(
        "ports with an empty entry",
        &[ingress(&[rule(&[web()], &[any(Tcp)])])],
        &[
            ("any TCP port", DB, IN, "10.0.0.10", tcp(0), YES),
            ("the last TCP port", DB, IN, "10.0.0.10", tcp(65535), YES),
            ("no UDP port", DB, IN, "10.0.0.10", udp(1), NO),
            ("no ICMP", DB, IN, "10.0.0.10", Target::Icmp, NO),
            ("no other protocol", DB, IN, "10.0.0.10", Target::Other, NO),
        ],
    );
    table.under(
        "every protocol by name",
        &[ingress(&[rule(&[], &[any(Tcp), any(Udp), any(Sctp)])])],
        &[
            ("is not ICMP", DB, IN, "203.0.113.1", Target::Icmp, NO),
            ("is not the others", DB, IN, "203.0.113.1", Target::Other, NO),
            ("is SCTP", DB, IN, "203.0.113.1", sctp(9), YES),
        ],
    );
    table.under(
        "one port",
        &[ingress(&[rule(&[web()], &[port(Tcp, 5432)])])],
        &[
            ("it", DB, IN, "10.0.0.10", tcp(5432), YES),
            ("not the one below", DB, IN, "10.0.0.10", tcp(5431), NO),
            ("not the one above", DB, IN, "10.0.0.10", tcp(5433), NO),
            ("not of UDP", DB, IN, "10.0.0.10", udp(5432), NO),
            ("not of SCTP", DB, IN, "10.0.0.10", sctp(5432), NO),
            ("not from others", DB, IN, "10.0.0.30", tcp(5432), NO),
            ("no ICMP", DB, IN, "10.0.0.10", Target::Icmp, NO),
        ],
    );
    for (protocol, yes, no, others) in
        [(Udp, udp(53), tcp(53), [sctp(53), udp(54)]), (Sctp, sctp(53), udp(53), [tcp(53), sctp(52)])]
    {
        let group = format!("one port of {protocol:?}");
        table.under(
            &group,
            &[egress(&[rule(&[], &[port(protocol, 53)])])],
            &[
                ("it", DB, OUT, "203.0.113.1", yes, YES),
                ("not of another protocol", DB, OUT, "203.0.113.1", no, NO),
                ("not of the third", DB, OUT, "203.0.113.1", others[0], NO),
                ("not its neighbour", DB, OUT, "203.0.113.1", others[1], NO),
            ],
        );
    }
    table.under(
        "endPort",
        &[ingress(&[rule(&[web()], &[range(Tcp, 8000, 8010)])])],
        &[
            ("below", DB, IN, "10.0.0.10", tcp(7999), NO),
            ("first", DB, IN, "10.0.0.10", tcp(8000), YES),
            ("within", DB, IN, "10.0.0.10", tcp(8005), YES),
            ("last", DB, IN, "10.0.0.10", tcp(8010), YES),
            ("above", DB, IN, "10.0.0.10", tcp(8011), NO),
            ("not UDP", DB, IN, "10.0.0.10", udp(8005), NO),
        ],
    );
    table.under(
        "endPort of SCTP",
        &[egress(&[rule(&[], &[range(Sctp, 3868, 3870)])])],
        &[
            ("below", DB, OUT, "203.0.113.1", sctp(3867), NO),
            ("first", DB, OUT, "203.0.113.1", sctp(3868), YES),
            ("last", DB, OUT, "203.0.113.1", sctp(3870), YES),
            ("above", DB, OUT, "203.0.113.1", sctp(3871), NO),
            ("not TCP", DB, OUT, "203.0.113.1", tcp(3869), NO),
        ],
    );
    table.under(
        "one number of two protocols",
        &[egress(&[rule(&[], &[port(Tcp, 53), port(Udp, 53)])])],
        &[
            ("TCP", DB, OUT, "203.0.113.1", tcp(53), YES),
            ("UDP", DB, OUT, "203.0.113.1", udp(53), YES),
            ("not the third", DB, OUT, "203.0.113.1", sctp(53), NO),
        ],
    );
    table.under(
        "endPort to the last port",
        &[ingress(&[rule(&[], &[range(Udp, 1, 65535)])])],
        &[
            ("the last", DB, IN, "203.0.113.1", udp(65535), YES),
            ("not port 0", DB, IN, "203.0.113.1", udp(0), NO),
        ],
    );
    table.under(
        "overlapping ranges of two rules",
        &[ingress(&[
            rule(&[web()], &[range(Tcp, 10, 20)]),
            rule(&[pods_in(LabelSelector::default(), LabelSelector::default())], &[range(Tcp, 15, 30)]),
        ])],
        &[
            ("first only, for whom it names", DB, IN, "10.0.0.10", tcp(12), YES),
            ("first only, for another", DB, IN, "10.0.0.30", tcp(12), NO),
            ("both", DB, IN, "10.0.0.30", tcp(17), YES),
            ("second, for whom both name", DB, IN, "10.0.0.10", tcp(30), YES),
            ("beyond both", DB, IN, "10.0.0.10", tcp(31), NO),
        ],
    );
    table.under(
        "named port on ingress",
        &[ingress(&[rule(&[web()], &[by_name(Tcp, "sql")])])],
        &[
            ("the subject's number", DB, IN, "10.0.0.10", tcp(5432), YES),
            ("no other", DB, IN, "10.0.0.10", tcp(5433), NO),
            ("not of UDP", DB, IN, "10.0.0.10", udp(5432), NO),
        ],
    );
    table.under(
        "named port of UDP on ingress",
        &[ingress(&[rule(&[web()], &[by_name(Udp, "gossip")])])],
        &[
            ("the subject's number", DB, IN, "10.0.0.10", udp(7000), YES),
            ("not of TCP", DB, IN, "10.0.0.10", tcp(7000), NO),
            ("not from others", DB, IN, "10.0.0.30", udp(7000), NO),
        ],
    );
    table.under(
        "unknown name on egress",
        &[egress(&[rule(&[], &[by_name(Tcp, "nothing")])])],
        &[
            ("matches nothing of a pod", DB, OUT, "10.0.0.10", tcp(8080), NO),
            ("nor outside", DB, OUT, "203.0.113.1", tcp(80), NO),
            ("nor ICMP", DB, OUT, "10.0.0.10", Target::Icmp, NO),
        ],
    );
    table.under(
        "named port on ingress that is another pod's",
        &[ingress(&[rule(&[], &[by_name(Tcp, "http")])])],
        &[
            ("matches nothing", DB, IN, "10.0.0.10", tcp(8080), NO),
            ("nor the other's other number", DB, IN, "10.0.0.10", tcp(80), NO),
        ],
    );
    table.under(
        "named port of the wrong protocol",
        &[ingress(&[rule(&[], &[by_name(Udp, "sql")])])],
        &[("no UDP", DB, IN, "10.0.0.10", udp(5432), NO), ("no TCP", DB, IN, "10.0.0.10", tcp(5432), NO)],
    );
    table.under(
        "unknown name beside a number",
        &[ingress(&[rule(&[], &[by_name(Tcp, "nothing"), port(Tcp, 80)])])],
        &[
            ("the number", DB, IN, "10.0.0.10", tcp(80), YES),
            ("nothing else", DB, IN, "10.0.0.10", tcp(81), NO),
        ],
    );
    let everywhere = || pods_in(LabelSelector::default(), match_labels(&[("app", "web")]));
    let http = by_name(Tcp, "http");
    table.under(
        "named port on egress to selected pods",
        &[egress(&[rule(&[everywhere()], std::slice::from_ref(&http))])],
        &[
            ("this peer's number", DB, OUT, "10.0.0.10", tcp(8080), YES),
            ("not another peer's number", DB, OUT, "10.0.0.10", tcp(80), NO),
            ("that peer's number", DB, OUT, "10.0.1.10", tcp(80), YES),
            ("not this one's", DB, OUT, "10.0.1.10", tcp(8080), NO),
            ("under IPv6", DB, OUT, "fd00:1::10", tcp(80), YES),
            ("not UDP", DB, OUT, "10.0.1.10", udp(80), NO),
            ("a pod without that name", DB, OUT, "10.0.1.20", tcp(80), NO),
            ("outside", DB, OUT, "203.0.113.1", tcp(80), NO),
        ],
    );
    table.under(
        "named port on egress without to",
        &[egress(&[rule(&[], std::slice::from_ref(&http))])],
        &[
            ("this peer's number", DB, OUT, "10.0.0.10", tcp(8080), YES),
            ("that peer's number", DB, OUT, "10.0.1.10", tcp(80), YES),
            ("not each other's", DB, OUT, "10.0.1.10", tcp(8080), NO),
            ("nothing outside the cluster", DB, OUT, "203.0.113.1", tcp(80), NO),
            ("nothing on a node", DB, OUT, "192.168.0.2", tcp(80), NO),
        ],
    );
    table.under(
        "named port on egress under ipBlock",
        &[egress(&[rule(&[block("10.0.1.0/24", &[])], std::slice::from_ref(&http))])],
        &[
            ("the number of the pod within", DB, OUT, "10.0.1.10", tcp(80), YES),
            ("not of the pod beside", DB, OUT, "10.0.0.10", tcp(8080), NO),
            ("nothing where there is no pod", DB, OUT, "10.0.1.77", tcp(80), NO),
        ],
    );
    table.under(
        "named port on egress of the subject itself",
        &[egress(&[rule(&[], &[by_name(Tcp, "sql")])])],
        &[("is not what counts", DB, OUT, "10.0.0.10", tcp(5432), NO)],
    );
    table.under(
        "named port on egress of the wrong protocol",
        &[egress(&[rule(&[], &[by_name(Udp, "http")])])],
        &[("no UDP", DB, OUT, "10.0.0.10", udp(8080), NO), ("no TCP", DB, OUT, "10.0.0.10", tcp(8080), NO)],
    );
}
