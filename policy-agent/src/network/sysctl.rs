//! Kernel settings of this network namespace.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Settings under a directory like `/proc/sys/net`.
struct Settings {
    root: PathBuf,
    /// Whether settings that are wrong are put right, or only told of.
    changes: bool,
    wrong: Vec<(String, String, &'static str)>,
    problems: Vec<String>,
    changed: BTreeMap<String, Changed>,
}

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Changed {
    /// What it was before the first change.
    was: String,
    /// What it was changed to.
    set: String,
}

impl Settings {
    fn of(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            changes: true,
            wrong: Vec::new(),
            problems: Vec::new(),
            changed: BTreeMap::new(),
        }
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.root.join(name)).ok().map(|text| text.trim().to_owned())
    }

    /// Sets `name` to `value` unless it is one of `good`.
    fn ensure(&mut self, name: &str, good: &[&str], value: &'static str) {
        // Interface names may contain dots, so names are paths here.
        let there = self.read(name).unwrap_or_default();
        if good.contains(&there.as_str()) {
            return;
        }
        if !self.changes {
            self.wrong.push((name.to_owned(), there, value));
            return;
        }
        match fs::write(self.root.join(name), value) {
            Ok(()) => {
                tracing::info!("sysctl net/{name} was {there:?} and is {value} now");
                let changed = Changed { was: there, set: value.to_owned() };
                self.changed.insert(name.to_owned(), changed);
            }
            Err(e) => self
                .problems
                .push(format!("sysctl net/{name} is {there:?} and cannot be set to {value}: {e}")),
        }
    }
}

/// Sets what routing pods needs, and records what was changed in `journal`; returns what could not be
/// set.
pub(super) fn set(uplink: &str, ipv6: bool, journal: &Path) -> Vec<String> {
    set_in(&root(), uplink, ipv6, journal)
}

/// Settings that are not as routing pods needs them: name, what it is, and what would be right.
pub(crate) fn wrong(uplink: &str, ipv6: bool) -> Vec<(String, String, &'static str)> {
    let mut settings = Settings { changes: false, ..Settings::of(&root()) };
    ensure_all(&mut settings, uplink, ipv6);
    settings.wrong
}

/// In a container its own /proc/sys cannot be written to; the host's is mounted elsewhere.
pub(super) fn root() -> PathBuf {
    let hosts = Path::new("/host/proc/sys/net");
    if hosts.exists() { hosts } else { Path::new("/proc/sys/net") }.to_owned()
}

fn set_in(root: &Path, uplink: &str, ipv6: bool, journal: &Path) -> Vec<String> {
    let mut settings = Settings::of(root);
    ensure_all(&mut settings, uplink, ipv6);
    if let Err(e) = record(journal, settings.changed) {
        let message = format!("{}: {e}: an uninstall will not put sysctls back", journal.display());
        settings.problems.push(message);
    }
    settings.problems
}

fn ensure_all(settings: &mut Settings, uplink: &str, ipv6: bool) {
    settings.ensure("ipv4/ip_forward", &["1"], "1");
    // Loose (2, RFC 3704 section 2.4) in place of strict (1), because a pod's answer may leave by
    // another way than its question came. Not off (0), which somebody else may have chosen and may
    // keep. An interface has the greater one of "all" and its own, so that neither may be strict;
    // "default" is what interfaces to come begin with.
    for of in ["all", "default", uplink] {
        settings.ensure(&format!("ipv4/conf/{of}/rp_filter"), &["0", "2"], "2");
    }
    if ipv6 {
        // A router heeds router advertisements only where it is told so.
        let accept_ra = format!("ipv6/conf/{uplink}/accept_ra");
        if settings.read(&accept_ra).as_deref() == Some("1") {
            settings.ensure(&accept_ra, &["2"], "2");
        }
        settings.ensure("ipv6/conf/all/forwarding", &["1"], "1");
    }
}

/// Adds to what was recorded; what a setting was before the first change stays.
fn record(journal: &Path, changed: BTreeMap<String, Changed>) -> io::Result<()> {
    if changed.is_empty() {
        return Ok(());
    }
    let mut all = recorded(journal);
    for (name, Changed { was, set }) in changed {
        let was = all.remove(&name).map_or(was, |before| before.was);
        all.insert(name, Changed { was, set });
    }
    fs::write(journal, serde_json::to_vec_pretty(&all)?)
}

