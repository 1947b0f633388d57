//! What is done to a node before and after: putting executables where the runtime looks for them,
//! mounting the BPF file system, and taking everything away. The image has no shell, so the CLI does it.

pub mod bpffs;
pub mod install;
pub mod uninstall;
