//! The loaded program and its maps: what is in them, and how it is published.

use std::{borrow::Borrow, fmt, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader, Pod, VerifierLogLevel,
    maps::{Array, Map, MapData, PerCpuArray},
    programs::Xdp,
};
use log::{info, trace};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tfo_common::{
    counters::Counters,
    info::{Info, LAYOUT_VERSION},
    keyring::{Held, Key, KeyRing, KeyStore, Moment},
    names,
    parse::LinkLayer,
    verdict::Mode,
};

use super::unix_seconds;
use crate::{
    keys::{describe, keeper::Publish, state::Made},
    pins::{MAPS, Pins},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tfo-ebpf"));

/// A struct that kernel and user space share through a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Shared<T>(pub(super) T);

// SAFETY: `tfo_common::layout` asserts that these structs are repr(C), made of integers, without padding, so any
// bytes are a value and every byte is initialised.
unsafe impl Pod for Shared<Counters> {}
// SAFETY: as above.
unsafe impl Pod for Shared<KeyStore> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Info> {}

/// What is fixed when the program is loaded; the verifier removes what is not needed.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// What frames begin with.
    pub link: LinkLayer,
    /// What the program may do.
    pub mode: Mode,
    /// Up to which of aya's levels the program logs its own events: 0 for none.
    pub log_level: u8,
}

/// The loaded program and its maps.
pub struct Object {
    pub(super) ebpf: Ebpf,
    mode: Mode,
    counters: PerCpuArray<MapData, Shared<Counters>>,
    keys: Array<MapData, Shared<KeyStore>>,
    pub(super) info: Array<MapData, Shared<Info>>,
}

impl Object {
    /// Loads the program. With `pins`, maps that are pinned there are used on, and new ones pinned.
    pub fn load(options: &LoadOptions, pins: Option<&Pins>) -> Result<Self> {
        let mut object = Self::prepare(options, pins)?;
        object.program()?.load().context("the kernel refused the XDP program")?;
        Ok(object)
    }

    /// The first half of [`load`](Self::load): the maps are there, and the verifier has not seen the program yet.
    pub fn prepare(options: &LoadOptions, pins: Option<&Pins>) -> Result<Self> {
        // Before Linux 5.11 maps count as locked memory.
        if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
            trace!("cannot lift the limit of locked memory: {error}");
        }
        let (link, mode) = (options.link as u8, options.mode as u8);
        let mut loader = EbpfLoader::new();
        loader
            .override_global(names::LINK_LAYER, &link, true)
            .override_global(names::MODE, &mode, true)
            .override_global(names::LOG_LEVEL, &options.log_level, true)
            .verifier_log_level(VerifierLogLevel::STATS);
        for name in MAPS {
            if let Some(pins) = pins {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let mut ebpf = loader.load(OBJECT).context("cannot create the maps of the XDP program")?;
        let mut take = |name| ebpf.take_map(name).with_context(|| format!("the program has no map {name}"));
        let (counters, keys, info) = (take(names::COUNTERS)?, take(names::KEYS)?, take(names::INFO)?);
        Ok(Self {
            counters: counters.try_into()?,
            keys: keys.try_into()?,
            info: info.try_into()?,
            mode: options.mode,
            ebpf,
        })
    }

    /// The XDP program.
    pub fn program(&mut self) -> Result<&mut Xdp> {
        let program = self.ebpf.program_mut(names::PROGRAM);
        let program = program.with_context(|| format!("there is no program {}", names::PROGRAM))?;
        Ok(program.try_into()?)
    }

    /// What was counted, summed over all CPUs.
    pub fn counters(&self) -> Result<Counters> {
        read_counters(&self.counters)
    }

    /// The key ring in force.
    pub fn key_ring(&self) -> Result<KeyRing> {
        read_key_ring(&self.keys)
    }

    /// Puts `ring` in force for every packet from now on, whole.
    ///
    /// No program ever sees half of it: the ring is written where nobody reads, one aligned word is flipped, and the
    /// other ring gets no other bytes before every program that could still read it has ended. (Each write covers the
    /// whole entry, but writes the bytes that were there, save in the spare ring and in the low byte of that word.)
    pub fn publish(&mut self, ring: &KeyRing) -> Result<()> {
        let Shared(mut store) = self.keys.get(&0, 0).context("cannot read the key map")?;
        let spare = KeyStore::index(store.active + 1);
        store.rings[spare] = *ring;
        self.keys.set(0, Shared(store), 0).context("cannot write the key map")?;
        wait_for_running_programs();
        store.active = spare as u64;
        self.keys.set(0, Shared(store), 0).context("cannot write the key map")?;
        wait_for_running_programs();
        Ok(())
    }
}

/// Whether both have the same keys in the same roles.
fn has_same_keys(one: &KeyRing, other: &KeyRing) -> bool {
    one.slots == other.slots && one.present == other.present
}

/// What a map that translates is to hold while the kernel goes from `kernel` to `wanted`: whatever moment it is, a cookie is
/// translated into one that the kernel takes before and after, or not at all. A key in the place of the next one is known,
/// and leaves room for one more among the retired.
fn in_between(kernel: Held, wanted: Held) -> Held {
    let stays = |key: &Key| [wanted.current, wanted.backup].contains(&Some(*key));
    let kernels = [kernel.current, kernel.backup];
    let common = kernels.into_iter().flatten().find(stays);
    let other = kernels.into_iter().flatten().find(|key| Some(*key) != common);
    Held { current: common, backup: None, next: other }
}

/// Waits until every XDP program that now runs has ended, and orders our writes before what comes after.
fn wait_for_running_programs() {
    // Programs run inside an RCU read-side section, and MEMBARRIER_CMD_GLOBAL is synchronize_rcu (on one CPU it does
    // nothing: there, no program is under way while we run).
    // SAFETY: this command takes no pointer and changes nothing in the process.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // Kernels with nohz_full CPUs don't have it. A program runs for less than a microsecond, unless its virtual CPU
        // is taken away; then it could see a torn ring if two more were published meanwhile.
        thread::sleep(Duration::from_millis(10));
    }
}

