//! Maps and globals of the programs, behind functions. Other modules name none of them but `TFO_PREFIXES`,
//! `TFO_PENDING` and `TFO_NETWORKS`.

use core::{arch::asm, cell::Cell as Word, ffi::c_void, mem::offset_of, ptr};

use aya_ebpf::{
    Global,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage, lpm_trie::Key},
    helpers::generated::{
        bpf_jiffies64, bpf_ktime_get_ns, bpf_ringbuf_reserve, bpf_ringbuf_submit, bpf_sk_storage_delete,
        bpf_sk_storage_get,
    },
    macros::btf_map,
};
use tfo_common::{
    answer::{Host, Input, Listener, Reply},
    bytes::Bytes as _,
    carried::Carried,
    class::{Keys, SearchBudget, find, find_portable},
    client::{Attempts, Client, DESTINATIONS, Network},
    counters::Cell,
    description::Description,
    filter::SourceFilter,
    info::Info,
    keyring::{KeyRing, KeyStore, SLOTS, STORES, SYSCTL, TRACKS},
    observed::{
        Connection, EVENT_BYTES, Event, Outcomes, PENDING, PREFIXES, Pending, Prefix, PrefixTally, Watch,
    },
    parse::LinkLayer,
    policy::{HIDDEN, Policy, hidden_key},
    ports,
    sample::Samplers,
    segment::{Addresses, FastOpen, Segment},
    service::{ADDRESSES, BY_ADDRESS, NO_PORT, OTHER, PORTS, Service, address_scope},
    table::{Row, SEED_WORDS, Tag},
    verdict::Mode,
};

use crate::frame::Frame;

/// [`tfo_common::names::COUNTERS`]. The loader sets the number of entries, also of each map below that has one entry
/// for each service.
#[btf_map]
static TFO_COUNTERS: PerCpuArray<Cell, 1> = PerCpuArray::new();

/// [`tfo_common::names::SAMPLERS`].
#[btf_map]
static TFO_SAMPLERS: PerCpuArray<Samplers, 1> = PerCpuArray::new();

/// [`tfo_common::names::SERVICES`]. Only user space uses it.
#[btf_map]
static TFO_SERVICES: Array<Service, 1> = Array::new();

/// [`tfo_common::names::PORTS`].
#[btf_map]
static TFO_PORTS: Array<u32, PORTS> = Array::new();

/// [`tfo_common::names::WATCH`].
#[btf_map]
static TFO_WATCH: PerCpuArray<Watch, 1> = PerCpuArray::new();

/// Description of the current packet: see [`packet`].
#[btf_map]
static TFO_PACKET: PerCpuArray<Description, 1> = PerCpuArray::new();

/// [`tfo_common::names::HOST`].
#[btf_map]
static TFO_HOST: Array<Host, 1> = Array::new();

/// [`tfo_common::names::LISTENING`].
#[btf_map]
static TFO_LISTENING: Array<u64, { ports::WORDS }> = Array::new();

/// State of answering on each CPU: see [`answering`].
#[btf_map]
static TFO_ANSWERING: PerCpuArray<Answering, 1> = PerCpuArray::new();

/// [`tfo_common::names::PREFIXES`].
#[btf_map]
pub(crate) static TFO_PREFIXES: LruHashMap<Prefix, PrefixTally, PREFIXES> = LruHashMap::new();

/// [`tfo_common::names::PENDING`].
#[btf_map]
pub(crate) static TFO_PENDING: LruHashMap<Connection, Pending, PENDING> = LruHashMap::new();

/// [`tfo_common::names::CHILDREN`].
#[btf_map]
static TFO_CHILDREN: SkStorage<u32> = SkStorage::new();

/// [`tfo_common::names::CLIENT`].
#[btf_map]
static TFO_CLIENT: Array<Client, 1> = Array::new();

/// [`tfo_common::names::NETWORKS`].
#[btf_map]
pub(crate) static TFO_NETWORKS: LruHashMap<Network, Attempts, DESTINATIONS> = LruHashMap::new();

