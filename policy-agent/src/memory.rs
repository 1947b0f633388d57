//! What the allocator does with memory that is free again.

/// Free memory at the end of the heap that is kept, in bytes.
const KEPT: libc::c_int = 128 * 1024;

/// Lets the allocator give back what it has no use for.
///
/// Said once, the C library no longer raises this limit, and the one beyond which a block is mapped by itself, with what it
/// sees (mallopt(3)): after a cluster's objects were read it would keep tens of MiB for more of the kind that never come.
pub fn give_back() {
    // SAFETY: the function has no preconditions. Refused, more memory is kept.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) };
}
