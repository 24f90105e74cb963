//! Every map and global of the program, behind functions: nothing else names them.

use core::cell::Cell as Word;

use aya_ebpf::{
    Global,
    btf_maps::{Array, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns, bpf_ringbuf_reserve, bpf_ringbuf_submit},
    macros::btf_map,
};
use tfo_common::{
    bytes::Bytes as _,
    carried::Carried,
    counters::Cell,
    description::Description,
    info::Info,
    keyring::{KeyRing, KeyStore},
    observed::{
        Connection, EVENT_BYTES, Event, Outcomes, PENDING, PREFIXES, Pending, Prefix, PrefixTally, Watch,
    },
    parse::LinkLayer,
    policy::{HIDDEN, Policy, Row, Tag, hidden_key},
    sample::Samplers,
    segment::{Addresses, FastOpen, Segment},
    service::{ADDRESSES, BY_ADDRESS, OTHER, PORTS, Service, address_scope},
    verdict::Mode,
};

use crate::frame::Frame;

/// [`tfo_common::names::COUNTERS`]. The number of services is set when the program is loaded, here and where it is 1 below.
#[btf_map]
static TFO_COUNTERS: PerCpuArray<Cell, 1> = PerCpuArray::new();

/// [`tfo_common::names::SAMPLERS`].
#[btf_map]
static TFO_SAMPLERS: PerCpuArray<Samplers, 1> = PerCpuArray::new();

/// [`tfo_common::names::SERVICES`]: for the commands; the program leaves it alone.
#[btf_map]
static TFO_SERVICES: Array<Service, 1> = Array::new();

/// [`tfo_common::names::PORTS`].
#[btf_map]
static TFO_PORTS: Array<u32, PORTS> = Array::new();

/// [`tfo_common::names::WATCH`].
#[btf_map]
static TFO_WATCH: PerCpuArray<Watch, 1> = PerCpuArray::new();

/// The packet at hand: see [`packet`].
#[btf_map]
static TFO_PACKET: PerCpuArray<Description, 1> = PerCpuArray::new();

/// [`tfo_common::names::PREFIXES`].
#[btf_map]
pub(crate) static TFO_PREFIXES: LruHashMap<Prefix, PrefixTally, PREFIXES> = LruHashMap::new();

/// [`tfo_common::names::PENDING`].
#[btf_map]
pub(crate) static TFO_PENDING: LruHashMap<Connection, Pending, PENDING> = LruHashMap::new();

/// [`tfo_common::names::OUTCOMES`].
#[btf_map]
static TFO_OUTCOMES: Array<Outcomes, 1> = Array::new();

/// [`tfo_common::names::CARRIED`]: for the commands; the program leaves it alone.
#[btf_map]
static TFO_CARRIED: Array<Carried, 1> = Array::new();

/// [`tfo_common::names::EVENTS`].
#[btf_map]
static TFO_EVENTS: RingBuf<Event, EVENT_BYTES> = RingBuf::new();

/// [`tfo_common::names::POLICIES`].
#[btf_map]
static TFO_POLICIES: Array<Policy, 1> = Array::new();

/// [`tfo_common::names::ADDRESSES`].
#[btf_map]
static TFO_ADDRESSES: LpmTrie<[u32; 5], u32, ADDRESSES> = LpmTrie::new();

/// [`tfo_common::names::HIDDEN`].
#[btf_map]
static TFO_HIDDEN: LpmTrie<[u32; 5], u32, HIDDEN> = LpmTrie::new();

/// [`tfo_common::names::SOURCES`]. The number of rows is set when the program is loaded, here and below.
#[btf_map]
static TFO_SOURCES: Array<Row, 1> = Array::new();

/// [`tfo_common::names::FORGERS`].
#[btf_map]
static TFO_FORGERS: Array<Row, 1> = Array::new();

/// [`tfo_common::names::UNKNOWN`].
#[btf_map]
static TFO_UNKNOWN: Array<Word<u64>, 1> = Array::new();

/// [`tfo_common::names::REPLAYS`].
#[btf_map]
static TFO_REPLAYS: Array<Row, 1> = Array::new();

/// [`tfo_common::names::LAST_SOURCE_ROW`].
#[unsafe(no_mangle)]
static TFO_LAST_SOURCE_ROW: Global<u32> = Global::new(0);

/// [`tfo_common::names::LAST_REPLAY_ROW`].
#[unsafe(no_mangle)]
static TFO_LAST_REPLAY_ROW: Global<u32> = Global::new(0);

/// [`tfo_common::names::SEED`].
#[unsafe(no_mangle)]
static TFO_SEED: Global<u64> = Global::new(0);

/// [`tfo_common::names::KEYS`].
#[btf_map]
static TFO_KEYS: Array<KeyStore, 1> = Array::new();

/// [`tfo_common::names::INFO`]: for the commands; the program leaves it alone.
#[btf_map]
static TFO_INFO: Array<Info, 1> = Array::new();

