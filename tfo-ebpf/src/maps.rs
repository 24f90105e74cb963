//! Every map and global of the program, behind functions: nothing else names them.

use aya_ebpf::{
    Global,
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use tfo_common::{
    counters::Counters,
    info::Info,
    keyring::{KeyRing, KeyStore},
    parse::LinkLayer,
    segment::{FastOpen, Segment},
    verdict::Mode,
};

/// [`tfo_common::names::COUNTERS`].
#[btf_map]
static TFO_COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

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

/// Runs `count` on this CPU's counters.
#[inline(always)]
pub(crate) fn counters(count: impl FnOnce(&mut Counters)) {
    if let Some(counters) = TFO_COUNTERS.get_ptr_mut(0) {
        // SAFETY: the entry belongs to this CPU, and no other run of the program on it can be under way: XDP runs
        // with softirqs off. User space only reads a copy.
        count(unsafe { &mut *counters });
    }
}
