//! The BPF programs: thin shells around [`fairlead_common::verdict`].
//!
//! What is attached to interfaces are the trampolines, which never change; they jump to the programs
//! of the version in force through a program array, and drop where it has none.
#![no_std]
#![no_main]

mod early;
mod inside;
mod overlay;
mod packet;
mod pod;
mod socket;
mod steps;
mod tables;
mod trampoline;
mod tunnel;
mod uplink;
mod verdict;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses programs that could come here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