/// [`tfo_common::names::LINK_LAYER`]: set when the program is loaded, so that the verifier drops the other branch.
#[unsafe(no_mangle)]
static TFO_LINK_LAYER: Global<u8> = Global::new(LinkLayer::Ethernet as u8);

/// [`tfo_common::names::MODE`]: set when the program is loaded, so that an observer has no code that writes to packets.
#[unsafe(no_mangle)]
static TFO_MODE: Global<u8> = Global::new(Mode::Observe as u8);

/// [`tfo_common::names::HAS_SERVICES`]: set when the program is loaded, so that nobody pays for what he has not.
#[unsafe(no_mangle)]
static TFO_HAS_SERVICES: Global<u8> = Global::new(0);

/// [`tfo_common::names::NETNS`].
#[unsafe(no_mangle)]
static TFO_NETNS: Global<u64> = Global::new(0);

/// What the program may do.
#[inline(always)]
pub(crate) fn mode() -> Mode {
    match TFO_MODE.load() {
        mode if mode == Mode::Shield as u8 => Mode::Shield,
        mode if mode == Mode::Accelerate as u8 => Mode::Accelerate,
        _ => Mode::Observe,
    }
}

/// What frames of this interface begin with.
#[inline(always)]
pub(crate) fn link_layer() -> LinkLayer {
    if TFO_LINK_LAYER.load() == LinkLayer::Ip as u8 { LinkLayer::Ip } else { LinkLayer::Ethernet }
}

/// The ring without any key.
static NO_KEYS: KeyRing = KeyRing::EMPTY;

/// The key ring in force; an empty one where `segment` has no cookie to be checked.
#[inline(always)]
pub(crate) fn key_ring(segment: &Segment) -> &'static KeyRing {
    if let FastOpen::Cookie(_) = segment.fast_open { ring() } else { &NO_KEYS }
}

/// The key ring in force.
#[inline(always)]
pub(crate) fn ring() -> &'static KeyRing {
    TFO_KEYS.get_ptr(0).map_or(&NO_KEYS, in_force)
}

/// When the keys were last confirmed: see [`KeyStore::confirmed_ns`]. Zero where nobody has.
#[inline(always)]
pub(crate) fn confirmed_ns() -> u64 {
    // SAFETY: the entry of an array map lives as long as the program. The controller may write this aligned word at any time,
    // hence the volatile read.
    TFO_KEYS.get_ptr(0).map_or(0, |store| unsafe { (&raw const (*store).confirmed_ns).read_volatile() })
}

#[inline(always)]
fn in_force(store: *const KeyStore) -> &'static KeyRing {
    // SAFETY: the entry of an array map lives as long as the program. The controller may flip `active` at any time,
    // hence the volatile read of one aligned word. It gives other bytes only to the ring that no running program can
    // still be reading; the ring behind our reference it at most overwrites with the bytes that are there (see
    // `Object::publish`), so what we read does not change.
    unsafe {
        let active = (&raw const (*store).active).read_volatile();
        &(&(*store).rings)[KeyStore::index(active)]
    }
}

/// Whether any port has a service: known when the program is loaded.
#[inline(always)]
pub(crate) fn has_services() -> bool {
    TFO_HAS_SERVICES.load() != 0
}

/// The service that a SYN is for.
#[inline(always)]
pub(crate) fn service(frame: &Frame, segment: &Segment) -> u32 {
    service_at(frame, segment.tcp as usize, &segment.addresses)
}

/// The service that the TCP header at `tcp` is for.
#[inline(always)]
pub(crate) fn service_at(frame: &Frame, tcp: usize, addresses: &Addresses) -> u32 {
    /// Where a TCP header has it.
    const DESTINATION: usize = 2;

    if !has_services() {
        return OTHER;
    }
    let port = frame.read(tcp + DESTINATION);
    port.map_or(OTHER, |port| service_of(u16::from_be_bytes(port), addresses))
}

/// The service of `port` at the destination of `addresses`.
#[inline(always)]
pub(crate) fn service_of(port: u16, addresses: &Addresses) -> u32 {
    let service = TFO_PORTS.get(u32::from(port)).copied().unwrap_or(OTHER);
    if service & BY_ADDRESS == 0 {
        return service;
    }
    let rest = service & !BY_ADDRESS;
    let [a0, a1, a2, a3] = addresses.destination_v6();
    service_by_address(address_scope(port, addresses.family), rest, pair(a0, a1), pair(a2, a3))
}

/// The service that the address names; else `rest`. A function of its own, as is [`is_source_hidden`]: the key needs room on the
/// stack, and few packets pay for it.
#[inline(never)]
fn service_by_address(scope: u32, rest: u32, high: u64, low: u64) -> u32 {
    TFO_ADDRESSES.get(&scoped(scope, high, low)).copied().unwrap_or(rest)
}

/// The key of one address: all of its bits count.
#[inline(always)]
const fn scoped(scope: u32, high: u64, low: u64) -> Key<[u32; 5]> {
    let key = [scope, high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32];
    Key::new(u32::BITS * key.len() as u32, key)
}

