//! What is done to a node before and after: putting executables where the runtime looks for them,
//! mounting the BPF file system, looking for what stands in the way, and taking everything away. The image
//! has no shell, so the CLI does it.

pub mod bpffs;
pub mod doctor;
pub mod install;
pub mod uninstall;
