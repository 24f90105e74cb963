//! Connections that this host begins with Fast Open. The kernel's TCP calls the sock_ops program when it is about to send the
//! SYN, and when it has read the SYN-ACK. No packet costs more for that, and a connection without Fast Open two look-ups.

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB},
    helpers::generated::bpf_load_hdr_opt,
    programs::SockOpsContext,
};
use tfo_common::{
    client::{ATTEMPT_SLOTS, Attempt, Attempts, Client, Network},
    listener::Field,
    segment::Family,
};

use crate::{
    maps::{self, Socket, TFO_NETWORKS},
    outcome::{add, add_round_trip, connection, field, is_ours, round_trip_us, socket},
    tcp_sock::TcpSock,
};

/// Flag of an insertion that fails if somebody else has inserted the key meanwhile (`BPF_NOEXIST`).
const NEW: u64 = 1;
/// Number of nanoseconds in a microsecond.
const NS_PER_US: u64 = 1000;

/// Counts what `ctx` reports, and returns true, if it is about the client's end of a connection.
#[inline(always)]
pub(crate) fn report(ctx: &SockOpsContext) -> bool {
    let op = field!(ctx, op);
    if !matches!(op, BPF_SOCK_OPS_TCP_CONNECT_CB | BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
        return false;
    }
    if is_ours(ctx)
        && let Some(socket) = socket(ctx)
    {
        match op {
            // tcp_connect: the SYN is not made yet, but what the program wants is known.
            BPF_SOCK_OPS_TCP_CONNECT_CB => begins(socket),
            // tcp_finish_connect: tcp_ack has read what the SYN-ACK acknowledges. tcp_rcv_fastopen_synack is still to come.
            _ => ends(ctx, socket),
        }
    }
    true
}

/// Marks `socket` with the time of its SYN, if its program wants Fast Open: by sendto() with MSG_FASTOPEN, or by connect() with
/// TCP_FASTOPEN_CONNECT.
#[inline(always)]
fn begins(socket: Socket) {
    if TcpSock::of(socket).is_some_and(|sock| !sock.is_null(Field::FastOpenRequest)) {
        socket.mark_caller(maps::monotonic_ns());
    }
}

/// Counts the connection of `socket`, if it is marked.
#[inline(always)]
fn ends(ctx: &SockOpsContext, socket: Socket) {
    let Some(begun) = socket.take_caller() else { return };
    let (Some(sock), Some(client)) = (TcpSock::of(socket), maps::client()) else { return };
    let attempt = Attempt::of(
        sock.bit(Field::SynFastOpen),
        sock.bit(Field::SynData),
        // The SYN itself is acknowledged, so only its data can be left.
        field!(ctx, packets_out) == 0,
        field!(ctx, total_retrans),
        || has_cookie(ctx),
    );
    // The port is in network byte order, in the upper half of the word (`sock_ops_convert_ctx_access`).
    let [_, _, high, low] = field!(ctx, remote_port).to_le_bytes();
    let network = Network::of(&connection(ctx).addresses(), u32::from(high) << 8 | u32::from(low));
    // SAFETY: the entry of an array map lives as long as the program, and its counts are only changed by atomic additions.
    // Both indices are in bounds, and the masks show that to the verifier.
    unsafe {
        let of_family = (&raw mut (*client).attempts).cast::<Attempts>();
        count(of_family.add(network.family as usize & (Family::COUNT - 1)), attempt);
        match attempt {
            Attempt::Accepted => add_round_trip(&raw mut (*client).rtt_saved, round_trip_us(ctx)),
            Attempt::Lost => {
                let waited = maps::monotonic_ns().saturating_sub(begun) / NS_PER_US;
                add(&raw mut (*client).lost_us, waited);
            }
            Attempt::Granted | Attempt::Withheld | Attempt::Refused | Attempt::Paused => {}
        }
    }
    remember(client, &network, attempt);
}

/// Counts the connection for its destination.
#[inline(always)]
fn remember(client: *mut Client, network: &Network, attempt: Attempt) {
    static NONE: Attempts = Attempts::NONE;
    let none = &NONE;

    let mut found = TFO_NETWORKS.get_ptr_mut(network);
    if found.is_none() {
        if TFO_NETWORKS.insert(network, none, NEW).is_ok() {
            // SAFETY: as in `ends`.
            unsafe { add(&raw mut (*client).destinations, 1) };
        }
        found = TFO_NETWORKS.get_ptr_mut(network);
    }
    if let Some(attempts) = found {
        // SAFETY: an entry of an LRU map stays writable while the program runs. The kernel may give the entry to another
        // destination meanwhile. The sums over all destinations are in the map of totals.
        unsafe { count(attempts, attempt) };
    }
}

/// Adds one to the count of `attempt`.
///
/// # Safety
///
/// `attempts` must be valid, and all writes to it must be atomic.
#[inline(always)]
unsafe fn count(attempts: *mut Attempts, attempt: Attempt) {
    // SAFETY: the caller guarantees it. The mask shows the verifier that the index is in bounds.
    unsafe { add(attempts.cast::<u64>().add(attempt.index() & (ATTEMPT_SLOTS - 1)), 1) };
}

/// Whether the SYN-ACK has a cookie that the kernel takes, in an option of either kind (RFC 7413, 2 and appendix A).
#[inline(always)]
fn has_cookie(ctx: &SockOpsContext) -> bool {
    /// Beginnings of both options: kind, length up to the end of the magic, or 0 without one, and magic.
    const KIND: [u8; 4] = [34, 0, 0, 0];
    const EXPERIMENTAL: [u8; 4] = [254, 4, 0xf9, 0x89];

    is_cookie(option_length(ctx, KIND) - 2) || is_cookie(option_length(ctx, EXPERIMENTAL) - 4)
}

/// Whether the kernel takes a cookie of `length` bytes (`tcp_parse_fastopen_option`).
#[inline(always)]
fn is_cookie(length: i64) -> bool {
    const SHORTEST: i64 = 4;
    const LONGEST: i64 = 16;
    (SHORTEST..=LONGEST).contains(&length) && length & 1 == 0
}

/// Length of the option of the SYN-ACK that begins with `kind`, or a negative number if there is none.
#[inline(always)]
fn option_length(ctx: &SockOpsContext, kind: [u8; 4]) -> i64 {
    // Room for the longest cookie, behind kind, length and magic.
    let mut option = [0_u32; 5];
    option[0] = u32::from_ne_bytes(kind);
    // SAFETY: the context is the kernel's. The helper reads and writes no more than the length that it gets.
    unsafe { bpf_load_hdr_opt(ctx.ops, option.as_mut_ptr().cast(), size_of_val(&option) as u32, 0) }
}
