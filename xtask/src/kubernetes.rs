//! Kubernetes' own executables for tests, built from their sources in Go's module registry.
//!
//! `tests/kubernetes/go.mod` says which versions; a folder of it is one executable, which may be called by
//! several names. What was built is kept in `target/kubernetes` until those files change.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{self, output};
use crate::{oci, setup, workspace};

/// Folder of executables of etcd and Kubernetes that are there already: the convention of controller
/// tests, which the tests here follow too.
pub(crate) const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// A Go that is new enough, for machines whose own is not: Go's module registry holds its releases.
const GO: &str = "go1.24.9";
/// Oldest minor version of Go 1 that builds Kubernetes, or fetches the one that does.
const OLDEST_GO: u32 = 21;
/// Debian 12's Go, too old to build Kubernetes, but able to fetch modules.
const DEBIAN_GO: (&str, &str) = ("golang-1.19-go", "/usr/lib/go-1.19/bin/go");

/// An executable, of one program or of several that are told apart by the name by which it is called.
pub(crate) struct Bundle {
    /// Its name, and that of its folder below `target/kubernetes`.
    name: &'static str,
    /// Folder of its Go module below `tests/kubernetes`.
    module: &'static str,
    /// What is built: a folder of that module, or a package of another one.
    package: &'static str,
    /// Names by which it is called.
    pub(crate) programs: &'static [&'static str],
}

/// What tests of the agent before a real API server need.
pub(crate) const CONTROL: Bundle =
    Bundle { name: "control", module: "", package: "./control", programs: &["etcd", "kube-apiserver"] };
/// The rest of a cluster.
const NODE: Bundle = Bundle {
    name: "node",
    module: "",
    package: "./node",
    programs: &["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"],
};
/// What holds the namespaces of a pod.
const PAUSE: Bundle = Bundle { name: "pause", module: "", package: "./pause", programs: &["pause"] };
/// Client and server of Kubernetes' own tests.
const AGNHOST: Bundle = Bundle {
    name: "agnhost",
    module: "",
    package: "k8s.io/kubernetes/test/images/agnhost",
    programs: &["agnhost"],
};
/// The cluster's name server.
const DNS: Bundle = Bundle { name: "coredns", module: "dns", package: "./", programs: &["coredns"] };
/// Kubernetes' own tests of the network.
const E2E: Bundle = Bundle { name: "e2e", module: "", package: "./e2e", programs: &["e2e.test"] };
/// What runs them.
const GINKGO: Bundle =
    Bundle { name: "ginkgo", module: "", package: "github.com/onsi/ginkgo/v2/ginkgo", programs: &["ginkgo"] };

/// Name of the image that holds pods' namespaces, as containerd is told of it.
const PAUSE_IMAGE: &str = "fairlead.dev/tests/pause:1";
/// Name of the image of the cluster's name server.
const DNS_IMAGE: &str = "fairlead.dev/tests/coredns:1";
/// Name of the image of Kubernetes' own tests, as those of the version in `go.mod` ask for it.
const AGNHOST_IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.56";
/// What tests call in a container of agnhost's image, beside agnhost itself: where it is there, and here.
const AGNHOST_TOOLS: [(&str, &str); 14] = [
    ("bin/sh", "/bin/dash"),
    ("bin/cat", "/bin/cat"),
    ("bin/date", "/bin/date"),
    ("bin/echo", "/bin/echo"),
    ("bin/hostname", "/bin/hostname"),
    ("bin/ls", "/bin/ls"),
    ("bin/sleep", "/bin/sleep"),
    ("usr/bin/curl", "/usr/bin/curl"),
    ("usr/bin/grep", "/bin/grep"),
    ("usr/bin/head", "/usr/bin/head"),
    ("usr/bin/nc", "/bin/nc.openbsd"),
    ("usr/bin/seq", "/usr/bin/seq"),
    ("usr/bin/timeout", "/usr/bin/timeout"),
    ("usr/bin/wc", "/usr/bin/wc"),
];

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

/// Everything that a cluster of real nodes is made of, beside Fairlead: executables and images.
pub(crate) fn nodes() -> Result<()> {
    build(&NODE)?;
    let folder = workspace::target().join("kubernetes/images");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let pause = build(&PAUSE)?.join("pause");
    image(&folder.join("pause.tar"), PAUSE_IMAGE, &["/pause"], &[("pause".to_owned(), pause)])?;
    let coredns = build(&DNS)?.join("coredns");
    image(&folder.join("coredns.tar"), DNS_IMAGE, &["/coredns"], &[("coredns".to_owned(), coredns)])?;
    let mut files = vec![("agnhost".to_owned(), build(&AGNHOST)?.join("agnhost"))];
    for (inside, here) in AGNHOST_TOOLS {
        files.push((inside.to_owned(), PathBuf::from(here)));
        files.extend(libraries(here)?);
    }
    files.sort();
    files.dedup();
    image(&folder.join("agnhost.tar"), AGNHOST_IMAGE, &["/agnhost", "pause"], &files)
}

