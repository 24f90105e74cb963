//! Execution of decisions. Nothing else in the program writes to a packet or drops one. The functions that rewrite a
//! frame are in `tfo_common::rewrite`.

use tfo_common::{
    class::Class,
    description::Description,
    keyring::{CURRENT, KeyRing},
    rewrite,
    segment::Segment,
    verdict::Verdict,
};

use crate::{answer, context, frame::Frame, maps};

/// Carries out `verdict` on the SYN of `class` at `segment` in `frame`, and returns the action. `ring` finds the keys, which
/// only a translation needs.
#[inline(always)]
pub(crate) fn act<'a>(
    frame: Frame,
    verdict: Verdict,
    class: Class,
    segment: &Segment,
    ring: impl Fn() -> &'a KeyRing,
) -> u32 {
    match verdict {
        Verdict::Pass => {}
        Verdict::Rewrite if matches!(class, Class::CookieCurrent) => {
            translate_portable(frame, segment, ring())
        }
        Verdict::Rewrite => {
            if let Some(key) = ring().translation() {
                translate(frame, segment, key.cookie(&segment.addresses));
            }
        }
        Verdict::Hide => hide(frame.ctx, frame.skipped as u32 + segment.tcp),
        Verdict::Drop => return context::DROP,
        Verdict::Answer if maps::answers() => return answer::tfo_answer(frame.ctx),
        Verdict::Answer => {}
    }
    context::PASS
}

/// Translates the portable cookie of the current key. The kernel need not hand out a fresh one, as it does for its backup
/// key.
#[inline(always)]
pub(crate) fn translate_portable(frame: Frame, segment: &Segment, ring: &KeyRing) {
    if ring.holds(CURRENT) {
        translate(frame, segment, ring.slots[CURRENT].cookie(&segment.addresses));
    }
}

#[inline(always)]
fn translate(mut frame: Frame, segment: &Segment, cookie: u64) {
    rewrite::translate(&mut frame, segment, cookie);
}

/// Returns the action for a described frame without a class.
#[inline(always)]
pub(crate) fn unfollowed(frame: Option<&mut Description>) -> u32 {
    match frame {
        Some(frame) if frame.verdict == Verdict::Drop as u32 => context::DROP,
        _ => context::PASS,
    }
}

/// Sets the window of the SYN whose TCP header is at `tcp` to `most` bytes. A clamp is no verdict: the SYN also gets
/// one.
#[inline(always)]
pub(crate) fn clamp(mut frame: Frame, tcp: usize, most: u16) {
    rewrite::clamp(&mut frame, tcp, most);
}

/// Overwrites every Fast Open option of the SYN whose TCP header is at `tcp`.
///
/// It is not inlined: it walks through all options, and hidden SYNs need no speed.
#[inline(never)]
fn hide(ctx: *mut context::Raw, tcp: u32) {
    // The mask tells the verifier how large the offset can be.
    rewrite::hide(&mut Frame::anew(ctx), (tcp & 0xffff) as usize);
}
