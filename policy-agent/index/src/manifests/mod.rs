//! A directory of Kubernetes YAML as a source.
//!
//! - [`document`]: text → values.
//! - [`catalogue`]: which file defines what; files → batches. No I/O.
//! - [`directory`]: reading the directory.
//! - [`watch`]: doing so whenever it changes.

pub mod catalogue;
pub mod directory;
mod document;
pub mod watch;

pub use catalogue::Catalogue;
pub use directory::Directory;
