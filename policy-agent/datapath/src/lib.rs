//! The agent's side of the datapath: programs, maps, endpoints, counters.
//!
//! One [`Datapath`] belongs to one agent, which holds the lock of its run directory. See
//! `docs/architecture.md` for how the parts fit.

mod attach;
mod banks;
mod clock;
mod counters;
mod early;
mod endpoints;
mod events;
mod features;
mod grace;
mod lasting;
mod map;
mod netlink;
mod netns;
mod object;
mod options;
mod pins;
mod policy;
mod remotes;
mod sys;
mod test_run;
mod writes;

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use fairlead_common::maps::{AddressInfo, DropKey, Passed};
use fairlead_policy::tables::{Delta, Slot};

pub use attach::UplinkError;
pub use counters::{Counter, Counters};
pub use early::Early;
pub use endpoints::{EndpointEntry, Identity, RegisterError};
pub use events::{DropRecord, EventLosses, Events, Losses};
pub use fairlead_common::maps::{Exit, NextHop, Tunnel};
pub use fairlead_common::vxlan::RECEIVER_MAC;
pub use features::missing_features;
pub use map::MapError;
pub use options::{Build, Capacities, Options, Overlay};
pub use remotes::Exits;
pub use test_run::{TestRun, test_run, test_run_xdp};
pub use writes::{Moment, Write, observed};

use map::Map;
use object::Object;
use policy::Policy;
use remotes::Remotes;

/// What can go wrong between agent and kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, folder or pin.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The executable was built without the BPF toolchain.
    #[error("this executable carries no eBPF object: build it with `cargo xtask build`")]
    NoObject,
    /// The object lacks a part.
    #[error("the eBPF object has no {0:?}")]
    Object(String),
    /// The object could not be loaded.
    #[error("loading the eBPF object: {0}")]
    Load(#[from] aya::EbpfError),
    /// A program was refused.
    #[error("eBPF program: {0}")]
    Program(#[from] aya::programs::ProgramError),
    /// A program could not be pinned.
    #[error("pinning: {0}")]
    Pin(#[from] aya::pin::PinError),
    /// Memory shared with the programs.
    #[error("memory shared with the programs: {source}")]
    State {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The length of the kernel's tick.
    #[error("clock of flows: {source}")]
    Clock {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// More port sets than the map holds.
    #[error("port set {id} is beyond the map's {capacity}")]
    SetCapacity {
        /// The set.
        id: u32,
        /// Capacity of the map.
        capacity: u32,
    },
    /// A slot without an endpoint.
    #[error("no endpoint in slot {slot}")]
    UnknownSlot {
        /// The slot.
        slot: u32,
    },
    /// The uplink.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// The ring buffer of events.
    #[error("ring buffer of events: {0}")]
    Events(#[from] aya::maps::MapError),
}

impl Error {
    /// For what the kernel says of a file, folder or pin.
    pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path: path.clone(), source }
    }
}

/// Programs and maps of this agent.
pub struct Datapath {
    object: Object,
    policy: Policy,
    addresses4: Map<u32, AddressInfo>,
    addresses6: Map<[u32; 4], AddressInfo>,
    addresses: endpoints::Addresses,
    remotes: Remotes,
    /// Endpoints whose network namespaces nobody has looked for.
    unplaced: BTreeSet<Slot>,
    killed: Map<u32, u32>,
    drops: Map<DropKey, u64>,
    passed: Map<u32, Passed>,
    cpus: usize,
}

impl Datapath {
    /// Loads programs and makes maps. What an agent before put in force stays in force until
    /// [`Self::activate`].
    pub fn open(options: &Options) -> Result<Self, Error> {
        let object = Object::load(options)?;
        let policy = Policy::new(&object, options)?;
        Ok(Self {
            policy,
            addresses4: object.map("addresses4")?,
            addresses6: object.map("addresses6")?,
            addresses: endpoints::Addresses::default(),
            remotes: Remotes::new(&object)?,
            unplaced: BTreeSet::new(),
            killed: object.map("killed")?,
            drops: object.map("drops")?,
            passed: object.map("passed")?,
            cpus: aya::util::nr_cpus().map_err(|(path, source)| Error::Io { path: path.into(), source })?,
            object,
        })
    }

    /// Turns every hook of the node to this datapath's programs and tables, at once, and takes over what
    /// an agent with other layouts had of flows.
    pub fn activate(&mut self) -> Result<(), Error> {
        self.object.activate()?;
        let take_over = self.object.take_over();
        if take_over.is_needed() {
            // Failed, the programs go on looking into the old maps, and the next start tries again.
            take_over.run()?;
            // A packet that missed what is there now must still find that it has to look further.
            sys::grace_period().map_err(|source| Error::State { source })?;
            self.policy.end_take_over()?;
        }
        take_over.unpin()
    }

    /// Whether this datapath is in force.
    pub fn is_active(&self) -> Result<bool, Error> {
        self.object.is_active()
    }

    /// Puts a step of policy in force, whole or not at all.
    pub fn apply(&mut self, delta: &Delta) -> Result<(), Error> {
        self.policy.apply(delta)
    }

    /// Once no packet can meet older state: cleans up, and returns the serial of the step up to which
    /// freed ids may be used again. Does not wait; worth calling some 20 ms after a step.
    pub fn settled(&mut self) -> Result<Option<u64>, Error> {
        self.find_namespaces()?;
        self.policy.settled()
    }

    /// The reader of dropped packets; there is one. `None` where it was taken before.
    pub fn take_events(&mut self) -> Result<Option<Events>, Error> {
        self.object.take_map("events").map(Events::new).transpose()
    }

    /// The count of drops that have no event.
    pub fn event_losses(&self) -> Result<EventLosses, Error> {
        Ok(EventLosses::new(self.object.map("event_losses")?, self.cpus))
    }

    /// The policy generation in force.
    pub fn generation(&self) -> u32 {
        self.policy.generation()
    }

    /// Folder of the frozen pins.
    pub fn frozen(&self) -> &Path {
        &self.object.pins.frozen
    }

    pub(crate) fn early(&self) -> &early::EarlyPrograms {
        &self.object.early
    }

    /// A program of this version, for [`test_run`].
    pub fn program(&self, name: &str) -> Result<OwnedFd, Error> {
        self.object.program(name)
    }
}

/// An IPv4 address as maps hold it.
pub(crate) fn words4(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// An IPv6 address as maps hold it.
pub(crate) fn words6(address: Ipv6Addr) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(address.octets().chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}
