//! The closer look at a packet whose [`Sampler`] is due: who sends it, whether it is worth an event, and, where its cookie is
//! good, that a connection is to come of it. None of it is on the way of most packets: it is a function of its own.

use aya_ebpf::programs::XdpContext;
use tfo_common::{
    bytes::Bytes as _,
    class::Class,
    observed::{Connection, HEAD_LEN, Kind, Pending, Prefix, PrefixTally, Subject, Watch, is_remarkable},
    parse::Fault,
    sample::{Sampler, Taken},
    segment::Segment,
    verdict::Verdict,
};

use crate::{
    frame::Frame,
    maps::{self, TFO_PENDING, TFO_PREFIXES},
};

const ANY: u64 = 0;

/// The last of `packets` SYNs of one kind is due.
#[inline(always)]
pub(crate) fn syn(
    ctx: &XdpContext,
    sampler: &mut Sampler,
    packets: u64,
    segment: &Segment,
    class: Class,
    verdict: Verdict,
    service: u32,
) {
    let ports = Frame::new(ctx).read(segment.tcp as usize).unwrap_or_default();
    let subject = Subject {
        kind: Kind::Syn as u32,
        detail: class as u32,
        connection: Connection::new(&segment.addresses, ports),
        verdict: verdict as u32,
        service,
    };
    look(ctx, sampler, packets, &subject);
}

/// The last of `packets` frames with `fault` is due.
#[inline(always)]
pub(crate) fn fault(ctx: &XdpContext, sampler: &mut Sampler, packets: u64, fault: Fault) {
    let (kind, detail) = match fault {
        Fault::Malformed(reason) => (Kind::Malformed, reason as u32),
        Fault::Unsupported(reason) => (Kind::Unsupported, reason as u32),
    };
    look(ctx, sampler, packets, &Subject { kind: kind as u32, detail, ..Subject::default() });
}

#[inline(never)]
fn look(ctx: &XdpContext, sampler: &mut Sampler, packets: u64, subject: &Subject) {
    maps::watch(|watch| {
        let Some(taken) = sampler.take(packets, maps::jiffies(), &mut watch.budget) else { return };
        if subject.kind != Kind::Syn as u32 {
            report(ctx, subject, taken, watch);
            return;
        }
        let Some(class) = Class::ALL.get(subject.detail as usize) else { return };
        remember_prefix(&subject.connection, *class, taken.weight, watch);
        if is_remarkable(*class) {
            report(ctx, subject, taken, watch);
        }
        if Subject::is_pending(*class, subject.verdict) {
            let pending = Pending { weight: taken.weight, class: u64::from(subject.detail) };
            // Where there is no room for it, nobody will know what became of the SYN.
            let _: Result<(), i32> = TFO_PENDING.insert(subject.connection, pending, ANY);
        }
    });
}

#[inline(always)]
fn remember_prefix(connection: &Connection, class: Class, weight: u64, watch: &mut Watch) {
    let prefix = Prefix::of(connection);
    if let Some(tally) = TFO_PREFIXES.get_ptr_mut(prefix) {
        // SAFETY: an entry of an LRU map stays readable and writable while the program runs. Another CPU may count for the same
        // prefix at the same instant, and one of the two be lost, or the entry be given to another prefix: this is a ranking.
        unsafe { (*tally).add(class, weight, connection) };
        return;
    }
    let mut tally = PrefixTally::default();
    tally.add(class, weight, connection);
    if TFO_PREFIXES.insert(prefix, tally, ANY).is_ok() {
        watch.prefixes += 1;
    }
}

#[inline(always)]
fn report(ctx: &XdpContext, subject: &Subject, taken: Taken, watch: &mut Watch) {
    let Taken { weight, is_first } = taken;
    if !watch.budget.events.spend(is_first) {
        watch.events_skipped += weight;
        return;
    }
    let is_reported = maps::report(|event| {
        event.subject = *subject;
        event.weight = weight;
        event.head_len = copy_head(&Frame::new(ctx), &mut event.head);
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
