//! Clusters on one machine, for tests and the demonstration.
//!
//! ```text
//!        outside (a client in the world, and the router to it)
//!           |
//!   ------ fabric (one bridge: the L2 between the nodes) ------
//!        |                          |
//!     node-a                     node-b        fairlead-agent runs here
//!     |    |                     |    |
//!    pod  pod                   pod  pod       wired by fairlead-cni
//! ```
//!
//! Each box is a network namespace with a thread of its own that works inside it; a node also has its
//! own mounts, as a real one would: /sys shows its own devices and its own BPF file system. The
//! namespaces exist only as long as their threads, so nothing is left when a test is killed.
//!
//! The executables are the real ones, from `target/dist` or from where `FAIRLEAD_DIST` says.

pub mod agent;
pub mod capture;
pub mod cluster;
pub mod control_plane;
pub mod datagram;
pub mod echo;
pub mod fabric;
pub mod http;
pub mod interrupt;
pub mod kubernetes;
pub mod namespace;
pub mod offloads;
pub mod probe;
pub mod proxy;
pub mod runtime;
pub mod shop;
pub mod soak;
pub mod state;
pub mod wait;
pub mod world;

use std::path::PathBuf;

use anyhow::Context as _;

/// Folder with `fairlead-cni`, `fairlead-agent` and `fairlead`: `FAIRLEAD_DIST`, else `target/dist`.
pub fn dist() -> PathBuf {
    std::env::var_os("FAIRLEAD_DIST")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/dist")), PathBuf::from)
}

/// Raises the number of open files, of which some shells allow 1024, as far as is allowed.
///
/// # Errors
/// When the system refuses.
pub fn allow_open_files(wanted: u64) -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).context("cannot allow more open files")?;
    }
    Ok(())
}

/// Whether tests that need root can run. Without root they are left out on a developer's machine, and
/// fail where `FAIRLEAD_REQUIRE_PRIVILEGED=1` says that they must run.
///
/// # Panics
/// Without root where they must run.
#[expect(clippy::panic, clippy::print_stderr, reason = "called by tests only")]
pub fn privileged() -> bool {
    if nix::unistd::Uid::effective().is_root() {
        return true;
    }
    if std::env::var_os("FAIRLEAD_REQUIRE_PRIVILEGED").is_some_and(|v| v == "1") {
        panic!("this test needs root");
    }
    eprintln!("left out: this test needs root");
    false
}
