//! Takes the eBPF object that `cargo xtask build` made into this crate.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-env-changed=FAIRLEAD_BPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("fairlead.bpf.o");
    match env::var_os("FAIRLEAD_BPF_OBJECT") {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", PathBuf::from(&object).display());
            fs::copy(object, out)?;
        }
        // A build without the BPF toolchain: everything but loading the programs works.
        None => fs::write(out, [])?,
    }
    Ok(())
}
