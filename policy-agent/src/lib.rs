//! The agent: watches the state of the world, compiles it, puts it in force, and answers to the CNI
//! plugin and to people.
//!
//! ```text
//! source ──batches──▶ engine (one thread: index, compiler, enforcer) ◀──requests── agent.sock
//!                        │ nodes                      ▲ own addresses, uplink, links that are gone
//!                        ▼                            │
//!                     network (routes, sysctls, rtnetlink) ──▶ node.json, conflist, ready
//! ```
//!
//! What decides is in [`engine`]; it owns everything that it changes, so nothing is locked and nothing
//! races. [`enforcer::Enforcer`] is the seam to the kernel; the engine's tests stand on it.

pub mod agent;
pub mod api;
pub mod cli;
pub mod conflist;
pub mod drops;
pub mod enforcer;
pub mod engine;
pub mod host;
pub mod liveness;
pub mod lock;
pub mod memory;
pub mod metrics;
pub mod network;
pub mod pulse;
pub mod readiness;
pub mod report;
pub mod settings;
