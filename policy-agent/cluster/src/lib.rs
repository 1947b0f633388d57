//! The API server as a source of the state of the world.
//!
//! ```text
//!   watch of each kind ──▶ merge (pure) ──▶ batches ──▶ engine
//!   GET of a pod that an ADD waits for ──▶ ┘
//! ```
//!
//! [`source::Source`] says what a directory of manifests says, in the same words: the same objects are
//! read by the same code. What the API server says twice, late or out of order is told apart in
//! [`merge`], which does no I/O. While it is away, nothing is said, so what is in force stays.
#![forbid(unsafe_code)]

pub mod client;
pub mod merge;
pub mod object;
pub mod report;
pub mod source;
mod watch;

pub use client::{Access, AccessError};
pub use report::Reporter;
pub use source::Source;