fn read_counters<T: Borrow<MapData>>(map: &PerCpuArray<T, Shared<Counters>>) -> Result<Counters> {
    let mut sum = Counters::default();
    for Shared(counters) in map.get(&0, 0).context("cannot read the counters")?.iter() {
        sum.add(counters);
    }
    Ok(sum)
}

fn read_key_ring<T: Borrow<MapData>>(map: &Array<T, Shared<KeyStore>>) -> Result<KeyRing> {
    let Shared(store) = map.get(&0, 0).context("cannot read the key map")?;
    Ok(*store.current())
}

/// The pinned maps are those of a tfo with another layout.
#[derive(Debug)]
pub struct OtherVersion(PathBuf);

impl fmt::Display for OtherVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.0.display();
        write!(
            f,
            "the maps in {dir} are of another version of tfo: use that one, or start `tfo run` of this one"
        )
    }
}

impl std::error::Error for OtherVersion {}

/// The maps of a program that somebody else attached, opened from their pins.
pub struct Pinned {
    counters: PerCpuArray<MapData, Shared<Counters>>,
    keys: Array<MapData, Shared<KeyStore>>,
    info: Info,
}

impl Pinned {
    /// Opens the maps under `pins`; fails with [`OtherVersion`] where they are of another layout.
    pub fn open(pins: &Pins) -> Result<Self> {
        let open = |name| {
            let path = pins.map(name);
            MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
        };
        let other = || OtherVersion(pins.dir().to_owned());
        let info = Array::<_, Shared<Info>>::try_from(Map::Array(open(names::INFO)?));
        let Shared(info) = info.with_context(other)?.get(&0, 0).context("cannot read the info map")?;
        if info.layout_version != LAYOUT_VERSION {
            bail!(other());
        }
        let (counters, keys) = (open(names::COUNTERS)?, open(names::KEYS)?);
        Ok(Self {
            counters: Map::PerCpuArray(counters).try_into().with_context(other)?,
            keys: Map::Array(keys).try_into().with_context(other)?,
            info,
        })
    }

    /// What was counted, summed over all CPUs.
    pub fn counters(&self) -> Result<Counters> {
        read_counters(&self.counters)
    }

    /// The key ring in force.
    pub fn key_ring(&self) -> Result<KeyRing> {
        read_key_ring(&self.keys)
    }

    /// What its controller said of it.
    pub fn info(&self) -> &Info {
        &self.info
    }
}

impl Object {
    /// Makes the keys of `publish` those of the map, unless they are already.
    pub(crate) fn hold(&mut self, interface: &str, publish: Publish) -> Result<()> {
        let ring = self.key_ring()?;
        let hits = self.counters()?.hits;
        let moment = Moment { seconds: unix_seconds(), hits: &hits };
        let next = match publish {
            Publish::Held(held) => ring.follow(held, moment),
            // The wanted ones first, then the kernel's: so those have their roles, and these are known.
            Publish::Learn { kernel, wanted } => {
                let known = ring.follow(wanted, moment).follow(kernel, moment);
                match self.mode {
                    Mode::Observe => known,
                    Mode::Accelerate => known.follow(in_between(kernel, wanted), moment),
                }
            }
            Publish::Only(held) => {
                KeyRing { generation: ring.generation, ..KeyRing::EMPTY }.follow(held, moment)
            }
        };
        if let Publish::Only(_) = publish
            && self.holds_only(&next)?
        {
            return Ok(());
        }
        self.replace(interface, &ring, next)?;
        if let Publish::Only(_) = publish {
            // Over the other ring, too, which nobody reads and which has the leaked keys still.
            self.publish(&KeyRing { generation: next.generation + 1, ..next })?;
        }
        Ok(())
    }

    /// Whether no other keys than those of `ring` are anywhere in the map.
    fn holds_only(&self, ring: &KeyRing) -> Result<bool> {
        let Shared(store) = self.keys.get(&0, 0).context("cannot read the key map")?;
        Ok(store.rings.iter().all(|other| has_same_keys(other, ring)))
    }

    /// Lets go of the retired keys for which `keep`, given their slot, says no.
    pub(super) fn prune(&mut self, interface: &str, keep: impl FnMut(usize) -> bool) -> Result<()> {
        let ring = self.key_ring()?;
        let next = ring.without_retired(keep);
        self.replace(interface, &ring, next)
    }

    /// Makes `earlier` keys, newest first, retired ones, each as old as it is, as far as there is room.
    pub(crate) fn remember(&mut self, interface: &str, earlier: &[Made]) -> Result<()> {
        let ring = self.key_ring()?;
        let hits = self.counters()?.hits;
        let next = earlier.iter().fold(ring, |ring, Made { key, made }| {
            ring.with_oldest(*key, Moment { seconds: *made, hits: &hits })
        });
        self.replace(interface, &ring, next)
    }

    fn replace(&mut self, interface: &str, ring: &KeyRing, next: KeyRing) -> Result<()> {
        if !has_same_keys(&next, ring) {
            self.publish(&next)?;
            info!("{interface}: keys in the map: {}", describe(&next));
        }
        Ok(())
    }
}
