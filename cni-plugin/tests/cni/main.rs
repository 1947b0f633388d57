//! The executable, called as a runtime calls it, on nodes made of namespaces.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what a test cannot go on without")]

mod attachment;
mod audit;
mod check;
mod conformance;
mod crash;
mod delegation;
mod disorder;
mod ipam;
mod node;
