//! What reserving and freeing addresses costs with few and with many in use.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use fairlead_api::{Attachment, Mac, RunDir};
use fairlead_cni::ledger::{Ledger, Wanted};
use fairlead_cni::store::{Disk, now};
use fairlead_ipam::{Owner, Pool};

use crate::report::{Figure, table};
use crate::stats::{Samples, ratio_told, ratios};

/// Addresses in use of each family.
const IN_USE: [usize; 2] = [10, 60_000];
const ROUNDS: usize = 500;

/// Microseconds, round by round, by [`IN_USE`].
#[derive(Default)]
pub(crate) struct Allocation([Vec<f64>; 2]);

fn pools() -> Result<Vec<Vec<Pool>>> {
    let pool = |cidr: &str| {
        Ok::<_, anyhow::Error>(vec![Pool::new(cidr.parse()?).map_err(|e| anyhow::anyhow!("{e}"))?])
    };
    Ok(vec![pool("10.0.0.0/16")?, pool("fd00:1::/64")?])
}

fn fill(run: &RunDir, sets: &[Vec<Pool>], count: usize) -> Result<()> {
    let mut disk = Disk::new(run.ipam());
    for i in 0..count {
        let owner = Owner { container_id: format!("old{i}"), ifname: "eth0".to_owned() };
        for set in sets {
            fairlead_ipam::allocate(&mut disk, set, &owner, now()?).map_err(|e| anyhow::anyhow!("{e}"))?;
        }
    }
    Ok(())
}

/// One dual-stack attachment claimed and released, as ADD and DEL do it.
fn once(run: &RunDir, sets: &[Vec<Pool>], number: usize) -> Result<f64> {
    let owner = Owner { container_id: format!("new{number}"), ifname: "eth0".to_owned() };
    let wanted = Wanted::OfSets { sets: sets.to_vec(), asked: Vec::new() };
    let attachment = |index: u32, addresses: Vec<IpAddr>| Attachment {
        network: "bench".to_owned(),
        container_id: owner.container_id.clone(),
        ifname: owner.ifname.clone(),
        netns: "/proc/self/ns/net".to_owned(),
        pod: None,
        host_ifname: "none".to_owned(),
        host_ifindex: index,
        host_mac: Mac([2, 0, 0, 0, 0, 1]),
        pod_mac: Mac([2, 0, 0, 0, 0, 2]),
        addresses,
        mtu: 1500,
        shaped: false,
        apart: false,
    };
    let failed = |e: fairlead_cni::error::CniError| anyhow::anyhow!("{}: {}", e.code, e.msg);
    let start = Instant::now();
    Ledger::lock(run).map_err(failed)?.claim(&owner, &wanted, attachment).map_err(failed)?;
    Ledger::lock(run).map_err(failed)?.release(&owner).map_err(failed)?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

/// Measures both, interleaved.
pub(crate) fn measure() -> Result<Allocation> {
    // A tmpfs, as /run is on a node.
    let shared = Path::new("/dev/shm");
    let folder = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
    let folder = folder.context("cannot make a folder")?;
    let sets = pools()?;
    let mut runs = Vec::new();
    for count in IN_USE {
        let run = RunDir(folder.path().join(count.to_string()));
        fill(&run, &sets, count)?;
        runs.push(run);
    }
    let mut allocation = Allocation::default();
    for round in 0..ROUNDS {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            allocation.0[which].push(once(&runs[which], &sets, round)?);
        }
    }
    Ok(allocation)
}

impl Allocation {
    /// Its numbers.
    pub(crate) fn figures(&self) -> Result<Vec<Figure>> {
        let [few, many] = &self.0;
        let few_us = Samples::new(few.clone())?.median();
        Ok(vec![
            Figure::new("cni.allocate.us", few_us, "us"),
            Figure::new("cni.allocate.60000_vs_10", ratios(many, few)?.median(), "ratio")
                .beside(format!("10 in use, {few_us:.0} us"))
                .at_most(1.10),
        ])
    }

    /// Its part of the document.
    pub(crate) fn text(&self) -> Result<String> {
        let [few, many] = &self.0;
        let row = vec![
            "claim and release".to_owned(),
            Samples::new(few.clone())?.told(0),
            Samples::new(many.clone())?.told(0),
            ratio_told(&ratios(many, few)?),
        ];
        let head = ["µs, dual-stack", "10 addresses in use", "60,000 addresses in use", "ratio"];
        Ok(format!(
            "What an attachment costs in the store of addresses, on a tmpfs:\n\n{}",
            table(&head, &[row])
        ))
    }
}
