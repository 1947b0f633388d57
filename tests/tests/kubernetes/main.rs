//! The agent before a real API server, with the rights that its manifest gives it and no others.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]

mod away;
mod follow;
mod lab;
mod sources;
mod told;
