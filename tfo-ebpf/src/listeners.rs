//! Program that walks the listening sockets of a network namespace, and writes a [`Record`] for each. The kernel runs it
//! once for each TCP socket of the reader's namespace (`bpf_iter_tcp`).
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the kernel calls in by section name; nothing here is Rust API")]

mod fields;

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{bpf_sock_tuple, seq_file},
    helpers::generated::{
        bpf_jiffies64, bpf_seq_write, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie,
    },
    macros::classifier,
    programs::TcContext,
};
use tfo_common::listener::{
    AF_INET6, Field, KEY_RECORD, KeyRecord, NO_COOKIE, OWN_KEYS, RECORD, REUSE_PORT, Record,
};

use crate::fields::{overflow, read, read_bit};

/// State of a closed socket, from `enum` in net/tcp_states.h.
const TCP_CLOSE: u8 = 7;
/// State of a listening socket.
const TCP_LISTEN: u8 = 10;

/// Return value for the next socket.
const NEXT: i32 = 0;
/// Return value that asks for the same socket again. Once the reader has all that was written, its next read fails by
/// EAGAIN (`bpf_seq_read`).
const AGAIN: i32 = 1;

/// Context of the program: `struct bpf_iter__tcp` in net/ipv4/tcp_ipv4.c.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    /// Socket of any state (`struct sock_common`); null after the last one.
    socket: *const u8,
}

/// Beginning of `struct bpf_iter_meta` in linux/bpf.h.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// Writes a record if the socket listens. The kernel walks all listeners first: the first socket of another kind ends
/// the walk, so a host with a million connections takes no longer.
///
/// # Safety
///
/// `ctx` must be the context that the kernel gives to a program of `iter/tcp`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub unsafe extern "C" fn tfo_listeners(ctx: *const Context) -> i32 {
    // SAFETY: the kernel gives a valid context.
    unsafe {
        each(ctx, |seq, socket| {
            let record = record(socket);
            // SAFETY: `seq` is the kernel's, and the record has RECORD bytes without padding. If there is no room, the kernel
            // drops what was written, and calls again for this socket with an empty file.
            bpf_seq_write(seq, (&raw const record).cast::<c_void>(), RECORD as u32);
        })
    }
}

/// Writes the keys of a listener that has Fast Open keys of its own. Otherwise as [`tfo_listeners`].
///
/// # Safety
///
/// As for [`tfo_listeners`].
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub unsafe extern "C" fn tfo_listen_keys(ctx: *const Context) -> i32 {
    // SAFETY: the kernel gives a valid context.
    unsafe {
        each(ctx, |seq, socket| {
            // The kernel frees keys only after a grace period, and this runs in an RCU read-side section.
            let own: *const u8 = read(socket, Field::OwnKeys);
            if own.is_null() || read::<u32>(socket, Field::FastOpenLimit) == 0 {
                return;
            }
            let port: u16 = read(socket, Field::Port);
            let (count, keys) = (read(own, Field::KeyCount), read(own, Field::Keys));
            let record = KeyRecord { port: port.into(), count, keys };
            // SAFETY: as for the other records.
            bpf_seq_write(seq, (&raw const record).cast::<c_void>(), KEY_RECORD as u32);
        })
    }
}

/// Calls `write` if the socket of `ctx` listens. Returns what the kernel is to do next.
///
/// # Safety
///
/// `ctx` must be the kernel's.
#[inline(always)]
unsafe fn each(ctx: *const Context, write: impl FnOnce(*mut seq_file, *const u8)) -> i32 {
    // SAFETY: the kernel gives a valid context, and a valid `meta` in it.
    let (seq, socket) = unsafe { ((*(*ctx).meta).seq, (*ctx).socket) };
    if socket.is_null() {
        return NEXT;
    }
    match read(socket, Field::State) {
        TCP_LISTEN => {}
        // A listener may be closing at this moment.
        TCP_CLOSE => return NEXT,
        _ => return AGAIN,
    }
    write(seq, socket);
    NEXT
}

