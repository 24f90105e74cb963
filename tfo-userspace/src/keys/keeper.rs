//! The keeper of the keys: what the kernel is to hold, and how it gets there without a cookie refused on the way.
//!
//! The order of a rotation: the maps learn the new keys, the sysctl is written, read back and compared, and only then the
//! maps give the old ones up. A crash between any two steps leaves maps that cover the kernel's keys, and the next start
//! finds out from the source what is still to be done.

use std::{fs::File, path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use log::{info, warn};
use nix::fcntl::Flock;
use tfo_common::{
    info::KeySource,
    keyring::{Held, Key, RETIRED},
};
use zeroize::Zeroizing;

use super::{
    KernelKeys, fingerprint,
    schedule::Schedule,
    secret::Secret,
    state::{Made, State},
};
use crate::kernel::KeySysctl;

/// Where keys come from.
pub enum Source {
    /// Whoever sets them: we follow, and never write.
    Kernel,
    /// We make them.
    Random {
        /// The keys so far.
        state: State,
        /// Where they are kept.
        path: PathBuf,
        /// Keeps other controllers from keeping theirs there, too.
        lock: Flock<File>,
        /// How often they change.
        rotate: Duration,
    },
    /// The fleet's secret and the time.
    Secret {
        /// The secret.
        secret: Secret,
        /// The schedule.
        schedule: Schedule,
    },
}

/// What a map is to hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// These keys, and as retired ones all that it held before.
    Held(Held),
    /// The kernel's keys, and besides what it held before also these, which are about to become the kernel's.
    Learn {
        /// The kernel's keys now.
        kernel: Held,
        /// Its keys in a moment.
        wanted: Held,
    },
    /// These keys and no others: what was held before has leaked.
    Only(Held),
}

/// Puts keys into all maps.
pub trait Maps {
    /// Publishes them, whole; an error where one map could not take them.
    fn publish(&mut self, publish: Publish) -> Result<()>;
}

/// Keeps the kernel's keys and the maps' in step with the source.
pub struct Keeper {
    source: Source,
    /// The fingerprints of what we installed last: of what the kernel must show unless somebody else wrote.
    installed: Option<[u64; 2]>,
    /// Somebody else writes the sysctl: we follow, until told to rotate.
    yielded: bool,
    /// The latest time that the clock has shown.
    latest: u64,
    /// It was said that the clock is behind.
    behind: bool,
    failure: Option<String>,
    failures: u64,
}

impl Keeper {
    /// The keeper of `source`'s keys.
    pub fn new(source: Source) -> Self {
        Self { source, installed: None, yielded: false, latest: 0, behind: false, failure: None, failures: 0 }
    }

    /// Which source it is.
    pub fn source(&self) -> KeySource {
        match self.source {
            Source::Kernel => KeySource::Kernel,
            Source::Random { .. } => KeySource::Random,
            Source::Secret { .. } => KeySource::Secret,
        }
    }

    /// How often keys change, in seconds; 0 where we don't decide that.
    pub fn rotate_seconds(&self) -> u64 {
        match &self.source {
            Source::Kernel => 0,
            Source::Random { rotate, .. } => rotate.as_secs(),
            Source::Secret { schedule, .. } => schedule.interval().as_secs(),
        }
    }

    /// How often the kernel's keys could not be read or written, or were changed by somebody else.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Why the last step failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The fingerprints of the keys that the source wants the kernel to hold now; 0 for none.
    pub fn wanted_fingerprints(&self, now: u64) -> [u64; 2] {
        self.wanted(now).map_or([0; 2], |wanted| KernelKeys::from(wanted).fingerprints())
    }

