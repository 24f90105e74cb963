//! Programs for comparison in `cargo xtask bench`. They are not part of `tfo`. Like its programs they take frames in several
//! buffers: only such programs may call each other (`bpf_prog_map_compatible`, kernel/bpf/core.c).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "as in the program")]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the kernel calls in by section name; nothing here is Rust API"
)]

#[path = "xdp.rs"]
#[expect(dead_code, reason = "yardsticks only need the bounds of a frame")]
mod context;
#[expect(dead_code, reason = "yardsticks change no frame as the program does")]
mod frame;

/// Globals of the program, as far as [`frame`] asks for them.
mod maps {
    pub(crate) const fn is_multi_buffer() -> bool {
        false
    }
}

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    Global,
    bindings::{TC_ACT_UNSPEC, bpf_sock_tuple, xdp_action},
    btf_maps::{Array, PerCpuArray, ProgramArray},
    helpers::generated::{
        bpf_redirect, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_raw_gen_syncookie_ipv4,
        bpf_tcp_raw_gen_syncookie_ipv6, bpf_xdp_adjust_tail,
    },
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use tfo_common::{
    bytes::{Bytes as _, BytesMut as _},
    cookie,
    keyring::Key,
    parse::{LinkLayer, Usual, usual},
    segment::{Addresses, FastOpen, Segment},
};

use crate::frame::Frame;

/// Offset of the addresses in an untagged IPv4 frame.
const ADDRESSES_V4: usize = 14 + 12;
/// Offset of the addresses in an untagged IPv6 frame.
const ADDRESSES_V6: usize = 14 + 8;

