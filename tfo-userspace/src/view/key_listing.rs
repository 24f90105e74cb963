//! Keys of an interface, as `tfo keys status` and `tfo top` show them. It contains fingerprints, never keys.

use anyhow::Result;
use comfy_table::CellAlignment::{Left, Right};
use serde::Serialize;
use tfo_common::{
    info::KeySource,
    keyring::{Role, SLOTS},
};

use super::attestation::Attestation;
use crate::model::keys::fingerprint;
use crate::{
    dataplane::{Pinned, pins::Pins},
    util::time::unix_seconds,
    view::table::table,
};

/// Keys of one interface.
#[derive(Serialize)]
pub struct Listing {
    /// Name of the interface.
    pub interface: String,
    /// Name of the key source.
    pub source: &'static str,
    /// Interval between rotations, in seconds; `None` if the kernel decides.
    pub rotate: Option<u64>,
    /// Number of times the kernel's keys could not be read or written, or were changed by somebody else.
    pub failures: u64,
    /// Time from which a new secret of the fleet will be in force, in seconds since 1970; `None` if there is none, or if it
    /// waits for a word.
    pub next_secret_from: Option<u64>,
    /// Comparison of the keys in map, kernel and schedule.
    #[serde(flatten)]
    pub attestation: Attestation,
    /// Keys in the map, in the order of their roles.
    pub keys: Vec<Generation>,
}

/// Key in the map.
#[derive(Clone, Debug, Serialize)]
pub struct Generation {
    /// Name of the role.
    pub role: &'static str,
    /// Fingerprint of the key.
    pub fingerprint: String,
    /// Seconds since the key came into the map.
    pub age: u64,
    /// Number of cookies of the key that have come since.
    pub hits: u64,
    /// Share in the hits of all keys in the map, from 0 to 1.
    pub share: f64,
    /// Seconds until the key is removed because of its age; `None` if no such removal is due.
    pub goes_in: Option<u64>,
}

impl Listing {
    /// Reads the keys from the maps below `pins`, which are open as `pinned`.
    pub fn of(pins: &Pins, pinned: &Pinned) -> Result<Self> {
        let (ring, info, hits) = (pinned.key_ring()?, pinned.info(), pinned.counters()?.hits);
        let slots = || (0..SLOTS).filter(|slot| ring.holds(*slot));
        let all: u64 = slots().map(|slot| ring.hits(slot, &hits)).sum();
        let generation = |slot: usize| {
            let age = unix_seconds().saturating_sub(ring.since[slot]);
            let hits = ring.hits(slot, &hits);
            let role = Role::of_slot(slot);
            let may_go = role == Role::Retired && info.max_age_seconds > 0;
            Generation {
                role: role.name(),
                fingerprint: fingerprint(ring.slots[slot].key()),
                age,
                hits,
                share: if all == 0 { 0.0 } else { hits as f64 / all as f64 },
                goes_in: may_go.then(|| info.max_age_seconds.saturating_sub(age)),
            }
        };
        Ok(Self {
            interface: pins.interface().to_owned(),
            source: KeySource::ALL.get(info.key_source as usize).map_or("unknown", |source| source.name()),
            rotate: (info.rotate_seconds > 0).then_some(info.rotate_seconds),
            failures: info.key_failures,
            next_secret_from: Some(info.next_secret).filter(|from| ![0, u64::MAX].contains(from)),
            attestation: Attestation::of(pins, &ring, info)?,
            keys: slots().map(generation).collect(),
        })
    }

    /// Returns the seconds until a new secret of the fleet is in force; `None` if there is none.
    pub fn next_secret_in(&self) -> Option<u64> {
        self.next_secret_from.map(|from| from.saturating_sub(unix_seconds()))
    }

    /// Returns the keys as text for a terminal.
    pub fn text(&self) -> String {
        let Self { interface, source, rotate, failures, attestation, keys, .. } = self;
        let mut text = format!("{interface}: keys from {source}");
        if let Some(rotate) = rotate {
            text += &format!(", a new one every {rotate} s");
        }
        text.push('\n');
        if let Some(seconds) = self.next_secret_in() {
            text += &format!("a new secret of the fleet is known, and in force in {seconds} s\n");
        }
        if *failures > 0 {
            text += &format!(
                "{failures} failures to read or write the kernel's keys, or changes of them by somebody else\n"
            );
        }
        text += &attestation.text();
        let rows = keys.iter().map(|key| {
            let goes = key.goes_in.map_or_else(String::new, |seconds| format!("in {seconds} s"));
            let share = format!("{:.2}%", key.share * 100.0);
            [
                key.role.to_owned(),
                key.fingerprint.clone(),
                key.age.to_string(),
                key.hits.to_string(),
                share,
                goes,
            ]
        });
        let columns = [
            ("role", Left),
            ("fingerprint", Left),
            ("age (s)", Right),
            ("hits", Right),
            ("share", Right),
            ("goes", Left),
        ];
        text + &table(&columns, rows)
    }
}
