//! Mode iptables: input of `iptables-restore`.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Family, View, hash, socket};

/// What kube-proxy marks packets with that it will masquerade.
const MARK: &str = "0x4000";

/// The rules of tables filter and nat, in kube-proxy's chains and towards them.
pub(super) fn rules(family: &Family<'_>) -> String {
    let (filter, nat) = (filter(family), nat(family));
    let mut text = String::new();
    for (table, rules) in [("filter", filter), ("nat", nat)] {
        let _ = writeln!(text, "*{table}");
        let mut declared = std::collections::BTreeSet::new();
        for rule in &rules {
            // A rule `-A CHAIN …`; chains that are only jumped to are declared by their own rules, or empty.
            for word in rule.split(' ').filter(|w| w.starts_with("KUBE-")) {
                if declared.insert(word) {
                    let _ = writeln!(text, ":{word} - [0:0]");
                }
            }
        }
        for rule in rules {
            let _ = writeln!(text, "{rule}");
        }
        text.push_str("COMMIT\n");
    }
    text
}

fn filter(family: &Family<'_>) -> Vec<String> {
    let mut rules: Vec<String> = [
        "-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
        "-A INPUT -j KUBE-NODEPORTS",
        "-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES",
        "-A INPUT -j KUBE-FIREWALL",
        "-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
        "-A FORWARD -j KUBE-FORWARD",
        "-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES",
        "-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES",
        "-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL",
        "-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES",
        "-A OUTPUT -j KUBE-FIREWALL",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
    ]
    .map(str::to_owned)
    .into();
    rules.push(format!("-A KUBE-FORWARD -m mark --mark {MARK}/{MARK} -j ACCEPT"));
    rules.push("-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned());
    if !family.ipv6 {
        rules.push(
            "-A KUBE-FIREWALL -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate \
             RELATED,ESTABLISHED,DNAT -j DROP"
                .to_owned(),
        );
    }
    for view in &family.views {
        let protocol = view.port.protocol.name();
        let at =
            |address: &IpAddr| format!("-d {address} -p {protocol} -m {protocol} --dport {}", view.port.port);
        let node_port = format!(
            "-m addrtype --dst-type LOCAL -p {protocol} -m {protocol} --dport {}",
            view.port.node_port
        );
        let outward = || view.external.iter().chain(&view.balancer);
        if view.backends.is_empty() {
            rules.extend(view.cluster.iter().map(|a| format!("-A KUBE-SERVICES {} -j REJECT", at(a))));
            rules.extend(outward().map(|a| format!("-A KUBE-EXTERNAL-SERVICES {} -j REJECT", at(a))));
            rules.push(format!("-A KUBE-EXTERNAL-SERVICES {node_port} -j REJECT"));
        } else if view.local && !view.backends.iter().any(|(_, node)| family.is_here(node)) {
            rules.extend(outward().map(|a| format!("-A KUBE-EXTERNAL-SERVICES {} -j DROP", at(a))));
            rules.push(format!("-A KUBE-EXTERNAL-SERVICES {node_port} -j DROP"));
        }
    }
    rules
}

fn nat(family: &Family<'_>) -> Vec<String> {
    let mut rules: Vec<String> = ["PREROUTING -j KUBE-SERVICES", "OUTPUT -j KUBE-SERVICES"]
        .iter()
        .chain(&["POSTROUTING -j KUBE-POSTROUTING"])
        .map(|rule| format!("-A {rule}"))
        .collect();
    rules.push(format!("-A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN"));
    rules.push(format!("-A KUBE-POSTROUTING -j MARK --xor-mark {MARK}"));
    rules.push("-A KUBE-POSTROUTING -j MASQUERADE --random-fully".to_owned());
    rules.push(format!("-A KUBE-MARK-MASQ -j MARK --or-mark {MARK}"));
    for view in family.views.iter().filter(|v| !v.backends.is_empty()) {
        rules.extend(service(family, view));
    }
    rules.push("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS".to_owned());
    rules
}

/// The rules of a port that has backends.
fn service(family: &Family<'_>, view: &View<'_>) -> Vec<String> {
    let View { hash: id, port, .. } = view;
    let protocol = port.protocol.name();
    let pods = family.pods;
    let (all, here, outward) = (format!("KUBE-SVC-{id}"), format!("KUBE-SVL-{id}"), format!("KUBE-EXT-{id}"));
    let at = |a: &IpAddr| format!("-d {a} -p {protocol} -m {protocol} --dport {}", port.port);
    let mut rules = Vec::new();
    rules.extend(view.cluster.iter().map(|a| format!("-A KUBE-SERVICES {} -j {all}", at(a))));
    let outwards = view.external.iter().chain(&view.balancer);
    rules.extend(outwards.map(|a| format!("-A KUBE-SERVICES {} -j {outward}", at(a))));
    let node_port = port.node_port;
    rules.push(format!("-A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {node_port} -j {outward}"));
    if view.local {
        rules.push(format!("-A {outward} -s {pods} -j {all}"));
        rules.push(format!("-A {outward} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"));
        rules.push(format!("-A {outward} -m addrtype --src-type LOCAL -j {all}"));
        rules.push(format!("-A {outward} -j {here}"));
    } else {
        rules.push(format!("-A {outward} -j KUBE-MARK-MASQ"));
        rules.push(format!("-A {outward} -j {all}"));
    }
    let not_pods = view.cluster.iter().map(|a| format!("-A {all} {} ! -s {pods} -j KUBE-MARK-MASQ", at(a)));
    rules.extend(not_pods);
    let local: Vec<_> = view.backends.iter().filter(|(_, node)| family.is_here(node)).collect();
    balance(&mut rules, &all, view, &view.backends.iter().collect::<Vec<_>>());
    if view.local {
        balance(&mut rules, &here, view, &local);
    }
    for (address, _) in &view.backends {
        let endpoint = endpoint(view, *address);
        rules.push(format!("-A {endpoint} -s {address} -j KUBE-MARK-MASQ"));
        let to = socket(*address, port.target);
        rules.push(format!("-A {endpoint} -p {protocol} -m {protocol} -j DNAT --to-destination {to}"));
    }
    rules
}

/// An even choice among backends.
fn balance(rules: &mut Vec<String>, chain: &str, view: &View<'_>, backends: &[&(IpAddr, &str)]) {
    for (i, (address, _)) in backends.iter().enumerate() {
        let endpoint = endpoint(view, *address);
        let left = backends.len() - i;
        if left > 1 {
            let share = 1.0 / f64::from(u32::try_from(left).unwrap_or(u32::MAX));
            let choice = format!("-m statistic --mode random --probability {share:.10}");
            rules.push(format!("-A {chain} {choice} -j {endpoint}"));
        } else {
            rules.push(format!("-A {chain} -j {endpoint}"));
        }
    }
}

fn endpoint(view: &View<'_>, address: IpAddr) -> String {
    format!("KUBE-SEP-{}", hash(&format!("{} {address}", view.name)))
}
