//! Closer look at sampled packets. It counts the prefix of the source, notes a good cookie as pending, and reports
//! events. The [`Sampler`](tfo_common::sample::Sampler) of a packet's kind says when the next look is due.

use tfo_common::{
    bytes::Bytes as _,
    class::Class,
    description::Description,
    observed::{
        Connection, EventGuard, HEAD_LEN, Pending, Prefix, PrefixTally, Subject, Watch, is_remarkable,
    },
    sample::Sample,
    verdict::Verdict,
};

use crate::{
    context::Raw,
    frame::Frame,
    maps::{self, TFO_PENDING, TFO_PREFIXES},
};

/// `BPF_ANY` from linux/bpf.h.
const ANY: u64 = 0;

/// Looks at the described packet and sets when the next look is due. It is a global function, so the verifier checks it
/// once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_look(ctx: *mut Raw) -> u32 {
    if let Some(packet) = maps::packet() {
        maps::watch(|watch| look(&Frame::anew(ctx), packet, watch));
    }
    0
}

/// Does the work of [`tfo_look`], if the budget allows it.
#[inline(always)]
fn look(frame: &Frame, packet: &Description, watch: &mut Watch) {
    let (Some(samplers), Some(cell)) = (maps::samplers(packet.service), maps::cell(packet.service)) else {
        return;
    };
    let (packets, due) = cell.due(packet);
    let Some(taken) = samplers.of(packet).take(packets, due, maps::jiffies(), &mut watch.budget) else {
        return;
    };
    let (class, connection) = (packet.class(), &connection(frame, packet));
    if let Some(class) = class {
        remember_prefix(connection, class, taken.weight, watch);
        // The kernel does not know a portable cookie that is not translated.
        let is_passed_on = packet.portable != 0 && packet.verdict == Verdict::Pass as u32;
        if Subject::is_pending(class, packet.verdict as u16) && !is_passed_on {
            let pending = &Pending { weight: taken.weight, class: class as u64 };
            // If the entry can't be inserted, the outcome of the SYN is not counted.
            let _: Result<(), i32> = TFO_PENDING.insert(connection, pending, ANY);
        }
    }
    let guard = EventGuard::new(packet.guard, packet.would).number();
    if guard != 0 || class.is_none_or(is_remarkable) {
        report(frame, packet, connection, guard, taken, watch);
    }
}

/// Connection of a SYN, or [`Connection::NONE`] for a frame that could not be parsed.
#[inline(always)]
fn connection(frame: &Frame, syn: &Description) -> Connection {
    match frame.read(syn.tcp as usize) {
        Some(ports) if syn.class().is_some() => Connection::new(&syn.addresses(), ports),
        _ => Connection::NONE,
    }
}

/// Adds `weight` SYNs of `class` to the counts of their source's prefix.
#[inline(always)]
fn remember_prefix(connection: &Connection, class: Class, weight: u64, watch: &mut Watch) {
    // Static, because the stack is small.
    static TALLY: PrefixTally = PrefixTally::NEW;
    let new = &TALLY;

    let prefix = &Prefix::of(connection);
    let mut found = TFO_PREFIXES.get_ptr_mut(prefix);
    if found.is_none() && TFO_PREFIXES.insert(prefix, new, ANY).is_ok() {
        watch.prefixes += 1;
        found = TFO_PREFIXES.get_ptr_mut(prefix);
    }
    if let Some(tally) = found {
        // SAFETY: an entry of an LRU map stays readable and writable while the program runs. Another CPU may add to it
        // at the same time, so that one addition is lost, or the kernel may give the entry to another prefix. The
        // counts are only for a ranking.
        unsafe { (*tally).add(class, weight, connection) };
    }
}

/// Reports the packet as an event, if the budget and the ring have room. Counts it as skipped or lost if not.
#[inline(always)]
fn report(
    frame: &Frame,
    packet: &Description,
    connection: &Connection,
    guard: u16,
    taken: Sample,
    watch: &mut Watch,
) {
    let Sample { weight, is_first } = taken;
    if !watch.budget.events.spend(is_first) {
        watch.events_skipped += weight;
        return;
    }
    let is_reported = maps::report(|event| {
        event.subject = Subject {
            kind: packet.kind,
            detail: packet.detail,
            connection: *connection,
            verdict: packet.verdict as u16,
            guard,
            service: packet.service,
        };
        event.weight = weight;
        event.head_len = copy_head(frame, &mut event.head);
    });
    if is_reported {
        watch.events += 1;
    } else {
        watch.events_lost += weight;
    }
}

/// Copies the first bytes of `frame`, two at a time, and returns their number. Leaves out a last odd byte.
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
