//! What is reserved on this node, and whether attachments, reservations and kernel agree.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_api::{Attachment, RunDir};
use fairlead_common::maps::slot_of;
use fairlead_ipam::{Lease, Owner, Pool};
use netlink_packet_route::route::RouteHeader;
use serde::Serialize;

use crate::check;
use crate::error::{CniError, IoContext, code};
use crate::ledger::{self, Ledger, PoolUse, host_ifname, interface_name, owner_of};
use crate::netlink::Netlink;

/// What is reserved.
#[derive(Clone, Debug, Serialize)]
pub struct Reserved {
    /// Addresses, in order.
    pub addresses: Vec<Address>,
    /// The pools that they are of.
    pub pools: Vec<PoolUse>,
    /// Whatever does not agree; empty where everything does.
    pub faults: Vec<String>,
}

/// A reserved address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Pool that it is of; `None` where another plugin manages it.
    pub pool: Option<String>,
    /// CNI_CONTAINERID of who holds it.
    pub container_id: String,
    /// CNI_IFNAME of who holds it.
    pub ifname: String,
    /// NAMESPACE/NAME of the pod, where it is one.
    pub pod: Option<String>,
    /// The host's end, where there is an attachment.
    pub host_ifname: Option<String>,
}

/// Reads all of it, under the ledger's lock.
///
/// # Errors
/// Code 5 where the run directory is not there or cannot be used, 104 where the kernel does not answer.
pub fn audit(run: &RunDir) -> Result<Reserved, CniError> {
    if !run.path().is_dir() {
        return Err(CniError::new(code::IO, format!("there is no {}", run.path().display())));
    }
    let ledger = Ledger::lock(run)?;
    let (mut attachments, unreadable) = ledger.attachments()?;
    attachments.sort_by_key(owner_of);
    let leases = ledger.leases()?;
    let mut faults: Vec<String> =
        unreadable.iter().map(|u| format!("attachment {}: {}", u.owner, u.why)).collect();
    faults.extend(ledger.unreadable()?.iter().map(|entry| format!("{entry} cannot be read")));
    let excused: BTreeSet<&Owner> = unreadable.iter().map(|u| &u.owner).collect();
    let own = ledger::read_node(run).ok().and_then(|n| ledger::node_pools(&n, &[]).ok()).unwrap_or_default();
    reservations(&attachments, &leases, &excused, &own.concat(), &mut faults);
    slots(&attachments, &ledger.slots()?, &excused, &mut faults);
    kernel(&attachments, &excused, &mut faults)?;
    faults.sort();
    Ok(Reserved { addresses: addresses(&attachments, &leases), pools: ledger.pools()?, faults })
}

fn addresses(attachments: &[Attachment], leases: &[Lease]) -> Vec<Address> {
    let of = |owner: &Owner, address: IpAddr, pool: Option<String>| {
        let attachment = attachments.iter().find(|a| owner_of(a) == *owner);
        Address {
            address,
            pool,
            container_id: owner.container_id.clone(),
            ifname: owner.ifname.clone(),
            pod: attachment.and_then(|a| a.pod.as_ref()).map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            host_ifname: attachment.map(|a| a.host_ifname.clone()),
        }
    };
    let ours = leases.iter().map(|lease| of(&lease.owner, lease.address, Some(lease.pool.clone())));
    let elsewhere = attachments.iter().flat_map(|a| {
        let others = a.addresses.iter().filter(|ip| !leases.iter().any(|l| l.address == **ip));
        others.map(|ip| of(&owner_of(a), *ip, None)).collect::<Vec<_>>()
    });
    let mut all: Vec<Address> = ours.chain(elsewhere).collect();
    all.sort();
    all
}

/// Attachments and addresses, both ways.
fn reservations(
    attachments: &[Attachment],
    leases: &[Lease],
    excused: &BTreeSet<&Owner>,
    own: &[Pool],
    faults: &mut Vec<String>,
) {
    let mut holders: BTreeMap<IpAddr, Owner> = BTreeMap::new();
    for a in attachments {
        let owner = owner_of(a);
        let held = |ip: &IpAddr| leases.iter().find(|l| l.address == *ip);
        // Another plugin's addresses are reserved there.
        let built_in = a.addresses.iter().any(|ip| {
            held(ip).is_some_and(|l| l.owner == owner) || own.iter().any(|pool| pool.position(*ip).is_some())
        });
        for ip in &a.addresses {
            match held(ip) {
                Some(lease) if lease.owner != owner => {
                    faults.push(format!("{ip} of {owner} is reserved for {}", lease.owner));
                }
                None if built_in => faults.push(format!("{ip} of {owner} is not reserved")),
                _ => {}
            }
            if let Some(other) = holders.insert(*ip, owner.clone()) {
                faults.push(format!("{ip} belongs to {other} and to {owner}"));
            }
        }
    }
    for lease in leases {
        let attached =
            attachments.iter().any(|a| owner_of(a) == lease.owner && a.addresses.contains(&lease.address));
        if !attached && !excused.contains(&lease.owner) {
            faults.push(format!(
                "{} is reserved for {}, which has no such address",
                lease.address, lease.owner
            ));
        }
    }
}

fn slots(
    attachments: &[Attachment],
    slots: &[(u32, u32, Owner)],
    excused: &BTreeSet<&Owner>,
    faults: &mut Vec<String>,
) {
    for a in attachments {
        let (owner, slot) = (owner_of(a), slot_of(a.host_ifindex));
        if !slots.iter().any(|(s, index, o)| *s == slot && *index == a.host_ifindex && *o == owner) {
            faults.push(format!("slot {slot} of {owner} is not reserved"));
        }
    }
    for (slot, index, owner) in slots {
        let attached = attachments.iter().any(|a| owner_of(a) == *owner && a.host_ifindex == *index);
        if !attached && !excused.contains(owner) {
            faults.push(format!("slot {slot} is reserved for {owner}, which has another or none"));
        }
    }
}

/// Interfaces and host routes.
fn kernel(
    attachments: &[Attachment],
    excused: &BTreeSet<&Owner>,
    faults: &mut Vec<String>,
) -> Result<(), CniError> {
    let told = |e: std::io::Error| CniError::new(code::KERNEL, e.to_string());
    let routes = check::all_routes(&mut Netlink::open().map_err(told)?, RouteHeader::RT_TABLE_MAIN.into())
        .map_err(told)?;
    let mut known: BTreeSet<String> = excused.iter().map(|owner| host_ifname(owner)).collect();
    for a in attachments {
        known.insert(a.host_ifname.clone());
        let owner = owner_of(a);
        match interface_name(a.host_ifindex) {
            Some(name) if name == a.host_ifname => {}
            Some(name) => {
                faults.push(format!(
                    "interface {} of {owner} is {name}, not {}",
                    a.host_ifindex, a.host_ifname
                ));
                continue;
            }
            None => {
                faults.push(format!("{owner} has no interface {}", a.host_ifname));
                continue;
            }
        }
        for ip in &a.addresses {
            if !routes.contains(&(a.host_ifindex, Some(*ip), None)) {
                faults.push(format!("there is no route to {ip} over {}", a.host_ifname));
            }
        }
    }
    let all =
        nix::net::if_::if_nameindex().map_err(std::io::Error::from).context(|| "interfaces".to_owned())?;
    for interface in &all {
        let name = interface.name().to_string_lossy();
        if ledger::is_host_ifname(&name) && !known.contains(&*name) {
            faults.push(format!("interface {name} belongs to no attachment"));
        }
    }
    Ok(())
}
