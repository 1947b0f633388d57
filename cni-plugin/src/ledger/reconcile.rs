//! What is on record against what is there: freed where nobody has it, mended where it cannot be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use fairlead_api::{Attachment, RunDir};
use fairlead_ipam::{Lease, Owner, Pool};
use netlink_packet_route::route::RouteHeader;
use nix::net::if_::if_nametoindex;

use super::{Ledger, Unreadable, host_ifname, interface_name, node_pools, owner_of, read_node};
use crate::check::all_routes;
use crate::error::{CniError, IoContext, code};
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::store::{entries, link, now, remove, remove_all, there};

/// Changes whenever the machine starts.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What [`reconcile`] did.
#[derive(Clone, Debug, Default)]
pub struct Reconciled {
    /// Attachments of sandboxes that are gone: removed.
    pub removed: Vec<Attachment>,
    /// Addresses that belonged to no attachment: resting now.
    pub freed: Vec<Lease>,
    /// Attachments that cannot be read; what the kernel still has of them stays reserved.
    pub unreadable: Vec<Unreadable>,
    /// Other entries that could not be read, and what became of each.
    pub mended: Vec<String>,
}

/// Whether the interface of an attachment, or its namespace, is there, seen from this process.
pub fn sandbox_lives(attachment: &Attachment) -> bool {
    interface_name(attachment.host_ifindex).as_deref() == Some(attachment.host_ifname.as_str())
        || Netns::open(Path::new(&attachment.netns)).is_ok()
}

/// Frees what belongs to sandboxes that are gone, and what belongs to nobody. For the agent, before
/// it serves ADD.
///
/// `live` tells whether a sandbox may still be there; [`sandbox_lives`] where namespaces can be seen.
/// Of what was written down before the machine started nothing is.
///
/// # Errors
/// Code 5 where the run directory cannot be used; nothing that is merely broken in it is an error.
pub fn reconcile(run: &RunDir, live: impl Fn(&Attachment) -> bool) -> Result<Reconciled, CniError> {
    let mut ledger = Ledger::lock(run)?;
    let mut removed = ledger.forget_before_boot()?;
    for attachment in ledger.attachments()?.0 {
        if !live(&attachment) {
            ledger.release(&owner_of(&attachment))?;
            removed.push(attachment);
        }
    }
    let swept = ledger.sweep(|_| true)?;
    Ok(Reconciled { removed, ..swept })
}

/// Whether the host's end of an attachment is there, of which nothing but its owner is known.
fn wired(owner: &Owner) -> bool {
    if_nametoindex(host_ifname(owner).as_str()).is_ok()
}

impl Ledger {
    /// Frees addresses and slots that belong to no attachment, but for those whose interface is there
    /// nevertheless, and mends what cannot be read. An attachment that cannot be read is freed where its
    /// interface is gone and `stale` says that nobody wants it.
    ///
    /// # Errors
    /// Code 5 where the run directory cannot be used.
    pub fn sweep(&mut self, stale: impl Fn(&Owner) -> bool) -> Result<Reconciled, CniError> {
        let (attachments, unreadable) = self.attachments()?;
        let attachments: BTreeMap<Owner, Attachment> =
            attachments.into_iter().map(|a| (owner_of(&a), a)).collect();
        let mut broken = BTreeSet::new();
        for Unreadable { owner, .. } in &unreadable {
            if stale(owner) && !wired(owner) {
                self.release(owner)?;
            } else {
                broken.insert(owner.clone());
            }
        }
        let pools: Vec<Pool> = read_node(&self.run)
            .ok()
            .and_then(|node| node_pools(&node, &[]).ok())
            .map(|sets| sets.concat())
            .unwrap_or_default();
        let mended = self.mend(&attachments, &pools)?;
        let has = |owner: &Owner, holds: &dyn Fn(&Attachment) -> bool| match attachments.get(owner) {
            Some(attachment) => holds(attachment),
            None => broken.contains(owner) || wired(owner),
        };
        let time = now().context(|| "clock".to_owned())?;
        let held = |lease: &Lease| has(&lease.owner, &|a| a.addresses.contains(&lease.address));
        let freed = fairlead_ipam::reconcile(&mut self.disk, &pools, held, time)
            .context(|| "addresses".to_owned())?;
        self.free_slots(|owner, index| !has(owner, &|a| a.host_ifindex == index))?;
        Ok(Reconciled { removed: Vec::new(), freed, unreadable, mended })
    }

