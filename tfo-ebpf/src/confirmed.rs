//! The controller's heartbeat. Where nobody confirms that the keys in the map are the kernel's, a cookie that the kernel would take may
//! be unknown here: then none is shed, and none translated.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use tfo_common::{
    keyring::KeyRing,
    policy::{Facts, Guard},
};

use crate::maps;

/// Whether the keys are confirmed; a SYN for which they are not is counted. It is to be asked where that alone decides.
#[inline(always)]
fn is_confirmed() -> bool {
    let confirmed_ns = maps::confirmed_ns();
    let mut is_confirmed = false;
    maps::watch(|watch| {
        // SAFETY: takes nothing.
        let clock = || unsafe { bpf_ktime_get_ns() };
        is_confirmed = watch.confirmed.is_recent(confirmed_ns, maps::jiffies(), clock);
        watch.unconfirmed += u64::from(!is_confirmed);
    });
    is_confirmed
}

/// The same, where few packets need it: a global function, which the verifier takes in once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_is_confirmed() -> u32 {
    is_confirmed().into()
}

/// What is to be known of a SYN where there are no guards.
pub(crate) struct Unguarded<'a>(pub(crate) &'a KeyRing);

impl Facts for Unguarded<'_> {
    /// Inlined: a call would cost a rewrite a tenth more.
    #[inline(always)]
    fn has_translation(&self) -> bool {
        self.0.translation().is_some() && is_confirmed()
    }

    #[inline(always)]
    fn trips(&mut self, _guard: Guard) -> bool {
        false
    }
}
