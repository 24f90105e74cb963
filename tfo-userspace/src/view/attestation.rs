//! Comparison of the keys in the map, the kernel and the schedule, by fingerprint. It shows hosts that are out of step.

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

/// Fingerprints of the current and the backup key in three places.
#[derive(Serialize)]
pub struct Attestation {
    /// Result of the comparison: true if all known places have the same keys, `None` if only the map is known.
    in_step: Option<bool>,
    /// Keys in the map. JSON lists them elsewhere, so they are left out here.
    #[serde(skip)]
    map: Pair,
    /// Keys in the sysctl; `None` if the program is in another network namespace, or the sysctl can't be read.
    kernel: Option<Pair>,
    /// Keys that the key source wants now; `None` if the kernel chooses the keys, or no controller runs.
    schedule: Option<Pair>,
}

/// Fingerprints of the current and the backup key.
#[derive(PartialEq, Eq, Serialize)]
struct Pair {
    current: Option<String>,
    backup: Option<String>,
}

impl From<[u64; 2]> for Pair {
    /// Writes the fingerprints in hexadecimal; 0 stands for no key.
    fn from(fingerprints: [u64; 2]) -> Self {
        let [current, backup] = fingerprints.map(|print| (print != 0).then(|| format!("{print:016x}")));
        Self { current, backup }
    }
}

impl Attestation {
    /// Compares the keys of `ring`, from the map below `pins`, with those of the kernel and of the schedule in `info`.
    pub fn of(pins: &Pins, ring: &KeyRing, info: &Info) -> Result<Self> {
        let map = KernelKeys::from(ring.held()).fingerprints().into();
        // The sysctl is that of our own network namespace, so it is compared only with a program in the same one.
        let kernel = (netns::netns()? == info.netns).then(KernelKeys::read).and_then(Result::ok);
        let kernel = kernel.map(|keys| keys.fingerprints().into());
        let has_schedule = info.key_source != KeySource::Kernel as u64 && pins.has_controller()?;
        let schedule = has_schedule.then(|| info.wanted.into());
        let is_known = kernel.is_some() || schedule.is_some();
        let in_step = is_known.then(|| [&kernel, &schedule].into_iter().flatten().all(|keys| *keys == map));
        Ok(Self { in_step, map, kernel, schedule })
    }

    /// Returns true if all known places have the same keys, and `None` if only the map is known.
    pub fn in_step(&self) -> Option<bool> {
        self.in_step
    }

    /// Returns the comparison as a table.
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
