//! What the agent leaves for the CNI plugin and the container runtime: `node.json`, and the configuration
//! that names the executable. All of it stays when the agent ends.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use fairlead_api::{CONFLIST, NETWORK, NodeInfo, RunDir};
use serde_json::{Value, json};

use crate::host::install::PLUGIN;

/// Versions that it speaks.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What runtimes read that know nothing newer and ignore `cniVersions`.
const PLAIN_VERSION: &str = "1.0.0";
/// What every release of those plugins speaks that anybody still installs (1.0, of 2021, and newer).
const SPOKEN_BY_ALL: [&str; 3] = ["0.3.1", "0.4.0", "1.0.0"];
/// Plugins that come after ours where they are installed, and the capability that each is for.
const CHAINED: [(&str, &str); 2] = [("portmap", "portMappings"), ("bandwidth", "bandwidth")];

/// Writes a file so that whoever reads it finds the old or the new content, whole.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    // What a killed agent left has its own mode.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
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
    replace(&run.node(), &text, 0o644)?;
    Ok(true)
}

/// Writes the CNI configuration, where it is not there yet as it should be; plugins in `bin` that serve
/// pods' host ports and bandwidth come after ours. Says what was left out, and why.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_conflist(folder: &Path, run: &RunDir, bin: Option<&Path>) -> io::Result<Vec<String>> {
    let path = folder.join(CONFLIST);
    let mut versions = VERSIONS.map(str::to_owned).to_vec();
    let mut plugins = vec![json!({
        "type": PLUGIN,
        "runDir": run.path(),
        "capabilities": {"ips": true, "mac": true, "ipRanges": true, "dns": true, "bandwidth": true},
    })];
    let mut left_out = Vec::new();
    for (kind, capability) in CHAINED {
        let Some(executable) = bin.map(|bin| bin.join(kind)).filter(|path| path.exists()) else { continue };
        // A runtime speaks one version with the whole list, the highest there.
        match spoken(&executable) {
            // It is there and does not run: the libraries it needs are the node's, and this is a container.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                versions.retain(|v| SPOKEN_BY_ALL.contains(&v.as_str()));
                plugins.push(json!({"type": kind, "capabilities": {capability: true}}));
            }
            Ok(spoken) if spoken.iter().any(|v| v == PLAIN_VERSION) => {
                versions.retain(|v| spoken.contains(v));
                plugins.push(json!({"type": kind, "capabilities": {capability: true}}));
            }
            Ok(spoken) => {
                left_out.push(format!(
                    "{} is not chained: it speaks {spoken:?}, not CNI {PLAIN_VERSION}",
                    executable.display()
                ));
            }
            Err(e) => left_out.push(format!("{} is not chained: {e}", executable.display())),
        }
    }
    let text = pretty(&json!({
        "cniVersion": PLAIN_VERSION,
        "cniVersions": versions,
        "name": NETWORK,
        "plugins": plugins,
    }))?;
    if !fs::read(&path).is_ok_and(|there| there == text) {
        replace(&path, &text, 0o644)?;
    }
    // containerd misses files that appear by rename alone: a write on the final name wakes it.
    let file = File::options().append(true).open(&path)?;
    file.set_modified(std::time::SystemTime::now())?;
    file.set_len(text.len() as u64)?;
    Ok(left_out)
}

/// Versions that a plugin says it speaks.
fn spoken(executable: &Path) -> io::Result<Vec<String>> {
    let mut child = Command::new(executable)
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It need not read it.
        let _ = stdin.write_all(json!({"cniVersion": PLAIN_VERSION}).to_string().as_bytes());
    }
    let output = child.wait_with_output()?;
    let answer: Value = serde_json::from_slice(&output.stdout).map_err(io::Error::other)?;
    let versions = answer.get("supportedVersions").and_then(Value::as_array);
    let versions = versions.ok_or_else(|| io::Error::other("its answer to VERSION names no versions"))?;
    Ok(versions.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect())
}

/// Configurations of others in the folder, each with what that means. Runtimes take the first by name.
///
/// # Errors
/// Where the folder cannot be read.
pub fn foreign(folder: &Path) -> io::Result<Vec<String>> {
    Ok(others(folder)?.into_iter().map(|(_, what)| what).collect())
}

