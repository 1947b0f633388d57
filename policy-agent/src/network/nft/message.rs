//! The messages of nf_tables (`linux/netfilter/nf_tables.h`): as much of them as one table needs.
//!
//! Attributes are in network byte order, but for registers' contents that the kernel compares as they
//! are (marks, interface indexes).

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};

/// `NFPROTO_INET`: both families.
const INET: u8 = 1;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NESTED: u16 = 1 << 15;
/// Length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    NewSet = 9,
    NewElements = 12,
    DeleteElements = 14,
    Generation = 16,
}

/// Attributes of a message, one after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = 4 + value.len();
        self.0.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn bytes(self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value)
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.put(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.put(kind | NESTED, &inner.0)
    }

    /// `NFTA_DATA_VALUE` within an attribute.
    pub(super) fn value(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, &Self::default().bytes(1, value))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A list of `NFTA_LIST_ELEM`.
#[derive(Clone, Debug, Default)]
pub(super) struct List(Attributes);

impl List {
    pub(super) fn push(&mut self, element: &Attributes) {
        self.0 = std::mem::take(&mut self.0).nested(1, element);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn attributes(&self) -> &Attributes {
        &self.0
    }
}

/// Messages that take effect together or not at all.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    last: usize,
    messages: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), sequence: 0, last: 0, messages: 0 };
        batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, &Attributes::default());
        batch
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &Attributes) {
        self.last = self.bytes.len();
        let length = HEADER + 4 + attributes.0.len();
        self.bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        self.bytes.extend_from_slice(&attributes.0);
        self.sequence += 1;
    }

    pub(super) fn push(&mut self, kind: Kind, attributes: &Attributes) {
        let flags = match kind {
            Kind::DeleteTable | Kind::DeleteElements | Kind::Generation => 0,
            // NLM_F_APPEND is what makes rules keep the order in which they come.
            Kind::NewRule => NLM_F_CREATE | netlink_packet_core::NLM_F_APPEND,
            _ => NLM_F_CREATE,
        };
        self.message(SUBSYSTEM << 8 | kind as u16, flags, INET, 0, attributes);
        self.messages += 1;
    }

    /// How many messages it holds, without the two around them.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// The bytes to send, and the sequence number whose answer is the last.
    pub(super) fn finish(mut self) -> (Vec<u8>, u32) {
        let answered = self.sequence - 1;
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            flags.copy_from_slice(&(u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK).to_ne_bytes());
        }
        self.message(BATCH_END, 0, 0, SUBSYSTEM, &Attributes::default());
        (self.bytes, answered)
    }
}

/// A single question outside of any batch.
pub(super) fn question(kind: Kind, attributes: &Attributes) -> Vec<u8> {
    let mut batch = Batch { bytes: Vec::new(), sequence: 0, last: 0, messages: 0 };
    batch.push(kind, attributes);
    batch.bytes
}

/// A question about all things of a kind, of all families.
pub(super) fn asking(kind: Kind, flags: u16) -> Vec<u8> {
    let mut batch = Batch { bytes: Vec::new(), sequence: 0, last: 0, messages: 0 };
    batch.message(SUBSYSTEM << 8 | kind as u16, flags, 0, 0, &Attributes::default());
    batch.bytes
}

/// Expressions of a rule, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule(List);

/// The register that all values go through.
const REGISTER: u32 = 1;
/// The last four bytes of [`REGISTER`]'s sixteen, under the kernel's newer names.
const REGISTER_END: u32 = 11;

/// What a packet's metadata has, `NFT_META_*`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Meta {
    Mark = 3,
    OutIndex = 5,
    OutName = 7,
    Family = 15,
    Protocol = 16,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Verdict {
    Drop = 0,
    Accept = 1,
}

impl Rule {
    fn expression(mut self, name: &str, inner: &Attributes) -> Self {
        self.0.push(&Attributes::default().text(1, name).nested(2, inner));
        self
    }

    pub(super) fn meta(self, what: Meta) -> Self {
        self.expression("meta", &Attributes::default().number(1, REGISTER).number(2, what as u32))
    }

    pub(super) fn network(self, offset: u32, length: u32) -> Self {
        let load = Attributes::default().number(1, REGISTER).number(2, 1).number(3, offset);
        self.expression("payload", &load.number(4, length))
    }

    /// Bytes of the transport header.
    pub(super) fn transport(self, offset: u32, length: u32) -> Self {
        let load = Attributes::default().number(1, REGISTER).number(2, 2).number(3, offset);
        self.expression("payload", &load.number(4, length))
    }

    fn mask_in(self, register: u32, mask: [u8; 4]) -> Self {
        let mask_of = Attributes::default().number(1, register).number(2, register).number(3, 4);
        self.expression("bitwise", &mask_of.value(4, &mask).value(5, &[0; 4]))
    }

    /// Keeps these bits of a value of four bytes.
    pub(super) fn mask(self, mask: [u8; 4]) -> Self {
        self.mask_in(REGISTER, mask)
    }

    /// Keeps these bits of the last four of sixteen bytes.
    pub(super) fn mask_end(self, mask: [u8; 4]) -> Self {
        self.mask_in(REGISTER_END, mask)
    }

    fn compare(self, register: u32, operator: u32, value: &[u8]) -> Self {
        let compare = Attributes::default().number(1, register).number(2, operator);
        self.expression("cmp", &compare.value(3, value))
    }

    pub(super) fn equals(self, value: &[u8]) -> Self {
        self.compare(REGISTER, 0, value)
    }

    pub(super) fn end_differs(self, value: &[u8]) -> Self {
        self.compare(REGISTER_END, 1, value)
    }

    /// The value is in the set, or, `inverted`, is not.
    pub(super) fn in_set(self, set: &str, inverted: bool) -> Self {
        let lookup = Attributes::default().text(1, set).number(2, REGISTER);
        self.expression("lookup", &lookup.number(5, u32::from(inverted)))
    }

    pub(super) fn counter(self) -> Self {
        self.expression("counter", &Attributes::default())
    }

    pub(super) fn masquerade(self) -> Self {
        self.expression("masq", &Attributes::default())
    }

    /// Connections are not tracked.
    pub(super) fn untracked(self) -> Self {
        self.expression("notrack", &Attributes::default())
    }

    pub(super) fn verdict(self, verdict: Verdict) -> Self {
        let code = Attributes::default().number(1, verdict as u32);
        let data = Attributes::default().nested(2, &code);
        self.expression("immediate", &Attributes::default().number(1, 0).nested(2, &data))
    }

    pub(super) fn attributes(&self) -> &Attributes {
        self.0.attributes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_the_last_message_asks_for_an_answer() {
        let attributes = Attributes::default().text(1, "ab").number(2, 7);
        assert_eq!(
            attributes.0,
            [
                &7_u16.to_ne_bytes()[..],
                &1_u16.to_ne_bytes(),
                b"ab\0\0",
                &8_u16.to_ne_bytes(),
                &2_u16.to_ne_bytes(),
                &[0, 0, 0, 7]
            ]
            .concat()
        );
        let mut batch = Batch::new();
        batch.push(Kind::NewTable, &attributes);
        batch.push(Kind::DeleteTable, &attributes);
        let (bytes, answered) = batch.finish();
        assert_eq!(answered, 2);
        let mut rest = &bytes[..];
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            let field = |at: usize| u16::from_ne_bytes(rest[at..at + 2].try_into().unwrap());
            seen.push((field(4), field(6) & NLM_F_ACK != 0));
            rest = &rest[length..];
        }
        assert_eq!(seen, [(0x10, false), (0xa00, false), (0xa02, true), (0x11, false)]);
    }
}