    /// Puts right what of the addresses cannot be read. One that an attachment or a route has stays
    /// reserved; one that nobody has goes back to its pool.
    fn mend(
        &mut self,
        attachments: &BTreeMap<Owner, Attachment>,
        pools: &[Pool],
    ) -> Result<Vec<String>, CniError> {
        let broken = self.disk.unreadable().context(|| "addresses".to_owned())?;
        let mut mended = Vec::new();
        if broken.is_empty() {
            return Ok(mended);
        }
        let routes = Netlink::open()
            .and_then(|mut netlink| all_routes(&mut netlink, RouteHeader::RT_TABLE_MAIN.into()))
            .map_err(|e| CniError::new(code::KERNEL, e.to_string()))?;
        let routed = |address: IpAddr| routes.iter().any(|(_, to, _)| *to == Some(address));
        for entry in broken.used {
            let address: Option<IpAddr> = entry.parse().ok();
            let holder = address.and_then(|ip| attachments.iter().find(|(_, a)| a.addresses.contains(&ip)));
            let place = address.and_then(|ip| pools.iter().find_map(|p| Some((p, p.position(ip)?))));
            let became = match (address, holder, place) {
                (Some(address), Some((owner, _)), Some((pool, position))) => {
                    let (pool, owner) = (pool.name().to_owned(), owner.clone());
                    let lease = Lease { address, pool, position, owner };
                    self.disk.rewrite(&lease).context(|| entry.clone())?;
                    format!("reserved for {}, which has it", lease.owner)
                }
                (Some(_), Some((owner, _)), None) => format!("left to {owner}, which has it"),
                (Some(address), None, _) if routed(address) => "left: a route leads to it".to_owned(),
                _ => {
                    // The order of every pool begins anew, and comes past it.
                    for pool in self.disk.pools().context(|| "pools".to_owned())? {
                        self.disk.restart(&pool).context(|| pool)?;
                    }
                    self.disk.discard_used(&entry).context(|| entry.clone())?;
                    "free again".to_owned()
                }
            };
            mended.push(format!("reservation {entry:?} could not be read: {became}"));
        }
        for (pool, entry) in broken.resting {
            self.disk.restart(&pool).context(|| pool.clone())?;
            self.disk.discard_resting(&pool, &entry).context(|| entry.clone())?;
            mended.push(format!("address {entry:?} that rests in {pool} could not be read: free again"));
        }
        Ok(mended)
    }

    /// Empties the ledger if it was written before the machine started: nothing of that is left, neither
    /// interfaces nor namespaces, and times of then mean nothing now. Says which attachments there were.
    fn forget_before_boot(&mut self) -> Result<Vec<Attachment>, CniError> {
        let path = self.run.ipam().join("boot");
        let boot = fs::read_to_string(BOOT_ID).context(|| BOOT_ID.to_owned())?;
        let boot = boot.trim();
        let then = there(fs::read_link(&path)).context(|| path.display().to_string())?;
        if then.as_deref() == Some(Path::new(boot)) {
            return Ok(Vec::new());
        }
        let mut before = Vec::new();
        if then.is_some() {
            before = self.attachments()?.0;
            for folder in ["used", "pools", "slots"] {
                remove_all(&self.run.ipam().join(folder)).context(|| folder.to_owned())?;
            }
            for file in ["ifindex", "new", "attachment"] {
                remove(&self.run.ipam().join(file)).context(|| file.to_owned())?;
            }
            for name in entries(&self.run.endpoints()).context(|| "endpoints".to_owned())? {
                remove(&self.run.endpoints().join(&name)).context(|| name)?;
            }
            // Last: who is killed before this begins once more.
            remove(&path).context(|| path.display().to_string())?;
        }
        link(boot, &path).context(|| path.display().to_string())?;
        Ok(before)
    }
}
