//! New maps that are not pinned yet. The control loop pins them, not the thread that loads the program.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    maps::{Map, MapData},
};

use crate::dataplane::pins::{Generation, MAPS};

/// The maps of a program, each with its name.
pub(super) struct Unpinned(Vec<(&'static str, MapData)>);

impl Unpinned {
    /// Duplicates the descriptors of the maps of `ebpf` that are to be pinned.
    pub(super) fn of(ebpf: &Ebpf) -> Result<Self> {
        let of_name = |name: &'static str| {
            let map = ebpf.map(name).with_context(|| format!("the program has no map {name}"))?;
            let fd = data(map)?.fd().as_fd().try_clone_to_owned().context("cannot duplicate a descriptor")?;
            Ok((name, MapData::from_fd(fd)?))
        };
        Ok(Self(MAPS.into_iter().map(of_name).collect::<Result<_>>()?))
    }

    /// Pins all maps in `generation`.
    pub(super) fn pin(self, generation: &Generation) -> Result<()> {
        self.0.iter().try_for_each(|(name, map)| {
            let path = generation.map(name);
            map.pin(&path).with_context(|| format!("cannot pin the map at {}", path.display()))
        })
    }
}

/// Returns the data of `map`, of any kind that the program has.
fn data(map: &Map) -> Result<&MapData> {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Ok(data),
        _ => bail!("a map is of an unknown kind"),
    }
}
