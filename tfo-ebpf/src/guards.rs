//! [`Facts`] about a SYN for the guards: look-ups in their tables, and tokens of their rate limits.

use core::hint::black_box;

use tfo_common::{
    bytes::Bytes as _,
    keyring::SYSCTL,
    limit::{Limit, TICKS},
    policy::{Decision, Facts, Guard, Policy},
    rewrite,
    segment::Addresses,
    table::{Remembered, Row, SourceMask, Spent, Tag, syn_tag},
};

use crate::{frame::Frame, local, maps};

/// SYN that is presented to the guards of its service.
pub(crate) struct Syn<'a> {
    pub(crate) frame: &'a Frame,
    pub(crate) addresses: &'a Addresses,
    pub(crate) tcp: usize,
    pub(crate) data_len: u32,
    pub(crate) policy: &'a Policy,
    pub(crate) service: u32,
    /// Whether its data repeats that of an earlier SYN. It is compared on the slow path, for services that want that.
    pub(crate) repeats: bool,
    /// Whether the kernel serves it without a good cookie. That is looked up on the slow path: a good cookie that no guard
    /// stops passes in any case.
    pub(crate) needs_no_cookie: bool,
    /// Whether its cookie is a portable one.
    pub(crate) portable: bool,
    /// Whether it is the described packet, which has its key domain. Others are classified by the sysctl's keys.
    pub(crate) is_described: bool,
}

/// Asking [`Guard::Fair`] or [`Guard::Shed`] spends a token. [`Guard::Hide`] is asked for orders on sources only.
impl Facts for Syn<'_> {
    #[inline(always)]
    fn has_translation(&self) -> bool {
        maps::key_ring_of(self.domain()).translation().is_some() && check_confirmed(self.domain())
    }

    #[inline(always)]
    fn is_portable(&self) -> bool {
        self.portable
    }

    #[inline(always)]
    fn may_be_hidden(&self) -> bool {
        maps::may_be_hidden(self.addresses)
    }

    #[inline(always)]
    fn needs_no_cookie(&self) -> bool {
        self.needs_no_cookie
    }

    #[inline(always)]
    fn is_one_of_all(&self) -> bool {
        !self.policy.has(Policy::SHEDS_SOURCES)
            && (self.policy.has(Policy::SHEDS_OTHERS)
                || local::is_known_local(self.frame, self.addresses, self.tcp))
    }

    #[inline(always)]
    fn is_one_too_many(&mut self) -> bool {
        self.exceeds_total() && check_confirmed(self.domain())
    }

    #[inline(always)]
    fn anew(&self, decision: Decision) -> Decision {
        let Some(syn) = maps::packet() else { return decision };
        syn.set_decision(decision, self.service);
        black_box(syn).decision()
    }

    #[inline(always)]
    fn triggers(&mut self, guard: Guard) -> bool {
        match guard {
            Guard::Hide => self.may_be_hidden() && maps::is_hidden(self.addresses),
            Guard::Once => self.repeats || self.is_replay(),
            Guard::Fair => {
                let Policy { fair, fair_source, .. } = self.policy;
                !self.spend_token(fair_source, fair, maps::source_row)
            }
            Guard::Clamp => self.is_too_wide(),
            Guard::Shed => self.exceeds_a_limit() && check_confirmed(self.domain()),
            Guard::Answer => true,
        }
    }
}

impl Syn<'_> {
    /// Key domain under which it was classified. It is read anew each time, since Linux 5.10 has no stack left to keep it.
    #[inline(always)]
    fn domain(&self) -> u32 {
        if self.is_described { maps::packet().map_or(SYSCTL, |syn| syn.domain) } else { SYSCTL }
    }

    /// Whether the SYN is that of a remembered connection that has ended.
    #[inline(always)]
    fn is_replay(&self) -> bool {
        let Some(first) = self.frame.read(self.tcp) else { return false };
        let tag = syn_tag(self.addresses, first, maps::seed);
        let Some(seat) = maps::replay_row(tag).and_then(|row| row.find(tag)) else { return false };
        Remembered::from_word(seat.value.get()).is_replay(maps::jiffies(), self.policy.once)
    }

    /// Spends a token of the SYN's source under `limit`. Returns false if none is left.
    #[inline(always)]
    fn spend_token(
        &self,
        source: &SourceMask,
        limit: &Limit,
        row: impl FnOnce(Tag) -> Option<&'static Row>,
    ) -> bool {
        let tag = source.tag(self.addresses, self.service, maps::seed);
        let Some(row) = row(tag) else { return true };
        let spent = row.spend(tag, limit, now(), maps::add);
        if spent == Spent::GrantedEvicting {
            maps::watch(|watch| watch.sources_forgotten += 1);
        }
        spent != Spent::Denied
    }

    /// Whether the window of the SYN exceeds what `clamp` allows for its data.
    #[inline(always)]
    fn is_too_wide(&self) -> bool {
        let window = rewrite::window(self.frame, self.tcp);
        window.is_some_and(|window| !self.policy.allows_window(window, self.data_len))
    }

    /// Spends a token for an unknown cookie: first one of its source, then one of the service, as far as these limits
    /// are set. Returns true at the first limit that has no token left.
    #[inline(always)]
    fn exceeds_a_limit(&self) -> bool {
        let Policy { shed_source, shed_per_source, .. } = self.policy;
        self.policy.has(Policy::SHEDS_SOURCES)
            && !self.spend_token(shed_source, shed_per_source, maps::forger_row)
            || self.exceeds_total()
    }

    /// Spends a token of the service for an unknown cookie, if that limit is set. Returns true if none is left.
    #[inline(always)]
    fn exceeds_total(&self) -> bool {
        let spend = |last| self.policy.shed.spend(last, now(), maps::add);
        self.policy.has(Policy::SHEDS_ALL)
            && maps::last_unknown(self.service).is_some_and(|last| !spend(last))
    }
}

/// Current time, in the unit of [`Limit`].
#[inline(always)]
fn now() -> u64 {
    maps::jiffies() * TICKS
}

/// Returns whether the controller has lately confirmed that the keys of `domain` are the kernel's. If not, counts the
/// SYN as [unconfirmed](tfo_common::observed::Watch::unconfirmed), so call this last, when all else has been decided.
///
/// Without a confirmation, a cookie that the kernel would take may be unknown here. So no cookie is shed or translated
/// then, and no SYN is answered.
#[inline(always)]
pub(crate) fn check_confirmed(domain: u32) -> bool {
    let is_confirmed = is_confirmed(domain);
    if !is_confirmed {
        maps::watch(|watch| watch.unconfirmed += 1);
    }
    is_confirmed
}

/// Returns the same as [`check_confirmed`], and counts nothing.
#[inline(always)]
pub(crate) fn is_confirmed(domain: u32) -> bool {
    let confirmed_ns = maps::confirmed_ns(domain);
    let mut is_confirmed = false;
    maps::watch(|watch| {
        is_confirmed = watch.confirmed.is_recent(confirmed_ns, maps::jiffies(), maps::monotonic_ns);
    });
    is_confirmed
}
