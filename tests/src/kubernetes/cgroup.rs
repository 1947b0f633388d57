//! A node's part of the machine's control groups.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const ROOT: &str = "/sys/fs/cgroup";
/// Names of those that tests make begin so; the process that made it follows.
const PREFIX: &str = "fairlead-test-";
/// Time that the kernel may take to let go of processes that were killed.
const GONE: Duration = Duration::from_secs(20);

/// A control group in every hierarchy; removed when dropped, with all that is below.
#[derive(Debug)]
pub(super) struct Cgroup {
    name: String,
}

impl Cgroup {
    /// Makes one, and removes those of processes that are gone.
    pub(super) fn new(node: &str) -> Result<Self> {
        for hierarchy in hierarchies()? {
            for entry in fs::read_dir(&hierarchy)?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
                if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                    // Somebody else may be removing it too.
                    let _ = remove(&entry.path());
                }
            }
        }
        let cgroup = Self { name: format!("{PREFIX}{}-{node}", std::process::id()) };
        for hierarchy in hierarchies()? {
            let path = hierarchy.join(&cgroup.name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
            // In version 1 nothing may run in a cpuset that does not say where.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read_to_string(hierarchy.join(file)) {
                    fs::write(path.join(file), value.trim()).with_context(|| format!("{file}: {value:?}"))?;
                }
            }
        }
        Ok(cgroup)
    }

    /// Its path from the root of each hierarchy.
    pub(super) fn path(&self) -> String {
        format!("/{}", self.name)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let start = Instant::now();
        for hierarchy in hierarchies().unwrap_or_default() {
            let path = hierarchy.join(&self.name);
            // Its processes have been killed, and may not be gone yet.
            while remove(&path).is_err() && start.elapsed() < GONE {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Roots of all hierarchies: one in version 2, one for each controller in version 1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let mut roots = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        if let (Some(path), Some("cgroup" | "cgroup2")) = (words.next(), words.next())
            && path.starts_with(ROOT)
        {
            roots.push(PathBuf::from(path));
        }
    }
    Ok(roots)
}

/// Removes a control group and all below it: files of it cannot be removed, and go with it.
fn remove(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
