//! The kernel's clock.

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    time::{ClockId, clock_getres},
};

/// How many jiffies there are in a second. No file says it; the coarse clocks tick with them (`posix_get_coarse_res`).
pub fn jiffies_per_second() -> Result<u64> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("cannot ask how long a jiffy is")?;
    let nanoseconds = tick.tv_sec() * 1_000_000_000 + tick.tv_nsec();
    u64::try_from(nanoseconds)
        .ok()
        .and_then(|tick| 1_000_000_000_u64.checked_div(tick))
        .context("a jiffy of no time")
}

/// Whether something, such as NTP, keeps the clock right.
pub fn is_clock_synchronised() -> Result<bool> {
    // SAFETY: zeros are a `timex`, which is nothing but integers.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` may be written, and with modes 0 nothing is set.
    let clock = unsafe { libc::adjtimex(&raw mut state) };
    Errno::result(clock).context("cannot read the clock's state (adjtimex)")?;
    Ok(clock != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0)
}
