//! Endpoints and the addresses that the datapath must know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_common::maps::{
    ADDRESS_ENDPOINT, ADDRESS_NODE, ADDRESS_NODE_SERVICE, ADDRESS_OWN, ADDRESS_SERVICE, AddressInfo, BANKS,
    ENDPOINT_ADDRESSES, ENDPOINT_FAST_PATH, ENDPOINT_UNLOCKED, Endpoint, EndpointPolicy, ifindex_usable,
    mac_words, slot_of,
};
use fairlead_policy::model::NodeChanges;
use fairlead_policy::tables::Slot;
use tracing::warn;

use crate::{Datapath, Error, Exits, netns, words4, words6};

/// What names an endpoint in the datapath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Index of the interface on the host.
    pub ifindex: u32,
    /// MAC address of the interface on the host.
    pub host_mac: [u8; 6],
    /// MAC address of the pod's interface.
    pub pod_mac: [u8; 6],
    /// The pod's addresses, at most four of each family.
    pub addresses: Vec<IpAddr>,
    /// MTU of the pod's interface in bytes.
    pub mtu: u32,
    /// Whether packets may be redirected to and from it.
    pub fast_path: bool,
}

/// Why an endpoint cannot be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The index maps to no usable slot.
    #[error("interface index {0} cannot be an endpoint's")]
    Unusable(u32),
    /// The slot has an endpoint, or one with this index was killed there.
    #[error("the slot of interface index {0} is taken")]
    Taken(u32),
    /// Too many addresses of a family.
    #[error("{0} addresses of one family, at most {ENDPOINT_ADDRESSES} are possible")]
    TooManyAddresses(usize),
    /// The interface does not carry this agent's programs.
    #[error("interface index {ifindex} does not carry this agent's programs: {what}")]
    Programs {
        /// The interface.
        ifindex: u32,
        /// What is there instead.
        what: String,
    },
    /// The kernel.
    #[error(transparent)]
    Datapath(#[from] Error),
}

/// An endpoint as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointEntry {
    /// Slot.
    pub slot: Slot,
    /// Interface on the host.
    pub ifindex: u32,
    /// Whether packets pass.
    pub unlocked: bool,
}

/// Addresses by what they are to the datapath; one that is several things is the first of these.
#[derive(Default)]
pub(crate) struct Addresses {
    endpoints: BTreeMap<IpAddr, u32>,
    own: BTreeSet<IpAddr>,
    services: BTreeSet<IpAddr>,
    /// Of which the maps may say something else, because writing failed.
    unsure: BTreeSet<IpAddr>,
}

impl Addresses {
    /// What an address is, given whether it is another node's.
    fn info(&self, address: &IpAddr, is_node: bool) -> Option<AddressInfo> {
        if let Some(slot) = self.endpoints.get(address) {
            Some(AddressInfo { kind: ADDRESS_ENDPOINT, slot: *slot })
        } else {
            let service = self.services.contains(address);
            // Whoever may write Services may name a node's address there: it stays the node's.
            let kind = if self.own.contains(address) {
                ADDRESS_OWN
            } else if is_node {
                if service { ADDRESS_NODE_SERVICE } else { ADDRESS_NODE }
            } else if service {
                ADDRESS_SERVICE
            } else {
                return None;
            };
            Some(AddressInfo { kind, slot: 0 })
        }
    }
}

impl Datapath {
    /// Makes an endpoint known, locked. Its interface must carry this agent's trampolines.
    ///
    /// Returns the endpoint's generation: its interface index, which is never given twice.
    pub fn register(&mut self, identity: &Identity) -> Result<u32, RegisterError> {
        self.check_trampolines(identity.ifindex)?;
        self.register_unattached(identity)
    }

    /// As [`Self::register`], without a look at the interface: for programs run by
    /// [`crate::test_run`], which need none.
    pub fn register_unattached(&mut self, identity: &Identity) -> Result<u32, RegisterError> {
        let ifindex = identity.ifindex;
        if !ifindex_usable(ifindex) {
            return Err(RegisterError::Unusable(ifindex));
        }
        let slot = slot_of(ifindex);
        let taken = self.policy.registered(slot as Slot).is_some_and(|there| there.ifindex != ifindex);
        let killed = self.killed.get(&slot, 0).map_err(Error::from)?;
        if taken || killed == Some(ifindex) {
            return Err(RegisterError::Taken(ifindex));
        }
        let mut entry = Endpoint {
            ifindex,
            generation: ifindex,
            flags: if identity.fast_path { ENDPOINT_FAST_PATH } else { 0 },
            mtu: identity.mtu,
            policy: [EndpointPolicy::CLOSED; BANKS],
            macs: mac_words(identity.pod_mac, identity.host_mac),
            ipv4: [0; ENDPOINT_ADDRESSES],
            ipv6: [[0; 4]; ENDPOINT_ADDRESSES],
            netns: 0,
            reserved: [0; 4],
        };
        let (mut v4, mut v6) = (0, 0);
        for address in &identity.addresses {
            let (place, count) = match address {
                IpAddr::V4(a) => (entry.ipv4.get_mut(v4).map(|p| *p = words4(*a)), &mut v4),
                IpAddr::V6(a) => (entry.ipv6.get_mut(v6).map(|p| *p = words6(*a)), &mut v6),
            };
            place.ok_or(RegisterError::TooManyAddresses(*count + 1))?;
            *count += 1;
        }
        self.policy.register(slot as Slot, entry)?;
        self.unplaced.insert(slot as Slot);
        self.addresses.endpoints.extend(identity.addresses.iter().map(|address| (*address, slot)));
        self.write_some(&identity.addresses)?;
        Ok(ifindex)
    }

