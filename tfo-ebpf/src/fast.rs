//! The usual frames, from their SYN on: all of their journey in one place, in copies in which family and class are constants.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use tfo_common::{
    class::{Class, Classified, classify},
    keyring::KeyRing,
    policy::{Decision, Policy, decide, decide_good},
    segment::{FastOpen, Segment},
    service::OTHER,
};

use crate::{act, frame::Frame, guards::Syn, maps, slow, watch};

/// Serves a SYN of [`tfo_ingress`](crate::tfo_ingress), and returns the XDP action.
#[inline(always)]
pub(crate) fn unguarded(ctx: &XdpContext, frame: &Frame, segment: &Segment) -> Option<u32> {
    let ring = maps::key_ring(segment);
    let found = classify(segment, ring);
    Some(found.class.constant(|class| {
        let policy = &Policy::of_mode(maps::mode());
        // No guard is asked.
        let decision = decide(policy, class, syn(frame, segment, policy, OTHER));
        // One more copy: with a variable for the service, each key that is tried takes a nanosecond longer.
        let count = |service| count(ctx, segment, ring, Classified { class, ..found }, decision, service);
        if maps::has_services() {
            count(maps::service(frame, segment))
        } else {
            count(OTHER)
        }
        act::act(ctx, decision.verdict, segment, ring)
    }))
}

/// Serves a SYN of [`tfo_shield`](crate::tfo_shield) that has no option, or a good cookie that no guard stops.
/// Describes any other SYN for the slow path, and returns `None`.
#[inline(always)]
pub(crate) fn guarded(ctx: &XdpContext, frame: &Frame, segment: &Segment) -> Option<u32> {
    let ring = maps::key_ring(segment);
    let found = classify(segment, ring);
    let passes = match segment.fast_open {
        // No guard has anything to look at.
        FastOpen::Absent => {
            count(ctx, segment, ring, found, Decision::PASS, maps::service(frame, segment));
            true
        }
        FastOpen::Ignored | FastOpen::Request | FastOpen::Cookie(_) | FastOpen::BadLength => {
            found.class.constant(|class| passes(ctx, frame, segment, ring, Classified { class, ..found }))
        }
    };
    if passes {
        Some(xdp_action::XDP_PASS)
    } else {
        slow::describe(segment, found, ring);
        None
    }
}

/// Counts, and where need be clamps, a SYN with a good cookie that no guard stops. Returns false for any other,
/// untouched.
#[inline(always)]
fn passes(ctx: &XdpContext, frame: &Frame, segment: &Segment, ring: &KeyRing, found: Classified) -> bool {
    if !matches!(found.class, Class::CookieCurrent | Class::CookieBackup) {
        return false;
    }
    let service = maps::service(frame, segment);
    let Some(policy) = maps::policy(service) else { return false };
    decide_good(policy, syn(frame, segment, policy, service), |decision| {
        count(ctx, segment, ring, found, decision, service);
        if decision.clamps {
            act::clamp(*frame, segment.tcp as usize, policy.most(segment.data_len));
        }
    })
}

#[inline(always)]
fn syn<'a>(frame: &'a Frame, segment: &'a Segment, policy: &'a Policy, service: u32) -> Syn<'a> {
    let Segment { addresses, tcp, data_len, .. } = segment;
    Syn { frame, addresses, tcp: *tcp as usize, data_len: *data_len, policy, service }
}

/// Counts the SYN as what it is, with what was decided, and looks at it more closely where that is due.
#[inline(always)]
fn count(
    ctx: &XdpContext,
    segment: &Segment,
    ring: &KeyRing,
    found: Classified,
    decision: Decision,
    service: u32,
) {
    let Some(cell) = maps::cell(service) else { return };
    cell.count_guards(decision);
    let is_due = cell.count_syn(segment, found, decision.verdict, ring);
    if found.class.is_fast_open()
        && is_due
        && let Some(syn) = maps::packet()
    {
        syn.set_syn(segment, found.class);
        syn.set_decision(decision, service);
        watch::tfo_look(ctx.ctx);
    }
}
