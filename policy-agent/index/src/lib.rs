//! The state of the world: sources → index → engine.
//!
//! A *source* (a directory of manifests, or the API server) says what it sees in [`Batch`]es of
//! [`Change`]s. The [`Index`](index::Index) decides what of it holds: an object that cannot be
//! understood keeps its last good state, and a policy that never had one denies what it selects. The
//! index does no I/O, so every kind is tested by what is applied and deleted alone.
#![forbid(unsafe_code)]

mod cidrs;
pub mod index;
pub mod kubernetes;
pub mod manifests;
pub mod object;
mod uid;

pub use fairlead_api::status::Problem;
pub use index::{Effect, Index};
pub use object::{
    Batch, Change, Event, FieldError, Kind, Object, ObjectId, Origin, Outcome, Parsed, ServiceObject,
};
