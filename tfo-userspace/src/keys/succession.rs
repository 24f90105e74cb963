//! Secrets of a fleet that follow one another, such that no host refuses a cookie that another has handed out.
//!
//! The hosts of a fleet learn a new secret one after the other. So a host recognises the keys of a new secret at once, and
//! makes cookies with them only after the overlap, when the others have learnt it, too. For one more overlap it recognises
//! the keys that hosts still make of the secret before. Then the earlier keys are retired ones like any others.
//!
//! ```text
//! learnt            in force               superseded
//!   |--- overlap ------|--- overlap ------------|
//!   | old keys are made, new ones recognised    |
//!                      | new keys are made, old ones recognised
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tfo_common::keyring::{Held, Key, RETIRED};
use zeroize::Zeroizing;

use super::{schedule::Schedule, secret::Secret};
use crate::model::keys::DatedKey;

/// Time at which a secret comes in force that only waits for a word.
pub const UNTIL_TOLD: u64 = u64::MAX;
/// Number of secrets that are kept at most. The oldest are forgotten.
const MOST: usize = 4;
/// Version of the text.
const VERSION: u64 = 1;
/// Capacity for the text of a secret, in bytes, with room to spare.
const ENTRY: usize = 160;

/// Secrets in the order in which they come in force. There is at least one.
///
/// The type has no `Debug`, since secrets are never printed.
pub struct Succession {
    schedule: Schedule,
    /// Time within which all hosts of the fleet learn a secret.
    overlap: Duration,
    entries: Vec<Entry>,
    /// Whether an emergency is in progress: the keys of earlier secrets have leaked, and may still be in the kernel or a
    /// map.
    purge: bool,
}

struct Entry {
    secret: Secret,
    /// Time since which it is in force, in seconds since 1970; 0 for the first.
    from: u64,
}

/// Change by learning a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// Nothing: it is the newest one already.
    Nothing,
    /// The secret comes in force at this time, or when it is told ([`UNTIL_TOLD`]).
    New(u64),
    /// The secret is the one in force. The ones after it are no longer to come in force.
    Withdrawn,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    version: u64,
    #[serde(borrow)]
    secrets: Vec<Line<'a>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    purge: bool,
}

/// Line of one secret. It borrows, so that its digits are only in the caller's buffer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    secret: &'a str,
    from: u64,
}

impl Succession {
    /// Begins with a secret that has been in force for ever.
    pub fn new(secret: Secret, schedule: Schedule, overlap: Duration) -> Self {
        // The buffer never grows, although growing would copy pointers only: see `Secret`.
        let mut entries = Vec::with_capacity(MOST);
        entries.push(Entry { secret, from: 0 });
        Self { schedule, overlap, entries, purge: false }
    }

    /// Returns the schedule.
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// Learns a secret at `now`, which comes in force after the overlap, or only when told
    /// ([`put_in_force`](Self::put_in_force)).
    pub fn learn(&mut self, secret: Secret, now: u64, when_told: bool) -> Learnt {
        let from = if when_told { UNTIL_TOLD } else { now.saturating_add(self.overlap.as_secs()) };
        let present = self.index_at(now);
        if self.entries[present].secret == secret {
            let later = &mut self.entries[present + 1..];
            if later.iter().all(|entry| entry.from == UNTIL_TOLD) {
                return Learnt::Nothing;
            }
            // Other hosts may make cookies with them by now, so their keys are still recognised.
            later.iter_mut().for_each(|entry| entry.from = UNTIL_TOLD);
            return Learnt::Withdrawn;
        }
        if let Some(at) = self.entries.iter().position(|entry| entry.secret == secret)
            && at > present
        {
            if when_told || self.entries[at].from != UNTIL_TOLD {
                return Learnt::Nothing;
            }
            self.entries.remove(at);
        }
        // Those that wait for a word stay behind those that have a time. One that an even newer one overtakes is no
        // longer to come in force.
        if when_told {
            self.entries[present + 1..].iter_mut().for_each(|entry| entry.from = UNTIL_TOLD);
        }
        if self.entries.len() == MOST {
            self.entries.remove(usize::from(present == 0));
        }
        let at = self.entries.partition_point(|entry| entry.from <= from);
        self.entries.insert(at, Entry { secret, from });
        Learnt::New(from)
    }

