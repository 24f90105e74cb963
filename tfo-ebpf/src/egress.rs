//! Portable cookies in SYN-ACKs: the kernel's cookie is replaced by one that does not depend on the destination.
//!
//! Only a SYN-ACK with the cookie of a key in the ring, of a service with portable cookies, is changed.

use aya_ebpf::programs::TcContext;
use tfo_common::{
    class::SearchBudget as _,
    keyring::{BACKUP, CURRENT, KeyRing, SYSCTL},
    parse::{LONGEST_SYN_ACK, syn_ack},
    segment::Addresses,
};

use crate::{guards::is_confirmed, maps, sent::Sent};

/// Replaces the cookie of a SYN-ACK. Returns `None` for a packet that leaves as it came.
#[inline(always)]
pub(crate) fn exchange(ctx: &TcContext) -> Option<()> {
    if ctx.len() > LONGEST_SYN_ACK as u32 {
        return None;
    }
    let reply = syn_ack(Sent::new(ctx), maps::link_layer())?;
    let addresses = &reply.addresses;
    let tag = maps::portable_tag_of(maps::service_of(reply.port, addresses));
    if tag == 0 {
        return None;
    }
    let cookie = reply.cookie()?;
    let ring = maps::key_ring();
    let slot = slot(addresses, cookie.value, ring)?;
    // Without a confirmation, portable cookies are not translated when they come back.
    if !is_confirmed(SYSCTL) {
        return None;
    }
    let portable = ring.slots.get(slot)?.portable(addresses, tag);
    if reply.frame.replace(reply.tcp, cookie.offset as usize, cookie.value, portable) {
        maps::watch(|watch| watch.exchanged += 1);
    }
    Some(())
}

/// Slot of the key that made `cookie`. It is the current one, except for a moment while keys change. A listener with keys of
/// its own makes cookies of which there is none.
#[inline(always)]
fn slot(addresses: &Addresses, cookie: u64, ring: &KeyRing) -> Option<usize> {
    let is_of = |slot: usize| ring.holds(slot) && ring.slots[slot].cookie(addresses) == cookie;
    if is_of(CURRENT) {
        Some(CURRENT)
    } else if is_of(BACKUP) {
        Some(BACKUP)
    } else {
        maps::Budget.find(addresses, cookie, ring)
    }
}
