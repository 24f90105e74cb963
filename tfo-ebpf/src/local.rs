//! Look-ups that tell whether a SYN is for a listener of this host that uses the kernel's keys. Others are not for us to
//! judge: a router forwards them, and their cookies are of another host's or the listener's own keys.

use core::hint::black_box;

use aya_ebpf::{
    bindings::{bpf_fib_lookup, bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_sk_release, bpf_skc_lookup_tcp},
};
use tfo_common::{
    bytes::Bytes as _,
    keyring::SYSCTL,
    observed::{Destination, Local},
    policy::Policy,
    ports,
    segment::{Addresses, Family},
};

use crate::{
    context::{self, Raw},
    frame::Frame,
    maps,
};

/// Socket of the kernel's TCP.
pub(crate) type Socket = bpf_sock;

/// Network namespace of the interface, for `bpf_skc_lookup_tcp`.
const BPF_F_CURRENT_NETNS: u64 = u64::MAX;
/// Address families of the kernel, from linux/socket.h.
const AF_INET: u64 = 2;
/// See [`AF_INET`].
const AF_INET6: u64 = 10;
const TCP: u64 = 6;
/// Result of `bpf_fib_lookup` for a destination that the host does not forward to: above all, one of its own.
const BPF_FIB_LKUP_RET_NOT_FWDED: i64 = 4;
/// Result of `bpf_fib_lookup` on a host, or an interface, that forwards nothing.
const BPF_FIB_LKUP_RET_FWD_DISABLED: i64 = 5;

/// Takes a decision of `shed` on the described SYN back, unless the SYN is for a listener of this host without keys of its own,
/// or the policy says that this does not matter. The result is always 0.
///
/// It is not inlined, since Linux 5.10 has hardly any stack left for `tfo_shield`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_spare_others(ctx: *mut Raw) -> u32 {
    if has_own_keys(ctx) {
        maps::watch(|watch| watch.own_keys_spared += 1);
        spare();
    } else if has_flag(Policy::SHEDS_OTHERS) == Some(false) && !is_local(ctx) {
        spare();
    }
    0
}

/// Whether a listener on the port of the described SYN has keys of its own that are not known here, and the policy spares it.
#[inline(always)]
fn has_own_keys(ctx: *mut Raw) -> bool {
    let Some(syn) = maps::packet() else { return false };
    let flags = maps::listening(&Frame::anew(ctx), syn.tcp as usize);
    flags & ports::OWN_KEYS != 0
        && ports::domain(flags) == SYSCTL
        && has_flag(Policy::SHEDS_OWN_KEYS) == Some(false)
}

/// Whether the policy for the described SYN has `flag`.
#[inline(always)]
fn has_flag(flag: u64) -> Option<bool> {
    let policy = maps::policy(maps::packet()?.service)?;
    Some(policy.has(flag))
}

#[inline(always)]
fn spare() {
    if let Some(syn) = maps::packet() {
        syn.spare_shed();
    }
}

/// Whether the described SYN is for an address of this host, and the kernel has a socket for it. The answer is kept for a
/// jiffy.
#[inline(always)]
pub(crate) fn is_local(ctx: *mut Raw) -> bool {
    let Some(syn) = maps::packet() else { return false };
    let Some(ports) = Frame::anew(ctx).read(syn.tcp as usize) else { return false };
    let (to, jiffies) = (Destination::new(&syn.addresses(), ports), maps::jiffies());
    let mut known = None;
    maps::watch(|watch| known = watch.local.get(to, jiffies));
    known.unwrap_or_else(|| {
        let is_local = has_socket(ctx, ports) && !is_forwarded(ctx, ports);
        maps::watch(|watch| watch.local = Local::new(to, jiffies, is_local));
        is_local
    })
}

/// Whether the SYN with its TCP header at `tcp` is known to be for a listener of this host: [`is_local`] has found it in this jiffy.
#[inline(always)]
pub(crate) fn is_known_local(frame: &Frame, addresses: &Addresses, tcp: usize) -> bool {
    let (jiffies, mut is_known) = (maps::jiffies(), false);
    maps::watch(|watch| {
        is_known = frame
            .read(tcp)
            .is_some_and(|ports| watch.local.get(Destination::new(addresses, ports), jiffies) == Some(true));
    });
    is_known
}

/// Whether the kernel's TCP has a socket for the described SYN. A listener on all addresses also has those of other hosts.
#[inline(always)]
fn has_socket(ctx: *mut Raw, ports: [u8; 4]) -> bool {
    with_socket(ctx, ports, |_| ()).is_some()
}

/// Calls `then` with the socket that the kernel's TCP has for the described SYN, if there is one (`__inet_lookup_skb`).
#[inline(always)]
pub(crate) fn with_socket<T>(
    ctx: *mut Raw,
    ports: [u8; 4],
    then: impl FnOnce(*mut Socket) -> T,
) -> Option<T> {
    let syn = maps::packet()?;
    let ports = u64::from(u32::from_le_bytes(ports));
    let [first, second, third, fourth] = syn.words;
    // As `struct bpf_sock_tuple`: both addresses, then both ports, as in the packet.
    let (mut tuple, size) = match syn.family == Family::Ipv4 as u32 {
        true => ([first, ports, 0, 0, 0], 12),
        false => ([first, second, third, fourth, ports], 36),
    };
    // SAFETY: the tuple is longer than `size`. The helper returns null or a socket, which is released.
    unsafe {
        let tuple = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
        let socket = bpf_skc_lookup_tcp(ctx.cast(), tuple, size, BPF_F_CURRENT_NETNS, 0);
        if socket.is_null() {
            return None;
        }
        let result = then(socket.cast());
        bpf_sk_release(socket.cast());
        Some(result)
    }
}

/// Whether the host would forward the described SYN (`bpf_ipv4_fib_lookup`, `bpf_ipv6_fib_lookup`).
#[inline(always)]
fn is_forwarded(ctx: *mut Raw, ports: [u8; 4]) -> bool {
    let Some(syn) = maps::packet() else { return true };
    let [first, second, third, fourth] = syn.words;
    let (family, source, destination) = match syn.family == Family::Ipv4 as u32 {
        true => (AF_INET, [first & 0xffff_ffff, black_box(0)], [first >> 32, black_box(0)]),
        false => (AF_INET6, [first, second], [third, fourth]),
    };
    let interface = u64::from(context::interface(ctx));
    // As `struct bpf_fib_lookup`: family, protocol, ports and length; interface; addresses; the rest is for the answer.
    let mut fib = [
        family | TCP << 8 | u64::from(u32::from_le_bytes(ports)) << 16,
        interface,
        source[0],
        source[1],
        destination[0],
        destination[1],
        black_box(0),
        black_box(0),
    ];
    const { assert!(size_of::<bpf_fib_lookup>() == 64) };
    // SAFETY: `fib` has the size of the structure, and is initialised.
    let result = unsafe { fib_lookup(ctx.cast(), fib.as_mut_ptr().cast::<bpf_fib_lookup>(), 64, 0) };
    result != BPF_FIB_LKUP_RET_NOT_FWDED && result != BPF_FIB_LKUP_RET_FWD_DISABLED
}
