//! Parser and verdict on hostile and on random packets.
//!
//! A mutation fuzzer that starts from `tests/corpus` (one frame a file; whatever ever failed belongs
//! there, and is run as it is before anything else), and a comparison with an independent parser.
//! `FAIRLEAD_FUZZ_SECONDS` makes the fuzzer's run longer, `FAIRLEAD_FUZZ_SEED` gives another one.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod across;
mod early;
mod host;
mod inside;
mod kept;
mod unanswered;
mod waiting;

use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fairlead_common::maps::{EndpointPolicy, SLOT_SETTLED, Side};
use fairlead_common::packet::{Kind, parse, tcp};
use fairlead_common::verdict::{Family, Verdict};
use host::{Frame, Host, Random, endpoint, leaves, receives, sends};

/// Frames that a run without `FAIRLEAD_FUZZ_SECONDS` tries: a few seconds of a debug build.
const FRAMES: u64 = 200_000;
/// Longest frame.
const LONGEST: usize = 256;

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// A pod that may neither send nor get anything, and one that no policy selects.
struct Worlds<A: 'static> {
    closed: Host<A>,
    open: Host<A>,
}

impl<A: Family + Eq + Hash> Worlds<A> {
    fn new() -> Self {
        Self {
            closed: Host::new([endpoint(1, EndpointPolicy::CLOSED)]),
            open: Host::new([endpoint(1, EndpointPolicy::OPEN)]),
        }
    }

    /// What holds for every frame.
    fn check(&self, frame: &[u8]) {
        let parsed = parse::<A, _>(&Frame(frame));
        if let Ok(p) = parsed {
            let length = frame.len() as u32;
            assert!(p.transport >= 34 && p.transport <= length, "transport header at {}", p.transport);
            if p.kind == Kind::Flow && p.protocol == 6 {
                assert!(p.transport + 20 <= length, "TCP header at {} of {length}", p.transport);
            }
        }
        // Nothing allowed: nothing passes, nothing is remembered. Neighbour discovery alone has to work.
        let (verdict, p) = sends(&self.closed, 1, frame);
        if !matches!(verdict, Verdict::Drop(_)) {
            let p = p.unwrap();
            assert!(p.kind == Kind::Neighbour && p.hop_limit == 255, "a denied packet passed: {verdict:?}");
            assert_eq!(verdict, Verdict::Pass { slot: SLOT_SETTLED });
        }
        if let Ok(verdict) = receives(&self.closed, 1, frame) {
            assert!(matches!(verdict, Verdict::Drop(_)), "a denied packet was delivered: {verdict:?}");
        }
        assert!(matches!(leaves(&self.closed, 1, frame), Verdict::Drop(_)), "a denied packet left");
        assert_eq!(self.closed.flow_count(), 0);
        // Everything allowed: what passes can be parsed and is the pod's own.
        let (verdict, p) = sends(&self.open, 1, frame);
        if !matches!(verdict, Verdict::Drop(_)) {
            let p = p.unwrap();
            assert!(p.source.owned_by(&endpoint(1, EndpointPolicy::OPEN)), "a forged packet passed");
            assert!(!p.destination.is_group() || p.kind == Kind::Neighbour, "multicast passed");
            assert_ne!(p.kind, Kind::Router);
        }
    }
}

/// A new frame from those that there are.
fn mutated(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        if frame.is_empty() {
            frame.push(random.byte());
        }
        let at = random.below(frame.len());
        match random.below(8) {
            0 => frame[at] ^= 1 << random.below(8),
            1 => frame[at] = random.byte(),
            // Values at which something changes.
            2 => {
                frame[at] = [0, 1, 4, 5, 6, 17, 43, 44, 50, 51, 58, 60, 127, 128, 132, 255][random.below(16)]
            }
            3 => frame.truncate(at),
            4 => frame.insert(at, random.byte()),
            5 => {
                frame.remove(at);
            }
            6 => {
                // A piece of another one.
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len().max(1)).min(other.len());
                let piece = &other[from..(from + 1 + random.below(40)).min(other.len())];
                frame.splice(at..at, piece.iter().copied());
            }
            _ => {
                // The length field fits again, so that what follows is looked at.
                let payload = frame.len().saturating_sub(14);
                if frame.len() > 20 && frame[14] >> 4 == 4 {
                    frame[16..18].copy_from_slice(&(payload as u16).to_be_bytes());
                } else if frame.len() > 54 {
                    frame[18..20].copy_from_slice(&((payload - 40) as u16).to_be_bytes());
                }
            }
        }
        frame.truncate(LONGEST);
    }
    frame
}

