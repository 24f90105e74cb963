//! The only place that may write to a packet. A verdict of `pass` leaves it as it came.

use aya_ebpf::bindings::xdp_action;
use tfo_common::verdict::Verdict;

/// Carries out `verdict` and returns the XDP action.
#[inline(always)]
pub(crate) fn act(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
    }
}
