//! The rest of the journey where services are protected: what their guards look at, and what follows from it. See
//! `tfo_common::policy`.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    programs::XdpContext,
};
use tfo_common::{
    bytes::Bytes as _,
    class::{Class, Classified, classify},
    handed::{Found, Handed, Hint},
    keyring::KeyRing,
    parse::walk,
    policy::{
        Decision, Facts, Guard, Limit, Policy, Remembered, Row, SourceMask, Spent, TICKS, Tag, decide,
        decide_good, syn_tag,
    },
    rewrite,
    segment::{Addresses, FastOpen, Segment},
    verdict::Verdict,
};

use crate::{act, confirmed::tfo_is_confirmed, count, frame::Frame, maps, unclassified};

/// A SYN in one of the usual frames: what is left to do for it. Nearly always nothing: it has no option, or its cookie is good and no
/// guard minds.
#[inline(always)]
pub(crate) fn usual(ctx: &XdpContext, frame: &Frame, segment: &Segment) -> Option<Handed> {
    let ring = maps::key_ring(segment);
    let found = classify(segment, ring);
    let passes = match segment.fast_open {
        // No guard has anything to look at.
        FastOpen::Absent => {
            let service = maps::service(frame, segment.tcp as usize, || Some(segment.addresses));
            count_usual(ctx, segment, ring, found, Decision::PASS, service);
            true
        }
        _ => found.class.constant(|class| passes(ctx, frame, segment, ring, Classified { class, ..found })),
    };
    if passes { None } else { Some(Handed::syn(segment, found, ring)) }
}

/// The rest of its journey, where its cookie is good and no guard keeps it from the kernel. Whether that was so.
#[inline(always)]
fn passes(ctx: &XdpContext, frame: &Frame, segment: &Segment, ring: &KeyRing, found: Classified) -> bool {
    if !matches!(found.class, Class::CookieCurrent | Class::CookieBackup) {
        return false;
    }
    let service = maps::service(frame, segment.tcp as usize, || Some(segment.addresses));
    let Some(policy) = maps::policy(service) else { return false };
    decide_good(policy, Usual { frame, segment, policy, service }, |decision| {
        count_usual(ctx, segment, ring, found, decision, service);
        if decision.clamps() {
            act::clamp(*frame, segment.tcp as usize, policy.most(segment.data_len));
        }
    })
}

/// Counts it as what it is, with what was decided.
#[inline(always)]
fn count_usual(
    ctx: &XdpContext,
    segment: &Segment,
    ring: &KeyRing,
    found: Classified,
    decision: Decision,
    service: u32,
) {
    let hint = Hint::syn(segment, found.class, decision, service);
    count(ctx.ctx, found.class.is_fast_open(), hint, service, |cell| {
        cell.count_guards(decision);
        cell.count_syn(segment, found, decision.verdict(), ring)
    });
}

/// What is not one of the usual frames, in a function of its own: the word of a [`Handed`].
#[inline(never)]
pub(crate) fn unusual(ctx: *mut xdp_md) -> u64 {
    let found = match walk(&Frame::anew(ctx), maps::link_layer()) {
        Ok(Some(segment)) => {
            let ring = maps::key_ring(&segment);
            Handed::syn(&segment, classify(&segment, ring), ring)
        }
        Ok(None) => Handed::NOTHING,
        Err(fault) => Handed::fault(fault),
    };
    found.word()
}

/// From the class on. Most of what it needs is read anew: the verifier is to see one `found` of which it knows nothing, and not one
/// for each way that leads here.
#[inline(always)]
pub(crate) fn serve(ctx: &XdpContext, found: Handed) -> u32 {
    let frame = &Frame::anew(ctx.ctx);
    let syn = match Handed::from_word(frame.opaque(found.word())).found() {
        Found::Syn(syn) => syn,
        Found::Fault(fault) => return unclassified(ctx, fault),
        Found::Nothing => return xdp_action::XDP_PASS,
    };
    let service = maps::service(frame, syn.place().tcp(), || syn.place().addresses(frame));
    let Some(policy) = maps::policy(service) else { return xdp_action::XDP_PASS };
    let class = class(syn);
    let decision = decide(policy, class, Looks { ctx, syn, policy, service });
    let hint = syn.hint(decision, service);
    count(ctx.ctx, class.is_fast_open(), hint, service, |cell| cell.count_handed(syn, hint, decision));
    if decision.changes_nothing() {
        return xdp_action::XDP_PASS;
    }
    if decision.clamps() {
        act::clamp(Frame::anew(ctx.ctx), syn.place().tcp(), policy.most(syn.data_len()));
    }
    match decision.verdict() {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Rewrite | Verdict::Hide | Verdict::Drop => tfo_act(ctx.ctx, syn.word(), decision.word()),
    }
}

/// The class of `syn`: not by a table, which would have to be read.
#[inline(always)]
fn class(syn: Handed) -> Class {
    match syn.place().class() {
        0 => Class::PlainSyn,
        1 => Class::OptionIgnored,
        2 => Class::CookieRequest,
        3 => Class::CookieCurrent,
        4 => Class::CookieBackup,
        5 => Class::CookieRetired,
        6 => Class::CookieUnknown,
        _ => Class::CookieBadLength,
    }
}

/// What the guards look at in a usual frame.
struct Usual<'a> {
    frame: &'a Frame,
    segment: &'a Segment,
    policy: &'a Policy,
    service: u32,
}

