//! What becomes of a SYN with a good cookie, as the kernel's TCP tells a sock_ops program: once for a connection that begins and,
//! for a Fast Open child, once more when its handshake ends. It costs no packet anything.

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
    policy::{Remembered, Tag, syn_tag},
    segment::{Addresses, Family},
};

use crate::maps::{self, TFO_PENDING};

/// What the program returns: anything else would be an error to `tcp_call_bpf`.
pub(crate) const DONE: u32 = 1;

const ANY: u64 = 0;
/// From linux/socket.h.
const AF_INET6: u32 = 10;

/// One field of the context, alone, as the kernel wants it: LLVM would read two at once.
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

/// Reports what `ctx` tells.
#[inline(always)]
pub(crate) fn report(ctx: &SockOpsContext) {
    let op = field!(ctx, op);
    if !matches!(op, BPF_SOCK_OPS_TIMEOUT_INIT | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB | BPF_SOCK_OPS_STATE_CB)
    {
        return;
    }
    // SAFETY: `ops` is the context that the kernel gave us.
    if !maps::is_our_netns(unsafe { bpf_get_netns_cookie(ctx.ops.cast()) }) {
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
        // A Fast Open child, or a client.
        BPF_SOCK_OPS_TIMEOUT_INIT if field!(ctx, is_fullsock) != 0 => {}
        // tcp_conn_request asks for the time-out of an ordinary handshake; with a SYN cookie only the end of that is seen.
        _ => refused(&connection, service),
    }
}

