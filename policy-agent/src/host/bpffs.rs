//! The BPF file system.

use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Mounts the BPF file system, unless it is there; returns whether it was not.
///
/// # Errors
/// Where the folder is missing, or the kernel refuses.
pub fn mount_bpffs(folder: &Path) -> io::Result<bool> {
    if statfs(folder)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(false);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), folder, Some("bpf"), flags, Some("mode=0700"))?;
    Ok(true)
}