    /// Keys of the source that were in use before, newest first, no older than `max_age`: clients may come back with cookies
    /// of them.
    pub fn earlier(&self, now: u64, max_age: Option<Duration>) -> Zeroizing<Vec<Made>> {
        // It is not to grow, which would leave a copy behind.
        let mut earlier = Zeroizing::new(Vec::with_capacity(RETIRED));
        match &self.source {
            Source::Kernel => {}
            Source::Random { state, .. } => earlier.extend(state.retired().take(RETIRED)),
            Source::Secret { secret, schedule } => {
                earlier.extend(schedule.earlier(secret, now).take(RETIRED));
            }
        }
        earlier.retain(|made| max_age.is_none_or(|age| now.saturating_sub(made.made) <= age.as_secs()));
        earlier
    }

    /// Does what is due at `now` (seconds since 1970). What fails is said, and tried again with the next step.
    pub fn step(&mut self, now: u64, maps: &mut impl Maps) {
        if now < self.latest {
            warn!(
                "the clock went back by {} s: keys go by it all the same, and none is forgotten",
                self.latest - now
            );
        }
        self.latest = now;
        match self.try_step(now, maps) {
            Ok(()) => self.failure = None,
            Err(error) => {
                let failure = format!("{error:#}");
                if self.failure.as_ref() != Some(&failure) {
                    self.failures += 1;
                    warn!("keys: {failure}; what is in force stays, and it is tried again");
                    self.failure = Some(failure);
                }
            }
        }
    }

    fn try_step(&mut self, now: u64, maps: &mut impl Maps) -> Result<()> {
        let kernel = KernelKeys::read()?;
        // A key that the kernel never took is not followed by another: those that clients have would be pushed out.
        let is_installed = self.wanted(now).is_some_and(|wanted| kernel == wanted.into());
        let mut changed = Ok(());
        if let Source::Random { state, rotate, .. } = &self.source {
            let newest = state.keys().first().map_or(0, |newest| newest.made);
            if newest > now && !self.behind {
                self.behind = true;
                warn!(
                    "the clock is behind the newest key by {} s: no new key before it has caught up, or `tfo keys rotate`",
                    newest - now
                );
            }
            if !self.yielded && is_installed && state.due(*rotate, now) {
                // Where the key can't be kept it is not used; what the kernel holds is followed all the same.
                changed = self.change(|state| state.rotate(now));
            }
        }
        changed.and(self.pursue(now, kernel, maps))
    }

    /// Brings kernel and maps to what the source wants, from what the kernel holds.
    fn pursue(&mut self, now: u64, kernel: KernelKeys, maps: &mut impl Maps) -> Result<()> {
        let Some(wanted) = self.wanted(now) else { return maps.publish(Publish::Held(kernel.into())) };
        if kernel == wanted.into() {
            self.installed = Some(kernel.fingerprints());
            self.yielded = false;
            maps.publish(self.last(wanted))?;
            return self.purged();
        }
        if !self.yielded && self.installed.is_some_and(|installed| installed != kernel.fingerprints()) {
            self.yielded = true;
            self.failures += 1;
            warn!(
                "somebody else has set net.ipv4.tcp_fastopen_key: following it, and writing no more keys before \
                 `tfo keys rotate` or a new start"
            );
        }
        if self.yielded {
            return maps.publish(Publish::Held(kernel.into()));
        }
        self.install(wanted, maps)
    }

    /// Rotates now. In an emergency, what was held before is not accepted any more, by the kernel or by the maps.
    ///
    /// Where keys are not ours to make, an emergency makes the maps forget all but those that the kernel holds now: for
    /// after the secret was replaced. With the kernel's own keys that is no success, since the one in force stays.
    pub fn rotate(&mut self, emergency: bool, now: u64, maps: &mut impl Maps) -> Result<()> {
        match self.source {
            Source::Kernel if emergency => {
                self.forget(now, maps)?;
                let current = KernelKeys::read()?.current.map_or_else(|| "none".to_owned(), fingerprint);
                bail!(
                    "no new key was made, since keys are the kernel's to change: its current one is {current} still, and \
                     only older ones are forgotten. If that has leaked, write another to net.ipv4.tcp_fastopen_key and \
                     give this order again to forget it, or give it to an interface whose tfo makes keys"
                );
            }
            Source::Secret { .. } if emergency => return self.forget(now, maps),
            _ => {}
        }
        self.change(|state| if emergency { state.emergency(now) } else { state.rotate(now) })?;
        self.install(self.wanted(now).unwrap_or_default(), maps)
    }

