//! Properties over random worlds. `FAIRLEAD_PROPERTY_CASES` says how many cases each property is tried on.
#![expect(clippy::unwrap_used, reason = "the literals of the random worlds parse")]

mod agreement;
mod explain;
mod ids;
mod overflow;
mod world;
