//! Answers to SYNs in the kernel's place. [`tfo_prepare`] finds out whether the kernel would take the client's ACK, and
//! [`tfo_compose`] makes the SYN cookie. The SYN is counted, and then [`tfo_answer`] turns it into the SYN-ACK.

use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_tcp_raw_gen_syncookie_ipv4, bpf_tcp_raw_gen_syncookie_ipv6,
};
use tfo_common::{
    answer::{
        Host, INPUT_TCP, Listener, MARK_SECONDS, Offer, Reply, WINDOW, default_mss, is_between_hosts,
        network_len, timestamp,
    },
    bytes::Bytes as _,
    class::Class,
    description::Description,
    keyring::{CURRENT, SYSCTL},
    listener::{Field, REUSE_PORT},
    parse::network_offset,
    segment::Family,
    verdict::Verdict,
};

use crate::{
    context::{self, Raw},
    fields::{overflow, read, read_bit},
    frame::Frame,
    guards::check_confirmed,
    local::{is_local, with_socket},
    maps::{self, Answering, Clock, LISTENERS},
};

/// State of a listening socket, from `enum` in net/tcp_states.h.
const TCP_LISTEN: u32 = 10;
/// State of a handshake in a listener's SYN queue.
const TCP_NEW_SYN_RECV: u32 = 12;
/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// Length of the shortest Ethernet frame, without its checksum. No answer is cut below it.
const SHORTEST: usize = 60;

/// Looks up whether the described SYN can be answered, and takes the decision back if not. The result is always 0.
///
/// The verifier checks each of these functions once. As one, they would have too many paths for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_prepare(ctx: *mut Raw) -> u32 {
    if !maps::answers() {
        return 0;
    }
    if prepare(ctx).is_none() {
        leave();
    }
    0
}

/// Makes the answer that [`tfo_prepare`] has found possible, or takes the decision to answer back. The result is always 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_compose(ctx: *mut Raw) -> u32 {
    if !maps::answers() {
        return 0;
    }
    if compose(ctx).is_none() {
        leave();
    }
    0
}

/// Leaves the described SYN to the kernel.
#[inline(always)]
fn leave() {
    if let Some(syn) = maps::packet() {
        syn.leave_to_kernel();
        maps::watch(|watch| watch.unanswered += 1);
    }
}

/// Turns the described SYN into the prepared SYN-ACK. Returns the action.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_answer(ctx: *mut Raw) -> u32 {
    if !maps::answers() {
        return context::PASS;
    }
    let (Some(syn), Some(Answering { reply, .. })) = (maps::packet(), maps::answering()) else {
        return context::PASS;
    };
    let mut frame = Frame::anew(ctx);
    let addresses = syn.addresses();
    if !reply.write(&mut frame, syn.tcp as usize, &addresses) {
        return context::PASS;
    }
    // Without data, a frame lies in one buffer. The call would cost as much as a look-up.
    let len = if syn.data_len == 0 { frame.len() } else { frame.whole_len() };
    let surplus = len.saturating_sub(reply.frame_len(addresses.family).max(SHORTEST));
    if surplus > 0 {
        // If it fails, zeros or bytes that the client has sent follow the packet.
        context::adjust_tail(ctx, -(surplus as i32));
    }
    context::send_back(ctx)
}

/// Prepares the answer. Returns `None` if the SYN is the kernel's to answer.
#[inline(always)]
fn prepare(ctx: *mut Raw) -> Option<()> {
    let Description { tcp, data_len, verdict, .. } = *maps::packet()?;
    let (class, addresses) = maps::packet().map(|syn| (syn.class(), syn.addresses()))?;
    let (frame, host) = (Frame::anew(ctx), maps::host());
    // The verifier would learn nothing from a packet that is known to be longer than 0 bytes.
    let ethernet: [u8; ETHERNET] = frame.read(0)?;
    if !host.is_for(ethernet) || !is_between_hosts(&addresses) || !host.has(Host::COOKIES) {
        return None;
    }
    let ports = frame.read(tcp as usize)?;
    let state = with_socket(ctx, ports, |socket| {
        // SAFETY: the kernel lets this field of its socket be read.
        let state = unsafe { (&raw const (*socket).state).read_volatile() };
        if let Some(answering) = maps::answering() {
            // SAFETY: a write to our own map. It is volatile, so that LLVM does not keep the pointer.
            unsafe { (&raw mut answering.socket).write_volatile(socket as u64) };
        }
        state
    })?;
    match state {
        TCP_LISTEN => {}
        TCP_NEW_SYN_RECV if check_confirmed(SYSCTL) => {
            // It would keep its place in the queue for as long as it is repeated (`tcp_check_req`). The kernel repeats its
            // SYN-ACK without being asked.
            maps::packet()?.drop_repeated();
            return Some(());
        }
        // Any other state is the kernel's, such as TIME_WAIT, which a SYN may end.
        _ => return None,
    }
    let listener = listener(ctx, maps::answering()?);
    let has_option = !matches!(class, Some(Class::PlainSyn | Class::OptionIgnored));
    // Nothing is sent in a dry run, and nothing is marked for it.
    let is_dry_run = verdict != Verdict::Answer as u32;
    let is_marked = is_dry_run || listener.has(Listener::MARKED);
    let is_judged = listener.judges_itself(host, has_option, data_len);
    let is_ours = is_marked && !is_judged && is_local(ctx) && check_confirmed(SYSCTL);
    is_ours.then_some(())
}