/// [`tfo_common::names::CALLERS`].
#[btf_map]
static TFO_CALLERS: SkStorage<u64> = SkStorage::new();

/// [`tfo_common::names::OUTCOMES`].
#[btf_map]
static TFO_OUTCOMES: Array<Outcomes, 1> = Array::new();

/// [`tfo_common::names::CARRIED`]. Only user space uses it.
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
static TFO_ADDRESSES: LpmTrie<[u32; 5], u32, { 2 * ADDRESSES }> = LpmTrie::new();

/// [`tfo_common::names::HIDDEN`].
#[btf_map]
static TFO_HIDDEN: LpmTrie<[u32; 5], u32, HIDDEN> = LpmTrie::new();

/// [`tfo_common::names::HIDE_FILTER`].
#[btf_map]
static TFO_HIDE_FILTER: Array<SourceFilter, 1> = Array::new();

/// [`tfo_common::names::SOURCES`]. The loader sets the number of rows, here and in the other tables of rows.
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

/// [`tfo_common::names::REQUESTS`].
#[btf_map]
static TFO_REQUESTS: Array<Row, 1> = Array::new();

/// [`tfo_common::names::LAST_SOURCE_ROW`].
#[unsafe(no_mangle)]
static TFO_LAST_SOURCE_ROW: Global<u32> = Global::new(0);

/// [`tfo_common::names::LAST_REPLAY_ROW`].
#[unsafe(no_mangle)]
static TFO_LAST_REPLAY_ROW: Global<u32> = Global::new(0);

/// [`tfo_common::names::LAST_REQUEST_ROW`].
#[unsafe(no_mangle)]
static TFO_LAST_REQUEST_ROW: Global<u32> = Global::new(0);

/// [`tfo_common::names::SEED`].
#[unsafe(no_mangle)]
static TFO_SEED: [Global<u64>; SEED_WORDS] = [const { Global::new(0) }; SEED_WORDS];

/// [`tfo_common::names::SEARCHES_PER_JIFFY`].
#[unsafe(no_mangle)]
static TFO_SEARCHES_PER_JIFFY: Global<u32> = Global::new(0);

/// [`tfo_common::names::KEYS`].
#[btf_map]
static TFO_KEYS: Array<KeyStore, STORES> = Array::new();

/// [`tfo_common::names::INFO`]. Only user space uses it.
#[btf_map]
static TFO_INFO: Array<Info, 1> = Array::new();

/// [`tfo_common::names::LINK_LAYER`]. It is set at load time, so that the verifier removes the code for the other link
/// layer.
#[unsafe(no_mangle)]
static TFO_LINK_LAYER: Global<u8> = Global::new(LinkLayer::Ethernet as u8);

/// [`tfo_common::names::MODE`]. It is set at load time, so that in mode `observe` the verifier removes the code that
/// writes to packets.
#[unsafe(no_mangle)]
static TFO_MODE: Global<u8> = Global::new(Mode::Observe as u8);

/// [`tfo_common::names::HAS_SERVICES`]. It is set at load time, so that look-ups of services cost nothing without
/// services.
#[unsafe(no_mangle)]
static TFO_HAS_SERVICES: Global<u8> = Global::new(0);

/// [`tfo_common::names::HAS_PORTABLE`]. It is set at load time, so that other services pay nothing for portable cookies.
#[unsafe(no_mangle)]
static TFO_HAS_PORTABLE: Global<u8> = Global::new(0);

/// [`tfo_common::names::COMPARES_DATA`]. It is set at load time, so that other services pay nothing for it.
#[unsafe(no_mangle)]
static TFO_COMPARES_DATA: Global<u8> = Global::new(0);

/// [`tfo_common::names::ANSWERS`].
#[unsafe(no_mangle)]
static TFO_ANSWERS: Global<u8> = Global::new(0);