    /// Makes the maps forget all keys but those that the kernel holds now, and the next one where that is known.
    pub fn forget(&mut self, now: u64, maps: &mut impl Maps) -> Result<()> {
        let kernel = KernelKeys::read()?;
        // Somebody else may have written them a moment ago: the maps are to cover the kernel's keys, not ours.
        let ours = self.wanted(now).filter(|wanted| kernel == (*wanted).into());
        maps.publish(Publish::Only(ours.unwrap_or(kernel.into())))
    }

    /// Makes `key` the current one, as if it had been made here.
    pub fn import(&mut self, key: Key, now: u64, maps: &mut impl Maps) -> Result<()> {
        self.change(|state| {
            state.import(key, now);
            Ok(())
        })?;
        self.install(self.wanted(now).unwrap_or_default(), maps)
    }

    /// Changes the keys that we make ourselves: in the file first, since a key that the kernel once held must not be
    /// forgotten by a crash.
    fn change(&mut self, how: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        let (state, path) = match &mut self.source {
            Source::Random { state, path, .. } => (state, path),
            Source::Kernel => bail!("keys are the kernel's to change: `tfo run --keys random` makes its own"),
            Source::Secret { .. } => {
                bail!(
                    "keys come from the fleet's secret and the time: replace the secret on every host, start again, and then \
                     `tfo keys rotate --emergency` forgets those of the old one"
                )
            }
        };
        let mut next = state.clone();
        how(&mut next)?;
        next.store(path)?;
        *state = next;
        self.yielded = false;
        Ok(())
    }

    /// Learn, write, compare, and give the old ones up.
    fn install(&mut self, wanted: Held, maps: &mut impl Maps) -> Result<()> {
        let Some(current) = wanted.current else { bail!("the source has no key") };
        let kernel = KernelKeys::read()?.into();
        match maps.publish(Publish::Learn { kernel, wanted }) {
            Ok(()) => info!("rotation: the maps know the new keys"),
            // One map must not keep a leaked key in the kernel.
            Err(error) if self.is_purging() => warn!("{error:#}"),
            Err(error) => return Err(error),
        }
        KeySysctl::open()?.write(current, wanted.backup)?;
        info!("rotation: net.ipv4.tcp_fastopen_key is written");
        let shown = KernelKeys::read()?;
        if shown != wanted.into() {
            bail!("net.ipv4.tcp_fastopen_key does not show what was just written to it");
        }
        self.installed = Some(shown.fingerprints());
        maps.publish(self.last(wanted))?;
        self.purged()?;
        info!("rotation: done, the kernel's current key is {}", fingerprint(current));
        Ok(())
    }

    /// What the maps hold once the kernel has the keys of `wanted`.
    fn last(&self, wanted: Held) -> Publish {
        if self.is_purging() { Publish::Only(wanted) } else { Publish::Held(wanted) }
    }

    fn is_purging(&self) -> bool {
        matches!(&self.source, Source::Random { state, .. } if state.is_purging())
    }

    /// An emergency is over, if there was one: the kernel and every map hold nothing else.
    fn purged(&mut self) -> Result<()> {
        if self.is_purging() {
            self.change(|state| {
                state.purged();
                Ok(())
            })?;
        }
        Ok(())
    }

    fn wanted(&self, now: u64) -> Option<Held> {
        match &self.source {
            Source::Kernel => None,
            Source::Random { state, .. } => Some(state.held()),
            Source::Secret { secret, schedule } => Some(schedule.held(secret, now)),
        }
    }
}
