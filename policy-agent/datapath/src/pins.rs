//! Where programs and maps are pinned.

use std::path::{Path, PathBuf};

use fairlead_common::maps::names;

/// Folders of a BPF file system.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    pub(crate) frozen: PathBuf,
    pub(crate) lasting: PathBuf,
}

impl Pins {
    pub(crate) fn new(bpffs: &Path) -> Self {
        Self { frozen: bpffs.join(names::FROZEN), lasting: bpffs.join(names::LASTING) }
    }
}
