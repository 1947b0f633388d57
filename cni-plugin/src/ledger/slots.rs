//! Slots of endpoints, and the interface indexes that stand for them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use fairlead_common::maps::{SLOTS, ifindex_usable, slot_of};
use fairlead_ipam::Owner;

use super::Ledger;
use crate::error::{CniError, IoContext, code};
use crate::store::{entries, link, remove, there};

/// The first interface index that is given out; beyond those that the kernel chooses.
const FIRST_INDEX: u32 = 0x10000;
/// Endpoints that a node can have: each slot but those that no usable index falls into.
const ENDPOINTS: usize = SLOTS as usize - 2;

/// Name of the interface with this index in this thread's namespace.
pub fn interface_name(index: u32) -> Option<String> {
    // nix 0.31 takes the null pointer of a failure for success, and returns an empty name.
    let name = nix::net::if_::if_indextoname(index).ok().filter(|name| !name.is_empty())?;
    Some(name.to_string_lossy().into_owned())
}

impl Ledger {
    /// Whether one more endpoint has room.
    ///
    /// # Errors
    /// Code 5.
    pub fn has_slot(&self) -> Result<bool, CniError> {
        let taken = entries(&self.run.ipam().join("slots")).context(|| "slots".to_owned())?;
        Ok(taken.len() < ENDPOINTS)
    }

    pub(super) fn slot_path(&self, slot: u32) -> PathBuf {
        self.run.ipam().join("slots").join(slot.to_string())
    }

    /// Index and owner in a slot.
    pub(super) fn slot(&self, slot: u32) -> Option<(u32, Owner)> {
        let target = fs::read_link(self.slot_path(slot)).ok()?;
        let text = target.to_string_lossy();
        let mut words = text.split(' ');
        let index = words.next()?.parse().ok()?;
        let (container_id, ifname) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some((index, Owner { container_id, ifname }))
    }

    pub(super) fn free_slots(&mut self, free: impl Fn(&Owner, u32) -> bool) -> Result<(), CniError> {
        for name in entries(&self.run.ipam().join("slots")).context(|| "slots".to_owned())? {
            let Ok(number) = name.parse() else { continue };
            if self.slot(number).is_none_or(|(index, owner)| free(&owner, index)) {
                remove(&self.slot_path(number)).context(|| "slots".to_owned())?;
            }
        }
        Ok(())
    }

    /// Reserves the next index whose slot is free and that no interface has.
    pub(super) fn next_index(&mut self, owner: &Owner) -> Result<u32, CniError> {
        let path = self.run.ipam().join("ifindex");
        let mut last = match there(fs::read_to_string(&path)).context(|| path.display().to_string())? {
            Some(text) if let Ok(last) = text.trim().parse::<u32>() => last,
            _ => self.highest_index()?,
        };
        for _ in 0..2 * SLOTS {
            last = if last >= i32::MAX.cast_unsigned() - 1 { FIRST_INDEX } else { last + 1 };
            if !ifindex_usable(last) {
                continue;
            }
            let target = format!("{last} {} {}", owner.container_id, owner.ifname);
            if !link(&target, &self.slot_path(slot_of(last))).context(|| "slots".to_owned())? {
                continue;
            }
            // From here on it is never given again, whatever becomes of this claim.
            overwrite(&path, &format!("{last:010}\n")).context(|| path.display().to_string())?;
            if interface_name(last).is_none() {
                return Ok(last);
            }
            remove(&self.slot_path(slot_of(last))).context(|| "slots".to_owned())?;
        }
        Err(CniError::new(code::NO_SLOT, format!("all {ENDPOINTS} endpoints of this node are in use")))
    }

    /// Where the counter starts when it is not there: above all that is known.
    fn highest_index(&self) -> Result<u32, CniError> {
        let kernel = nix::net::if_::if_nameindex()
            .map_err(io::Error::from)
            .context(|| "interfaces".to_owned())?
            .iter()
            .map(|i| i.index())
            .max();
        let slots = entries(&self.run.ipam().join("slots")).context(|| "slots".to_owned())?;
        let slots = slots.iter().filter_map(|name| Some(self.slot(name.parse().ok()?)?.0)).max();
        let attachments = self.attachments()?.0.iter().map(|a| a.host_ifindex).max();
        Ok([kernel, slots, attachments].into_iter().flatten().max().unwrap_or(0).max(FIRST_INDEX - 1))
    }
}

/// Writes a file of fixed length in place, by one `pwrite`.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    File::options().write(true).create(true).truncate(false).open(path)?.write_all_at(text.as_bytes(), 0)
}
