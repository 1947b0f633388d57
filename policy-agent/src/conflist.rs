//! What the agent leaves for the CNI plugin and the container runtime.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use fairlead_api::{CONFLIST, NETWORK, NodeInfo, RunDir};
use serde_json::json;

/// Writes a file so that whoever reads it finds the old or the new content, whole.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

fn pretty(value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    text.push(b'\n');
    Ok(text)
}

/// Writes `node.json`; returns whether it changed.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_node(run: &RunDir, node: &NodeInfo) -> io::Result<bool> {
    let text = pretty(node)?;
    if fs::read(run.node()).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    replace(&run.node(), &text)?;
    Ok(true)
}

/// Writes the CNI configuration, where it is not there yet as it should be.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_conflist(folder: &Path, run: &RunDir) -> io::Result<()> {
    let path = folder.join(CONFLIST);
    // Runtimes that know nothing newer than CNI 1.0.0 ignore `cniVersions`.
    let text = pretty(&json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": [{ "type": "fairlead-cni", "runDir": run.path() }],
    }))?;
    if !fs::read(&path).is_ok_and(|there| there == text) {
        replace(&path, &text)?;
    }
    // containerd misses files that appear by rename alone: a write on the final name wakes it.
    let file = File::options().append(true).open(&path)?;
    file.set_modified(std::time::SystemTime::now())?;
    file.set_len(text.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflist_names_the_run_directory_and_versions() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CONFLIST), "left over, and longer than what comes: ".repeat(50)).unwrap();
        let run = RunDir("/run/elsewhere".into());
        write_conflist(dir.path(), &run).unwrap();
        write_conflist(dir.path(), &run).unwrap();
        let text = fs::read(dir.path().join(CONFLIST)).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["cniVersion"], "1.0.0");
        assert_eq!(value["cniVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(value["plugins"][0], json!({"type": "fairlead-cni", "runDir": "/run/elsewhere"}));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
