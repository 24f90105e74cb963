//! Outcomes of SYNs with a good cookie. The kernel's TCP calls the sock_ops program when a connection begins and, for a
//! Fast Open child, when its state changes. Other packets do not run it.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TIMEOUT_INIT, BPF_TCP_CLOSE, BPF_TCP_ESTABLISHED, BPF_TCP_SYN_RECV,
    },
    helpers::generated::bpf_get_netns_cookie,
    programs::SockOpsContext,
};
use tfo_common::{
    description::Kind,
    observed::{Connection, Outcomes, Pending, RTT_BUCKETS, RttBucket, Subject, rtt_bucket},
    segment::{Addresses, Family},
    table::{Remembered, Tag, syn_tag},
};

use crate::maps::{self, Socket, TFO_PENDING};

/// Return value of the program. `tcp_call_bpf` takes any other for an error.
pub(crate) const DONE: u32 = 1;

/// Address family from linux/socket.h.
const AF_INET6: u32 = 10;

/// Reads one field of the context by itself, as the verifier demands. LLVM would read two at once.
macro_rules! field {
    ($ctx:expr, $field:ident) => {
        // SAFETY: `ops` is the context that the kernel gave us.
        unsafe { (&raw const (*$ctx.ops).$field).read_volatile() }
    };
    ($ctx:expr, $field:ident[..]) => {
        core::array::from_fn::<u32, 4, _>(|i| {
            // SAFETY: as above, and `i` is below 4.
            unsafe { (&raw const (*$ctx.ops).$field).cast::<u32>().add(i).read_volatile() }
        })
    };
}
pub(crate) use field;

/// Counts the outcome that `ctx` reports.
#[inline(always)]
pub(crate) fn report(ctx: &SockOpsContext) {
    let op = field!(ctx, op);
    if !matches!(op, BPF_SOCK_OPS_TIMEOUT_INIT | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB | BPF_SOCK_OPS_STATE_CB)
    {
        return;
    }
    if !is_ours(ctx) {
        return;
    }
    let connection = connection(ctx);
    let service = maps::service_of(field!(ctx, local_port) as u16, &connection.addresses());
    match op {
        // tcp_fastopen_create_child: no ACK has come yet, so there is no round trip either.
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB if is_fast_open_child(ctx) => accepted(ctx, &connection, service),
        // tcp_rcv_state_process: the handshake of a Fast Open child ends.
        BPF_SOCK_OPS_STATE_CB if ctx.arg(0) == BPF_TCP_SYN_RECV && ctx.arg(1) == BPF_TCP_ESTABLISHED => {
            established(ctx, &connection, service);
        }
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => closed(ctx, &connection, service),
        BPF_SOCK_OPS_STATE_CB => {}
        // The socket is a Fast Open child or a client.
        BPF_SOCK_OPS_TIMEOUT_INIT if field!(ctx, is_fullsock) != 0 => {}
        // An ordinary handshake: tcp_conn_request asks for its time-out. With a SYN cookie, only its end is reported.
        _ => refused(&connection, service),
    }
}

/// Whether the connection is in the network namespace that is followed.
#[inline(always)]
pub(crate) fn is_ours(ctx: &SockOpsContext) -> bool {
    // SAFETY: `ops` is the context that the kernel gave us.
    maps::is_our_netns(unsafe { bpf_get_netns_cookie(ctx.ops.cast()) })
}

/// Whether a new connection is a Fast Open child: it has no round-trip time yet, and its SYN is the only segment so
/// far.
#[inline(always)]
fn is_fast_open_child(ctx: &SockOpsContext) -> bool {
    field!(ctx, srtt_us) == 0 && field!(ctx, segs_in) == 1
}

