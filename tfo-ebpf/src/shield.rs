//! The rest of the journey where services are protected: what their guards look at, and what follows from it. See
//! `tfo_common::policy`.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    programs::XdpContext,
};
use tfo_common::{
    bytes::Bytes as _,
    class::{Class, classify},
    handed::{Found, Handed},
    parse::walk,
    policy::{
        Decision, Facts, Guard, Limit, Policy, Remembered, Row, SourceMask, Spent, TICKS, Tag, decide,
        syn_tag,
    },
    rewrite,
    segment::Segment,
    verdict::Verdict,
};

use crate::{act::act, count, frame::Frame, maps, unclassified};

/// A SYN, classified.
#[inline(always)]
pub(crate) fn classified(segment: &Segment) -> Handed {
    let ring = maps::key_ring(segment);
    Handed::syn(segment, classify(segment, ring), ring)
}

/// What is not one of the usual frames, in a function of its own: the word of a [`Handed`].
#[inline(never)]
pub(crate) fn unusual(ctx: *mut xdp_md) -> u64 {
    let found = match walk(&Frame::anew(ctx), maps::link_layer()) {
        Ok(Some(segment)) => classified(&segment),
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
    let service = maps::service(frame, syn.tcp(), || syn.addresses(frame));
    let Some(policy) = maps::policy(service) else { return xdp_action::XDP_PASS };
    let class = class(syn);
    let decision = decide(policy, class, Looks { ctx, syn, policy, service });
    let hint = syn.hint(decision, service);
    count(ctx.ctx, class.is_fast_open(), hint, service, |cell| cell.count_handed(syn, hint, decision));
    if decision.changes_nothing() {
        return xdp_action::XDP_PASS;
    }
    if decision.clamps() {
        rewrite::clamp(&mut Frame::anew(ctx.ctx), syn.tcp(), policy.most(syn.data_len()));
    }
    match decision.verdict() {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Rewrite | Verdict::Hide | Verdict::Drop => tfo_act(ctx.ctx, syn.word(), decision.word()),
    }
}

/// The class of `syn`: not by a table, which would have to be read.
#[inline(always)]
fn class(syn: Handed) -> Class {
    match syn.class() {
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

/// What the guards look at.
struct Looks<'a> {
    ctx: &'a XdpContext,
    syn: Handed,
    policy: &'a Policy,
    service: u32,
}

impl Facts for Looks<'_> {
    #[inline(always)]
    fn has_translation(&self) -> bool {
        maps::ring().is_some_and(|ring| ring.translation().is_some())
    }

    #[inline(always)]
    fn trips(&mut self, guard: Guard) -> bool {
        let Self { ctx, syn, policy, service } = *self;
        let frame = &Frame::anew(ctx.ctx);
        match guard {
            Guard::Hide => tfo_is_hidden(ctx.ctx, syn.word()) != 0,
            Guard::Once => is_replay(frame, syn, policy),
            Guard::Fair => is_too_many(frame, syn, service, &policy.fair_source, &policy.fair, maps::source),
            Guard::Clamp => {
                let window = rewrite::window(frame, syn.tcp());
                window.is_some_and(|window| window > policy.most(syn.data_len()))
            }
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
fn is_replay(frame: &Frame, syn: Handed, policy: &Policy) -> bool {
    /// Where a TCP header has the sequence number.
    const SEQUENCE: usize = 4;

    let ends = (frame.read(syn.tcp()), frame.read(syn.tcp() + SEQUENCE));
    let (Some(addresses), (Some(ports), Some(isn))) = (syn.addresses(frame), ends) else { return false };
    let tag = syn_tag(&addresses, ports, u32::from_be_bytes(isn), maps::seed());
    let Some(seat) = maps::replays(tag).and_then(|row| row.find(tag)) else { return false };
    Remembered::from_word(seat.value.get()).is_replay(maps::jiffies(), policy.once)
}

/// Whether its source has had as many as it may.
#[inline(always)]
fn is_too_many(
    frame: &Frame,
    syn: Handed,
    service: u32,
    source: &SourceMask,
    limit: &Limit,
    row: impl FnOnce(Tag) -> Option<&'static Row>,
) -> bool {
    let Some(addresses) = syn.addresses(frame) else { return false };
    let tag = source.tag(&addresses, service, maps::seed());
    let Some(row) = row(tag) else { return false };
    let spent = row.spend(tag, limit, now());
    if spent == Spent::GrantedForgetting {
        maps::watch(|watch| watch.sources_forgotten += 1);
    }
    spent == Spent::Denied
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
    let addresses = Handed::from_word(syn).addresses(&Frame::anew(ctx));
    addresses.is_some_and(|addresses| maps::is_hidden(addresses.source_v6())).into()
}

/// Whether there are more unknown cookies than there may be, from its source or in all.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_is_flood(ctx: *mut xdp_md, syn: u64, service: u32) -> u32 {
    let (frame, syn) = (Frame::anew(ctx), Handed::from_word(syn));
    let Some(policy) = maps::policy(service) else { return 0 };
    let from_source =
        || is_too_many(&frame, syn, service, &policy.shed_source, &policy.shed_per_source, maps::forger);
    let in_all = || maps::unknown(service).is_some_and(|until| !policy.shed.spend(until, now()));
    let is_flood =
        policy.has(Policy::SHEDS_SOURCES) && from_source() || policy.has(Policy::SHEDS_ALL) && in_all();
    is_flood.into()
}

/// Does with the SYN what was decided.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_act(ctx: *mut xdp_md, syn: u64, decision: u64) -> u32 {
    let (syn, frame) = (Handed::from_word(syn), Frame::anew(ctx));
    let Some(segment) = syn.read(&frame) else { return xdp_action::XDP_PASS };
    act(&XdpContext::new(ctx), Decision::from_word(decision).verdict(), &segment, maps::key_ring(&segment))
}