#[test]
fn hostile_packets_break_nothing_and_open_nothing() {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().unwrap());
    let seed = number("FAIRLEAD_FUZZ_SEED").unwrap_or(1);
    let until = number("FAIRLEAD_FUZZ_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let (four, six) = (Worlds::<u32>::new(), Worlds::<[u32; 4]>::new());
    let check = |frame: &[u8]| {
        four.check(frame);
        six.check(frame);
    };
    let corpus = corpus();
    assert!(corpus.len() >= 20, "the corpus has {} frames", corpus.len());
    for (name, frame) in &corpus {
        if catch_unwind(AssertUnwindSafe(|| check(frame))).is_err() {
            panic!("corpus file {name}");
        }
    }
    let seeds: Vec<Vec<u8>> = corpus.into_iter().map(|(_, frame)| frame).collect();
    let mut random = Random::new(seed);
    let mut tried = 0u64;
    while until.map_or(tried < FRAMES, |until| Instant::now() < until) {
        for _ in 0..1000 {
            let frame = mutated(&mut random, &seeds);
            if catch_unwind(AssertUnwindSafe(|| check(&frame))).is_err() {
                let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
                panic!("seed {seed}, frame {tried}: keep it in tests/corpus: {hex}");
            }
            tried += 1;
        }
    }
    assert!(four.open.flow_count() > 0 && six.open.flow_count() > 0, "nothing ever passed: a weak corpus");
    println!("cases: {tried}");
}

/// A well-formed packet with whatever the family has before the transport header.
fn well_formed(random: &mut Random, v6: bool) -> Vec<u8> {
    let protocol = [6u8, 17, 132, 47, if v6 { 58 } else { 1 }][random.below(5)];
    let mut body: Vec<u8> = (0..20 + random.below(60)).map(|_| random.byte()).collect();
    match protocol {
        6 => body[12] = 0x50,
        17 => {
            let length = body.len() as u16;
            body[4..6].copy_from_slice(&length.to_be_bytes());
        }
        // Echo.
        1 => body[0] = 8 * (random.byte() & 1),
        58 => body[0] = 128 + (random.byte() & 1),
        _ => {}
    }
    let mut frame = vec![2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 2, 1];
    if v6 {
        let mut headers: Vec<u8> = Vec::new();
        let mut kinds: Vec<u8> = (0..random.below(4)).map(|_| 60).collect();
        if random.below(3) == 0 {
            kinds.insert(0, 0);
        }
        for n in 0..kinds.len() {
            let next = kinds.get(n + 1).copied().unwrap_or(protocol);
            let units = random.below(3) as u8;
            headers.extend([next, units, 1, 4 + units * 8]);
            headers.resize(headers.len() + 4 + usize::from(units) * 8, 0);
        }
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(((headers.len() + body.len()) as u16).to_be_bytes());
        frame.extend([kinds.first().copied().unwrap_or(protocol), random.byte()]);
        frame.extend((0..32).map(|_| random.byte()));
        frame.extend(headers);
    } else {
        let options = random.below(11) * 4;
        frame.extend([8, 0, 0x45 + (options / 4) as u8, 0]);
        frame.extend(((20 + options + body.len()) as u16).to_be_bytes());
        frame.extend([0, 7, 0x40, 0, random.byte(), protocol, 0, 0]);
        frame.extend((0..8).map(|_| random.byte()));
        frame.extend(vec![1; options]);
    }
    frame.extend(body);
    // Padding of the link layer.
    frame.extend(vec![0; random.below(3) * 7]);
    frame
}

