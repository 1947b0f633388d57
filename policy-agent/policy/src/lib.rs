//! NetworkPolicy without I/O: the model, the oracle, the compiler and its tables.
//!
//! - [`model`]: the objects that policy looks at.
//! - [`oracle`]: what the Kubernetes API says about one connection, rule by rule.
//! - [`compiler`]: the same for all connections at once, as tables, incrementally.
//! - [`tables`]: what the compiler hands over, and the tables in memory, looked up as the kernel does.
//! - [`claims`]: what several may claim, as nodes do CIDRs and addresses.
//! - [`explain`]: which policies and rules decide about a connection.
//!
//! Two rules of Kubernetes are *not* here, because they look at packets and not at policy: a pod may
//! always talk to itself, and always with the node that it runs on. The datapath exempts both.
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "cases"))]
pub mod cases;
pub mod claims;
pub mod compiler;
pub mod explain;
pub mod model;
pub mod oracle;
pub mod selector;
pub mod tables;
