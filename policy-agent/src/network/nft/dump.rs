//! What is in nf_tables, of everybody's: read only.

use std::io;

use netlink_packet_core::NLM_F_DUMP;

use super::message::{self, Kind};
use super::socket::Nfnetlink;
use super::table::TABLE;

/// `NF_INET_LOCAL_IN` and `NF_INET_FORWARD`.
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
/// `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// Families whose packets are forwarded between interfaces: `inet`, `ip`, `ip6`.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
const NESTED: u16 = 1 << 15;

/// Attributes one after the other: number and content.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let Some(&[l0, l1, k0, k1]) = bytes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = bytes.get(4..length) else { break };
        all.push((u16::from_ne_bytes([k0, k1]) & !NESTED, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn attribute(bytes: &[u8], number: u16) -> Option<&[u8]> {
    attributes(bytes).into_iter().find(|(n, _)| *n == number).map(|(_, value)| value)
}

fn text(bytes: &[u8], number: u16) -> String {
    let value = attribute(bytes, number).unwrap_or_default();
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

fn word(bytes: &[u8], number: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attribute(bytes, number)?.try_into().ok()?))
}

/// Family and attributes of all things of a kind.
fn all(kind: Kind) -> io::Result<Vec<(u8, Vec<u8>)>> {
    let answers = Nfnetlink::open()?.dump(&message::asking(kind, NLM_F_DUMP))?;
    // `struct nfgenmsg` comes first.
    Ok(answers.into_iter().filter_map(|a| Some((*a.first()?, a.get(4..)?.to_vec()))).collect())
}

/// A chain that lets nothing pass but what its rules accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    /// `inet`, `ip` or `ip6`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
}

/// Chains and rules of everybody's but Fairlead's.
pub(crate) struct Ruleset {
    chains: Vec<(u8, Vec<u8>)>,
    rules: Vec<(u8, Vec<u8>)>,
}

impl Ruleset {
    /// Reads them.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn read() -> io::Result<Self> {
        let others = |all: Vec<(u8, Vec<u8>)>| {
            all.into_iter()
                .filter(|(family, one)| (*family, text(one, 1).as_str()) != (FAMILIES[0].0, TABLE))
                .collect()
        };
        Ok(Self { chains: others(all(Kind::GetChain)?), rules: others(all(Kind::GetRule)?) })
    }

    /// Names of all chains.
    pub(crate) fn chains(&self) -> impl Iterator<Item = String> {
        self.chains.iter().map(|(_, chain)| text(chain, 3))
    }

    /// Chains that see forwarded packets and drop or refuse those that no rule accepts, but for those whose table
    /// accepts, by name, what comes from and what goes to interfaces that begin with `interface`.
    pub(crate) fn closed_forward(&self, interface: &str) -> Vec<Closed> {
        // One rule for each way.
        self.closed(FORWARD, interface.as_bytes(), 2)
    }

    /// Chains that see what comes for the node itself and drop or refuse what no rule accepts, but for those whose table
    /// accepts something by this port.
    pub(crate) fn closed_input(&self, port: u16) -> Vec<Closed> {
        self.closed(INPUT, &port.to_be_bytes(), 1)
    }

    fn closed(&self, hook: u32, value: &[u8], exceptions: usize) -> Vec<Closed> {
        let mut closed = Vec::new();
        for (number, chain) in &self.chains {
            let Some((_, family)) = FAMILIES.iter().find(|(n, _)| n == number) else { continue };
            if attribute(chain, 4).and_then(|hook| word(hook, 1)) != Some(hook) {
                continue;
            }
            let (table, name) = (text(chain, 1), text(chain, 3));
            let of_table = || self.rules.iter().filter(|(n, rule)| n == number && text(rule, 1) == table);
            let last = of_table().map(|(_, rule)| rule).rfind(|rule| text(rule, 2) == name);
            let ends = word(chain, 5) == Some(DROP) || last.is_some_and(|rule| ends(rule));
            if ends && of_table().filter(|(_, rule)| accepts(rule, value)).count() < exceptions {
                closed.push(Closed { family, table, chain: name });
            }
        }
        closed
    }
}

/// Names and contents of a rule's expressions.
fn expressions(rule: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    let all = attributes(attribute(rule, 4).unwrap_or_default());
    all.into_iter().filter_map(|(_, one)| Some((text(one, 1), attribute(one, 2)?)))
}

/// The verdict of an expression `immediate`.
fn verdict(immediate: &[u8]) -> Option<u32> {
    word(attribute(attribute(immediate, 2)?, 2)?, 1)
}

/// Whether a rule accepts what it finds by comparing with this value.
fn accepts(rule: &[u8], value: &[u8]) -> bool {
    let (mut compared, mut accepted) = (false, false);
    for (name, inner) in expressions(rule) {
        match name.as_str() {
            "cmp" => compared |= attribute(inner, 3).and_then(|data| attribute(data, 1)) == Some(value),
            "immediate" => accepted |= verdict(inner) == Some(ACCEPT),
            _ => {}
        }
    }
    compared && accepted
}

/// Whether a rule drops or refuses whatever comes to it.
fn ends(rule: &[u8]) -> bool {
    let mut ends = false;
    for (name, inner) in expressions(rule) {
        match name.as_str() {
            "counter" | "log" => {}
            "immediate" if verdict(inner) == Some(DROP) => ends = true,
            "reject" => ends = true,
            // As iptables writes it.
            "target" if ["REJECT", "DROP"].contains(&text(inner, 1).as_str()) => ends = true,
            _ => return false,
        }
    }
    ends
}
