//! Program that walks the listening sockets of a network namespace, and writes a [`Record`] for each. The kernel runs it
//! once for each TCP socket of the reader's namespace (`bpf_iter_tcp`).
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the kernel calls in by section name; nothing here is Rust API")]

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    Global,
    bindings::seq_file,
    helpers::generated::{bpf_jiffies64, bpf_probe_read_kernel, bpf_seq_write},
};
use tfo_common::listener::{
    AF_INET6, FIELDS, Field, NO_COOKIE, OFFSET_BITS, OWN_KEYS, Places, RECORD, REUSE_PORT, Record,
};

/// [`tfo_common::names::PLACES`].
#[unsafe(no_mangle)]
static TFO_PLACES: Global<Places> = Global::new([0; FIELDS]);

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
    let record = record(socket);
    // SAFETY: `seq` is the kernel's, and the record has RECORD bytes without padding. If there is no room, the kernel
    // drops what was written, and calls again for this socket with an empty file.
    unsafe { bpf_seq_write(seq, (&raw const record).cast::<c_void>(), RECORD as u32) };
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

/// Reads the time of the last overflow: the group's, if the listener is in one (`tcp_synq_overflow`).
#[inline(always)]
fn overflow(socket: *const u8, flags: u32) -> u32 {
    let group: *const u8 = read(socket, Field::Group);
    if flags & REUSE_PORT != 0 && !group.is_null() {
        read(group, Field::GroupOverflow)
    } else {
        read(socket, Field::Overflow)
    }
}

/// Returns the place of `field`, a constant for the verifier.
#[inline(always)]
fn place(field: Field) -> u32 {
    // SAFETY: a global has the layout of its value, and the index is below FIELDS. `Global::load` would copy all places.
    unsafe { (&raw const TFO_PLACES).cast::<u32>().add(field as usize).read_volatile() }
}

/// Reads a field of the structure at `base`. It is all zeros if the memory can't be read.
#[inline(always)]
fn read<T: Plain>(base: *const u8, field: Field) -> T {
    let offset = place(field) & ((1 << OFFSET_BITS) - 1);
    let from = base.wrapping_add(offset as usize);
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the helper writes at most `size_of::<T>()` bytes to `value`. It checks every access to `from`.
    unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, from.cast()) };
    // SAFETY: `T` is valid for any bytes, and these are all initialised.
    unsafe { value.assume_init() }
}

/// Reads a field of one bit.
#[inline(always)]
fn read_bit(base: *const u8, field: Field) -> bool {
    u32::from(read::<u8>(base, field)) & place(field) >> OFFSET_BITS != 0
}

/// Type that is valid for any bytes.
///
/// # Safety
///
/// Any bytes must be a valid value.
unsafe trait Plain {}

// SAFETY: any bytes are a valid number.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above, and nobody dereferences it.
unsafe impl Plain for *const u8 {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u8; N] {}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
