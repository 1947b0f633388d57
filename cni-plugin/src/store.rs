//! The allocator's store in `RUN/ipam`: one symbolic link to an address.
//!
//! ```text
//! ipam/used/10.244.1.5              -> "10.244.1.5 POOL POSITION CONTAINER IFNAME"   reserved
//! ipam/pools/POOL/resting/7         -> the same, of its last owner                  resting
//! ipam/pools/POOL/ahead/10.244.1.9  -> the same                                     ahead
//! ipam/pools/POOL/state                                                            numbers
//! ```
//!
//! A symbolic link comes into being with its content, or not at all, and moves from one of these
//! places to another by one `rename`; so a kill at any instruction leaves each address in one place,
//! whole. `ls -l` shows who has what. The time of a release is the link's modification time, on the
//! clock that counts from boot.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fairlead_ipam::{Lease, Owner, Resting, State, Store};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::{TimeSpec, TimeValLike};

/// Reserved addresses on disk. Who uses it holds the [ledger's](crate::ledger::Ledger) lock.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
}

/// Time since boot, suspended or not.
pub fn now() -> io::Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    Ok(Duration::new(time.tv_sec().unsigned_abs(), u32::try_from(time.tv_nsec()).unwrap_or(0)))
}

fn told(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

/// `None` where there is nothing.
pub(crate) fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Names in a folder; none where there is no folder.
pub(crate) fn entries(folder: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = there(fs::read_dir(folder)).map_err(told(folder))? else { return Ok(Vec::new()) };
    entries.map(|e| Ok(e.map_err(told(folder))?.file_name().to_string_lossy().into_owned())).collect()
}

/// Makes a symbolic link; `false` if there is something of that name. Makes the folder if need be.
pub(crate) fn link(target: &str, path: &Path) -> io::Result<bool> {
    match symlink(target, path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(told(folder))?;
            }
            match symlink(target, path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
                result => result.map(|()| true).map_err(told(path)),
            }
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        result => result.map(|()| true).map_err(told(path)),
    }
}

/// Removes a file that may not be there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    there(fs::remove_file(path)).map(drop).map_err(told(path))
}

/// Removes a folder that may not be there, with all that is in it.
pub(crate) fn remove_all(folder: &Path) -> io::Result<()> {
    there(fs::remove_dir_all(folder)).map(drop).map_err(told(folder))
}

/// Moves a file; `false` if there is something of the new name.
fn shift(from: &Path, to: &Path) -> io::Result<bool> {
    let step =
        || renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE).map_err(io::Error::from);
    let result = match (step(), to.parent()) {
        (Err(e), Some(folder)) if e.kind() == ErrorKind::NotFound && from.symlink_metadata().is_ok() => {
            fs::create_dir_all(folder).map_err(told(folder))?;
            step()
        }
        (result, _) => result,
    };
    match result {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        result => result.map(|()| true).map_err(told(from)),
    }
}

fn stamp(path: &Path, time: Duration) -> io::Result<()> {
    let time = TimeSpec::nanoseconds(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
    utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(|e| told(path)(e.into()))
}

fn stamped(path: &Path) -> io::Result<Option<Duration>> {
    let Some(metadata) = there(path.symlink_metadata()).map_err(told(path))? else { return Ok(None) };
    let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    Ok(Some(Duration::new(metadata.mtime().unsigned_abs(), nanoseconds)))
}

fn write_lease(lease: &Lease) -> String {
    let Lease { address, pool, position, owner } = lease;
    format!("{address} {pool} {position} {} {}", owner.container_id, owner.ifname)
}

/// What is at a place.
enum Entry {
    Nothing,
    Lease(Lease),
    /// Something that no plugin has left there.
    Unreadable,
}

fn read(path: &Path) -> io::Result<Entry> {
    let target = match fs::read_link(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Entry::Nothing),
        Err(e) if e.kind() == ErrorKind::InvalidInput => return Ok(Entry::Unreadable),
        target => target.map_err(told(path))?,
    };
    let text = target.to_string_lossy();
    let mut words = text.split(' ');
    let mut word = || words.next().filter(|w| !w.is_empty());
    let lease = (|| {
        Some(Lease {
            address: word()?.parse().ok()?,
            pool: word()?.to_owned(),
            position: word()?.parse().ok()?,
            owner: Owner { container_id: word()?.to_owned(), ifname: word()?.to_owned() },
        })
    })();
    Ok(lease.map_or(Entry::Unreadable, Entry::Lease))
}

