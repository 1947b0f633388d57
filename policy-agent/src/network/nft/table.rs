//! What is in the table, as messages. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairlead_common::judge::protocol::UDP;
use fairlead_common::maps::{SLOT_NONE, SLOT_SETTLED};
use ipnetwork::IpNetwork;

use super::Inside;
use super::message::{Attributes, Batch, Kind, List, Meta, Rule, Verdict};

/// Its name.
pub(super) const TABLE: &str = "fairlead";
const MASQUERADE: &str = "masquerade";
const LEAVING: &str = "leaving";
/// Chains for what reaches the node and for what it sends itself, before connections are tracked.
const TUNNEL: [&str; 2] = ["tunnel-in", "tunnel-out"];
const EXITS: &str = "exits";
/// Longest list of elements in one message, in bytes: an attribute ends at 64 KiB.
const LIST: usize = 32 << 10;

/// What the table is to hold besides [`Inside`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::network) struct Contents {
    /// Whether pods' traffic to the outside is masqueraded.
    pub masquerade: bool,
    /// This node's pod CIDRs, without overlap.
    pub pods: BTreeSet<IpNetwork>,
    /// Indexes of the interfaces, besides pods', that have a program for what leaves.
    pub exits: BTreeSet<u32>,
    /// Bits of the packet mark that hold a slot.
    pub mark_mask: u32,
    /// UDP port of the overlay, where there is one.
    pub overlay_port: Option<u16>,
}

/// A family's part of the table.
struct Family {
    ipv6: bool,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    protocol: u8,
    pods: &'static str,
    inside: &'static str,
    /// Where source and destination stand in the network header, and their length, in bytes.
    source: u32,
    destination: u32,
    length: u32,
    /// Number under which `nft` knows the type.
    kind: u32,
}

const FAMILIES: [Family; 2] = [
    Family {
        ipv6: false,
        protocol: 2,
        pods: "pods4",
        inside: "inside4",
        source: 12,
        destination: 16,
        length: 4,
        kind: 7,
    },
    Family {
        ipv6: true,
        protocol: 10,
        pods: "pods6",
        inside: "inside6",
        source: 8,
        destination: 24,
        length: 16,
        kind: 8,
    },
];

fn named(name: &str) -> Attributes {
    Attributes::default().text(1, name)
}

/// The table's end; adding it first makes that no error where there is none.
pub(super) fn removal() -> Batch {
    let mut batch = Batch::new();
    batch.push(Kind::NewTable, &named(TABLE));
    batch.push(Kind::DeleteTable, &named(TABLE));
    batch
}

impl Contents {
    /// The table anew, in the place of what is there.
    pub(super) fn whole(&self, inside: &Inside) -> Batch {
        let mut batch = removal();
        batch.push(Kind::NewTable, &named(TABLE));
        for family in &FAMILIES {
            for name in [family.pods, family.inside] {
                // NFT_SET_INTERVAL
                set(&mut batch, name, 4, family.kind, family.length);
            }
            elements(&mut batch, Kind::NewElements, family.pods, networks(&self.pods, family.ipv6));
            elements(&mut batch, Kind::NewElements, family.inside, networks(inside.networks(), family.ipv6));
        }
        set(&mut batch, EXITS, 0, 20, 4);
        elements(&mut batch, Kind::NewElements, EXITS, self.exits.iter().map(|i| vec![index(*i)]));
        // NF_INET_POST_ROUTING at NF_IP_PRI_NAT_SRC; NF_INET_FORWARD behind everybody's filters.
        chain(&mut batch, MASQUERADE, "nat", 4, 100);
        chain(&mut batch, LEAVING, "filter", 2, 100);
        if let Some(port) = self.overlay_port {
            // NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT at NF_IP_PRI_RAW.
            for (name, hook) in TUNNEL.into_iter().zip([0, 3]) {
                chain(&mut batch, name, "filter", hook, -300);
                let rule = Rule::default()
                    .meta(Meta::Protocol)
                    .equals(&[UDP])
                    .transport(2, 2)
                    .equals(&port.to_be_bytes())
                    .untracked();
                push_rule(&mut batch, name, &rule);
            }
        }
        if self.masquerade {
            for family in &FAMILIES {
                let rule = Rule::default()
                    .meta(Meta::Family)
                    .equals(&[family.protocol])
                    .network(family.source, family.length)
                    .in_set(family.pods, false)
                    .network(family.destination, family.length)
                    .in_set(family.inside, true)
                    .counter()
                    .masquerade();
                push_rule(&mut batch, MASQUERADE, &rule);
            }
        }
        let bears = |slot: u32| {
            let mark = slot << self.mark_mask.trailing_zeros().min(31) & self.mark_mask;
            Rule::default()
                .meta(Meta::Mark)
                .mask(self.mark_mask.to_ne_bytes())
                .equals(&mark.to_ne_bytes())
                .verdict(Verdict::Accept)
        };
        let judged = Rule::default().meta(Meta::OutIndex).in_set(EXITS, false).verdict(Verdict::Accept);
        // Most owe nothing any more, what owes nearly always leaves where a program judges it, and the rest is not pods'.
        for rule in [bears(SLOT_SETTLED), judged, bears(SLOT_NONE)] {
            push_rule(&mut batch, LEAVING, &rule);
        }
        // Pods' interfaces have names of 15 letters.
        let to_pod = Rule::default()
            .meta(Meta::OutName)
            .equals(b"fl")
            .mask_end([0, 0, 0xff, 0])
            .end_differs(&[0; 4])
            .verdict(Verdict::Accept);
        push_rule(&mut batch, LEAVING, &to_pod);
        push_rule(&mut batch, LEAVING, &Rule::default().counter().verdict(Verdict::Drop));
        batch
    }

