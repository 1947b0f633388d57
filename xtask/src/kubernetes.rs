//! Kubernetes' own executables for tests, built from their sources in Go's module registry.
//!
//! `tests/kubernetes/go.mod` says which versions; a folder of it is one executable, which is called by
//! several names. What was built is kept in `target/kubernetes` until those files change.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{self, output};
use crate::{setup, workspace};

/// Folder of executables of etcd and Kubernetes that are there already: the convention of controller
/// tests, which the tests here follow too.
pub(crate) const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// A Go that is new enough, for machines whose own is not: Go's module registry holds its releases.
const GO: &str = "go1.24.9";
/// Oldest minor version of Go 1 that builds Kubernetes, or fetches the one that does.
const OLDEST_GO: u32 = 21;
/// Debian 12's Go, too old to build Kubernetes, but able to fetch modules.
const DEBIAN_GO: (&str, &str) = ("golang-1.19-go", "/usr/lib/go-1.19/bin/go");

/// An executable of several programs.
pub(crate) struct Bundle {
    /// Folder of its sources below `tests/kubernetes`.
    pub(crate) folder: &'static str,
    /// Names by which it is called.
    pub(crate) programs: &'static [&'static str],
}

/// What tests of the agent before a real API server need.
pub(crate) const CONTROL: Bundle = Bundle { folder: "control", programs: &["etcd", "kube-apiserver"] };

/// A folder with the programs of a bundle: the one that the environment names, if it has them all, else
/// the one that is built here.
pub(crate) fn programs(bundle: &Bundle) -> Result<PathBuf> {
    if let Some(assets) = std::env::var_os(ASSETS).map(PathBuf::from)
        && bundle.programs.iter().all(|p| assets.join(p).exists())
    {
        return Ok(assets);
    }
    build(bundle)
}

fn build(bundle: &Bundle) -> Result<PathBuf> {
    let sources = workspace::root().join("tests/kubernetes");
    let folder = workspace::target().join("kubernetes").join(bundle.folder);
    let stamp = folder.join("built-from");
    let wanted = inputs(&sources, bundle)?;
    let all_there = bundle.programs.iter().all(|p| folder.join(p).exists());
    if std::fs::read(&stamp).is_ok_and(|there| there == wanted) && all_there {
        return Ok(folder);
    }
    let version = version(&sources)?;
    println!(
        "kubernetes: building {} of {version} (five minutes where nothing of it was built before)",
        bundle.programs.join(", ")
    );
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let executable = folder.join(bundle.folder);
    let flags: String = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"]
        .iter()
        .map(|package| format!(" -X {package}.gitVersion={version}"))
        .collect();
    process::run(
        go()?
            .current_dir(&sources)
            .args(["build", "-trimpath", "-ldflags", &format!("-s -w{flags}"), "-o"])
            .arg(&executable)
            .arg(format!("./{}", bundle.folder)),
    )?;
    for program in bundle.programs {
        let link = folder.join(program);
        // A link of before, or none.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(bundle.folder, &link)
            .with_context(|| format!("cannot make {}", link.display()))?;
    }
    std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(folder)
}

/// Everything that decides what is built: versions with their checksums, and the few sources here.
fn inputs(sources: &Path, bundle: &Bundle) -> Result<Vec<u8>> {
    let folder = sources.join(bundle.folder);
    let mut files = vec![sources.join("go.mod"), sources.join("go.sum")];
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut own = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    own.sort();
    files.extend(own.into_iter().filter(|f| f.extension().is_some_and(|e| e == "go")));
    let mut all = Vec::new();
    for file in files {
        all.extend(std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(all)
}

/// Version of Kubernetes, as `v1.34.4`.
fn version(sources: &Path) -> Result<String> {
    let text = std::fs::read_to_string(sources.join("go.mod")).context("cannot read go.mod")?;
    let line = text.lines().find_map(|l| l.trim().strip_prefix("k8s.io/kubernetes "));
    Ok(line.context("go.mod requires no k8s.io/kubernetes")?.trim().to_owned())
}

/// A `go` that is new enough, with what makes builds the same everywhere.
fn go() -> Result<Command> {
    let mut go = Command::new(find_go()?);
    // The machine's own settings must not decide what is built.
    go.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly -buildvcs=false").env("GOWORK", "off");
    Ok(go)
}

fn find_go() -> Result<PathBuf> {
    let candidates = [PathBuf::from("go"), PathBuf::from("/usr/local/go/bin/go")];
    if let Some(go) = candidates.into_iter().find(|go| minor(go).is_some_and(|minor| minor >= OLDEST_GO)) {
        return Ok(go);
    }
    println!("kubernetes: no Go 1.{OLDEST_GO} or newer here; getting {GO} from Go's module registry");
    let (package, old) = DEBIAN_GO;
    if minor(Path::new(old)).is_none() {
        if !Path::new("/usr/bin/apt-get").exists() {
            bail!("Go is missing: install version 1.{OLDEST_GO} or newer, or set {ASSETS}");
        }
        setup::install_packages(&[package])?;
    }
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("Go for {other} has to be installed by hand, or {ASSETS} set"),
    };
    let module = format!("golang.org/toolchain@v0.0.1-{GO}.linux-{arch}");
    // `go mod download` wants to stand in a module, and this one asks for too new a Go.
    let folder = workspace::tools().join("go");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(folder.join("go.mod"), "module fairlead.dev/tools\n").context("cannot write go.mod")?;
    let old = || {
        let mut command = Command::new(old);
        command.current_dir(&folder).env("GOFLAGS", "").env("GOMODCACHE", folder.join("modules"));
        command
    };
    process::run(old().args(["mod", "download", &module]))?;
    let home = folder.join("modules").join(&module);
    // Modules are kept without the right to be run.
    process::run(
        Command::new("chmod").args(["-R", "u+wx"]).arg(home.join("bin")).arg(home.join("pkg/tool")),
    )?;
    let go = home.join("bin/go");
    match minor(&go) {
        Some(minor) if minor >= OLDEST_GO => Ok(go),
        _ => bail!("{} does not run", go.display()),
    }
}

/// The minor version of a Go 1.
fn minor(go: &Path) -> Option<u32> {
    // Its own version, not that of a go.mod nearby.
    let said = output(Command::new(go).env("GOTOOLCHAIN", "local").current_dir("/").arg("version"))?;
    minor_of(&said)
}

fn minor_of(said: &str) -> Option<u32> {
    let (_, rest) = said.split_once(" go1.")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_go_and_of_kubernetes() {
        assert_eq!(minor_of("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(minor_of("go version go1.19 linux/amd64"), Some(19));
        assert_eq!(minor_of("go version devel"), None);
        let version = version(&workspace::root().join("tests/kubernetes")).unwrap();
        assert!(version.starts_with("v1."), "{version}");
    }
}
