//! Scanning a directory whenever it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::Directory;
use crate::object::Event;

/// Changes that follow each other within this time belong together; but a file that arrives whole after a
/// rest of this length is taken at once.
const QUIET: Duration = Duration::from_millis(15);
/// Longest wait for changes to end.
const BUSY: Duration = Duration::from_millis(250);
/// Longest wait for a file that is being written to be closed.
const OPEN: Duration = Duration::from_secs(1);
/// Something may change without a notification: on network file systems, behind chains of symlinks.
const REGULARLY: Duration = Duration::from_secs(5);

struct Watches {
    inotify: AsyncFd<Fd>,
    /// Watched folders.
    folders: BTreeMap<PathBuf, WatchDescriptor>,
    /// Files that were written to and not closed since.
    open: BTreeSet<(i32, Option<OsString>)>,
    /// What has changed since the last scan.
    changed: Changed,
    /// When the last scan was asked for.
    scanned: Instant,
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Changed {
    /// Nothing that counts.
    Nothing,
    /// Files have come, or come again, whole: renamed here, or written and closed.
    Whole,
    /// Something that may be half of a change: a file that goes may be about to come again.
    Part,
}

/// Owns the descriptor for as long as the reactor watches it.
struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Watches {
    #[expect(
        deprecated,
        reason = "its successor is unsafe; the descriptor stays the same while it is watched"
    )]
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let inotify = AsyncFd::with_interest(Fd(inotify), Interest::READABLE)?;
        Ok(Self {
            inotify,
            folders: BTreeMap::new(),
            open: BTreeSet::new(),
            changed: Changed::Nothing,
            scanned: Instant::now(),
        })
    }

    /// Watches these folders and no others. Those that cannot be watched are scanned regularly.
    fn set(&mut self, wanted: BTreeSet<PathBuf>) {
        let mask = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let inotify = &self.inotify.get_ref().0;
        self.folders.retain(|folder, watch| {
            let keep = wanted.contains(folder);
            if !keep {
                // An error says that the kernel has dropped it already.
                let _ = inotify.rm_watch(*watch);
            }
            keep
        });
        for folder in wanted {
            if let std::collections::btree_map::Entry::Vacant(entry) = self.folders.entry(folder) {
                match inotify.add_watch(entry.key(), mask) {
                    Ok(watch) => drop(entry.insert(watch)),
                    Err(e) => tracing::debug!(folder = %entry.key().display(), "not watched: {e}"),
                }
            }
        }
    }

    fn note(&mut self, event: InotifyEvent) {
        let file = (event.wd.as_raw(), event.name);
        // Hidden files are not read. One that is removed, or renamed to, may be what symlinks lead through.
        let hidden = file.1.as_ref().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let changed = if event.mask.contains(AddWatchFlags::IN_MOVED_TO) {
            Changed::Whole
        } else if hidden && !event.mask.contains(AddWatchFlags::IN_DELETE) {
            Changed::Nothing
        } else if event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE) {
            Changed::Whole
        } else if event.mask.contains(AddWatchFlags::IN_MODIFY) {
            // It counts when it is closed.
            Changed::Nothing
        } else {
            Changed::Part
        };
        self.changed = self.changed.max(changed);
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.folders.retain(|_, watch| *watch != event.wd);
            self.open.retain(|(watch, _)| *watch != file.0);
        } else if event.mask.contains(AddWatchFlags::IN_MODIFY) && !hidden {
            self.open.insert(file);
        } else if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.open.clear();
        } else if event
            .mask
            .intersects(AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVE | AddWatchFlags::IN_DELETE)
        {
            self.open.remove(&file);
        }
    }

    /// Takes the events that are there, waiting for the first.
    async fn take(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.inotify.readable().await?;
            let result = guard.get_inner().0.read_events();
            if matches!(result, Err(Errno::EAGAIN)) {
                guard.clear_ready();
                continue;
            }
            drop(guard);
            for event in result? {
                self.note(event);
            }
            return Ok(());
        }
    }

    /// Returns when something has changed and has come to rest, or after [`REGULARLY`].
    async fn changed(&mut self) -> io::Result<()> {
        self.changed = Changed::Nothing;
        let regularly = Instant::now() + REGULARLY;
        while self.changed == Changed::Nothing && self.open.is_empty() {
            match timeout_at(regularly, self.take()).await {
                Err(_) => break,
                Ok(result) => result?,
            }
        }
        let started = Instant::now();
        let rested = self.scanned.elapsed() >= QUIET;
        while self.changed != Changed::Nothing || !self.open.is_empty() {
            let until = if !self.open.is_empty() {
                started + OPEN
            } else if rested && self.changed == Changed::Whole {
                break;
            } else {
                (Instant::now() + QUIET).min(started + BUSY)
            };
            match timeout_at(until, self.take()).await {
                Err(_) => {
                    self.open.clear();
                    break;
                }
                Ok(result) => result?,
            }
        }
        self.scanned = Instant::now();
        Ok(())
    }
}

/// Watches a directory for ever; ends when `tell` says that nobody listens any more (`false`).
///
/// # Errors
/// Where inotify is not to be had.
pub async fn watch(directory: Directory, mut tell: impl FnMut(Event) -> bool) -> io::Result<()> {
    let mut directory = Some(directory);
    let mut watches = Watches::new()?;
    let mut synced = false;
    loop {
        let Some(mut scanned) = directory.take() else { return Ok(()) };
        // Watched before it is read, so that no change falls between.
        let mut folders = scanned.outside().clone();
        folders.insert(scanned.path().to_owned());
        let watched_before = folders.clone();
        watches.set(folders);
        let (scanned, result) = tokio::task::spawn_blocking(move || {
            let result = scanned.scan();
            (scanned, result)
        })
        .await
        .map_err(io::Error::other)?;
        let scanned = directory.insert(scanned);
        let mut folders = scanned.outside().clone();
        folders.insert(scanned.path().to_owned());
        let outside_changed = folders != watched_before;
        let (batch, complete) = match result {
            Ok(batch) => (batch, true),
            Err(_) => (scanned.take(), false),
        };
        if let Some(batch) = batch
            && !tell(Event::Batch(batch))
        {
            return Ok(());
        }
        if outside_changed {
            // What symlinks lead to was not watched while it was read: look again.
            continue;
        }
        if complete && !synced {
            synced = true;
            if !tell(Event::Synced) {
                return Ok(());
            }
        }
        watches.changed().await?;
    }
}
