//! How a datapath is opened.

use std::path::PathBuf;

use fairlead_common::maps::{DEFAULT_MARK_MASK, LASTING, Lasting};
use fairlead_policy::compiler::Limits;

use crate::early::Early;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairlead.bpf.o"));

/// How to open a datapath.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder in a BPF file system for this agent's pins.
    pub bpffs: PathBuf,
    /// The programs.
    pub build: Build,
    /// Sizes of maps.
    pub capacities: Capacities,
    /// Whether packets may skip the host's stack.
    pub fast_path: bool,
    /// Bits of `skb->mark` that may be used: at least 12 in a row.
    pub mark_mask: u32,
    /// The overlay between nodes, where there is one.
    pub overlay: Option<Overlay>,
    /// Where XDP looks at packets of the uplink.
    pub early: Early,
}

/// What packets of the overlay between nodes bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// UDP port, closed to pods.
    pub port: u16,
    /// Network identifier (VNI), of 24 bits.
    pub id: u32,
}

impl Options {
    /// The defaults, with pins below `bpffs`.
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: bpffs.into(),
            build: Build::default(),
            capacities: Capacities::default(),
            fast_path: true,
            mark_mask: DEFAULT_MARK_MASK,
            overlay: None,
            early: Early::default(),
        }
    }
}

/// An eBPF object, and the layouts of those of its maps that outlive an agent.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// ELF.
    pub object: &'static [u8],
    /// As [`LASTING`].
    pub lasting: &'static [Lasting],
}

impl Default for Build {
    /// This executable's own.
    fn default() -> Self {
        Self { object: OBJECT, lasting: &LASTING }
    }
}

/// Numbers of elements that maps hold; memory is taken as it is used, but for the flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Answered flows of a family.
    pub flows: u32,
    /// (signature, atom) pairs.
    pub rows: u32,
    /// Port sets.
    pub sets: u32,
    /// Exact peers of a family.
    pub peers: u32,
    /// Address regions of a family.
    pub cidrs: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self::from(&Limits::default())
    }
}

impl From<&Limits> for Capacities {
    /// What the compiler's limits need: the states before and after a step side by side. See
    /// docs/decisions/0009.
    fn from(limits: &Limits) -> Self {
        Self {
            flows: 131_072,
            rows: limits.rows.saturating_mul(2),
            sets: limits.set_ids(),
            peers: limits.peers.saturating_mul(2),
            cidrs: limits.cidrs.saturating_mul(2),
        }
    }
}