/// Returns the listener whose socket was found last.
#[inline(always)]
fn listener(ctx: *mut Raw, answering: &mut Answering) -> Listener {
    // SAFETY: see the write.
    let socket = unsafe { (&raw const answering.socket).read_volatile() };
    // Sockets are some kilobytes apart.
    let known = &mut answering.listeners[(socket >> 11 ^ socket >> 6) as usize & (LISTENERS - 1)];
    let jiffy = maps::jiffies();
    if known.socket != socket || known.jiffy != jiffy {
        *known = look_at(socket, jiffy);
        let mut mtu = 0;
        // SAFETY: the context is the kernel's, and it writes one word.
        unsafe { bpf_check_mtu(ctx.cast(), 0, &raw mut mtu, 0, 0) };
        answering.mtu = mtu;
    }
    answering.listener = *known;
    answering.listener
}

/// Reads the facts about the listener at `socket`.
#[inline(always)]
fn look_at(socket: u64, jiffy: u64) -> Listener {
    let at = socket as *const u8;
    let mut flags = 0;
    let group = if read_bit(at, Field::ReusePort) { REUSE_PORT } else { 0 };
    let marked = overflow(at, group);
    if marked != 0 && (jiffy as u32).wrapping_sub(marked) <= MARK_SECONDS * maps::hz() {
        flags |= Listener::MARKED;
    }
    if read::<u32>(at, Field::FastOpenLimit) != 0 {
        flags |= Listener::FAST_OPEN;
    }
    if read::<u64>(at, Field::OwnKeys) != 0 {
        flags |= Listener::OWN_KEYS;
    }
    if read_bit(at, Field::NoCookie) {
        flags |= Listener::NO_COOKIE;
    }
    if read_bit(at, Field::UserLocks) || read::<u32>(at, Field::WindowClamp) != 0 {
        flags |= Listener::OWN_WINDOW;
    }
    // The kernel gives at least half of the buffer to the window (`tcp_win_from_space`).
    let window = (read::<u32>(at, Field::ReceiveBuffer) / 2).min(WINDOW);
    Listener { socket, jiffy, flags, window }
}

/// Makes the SYN cookie and the rest of the SYN-ACK for the listener that was found last, and room for it in the frame.
#[inline(always)]
fn compose(ctx: *mut Raw) -> Option<()> {
    let (syn, host) = (maps::packet()?, maps::host());
    let (addresses, tcp) = (&syn.addresses(), syn.tcp as usize);
    let jiffies = maps::jiffies();
    let Answering { reply, input, mtu, listener, clock, .. } = maps::answering()?;
    let frame = Frame::anew(ctx);
    let has_timestamps = host.has(Host::TIMESTAMPS) && !listener.has(Listener::OWN_WINDOW);
    let offer = Offer::read(&frame, tcp, has_timestamps);
    let family = addresses.family;
    let (ports, isn) = (u32::from_le_bytes(frame.read(tcp)?), u32::from_le_bytes(frame.read(tcp + 4)?));
    input.fill(addresses, ports, isn, offer.mss.unwrap_or(default_mss(family)));
    // SAFETY: both headers are initialised memory of a map, as long as the kernel is told.
    let cookie = unsafe {
        let (network, tcp) = ((&raw mut input.network).cast(), (&raw mut input.tcp).cast());
        match family {
            Family::Ipv4 => bpf_tcp_raw_gen_syncookie_ipv4(network, tcp, INPUT_TCP as u32),
            Family::Ipv6 => bpf_tcp_raw_gen_syncookie_ipv6(network.cast(), tcp, INPUT_TCP as u32),
        }
    };
    if cookie < 0 {
        return None;
    }
    reply.sequence = cookie as u32;
    reply.network = network_offset(&frame)? as u32;
    reply.window = listener.window;
    let headers = (network_len(family) + 20) as u32;
    if *mtu <= headers {
        return None;
    }
    reply.mss = (*mtu - headers).min(u16::MAX.into());
    reply.flags = 0;
    let ring = maps::key_ring();
    let gives_cookie = host.has(Host::FAST_OPEN) && listener.has(Listener::FAST_OPEN) && ring.holds(CURRENT);
    if gives_cookie && syn.wants_cookie() {
        reply.flags |= Reply::COOKIE;
        // No other program sees the answer, so a portable cookie must be in it from the start.
        let tag = if maps::has_portable() { maps::portable_tag_of(syn.service) } else { 0 };
        let key = &ring.slots[CURRENT];
        reply.cookie = if tag != 0 { key.portable(addresses, tag) } else { key.cookie(addresses) };
    }
    if let Some(echo) = offer.timestamp {
        let without = reply.flags;
        reply.flags |= Reply::TIMESTAMPS;
        reply.flags |= if offer.sack { Reply::SACK } else { 0 };
        reply.flags |= if offer.scale.is_some() { Reply::SCALE } else { 0 };
        // An answer is no longer than its SYN if it can be.
        if reply.frame_len(family) > frame.len() {
            reply.flags = without;
        }
        // Reading the clock costs as much as a look-up. The timestamp counts in steps of 64 ms.
        if clock.jiffy != jiffies {
            *clock = Clock { jiffy: jiffies, ms: maps::monotonic_ns() / 1_000_000 };
        }
        let now = clock.ms as u32;
        (reply.timestamp, reply.echo) = (timestamp(now, offer.scale, offer.sack), echo);
        reply.scale = host.scale().into();
    }
    let missing = reply.frame_len(family).saturating_sub(frame.len());
    // Room behind the last buffer would not make the first one longer.
    let can_grow = || !maps::is_multi_buffer() || frame.whole_len() == frame.len();
    let has_room = missing == 0 || can_grow() && context::adjust_tail(ctx, missing as i32);
    has_room.then_some(())
}
