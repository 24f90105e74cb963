//! Facts of the packet at hand that guards ask for: implements [`Facts`].

use tfo_common::{
    bytes::Bytes as _,
    policy::{Facts, Guard, Limit, Policy, Remembered, Row, SourceMask, Spent, TICKS, Tag, syn_tag},
    rewrite,
    segment::Addresses,
};

use crate::{frame::Frame, maps};

/// A SYN, of which guards may ask.
pub(crate) struct Syn<'a> {
    pub(crate) frame: &'a Frame,
    pub(crate) addresses: &'a Addresses,
    pub(crate) tcp: usize,
    pub(crate) data_len: u32,
    pub(crate) policy: &'a Policy,
    pub(crate) service: u32,
}

impl Facts for Syn<'_> {
    #[inline(always)]
    fn has_translation(&self) -> bool {
        maps::ring().translation().is_some() && is_confirmed()
    }

    #[inline(always)]
    fn trips(&mut self, guard: Guard) -> bool {
        match guard {
            Guard::Hide => maps::is_hidden(self.addresses),
            Guard::Once => self.is_replay(),
            Guard::Fair => {
                let Policy { fair, fair_source, .. } = self.policy;
                self.is_too_many(fair_source, fair, maps::source)
            }
            Guard::Clamp => self.is_too_wide(),
            Guard::Shed => self.is_flood() && is_confirmed(),
        }
    }
}

impl Syn<'_> {
    /// Whether it is the SYN of a connection that has ended, and is remembered.
    #[inline(always)]
    fn is_replay(&self) -> bool {
        let Some(first) = self.frame.read(self.tcp) else { return false };
        let tag = syn_tag(self.addresses, first, maps::seed());
        let Some(seat) = maps::replays(tag).and_then(|row| row.find(tag)) else { return false };
        Remembered::from_word(seat.value.get()).is_replay(maps::jiffies(), self.policy.once)
    }

    /// Takes one from the share of the SYN's source; true where none is left.
    #[inline(always)]
    fn is_too_many(
        &self,
        source: &SourceMask,
        limit: &Limit,
        row: impl FnOnce(Tag) -> Option<&'static Row>,
    ) -> bool {
        let tag = source.tag(self.addresses, self.service, maps::seed());
        let Some(row) = row(tag) else { return false };
        let spent = row.spend(tag, limit, now());
        if spent == Spent::GrantedForgetting {
            maps::watch(|watch| watch.sources_forgotten += 1);
        }
        spent == Spent::Denied
    }

    /// Whether its window would let the kernel send more than is allowed.
    #[inline(always)]
    fn is_too_wide(&self) -> bool {
        let window = rewrite::window(self.frame, self.tcp);
        window.is_some_and(|window| !self.policy.allows(window, self.data_len))
    }

    /// Takes one from the limits on unknown cookies; true where that of the source or of the service is used up.
    #[inline(always)]
    fn is_flood(&self) -> bool {
        let Policy { shed, shed_source, shed_per_source, .. } = self.policy;
        let in_all = || maps::unknown(self.service).is_some_and(|until| !shed.spend(until, now()));
        self.policy.has(Policy::SHEDS_SOURCES) && self.is_too_many(shed_source, shed_per_source, maps::forger)
            || self.policy.has(Policy::SHEDS_ALL) && in_all()
    }
}

/// The time, in the unit of [`Limit`].
#[inline(always)]
fn now() -> u64 {
    maps::jiffies() * TICKS
}

/// Whether the controller confirms that the keys in the map are the kernel's. Where nobody does, a cookie that the kernel would take may
/// be unknown here: then none is shed, and none translated. A SYN for which they are not confirmed is counted, so this is to be asked
/// where it alone decides.
#[inline(always)]
fn is_confirmed() -> bool {
    let confirmed_ns = maps::confirmed_ns();
    let mut is_confirmed = false;
    maps::watch(|watch| {
        is_confirmed = watch.confirmed.is_recent(confirmed_ns, maps::jiffies(), maps::monotonic_ns);
        watch.unconfirmed += u64::from(!is_confirmed);
    });
    is_confirmed
}