/// Reads the state of the listener `socket`.
#[inline(always)]
fn record(socket: *const u8) -> Record {
    let family: u16 = read(socket, Field::Family);
    let address = if family == AF_INET6 {
        read(socket, Field::AddressV6)
    } else {
        let [a, b, c, d]: [u8; 4] = read(socket, Field::AddressV4);
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    };
    let mut flags = 0;
    if read_bit(socket, Field::ReusePort) {
        flags |= REUSE_PORT;
    }
    if read::<u64>(socket, Field::OwnKeys) != 0 {
        flags |= OWN_KEYS;
    }
    if read_bit(socket, Field::NoCookie) {
        flags |= NO_COOKIE;
    }
    Record {
        cookie: read(socket, Field::Cookie),
        address,
        port: read(socket, Field::Port),
        family,
        flags,
        syn_queue: read(socket, Field::SynQueue),
        accept_queue: read(socket, Field::AcceptQueue),
        accept_limit: read(socket, Field::AcceptLimit),
        fast_open_queue: read(socket, Field::FastOpenQueue),
        fast_open_limit: read(socket, Field::FastOpenLimit),
        overflow: overflow(socket, flags),
        // SAFETY: the helper takes no arguments.
        now: unsafe { bpf_jiffies64() } as u32,
        reserved: 0,
    }
}

/// Network namespace of the packet's interface, for `bpf_skc_lookup_tcp`.
const BPF_F_CURRENT_NETNS: u64 = u64::MAX;
/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// Length of a TCP header without options.
const TCP: usize = 20;
/// Result of [`tfo_mark`] if no listener was found.
const NOT_FOUND: i32 = -1;

/// Marks the listener of a SYN, an Ethernet frame with nothing behind its TCP header: from then on, the kernel takes SYN
/// cookies for it for two minutes (`tcp_synq_overflow`). Returns 0, or a negative number if it is not marked.
///
/// The kernel makes a SYN cookie only if `net.ipv4.tcp_syncookies` is 2, or the SYN queue is full (`tcp_get_syncookie_mss`).
/// It runs by BPF_PROG_TEST_RUN, and no packet is sent.
#[classifier]
pub(crate) fn tfo_mark(ctx: TcContext) -> i32 {
    match ctx.load::<u8>(ETHERNET).map(|first| first >> 4) {
        Ok(4) => mark::<20, 12, 8>(&ctx),
        Ok(6) => mark::<40, 8, 32>(&ctx),
        _ => NOT_FOUND,
    }
}

/// Marks the listener of a SYN with an IP header of `HEADER` bytes, in which `ADDRESSES` bytes of addresses begin at `AT`.
#[inline(always)]
fn mark<const HEADER: usize, const AT: usize, const ADDRESSES: usize>(ctx: &TcContext) -> i32 {
    let (start, end) = (ctx.data() + ETHERNET, ctx.data_end());
    if start + HEADER + TCP > end {
        return NOT_FOUND;
    }
    // As `struct bpf_sock_tuple`: both addresses, then both ports, as in the packet.
    let mut tuple = [0_u8; 36];
    let mut at = 0;
    while at < ADDRESSES + 4 {
        let from = if at < ADDRESSES { AT + at } else { HEADER + at - ADDRESSES };
        // SAFETY: the header and the ports behind it lie in front of `end`, see above.
        tuple[at] = unsafe { ((start + from) as *const u8).read() };
        at += 1;
    }
    let size = (ADDRESSES + 4) as u32;
    // SAFETY: the tuple is at least as long as `size`. The helper returns null or a socket, which is released. Both headers
    // lie in front of `end`, and the kernel checks their lengths.
    unsafe {
        let tuple = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
        let socket = bpf_skc_lookup_tcp(ctx.skb.skb.cast(), tuple, size, BPF_F_CURRENT_NETNS, 0);
        if socket.is_null() {
            return NOT_FOUND;
        }
        let (network, tcp) = (start as *mut c_void, (start + HEADER) as *mut _);
        let made = bpf_tcp_gen_syncookie(socket.cast(), network, HEADER as u32, tcp, TCP as u32);
        bpf_sk_release(socket.cast());
        if made < 0 { made as i32 } else { 0 }
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