/// [`tfo_common::names::MULTI_BUFFER`]. It is set at load time, so that the program needs no helper of Linux 5.18 without it.
#[unsafe(no_mangle)]
static TFO_MULTI_BUFFER: Global<u8> = Global::new(0);

/// [`tfo_common::names::HZ`].
#[unsafe(no_mangle)]
static TFO_HZ: Global<u32> = Global::new(0);

/// [`tfo_common::names::NETNS`].
#[unsafe(no_mangle)]
static TFO_NETNS: Global<u64> = Global::new(0);

/// Mode of the program.
#[inline(always)]
pub(crate) fn mode() -> Mode {
    match TFO_MODE.load() {
        mode if mode == Mode::Shield as u8 => Mode::Shield,
        mode if mode == Mode::Accelerate as u8 => Mode::Accelerate,
        _ => Mode::Observe,
    }
}

/// Link layer of the interface.
#[inline(always)]
pub(crate) fn link_layer() -> LinkLayer {
    if TFO_LINK_LAYER.load() == LinkLayer::Ip as u8 { LinkLayer::Ip } else { LinkLayer::Ethernet }
}

/// Whether any service may have its SYNs answered. This is a load-time constant, so that the program needs no helper of
/// Linux 6.0 without them.
#[inline(always)]
pub(crate) fn answers() -> bool {
    TFO_ANSWERS.load() != 0
}

/// Whether frames may lie in several buffers. This is a load-time constant.
#[inline(always)]
pub(crate) fn is_multi_buffer() -> bool {
    TFO_MULTI_BUFFER.load() != 0
}

/// Number of jiffies in a second.
#[inline(always)]
pub(crate) fn hz() -> u32 {
    TFO_HZ.load()
}

/// Facts about the host that decide on answers.
#[inline(always)]
pub(crate) fn host() -> Host {
    TFO_HOST.get(0).copied().unwrap_or_default()
}

/// Number of listeners that a CPU remembers.
pub(crate) const LISTENERS: usize = 16;

/// CLOCK_MONOTONIC, read once for each jiffy.
#[repr(C)]
pub(crate) struct Clock {
    /// The jiffy in which it was read.
    pub(crate) jiffy: u64,
    /// Time, in milliseconds.
    pub(crate) ms: u64,
}

/// State of answering on one CPU.
#[repr(C)]
pub(crate) struct Answering {
    /// SYN-ACK for the current packet.
    pub(crate) reply: Reply,
    /// Input for the maker of its SYN cookie. What is never written stays zero.
    pub(crate) input: Input,
    /// Socket that was found last, as a number: the verifier would not let a pointer to one be used so.
    pub(crate) socket: u64,
    /// Maximum transmission unit of the interface, in bytes.
    pub(crate) mtu: u32,
    reserved: u32,
    /// Clock, as it was read last.
    pub(crate) clock: Clock,
    /// Listener whose socket it is.
    pub(crate) listener: Listener,
    /// Listeners that this CPU remembers, each at a place that follows from its socket.
    pub(crate) listeners: [Listener; LISTENERS],
}

/// State of answering on this CPU.
#[inline(always)]
pub(crate) fn answering() -> Option<&'static mut Answering> {
    let answering = TFO_ANSWERING.get_ptr_mut(0)?;
    // SAFETY: as in `cell`. Any bytes are a valid state.
    Some(unsafe { &mut *answering })
}

/// Key ring without any key.
static NO_KEYS: KeyRing = KeyRing::EMPTY;

/// Key ring of `domain` that is in force, or an empty one if `segment` has no cookie to check.
#[inline(always)]
pub(crate) fn key_ring_for(segment: &Segment, domain: u32) -> &'static KeyRing {
    if let FastOpen::Cookie(_) = segment.fast_open { key_ring_of(domain) } else { &NO_KEYS }
}

/// Key ring of the sysctl's keys that is in force.
#[inline(always)]
pub(crate) fn key_ring() -> &'static KeyRing {
    key_ring_of(SYSCTL)
}