    /// What makes these contents the others, where elements of sets are all that differs.
    pub(super) fn changed_to(&self, wanted: &Self, inside: &Inside) -> Option<Batch> {
        if (self.masquerade, self.mark_mask, self.overlay_port)
            != (wanted.masquerade, wanted.mark_mask, wanted.overlay_port)
        {
            return None;
        }
        let mut batch = Batch::new();
        let pods = (&self.pods - &wanted.pods, &wanted.pods - &self.pods);
        let inside = (inside.changes(false), inside.changes(true));
        for family in &FAMILIES {
            for (name, (gone, come)) in [(family.pods, &pods), (family.inside, &inside)] {
                elements(&mut batch, Kind::DeleteElements, name, networks(gone, family.ipv6));
                elements(&mut batch, Kind::NewElements, name, networks(come, family.ipv6));
            }
        }
        let gone = self.exits.difference(&wanted.exits).map(|i| vec![index(*i)]);
        elements(&mut batch, Kind::DeleteElements, EXITS, gone);
        let come = wanted.exits.difference(&self.exits).map(|i| vec![index(*i)]);
        elements(&mut batch, Kind::NewElements, EXITS, come);
        Some(batch)
    }
}

fn set(batch: &mut Batch, name: &str, flags: u32, kind: u32, length: u32) {
    let set = named(TABLE).text(2, name).number(3, flags).number(4, kind).number(5, length);
    // An id within the batch, which the kernel asks for.
    batch.push(Kind::NewSet, &set.number(10, 1));
}

fn chain(batch: &mut Batch, name: &str, kind: &str, hook: u32, priority: i32) {
    let hook = Attributes::default().number(1, hook).number(2, priority.cast_unsigned());
    batch.push(Kind::NewChain, &named(TABLE).text(3, name).nested(4, &hook).text(7, kind));
}

fn push_rule(batch: &mut Batch, chain: &str, rule: &Rule) {
    batch.push(Kind::NewRule, &named(TABLE).text(2, chain).nested(4, rule.attributes()));
}

/// A set's element.
fn element(key: &[u8], end: bool) -> Attributes {
    let element = Attributes::default().value(1, key);
    // NFT_SET_ELEM_INTERVAL_END
    if end { element.number(3, 1) } else { element }
}

fn index(ifindex: u32) -> Attributes {
    element(&ifindex.to_ne_bytes(), false)
}

/// The elements of each network of a family: its first address, and the end of its interval.
fn networks(all: &BTreeSet<IpNetwork>, ipv6: bool) -> impl Iterator<Item = Vec<Attributes>> {
    let of_family = move |n: &&IpNetwork| n.is_ipv6() == ipv6;
    all.iter().filter(of_family).map(|network| match network.network() {
        IpAddr::V4(first) => {
            let size = 1_u64 << (32 - u32::from(network.prefix().min(32)));
            let end = u32::try_from(u64::from(u32::from(first)) + size).ok();
            interval(&first.octets(), end.map(u32::to_be_bytes).as_ref().map(|e| &e[..]))
        }
        IpAddr::V6(first) => {
            let size = 1_u128.checked_shl(128 - u32::from(network.prefix().min(128)));
            let end = size.and_then(|size| u128::from(first).checked_add(size));
            interval(&first.octets(), end.map(u128::to_be_bytes).as_ref().map(|e| &e[..]))
        }
    })
}

/// Without an end, the interval goes to the last address of all.
fn interval(first: &[u8], end: Option<&[u8]>) -> Vec<Attributes> {
    std::iter::once(element(first, false)).chain(end.map(|end| element(end, true))).collect()
}

fn elements(batch: &mut Batch, kind: Kind, set: &str, all: impl Iterator<Item = Vec<Attributes>>) {
    let mut list = List::default();
    let mut flush = |list: &mut List| {
        if list.len() > 0 {
            batch.push(kind, &named(TABLE).text(2, set).nested(3, list.attributes()));
            *list = List::default();
        }
    };
    for elements in all {
        for element in &elements {
            list.push(element);
        }
        if list.len() > LIST {
            flush(&mut list);
        }
    }
    flush(&mut list);
}
