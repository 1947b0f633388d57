//! Address prefixes, and the tree of those that some rule in use names.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::model::canonical_network;

/// A prefix of either family. Ordered so that what a prefix covers follows it directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    v6: bool,
    /// The address from the top bit on, IPv4 too.
    bits: u128,
    /// Length in bits.
    length: u8,
}

impl Prefix {
    /// The prefix of one address.
    pub(super) fn host(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self { v6: false, bits: u128::from(v4.to_bits()) << 96, length: 32 },
            IpAddr::V6(v6) => Self { v6: true, bits: v6.to_bits(), length: 128 },
        }
    }

    /// Whether it is of IPv6.
    pub(super) fn is_v6(self) -> bool {
        self.v6
    }

    fn mask(self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0)
    }

    /// Whether every address of `other` is in this prefix.
    pub(super) fn covers(self, other: Self) -> bool {
        self.v6 == other.v6 && self.length <= other.length && other.bits & self.mask() == self.bits
    }

    /// Whether one covers the other.
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The first and the last address.
    pub(super) fn bounds(self) -> (IpAddr, IpAddr) {
        let address = |bits: u128| -> IpAddr {
            if self.v6 {
                Ipv6Addr::from_bits(bits).into()
            } else {
                Ipv4Addr::from_bits((bits >> 96) as u32).into()
            }
        };
        (address(self.bits), address(self.bits | !self.mask()))
    }

    /// The last key that this prefix covers, in the order of prefixes.
    fn last(self) -> Self {
        Self { v6: self.v6, bits: self.bits | !self.mask(), length: 128 }
    }
}

impl From<IpNetwork> for Prefix {
    fn from(network: IpNetwork) -> Self {
        let network = canonical_network(network);
        Self { length: network.prefix(), ..Self::host(network.network()) }
    }
}

impl From<Prefix> for IpNetwork {
    fn from(prefix: Prefix) -> Self {
        let address = prefix.bounds().0;
        Self::new(address, prefix.length).unwrap_or_else(|_| Self::from(address))
    }
}

/// Place of a prefix in a [`Tree`].
pub(super) type Place = u32;

/// Prefixes with the nearest that covers each.
#[derive(Debug, Default)]
pub(super) struct Tree {
    places: BTreeMap<Prefix, Place>,
    nodes: Vec<Node>,
    free: Vec<Place>,
    counts: [usize; 2],
}

#[derive(Clone, Copy, Debug)]
struct Node {
    prefix: Prefix,
    parent: Option<Place>,
    references: u32,
}

impl Tree {
    /// Number of prefixes of one family.
    pub(super) fn len(&self, v6: bool) -> usize {
        self.counts[usize::from(v6)]
    }

    /// The prefix at a place.
    pub(super) fn prefix(&self, place: Place) -> Prefix {
        self.nodes[place as usize].prefix
    }

    /// The place of a prefix.
    pub(super) fn find(&self, prefix: Prefix) -> Option<Place> {
        self.places.get(&prefix).copied()
    }

    /// The longest prefix that covers `prefix`, itself included.
    pub(super) fn longest(&self, prefix: Prefix) -> Option<Place> {
        // The last key not after the prefix either covers it, or is covered by whatever covers both.
        let mut candidate = self.places.range(..=prefix).next_back().map(|(_, &place)| place);
        while let Some(place) = candidate {
            let node = &self.nodes[place as usize];
            if node.prefix.covers(prefix) {
                return Some(place);
            }
            candidate = node.parent;
        }
        None
    }

    /// Whether there is a prefix at a place.
    pub(super) fn is_live(&self, place: Place) -> bool {
        self.nodes.get(place as usize).is_some_and(|node| node.references > 0)
    }

    /// The nearest other prefix that covers the one at `place`.
    pub(super) fn parent(&self, place: Place) -> Option<Place> {
        self.nodes[place as usize].parent
    }

    /// Places of all prefixes that `prefix` covers, itself included, in order.
    pub(super) fn within(&self, prefix: Prefix) -> impl Iterator<Item = (Prefix, Place)> {
        self.places.range(prefix..=prefix.last()).map(|(&prefix, &place)| (prefix, place))
    }

