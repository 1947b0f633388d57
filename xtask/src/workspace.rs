//! Where things are.

use std::path::{Path, PathBuf};

/// Root of the repository.
pub(crate) fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Everything that is built.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Tools that `setup` builds for this checkout.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// What is shipped: the eBPF object and the static release executables.
pub(crate) fn dist() -> PathBuf {
    target().join("dist")
}

/// The eBPF object, which the agent carries inside.
pub(crate) fn bpf_object() -> PathBuf {
    dist().join("fairlead.bpf.o")
}

/// The one that the test of upgrades loads beside it.
pub(crate) fn next_bpf_object() -> PathBuf {
    dist().join("fairlead-next.bpf.o")
}