/// What was recorded; like the settings themselves, it does not outlast a reboot.
pub(crate) fn recorded(journal: &Path) -> BTreeMap<String, Changed> {
    let text = fs::read(journal).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Puts back what was changed and is still as it was changed to; returns what could not be put back.
pub(crate) fn put_back(journal: &Path) -> Vec<String> {
    put_back_in(&root(), journal)
}

fn put_back_in(root: &Path, journal: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, Changed { was, set }) in recorded(journal) {
        let path = root.join(&name);
        // Gone with its interface, or somebody else's by now.
        if !fs::read_to_string(&path).is_ok_and(|now| now.trim() == set) {
            continue;
        }
        if let Err(e) = fs::write(&path, &was) {
            problems.push(format!("sysctl net/{name} is {set:?} and cannot be put back to {was:?}: {e}"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, value) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        root
    }

    fn now(root: &tempfile::TempDir, files: &[(&str, &str)]) -> Vec<String> {
        files
            .iter()
            .map(|(name, _)| fs::read_to_string(root.path().join(name)).unwrap().trim().to_owned())
            .collect()
    }

    #[test]
    fn nothing_stays_strict_and_what_is_good_stays() {
        let strict = [
            ("ipv4/ip_forward", "0"),
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/default/rp_filter", "1"),
            ("ipv4/conf/eth0.5/rp_filter", "0"),
            ("ipv4/conf/eth1/rp_filter", "1"),
            ("ipv6/conf/eth0.5/accept_ra", "1"),
            ("ipv6/conf/all/forwarding", "0"),
        ];
        let root = there(&strict);
        assert_eq!(set_in(root.path(), "eth0.5", false, &root.path().join("journal")), Vec::<String>::new());
        assert_eq!(now(&root, &strict), ["1", "2", "2", "0", "1", "1", "0"]);
        assert_eq!(set_in(root.path(), "eth0.5", true, &root.path().join("journal")), Vec::<String>::new());
        assert_eq!(now(&root, &strict), ["1", "2", "2", "0", "1", "2", "1"]);

        // What it was at first comes back, but for what somebody else has changed since.
        fs::write(root.path().join("ipv4/conf/all/rp_filter"), "0").unwrap();
        assert_eq!(put_back_in(root.path(), &root.path().join("journal")), Vec::<String>::new());
        assert_eq!(now(&root, &strict), ["0", "0", "1", "0", "1", "1", "0"]);

        let off = [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "2"),
            ("ipv4/conf/eth0/rp_filter", "1"),
            ("ipv6/conf/eth0/accept_ra", "0"),
            ("ipv6/conf/all/forwarding", "1"),
        ];
        let root = there(&off);
        assert_eq!(set_in(root.path(), "eth0", true, &root.path().join("journal")), Vec::<String>::new());
        assert_eq!(now(&root, &off), ["1", "0", "2", "2", "0", "1"]);
    }

    #[test]
    fn what_cannot_be_set_is_said() {
        let root = there(&[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ]);
        let problems = set_in(root.path(), "eth0", false, &root.path().join("journal"));
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].starts_with("sysctl net/ipv4/conf/eth0/rp_filter is \"\" and cannot be set to 2: "),
            "{problems:?}"
        );
    }

    #[test]
    fn the_kernel_takes_them() {
        crate::network::routes::tests::in_namespace(async || {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            let link = rtnetlink::LinkVeth::new("up.5", "peer5").build();
            handle.link().add(link).execute().await.unwrap();
            let root = Path::new("/proc/sys/net");
            let values = [
                ("ipv4/ip_forward", "0", "1"),
                ("ipv4/conf/all/rp_filter", "1", "2"),
                ("ipv4/conf/default/rp_filter", "1", "2"),
                ("ipv4/conf/up.5/rp_filter", "1", "2"),
                ("ipv6/conf/up.5/accept_ra", "1", "2"),
                ("ipv6/conf/all/forwarding", "0", "1"),
            ];
            for (name, before, _) in values {
                fs::write(root.join(name), before).unwrap();
            }
            let folder = tempfile::tempdir().unwrap();
            let journal = folder.path().join("journal");
            assert_eq!(set("up.5", true, &journal), Vec::<String>::new());
            for (name, _, after) in values {
                assert_eq!(fs::read_to_string(root.join(name)).unwrap().trim(), after, "{name}");
            }
            // The one that comes later begins so.
            let link = rtnetlink::LinkVeth::new("later", "peer6").build();
            handle.link().add(link).execute().await.unwrap();
            let later = fs::read_to_string(root.join("ipv4/conf/later/rp_filter")).unwrap();
            assert_eq!(later.trim(), "2");
        });
    }
}