    /// Puts the newest secret in force at `now`. Returns whether that changes anything.
    pub fn put_in_force(&mut self, now: u64) -> bool {
        let present = self.index_at(now);
        let newest = self.entries.len() - 1;
        if newest == present {
            return false;
        }
        // What stood between them is not to come in force any more.
        self.entries.drain(present + 1..newest);
        self.entries[present + 1].from = now;
        true
    }

    /// Forgets all secrets but the newest, which comes in force. Kernel and maps may have only its keys until
    /// [`purged`](Self::purged).
    pub fn purge(&mut self) {
        self.entries.drain(..self.entries.len() - 1);
        self.entries[0].from = 0;
        self.purge = true;
    }

    /// Whether an emergency is in progress.
    pub fn is_purging(&self) -> bool {
        self.purge
    }

    /// Ends the emergency.
    pub fn purged(&mut self) {
        self.purge = false;
    }

    /// Forgets secrets whose keys would not be among the retired ones any more. Returns whether there were any.
    pub fn tidy(&mut self, now: u64) -> bool {
        let number = self.schedule.number(now);
        let is_gone = |succession: &Self| {
            let last = succession.schedule.number(succession.until(0));
            succession.index_at(now) > 0 && last.saturating_add(RETIRED as u64) < number
        };
        let before = self.entries.len();
        while self.entries.len() > 1 && is_gone(self) {
            self.entries.remove(0);
            self.entries[0].from = 0;
        }
        self.entries.len() != before
    }

    /// Returns the fingerprint of the secret in force at `now`.
    pub fn fingerprint(&self, now: u64) -> String {
        self.entries[self.index_at(now)].secret.fingerprint()
    }

    /// Returns the fingerprint of the newest secret that is not yet in force, and the time from which it will be.
    pub fn next(&self, now: u64) -> Option<(String, u64)> {
        let newest = self.entries.len() - 1;
        let entry = &self.entries[newest];
        (newest > self.index_at(now)).then(|| (entry.secret.fingerprint(), entry.from))
    }

    /// Returns the keys that a host holds at `now`.
    ///
    /// They are those of the schedule, as for tofurkey. But for an overlap after a secret has come in force, the backup key
    /// is one of the secret before, since other hosts may still make cookies with it: the present one, or in the first half
    /// of an interval the previous one. So the kernel's two keys never change at once, and meanwhile cookies can be
    /// translated into the one that stays.
    pub fn held(&self, now: u64) -> Held {
        let (number, present) = (self.schedule.number(now), self.index_at(now));
        let mut held = self.schedule.held(&self.entries[present].secret, now);
        let after = Some(self.entries[present].secret.key(number + 1));
        if present > 0 && now < self.until(present - 1) {
            let half = self.schedule.interval().as_secs() / 2;
            let made = self.schedule.number(self.entries[present].from.max(now.saturating_sub(half)));
            held.backup = Some(self.entries[present - 1].secret.key(made));
            held.next = after;
        } else if held.backup != after {
            held.backup = number.checked_sub(1).map(|before| self.made_by(before).key(before));
        }
        held
    }

    /// Returns the keys with which other hosts may be making cookies at `now`, beside [`held`](Self::held), newest first.
    pub fn live(&self, now: u64) -> Zeroizing<Vec<DatedKey>> {
        let mut live = Zeroizing::new(Vec::with_capacity(3 * MOST));
        let held = self.held(now);
        for (_, entry) in self.others(now) {
            let number = self.schedule.number(now);
            // Their clocks may differ.
            for number in [number + 1, number, number.saturating_sub(1)] {
                self.add(&mut live, held, entry.secret.key(number), number.min(self.schedule.number(now)));
            }
        }
        live
    }

