//! What the engine needs of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use fairlead_api::{Attachment, DirectionCounters, EndpointCounters};
use fairlead_datapath::{Datapath, Exits, Identity, RegisterError};
use fairlead_policy::model::NodeChanges;
use fairlead_policy::tables::{Delta, Slot};

/// Why the kernel does not do as told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnforcerError {
    /// The slot of the interface's index is in use, or the endpoint was killed.
    #[error("{0}")]
    Taken(String),
    /// The interface is not as it must be.
    #[error("{0}")]
    Interface(String),
    /// The request cannot be fulfilled whatever the state.
    #[error("{0}")]
    Invalid(String),
    /// Anything else.
    #[error("{0}")]
    Kernel(String),
}

impl From<fairlead_datapath::Error> for EnforcerError {
    fn from(e: fairlead_datapath::Error) -> Self {
        Self::Kernel(e.to_string())
    }
}

impl From<RegisterError> for EnforcerError {
    fn from(e: RegisterError) -> Self {
        let text = e.to_string();
        match e {
            RegisterError::Taken(_) => Self::Taken(text),
            RegisterError::Programs { .. } => Self::Interface(text),
            RegisterError::Unusable(_) | RegisterError::TooManyAddresses(_) => Self::Invalid(text),
            RegisterError::Datapath(_) => Self::Kernel(text),
        }
    }
}

/// Tables and hooks of this node. Until [`activate`](Self::activate) nothing that is told to it is in
/// force, and what an agent before left is.
pub trait Enforcer: Send {
    /// Makes an endpoint known, locked; returns its generation.
    fn register(&mut self, attachment: &Attachment) -> Result<u32, EnforcerError>;
    /// Lets packets of an endpoint pass as its rules say.
    fn unlock(&mut self, slot: Slot) -> Result<(), EnforcerError>;
    /// Forgets an endpoint; that there is none is no error.
    fn remove(&mut self, slot: Slot, ifindex: u32) -> Result<(), EnforcerError>;
    /// Puts a step of policy in force, whole or not at all.
    fn apply(&mut self, delta: &Delta) -> Result<(), EnforcerError>;
    /// Serial up to which freed ids may be used again, where that is known by now.
    fn settled(&mut self) -> Result<Option<u64>, EnforcerError>;
    /// Says which addresses are the node's own and Services'.
    fn set_addresses(
        &mut self,
        own: &BTreeSet<IpAddr>,
        services: &BTreeSet<IpAddr>,
    ) -> Result<(), EnforcerError>;
    /// Says which other nodes are there anew, have changed or are gone. After an error it is told again.
    fn set_nodes(&mut self, changes: &NodeChanges) -> Result<(), EnforcerError>;
    /// Says how packets for the pods of these nodes leave past the host's stack. After an error it is told again.
    fn set_exits(&mut self, exits: &Exits) -> Result<(), EnforcerError>;
    /// Attaches the programs of the uplink.
    fn attach_uplink(&mut self, ifindex: u32) -> Result<(), EnforcerError>;
    /// Attaches the programs of the overlay device.
    fn attach_overlay(&mut self, ifindex: u32) -> Result<(), EnforcerError>;
    /// Turns all hooks of the node to these tables at once.
    fn activate(&mut self) -> Result<(), EnforcerError>;
    /// Counters by interface index.
    fn counters(&self) -> Result<BTreeMap<u32, EndpointCounters>, EnforcerError>;
    /// The policy generation in force.
    fn generation(&self) -> u32;
    /// Folder of the pins that the plugin attaches.
    fn frozen(&self) -> PathBuf;
    /// Whether there is an interface with this index right now.
    fn interface_exists(&self, ifindex: u32) -> bool {
        fairlead_cni::ledger::interface_name(ifindex).is_some()
    }
}

impl Enforcer for Datapath {
    fn register(&mut self, attachment: &Attachment) -> Result<u32, EnforcerError> {
        let generation = Datapath::register(
            self,
            &Identity {
                ifindex: attachment.host_ifindex,
                host_mac: attachment.host_mac.0,
                pod_mac: attachment.pod_mac.0,
                addresses: attachment.addresses.clone(),
                mtu: attachment.mtu,
                fast_path: !attachment.shaped,
            },
        )?;
        Ok(generation)
    }

    fn unlock(&mut self, slot: Slot) -> Result<(), EnforcerError> {
        Ok(Datapath::unlock(self, slot)?)
    }

    fn remove(&mut self, slot: Slot, ifindex: u32) -> Result<(), EnforcerError> {
        Ok(Datapath::remove(self, slot, ifindex)?)
    }

    fn apply(&mut self, delta: &Delta) -> Result<(), EnforcerError> {
        Ok(Datapath::apply(self, delta)?)
    }

    fn settled(&mut self) -> Result<Option<u64>, EnforcerError> {
        Ok(Datapath::settled(self)?)
    }

    fn set_addresses(
        &mut self,
        own: &BTreeSet<IpAddr>,
        services: &BTreeSet<IpAddr>,
    ) -> Result<(), EnforcerError> {
        Ok(Datapath::set_addresses(self, own, services)?)
    }

    fn set_nodes(&mut self, changes: &NodeChanges) -> Result<(), EnforcerError> {
        Ok(Datapath::set_nodes(self, changes)?)
    }

    fn set_exits(&mut self, exits: &Exits) -> Result<(), EnforcerError> {
        Ok(Datapath::set_exits(self, exits)?)
    }

    fn attach_uplink(&mut self, ifindex: u32) -> Result<(), EnforcerError> {
        Datapath::attach_uplink(self, ifindex)?;
        if let Err(e) = self.attach_early(ifindex) {
            tracing::info!("no XDP, packets of the uplink meet policy in tc alone: {e}");
        }
        Ok(())
    }

    fn attach_overlay(&mut self, ifindex: u32) -> Result<(), EnforcerError> {
        Ok(Datapath::attach_overlay(self, ifindex)?)
    }

    fn activate(&mut self) -> Result<(), EnforcerError> {
        Ok(Datapath::activate(self)?)
    }

    fn counters(&self) -> Result<BTreeMap<u32, EndpointCounters>, EnforcerError> {
        let direction = |counter: &fairlead_datapath::Counter| DirectionCounters {
            packets: counter.packets,
            bytes: counter.bytes,
            drops: counter.drops.iter().map(|(reason, n)| (reason.name().to_owned(), *n)).collect(),
        };
        Ok(Datapath::counters(self)?
            .iter()
            .map(|(ifindex, c)| {
                let counters =
                    EndpointCounters { ingress: direction(&c.ingress), egress: direction(&c.egress) };
                (*ifindex, counters)
            })
            .collect())
    }

    fn generation(&self) -> u32 {
        Datapath::generation(self)
    }

    fn frozen(&self) -> PathBuf {
        Datapath::frozen(self).to_owned()
    }
}