impl Facts for Usual<'_> {
    #[inline(always)]
    fn has_translation(&self) -> bool {
        true
    }

    #[inline(always)]
    fn trips(&mut self, guard: Guard) -> bool {
        let Self { frame, segment, policy, service } = *self;
        match guard {
            Guard::Once => is_replay(frame, segment.tcp as usize, &segment.addresses, policy),
            Guard::Fair => {
                is_too_many(&segment.addresses, service, &policy.fair_source, &policy.fair, maps::source)
            }
            Guard::Clamp => is_too_wide(frame, segment.tcp as usize, segment.data_len, policy),
            // Not asked here.
            Guard::Hide | Guard::Shed => true,
        }
    }
}

/// What they look at in any.
struct Looks<'a> {
    ctx: &'a XdpContext,
    syn: Handed,
    policy: &'a Policy,
    service: u32,
}

impl Facts for Looks<'_> {
    #[inline(always)]
    fn has_translation(&self) -> bool {
        maps::ring().is_some_and(|ring| ring.translation().is_some()) && tfo_is_confirmed() != 0
    }

    #[inline(always)]
    fn trips(&mut self, guard: Guard) -> bool {
        let Self { ctx, syn, policy, service } = *self;
        let frame = &Frame::anew(ctx.ctx);
        match guard {
            Guard::Hide => tfo_is_hidden(ctx.ctx, syn.word()) != 0,
            Guard::Once => syn
                .place()
                .addresses(frame)
                .is_some_and(|addresses| is_replay(frame, syn.place().tcp(), &addresses, policy)),
            Guard::Fair => syn.place().addresses(frame).is_some_and(|addresses| {
                is_too_many(&addresses, service, &policy.fair_source, &policy.fair, maps::source)
            }),
            Guard::Clamp => is_too_wide(frame, syn.place().tcp(), syn.data_len(), policy),
            Guard::Shed => tfo_is_flood(ctx.ctx, syn.word(), service) != 0,
        }
    }

    #[inline(always)]
    fn opaque(&self, word: u64) -> u64 {
        Frame::anew(self.ctx.ctx).opaque(word)
    }
}

/// Whether it is the SYN of a connection that has ended, and is remembered.
#[inline(always)]
fn is_replay(frame: &Frame, tcp: usize, addresses: &Addresses, policy: &Policy) -> bool {
    let Some(first) = frame.read(tcp) else { return false };
    let tag = syn_tag(addresses, first, maps::seed());
    let Some(seat) = maps::replays(tag).and_then(|row| row.find(tag)) else { return false };
    Remembered::from_word(seat.value.get()).is_replay(maps::jiffies(), policy.once)
}

/// Whether its source has had as many as it may.
#[inline(always)]
fn is_too_many(
    addresses: &Addresses,
    service: u32,
    source: &SourceMask,
    limit: &Limit,
    row: impl FnOnce(Tag) -> Option<&'static Row>,
) -> bool {
    let tag = source.tag(addresses, service, maps::seed());
    let Some(row) = row(tag) else { return false };
    let spent = row.spend(tag, limit, now());
    if spent == Spent::GrantedForgetting {
        maps::watch(|watch| watch.sources_forgotten += 1);
    }
    spent == Spent::Denied
}

/// Whether its window would let the kernel send more than is allowed.
#[inline(always)]
fn is_too_wide(frame: &Frame, tcp: usize, data_len: u32, policy: &Policy) -> bool {
    rewrite::window(frame, tcp).is_some_and(|window| !policy.allows(window, data_len))
}

/// In the unit of [`Limit`].
#[inline(always)]
fn now() -> u64 {
    maps::jiffies() * TICKS
}

// What few packets need is not inlined. The verifier takes in a global function once, by itself, and not again for every way that
// leads to it: that is why these take but numbers.

/// Whether the source is one of those that are hidden by order.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_is_hidden(ctx: *mut xdp_md, syn: u64) -> u32 {
    let addresses = Handed::from_word(syn).place().addresses(&Frame::anew(ctx));
    addresses.is_some_and(|addresses| maps::is_hidden(&addresses)).into()
}

/// Whether there are more unknown cookies than there may be, from its source or in all, and it is confirmed that they are unknown.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_is_flood(ctx: *mut xdp_md, syn: u64, service: u32) -> u32 {
    let (frame, syn) = (Frame::anew(ctx), Handed::from_word(syn));
    let Some(policy) = maps::policy(service) else { return 0 };
    let from_source = || {
        syn.place().addresses(&frame).is_some_and(|addresses| {
            is_too_many(&addresses, service, &policy.shed_source, &policy.shed_per_source, maps::forger)
        })
    };
    let in_all = || maps::unknown(service).is_some_and(|until| !policy.shed.spend(until, now()));
    let is_flood =
        policy.has(Policy::SHEDS_SOURCES) && from_source() || policy.has(Policy::SHEDS_ALL) && in_all();
    (is_flood && tfo_is_confirmed() != 0).into()
}

/// Does with the SYN what was decided.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_act(ctx: *mut xdp_md, syn: u64, decision: u64) -> u32 {
    let (syn, frame) = (Handed::from_word(syn), Frame::anew(ctx));
    let Some(segment) = syn.read(&frame) else { return xdp_action::XDP_PASS };
    act::act(
        &XdpContext::new(ctx),
        Decision::from_word(decision).verdict(),
        &segment,
        maps::key_ring(&segment),
    )
}
