//! Every map and global of the program, behind functions: nothing else names them.

use aya_ebpf::{
    Global,
    btf_maps::{Array, LruHashMap, PerCpuArray, RingBuf},
    helpers::generated::{bpf_jiffies64, bpf_ringbuf_reserve, bpf_ringbuf_submit},
    macros::btf_map,
};
use tfo_common::{
    bytes::Bytes as _,
    counters::Cell,
    info::Info,
    keyring::{KeyRing, KeyStore},
    observed::{
        Connection, EVENT_BYTES, Event, Outcomes, PENDING, PREFIXES, Pending, Prefix, PrefixTally, Watch,
    },
    parse::LinkLayer,
    segment::{FastOpen, Segment},
    service::{OTHER, PORTS, Service},
    verdict::Mode,
};

use crate::frame::Frame;

/// [`tfo_common::names::COUNTERS`]. The number of services is set when the program is loaded, here and where it is 1 below.
#[btf_map]
static TFO_COUNTERS: PerCpuArray<Cell, 1> = PerCpuArray::new();

/// [`tfo_common::names::SERVICES`]: for the commands; the program leaves it alone.
#[btf_map]
static TFO_SERVICES: Array<Service, 1> = Array::new();

/// [`tfo_common::names::PORTS`].
#[btf_map]
static TFO_PORTS: Array<u32, PORTS> = Array::new();

/// [`tfo_common::names::WATCH`].
#[btf_map]
static TFO_WATCH: PerCpuArray<Watch, 1> = PerCpuArray::new();

/// [`tfo_common::names::PREFIXES`].
#[btf_map]
pub(crate) static TFO_PREFIXES: LruHashMap<Prefix, PrefixTally, PREFIXES> = LruHashMap::new();

/// [`tfo_common::names::PENDING`].
#[btf_map]
pub(crate) static TFO_PENDING: LruHashMap<Connection, Pending, PENDING> = LruHashMap::new();

/// [`tfo_common::names::OUTCOMES`].
#[btf_map]
static TFO_OUTCOMES: Array<Outcomes, 1> = Array::new();

/// [`tfo_common::names::EVENTS`].
#[btf_map]
static TFO_EVENTS: RingBuf<Event, EVENT_BYTES> = RingBuf::new();

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
    if TFO_MODE.load() == Mode::Accelerate as u8 { Mode::Accelerate } else { Mode::Observe }
}

/// What frames of this interface begin with.
#[inline(always)]
pub(crate) fn link_layer() -> LinkLayer {
    if TFO_LINK_LAYER.load() == LinkLayer::Ip as u8 { LinkLayer::Ip } else { LinkLayer::Ethernet }
}

/// The key ring in force; an empty one where `segment` has no cookie to be checked.
#[inline(always)]
pub(crate) fn key_ring(segment: &Segment) -> &'static KeyRing {
    static EMPTY: KeyRing = KeyRing::EMPTY;

    let FastOpen::Cookie(_) = segment.fast_open else { return &EMPTY };
    let Some(store) = TFO_KEYS.get_ptr(0) else { return &EMPTY };
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

/// The service of the port that `segment` is for.
#[inline(always)]
pub(crate) fn service(frame: &Frame, segment: &Segment) -> u32 {
    /// Where a TCP header has it.
    const DESTINATION: usize = 2;

    let port = frame.read(segment.tcp as usize + DESTINATION);
    port.map_or(OTHER, |port| service_of(u16::from_be_bytes(port)))
}

/// The service of `port`.
#[inline(always)]
pub(crate) fn service_of(port: u16) -> u32 {
    TFO_PORTS.get(u32::from(port)).copied().unwrap_or(OTHER)
}

/// This CPU's counters of `service`.
#[inline(always)]
pub(crate) fn cell(service: u32) -> Option<&'static mut Cell> {
    let cell = TFO_COUNTERS.get_ptr_mut(service)?;
    // SAFETY: the entry belongs to this CPU, and no other run of the program on it can be under way: XDP runs with softirqs
    // off. Nobody asks twice in a run, and user space only reads a copy.
    Some(unsafe { &mut *cell })
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