const fn pair(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

/// What holds for `service`.
#[inline(always)]
pub(crate) fn policy(service: u32) -> Option<&'static Policy> {
    let policy = TFO_POLICIES.get_ptr(service)?;
    // SAFETY: the entry of an array map lives as long as the program. User space may write it meanwhile, whole words each, any of
    // which make a policy.
    Some(unsafe { &*policy })
}

/// Whether the source is one of those that are hidden by order.
#[inline(always)]
pub(crate) fn is_hidden(addresses: &Addresses) -> bool {
    let [family, a0, a1, a2, a3] = hidden_key(addresses.family, addresses.source_v6());
    is_source_hidden(family, pair(a0, a1), pair(a2, a3))
}

#[inline(never)]
fn is_source_hidden(family: u32, high: u64, low: u64) -> bool {
    TFO_HIDDEN.get(&scoped(family, high, low)).is_some()
}

/// Row that may hold the source `tag`, with what it has used of its share.
#[inline(always)]
pub(crate) fn source(tag: Tag) -> Option<&'static Row> {
    TFO_SOURCES.get(tag.row(TFO_LAST_SOURCE_ROW.load()))
}

/// The same of unknown cookies.
#[inline(always)]
pub(crate) fn forger(tag: Tag) -> Option<&'static Row> {
    TFO_FORGERS.get(tag.row(TFO_LAST_SOURCE_ROW.load()))
}

/// Until when all that there may be of unknown cookies at `service` is used up.
#[inline(always)]
pub(crate) fn unknown(service: u32) -> Option<&'static Word<u64>> {
    TFO_UNKNOWN.get(service)
}

/// Row that may hold the remembered SYN `tag`.
#[inline(always)]
pub(crate) fn replays(tag: Tag) -> Option<&'static Row> {
    TFO_REPLAYS.get(tag.row(TFO_LAST_REPLAY_ROW.load()))
}

/// What [`Tag`]s are made with.
#[inline(always)]
pub(crate) fn seed() -> u64 {
    TFO_SEED.load()
}

/// The description of the packet at hand, for which each step of the slow path asks anew: neither LLVM nor the verifier knows what the
/// one before it has left there.
#[inline(always)]
pub(crate) fn packet() -> Option<&'static mut Description> {
    let packet = TFO_PACKET.get_ptr_mut(0)?;
    // SAFETY: as in `cell`; and any bytes are a description.
    Some(unsafe { &mut *packet })
}

/// This CPU's counters of `service`.
#[inline(always)]
pub(crate) fn cell(service: u32) -> Option<&'static mut Cell> {
    let cell = TFO_COUNTERS.get_ptr_mut(service)?;
    // SAFETY: the entry belongs to this CPU, and no other run of the program on it can be under way: XDP runs with softirqs
    // off. Nobody asks again while it has the entry, and user space only reads a copy.
    Some(unsafe { &mut *cell })
}

/// This CPU's samplers of `service`.
#[inline(always)]
pub(crate) fn samplers(service: u32) -> Option<&'static mut Samplers> {
    let samplers = TFO_SAMPLERS.get_ptr_mut(service)?;
    // SAFETY: as in `cell`.
    Some(unsafe { &mut *samplers })
}

/// Runs `look` on this CPU's [`Watch`], in the XDP program.
#[inline(always)]
pub(crate) fn watch(look: impl FnOnce(&mut Watch)) {
    if let Some(watch) = TFO_WATCH.get_ptr_mut(0) {
        // SAFETY: as in `cell`: the sock_ops program, which may be interrupted, does not come here.
        look(unsafe { &mut *watch });
    }
}

/// What has become of connections to `service`, to be added to atomically: several CPUs do it at once, and a run on this one
/// may be interrupted by another.
#[inline(always)]
pub(crate) fn outcomes(service: u32) -> Option<*mut Outcomes> {
    TFO_OUTCOMES.get_ptr_mut(service)
}

/// Whether connections of the network namespace with this cookie count.
#[inline(always)]
pub(crate) fn is_our_netns(cookie: u64) -> bool {
    TFO_NETNS.load() == cookie
}

/// The kernel's clock, in jiffies: two instructions.
#[inline(always)]
pub(crate) fn jiffies() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_jiffies64() }
}

/// CLOCK_MONOTONIC, in nanoseconds.
#[inline(always)]
pub(crate) fn monotonic_ns() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// Lets `fill` write an event, if there is room for one. The controller looks at the ring at times: it is not woken.
#[inline(always)]
pub(crate) fn report(fill: impl FnOnce(&mut Event)) -> bool {
    const NO_WAKEUP: u64 = 1;

    let ring = (&raw const TFO_EVENTS).cast_mut().cast();
    // SAFETY: the kernel gives out a place of this size, aligned to eight bytes, or none. It keeps what was in it before, all
    // of which are bytes that an event may have. It is given back on the only way out.
    unsafe {
        let event = bpf_ringbuf_reserve(ring, size_of::<Event>() as u64, 0).cast::<Event>();
        if event.is_null() {
            return false;
        }
        fill(&mut *event);
        bpf_ringbuf_submit(event.cast(), NO_WAKEUP);
    }
    true
}
