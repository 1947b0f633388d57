//! What is reserved on this node: attachments, their addresses and interface indexes, under one lock.
//!
//! ```text
//! RUN/endpoints/CONTAINER:IF.json  the attachment; written before its interface is made
//! RUN/ipam/lock                    held for every change, for well under a millisecond
//! RUN/ipam/busy                    -> "CONTAINER IF": whose claim is being written
//! RUN/ipam/slots/SLOT              -> "IFINDEX CONTAINER IF"
//! RUN/ipam/ifindex                 the index given out last
//! RUN/ipam/boot                    -> the kernel's boot_id: when all of this was written
//! RUN/ipam/used, RUN/ipam/pools    addresses, see [`crate::store`]
//! ```
//!
//! A claim reserves an index and addresses and then writes the attachment. One that was killed in
//! between has left its mark in `busy`; whoever takes the lock next frees what it had reserved.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::PathBuf;

use fairlead_api::{Attachment, NodeInfo, RunDir};
use fairlead_common::maps::slot_of;
use fairlead_ipam::{Lease, Owner, Pool, Refused, Store};

use crate::error::{CniError, IoContext, code};
use crate::store::{Disk, entries, link, now, remove, there};

mod read;
mod reconcile;
mod slots;

pub use read::{PoolUse, is_host_ifname};
pub use reconcile::{Reconciled, reconcile, sandbox_lives};
pub use slots::interface_name;

/// The ledger of a run directory, locked.
#[derive(Debug)]
pub struct Ledger {
    run: RunDir,
    disk: Disk,
    /// Unlocks when closed, however that comes about.
    _lock: File,
}

/// Addresses that an attachment is to have.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// One of each set; those in `asked` where they are of its family.
    OfSets {
        /// Sets of pools of one family.
        sets: Vec<Vec<Pool>>,
        /// Addresses asked for.
        asked: Vec<IpAddr>,
    },
    /// These, which somebody else has reserved.
    Given(Vec<IpAddr>),
}

/// Something in the run directory that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Whose it is, by its name.
    pub owner: Owner,
    /// Why.
    pub why: String,
}

/// Name of the host's end: the same for an attachment wherever it is asked for.
pub fn host_ifname(owner: &Owner) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    // FNV-1a, 64 bits: 13 digits, which is what fits.
    let mut hash = owner.to_string().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut name = String::from("fl");
    for _ in 0..13 {
        name.push(char::from(DIGITS[(hash & 31) as usize]));
        hash >>= 5;
    }
    name
}

/// The sets of pools over a node's pod CIDRs, one to a family.
///
/// # Errors
/// Code 7, where a CIDR has no room.
pub fn node_pools(node: &NodeInfo, exclude: &[ipnetwork::IpNetwork]) -> Result<Vec<Vec<Pool>>, CniError> {
    let mut sets: Vec<Vec<Pool>> = Vec::new();
    for cidr in &node.pod_cidrs {
        let pool = Pool::new(*cidr)
            .map_err(|e| CniError::configuration(format!("pod CIDR of node {}: {e}", node.node_name)))?
            .excluding(exclude);
        match sets.iter_mut().find(|set| set[0].is_ipv6() == pool.is_ipv6()) {
            Some(set) => set.push(pool),
            None => sets.push(vec![pool]),
        }
    }
    if sets.is_empty() {
        return Err(CniError::new(code::TRY_AGAIN, format!("node {} has no pod CIDR yet", node.node_name)));
    }
    Ok(sets)
}

/// Owner of an attachment.
pub fn owner_of(attachment: &Attachment) -> Owner {
    Owner { container_id: attachment.container_id.clone(), ifname: attachment.ifname.clone() }
}

