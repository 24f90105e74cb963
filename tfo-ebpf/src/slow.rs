//! Slow path, for all that [`fast`](crate::fast) does not finish. Each step reads the
//! [`Description`](tfo_common::description::Description) of the packet that the step before has left in a map.

use core::hint::black_box;

use aya_log_ebpf::debug;
use tfo_common::{
    class::{Class, Classified, classify_at},
    keyring::{KeyRing, SYSCTL},
    observed::Subject,
    parse::walk,
    policy::{Concern, Policy, decide, decide_on, decide_refused},
    ports,
    segment::Segment,
    verdict::{Mode, Verdict},
};

use crate::{
    act, answer,
    context::{self, Context, Raw},
    frame::Frame,
    guards::Syn,
    local, maps, once, watch,
};

/// Results of [`tfo_walk`]: nothing to do, a SYN is described for [`finish`], or a frame without a class for
/// [`tfo_unfollowed`](crate::unfollowed::tfo_unfollowed).
pub(crate) const NOT_SYN: u32 = 0;
/// See [`NOT_SYN`].
pub(crate) const SYN: u32 = 1;
/// See [`NOT_SYN`].
pub(crate) const FAULT: u32 = 2;
/// Result of [`tfo_walk`]: a SYN with a cookie whose class is left to [`tfo_classify`].
const UNCLASSIFIED: u32 = 3;

/// Parses a frame header by header, describes it, and classifies a SYN. Linux 5.10 has no stack for both in one function.
#[inline(always)]
pub(crate) fn describe_any(ctx: *mut Raw) -> u32 {
    match tfo_walk(ctx) {
        UNCLASSIFIED => tfo_classify(ctx),
        other => other,
    }
}

/// Parses a frame header by header, and describes it. Where listeners have keys of their own, cookies are not classified yet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_walk(ctx: *mut Raw) -> u32 {
    context::pull(ctx);
    let frame = Frame::anew(ctx);
    match walk(frame, maps::link_layer()) {
        Ok(Some(segment)) => {
            let ring = maps::key_ring_for(&segment, SYSCTL);
            if maps::may_have_domain(&segment) {
                let nothing = Classified { class: Class::CookieUnknown, slot: None, is_portable: false };
                describe(&segment, nothing, ring, SYSCTL);
                return UNCLASSIFIED;
            }
            let tag = maps::portable_tag(&frame, &segment);
            describe(&segment, classify_at(&segment, ring, tag, maps::Budget), ring, SYSCTL);
            SYN
        }
        Ok(None) => NOT_SYN,
        Err(fault) => {
            if let Some(packet) = maps::packet() {
                packet.set_fault(fault);
            }
            debug!(&Context::new(ctx), "unclassified frame: {}", fault.name());
            FAULT
        }
    }
}

/// Classifies the described SYN, which has a cookie, under the keys of the listeners on its port.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_classify(ctx: *mut Raw) -> u32 {
    let Some(syn) = maps::packet() else { return NOT_SYN };
    let (frame, segment) = (Frame::anew(ctx), syn.segment());
    let domain = maps::domain(&frame, &segment);
    let ring = maps::key_ring_of(domain);
    // Portable cookies are of the sysctl's keys.
    let tag = if domain == SYSCTL { maps::portable_tag(&frame, &segment) } else { 0 };
    describe(&segment, classify_at(&segment, ring, tag, maps::Budget), ring, domain);
    SYN
}

/// Describes a SYN for [`finish`], which was classified under `ring` of `domain`.
#[inline(always)]
pub(crate) fn describe(segment: &Segment, found: Classified, ring: &KeyRing, domain: u32) {
    if let Some(syn) = maps::packet() {
        syn.set_syn(segment, found.class);
        syn.set_cookie(segment, found, ring);
        syn.set_domain(domain);
    }
}

