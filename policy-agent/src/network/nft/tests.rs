use std::process::Command;

use ipnetwork::IpNetwork;

use super::*;
use crate::network::routes::tests::in_namespace;

fn networks(all: &[&str]) -> Vec<IpNetwork> {
    all.iter().map(|n| n.parse().unwrap()).collect()
}

fn contents(pods: &[&str]) -> Contents {
    Contents {
        masquerade: true,
        pods: networks(pods).into_iter().collect(),
        exits: [1, 7].into(),
        mark_mask: 0x0fff_0000,
        overlay_port: Some(8472),
    }
}

/// What `nft` reads back, as its own words.
fn ruleset() -> String {
    let output = Command::new("nft").args(["-nn", "list", "ruleset"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Counters and line breaks are not what matters.
    String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn nft(words: &str) {
    let output = Command::new("nft").arg(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_kernel_holds_what_is_wanted_beside_others() {
    in_namespace(async || {
        nft("add table inet theirs");
        nft("add chain inet theirs post { type nat hook postrouting priority 100; }");
        nft("add rule inet theirs post ip saddr 192.0.2.0/24 masquerade");
        let others = ruleset();
        let mut table = Table::default();
        let contents = contents(&["10.1.0.0/24", "fd00:1::/64"]);
        let mut inside = Inside::default();
        inside.add(networks(&["10.1.0.0/24", "10.1.1.0/24", "192.0.2.1/32", "fd00:1::/64", "fd00:2::/64"]));
        assert!(table.ensure(&contents, &mut inside).unwrap() > 10);
        assert_eq!(table.ensure(&contents, &mut inside).unwrap(), 0);
        let said = ruleset();
        for part in [
            "set pods4 { type ipv4_addr flags interval elements = { 10.1.0.0/24 } }",
            "set inside4 { type ipv4_addr flags interval elements = { 10.1.0.0/24, 10.1.1.0/24, 192.0.2.1 } }",
            "set inside6 { type ipv6_addr flags interval elements = { fd00:1::/64, fd00:2::/64 } }",
            "chain masquerade { type nat hook postrouting priority 100; policy accept; \
             ip saddr @pods4 ip daddr != @inside4 counter packets 0 bytes 0 masquerade \
             ip6 saddr @pods6 ip6 daddr != @inside6 counter packets 0 bytes 0 masquerade }",
            "type filter hook forward priority 100; policy accept; meta mark & 0x0fff0000 == 0x0fff0000 accept \
             oif @exits accept meta mark & 0x0fff0000 == 0x00000000 accept",
            "counter packets 0 bytes 0 drop }",
            "chain tunnel-in { type filter hook prerouting priority -300; policy accept; udp dport 8472 notrack }",
            "chain tunnel-out { type filter hook output priority -300; policy accept; udp dport 8472 notrack }",
        ] {
            assert!(said.contains(part), "{part}\n{said}");
        }
        assert!(said.contains(&others), "{said}");

        // A node comes, one goes, and an exclusion swallows others and ends with the last address.
        inside.remove(networks(&["192.0.2.1/32", "fd00:2::/64"]));
        inside.add(networks(&["10.1.0.0/16", "255.0.0.0/8", "fd00:3::/64", "2001:db8::7/128"]));
        let steps = table.ensure(&contents, &mut inside).unwrap();
        assert_eq!(steps, 4);
        let said = ruleset();
        for part in [
            "set inside4 { type ipv4_addr flags interval elements = { 10.1.0.0/16, 255.0.0.0/8 } }",
            "set inside6 { type ipv6_addr flags interval elements = { 2001:db8::7, fd00:1::/64, fd00:3::/64 } }",
        ] {
            assert!(said.contains(part), "{part}\n{said}");
        }
        // An agent that comes after it makes the same of it.
        let whole = said;
        let mut next = Table::default();
        next.ensure(&contents, &mut inside).unwrap();
        assert_eq!(ruleset(), whole);

        // Somebody flushes everything.
        nft("flush ruleset");
        next.look().unwrap();
        next.ensure(&contents, &mut inside).unwrap();
        assert!(whole.contains(&ruleset()));
        let generation = next.generation;
        next.look().unwrap();
        assert_eq!((next.ensure(&contents, &mut inside).unwrap(), next.generation), (0, generation));
        nft("add table inet theirs");
        next.remove().unwrap();
        next.remove().unwrap();
        assert_eq!(ruleset(), "table inet theirs { }");
    });
}

#[test]
fn a_node_costs_the_same_among_ten_and_a_thousand() {
    in_namespace(async || {
        let mut costs = Vec::new();
        for nodes in [10, 1000] {
            let mut table = Table::default();
            let all: Vec<String> = (0..nodes)
                .flat_map(|n| [format!("10.{}.{}.0/24", n / 256, n % 256), format!("fd00:0:0:{n:x}::/64")])
                .collect();
            let (contents, mut inside) = (contents(&["10.0.0.0/24"]), Inside::default());
            inside.add(all.iter().map(|n| n.parse().unwrap()));
            table.ensure(&contents, &mut inside).unwrap();
            inside.add(networks(&["10.99.0.0/24", "fd00:0:0:9999::/64"]));
            costs.push(table.ensure(&contents, &mut inside).unwrap());
        }
        assert_eq!(costs, [2, 2]);
    });
}