/// Kubernetes' own tests of the network.
pub(crate) fn conformance() -> Result<()> {
    build(&E2E)?;
    build(&GINKGO).map(drop)
}

/// Packs an image, unless it is there with the same files in it.
fn image(to: &Path, name: &str, command: &[&str], files: &[(String, PathBuf)]) -> Result<()> {
    let (entrypoint, arguments) = command.split_first().context("an image without a command")?;
    let mut wanted = format!("{name} {command:?}\n");
    for (inside, here) in files {
        let metadata = std::fs::metadata(here)
            .with_context(|| format!("{} is missing (`cargo xtask setup` installs it)", here.display()))?;
        let changed = metadata.modified()?.duration_since(std::time::UNIX_EPOCH)?;
        wanted += &format!("{inside} {} {} {changed:?}\n", here.display(), metadata.len());
    }
    let stamp = to.with_extension("packed-from");
    if to.exists() && std::fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    let mut packed = Vec::new();
    for (path, here) in files {
        let content = std::fs::read(here).with_context(|| format!("cannot read {}", here.display()))?;
        packed.push(oci::File { path: path.clone(), content });
    }
    let label = (name, "tests");
    let made_by = "cargo xtask cluster";
    let image = oci::image(&packed, &oci::Description { name, entrypoint, arguments, label, made_by });
    std::fs::write(to, image).with_context(|| format!("cannot write {}", to.display()))?;
    std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// The shared libraries of an executable, where it looks for them and here.
fn libraries(executable: &str) -> Result<Vec<(String, PathBuf)>> {
    let said = output(Command::new("ldd").arg(executable))
        .with_context(|| format!("ldd {executable} says nothing: `cargo xtask setup` installs it"))?;
    // "libc.so.6 => /lib/…/libc.so.6 (0x…)", and the loader by its path alone.
    let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(|path| (path.trim_start_matches('/').to_owned(), PathBuf::from(path))).collect())
}

fn build(bundle: &Bundle) -> Result<PathBuf> {
    let versions = workspace::root().join("tests/kubernetes");
    let sources = versions.join(bundle.module);
    let folder = workspace::target().join("kubernetes").join(bundle.name);
    let stamp = folder.join("built-from");
    let wanted = inputs(&sources, bundle)?;
    let all_there = bundle.programs.iter().all(|p| folder.join(p).exists());
    if std::fs::read(&stamp).is_ok_and(|there| there == wanted) && all_there {
        return Ok(folder);
    }
    let version = version(&versions)?;
    println!(
        "kubernetes: building {} for {version} (minutes where nothing of it was built before)",
        bundle.programs.join(", ")
    );
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let executable = folder.join(bundle.name);
    let flags: String = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"]
        .iter()
        .map(|package| format!(" -X {package}.gitVersion={version}"))
        .collect();
    let verb: &[&str] = if tests(&sources, bundle)? { &["test", "-c"] } else { &["build"] };
    process::run(
        go()?
            .current_dir(&sources)
            .args(verb)
            .args(["-trimpath", "-ldflags", &format!("-s -w{flags}"), "-o"])
            .arg(&executable)
            .arg(bundle.package),
    )?;
    for program in bundle.programs.iter().filter(|&&program| program != bundle.name) {
        let link = folder.join(program);
        // A link of before, or none.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(bundle.name, &link)
            .with_context(|| format!("cannot make {}", link.display()))?;
    }
    std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(folder)
}

/// Sources of a bundle that lie here, in order.
fn own_sources(sources: &Path, bundle: &Bundle) -> Result<Vec<PathBuf>> {
    let Some(folder) = bundle.package.strip_prefix("./").map(|folder| sources.join(folder)) else {
        return Ok(Vec::new());
    };
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut own = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    own.retain(|f| f.extension().is_some_and(|e| e == "go"));
    own.sort();
    Ok(own)
}

/// Whether a bundle is an executable of tests.
fn tests(sources: &Path, bundle: &Bundle) -> Result<bool> {
    Ok(own_sources(sources, bundle)?.iter().any(|f| f.to_string_lossy().ends_with("_test.go")))
}

/// Everything that decides what is built: versions with their checksums, and the few sources here.
fn inputs(sources: &Path, bundle: &Bundle) -> Result<Vec<u8>> {
    let mut files = vec![sources.join("go.mod"), sources.join("go.sum")];
    files.extend(own_sources(sources, bundle)?);
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