/// Serves the described SYN: decides, counts and acts. Returns the action, or `None` if the SYN goes on unchanged.
#[inline(always)]
pub(crate) fn finish(ctx: *mut Raw) -> Option<u32> {
    if !decide_quickly(ctx)? {
        look_closer(ctx)?;
    }
    let syn = black_box(maps::packet()?);
    let (class, decision) = (syn.class()?, syn.decision());
    if maps::cell(syn.service)?.count_described(syn) && class.is_fast_open() {
        watch::tfo_look(ctx);
    }
    if maps::mode() == Mode::Observe || decision.changes_nothing() {
        return None;
    }
    let syn = maps::packet()?;
    if decision.clamps {
        let policy = maps::policy(syn.service)?;
        act::clamp(Frame::anew(ctx), syn.tcp as usize, policy.max_window(syn.data_len));
    }
    // Without a cookie, `segment` has the one of an earlier packet. Only a rewrite reads it, and it is of a cookie.
    let ring = || maps::key_ring_of(syn.domain);
    Some(act::act(Frame::anew(ctx), decision.verdict, syn.class()?, &syn.segment(), ring))
}

/// Decides on the described SYN if the kernel will not serve it and no more than a look is needed for that, as for the forged
/// SYNs of a flood. Returns whether it has decided.
#[inline(always)]
fn decide_quickly(ctx: *mut Raw) -> Option<bool> {
    if maps::mode() != Mode::Shield {
        return Some(false);
    }
    let syn = maps::packet()?;
    let (frame, tcp) = (&Frame::anew(ctx), syn.tcp as usize);
    let listening = maps::listening(frame, tcp);
    syn.set_no_cookie(listening & ports::NO_COOKIE != 0);
    if listening != 0 || syn.signed != 0 {
        return Some(false);
    }
    let (class, addresses) = (syn.class()?, &syn.addresses());
    let service = maps::service_at(frame, tcp, addresses);
    let policy = maps::policy(service)?;
    let facts = Syn {
        frame,
        addresses,
        tcp,
        data_len: syn.data_len,
        policy,
        service,
        repeats: false,
        needs_no_cookie: false,
        portable: false,
        is_described: true,
    };
    let decision = decide_refused(policy, class, facts);
    if let Some(decision) = decision {
        syn.set_decision(decision, service);
    }
    Some(decision.is_some())
}

/// Decides on the described SYN. It looks at all that the policy of its service may ask for.
#[inline(always)]
fn look_closer(ctx: *mut Raw) -> Option<()> {
    if maps::compares_data() {
        once::tfo_note_service(ctx);
        once::tfo_compare(ctx);
    }
    let syn = black_box(maps::packet()?);
    let (class, addresses, tcp) = (syn.class()?, &syn.addresses(), syn.tcp as usize);
    let frame = &Frame::anew(ctx);
    let service = maps::service_at(frame, tcp, addresses);
    let repeats = maps::compares_data() && syn.repeats != 0;
    let (data_len, needs_no_cookie) = (syn.data_len, maps::mode() == Mode::Shield && syn.no_cookie != 0);
    let portable = maps::has_portable() && syn.portable != 0;
    let facts = |policy| Syn {
        frame,
        addresses,
        tcp,
        data_len,
        policy,
        service,
        repeats,
        needs_no_cookie,
        portable,
        is_described: true,
    };
    // `tfo_shield` takes the policy from its map. `tfo_ingress` has one that is made of constants.
    let decision = if maps::mode() == Mode::Shield {
        let policy = maps::policy(service)?;
        syn.concern = Concern::of(policy, class, &facts(policy)).word();
        // From here on, the verifier does not know what concerns the SYN.
        let concern = Concern::from_word(black_box(&*syn).concern);
        decide_on(policy, concern, facts(policy))
    } else {
        let policy = &Policy::of_mode(maps::mode());
        decide(policy, class, facts(policy))
    };
    syn.set_decision(decision, service);

    // From here on, the verifier does not know which decision was made.
    let syn = black_box(syn);
    if maps::mode() != Mode::Observe && syn.spare_signed() {
        maps::watch(|watch| watch.signed_spared += 1);
    }
    if maps::mode() == Mode::Shield && syn.is_shed() {
        local::tfo_spare_others(ctx);
    }
    if maps::mode() == Mode::Shield && maps::answers() && syn.is_answered() {
        answer::tfo_prepare(ctx);
        if maps::packet()?.verdict == Verdict::Answer as u32 {
            answer::tfo_compose(ctx);
        }
    }
    let syn = black_box(syn);
    if maps::mode() == Mode::Shield {
        syn.drop_served();
    }
    if maps::compares_data()
        && syn.request != 0
        && (Subject::is_pending(syn.class()?, syn.verdict as u16) || syn.passes_without_cookie())
    {
        once::tfo_remember();
    }
    Some(())
}
