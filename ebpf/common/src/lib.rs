//! What the kernel's side and the host's side of Fairlead share: map types, packet parser, verdict.
//!
//! Everything here is pure and `no_std`; it is compiled once for the BPF target, where `ebpf/` wraps
//! it into programs, and once for the host, where it is tested like any library.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod maps;
pub mod reason;