/// As [`foreign`], each with whether it comes before Fairlead's.
///
/// # Errors
/// Where the folder cannot be read.
pub fn others(folder: &Path) -> io::Result<Vec<(bool, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let configuration = Path::new(&name)
            .extension()
            .is_some_and(|e| ["conf", "conflist", "json"].iter().any(|known| e == *known));
        if !configuration || name == CONFLIST || name.starts_with('.') {
            continue;
        }
        let path = folder.join(&name);
        let first = name.as_str() < CONFLIST;
        let what = if first {
            format!("{} comes before {CONFLIST}: new pods are not Fairlead's, remove it", path.display())
        } else {
            format!("{} is another plugin's: not used while {CONFLIST} is there", path.display())
        };
        found.push((first, what));
    }
    found.sort_by(|(_, a), (_, b)| a.cmp(b));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflist(folder: &Path) -> Value {
        serde_json::from_slice(&fs::read(folder.join(CONFLIST)).unwrap()).unwrap()
    }

    #[test]
    fn conflist_names_the_run_directory_and_versions() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CONFLIST), "left over, and longer than what comes: ".repeat(50)).unwrap();
        let run = RunDir("/run/elsewhere".into());
        assert_eq!(write_conflist(dir.path(), &run, None).unwrap(), [""; 0]);
        write_conflist(dir.path(), &run, None).unwrap();
        let value = conflist(dir.path());
        assert_eq!(value["cniVersion"], "1.0.0");
        assert_eq!(value["cniVersions"], json!(VERSIONS));
        assert_eq!(value["plugins"][0]["type"], "fairlead-cni");
        assert_eq!(value["plugins"][0]["runDir"], "/run/elsewhere");
        assert_eq!(value["plugins"].as_array().unwrap().len(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    fn plugin(bin: &Path, name: &str, script: &str) {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn plugins_are_chained_where_they_are_and_only_in_versions_that_all_speak() {
        let dir = tempfile::tempdir().unwrap();
        let bin = tempfile::tempdir().unwrap();
        let run = RunDir("/run/fairlead".into());
        let answer = |versions: &str| {
            format!(
                "[ \"$CNI_COMMAND\" = VERSION ] && echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[{versions}]}}'"
            )
        };
        plugin(bin.path(), "portmap", &answer(r#""0.4.0","1.0.0""#));
        plugin(bin.path(), "bandwidth", "exit 3");
        let left_out = write_conflist(dir.path(), &run, Some(bin.path())).unwrap();
        assert_eq!(left_out.len(), 1);
        assert!(left_out[0].contains("bandwidth"), "{left_out:?}");
        let value = conflist(dir.path());
        assert_eq!(value["cniVersions"], json!(["0.4.0", "1.0.0"]));
        assert_eq!(value["plugins"][1], json!({"type": "portmap", "capabilities": {"portMappings": true}}));
        assert_eq!(value["plugins"].as_array().unwrap().len(), 2);

        // One that needs what only the node has cannot be asked from a container.
        fs::write(bin.path().join("portmap"), "#!/lib/not/here\n").unwrap();
        assert_eq!(write_conflist(dir.path(), &run, Some(bin.path())).unwrap().len(), 1);
        let value = conflist(dir.path());
        assert_eq!(value["cniVersions"], json!(["0.3.1", "0.4.0", "1.0.0"]));
        assert_eq!(value["plugins"][1]["type"], "portmap");

        // One that cannot speak to every runtime is left out, not the runtimes.
        plugin(bin.path(), "portmap", &answer(r#""1.1.0""#));
        plugin(bin.path(), "bandwidth", &answer(r#""0.3.1","0.4.0","1.0.0","1.1.0""#));
        assert_eq!(write_conflist(dir.path(), &run, Some(bin.path())).unwrap().len(), 1);
        let value = conflist(dir.path());
        assert_eq!(value["cniVersions"], json!(VERSIONS));
        assert_eq!(value["plugins"][1]["type"], "bandwidth");
    }

    #[test]
    fn configurations_of_others_are_told_by_whether_they_come_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            [CONFLIST, "10-other.conflist", "00-aaa.conf", "notes.txt", ".hidden.conf", "87-podman.json"]
        {
            fs::write(dir.path().join(name), "{}").unwrap();
        }
        let found = foreign(dir.path()).unwrap();
        assert_eq!(found.len(), 3);
        assert!(found[0].contains("00-aaa.conf comes before"), "{found:?}");
        assert!(found[1].contains("10-other.conflist is another"), "{found:?}");
        assert!(found[2].contains("87-podman.json is another"), "{found:?}");
    }
}
