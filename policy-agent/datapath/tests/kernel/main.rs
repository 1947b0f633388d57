//! The programs in the kernel, packet by packet (BPF_PROG_TEST_RUN).
//!
//! Needs root. Each test has its own network and mount namespace, BPF file system and maps.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod across;
mod capacity;
mod cases;
mod commit;
mod early;
mod errors;
mod events;
mod flows;
mod forgery;
mod inside;
mod lab;
mod life;
mod overlay;
mod packets;
mod rules;
mod upgrade;
#[path = "../../../policy/tests/property/world.rs"]
#[expect(dead_code, reason = "shared with the compiler's property tests")]
mod world;
mod writes;
