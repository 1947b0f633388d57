//! NetworkPolicy without I/O: the model, the oracle, the compiler and its tables.
#![forbid(unsafe_code)]

pub mod model;
pub mod tables;