    /// Lets packets pass, as the rules in force for the slot say.
    pub fn unlock(&mut self, slot: Slot) -> Result<(), Error> {
        let entry = self.policy.registered(slot).ok_or(Error::UnknownSlot { slot: slot.into() })?;
        let flags = entry.flags | ENDPOINT_UNLOCKED;
        self.policy.set_flags(slot, flags)
    }

    /// Forgets an endpoint; that there is none is no error.
    pub fn remove(&mut self, slot: Slot, ifindex: u32) -> Result<(), Error> {
        if self.policy.registered(slot).is_none_or(|entry| entry.ifindex != ifindex) {
            return Ok(());
        }
        self.unplaced.remove(&slot);
        self.policy.unregister(slot)?;
        let gone: Vec<IpAddr> = self
            .addresses
            .endpoints
            .iter()
            .filter(|(_, s)| **s == u32::from(slot))
            .map(|(address, _)| *address)
            .collect();
        for address in &gone {
            self.addresses.endpoints.remove(address);
        }
        self.write_some(&gone)
    }

    /// Writes what these addresses are; whatever comes of it, flows must not rely on what they were.
    fn write_some(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut written = Ok(());
        for address in addresses {
            if let Err(e) = self.write_address(address) {
                self.addresses.unsure.insert(*address);
                written = written.and(Err(e));
            }
        }
        self.policy.addresses_changed()?;
        written
    }

    /// Finds the network namespaces of pods that came since the last time: no ADD waits for that. Of one that is not found, a
    /// tunnel's packets that are to be segmented go by the overlay device, as all of them did once.
    pub(crate) fn find_namespaces(&mut self) -> Result<(), Error> {
        while let Some(slot) = self.unplaced.pop_first() {
            let Some(ifindex) = self.policy.registered(slot).map(|entry| entry.ifindex) else { continue };
            match netns::behind(ifindex) {
                Ok(Some(number)) => self.policy.set_netns(slot, number)?,
                Ok(None) => {}
                Err(e) => warn!(ifindex, "cannot tell the network namespace of a pod: {e}"),
            }
        }
        Ok(())
    }

    /// What the CNI plugin's DEL does first: from now on the endpoint with this interface index drops
    /// everything, for good.
    pub fn kill(&mut self, ifindex: u32) -> Result<(), Error> {
        Ok(self.killed.set(&slot_of(ifindex), &ifindex)?)
    }

    /// The endpoints that the kernel has.
    pub fn endpoints(&self) -> Vec<EndpointEntry> {
        self.policy
            .all_registered()
            .map(|(slot, entry)| EndpointEntry {
                slot,
                ifindex: entry.ifindex,
                unlocked: entry.flags & ENDPOINT_UNLOCKED != 0,
            })
            .collect()
    }

    /// Says which addresses are the node's own and Services'.
    pub fn set_addresses(
        &mut self,
        own: &BTreeSet<IpAddr>,
        services: &BTreeSet<IpAddr>,
    ) -> Result<(), Error> {
        let Addresses { own: old_own, services: old_services, unsure, .. } = &mut self.addresses;
        for (old, new) in [(old_own, own), (old_services, services)] {
            unsure.extend(old.symmetric_difference(new));
            old.clone_from(new);
        }
        let written = self.write_addresses();
        self.policy.addresses_changed()?;
        written
    }

    /// Says which other nodes are there anew, have changed or are gone. What fails is made up for by the next
    /// call, whatever it says.
    pub fn set_nodes(&mut self, changes: &NodeChanges) -> Result<(), Error> {
        self.addresses.unsure.extend(self.remotes.set(changes));
        let written = self.remotes.write().and_then(|()| self.write_addresses());
        self.policy.addresses_changed()?;
        written
    }

    fn write_addresses(&mut self) -> Result<(), Error> {
        while let Some(address) = self.addresses.unsure.first().copied() {
            self.write_address(&address)?;
            self.addresses.unsure.remove(&address);
        }
        Ok(())
    }

    /// Says how packets for the pods of these nodes leave past the host's stack, from now on.
    pub fn set_exits(&mut self, exits: &Exits) -> Result<(), Error> {
        self.remotes.set_exits(exits)
    }

    fn write_address(&self, address: &IpAddr) -> Result<(), Error> {
        let info = self.addresses.info(address, self.remotes.is_node(address));
        match (address, info) {
            (IpAddr::V4(a), Some(info)) => self.addresses4.set(&words4(*a), &info)?,
            (IpAddr::V4(a), None) => self.addresses4.remove(&words4(*a))?,
            (IpAddr::V6(a), Some(info)) => self.addresses6.set(&words6(*a), &info)?,
            (IpAddr::V6(a), None) => self.addresses6.remove(&words6(*a))?,
        }
        Ok(())
    }
}
