//! The closer look at a packet whose [`Sampler`](tfo_common::sample::Sampler) says that it is due: who sends it, whether it is worth an event, and, where its cookie is
//! good, that a connection is to come of it. None of it is on the way of most packets: it is a function of its own.

use aya_ebpf::bindings::xdp_md;
use tfo_common::{
    bytes::Bytes as _,
    class::Class,
    handed::Hint,
    observed::{Connection, HEAD_LEN, Kind, Pending, Prefix, PrefixTally, Subject, Watch, is_remarkable},
    sample::Taken,
};

use crate::{
    frame::Frame,
    maps::{self, TFO_PENDING, TFO_PREFIXES},
};

const ANY: u64 = 0;

/// Looks at the packet, the last of `packets` of one kind, which is due, and says when the next one is `due`. Nothing is handed over by way of the stack, and few
/// words besides: whoever calls this keeps nothing for it that most packets do not need.
#[inline(never)]
pub(crate) fn look(ctx: *mut xdp_md, due: &mut u64, packets: u64, hint: Hint) {
    maps::watch(|watch| {
        let Some(samplers) = maps::samplers(hint.service()) else { return };
        let taken = samplers.of(hint).take(packets, due, maps::jiffies(), &mut watch.budget);
        let Some(taken) = taken else { return };
        let frame = Frame::anew(ctx);
        let is_syn = hint.kind() == Kind::Syn as u32;
        let class = Class::ALL.get(hint.detail() as usize).copied().filter(|_| is_syn);
        let subject = Subject {
            kind: hint.kind(),
            detail: hint.detail(),
            connection: if is_syn { connection(&frame, hint) } else { Connection::NONE },
            verdict: hint.verdict(),
            guard: hint.guard(),
            service: hint.service(),
        };
        if let Some(class) = class {
            remember_prefix(&subject.connection, class, taken.weight, watch);
            if Subject::is_pending(class, subject.verdict) {
                let pending = Pending { weight: taken.weight, class: class as u64 };
                // Where there is no room for it, nobody will know what became of the SYN.
                let _: Result<(), i32> = TFO_PENDING.insert(subject.connection, pending, ANY);
            }
        }
        if hint.guard() != 0 || class.is_none_or(is_remarkable) {
            report(&frame, &subject, taken, watch);
        }
    });
}

/// Read anew.
#[inline(always)]
fn connection(frame: &Frame, hint: Hint) -> Connection {
    match (hint.place().addresses(frame), frame.read(hint.place().tcp())) {
        (Some(addresses), Some(ports)) => Connection::new(&addresses, ports),
        _ => Connection::NONE,
    }
}

#[inline(always)]
fn remember_prefix(connection: &Connection, class: Class, weight: u64, watch: &mut Watch) {
    // Not on the stack, of which there is little.
    static TALLY: PrefixTally = PrefixTally::NEW;
    let new = &TALLY;

    let prefix = Prefix::of(connection);
    let mut found = TFO_PREFIXES.get_ptr_mut(prefix);
    if found.is_none() && TFO_PREFIXES.insert(prefix, new, ANY).is_ok() {
        watch.prefixes += 1;
        found = TFO_PREFIXES.get_ptr_mut(prefix);
    }
    if let Some(tally) = found {
        // SAFETY: an entry of an LRU map stays readable and writable while the program runs. Another CPU may count for the same
        // prefix at the same instant, and one of the two be lost, or the entry be given to another prefix: this is a ranking.
        unsafe { (*tally).add(class, weight, connection) };
    }
}

#[inline(always)]
fn report(frame: &Frame, subject: &Subject, taken: Taken, watch: &mut Watch) {
    let Taken { weight, is_first } = taken;
    if !watch.budget.events.spend(is_first) {
        watch.events_skipped += weight;
        return;
    }
    let is_reported = maps::report(|event| {
        event.subject = *subject;
        event.weight = weight;
        event.head_len = copy_head(frame, &mut event.head);
    });
    if is_reported {
        watch.events += 1;
    } else {
        watch.events_lost += weight;
    }
}

/// Copies how `frame` begins, by two bytes, since nothing says that it has a multiple of more; how many it were.
#[inline(always)]
fn copy_head(frame: &Frame, head: &mut [u8; HEAD_LEN]) -> u64 {
    let (pairs, _) = head.as_chunks_mut::<2>();
    let mut len = 0;
    for (i, pair) in pairs.iter_mut().enumerate() {
        let Some(bytes) = frame.read(2 * i) else { break };
        *pair = bytes;
        len = 2 * (i as u64 + 1);
    }
    len
}