/// Counts a Fast Open child, and marks its socket with what its end needs.
///
/// Other programs may have asked for the states of other connections, so only marked sockets are followed.
#[inline(always)]
fn accepted(ctx: &SockOpsContext, connection: &Connection, service: u32) {
    count(service, |outcomes| {
        // SAFETY: see `count`.
        unsafe { &raw mut (*outcomes).accepted }
    });
    // tcp_rcv_nxt_update counts every byte of data; the SYN itself takes a number (RFC 9293, 3.4).
    let isn = field!(ctx, rcv_nxt).wrapping_sub(field!(ctx, bytes_received) as u32).wrapping_sub(1);
    if let Some(socket) = socket(ctx) {
        socket.mark_child(isn);
    }
    // The outcome of its SYN is known.
    let _: Result<(), i32> = TFO_PENDING.remove(connection);
    // A replay that the kernel has served, as in a dry run. While it lives, its retransmissions are not replays.
    let tag = child_tag(connection, isn);
    if replay_window(service).is_some()
        && let Some(row) = maps::replay_row(tag)
    {
        row.forget(tag);
    }
    // The flag stays set, since another program may rely on it. It costs little, as changes of state are few.
    let _: Result<(), i32> =
        ctx.set_cb_flags((field!(ctx, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// Socket of `ctx`; `None` for an ordinary handshake, which has none yet.
#[inline(always)]
pub(crate) fn socket(ctx: &SockOpsContext) -> Option<Socket> {
    // SAFETY: `ops` is the context that the kernel gave us.
    unsafe { Socket::at((&raw const (*ctx.ops).__bindgen_anon_2.sk).read_volatile()) }
}

/// Tag of the SYN that began `connection`. `isn` is its sequence number.
#[inline(always)]
fn child_tag(connection: &Connection, isn: u32) -> Tag {
    let tcp = u64::from(connection.ports.to_le()) | u64::from(isn.swap_bytes()) << 32;
    syn_tag(&connection.addresses(), tcp.to_le_bytes(), maps::seed)
}

/// Number of jiffies for which the SYNs of `service` are remembered after their connection, or `None` if they are not.
///
/// It does not depend on the mode of the XDP program, which may be replaced while this program stays.
#[inline(always)]
fn replay_window(service: u32) -> Option<u64> {
    maps::policy(service).map(|policy| policy.once).filter(|jiffies| *jiffies != 0)
}

/// Remembers the SYN of a Fast Open child that closes: from now on, the same SYN is a replay. Before, the kernel takes it
/// for a retransmission, and serves nothing twice.
#[inline(always)]
fn closed(ctx: &SockOpsContext, connection: &Connection, service: u32) {
    let Some(jiffies) = replay_window(service) else { return };
    let Some(isn) = socket(ctx).and_then(Socket::child_isn) else { return };
    let (tag, now) = (child_tag(connection, isn), maps::jiffies());
    let Some(row) = maps::replay_row(tag) else { return };
    let word = Remembered::new(now).word();
    if let Some(seat) = row.find(tag) {
        seat.value.set(word);
    } else if Remembered::from_word(row.seat(tag, word)).is_replay(now, jiffies) {
        count_forgotten(service);
    }
}

/// Counts a SYN that a table has forgotten too early.
#[inline(always)]
pub(crate) fn count_forgotten(service: u32) {
    count(service, |outcomes| {
        // SAFETY: see `count`.
        unsafe { &raw mut (*outcomes).replays_forgotten }
    });
}

/// Counts the round trip that a Fast Open child has saved: the one measured by its handshake.
#[inline(always)]
fn established(ctx: &SockOpsContext, connection: &Connection, service: u32) {
    if socket(ctx).and_then(Socket::child_isn).is_none() {
        return;
    }
    // The network may have delivered its SYN once more.
    let _: Result<(), i32> = TFO_PENDING.remove(connection);
    let us = round_trip_us(ctx);
    if let Some(outcomes) = maps::outcomes(service) {
        // SAFETY: see `count`.
        unsafe { add_round_trip(&raw mut (*outcomes).rtt_saved, us) };
    }
}

/// Smoothed round trip of the connection, in microseconds.
#[inline(always)]
pub(crate) fn round_trip_us(ctx: &SockOpsContext) -> u32 {
    /// Shift to microseconds: `srtt_us` is in eighths of one.
    const SHIFT: u32 = 3;
    field!(ctx, srtt_us) >> SHIFT
}

/// Adds a round trip of `us` microseconds to its bucket.
///
/// # Safety
///
/// `saved` must be valid, and all writes to it must be atomic.
#[inline(always)]
pub(crate) unsafe fn add_round_trip(saved: *mut [RttBucket; RTT_BUCKETS], us: u32) {
    // SAFETY: the caller guarantees it. The index is below RTT_BUCKETS, and the mask shows that to the verifier.
    unsafe {
        let bucket = saved.cast::<RttBucket>().add(rtt_bucket(us) & (RTT_BUCKETS - 1));
        add(&raw mut (*bucket).connections, 1);
        add(&raw mut (*bucket).us, u64::from(us));
    }
}

/// Counts and reports an ordinary handshake, if a SYN with a good cookie is pending for `connection`.
#[inline(always)]
fn refused(connection: &Connection, service: u32) {
    // tfo 0.1 has left entries of weight 0, for connections in their handshake.
    let Some(pending) = take_pending(connection).filter(|pending| pending.weight != 0) else { return };
    let Some(outcomes) = maps::outcomes(service) else { return };
    // SAFETY: see `count`.
    unsafe { add(&raw mut (*outcomes).refused, pending.weight) };
    let is_reported = spend_event(outcomes)
        && maps::report(|event| {
            event.subject = Subject {
                kind: Kind::Refused as u32,
                detail: pending.class as u32,
                connection: *connection,
                verdict: 0,
                guard: 0,
                service,
            };
            event.weight = pending.weight;
            event.head_len = 0;
        });
    if !is_reported {
        // SAFETY: see `count`.
        unsafe { add(&raw mut (*outcomes).events_skipped, pending.weight) };
    }
}

/// Takes one event from the budget for this jiffy. Returns false if none is left.
#[inline(always)]
fn spend_event(outcomes: *mut Outcomes) -> bool {
    // SAFETY: the entry of an array map lives as long as the program. Two CPUs may read and write it at once, in whole
    // words.
    unsafe {
        let event_budget = &raw mut (*outcomes).event_budget;
        let next = Outcomes::count_event(event_budget.read_volatile(), maps::jiffies());
        next.inspect(|next| event_budget.write_volatile(*next)).is_some()
    }
}

/// Removes the pending entry of `connection` and returns it.
#[inline(always)]
fn take_pending(connection: &Connection) -> Option<Pending> {
    // SAFETY: an entry of an LRU map stays readable while the program runs, and is copied.
    let pending = unsafe { TFO_PENDING.get(connection).copied() }?;
    let _: Result<(), i32> = TFO_PENDING.remove(connection);
    Some(pending)
}

/// Adds one to the field of [`Outcomes`] that `field` selects.
#[inline(always)]
fn count(service: u32, field: impl FnOnce(*mut Outcomes) -> *mut u64) {
    if let Some(outcomes) = maps::outcomes(service) {
        // SAFETY: the entry of an array map lives as long as the program, and its counts are only changed by atomic
        // additions.
        unsafe { add(field(outcomes), 1) };
    }
}

/// Adds `n` to the word at `place`, atomically.
///
/// # Safety
///
/// `place` must be valid, and all writes to it must be atomic.
#[inline(always)]
pub(crate) unsafe fn add(place: *mut u64, n: u64) {
    // AtomicU64 has no fetch_add on this target.
    // SAFETY: the caller guarantees it.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(place, n) };
}

/// Connection in the direction of its SYN: the remote end is the source.
#[inline(always)]
pub(crate) fn connection(ctx: &SockOpsContext) -> Connection {
    let addresses = if field!(ctx, family) == AF_INET6 {
        ipv6(ctx)
    } else {
        ipv4(field!(ctx, remote_ip4), field!(ctx, local_ip4))
    };
    // The remote port is in network byte order, in the upper half of the word (`sock_ops_convert_ctx_access`). The
    // local port is in host byte order.
    let [_, _, s0, s1] = field!(ctx, remote_port).to_le_bytes();
    let [d0, d1] = (field!(ctx, local_port) as u16).to_be_bytes();
    Connection::new(&addresses, [s0, s1, d0, d1])
}

/// Source and destination from words in network byte order.
#[inline(always)]
fn ipv4(remote: u32, local: u32) -> Addresses {
    Addresses { family: Family::Ipv4, words: [u64::from(remote) | u64::from(local) << 32, 0, 0, 0] }
}

/// Source and destination of an IPv6 socket, which may also have a connection over IPv4.
#[inline(always)]
fn ipv6(ctx: &SockOpsContext) -> Addresses {
    /// Third word of an IPv4-mapped address, ::ffff:a.b.c.d (RFC 4291, 2.5.5.2).
    const MAPPED: u32 = 0xffff_u32.to_be();

    let ([r0, r1, r2, r3], [l0, l1, l2, l3]) = (field!(ctx, remote_ip6[..]), field!(ctx, local_ip6[..]));
    if r0 | r1 == 0 && r2 == MAPPED {
        return ipv4(r3, l3);
    }
    let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Addresses { family: Family::Ipv6, words: [word(r0, r1), word(r2, r3), word(l0, l1), word(l2, l3)] }
}