/// Reads `node.json`.
///
/// # Errors
/// Code 11: the agent has not been here yet, or has left something that is not its own.
pub fn read_node(run: &RunDir) -> Result<NodeInfo, CniError> {
    let path = run.node();
    let again = |e: &dyn std::fmt::Display| {
        CniError::new(code::TRY_AGAIN, format!("the agent is not ready: {}: {e}", path.display()))
    };
    let bytes = fs::read(&path).map_err(|e| again(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| again(&e))
}

impl Ledger {
    /// Takes the lock, waiting for it, and cleans up after a claim that was killed.
    ///
    /// # Errors
    /// Code 5.
    pub fn lock(run: &RunDir) -> Result<Self, CniError> {
        let ipam = run.ipam();
        let path = ipam.join("lock");
        let open = || File::options().write(true).create(true).truncate(false).open(&path);
        let lock = match open() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(&ipam).context(|| ipam.display().to_string())?;
                open()
            }
            file => file,
        }
        .context(|| path.display().to_string())?;
        lock.lock().context(|| path.display().to_string())?;
        let mut ledger = Self { run: run.clone(), disk: Disk::new(ipam), _lock: lock };
        ledger.recover()?;
        Ok(ledger)
    }

    /// The attachment of an owner; `None` where there is none.
    ///
    /// # Errors
    /// Code 5 where there is one that cannot be read.
    pub fn attachment(run: &RunDir, owner: &Owner) -> Result<Option<Attachment>, CniError> {
        let path = run.endpoint(&owner.container_id, &owner.ifname);
        let Some(bytes) = there(fs::read(&path)).context(|| path.display().to_string())? else {
            return Ok(None);
        };
        let attachment: Attachment = serde_json::from_slice(&bytes)
            .map_err(|e| CniError::new(code::IO, format!("{}: {e}", path.display())))?;
        if owner_of(&attachment) != *owner {
            return Err(CniError::new(code::IO, format!("{}: of another attachment", path.display())));
        }
        Ok(Some(attachment))
    }

    /// All attachments, and those that cannot be read.
    ///
    /// # Errors
    /// Code 5 where the folder cannot be read.
    pub fn attachments(&self) -> Result<(Vec<Attachment>, Vec<Unreadable>), CniError> {
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        for name in entries(&self.run.endpoints()).context(|| "endpoints".to_owned())? {
            let Some((container_id, ifname)) = name.strip_suffix(".json").and_then(|n| n.split_once(':'))
            else {
                continue;
            };
            let owner = Owner { container_id: container_id.to_owned(), ifname: ifname.to_owned() };
            match Self::attachment(&self.run, &owner) {
                Ok(attachment) => found.extend(attachment),
                Err(e) => unreadable.push(Unreadable { owner, why: e.msg }),
            }
        }
        Ok((found, unreadable))
    }

    /// The reserved addresses.
    ///
    /// # Errors
    /// Code 5.
    pub fn leases(&self) -> Result<Vec<Lease>, CniError> {
        self.disk.leases().context(|| "addresses".to_owned())
    }

    /// Which of an attachment's addresses are not reserved for it by the built-in allocator. Reads
    /// without the lock: a reservation is there whole or not at all.
    ///
    /// # Errors
    /// Code 5.
    pub fn unreserved(run: &RunDir, attachment: &Attachment) -> Result<Vec<IpAddr>, CniError> {
        let (disk, owner) = (Disk::new(run.ipam()), owner_of(attachment));
        let mut found = Vec::new();
        for address in &attachment.addresses {
            let lease = disk.lease(*address).context(|| address.to_string())?;
            if lease.is_none_or(|lease| lease.owner != owner) {
                found.push(*address);
            }
        }
        Ok(found)
    }

    /// Whether each set has an address left.
    ///
    /// # Errors
    /// Code 5.
    pub fn available(&mut self, sets: &[Vec<Pool>]) -> Result<bool, CniError> {
        for set in sets {
            if !fairlead_ipam::available(&mut self.disk, set).context(|| "addresses".to_owned())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reserves an interface index and addresses for a new attachment, and writes it down.
    ///
    /// # Errors
    /// Code 101 where there is one already; 100, 103, 107 where something is used up; 5. Nothing stays
    /// reserved.
    pub fn claim(
        &mut self,
        owner: &Owner,
        wanted: &Wanted,
        build: impl FnOnce(u32, Vec<IpAddr>) -> Attachment,
    ) -> Result<Attachment, CniError> {
        let path = self.run.endpoint(&owner.container_id, &owner.ifname);
        if path.symlink_metadata().is_ok() {
            return Err(CniError::new(
                code::EXISTS,
                format!("container {} has an interface {} already", owner.container_id, owner.ifname),
            ));
        }
        self.marked(owner, |ledger| {
            let index = ledger.next_index(owner)?;
            let addresses = ledger.take(owner, wanted)?;
            let attachment = build(index, addresses);
            ledger.write(&attachment)?;
            Ok(attachment)
        })
    }

    /// Gives an attachment another interface index.
    ///
    /// # Errors
    /// Code 107 where there is none; 5.
    pub fn reindex(
        &mut self,
        attachment: Attachment,
        change: impl FnOnce(&mut Attachment, u32),
    ) -> Result<Attachment, CniError> {
        let owner = owner_of(&attachment);
        self.marked(&owner.clone(), |ledger| {
            let mut attachment = attachment;
            let old = slot_of(attachment.host_ifindex);
            change(&mut attachment, ledger.next_index(&owner)?);
            ledger.write(&attachment)?;
            remove(&ledger.slot_path(old)).context(|| "slots".to_owned())?;
            Ok(attachment)
        })
    }

    /// Writes what has become known of an attachment since it was claimed.
    ///
    /// # Errors
    /// Code 5.
    pub fn amend(&mut self, attachment: &Attachment) -> Result<(), CniError> {
        self.write(attachment)
    }

    /// Frees all that an owner has; its attachment goes last. Where there is none that can be read, it
    /// is looked for everywhere.
    ///
    /// # Errors
    /// Code 5; it can be asked again.
    pub fn release(&mut self, owner: &Owner) -> Result<(), CniError> {
        let time = now().context(|| "clock".to_owned())?;
        match Self::attachment(&self.run, owner) {
            Ok(Some(attachment)) => {
                for address in attachment.addresses {
                    fairlead_ipam::release(&mut self.disk, address, owner, time)
                        .context(|| address.to_string())?;
                }
                let slot = slot_of(attachment.host_ifindex);
                if self.slot(slot).is_some_and(|(_, holder)| holder == *owner) {
                    remove(&self.slot_path(slot)).context(|| "slots".to_owned())?;
                }
            }
            Ok(None) | Err(_) => {
                fairlead_ipam::reconcile(&mut self.disk, &[], |lease| lease.owner != *owner, time)
                    .context(|| "addresses".to_owned())?;
                self.free_slots(|holder, _| holder == owner)?;
            }
        }
        let path = self.run.endpoint(&owner.container_id, &owner.ifname);
        remove(&path).context(|| path.display().to_string())
    }

    /// Runs a change to what an owner has, under its mark; an error or a kill undoes what of it is
    /// not written down.
    fn marked<T>(
        &mut self,
        owner: &Owner,
        change: impl FnOnce(&mut Self) -> Result<T, CniError>,
    ) -> Result<T, CniError> {
        link(&format!("{} {}", owner.container_id, owner.ifname), &self.mark())
            .context(|| "busy".to_owned())?;
        let result = change(self);
        if result.is_err() {
            self.tidy(owner)?;
        }
        remove(&self.mark()).context(|| "busy".to_owned())?;
        result
    }

    fn mark(&self) -> PathBuf {
        self.run.ipam().join("busy")
    }

    fn recover(&mut self) -> Result<(), CniError> {
        let mark = self.mark();
        let target = match fs::read_link(&mark) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            // Something else than a link; reconcile frees what it was to tell of.
            Err(e) if e.kind() == ErrorKind::InvalidInput => PathBuf::new(),
            target => target.context(|| mark.display().to_string())?,
        };
        if let Some((container_id, ifname)) = target.to_string_lossy().split_once(' ') {
            self.tidy(&Owner { container_id: container_id.to_owned(), ifname: ifname.to_owned() })?;
        }
        remove(&mark).context(|| mark.display().to_string())
    }

    /// Frees what an owner has beyond what its attachment says.
    fn tidy(&mut self, owner: &Owner) -> Result<(), CniError> {
        let Ok(attachment) = Self::attachment(&self.run, owner) else {
            // Unreadable: DEL and reconcile see to it.
            return Ok(());
        };
        let addresses = attachment.as_ref().map(|a| a.addresses.clone()).unwrap_or_default();
        let time = now().context(|| "clock".to_owned())?;
        let holds = |lease: &Lease| lease.owner != *owner || addresses.contains(&lease.address);
        fairlead_ipam::reconcile(&mut self.disk, &[], holds, time).context(|| "addresses".to_owned())?;
        let index = attachment.map(|a| a.host_ifindex);
        self.free_slots(|holder, held| holder == owner && Some(held) != index)
    }

    fn take(&mut self, owner: &Owner, wanted: &Wanted) -> Result<Vec<IpAddr>, CniError> {
        let (sets, asked) = match wanted {
            Wanted::Given(addresses) => return Ok(addresses.clone()),
            Wanted::OfSets { sets, asked } => (sets, asked),
        };
        if let Some(stray) = asked.iter().find(|a| !sets.iter().any(|set| set[0].is_ipv6() == a.is_ipv6())) {
            return Err(refused(Refused::Outside(*stray)));
        }
        let time = now().context(|| "clock".to_owned())?;
        sets.iter()
            .map(|set| {
                let lease = match asked.iter().find(|a| a.is_ipv6() == set[0].is_ipv6()) {
                    Some(address) => fairlead_ipam::reserve(&mut self.disk, set, *address, owner),
                    None => fairlead_ipam::allocate(&mut self.disk, set, owner, time),
                };
                lease.map(|lease| lease.address).map_err(refused)
            })
            .collect()
    }

    fn write(&self, attachment: &Attachment) -> Result<(), CniError> {
        let path = self.run.endpoint(&attachment.container_id, &attachment.ifname);
        let json = serde_json::to_vec_pretty(attachment)
            .map_err(|e| CniError::new(code::IO, format!("{}: {e}", path.display())))?;
        let new = self.run.ipam().join("attachment");
        fs::write(&new, json).context(|| new.display().to_string())?;
        let step = || fs::rename(&new, &path);
        let moved = match step() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(self.run.endpoints()).context(|| path.display().to_string())?;
                step()
            }
            moved => moved,
        };
        moved.context(|| path.display().to_string())
    }
}

fn refused(refused: Refused<io::Error>) -> CniError {
    let code = match &refused {
        Refused::Exhausted(_) => code::EXHAUSTED,
        Refused::InUse { .. } => code::ADDRESS_IN_USE,
        Refused::Outside(_) => code::CONFIGURATION,
        Refused::Store(_) => code::IO,
    };
    CniError::new(code, refused.to_string())
}