/// Key ring of `domain` that is in force.
#[inline(always)]
pub(crate) fn key_ring_of(domain: u32) -> &'static KeyRing {
    TFO_KEYS.get_ptr(domain).map_or(&NO_KEYS, in_force)
}

/// Time of the last confirmation of the keys of `domain` ([`KeyStore::confirmed_ns`]), or 0 if there was none.
#[inline(always)]
pub(crate) fn confirmed_ns(domain: u32) -> u64 {
    // SAFETY: the entry of an array map lives as long as the program. The controller may write this aligned word at any
    // time, hence the volatile read.
    TFO_KEYS.get_ptr(domain).map_or(0, |store| unsafe { (&raw const (*store).confirmed_ns).read_volatile() })
}

/// Whether the cookie of `segment` may be of a key domain. Hosts without listeners that have keys of their own pay only for
/// this.
#[inline(always)]
pub(crate) fn may_have_domain(segment: &Segment) -> bool {
    let has_cookie = matches!(segment.fast_open, FastOpen::Cookie(_));
    // SAFETY: as in `confirmed_ns`.
    let has_domains = |store: *const KeyStore| unsafe { (&raw const (*store).domains).read_volatile() } != 0;
    has_cookie && TFO_KEYS.get_ptr(SYSCTL).is_some_and(has_domains)
}

/// Key domain that the cookie of `segment` belongs to: the sysctl's keys, or those of the listeners on its port.
#[inline(always)]
pub(crate) fn domain(frame: &Frame, segment: &Segment) -> u32 {
    if may_have_domain(segment) {
        frame
            .read(segment.tcp as usize + DESTINATION)
            .map_or(SYSCTL, |port| domain_of(u16::from_be_bytes(port).into()))
    } else {
        SYSCTL
    }
}

/// Key domain of `port`.
#[inline(always)]
fn domain_of(port: u32) -> u32 {
    TFO_LISTENING
        .get(ports::word(port as u16))
        .map_or(SYSCTL, |word| ports::domain(ports::get(port as u16, *word)))
}

/// Ring of `store` that is in force.
#[inline(always)]
fn in_force(store: *const KeyStore) -> &'static KeyRing {
    // SAFETY: the entry of an array map lives as long as the program. The controller may flip `active` at any time,
    // hence the volatile read of one aligned word. It changes only the ring that no running program can still be
    // reading. It may overwrite the ring behind our reference, but only with the bytes that it already has
    // (`Object::publish`), so the bytes that we read do not change.
    unsafe {
        let active = (&raw const (*store).active).read_volatile();
        &(&(*store).rings)[KeyStore::index(active)]
    }
}

/// Whether any port has a service. This is a load-time constant.
#[inline(always)]
pub(crate) fn has_services() -> bool {
    TFO_HAS_SERVICES.load() != 0
}

/// Whether any service has portable cookies. This is a load-time constant, true only in mode shield and for programs on
/// packets that leave.
#[inline(always)]
pub(crate) fn has_portable() -> bool {
    TFO_HAS_PORTABLE.load() != 0
}

/// Tag of the portable cookies of the service that a SYN is for; 0 if the SYN has no cookie or the service no portable ones.
#[inline(always)]
pub(crate) fn portable_tag(frame: &Frame, segment: &Segment) -> u64 {
    let has_cookie = matches!(segment.fast_open, FastOpen::Cookie(_));
    if has_portable() && has_cookie { portable_tag_of(service(frame, segment)) } else { 0 }
}

/// Tag of the portable cookies of `service`, or 0 if it has none.
#[inline(always)]
pub(crate) fn portable_tag_of(service: u32) -> u64 {
    policy(service).map_or(0, |policy| policy.portable)
}

/// Budget of this CPU for trying keys that the kernel does not hold.
#[derive(Clone, Copy)]
pub(crate) struct Budget;

impl SearchBudget for Budget {
    #[inline(always)]
    fn may_search(&self) -> bool {
        let mut may_search = false;
        watch(|watch| may_search = watch.searches.may_search(jiffies(), TFO_SEARCHES_PER_JIFFY.load()));
        may_search
    }

