//! Programs to measure the real one by: `cargo xtask bench`. They are no part of `tfo`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "as in the program")]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the kernel calls in by section name; nothing here is Rust API"
)]

#[expect(dead_code, reason = "what only the program needs")]
mod frame;

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    helpers::generated::bpf_redirect,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use tfo_common::{
    bytes::{Bytes as _, BytesMut as _},
    cookie,
    keyring::Key,
    segment::Addresses,
};

use crate::frame::Frame;

/// Where the addresses stand in an untagged frame.
const ADDRESSES_V4: usize = 14 + 12;
const ADDRESSES_V6: usize = 14 + 8;

#[xdp]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[xdp]
pub fn drop(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Two keys: any will do.
#[btf_map]
static KEYS: Array<[Key; 2], 1> = Array::new();

/// The cookie alone: one bounds check, one look-up, one SipHash-2-4, of a key that is not expanded.
#[xdp]
pub fn siphash_v4(ctx: XdpContext) -> u32 {
    hash(&ctx, ADDRESSES_V4, Addresses::from_ipv4, |keys, addresses| made_by(&keys[0], addresses))
}

/// The same with two keys, as for a cookie that neither made.
#[xdp]
pub fn siphash_v4_twice(ctx: XdpContext) -> u32 {
    hash(&ctx, ADDRESSES_V4, Addresses::from_ipv4, |keys, addresses| {
        made_by(&keys[0], addresses) || made_by(&keys[1], addresses)
    })
}

#[xdp]
pub fn siphash_v6(ctx: XdpContext) -> u32 {
    hash(&ctx, ADDRESSES_V6, Addresses::from_ipv6, |keys, addresses| made_by(&keys[0], addresses))
}

#[xdp]
pub fn siphash_v6_twice(ctx: XdpContext) -> u32 {
    hash(&ctx, ADDRESSES_V6, Addresses::from_ipv6, |keys, addresses| {
        made_by(&keys[0], addresses) || made_by(&keys[1], addresses)
    })
}

#[inline(always)]
fn hash<const N: usize>(
    ctx: &XdpContext,
    offset: usize,
    addresses: impl FnOnce([u8; N]) -> Addresses,
    is_made: impl FnOnce(&[Key; 2], &Addresses) -> bool,
) -> u32 {
    let (Some(bytes), Some(keys)) = (Frame::new(ctx).read(offset), KEYS.get(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // Something has to come of the hash, else it is removed.
    if is_made(keys, &addresses(bytes)) { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

/// Whether `key` makes the cookie of zeros, which it never does.
#[inline(always)]
fn made_by(key: &Key, addresses: &Addresses) -> bool {
    cookie::make(key, addresses) == 0
}

/// What [`vary`] writes: eight bytes of addresses, and in the second word the cookie. Words as the real program reads them: a read that
/// takes in more than was written waits until that has left the CPU's store buffer, which a network card's writes never do. [`flood`]
/// has in the first word four bytes of the source address, and the checksums of IPv4 and, for port 0, of TCP.
#[btf_map]
static VARIANTS: Array<[u64; 2], 65_536> = Array::new();

/// Which of them comes next; in [`flood`], how many have come.
#[btf_map]
static NEXT: Array<u32, 1> = Array::new();

/// The program that [`vary`] hands over to.
#[btf_map]
static THEN: ProgramArray<1> = ProgramArray::new();

/// How many of [`VARIANTS`] are used.
#[unsafe(no_mangle)]
static COUNT: Global<u32> = Global::new(1);

/// Where those bytes of addresses stand in the frame.
#[unsafe(no_mangle)]
static SOURCE_AT: Global<u32> = Global::new(0);

/// Where the cookie stands.
#[unsafe(no_mangle)]
static COOKIE_AT: Global<u32> = Global::new(0);

/// Where the window stands, and what it and the checksum behind it are to be.
#[unsafe(no_mangle)]
static WINDOW_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static WINDOW: Global<u32> = Global::new(0);

/// Makes each run's frame another one, or as it was before it was rewritten, and hands it over.
#[xdp]
pub fn vary(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    if let Some(next) = NEXT.get_ptr_mut(0) {
        // SAFETY: the entry of an array map lives as long as the program, and one CPU only runs the benchmark.
        let index = unsafe { *next };
        // SAFETY: as above.
        unsafe { *next = if index + 1 >= COUNT.load() { 0 } else { index + 1 } };
        if let Some([addresses, cookie]) = VARIANTS.get(index) {
            frame.write(SOURCE_AT.load() as usize, addresses.to_le_bytes());
            frame.write(COOKIE_AT.load() as usize, cookie.to_le_bytes());
            frame.write(WINDOW_AT.load() as usize, WINDOW.load().to_ne_bytes());
        }
    }
    // SAFETY: nothing is to be dropped here.
    unsafe { THEN.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// The interface that [`flood`] sends to, by its index.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0);

/// Where [`flood`] writes, in an untagged IPv4 frame; the source address is behind the checksum of its header.
const IP_CHECKSUM_AT: usize = 14 + 10;
const SOURCE_PORT_AT: usize = 14 + 20;
const TCP_CHECKSUM_AT: usize = 14 + 20 + 16;

/// Live: makes each frame the SYN of a new connection, for the kernel's stack too, and sends it out of [`INTERFACE`].
#[xdp]
pub fn flood(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let Some(next) = NEXT.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: as in `vary`.
    let count = unsafe { *next };
    // SAFETY: as in `vary`.
    unsafe { *next = count.wrapping_add(1) };
    // A port for each time that all variants have come.
    let port = FIRST_PORT.wrapping_add((count >> 16) as u16);
    let Some([fields, cookie]) = VARIANTS.get(count & 0xffff) else { return xdp_action::XDP_ABORTED };
    let [s0, s1, s2, s3, ip0, ip1, tcp0, tcp1] = fields.to_le_bytes();
    // RFC 1624, equation 3, where there was zero before.
    let sum = u32::from(!u16::from_be_bytes([tcp0, tcp1])) + u32::from(port);
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame.write(IP_CHECKSUM_AT, [ip0, ip1, s0, s1, s2, s3]);
    frame.write(SOURCE_PORT_AT, port.to_be_bytes());
    frame.write(TCP_CHECKSUM_AT, checksum.to_be_bytes());
    frame.write(COOKIE_AT.load() as usize, cookie.to_le_bytes());
    // SAFETY: takes numbers only.
    unsafe { bpf_redirect(INTERFACE.load(), 0) as u32 }
}

/// Lower ones are no client's.
const FIRST_PORT: u16 = 1024;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