/// The lease at a place, where there is one that can be read.
fn read_lease(path: &Path) -> io::Result<Option<Lease>> {
    Ok(match read(path)? {
        Entry::Lease(lease) => Some(lease),
        Entry::Nothing | Entry::Unreadable => None,
    })
}

/// Entries that cannot be read.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    /// Names in `used`.
    pub(crate) used: Vec<String>,
    /// Pools, and names in their `resting`.
    pub(crate) resting: Vec<(String, String)>,
}

impl Broken {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.used.is_empty() && self.resting.is_empty()
    }
}

impl Disk {
    /// The store in a folder, which need not exist.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn used(&self, address: IpAddr) -> PathBuf {
        self.folder.join("used").join(address.to_string())
    }
    fn pool(&self, pool: &str) -> PathBuf {
        self.folder.join("pools").join(pool)
    }
    fn numbered(&self, pool: &str, number: u64) -> PathBuf {
        self.pool(pool).join("resting").join(number.to_string())
    }
    fn ahead_of(&self, pool: &str, address: IpAddr) -> PathBuf {
        self.pool(pool).join("ahead").join(address.to_string())
    }

    /// Gives the link at `from` the new lease, without leaving its place, and then moves it into use.
    fn bring_into_use(&mut self, from: &Path, lease: &Lease) -> io::Result<bool> {
        let since = stamped(from)?.unwrap_or_default();
        let new = self.folder.join("new");
        remove(&new)?;
        link(&write_lease(lease), &new)?;
        stamp(&new, since)?;
        fs::rename(&new, from).map_err(told(from))?;
        let done = shift(from, &self.used(lease.address))?;
        if !done {
            remove(from)?;
        }
        Ok(done)
    }

    /// What cannot be read. Nobody is given such an address, and nobody loses one, until it is mended.
    pub(crate) fn unreadable(&self) -> io::Result<Broken> {
        let mut broken = Broken::default();
        let unreadable = |path: &Path| Ok::<_, io::Error>(matches!(read(path)?, Entry::Unreadable));
        let used = self.folder.join("used");
        for name in entries(&used)? {
            let parsed = name.parse::<IpAddr>().is_ok();
            if !parsed || unreadable(&used.join(&name))? {
                broken.used.push(name);
            }
        }
        for pool in self.pools()? {
            let resting = self.pool(&pool).join("resting");
            for name in entries(&resting)? {
                let parsed = name.parse::<u64>().is_ok();
                if !parsed || unreadable(&resting.join(&name))? {
                    broken.resting.push((pool.clone(), name));
                }
            }
        }
        Ok(broken)
    }

    /// Writes the lease of an address in use anew.
    pub(crate) fn rewrite(&mut self, lease: &Lease) -> io::Result<()> {
        let (new, used) = (self.folder.join("new"), self.used(lease.address));
        remove(&new)?;
        link(&write_lease(lease), &new)?;
        fs::rename(&new, &used).map_err(told(&used))
    }

    /// Makes a pool's order begin anew.
    pub(crate) fn restart(&mut self, pool: &str) -> io::Result<()> {
        remove(&self.pool(pool).join("state"))
    }

    /// Removes what [`unreadable`](Self::unreadable) has found in `used`.
    pub(crate) fn discard_used(&mut self, name: &str) -> io::Result<()> {
        remove(&self.folder.join("used").join(name))
    }

    /// Removes what [`unreadable`](Self::unreadable) has found resting.
    pub(crate) fn discard_resting(&mut self, pool: &str, name: &str) -> io::Result<()> {
        remove(&self.pool(pool).join("resting").join(name))
    }

    /// Names of the pools that anything is stored for.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn pools(&self) -> io::Result<Vec<String>> {
        entries(&self.folder.join("pools"))
    }
}

const STATE_WORDS: usize = 5;

fn checksum(words: &[u64]) -> u64 {
    words.iter().fold(0x6661_6972_6c65_6164, |sum: u64, w| sum.rotate_left(7).wrapping_mul(31) ^ w)
}

impl Store for Disk {
    type Error = io::Error;

    fn state(&self, pool: &str) -> io::Result<Option<State>> {
        let path = self.pool(pool).join("state");
        let Some(bytes) = there(fs::read(&path)).map_err(told(&path))? else { return Ok(None) };
        let words: Vec<u64> =
            bytes.chunks_exact(8).filter_map(|c| Some(u64::from_le_bytes(c.try_into().ok()?))).collect();
        match words[..] {
            [fresh, head, tail, early, sum] if sum == checksum(&words[..4]) && head <= tail => {
                Ok(Some(State { fresh, head, tail, early }))
            }
            _ => Ok(None),
        }
    }