    #[inline(always)]
    fn spend(&self) {
        watch(|watch| watch.searches.spend());
    }

    #[inline(always)]
    fn find(&self, addresses: &Addresses, cookie: u64, ring: &KeyRing) -> Option<usize> {
        packet()?.set_search(addresses, cookie);
        slot_of(tfo_find(offset_of_ring(ring)?))
    }

    #[inline(always)]
    fn find_portable(
        &self,
        addresses: &Addresses,
        cookie: u64,
        ring: &KeyRing,
        tag: u64,
        keys: Keys,
    ) -> Option<usize> {
        packet()?.set_search(addresses, cookie);
        slot_of(tfo_find_portable(offset_of_ring(ring)?, tag, (keys == Keys::Others).into()))
    }
}

/// Offset of `ring`, which is in force, in the key map. Its entries lie one behind the other.
#[inline(always)]
fn offset_of_ring(ring: &KeyRing) -> Option<u64> {
    let store = TFO_KEYS.get_ptr(0)? as usize;
    Some(((&raw const *ring) as usize).wrapping_sub(store) as u64)
}

/// Ring at this offset in the key map.
#[inline(always)]
fn ring_at(offset: u64) -> Option<&'static KeyRing> {
    const SIZE: u64 = size_of::<KeyStore>() as u64;
    let store = TFO_KEYS.get_ptr((offset / SIZE) as u32)?;
    // SAFETY: as in `in_force`.
    let rings = unsafe { &(*store).rings };
    Some(&rings[usize::from((offset % SIZE) as usize != offset_of!(KeyStore, rings))])
}

/// Slot with this number, or `None` from [`SLOTS`] on.
#[inline(always)]
fn slot_of(slot: u32) -> Option<usize> {
    let mut slot = slot as usize;
    if slot >= SLOTS {
        return None;
    }
    // In assembly: LLVM knows that the mask changes nothing, and the verifier does not.
    // SAFETY: works on one register and touches neither memory nor the stack.
    unsafe {
        asm!(
            "{slot} &= {MASK}",
            slot = inout(reg) slot,
            MASK = const TRACKS - 1,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    Some(slot)
}

/// Finds the slot of the key that made the described cookie, among the keys that the kernel does not hold. Returns [`SLOTS`] if
/// there is none. Few cookies need it, and it is a global function, so the verifier checks it once.
///
/// `ring` is the offset in the key map of the caller's ring. It stays that, even if the other one has come into force
/// meanwhile.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_find(ring: u64) -> u32 {
    let (Some(ring), Some(packet)) = (ring_at(ring), packet()) else { return SLOTS as u32 };
    find(&packet.addresses(), packet.cookie, ring).unwrap_or(SLOTS) as u32
}

/// Finds the slot of the key that made the described cookie, as a portable one of the services with `tag`: among the keys that
/// the kernel does not hold if `others` is 1, or else its backup key. Like [`tfo_find`] it is a global function.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tfo_find_portable(ring: u64, tag: u64, others: u32) -> u32 {
    if !has_portable() {
        return SLOTS as u32;
    }
    let (Some(ring), Some(packet)) = (ring_at(ring), packet()) else { return SLOTS as u32 };
    let keys = if others == 0 { Keys::Backup } else { Keys::Others };
    find_portable(&packet.addresses(), packet.cookie, ring, tag, keys).unwrap_or(SLOTS) as u32
}

/// Service that a SYN is for.
#[inline(always)]
pub(crate) fn service(frame: &Frame, segment: &Segment) -> u32 {
    service_at(frame, segment.tcp as usize, &segment.addresses)
}

/// Offset of the destination port in a TCP header.
const DESTINATION: usize = 2;

/// Flags of the listeners on the local port of the SYN with its TCP header at `tcp`.
#[inline(always)]
pub(crate) fn listening(frame: &Frame, tcp: usize) -> u64 {
    let Some(port) = frame.read(tcp + DESTINATION) else { return 0 };
    let port = u16::from_be_bytes(port);
    TFO_LISTENING.get(ports::word(port)).map_or(0, |word| ports::get(port, *word))
}