    /// Returns the keys whose cookies clients may have from hosts of the fleet, beside [`held`](Self::held), at most as
    /// many as a ring has room for: those of [`live`](Self::live), then the others, newest first.
    pub fn earlier(&self, now: u64) -> Zeroizing<Vec<DatedKey>> {
        let mut earlier = Zeroizing::new(Vec::with_capacity(3 * MOST + RETIRED + MOST));
        earlier.extend(self.live(now).iter());
        let held = self.held(now);
        let interval = self.schedule.interval().as_secs();
        for number in (0..=self.schedule.number(now)).rev() {
            if earlier.len() >= RETIRED {
                break;
            }
            let (start, end) = (number * interval, number.saturating_add(1).saturating_mul(interval) - 1);
            for index in (0..self.entries.len()).rev() {
                // Other hosts may have put it in force an overlap earlier.
                let earliest = self.entries[index].from.saturating_sub(self.overlap.as_secs());
                if earliest <= end.min(now) && start < self.until(index) {
                    self.add(&mut earlier, held, self.entries[index].secret.key(number), number);
                }
            }
        }
        earlier.truncate(RETIRED);
        earlier
    }

    /// Adds a key, unless it is in `held` or among `keys` already.
    fn add(&self, keys: &mut Vec<DatedKey>, held: Held, key: Key, number: u64) {
        let is_held = [held.current, held.backup, held.next].contains(&Some(key));
        if !is_held && keys.iter().all(|known| known.key != key) {
            keys.push(DatedKey { key, made: number * self.schedule.interval().as_secs() });
        }
    }

    /// Returns the secrets beside the present one of which other hosts may be making cookies, newest first.
    fn others(&self, now: u64) -> impl Iterator<Item = (usize, &Entry)> {
        let present = self.index_at(now);
        let entries = self.entries.iter().enumerate().rev();
        entries.filter(move |(index, _)| *index > present || *index < present && now < self.until(*index))
    }

    /// Returns the index of the secret in force at `now`.
    fn index_at(&self, now: u64) -> usize {
        self.entries.iter().rposition(|entry| entry.from <= now && entry.from != UNTIL_TOLD).unwrap_or(0)
    }

    /// Returns the time until which hosts may make cookies with a secret.
    fn until(&self, index: usize) -> u64 {
        self.entries.get(index + 1).map_or(u64::MAX, |next| next.from.saturating_add(self.overlap.as_secs()))
    }

    /// Returns the secret that was in force at the end of an interval.
    fn made_by(&self, number: u64) -> &Secret {
        let end = number.saturating_add(1).saturating_mul(self.schedule.interval().as_secs()) - 1;
        &self.entries[self.index_at(end)].secret
    }

    /// Returns the secrets and their times as text, for a file that only root can read.
    pub fn text(&self) -> Result<Zeroizing<Vec<u8>>> {
        let digits: Vec<_> = self.entries.iter().map(|entry| entry.secret.digits()).collect();
        let lines = digits.iter().zip(&self.entries);
        let lines = lines.map(|(secret, entry)| Line { secret, from: entry.from });
        let document = Document { version: VERSION, secrets: lines.collect(), purge: self.purge };
        // The buffer must not grow: growing would leave a copy of the secrets behind.
        let mut text = Zeroizing::new(Vec::with_capacity(ENTRY * (1 + self.entries.len())));
        serde_json::to_writer(&mut *text, &document)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Parses such a text. Error messages show nothing of it.
    pub fn parse(text: &[u8], schedule: Schedule, overlap: Duration) -> Result<Self> {
        // The library's own message may quote the text, and so a secret.
        let document: Document<'_> =
            serde_json::from_slice(text).ok().context("it is not what this tfo writes")?;
        if document.version != VERSION || !(1..=MOST).contains(&document.secrets.len()) {
            bail!("it is not what this tfo writes");
        }
        let mut entries = Vec::with_capacity(MOST);
        for Line { secret, from } in document.secrets {
            let secret = Secret::from_digits(secret.as_bytes()).context("a secret in it is not valid")?;
            entries.push(Entry { secret, from });
        }
        entries.sort_by_key(|entry| entry.from);
        entries[0].from = 0;
        Ok(Self { schedule, overlap, entries, purge: document.purge })
    }
}

#[cfg(test)]
mod tests;
