//! Reading a directory of manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::num::NonZero;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use super::Catalogue;
use super::catalogue::File;
use crate::object::Batch;

/// Longest file that is read, in bytes.
pub const LONGEST_FILE: u64 = 4 << 20;

/// A file that changed this recently may change again without its time of change telling so.
const RACY: Duration = Duration::from_secs(2);

/// What tells whether a file may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn is_racy(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(self.changed.0.max(self.modified.0).unsigned_abs());
        now.saturating_sub(RACY) <= changed
    }
}

/// A directory of manifests.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    catalogue: Catalogue,
    seen: BTreeMap<String, Option<Fingerprint>>,
    /// Folders outside that symlinks lead into.
    outside: BTreeSet<PathBuf>,
}

impl Directory {
    /// A directory that nothing has been read of.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            catalogue: Catalogue::default(),
            seen: BTreeMap::new(),
            outside: BTreeSet::new(),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folders in which files lie that symlinks in the directory lead to, as of the last scan.
    pub fn outside(&self) -> &BTreeSet<PathBuf> {
        &self.outside
    }

    /// Reads what may have changed; `None` where nothing has. Whatever several files say takes effect
    /// together.
    ///
    /// # Errors
    /// Where the directory itself cannot be read: what was read before stays as it is, and the batch
    /// that reports this comes from the next [`Self::take`].
    pub fn scan(&mut self) -> io::Result<Option<Batch>> {
        let names = match manifest_names(&self.path) {
            Ok(names) => names,
            Err(e) => {
                let message =
                    format!("directory {}: {e}; what it defined before stays in force", self.path.display());
                self.catalogue.set_problem(Some(message));
                return Err(e);
            }
        };
        self.catalogue.set_problem(None);
        self.outside.clear();
        let gone: Vec<String> = self.seen.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            self.seen.remove(&name);
            self.catalogue.remove_file(&name);
        }
        let mut changed = Vec::new();
        for name in names {
            let path = self.path.join(&name);
            if fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink())
                && let Ok(target) = fs::canonicalize(&path)
                && let Some(folder) = target.parent()
            {
                self.outside.insert(folder.to_owned());
            }
            if self.may_have_changed(&name, &path) {
                changed.push(name);
            }
        }
        for (name, read) in read_all(&self.path, &changed) {
            self.set(name, read);
        }
        Ok(self.catalogue.take())
    }

    /// What the last scans found and nobody took yet.
    pub fn take(&mut self) -> Option<Batch> {
        self.catalogue.take()
    }

    fn may_have_changed(&self, name: &str, path: &Path) -> bool {
        let before = self.seen.get(name).copied().flatten();
        let same = |before: Fingerprint| {
            fs::metadata(path).is_ok_and(|now| before == Fingerprint::of(&now)) && !before.is_racy()
        };
        !before.is_some_and(same)
    }

    fn set(&mut self, name: &str, read: io::Result<(Fingerprint, File)>) {
        match read {
            Ok((fingerprint, file)) => {
                self.seen.insert(name.to_owned(), Some(fingerprint));
                self.catalogue.put_file(name, file);
            }
            Err(e)
                if e.kind() == io::ErrorKind::NotFound
                    && fs::symlink_metadata(self.path.join(name)).is_err() =>
            {
                // Removed between listing and reading.
                self.seen.remove(name);
                self.catalogue.remove_file(name);
            }
            Err(e) => {
                self.seen.insert(name.to_owned(), None);
                self.catalogue.set_unreadable(name, &e.to_string());
            }
        }
    }
}

/// Reads files of a folder, on as many threads as there are processors: of a large cluster's manifests that takes most of
/// an agent's start. Each comes with its name, in that order.
fn read_all<'a>(folder: &Path, names: &'a [String]) -> BTreeMap<&'a str, io::Result<(Fingerprint, File)>> {
    let next = AtomicUsize::new(0);
    let read = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let file = read_file(&folder.join(name)).map(|(print, text)| (print, File::read(name, &text)));
            read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.as_str(), file);
        }
    };
    // To ask for it reads files of control groups, which takes longer than one manifest.
    let processors = || thread::available_parallelism().map_or(1, NonZero::get);
    let threads = if names.len() > 1 { processors().min(names.len()) } else { 1 };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without it the others do its part.
            let _ = thread::Builder::new().name("reading".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
    read.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn manifest_names(path: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(path)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let wanted = [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
        if wanted && !name.starts_with('.') {
            names.insert(name);
        }
    }
    Ok(names)
}

fn read_file(path: &Path) -> io::Result<(Fingerprint, String)> {
    // Not to be caught by a FIFO that nobody writes to.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    let mut bytes = Vec::new();
    (&file).take(LONGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST_FILE {
        return Err(io::Error::other(format!("is longer than {} MiB", LONGEST_FILE >> 20)));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        io::Error::other(format!("is not UTF-8 text (at byte {})", e.utf8_error().valid_up_to()))
    })?;
    Ok((Fingerprint::of(&before), text))
}