    fn set_state(&mut self, pool: &str, state: &State) -> io::Result<()> {
        let path = self.pool(pool).join("state");
        let mut words = vec![state.fresh, state.head, state.tail, state.early];
        words.push(checksum(&words));
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        debug_assert_eq!(bytes.len(), STATE_WORDS * 8);
        let open = || fs::File::options().write(true).create(true).truncate(false).open(&path);
        let file = match open() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // All folders now: a release must not fail because the file system is full.
                for folder in ["resting", "ahead"] {
                    fs::create_dir_all(self.pool(pool).join(folder)).map_err(told(&path))?;
                }
                open()
            }
            file => file,
        };
        file.and_then(|f| f.write_all_at(&bytes, 0)).map_err(told(&path))
    }

    fn lease(&self, address: IpAddr) -> io::Result<Option<Lease>> {
        Ok(match read(&self.used(address))? {
            Entry::Nothing => None,
            Entry::Lease(lease) => Some(lease),
            // In use, but by nobody who could release it.
            Entry::Unreadable => {
                let owner = Owner { container_id: "(unreadable)".to_owned(), ifname: String::new() };
                Some(Lease { address, pool: String::new(), position: 0, owner })
            }
        })
    }

    fn leases(&self) -> io::Result<Vec<Lease>> {
        let folder = self.folder.join("used");
        let mut leases = Vec::new();
        for name in entries(&folder)? {
            leases.extend(read_lease(&folder.join(name))?);
        }
        Ok(leases)
    }

    fn take(&mut self, lease: &Lease) -> io::Result<bool> {
        link(&write_lease(lease), &self.used(lease.address))
    }

    fn rest(&mut self, lease: &Lease, number: u64, since: Duration) -> io::Result<bool> {
        let used = self.used(lease.address);
        stamp(&used, since)?;
        shift(&used, &self.numbered(&lease.pool, number))
    }

    fn resting(&self, pool: &str, number: u64) -> io::Result<Option<Resting>> {
        let path = self.numbered(pool, number);
        let Some(lease) = read_lease(&path)? else { return Ok(None) };
        Ok(stamped(&path)?.map(|since| Resting { address: lease.address, since }))
    }

    fn all_resting(&self, pool: &str) -> io::Result<BTreeMap<u64, Resting>> {
        let mut found = BTreeMap::new();
        for name in entries(&self.pool(pool).join("resting"))? {
            if let Ok(number) = name.parse()
                && let Some(resting) = self.resting(pool, number)?
            {
                found.insert(number, resting);
            }
        }
        Ok(found)
    }

    fn wake(&mut self, number: u64, lease: &Lease) -> io::Result<bool> {
        self.bring_into_use(&self.numbered(&lease.pool, number), lease)
    }

    fn forget(&mut self, pool: &str, number: u64) -> io::Result<()> {
        remove(&self.numbered(pool, number))
    }

    fn rest_ahead(&mut self, lease: &Lease, since: Duration) -> io::Result<()> {
        let used = self.used(lease.address);
        let ahead = self.ahead_of(&lease.pool, lease.address);
        stamp(&used, since)?;
        if !shift(&used, &ahead)? {
            fs::rename(&used, &ahead).map_err(told(&used))?;
        }
        Ok(())
    }

    fn ahead(&self, pool: &str, address: IpAddr) -> io::Result<Option<Duration>> {
        stamped(&self.ahead_of(pool, address))
    }

    fn all_ahead(&self, pool: &str) -> io::Result<Vec<IpAddr>> {
        let names = entries(&self.pool(pool).join("ahead"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn wake_ahead(&mut self, lease: &Lease) -> io::Result<bool> {
        self.bring_into_use(&self.ahead_of(&lease.pool, lease.address), lease)
    }

    fn queue_ahead(&mut self, pool: &str, address: IpAddr, number: u64) -> io::Result<bool> {
        shift(&self.ahead_of(pool, address), &self.numbered(pool, number))
    }

    fn unqueue(&mut self, pool: &str, address: IpAddr, number: u64) -> io::Result<()> {
        let (from, to) = (self.numbered(pool, number), self.ahead_of(pool, address));
        if !shift(&from, &to)? {
            fs::rename(&from, &to).map_err(told(&from))?;
        }
        Ok(())
    }
}
