//! Fast path for the SYNs of usual frames: classifies, decides, counts and acts, in copies of the code in which family
//! and class are constants.

use tfo_common::{
    class::{Class, Classified, classify, classify_at},
    keyring::{KeyRing, SYSCTL},
    policy::{Decision, Policy, decide, decide_good},
    segment::{FastOpen, Segment},
    service::OTHER,
};

use crate::{
    act, context,
    frame::Frame,
    guards::{Syn, is_confirmed},
    maps, slow, watch,
};

/// Outcome of the fast path for a SYN.
pub(crate) enum Served {
    /// The SYN is neither described nor counted yet: its listeners have keys of their own, which [`slow::tfo_classify`] finds.
    NeedsWalk,
    /// The SYN is not counted yet. It is described for [`slow::finish`].
    NeedsSlowPath,
    /// The SYN is done with. This is its action.
    Done(u32),
}

/// Serves a SYN of [`tfo_ingress`](crate::tfo_ingress).
#[inline(always)]
pub(crate) fn unguarded(frame: &Frame, segment: &Segment) -> Served {
    if maps::domain(frame, segment) != SYSCTL {
        return Served::NeedsWalk;
    }
    let ring = maps::key_ring_for(segment, SYSCTL);
    let found = classify(segment, ring, maps::Budget);
    Served::Done(found.class.constant(|class| {
        let policy = &Policy::of_mode(maps::mode());
        // This policy has no guards, so `decide` does not ask for the service. `OTHER` stands in for it.
        let decision = decide(policy, class, syn(frame, segment, policy, OTHER));
        // Without services, `count` gets a constant. With a variable, each key that is tried takes a nanosecond longer.
        let count = |service| count(frame, segment, ring, Classified { class, ..found }, decision, service);
        if maps::has_services() {
            count(maps::service(frame, segment))
        } else {
            count(OTHER)
        }
        act::act(*frame, decision.verdict, class, segment, || ring)
    }))
}

/// Serves a SYN of [`tfo_shield`](crate::tfo_shield) that has neither Fast Open option nor data and is not answered, or a good
/// cookie that no guard stops. Describes any other SYN for the slow path.
#[inline(always)]
pub(crate) fn guarded(frame: &Frame, segment: &Segment) -> Served {
    // Linux 5.10 has no stack left here to look for the domain of the port, so the walk does it.
    if maps::may_have_domain(segment) {
        return Served::NeedsWalk;
    }
    let ring = maps::key_ring_for(segment, SYSCTL);
    let found = classify_at(segment, ring, maps::portable_tag(frame, segment), maps::Budget);
    let is_served = match segment.fast_open {
        // Without data, only `answer` concerns a SYN without the option, or with an option that is ignored. The latter is
        // rare, and takes the slow path.
        FastOpen::Absent => {
            let service = maps::service(frame, segment);
            let is_answered =
                maps::answers() && maps::policy(service).is_some_and(|policy| policy.has(Policy::ANSWERS));
            // The kernel serves the data of such a SYN where it needs no cookie. Few have data, and these take the slow path.
            let is_done = !is_answered && segment.data_len == 0;
            if is_done {
                count(frame, segment, ring, found, Decision::PASS, service);
            }
            is_done
        }
        FastOpen::Cookie(_) if maps::has_portable() && found.is_portable => {
            serve_portable(frame, segment, ring, found)
        }
        FastOpen::Ignored | FastOpen::Request | FastOpen::Cookie(_) | FastOpen::BadLength => {
            found.class.constant(|class| serve_good(frame, segment, ring, Classified { class, ..found }))
        }
    };
    if is_served {
        Served::Done(context::PASS)
    } else {
        slow::describe(&segment.further_in(frame.skipped), found, ring, SYSCTL);
        Served::NeedsSlowPath
    }
}

/// Counts a SYN with a good cookie that no guard stops, and clamps its window if the guard `clamp` acts. The guard
/// `fair` spends a token of the source.
///
/// Returns true for such a SYN. For any other it returns false, and has counted, spent and changed nothing.
#[inline(always)]
fn serve_good(frame: &Frame, segment: &Segment, ring: &KeyRing, found: Classified) -> bool {
    if !matches!(found.class, Class::CookieCurrent | Class::CookieBackup) {
        return false;
    }
    let service = maps::service(frame, segment);
    let Some(policy) = maps::policy(service) else { return false };
    decide_good(policy, syn(frame, segment, policy, service), |decision| {
        count(frame, segment, ring, found, decision, service);
        if decision.clamps {
            act::clamp(*frame, segment.tcp as usize, policy.max_window(segment.data_len));
        }
    })
}

/// Serves a SYN with a portable cookie of the current key as [`serve_good`] does, and translates the cookie.
#[inline(always)]
fn serve_portable(frame: &Frame, segment: &Segment, ring: &KeyRing, found: Classified) -> bool {
    if !matches!(found.class, Class::CookieCurrent) || !is_confirmed(SYSCTL) {
        return false;
    }
    let found = Classified { class: Class::CookieCurrent, ..found };
    let service = maps::service(frame, segment);
    let Some(policy) = maps::policy(service) else { return false };
    let syn = Syn { portable: true, ..syn(frame, segment, policy, service) };
    let is_served = policy.has(Policy::TRANSLATES)
        && decide_good(policy, syn, |decision| {
            count(frame, segment, ring, found, decision, service);
            if decision.clamps {
                act::clamp(*frame, segment.tcp as usize, policy.max_window(segment.data_len));
            }
        });
    if is_served {
        act::translate_portable(frame.renewed(), segment, ring);
    }
    is_served
}

/// Facts about a SYN for the guards of `service`.
#[inline(always)]
fn syn<'a>(frame: &'a Frame, segment: &'a Segment, policy: &'a Policy, service: u32) -> Syn<'a> {
    let Segment { addresses, tcp, data_len, .. } = segment;
    let (tcp, data_len) = (*tcp as usize, *data_len);
    Syn {
        frame,
        addresses,
        tcp,
        data_len,
        policy,
        service,
        repeats: false,
        needs_no_cookie: false,
        portable: false,
        is_described: false,
    }
}

/// Counts the SYN under its class and `decision`. Takes the closer look if one is due.
#[inline(always)]
fn count(
    frame: &Frame,
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
        // Without `set_cookie`: the closer look reads neither the cookie nor the track of its key, and `count_syn` has
        // counted the hit of that key.
        syn.set_syn(&segment.further_in(frame.skipped), found.class);
        syn.portable = found.is_portable.into();
        syn.set_decision(decision, service);
        watch::tfo_look(frame.ctx);
    }
}