/// Service that the SYN with its TCP header at `tcp` is for.
#[inline(always)]
pub(crate) fn service_at(frame: &Frame, tcp: usize, addresses: &Addresses) -> u32 {
    if !has_services() {
        return OTHER;
    }
    let port = frame.read(tcp + DESTINATION);
    port.map_or(OTHER, |port| service_of(u16::from_be_bytes(port), addresses))
}

/// Service of `port`, in host byte order, at the destination of `addresses`.
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

/// Service that has frames to the destination of `addresses` dropped if their port can't be told, or [`OTHER`].
#[inline(always)]
pub(crate) fn service_without_port(addresses: &Addresses) -> u32 {
    let [a0, a1, a2, a3] = addresses.destination_v6();
    service_by_address(address_scope(NO_PORT, addresses.family), OTHER, pair(a0, a1), pair(a2, a3))
}

/// Service that the map of addresses has for a destination, or `rest` if it has none.
///
/// Like [`is_source_hidden`] it is not inlined: the key takes up stack, and few packets need the look-up.
#[inline(never)]
fn service_by_address(scope: u32, rest: u32, high: u64, low: u64) -> u32 {
    TFO_ADDRESSES.get(&scoped(scope, high, low)).copied().unwrap_or(rest)
}

/// Key to look up one address, with the prefix length of the whole key.
#[inline(always)]
const fn scoped(scope: u32, high: u64, low: u64) -> Key<[u32; 5]> {
    let key = [scope, high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32];
    Key::new(u32::BITS * key.len() as u32, key)
}

/// Word with `first` in its lower half and `second` in its upper half.
const fn pair(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

/// Policy of `service`.
#[inline(always)]
pub(crate) fn policy(service: u32) -> Option<&'static Policy> {
    let policy = TFO_POLICIES.get_ptr(service)?;
    // SAFETY: the entry of an array map lives as long as the program. User space may write it meanwhile, in whole
    // words, and any words are a valid policy.
    Some(unsafe { &*policy })
}

/// Whether the source may be hidden by an order, as far as the filter tells.
#[inline(always)]
pub(crate) fn may_be_hidden(addresses: &Addresses) -> bool {
    TFO_HIDE_FILTER.get(0).is_none_or(|filter| filter.may_have(addresses))
}

/// Whether the source is hidden by an order.
#[inline(always)]
pub(crate) fn is_hidden(addresses: &Addresses) -> bool {
    let [family, a0, a1, a2, a3] = hidden_key(addresses.family, addresses.source_v6());
    is_source_hidden(family, pair(a0, a1), pair(a2, a3))
}

/// Whether the map of hidden sources has a prefix of the source.
#[inline(never)]
fn is_source_hidden(family: u32, high: u64, low: u64) -> bool {
    TFO_HIDDEN.get(&scoped(family, high, low)).is_some()
}

/// Row that may hold the source `tag` for its limit on good cookies.
#[inline(always)]
pub(crate) fn source_row(tag: Tag) -> Option<&'static Row> {
    TFO_SOURCES.get(tag.row(TFO_LAST_SOURCE_ROW.load()))
}

/// Row that may hold the source `tag` for its limit on unknown cookies.
#[inline(always)]
pub(crate) fn forger_row(tag: Tag) -> Option<&'static Row> {
    TFO_FORGERS.get(tag.row(TFO_LAST_SOURCE_ROW.load()))
}

/// Adds `n` to `word`, in one step for all CPUs.
#[inline(always)]
pub(crate) fn add(word: &Word<u64>, n: u64) {
    // In assembly, since Linux 5.10 refuses the instruction that also fetches the old value. LLVM does not know what is
    // added, so it reads the word again.
    // SAFETY: the word is in an entry of an array map, which lives as long as the program. It may be changed through a
    // shared reference.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) += {n}", word = in(reg) word.as_ptr(), n = in(reg) n, options(nostack));
    }
}

