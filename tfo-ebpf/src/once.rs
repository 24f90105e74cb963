//! Data of SYNs for [`Guard::Once`](tfo_common::policy::Guard::Once), of services that compare it. Its steps are global
//! functions, so that no other service's SYNs pay for them.

use tfo_common::{
    bytes::Bytes as _,
    class::Class,
    description::Description,
    policy::Policy,
    request::{Request, request_tag},
    table::{Tag, syn_tag},
};

use crate::{context::Raw, frame::Frame, maps, outcome};

/// Notes the service of the described SYN for [`tfo_compare`]. The result is always 0.
///
/// In one function with it, the look-up would take more stack than Linux 5.10 has: it counts frames in steps of 32 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_note_service(ctx: *mut Raw) -> u32 {
    if let Some(syn) = maps::packet() {
        syn.service = maps::service_at(&Frame::anew(ctx), syn.tcp as usize, &syn.addresses());
    }
    0
}

/// Compares the data of the described SYN with what is remembered, and describes the result. The result is always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_compare(ctx: *mut Raw) -> u32 {
    if let Some(syn) = maps::packet() {
        compare(ctx, syn);
    }
    0
}

#[inline(always)]
fn compare(ctx: *mut Raw, syn: &mut Description) {
    (syn.request, syn.repeats) = (0, 0);
    let is_known =
        matches!(syn.class(), Some(Class::CookieCurrent | Class::CookieBackup | Class::CookieRetired));
    let may_be_served = is_known || syn.no_cookie != 0;
    if !may_be_served || syn.signed != 0 {
        return;
    }
    let (frame, tcp, addresses) = (&Frame::anew(ctx), syn.tcp as usize, &syn.addresses());
    let service = syn.service;
    let Some(policy) = maps::policy(service).filter(|policy| policy.has(Policy::COMPARES_DATA)) else {
        return;
    };
    if syn.fragment != 0 {
        // The rest of the data is in another frame. A client's SYN is not fragmented, so nobody loses anything.
        syn.repeats = 1;
        return;
    }
    if syn.data_len == 0 {
        return;
    }
    let Some(first) = frame.read(tcp) else { return };
    let what = (service, syn.data_len);
    let Some(tag) = request_tag(frame, tcp, addresses, what, maps::seed) else { return };
    let same_syn = syn_tag(addresses, first, maps::seed);
    (syn.request, syn.same_syn) = (tag.word(), same_syn.word());
    if let Some(seat) = maps::request_row(tag).and_then(|row| row.find(tag)) {
        let found = Request::from_word(seat.value.get());
        syn.repeats = found.is_repeated(maps::jiffies(), policy.once, same_syn).into();
    }
}

/// Remembers the data of the described SYN, which the kernel is about to serve. The result is always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_remember() -> u32 {
    if let Some(syn) = maps::packet()
        && let Some(policy) = maps::policy(syn.service)
    {
        remember(syn, policy.once);
    }
    0
}

#[inline(always)]
fn remember(syn: &Description, jiffies: u64) {
    let tag = Tag::from_word(syn.request);
    let Some(row) = maps::request_row(tag) else { return };
    let now = maps::jiffies();
    let new = Request::new(now, Tag::from_word(syn.same_syn)).word();
    if let Some(seat) = row.find(tag) {
        // A retransmission, or a repeated request in a dry run, does not prolong the time.
        if !Request::from_word(seat.value.get()).is_remembered(now, jiffies) {
            seat.value.set(new);
        }
    } else if Request::from_word(row.seat(tag, new)).is_remembered(now, jiffies) {
        outcome::count_forgotten(syn.service);
    }
}