/// Passes every frame.
#[xdp(frags)]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Lets every packet leave.
#[classifier]
pub fn leave(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Drops every frame.
#[xdp(frags)]
pub fn drop(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Two keys of any value.
#[btf_map]
static KEYS: Array<[Key; 2], 1> = Array::new();

/// Makes one cookie and nothing else: one bounds check, one look-up, one SipHash-2-4 with a key that is not expanded.
#[xdp(frags)]
pub fn siphash_v4(ctx: XdpContext) -> u32 {
    hash(&ctx, ADDRESSES_V4, Addresses::from_ipv4, |keys, addresses| made_by(&keys[0], addresses))
}

/// Makes the cookies of two keys, as for a cookie that neither of them made.
#[xdp(frags)]
pub fn siphash_v4_twice(ctx: XdpContext) -> u32 {
    hash(&ctx, ADDRESSES_V4, Addresses::from_ipv4, |keys, addresses| {
        made_by(&keys[0], addresses) || made_by(&keys[1], addresses)
    })
}

/// Makes one cookie of IPv6 addresses.
#[xdp(frags)]
pub fn siphash_v6(ctx: XdpContext) -> u32 {
    hash(&ctx, ADDRESSES_V6, Addresses::from_ipv6, |keys, addresses| made_by(&keys[0], addresses))
}

/// Makes the cookies of two keys for IPv6 addresses.
#[xdp(frags)]
pub fn siphash_v6_twice(ctx: XdpContext) -> u32 {
    hash(&ctx, ADDRESSES_V6, Addresses::from_ipv6, |keys, addresses| {
        made_by(&keys[0], addresses) || made_by(&keys[1], addresses)
    })
}

/// Reads the `addresses` at `offset` and applies `is_made` to them.
#[inline(always)]
fn hash<const N: usize>(
    ctx: &XdpContext,
    offset: usize,
    addresses: impl FnOnce([u8; N]) -> Addresses,
    is_made: impl FnOnce(&[Key; 2], &Addresses) -> bool,
) -> u32 {
    let (Some(bytes), Some(keys)) = (Frame::new(ctx.ctx).read(offset), KEYS.get(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // The result has to depend on the hash, or LLVM removes it.
    if is_made(keys, &addresses(bytes)) { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

/// Whether `key` makes a cookie of zeros. It practically never does.
#[inline(always)]
fn made_by(key: &Key, addresses: &Addresses) -> bool {
    cookie::make(key, addresses) == 0
}

/// Parses usual frames as the program does, and drops SYNs with a cookie. It reads the lines of memory that any filter of
/// such SYNs has to read.
#[xdp(frags)]
pub fn parse_drop(ctx: XdpContext) -> u32 {
    drop_cookies(&ctx, |_, _| true)
}

/// Parses like [`parse_drop`], and drops SYNs whose cookie neither of two keys has made.
#[xdp(frags)]
pub fn parse_hash_drop(ctx: XdpContext) -> u32 {
    drop_cookies(&ctx, |segment, cookie| {
        KEYS.get(0).is_some_and(|keys| keys.iter().all(|key| cookie::make(key, &segment.addresses) != cookie))
    })
}

/// Drops usual SYNs with a cookie that `is_bad`.
#[inline(always)]
fn drop_cookies(ctx: &XdpContext, is_bad: impl Fn(&Segment, u64) -> bool) -> u32 {
    let is_dropped = usual(Frame::new(ctx.ctx), LinkLayer::Ethernet, |_, segment| match segment.fast_open {
        FastOpen::Cookie(cookie) => is_bad(segment, cookie.value),
        FastOpen::Absent | FastOpen::Ignored | FastOpen::Request | FastOpen::BadLength => false,
    });
    if is_dropped == Usual::Syn(true) { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

/// Counters of [`plain`].
#[btf_map]
static CLASSES: PerCpuArray<u64, 4> = PerCpuArray::new();

/// Does the obvious with a SYN: walks through tags, headers and options with an offset, each read checked, makes the cookies of
/// two keys, counts the class and passes the frame. It knows no layout, follows neither extension headers nor fragments, and
/// looks for no signature.
#[xdp(frags)]
pub fn plain(ctx: XdpContext) -> u32 {
    if let Some(class) = plain_class(&Frame::new(ctx.ctx))
        && let Some(count) = CLASSES.get_ptr_mut(class)
    {
        // SAFETY: the entry of a per-CPU map lives as long as the program.
        unsafe { *count += 1 };
    }
    xdp_action::XDP_PASS
}

/// Index in [`CLASSES`] of the SYN in `frame`: without an option, with a cookie of either key, or other.
#[inline(always)]
fn plain_class(frame: &Frame) -> Option<u32> {
    const IPV4: u16 = 0x0800_u16.to_be();
    const IPV6: u16 = 0x86dd_u16.to_be();
    const VLAN: [u16; 2] = [0x8100_u16.to_be(), 0x88a8_u16.to_be()];
    const TCP: u8 = 6;

    let mut at = 14;
    let mut kind = u16::from_ne_bytes(frame.read(at - 2)?);
    for _ in 0..2 {
        if VLAN.contains(&kind) {
            at += 4;
            kind = u16::from_ne_bytes(frame.read(at - 2)?);
        }
    }
    let (addresses, len) = if kind == IPV4 {
        let header: [u8; 20] = frame.read(at)?;
        if header[9] != TCP || header[6] & 0x3f != 0 || header[7] != 0 || header[0] & 0xf < 5 {
            return None;
        }
        (Addresses::from_ipv4(frame.read(at + 12)?), usize::from(header[0] & 0xf) * 4)
    } else if kind == IPV6 {
        let header: [u8; 40] = frame.read(at)?;
        if header[6] != TCP {
            return None;
        }
        (Addresses::from_ipv6(frame.read(at + 8)?), 40)
    } else {
        return None;
    };
    at += len;
    let header: [u8; 20] = frame.read(at)?;
    if header[13] & 0x12 != 2 || header[12] < 0x50 {
        return None;
    }
    let (options, area) = (at + 20, usize::from(header[12] >> 4) * 4 - 20);
    let (mut position, mut cookie) = (0, None);
    for _ in 0..40 {
        // Without this, the verifier would follow every way through the options.
        position = (frame.opaque(position as u64) & 0x3f) as usize;
        if position >= area {
            break;
        }
        let option = options + position;
        let [kind] = frame.read(option)?;
        if kind == 1 {
            position += 1;
            continue;
        }
        let len = usize::from(frame.read::<1>(option + 1)?[0]);
        if kind == 0 || len < 2 || position + len > area {
            break;
        }
        if kind == 34 && len == 10 {
            cookie = Some(u64::from_le_bytes(frame.read(option + 2)?));
        }
        position += len;
    }
    let Some(cookie) = cookie else { return Some(0) };
    let keys = KEYS.get(0)?;
    if cookie::make(&keys[0], &addresses) == cookie {
        Some(1)
    } else if cookie::make(&keys[1], &addresses) == cookie {
        Some(2)
    } else {
        Some(3)
    }
}

/// Variants of the frame, as little-endian words.
///
/// For [`vary`] the first word is eight bytes of addresses and the second the cookie. These are the words that the real
/// program reads: a read of more than was written waits for the CPU's store buffer, which never happens with the writes
/// of a network card. For [`flood`] the first word is the source address, the IPv4 checksum, and the TCP checksum for
/// port 0.
#[btf_map]
static VARIANTS: Array<[u64; 2], 65_536> = Array::new();

/// Index of the next variant. In [`flood`], number of frames so far.
#[btf_map]
static NEXT: Array<u32, 1> = Array::new();

/// Program that [`vary`] and [`restore`] call.
#[btf_map]
static THEN: ProgramArray<1> = ProgramArray::new();

/// Number of [`VARIANTS`] in use.
#[unsafe(no_mangle)]
static COUNT: Global<u32> = Global::new(1);

/// Offset in the frame of the addresses that [`vary`] writes.
#[unsafe(no_mangle)]
static SOURCE_AT: Global<u32> = Global::new(0);

/// Offset of the cookie in the frame.
#[unsafe(no_mangle)]
static COOKIE_AT: Global<u32> = Global::new(0);

/// Offset of the window in the frame.
#[unsafe(no_mangle)]
static WINDOW_AT: Global<u32> = Global::new(0);
/// Window and the checksum behind it, as they are in memory.
#[unsafe(no_mangle)]
static WINDOW: Global<u32> = Global::new(0);

/// Writes the next variant into the frame, also over what the program has rewritten, and calls the program.
#[xdp(frags)]
pub fn vary(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(ctx.ctx);
    if let Some(next) = NEXT.get_ptr_mut(0) {
        // SAFETY: the entry of an array map lives as long as the program, and only one CPU runs the benchmark.
        let index = unsafe { *next };
        // SAFETY: as above.
        unsafe { *next = if index + 1 >= COUNT.load() { 0 } else { index + 1 } };
        if let Some([addresses, cookie]) = VARIANTS.get(index) {
            frame.write(SOURCE_AT.load() as usize, addresses.to_le_bytes());
            frame.write(COOKIE_AT.load() as usize, cookie.to_le_bytes());
            frame.write(WINDOW_AT.load() as usize, WINDOW.load().to_ne_bytes());
        }
    }
    // SAFETY: no value on the stack needs to be dropped.
    unsafe { THEN.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// Number of words of the frame that [`restore`] writes.
const WORDS: usize = 16;

/// Frame that [`restore`] writes, as little-endian words.
#[btf_map]
static FRAME: Array<[u64; WORDS], 1> = Array::new();

/// Length of that frame in bytes, between two multiples of eight: the last word is written so that it ends there.
#[unsafe(no_mangle)]
static FRAME_LEN: Global<u32> = Global::new(0);

/// Writes the whole frame anew, with its length, and calls the program.
#[xdp(frags)]
pub fn restore(ctx: XdpContext) -> u32 {
    let len = FRAME_LEN.load() as usize;
    let missing = len as i32 - (ctx.data_end() - ctx.data()) as i32;
    if missing != 0 {
        // SAFETY: the context is the kernel's, and no pointer into the packet is used after this.
        unsafe { bpf_xdp_adjust_tail(ctx.ctx, missing) };
    }
    let mut frame = Frame::anew(ctx.ctx);
    let Some(words) = FRAME.get(0) else { return xdp_action::XDP_ABORTED };
    for (at, word) in words.iter().enumerate() {
        // The last words overlap.
        let at = if 8 * at + 8 <= len { 8 * at } else { len - 8 };
        frame.write(at, word.to_le_bytes());
    }
    if let Some(next) = NEXT.get_ptr_mut(0) {
        // An atomic addition waits until the words have left the store buffer. Else the program would wait, in a read of
        // bytes from two of them, as it never does after the writes of a network card.
        // SAFETY: the entry of an array map lives as long as the program.
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(next, 1) };
    }
    // SAFETY: no value on the stack needs to be dropped.
    unsafe { THEN.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// Cuts sixteen bytes off the frame's end, as an answer does with a SYN of Linux, and sends the frame back.
#[inline(always)]
fn cut(ctx: XdpContext) -> u32 {
    // SAFETY: the context is the kernel's, and there is no pointer into the packet.
    unsafe { bpf_xdp_adjust_tail(ctx.ctx, -16) };
    xdp_action::XDP_TX
}

/// Looks the listener of an untagged IPv4 SYN up, makes a SYN cookie, cuts the frame and sends it back: the calls of the
/// kernel without which no program answers. The reply is wrong.
#[xdp(frags)]
pub fn least_v4(ctx: XdpContext) -> u32 {
    least::<20, 12, 12>(&ctx, |network, tcp| {
        // SAFETY: both headers are initialised, as long as the kernel is told.
        unsafe { bpf_tcp_raw_gen_syncookie_ipv4(network.cast(), tcp.cast(), 24) }
    })
}

/// Does the same for IPv6.
#[xdp(frags)]
pub fn least_v6(ctx: XdpContext) -> u32 {
    least::<40, 8, 36>(&ctx, |network, tcp| {
        // SAFETY: as in `least_v4`.
        unsafe { bpf_tcp_raw_gen_syncookie_ipv6(network.cast(), tcp.cast(), 24) }
    })
}

/// Does the work of [`least_v4`] for an IP header of `HEADER` bytes, which ends with the addresses from `AT` on. With the
/// ports they are `TUPLE` bytes.
#[inline(always)]
fn least<const HEADER: usize, const AT: usize, const TUPLE: usize>(
    ctx: &XdpContext,
    make: impl FnOnce(*mut u8, *mut u8) -> i64,
) -> u32 {
    let frame = Frame::new(ctx.ctx);
    let (Some(mut tuple), Some(mut network), Some(mut tcp)) =
        (frame.read::<TUPLE>(14 + AT), frame.read::<HEADER>(14), frame.read::<24>(14 + HEADER))
    else {
        return xdp_action::XDP_ABORTED;
    };
    tcp[12] = 6 << 4;
    // SAFETY: the tuple is as long as the kernel is told. The helper returns null or a socket, which is released.
    unsafe {
        let tuple = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
        let socket = bpf_skc_lookup_tcp(ctx.ctx.cast(), tuple, TUPLE as u32, u64::MAX, 0);
        if socket.is_null() {
            return xdp_action::XDP_ABORTED;
        }
        bpf_sk_release(socket.cast());
    }
    if make(network.as_mut_ptr(), tcp.as_mut_ptr()) < 0 {
        return xdp_action::XDP_ABORTED;
    }
    cut(XdpContext::new(ctx.ctx))
}

/// Index of the interface that [`flood`] sends to.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0);

/// Offset of the header checksum in an untagged IPv4 frame. The source address is behind it.
const IP_CHECKSUM_AT: usize = 14 + 10;
/// Offset of the source port in such a frame.
const SOURCE_PORT_AT: usize = 14 + 20;
/// Offset of the TCP checksum in such a frame.
const TCP_CHECKSUM_AT: usize = 14 + 20 + 16;

/// Makes each live frame the SYN of a new connection, valid for the kernel's stack too, and sends it out of
/// [`INTERFACE`].
#[xdp(frags)]
pub fn flood(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(ctx.ctx);
    let Some(next) = NEXT.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: as in `vary`.
    let count = unsafe { *next };
    // SAFETY: as in `vary`.
    unsafe { *next = count.wrapping_add(1) };
    // The port changes each time that all variants have been sent.
    let port = FIRST_PORT.wrapping_add((count >> 16) as u16);
    let Some([fields, cookie]) = VARIANTS.get(count & 0xffff) else { return xdp_action::XDP_ABORTED };
    let [s0, s1, s2, s3, ip0, ip1, tcp0, tcp1] = fields.to_le_bytes();
    // RFC 1624, equation 3, with an old value of zero.
    let sum = u32::from(!u16::from_be_bytes([tcp0, tcp1])) + u32::from(port);
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame.write(IP_CHECKSUM_AT, [ip0, ip1, s0, s1, s2, s3]);
    frame.write(SOURCE_PORT_AT, port.to_be_bytes());
    frame.write(TCP_CHECKSUM_AT, checksum.to_be_bytes());
    frame.write(COOKIE_AT.load() as usize, cookie.to_le_bytes());
    // SAFETY: the helper takes only numbers.
    unsafe { bpf_redirect(INTERFACE.load(), 0) as u32 }
}

/// First source port of [`flood`]. Clients use none below it.
const FIRST_PORT: u16 = 1024;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
