//! Mode nftables: input of `nft -f`.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Family, View, socket};

/// What does not depend on Services, `{ip}` and others filled in.
const BASE: &str = "
add table {ip} kube-proxy
add set {ip} kube-proxy cluster-ips { type {addr} ; }
add set {ip} kube-proxy nodeport-ips { type {addr} ; }
add map {ip} kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict ; }
add map {ip} kube-proxy no-endpoint-services { type {addr} . inet_proto . inet_service : verdict ; }
add map {ip} kube-proxy service-ips { type {addr} . inet_proto . inet_service : verdict ; }
add map {ip} kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; }
add chain {ip} kube-proxy cluster-ips-check
add chain {ip} kube-proxy filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }
add chain {ip} kube-proxy filter-output-pre-dnat { type filter hook output priority -110 ; }
add chain {ip} kube-proxy filter-forward { type filter hook forward priority 0 ; }
add chain {ip} kube-proxy filter-input { type filter hook input priority 0 ; }
add chain {ip} kube-proxy filter-output { type filter hook output priority 0 ; }
add chain {ip} kube-proxy mark-for-masquerade
add chain {ip} kube-proxy masquerading
add chain {ip} kube-proxy nat-output { type nat hook output priority -100 ; }
add chain {ip} kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add chain {ip} kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain {ip} kube-proxy nodeport-endpoints-check
add chain {ip} kube-proxy reject-chain
add chain {ip} kube-proxy services
add chain {ip} kube-proxy service-endpoints-check
add rule {ip} kube-proxy cluster-ips-check {ip} daddr @cluster-ips reject
add rule {ip} kube-proxy cluster-ips-check {ip} daddr { {services} } drop
add rule {ip} kube-proxy filter-forward ct state new jump service-endpoints-check
add rule {ip} kube-proxy filter-forward ct state new jump cluster-ips-check
add rule {ip} kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule {ip} kube-proxy filter-input ct state new jump service-endpoints-check
add rule {ip} kube-proxy filter-output ct state new jump service-endpoints-check
add rule {ip} kube-proxy filter-output ct state new jump cluster-ips-check
add rule {ip} kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule {ip} kube-proxy masquerading mark and 0x4000 == 0 return
add rule {ip} kube-proxy masquerading mark set mark xor 0x4000
add rule {ip} kube-proxy masquerading masquerade fully-random
add rule {ip} kube-proxy nat-output jump services
add rule {ip} kube-proxy nat-postrouting jump masquerading
add rule {ip} kube-proxy nat-prerouting jump services
add rule {ip} kube-proxy nodeport-endpoints-check {ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule {ip} kube-proxy reject-chain reject
add rule {ip} kube-proxy services {ip} daddr . meta l4proto . th dport vmap @service-ips
add rule {ip} kube-proxy services {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule {ip} kube-proxy service-endpoints-check {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services
";

/// The family's table `kube-proxy`.
pub(super) fn rules(family: &Family<'_>) -> String {
    let ip = if family.ipv6 { "ip6" } else { "ip" };
    let mut text = BASE
        .replace("{ip}", ip)
        .replace("{addr}", if family.ipv6 { "ipv6_addr" } else { "ipv4_addr" })
        .replace("{services}", &family.services.to_string());
    for address in family.place.addresses.iter().filter(|a| a.is_ipv6() == family.ipv6) {
        element(&mut text, ip, "nodeport-ips", &address.to_string());
    }
    for view in &family.views {
        for address in &view.cluster {
            element(&mut text, ip, "cluster-ips", &address.to_string());
        }
        if view.backends.is_empty() {
            without_backends(&mut text, ip, view, "goto reject-chain", true);
        } else {
            service(&mut text, ip, family, view);
        }
    }
    text
}

fn element(text: &mut String, ip: &str, set: &str, element: &str) {
    let _ = writeln!(text, "add element {ip} kube-proxy {set} {{ {element} }}");
}

fn rule(text: &mut String, ip: &str, chain: &str, rule: &str) {
    let _ = writeln!(text, "add rule {ip} kube-proxy {chain} {rule}");
}

/// What becomes of packets to addresses that no backend stands behind.
fn without_backends(text: &mut String, ip: &str, view: &View<'_>, verdict: &str, cluster_too: bool) {
    let protocol = view.port.protocol.name();
    let cluster = view.cluster.iter().filter(|_| cluster_too);
    for address in view.external.iter().chain(&view.balancer).chain(cluster) {
        let key = format!("{address} . {protocol} . {}", view.port.port);
        element(text, ip, "no-endpoint-services", &format!("{key} : {verdict}"));
    }
    let key = format!("{protocol} . {}", view.port.node_port);
    element(text, ip, "no-endpoint-nodeports", &format!("{key} : {verdict}"));
}

/// Chains and elements of a port that has backends.
fn service(text: &mut String, ip: &str, family: &Family<'_>, view: &View<'_>) {
    let View { name, hash, port, .. } = view;
    let (protocol, pods) = (port.protocol.name(), family.pods);
    let id = format!("{}-{name}", &hash[..8]);
    let (all, outward) = (format!("service-{id}"), format!("external-{id}"));
    let endpoint = |address: IpAddr| {
        // Colons do not stand in names.
        format!("endpoint-{id}__{}/{}", address.to_string().replace(':', "."), port.target)
    };
    for chain in [all.clone(), outward.clone()].into_iter().chain(view.backends.iter().map(|b| endpoint(b.0)))
    {
        let _ = writeln!(text, "add chain {ip} kube-proxy {chain}");
    }
    for (address, _) in &view.backends {
        let chain = endpoint(*address);
        rule(text, ip, &chain, &format!("{ip} saddr {address} jump mark-for-masquerade"));
        let to = socket(*address, port.target);
        rule(text, ip, &chain, &format!("meta l4proto {protocol} dnat to {to}"));
    }
    let balance = |backends: &[IpAddr]| {
        let choices = backends.iter().enumerate().map(|(i, a)| format!("{i} : goto {}", endpoint(*a)));
        let choices = choices.collect::<Vec<_>>().join(" , ");
        format!("numgen random mod {} vmap {{ {choices} }}", backends.len())
    };
    for address in &view.cluster {
        let mark = format!("{ip} daddr {address} {ip} saddr != {pods} jump mark-for-masquerade");
        rule(text, ip, &all, &mark);
        let key = format!("{address} . {protocol} . {}", port.port);
        element(text, ip, "service-ips", &format!("{key} : goto {all}"));
    }
    rule(text, ip, &all, &balance(&view.backends.iter().map(|b| b.0).collect::<Vec<_>>()));
    if view.local {
        rule(text, ip, &outward, &format!("{ip} saddr {pods} goto {all}"));
        rule(text, ip, &outward, "fib saddr type local jump mark-for-masquerade");
        rule(text, ip, &outward, &format!("fib saddr type local goto {all}"));
        let here: Vec<_> = view.backends.iter().filter(|b| family.is_here(b.1)).map(|b| b.0).collect();
        if here.is_empty() {
            without_backends(text, ip, view, "drop", false);
        } else {
            rule(text, ip, &outward, &balance(&here));
        }
    } else {
        rule(text, ip, &outward, "jump mark-for-masquerade");
        rule(text, ip, &outward, &format!("goto {all}"));
    }
    for address in view.external.iter().chain(&view.balancer) {
        let key = format!("{address} . {protocol} . {}", port.port);
        element(text, ip, "service-ips", &format!("{key} : goto {outward}"));
    }
    let key = format!("{protocol} . {}", port.node_port);
    element(text, ip, "service-nodeports", &format!("{key} : goto {outward}"));
}