/// State of the limit on all unknown cookies at `service`: see [`Limit::grant`](tfo_common::limit::Limit::grant).
#[inline(always)]
pub(crate) fn last_unknown(service: u32) -> Option<&'static Word<u64>> {
    TFO_UNKNOWN.get(service)
}

/// Row that may hold the SYN `tag` of a connection that has ended.
#[inline(always)]
pub(crate) fn replay_row(tag: Tag) -> Option<&'static Row> {
    TFO_REPLAYS.get(tag.row(TFO_LAST_REPLAY_ROW.load()))
}

/// Whether the data of SYNs is compared for any service. This is a load-time constant, true only in mode shield.
#[inline(always)]
pub(crate) fn compares_data() -> bool {
    mode() == Mode::Shield && TFO_COMPARES_DATA.load() != 0
}

/// Row that may hold the data `tag`.
#[inline(always)]
pub(crate) fn request_row(tag: Tag) -> Option<&'static Row> {
    TFO_REQUESTS.get(tag.row(TFO_LAST_REQUEST_ROW.load()))
}

/// Word `at` of the secret seed of [`Tag`]s.
#[inline(always)]
pub(crate) fn seed(at: usize) -> u64 {
    TFO_SEED[at].load()
}

/// Description of the current packet.
///
/// Each step of the slow path looks it up again, so that neither LLVM nor the verifier knows the values from the step
/// before.
#[inline(always)]
pub(crate) fn packet() -> Option<&'static mut Description> {
    let packet = TFO_PACKET.get_ptr_mut(0)?;
    // SAFETY: as in `cell`. Any bytes are a valid description.
    Some(unsafe { &mut *packet })
}

/// Counters of `service` on this CPU.
#[inline(always)]
pub(crate) fn cell(service: u32) -> Option<&'static mut Cell> {
    let cell = TFO_COUNTERS.get_ptr_mut(service)?;
    // SAFETY: the entry belongs to this CPU, and no other run of the program on it can be under way: XDP runs with
    // softirqs off. No caller looks the entry up again while it still uses a reference to it, and user space only reads
    // a copy.
    Some(unsafe { &mut *cell })
}

/// Samplers of `service` on this CPU.
#[inline(always)]
pub(crate) fn samplers(service: u32) -> Option<&'static mut Samplers> {
    let samplers = TFO_SAMPLERS.get_ptr_mut(service)?;
    // SAFETY: as in `cell`.
    Some(unsafe { &mut *samplers })
}

/// Calls `update` with the [`Watch`] of this CPU. For programs on packets only.
#[inline(always)]
pub(crate) fn watch(update: impl FnOnce(&mut Watch)) {
    if let Some(watch) = TFO_WATCH.get_ptr_mut(0) {
        // SAFETY: as in `cell`. A packet leaves with softirqs off, too. The sock_ops program, which may be interrupted, does not
        // call this.
        update(unsafe { &mut *watch });
    }
}

/// Outcomes of connections to `service`. Additions must be atomic: several CPUs add at once, and one run on a CPU may
/// interrupt another.
#[inline(always)]
pub(crate) fn outcomes(service: u32) -> Option<*mut Outcomes> {
    TFO_OUTCOMES.get_ptr_mut(service)
}

/// Counts of connections from here. Additions must be atomic, as above.
#[inline(always)]
pub(crate) fn client() -> Option<*mut Client> {
    TFO_CLIENT.get_ptr_mut(0)
}

/// Socket that the kernel has given to the sock_ops program.
#[derive(Clone, Copy)]
pub(crate) struct Socket(*mut bpf_sock);

impl Socket {
    /// Returns the socket at `place`, or `None` for a null pointer.
    ///
    /// # Safety
    ///
    /// `place` must be null or come from the context of the program.
    #[inline(always)]
    pub(crate) unsafe fn at(place: *mut bpf_sock) -> Option<Self> {
        if place.is_null() { None } else { Some(Self(place)) }
    }

