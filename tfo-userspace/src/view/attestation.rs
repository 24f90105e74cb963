//! Whether the keys are where they should be, by their fingerprints: hosts out of step are seen at a glance.

use anyhow::Result;
use comfy_table::CellAlignment::Left;
use serde::Serialize;
use tfo_common::{
    info::{Info, KeySource},
    keyring::KeyRing,
};

use crate::{
    dataplane::pins::Pins,
    kernel::{netns, sysctl::KernelKeys},
    view::table::table,
};

/// The kernel's two keys, as three places have them.
#[derive(Serialize)]
pub struct Attestation {
    /// Whether they are the same wherever they are known; `None` where nothing but the map is.
    in_step: Option<bool>,
    /// In the map. JSON has them in their own places.
    #[serde(skip)]
    map: Pair,
    /// In the sysctl; `None` where that is of another network namespace, or can't be read.
    kernel: Option<Pair>,
    /// What the source wants now; `None` where keys are the kernel's to choose, or no controller is there to ask the source.
    schedule: Option<Pair>,
}

/// Fingerprints.
#[derive(PartialEq, Eq, Serialize)]
struct Pair {
    current: Option<String>,
    backup: Option<String>,
}

impl From<[u64; 2]> for Pair {
    /// 0 stands for none.
    fn from(fingerprints: [u64; 2]) -> Self {
        let [current, backup] = fingerprints.map(|print| (print != 0).then(|| format!("{print:016x}")));
        Self { current, backup }
    }
}

impl Attestation {
    /// Of the map with `ring` and what is known `info` under `pins`.
    pub fn of(pins: &Pins, ring: &KeyRing, info: &Info) -> Result<Self> {
        let map = KernelKeys::from(ring.held()).fingerprints().into();
        // Its keys are of our own namespace: to another's, they say nothing.
        let kernel = (netns::netns()? == info.netns).then(KernelKeys::read).and_then(Result::ok);
        let kernel = kernel.map(|keys| keys.fingerprints().into());
        let has_schedule = info.key_source != KeySource::Kernel as u64 && pins.has_controller()?;
        let schedule = has_schedule.then(|| info.wanted.into());
        let is_known = kernel.is_some() || schedule.is_some();
        let in_step = is_known.then(|| [&kernel, &schedule].into_iter().flatten().all(|keys| *keys == map));
        Ok(Self { in_step, map, kernel, schedule })
    }

    /// Whether the keys are the same wherever they are known; `None` where nothing but the map is.
    pub fn in_step(&self) -> Option<bool> {
        self.in_step
    }

    /// As users see it.
    pub fn text(&self) -> String {
        let Self { in_step, map, kernel, schedule } = self;
        let places = [("map", Some(map)), ("kernel", kernel.as_ref()), ("schedule", schedule.as_ref())];
        let rows =
            places.into_iter().filter_map(|(place, keys)| Some((place, keys?))).map(|(place, keys)| {
                let [current, backup] =
                    [&keys.current, &keys.backup].map(|key| key.as_deref().unwrap_or("none"));
                [place, current, backup].map(str::to_owned)
            });
        let head = match in_step {
            Some(true) => "keys in step",
            Some(false) => "keys OUT OF STEP",
            None => "keys not compared",
        };
        table(&[(head, Left), ("current", Left), ("backup", Left)], rows)
    }
}
