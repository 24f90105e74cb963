//! The kernel's clock.

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    time::{ClockId, clock_getres},
};

/// Returns the number of jiffies in a second. No file shows it, but the coarse clocks tick once a jiffy
/// (`posix_get_coarse_res`).
pub fn jiffies_per_second() -> Result<u64> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("cannot read the length of a jiffy")?;
    let nanoseconds = tick.tv_sec() * 1_000_000_000 + tick.tv_nsec();
    u64::try_from(nanoseconds)
        .ok()
        .and_then(|tick| 1_000_000_000_u64.checked_div(tick))
        .context("the kernel reports a jiffy of zero length")
}

/// Whether the clock is synchronised, for example by NTP.
pub fn is_clock_synchronised() -> Result<bool> {
    // SAFETY: `timex` has only integer fields, so all zeros is a valid value.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is valid for writes. With `modes` 0, adjtimex changes nothing.
    let clock = unsafe { libc::adjtimex(&raw mut state) };
    Errno::result(clock).context("cannot read the clock's state (adjtimex)")?;
    Ok(clock != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0)
}