    /// Marks the socket as a Fast Open child, whose client began with the sequence number `isn`. Without memory for the
    /// mark, the socket is treated as any other.
    #[inline(always)]
    pub(crate) fn mark_child(self, isn: u32) {
        if let Some(place) = self.storage(children(), BPF_SK_STORAGE_GET_F_CREATE.into()) {
            // SAFETY: the storage lives as long as the socket, and nobody else uses that of a new one. The value of this map is
            // a u32.
            unsafe { *place.cast::<u32>() = isn };
        }
    }

    /// Returns the client's first sequence number, or `None` if the socket is not marked.
    #[inline(always)]
    pub(crate) fn child_isn(self) -> Option<u32> {
        // SAFETY: as above. Only `mark_child` writes, when the socket is new.
        self.storage(children(), 0).map(|place| unsafe { *place.cast::<u32>() })
    }

    /// Marks the socket as a client's with Fast Open, which sends its SYN at `ns`. Without memory for the mark, its connection
    /// is not counted.
    #[inline(always)]
    pub(crate) fn mark_caller(self, ns: u64) {
        if let Some(place) = self.storage(callers(), BPF_SK_STORAGE_GET_F_CREATE.into()) {
            // SAFETY: as above. The kernel holds the lock of a client's socket. The value of this map is a u64.
            unsafe { *place.cast::<u64>() = ns };
        }
    }

    /// Returns the time of the mark of a client's socket and removes the mark, or returns `None` if there is none.
    #[inline(always)]
    pub(crate) fn take_caller(self) -> Option<u64> {
        // SAFETY: as above.
        let ns = self.storage(callers(), 0).map(|place| unsafe { *place.cast::<u64>() })?;
        // SAFETY: the socket is the kernel's.
        unsafe { bpf_sk_storage_delete(callers(), self.0.cast()) };
        Some(ns)
    }

    /// Returns the kernel's pointer.
    #[inline(always)]
    pub(crate) fn pointer(self) -> *mut bpf_sock {
        self.0
    }

    /// Returns the socket's value in `map`, which is a storage of sockets.
    #[inline(always)]
    fn storage(self, map: *mut c_void, flags: u64) -> Option<*mut c_void> {
        // SAFETY: the socket is the kernel's. The helper returns null or room for the value of the map.
        let place = unsafe { bpf_sk_storage_get(map, self.0.cast(), ptr::null_mut(), flags) };
        if place.is_null() { None } else { Some(place) }
    }
}

/// [`TFO_CHILDREN`], for the helpers.
#[inline(always)]
fn children() -> *mut c_void {
    (&raw const TFO_CHILDREN).cast_mut().cast()
}

/// [`TFO_CALLERS`], for the helpers.
#[inline(always)]
fn callers() -> *mut c_void {
    (&raw const TFO_CALLERS).cast_mut().cast()
}

/// Whether `cookie` is that of the network namespace whose connections count.
#[inline(always)]
pub(crate) fn is_our_netns(cookie: u64) -> bool {
    TFO_NETNS.load() == cookie
}

/// Time of the kernel's clock, in jiffies. Reading it takes two instructions.
#[inline(always)]
pub(crate) fn jiffies() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_jiffies64() }
}

/// Time of CLOCK_MONOTONIC, in nanoseconds.
#[inline(always)]
pub(crate) fn monotonic_ns() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Writes an event by `fill`. Returns false if the ring has no room for it. The controller is not woken, since it polls
/// the ring.
#[inline(always)]
pub(crate) fn report(fill: impl FnOnce(&mut Event)) -> bool {
    const NO_WAKEUP: u64 = 1;

    let ring = (&raw const TFO_EVENTS).cast_mut().cast();
    // SAFETY: the kernel returns room of this size, aligned to eight bytes, or null. The room has the bytes of earlier
    // events, and any bytes are a valid event. The only way out submits it.
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