#[inline(always)]
fn is_fast_open_child(ctx: &SockOpsContext) -> bool {
    field!(ctx, srtt_us) == 0 && field!(ctx, segs_in) == 1
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext, connection: &Connection, service: u32) {
    count(service, |outcomes| {
        // SAFETY: see `count`.
        unsafe { &raw mut (*outcomes).accepted }
    });
    remember(ctx, connection, service);
    // Remembered as a child, since other programs may want to be told of the states of other connections.
    let child = Pending { weight: 0, class: 0 };
    let _: Result<(), i32> = TFO_PENDING.insert(connection, child, ANY);
    // It is left on: who else has set it can't be told. It is for changes of state only, of which there are few.
    let _: Result<(), i32> =
        ctx.set_cb_flags((field!(ctx, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// What stands for the SYN that `ctx` is the child of, where `fins` of the client's FIN, 0 or 1, have been received.
#[inline(always)]
fn syn(ctx: &SockOpsContext, connection: &Connection, fins: u32) -> Tag {
    // tcp_rcv_nxt_update counts every byte of data; SYN and FIN take a number each (RFC 9293, 3.4).
    let isn = field!(ctx, rcv_nxt).wrapping_sub(field!(ctx, bytes_received) as u32).wrapping_sub(1 + fins);
    let tcp = u64::from(connection.ports.to_le()) | u64::from(isn.swap_bytes()) << 32;
    syn_tag(&connection.addresses(), tcp.to_le_bytes(), maps::seed())
}

/// For how many jiffies the SYNs of `service` are remembered, if they are: whatever the mode of the XDP program beside this one, which
/// may be replaced while this one stays.
#[inline(always)]
fn remembers(service: u32) -> Option<u64> {
    maps::policy(service).map(|policy| policy.once).filter(|jiffies| *jiffies != 0)
}

/// Keeps in mind the SYN that `ctx` is the child of.
#[inline(always)]
fn remember(ctx: &SockOpsContext, connection: &Connection, service: u32) {
    let Some(jiffies) = remembers(service) else { return };
    let tag = syn(ctx, connection, 0);
    let Some(row) = maps::replays(tag) else { return };
    let now = maps::jiffies();
    if let Some(seat) = row.find(tag) {
        // It can't be: a replay. But what is served is remembered.
        seat.value.set(Remembered::new(now, false).word());
    } else if Remembered::from_word(row.seat(tag, Remembered::new(now, false).word())).is_missed(now, jiffies)
    {
        count(service, |outcomes| {
            // SAFETY: see `count`.
            unsafe { &raw mut (*outcomes).replays_forgotten }
        });
    }
}

/// From now on its SYN is a replay.
#[inline(always)]
fn closed(ctx: &SockOpsContext, connection: &Connection, service: u32) {
    if remembers(service).is_none() {
        return;
    }
    for fins in [0, 1] {
        let tag = syn(ctx, connection, fins);
        if let Some(seat) = maps::replays(tag).and_then(|row| row.find(tag)) {
            seat.value.set(Remembered::new(maps::jiffies(), true).word());
        }
    }
}

#[inline(always)]
fn established(ctx: &SockOpsContext, connection: &Connection, service: u32) {
    if take(connection).is_none_or(|pending| pending.weight != 0) {
        return;
    }
    /// `srtt_us` is in eighths.
    const SHIFT: u32 = 3;
    let us = field!(ctx, srtt_us) >> SHIFT;
    let Some(outcomes) = maps::outcomes(service) else { return };
    // SAFETY: see `count`; the place is below RTT_BUCKETS, and the mask shows it.
    unsafe {
        let bucket =
            (&raw mut (*outcomes).rtt_saved).cast::<RttBucket>().add(rtt_bucket(us) & (RTT_BUCKETS - 1));
        add(&raw mut (*bucket).connections, 1);
        add(&raw mut (*bucket).us, u64::from(us));
    }
}

#[inline(always)]
fn refused(connection: &Connection, service: u32) {
    let Some(pending) = take(connection).filter(|pending| pending.weight != 0) else { return };
    let Some(outcomes) = maps::outcomes(service) else { return };
    // SAFETY: see `count`.
    unsafe { add(&raw mut (*outcomes).refused, pending.weight) };
    let is_told = may_tell(outcomes)
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
    if !is_told {
        // SAFETY: see `count`.
        unsafe { add(&raw mut (*outcomes).untold, pending.weight) };
    }
}

#[inline(always)]
fn may_tell(outcomes: *mut Outcomes) -> bool {
    // SAFETY: the entry of an array map lives as long as the program. Two CPUs may read and write it at once, whole words each.
    unsafe {
        let told = &raw mut (*outcomes).told;
        let next = Outcomes::may_tell(told.read_volatile(), maps::jiffies());
        next.inspect(|next| told.write_volatile(*next)).is_some()
    }
}

/// Removes the pending entry of `connection`, and returns it.
#[inline(always)]
fn take(connection: &Connection) -> Option<Pending> {
    // SAFETY: an entry of an LRU map stays readable while the program runs, and is copied.
    let pending = unsafe { TFO_PENDING.get(connection).copied() }?;
    let _: Result<(), i32> = TFO_PENDING.remove(connection);
    Some(pending)
}

/// Adds one to the field of [`Outcomes`] that `field` names. The entry of an array map lives as long as the program, and is
/// only ever added to, atomically.
#[inline(always)]
fn count(service: u32, field: impl FnOnce(*mut Outcomes) -> *mut u64) {
    if let Some(outcomes) = maps::outcomes(service) {
        // SAFETY: as above.
        unsafe { add(field(outcomes), 1) };
    }
}

/// # Safety
///
/// `place` is one that all write to atomically only.
#[inline(always)]
unsafe fn add(place: *mut u64, n: u64) {
    // AtomicU64 has no fetch_add on this target.
    // SAFETY: the caller's.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(place, n) };
}

/// The connection, as its SYN had it: the other side is the source.
#[inline(always)]
fn connection(ctx: &SockOpsContext) -> Connection {
    let addresses = if field!(ctx, family) == AF_INET6 {
        ipv6(ctx)
    } else {
        ipv4(field!(ctx, remote_ip4), field!(ctx, local_ip4))
    };
    // In network byte order, in the upper half of a word (`sock_ops_convert_ctx_access`).
    let [_, _, s0, s1] = field!(ctx, remote_port).to_le_bytes();
    let [d0, d1] = (field!(ctx, local_port) as u16).to_be_bytes();
    Connection::new(&addresses, [s0, s1, d0, d1])
}

/// Addresses from words in network byte order.
#[inline(always)]
fn ipv4(remote: u32, local: u32) -> Addresses {
    Addresses { family: Family::Ipv4, words: [u64::from(remote) | u64::from(local) << 32, 0, 0, 0] }
}

#[inline(always)]
fn ipv6(ctx: &SockOpsContext) -> Addresses {
    /// How an IPv6 socket sees an IPv4 address: ::ffff:a.b.c.d (RFC 4291, 2.5.5.2).
    const MAPPED: u32 = 0xffff_u32.to_be();

    let ([r0, r1, r2, r3], [l0, l1, l2, l3]) = (field!(ctx, remote_ip6[..]), field!(ctx, local_ip6[..]));
    if r0 | r1 == 0 && r2 == MAPPED {
        return ipv4(r3, l3);
    }
    let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Addresses { family: Family::Ipv6, words: [word(r0, r1), word(r2, r3), word(l0, l1), word(l2, l3)] }
}
