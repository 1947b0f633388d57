//! The clock of flows: the kernel's ticks (jiffies), which a program reads without a call. See docs/decisions/0030.

use std::io;
use std::ops::RangeInclusive;

/// Jiffies of any Linux in ns: 1,000 to 100 a second.
const JIFFIES: RangeInclusive<i64> = 999_000..=10_100_000;

/// Length of a jiffy in ns.
///
/// # Errors
/// What the kernel says, or that what it says can be no jiffy.
pub(crate) fn jiffy() -> io::Result<u32> {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // The coarse clock moves with the jiffies (`KTIME_LOW_RES`, include/linux/hrtimer_defs.h).
    // SAFETY: the structure lives through the call.
    if unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let libc::timespec { tv_sec, tv_nsec } = resolution;
    if tv_sec != 0 || !JIFFIES.contains(&tv_nsec) {
        return Err(io::Error::other(format!(
            "the coarse clock moves every {tv_sec} s {tv_nsec} ns, which is no tick"
        )));
    }
    Ok(tv_nsec as u32)
}
