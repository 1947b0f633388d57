//! How many instructions of each program the verifier walks before it lets it in.
//!
//! `program_costs BPFFS`, as root, with a BPF file system of its own. `cargo xtask costs` compares them.
#![expect(clippy::print_stdout, reason = "what it is for")]

use std::os::fd::{AsRawFd as _, OwnedFd};

use fairlead_datapath::{Datapath, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bpffs = std::env::args().nth(1).ok_or("program_costs BPFFS")?;
    let datapath = Datapath::open(&Options::new(bpffs))?;
    for name in ["from_pod", "to_pod", "from_uplink", "to_uplink", "from_overlay"] {
        println!("{name} {}", verified(&datapath.program(name)?)?);
    }
    Ok(())
}

/// `verified_insns` of `struct bpf_prog_info`.
fn verified(program: &OwnedFd) -> std::io::Result<u32> {
    const OBJ_GET_INFO_BY_FD: u32 = 15;
    let mut info = [0u8; 224];
    let mut attr = [0u8; 16];
    attr[..4].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
    attr[4..8].copy_from_slice(&224u32.to_ne_bytes());
    attr[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: the attribute points to a buffer of the length that it gives.
    let result = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, attr.as_mut_ptr(), attr.len()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let [a, b, c, d] = [info[216], info[217], info[218], info[219]];
    Ok(u32::from_ne_bytes([a, b, c, d]))
}
