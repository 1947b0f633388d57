//! Executables for the container runtime.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What the runtime calls.
pub const PLUGIN: &str = "fairlead-cni";

/// Copies the plugin from one folder to another, so that whoever runs it meanwhile runs the old one or
/// the new one, whole; returns whether that changed anything.
///
/// # Errors
/// Where a file cannot be read or written; the one that was there is then still there.
pub fn install(from: &Path, to: &Path) -> io::Result<bool> {
    let content = fs::read(from.join(PLUGIN))?;
    let path = to.join(PLUGIN);
    let runnable = |m: fs::Metadata| m.permissions().mode() & 0o777 == 0o755;
    if fs::read(&path).is_ok_and(|there| there == content) && fs::metadata(&path).is_ok_and(runnable) {
        return Ok(false);
    }
    // Hidden, so that nothing takes it for a plugin before it is whole.
    let new = to.join(format!(".{PLUGIN}.new"));
    // Left by a process that was killed, perhaps while it was being run.
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::write(&new, content)?;
    fs::set_permissions(&new, Permissions::from_mode(0o755))?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, &path)?;
    // The rename itself must outlast a power cut, before a configuration names the plugin.
    File::open(to)?.sync_all()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_replaced_whole_and_only_where_it_differs() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(install(from.path(), to.path()).is_err());
        fs::write(from.path().join(PLUGIN), "new").unwrap();
        fs::write(to.path().join(PLUGIN), "old").unwrap();
        fs::write(to.path().join(".fairlead-cni.new"), "half").unwrap();
        let old = File::open(to.path().join(PLUGIN)).unwrap();
        assert!(install(from.path(), to.path()).unwrap());
        let path = to.path().join(PLUGIN);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        // Whoever runs the old one goes on with it.
        assert_eq!(io::read_to_string(old).unwrap(), "old");
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
        assert!(!install(from.path(), to.path()).unwrap());
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(install(from.path(), to.path()).unwrap());
    }
}