    /// A reference to `prefix`; its place, and whether it is new.
    pub(super) fn acquire(&mut self, prefix: Prefix) -> (Place, bool) {
        if let Some(place) = self.find(prefix) {
            self.nodes[place as usize].references += 1;
            return (place, false);
        }
        let node = Node { prefix, parent: self.longest(prefix), references: 1 };
        let place = match self.free.pop() {
            Some(place) => {
                self.nodes[place as usize] = node;
                place
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as Place
            }
        };
        self.adopt(prefix, node.parent, Some(place));
        self.places.insert(prefix, place);
        self.counts[usize::from(prefix.v6)] += 1;
        (place, true)
    }

    /// One reference less to the prefix at `place`; whether it is gone.
    pub(super) fn release(&mut self, place: Place) -> bool {
        let node = &mut self.nodes[place as usize];
        node.references -= 1;
        if node.references > 0 {
            return false;
        }
        let Node { prefix, parent, .. } = *node;
        self.places.remove(&prefix);
        self.counts[usize::from(prefix.v6)] -= 1;
        self.adopt(prefix, Some(place), parent);
        self.free.push(place);
        true
    }

    /// Within `prefix`, the children of `old` become those of `new`.
    fn adopt(&mut self, prefix: Prefix, old: Option<Place>, new: Option<Place>) {
        for (_, &place) in self.places.range(prefix..=prefix.last()) {
            let node = &mut self.nodes[place as usize];
            if node.parent == old {
                node.parent = new;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(s: &str) -> Prefix {
        s.parse::<IpNetwork>().unwrap().into()
    }

    #[test]
    fn the_longest_match_is_found_whatever_the_order() {
        let all = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.0/24",
            "10.1.2.3/32",
            "10.3.0.0/16",
            "::/0",
            "fd00::/8",
            "fd00:1::/32",
            "255.255.255.255/32",
        ];
        let probes = [
            "10.1.2.3",
            "10.1.2.4",
            "10.1.3.1",
            "10.2.0.1",
            "11.0.0.1",
            "10.3.255.255",
            "255.255.255.255",
            "::1",
            "fd00::1",
            "fd00:1::1",
            "0.0.0.0",
        ];
        for rotation in 0..all.len() {
            let mut tree = Tree::default();
            let mut present = Vec::new();
            let order = all.iter().cycle().skip(rotation).step_by(3).take(all.len());
            let check = |tree: &Tree, present: &[Prefix]| {
                for probe in probes {
                    let probe = Prefix::host(probe.parse().unwrap());
                    let expected =
                        present.iter().filter(|p| p.covers(probe)).max_by_key(|p| p.length).copied();
                    assert_eq!(tree.longest(probe).map(|p| tree.prefix(p)), expected);
                }
            };
            for p in order.clone() {
                tree.acquire(prefix(p));
                present.push(prefix(p));
                check(&tree, &present);
            }
            assert_eq!((tree.len(false), tree.len(true)), (7, 3));
            for p in order {
                assert!(tree.release(tree.find(prefix(p)).unwrap()));
                present.retain(|&q| q != prefix(p));
                check(&tree, &present);
            }
        }
    }

    #[test]
    fn bounds_and_forms() {
        let (first, last) = prefix("10.1.2.3/15").bounds();
        assert_eq!((first.to_string(), last.to_string()), ("10.0.0.0".into(), "10.1.255.255".into()));
        let (first, last) = prefix("::/0").bounds();
        assert_eq!((first.to_string().as_str(), last), ("::", Ipv6Addr::from_bits(u128::MAX).into()));
        assert_eq!(IpNetwork::from(prefix("fd00::5/64")).to_string(), "fd00::/64");
        assert_eq!(prefix("::ffff:10.0.0.0/104"), prefix("10.0.0.0/8"));
        assert!(!prefix("0.0.0.0/0").covers(prefix("::/0")));
        assert!(prefix("0.0.0.0/0").covers(prefix("1.2.3.4/32")));
    }
}
