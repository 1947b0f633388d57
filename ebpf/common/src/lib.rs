//! What the kernel's side and the host's side of Fairlead share: map types, packet parser, verdict.
//!
//! Everything here is pure and `no_std`; it is compiled once for the BPF target, where `ebpf/` wraps
//! it into programs, and once for the host, where it is tested like any library.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod address;
pub mod flow;
pub mod judge;
pub mod maps;
pub mod packet;
pub mod reason;
pub mod verdict;
pub mod vxlan;