/// What both parsers say of a frame: addresses, protocol, ports, TCP flags of SYN, ACK, FIN, RST.
type Told = (Vec<u8>, Vec<u8>, u8, Option<(u16, u16, u8)>);

fn ours(frame: &[u8], v6: bool) -> Option<Told> {
    fn told<A: Family>(frame: &[u8], length: usize) -> Option<Told> {
        let p = parse::<A, _>(&Frame(frame)).ok()?;
        let bytes = |a: A| a.words().iter().flat_map(|w| w.to_ne_bytes()).take(length).collect::<Vec<u8>>();
        let flags = p.tcp_flags & (tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK);
        let ports = (u16::from_be(p.source_port), u16::from_be(p.destination_port), flags);
        let ports = (p.kind == Kind::Flow && matches!(p.protocol, 6 | 17)).then_some(ports);
        (p.kind != Kind::LaterFragment).then(|| (bytes(p.source), bytes(p.destination), p.protocol, ports))
    }
    if v6 { told::<[u32; 4]>(frame, 16) } else { told::<u32>(frame, 4) }
}

fn theirs(frame: &[u8]) -> Option<Told> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination, protocol) = match sliced.net? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            (header.source().to_vec(), header.destination().to_vec(), ip.payload().ip_number.0)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.source().to_vec(), header.destination().to_vec(), ip.payload().ip_number.0)
        }
        NetSlice::Arp(_) => return None,
    };
    let ports = match sliced.transport {
        Some(TransportSlice::Tcp(t)) => {
            let flags = u8::from(t.fin()) | u8::from(t.syn()) << 1 | u8::from(t.rst()) << 2;
            Some((t.source_port(), t.destination_port(), flags | u8::from(t.ack()) << 4))
        }
        Some(TransportSlice::Udp(u)) => Some((u.source_port(), u.destination_port(), 0)),
        _ => None,
    };
    Some((source, destination, protocol, ports))
}

#[test]
fn an_independent_parser_reads_the_same() {
    let mut random = Random::new(7);
    let mut with_ports = 0;
    for n in 0..20_000 {
        let v6 = n % 2 == 0;
        let frame = well_formed(&mut random, v6);
        let read = ours(&frame, v6);
        assert!(read.is_some(), "refused though well-formed: {frame:02x?}");
        let other = theirs(&frame);
        assert_eq!(read, other, "{frame:02x?}");
        with_ports += u32::from(other.is_some_and(|(.., ports)| ports.is_some()));
        // Damaged: whatever both can read means the same to both.
        let damaged = mutated(&mut random, std::slice::from_ref(&frame));
        let v6 = damaged.get(12..14) == Some(&[0x86, 0xdd]);
        if (v6 || damaged.get(12..14) == Some(&[8, 0]))
            && let (Some(read), Some(other)) = (ours(&damaged, v6), theirs(&damaged))
            && other.3.is_some()
        {
            assert_eq!(read, other, "{damaged:02x?}");
        }
    }
    assert!(with_ports > 5000, "only {with_ports} packets had ports");
    println!("cases: 40000");
}

#[test]
fn sides_that_are_open_or_closed_need_no_tables() {
    let mut host = Host::<u32>::new([endpoint(1, EndpointPolicy::OPEN)]);
    let (_, syn) = corpus().into_iter().find(|(name, _)| name == "tcp4-syn").unwrap();
    assert!(matches!(sends(&host, 1, &syn).0, Verdict::Pass { .. }));
    host.set_policy(host::ifindex(1), EndpointPolicy { ingress: Side::OPEN, egress: Side::CLOSED });
    // The flow is known, but a bare SYN is judged as new.
    assert!(matches!(sends(&host, 1, &syn).0, Verdict::Drop(_)));
}
