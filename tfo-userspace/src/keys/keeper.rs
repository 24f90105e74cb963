//! The keeper of the keys: what the kernel is to hold, and how it gets there without a cookie refused on the way.
//!
//! The order of a rotation: the state file is written, the sysctl is opened, the maps learn the new keys, the sysctl is
//! written, read back and compared, and only then the maps give the old ones up. A crash between any two steps leaves maps
//! that cover the kernel's keys, and the next start finds out from the source what is still to be done. Where a step fails,
//! the maps get the kernel's keys in their roles again.
//!
//! An emergency does not end at a file that can't be written: see [`Keeper::rotate`].

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::fcntl::Flock;
use tfo_common::{
    info::KeySource,
    keyring::{Held, Key, RETIRED},
};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

use super::{schedule::Schedule, secret::Secret, state::State};
use crate::{
    dataplane::Publish,
    kernel::sysctl::{KernelKeys, KeySysctl},
    model::keys::{Made, fingerprint},
    util::files::folder,
};

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

/// Puts keys into all maps.
pub trait Maps {
    /// Publishes them, whole; an error where one map could not take them.
    fn publish(&mut self, publish: Publish) -> Result<()>;
}

/// The pause after a first failure. It doubles with each further one, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Tries of one thing, with longer and longer pauses while they fail.
///
/// Boxed: where there is none, an option of the struct itself would be copied here with what is left of keys on the stack.
#[derive(Default)]
struct Tries(Option<Box<Failed>>);

/// Failed tries.
struct Failed {
    /// Why the last one failed.
    why: String,
    /// The pause after it.
    pause: Duration,
    /// The end of the pause.
    next: Instant,
}

impl Tries {
    /// Fails as the last try did, while its pause lasts.
    fn due(&self) -> Result<()> {
        match &self.0 {
            Some(failed) if Instant::now() < failed.next => Err(anyhow!(failed.why.clone())),
            _ => Ok(()),
        }
    }

    /// Whether the last try failed.
    fn have_failed(&self) -> bool {
        self.0.is_some()
    }

    /// Remembers the outcome of a try, and returns it.
    fn note<T>(&mut self, outcome: Result<T>) -> Result<T> {
        self.0 = outcome.as_ref().err().map(|error| {
            let pause = self.0.as_ref().map_or(FIRST_PAUSE, |failed| LONGEST_PAUSE.min(failed.pause * 2));
            Box::new(Failed { why: format!("{error:#}"), pause, next: Instant::now() + pause })
        });
        outcome
    }
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
    /// Tries to install the source's keys.
    installing: Tries,
    /// Tries to write the state file.
    storing: Tries,
    /// An emergency's keys are in force, and the state file does not have them.
    unsaved: bool,
    failure: Option<String>,
    failures: u64,
}

impl Keeper {
    /// The keeper of `source`'s keys.
    pub fn new(source: Source) -> Self {
        Self {
            source,
            installed: None,
            yielded: false,
            latest: 0,
            behind: false,
            installing: Tries::default(),
            storing: Tries::default(),
            unsaved: false,
            failure: None,
            failures: 0,
        }
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

    /// Does what is due at `now` (seconds since 1970). A failure is logged once, and the step tried again later.
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
                    warn!("keys: {failure}; the keys in force stay; will retry");
                    self.failure = Some(failure);
                }
            }
        }
    }

    fn try_step(&mut self, now: u64, maps: &mut impl Maps) -> Result<()> {
        let kernel = KernelKeys::read()?;
        // A key that the kernel never took is not followed by another: those that clients have would be pushed out.
        let is_installed = self.wanted(now).is_some_and(|wanted| kernel == wanted.into());
        let saved = self.save();
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
                changed = self.storing.due().and_then(|()| {
                    let changed = self.change(|state| state.rotate(now));
                    self.storing.note(changed)
                });
            }
        }
        let pursued = self.pursue(now, kernel, maps);
        saved.and(changed).and(pursued)
    }

    /// Brings kernel and maps to what the source wants, from what the kernel holds.
    fn pursue(&mut self, now: u64, kernel: KernelKeys, maps: &mut impl Maps) -> Result<()> {
        let Some(wanted) = self.wanted(now) else { return maps.publish(Publish::Held(kernel.into())) };
        if kernel == wanted.into() {
            self.installed = Some(kernel.fingerprints());
            self.yielded = false;
            self.installing = Tries::default();
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
            self.installing = Tries::default();
            return maps.publish(Publish::Held(kernel.into()));
        }
        if let Err(failure) = self.installing.due() {
            self.fall_back(kernel, wanted, maps)?;
            return Err(failure);
        }
        self.install(wanted, maps)
    }

    /// Rotates now. In an emergency, what was held before is not accepted any more, by the kernel or by the maps. A file that
    /// can't be written stops an ordinary rotation, but no emergency: the old file, which has the leaked key, is removed, and
    /// writing the new one is tried until it works. Until then, the outcome of the order is an error that says so.
    ///
    /// Where the kernel has not taken the newest key yet, an ordinary rotation makes no other one: it tries again at once.
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
        if emergency {
            return self.replace_leaked(now, maps);
        }
        if !self.is_pending(now)? {
            self.change(|state| state.rotate(now))?;
        }
        self.install(self.wanted(now).unwrap_or_default(), maps)
    }

    /// Whether a key of our own waits for the kernel to take it.
    fn is_pending(&self, now: u64) -> Result<bool> {
        let is_ours = matches!(self.source, Source::Random { .. }) && !self.yielded;
        Ok(is_ours
            && self.installing.have_failed()
            && self.wanted(now).map(KernelKeys::from) != Some(KernelKeys::read()?))
    }

    /// Replaces all keys by a new one. The file comes first, as in [`change`](Self::change), so that a crash does not bring the
    /// leaked key back. Where it can't be written, the leaked key leaves the kernel and the maps all the same.
    fn replace_leaked(&mut self, now: u64, maps: &mut impl Maps) -> Result<()> {
        if let Source::Random { state, .. } = &mut self.source {
            let mut next = state.clone();
            next.emergency(now)?;
            *state = next;
            self.unsaved = true;
            self.storing = Tries::default();
            self.yielded = false;
        }
        let saved = self.save();
        let wanted = self.wanted(now).unwrap_or_default();
        let mut installed = self.install(wanted, maps);
        if installed.is_err() && KernelKeys::read().is_ok_and(|kernel| kernel != wanted.into()) {
            installed = installed.context("the leaked key is in the kernel still");
        }
        let Err(unsaved) = saved else { return installed };
        match installed {
            Ok(()) => {
                bail!(
                    "the kernel and the maps hold the new key only, but the state file does not: {unsaved:#}; writing it is \
                     tried again"
                )
            }
            Err(error) => {
                bail!("{error:#}; and the state file has no new key: {unsaved:#}; both are tried again")
            }
        }
    }

    /// Writes the file, where an emergency could not.
    fn save(&mut self) -> Result<()> {
        let Source::Random { state, path, .. } = &self.source else { return Ok(()) };
        if !self.unsaved {
            return Ok(());
        }
        self.storing.due()?;
        self.storing.note(save(state, path))?;
        self.unsaved = false;
        Ok(())
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
        self.unsaved = false;
        self.yielded = false;
        Ok(())
    }

    /// Makes `wanted` the kernel's keys. Where that fails, the maps call good what the kernel takes.
    fn install(&mut self, wanted: Held, maps: &mut impl Maps) -> Result<()> {
        let installed = self.try_install(wanted, maps);
        if installed.is_err()
            && let Err(error) = KernelKeys::read().and_then(|kernel| self.fall_back(kernel, wanted, maps))
        {
            debug!("the maps may not have the kernel's keys in their roles: {error:#}");
        }
        self.installing.note(installed)
    }

    /// Gives the kernel's keys their roles in the maps, while the kernel can't be given those of `wanted`. One of these is
    /// known as the next key: the first that the kernel does not hold.
    fn fall_back(&self, kernel: KernelKeys, wanted: Held, maps: &mut impl Maps) -> Result<()> {
        if kernel == wanted.into() {
            return maps.publish(self.last(wanted));
        }
        let held = [kernel.current, kernel.backup];
        let next = [wanted.current, wanted.backup, wanted.next].into_iter().flatten();
        let next = next.into_iter().find(|key| !held.contains(&Some(*key)));
        maps.publish(self.last(Held { next, ..kernel.into() }))
    }

    /// Learn, write, compare, and give the old ones up.
    fn try_install(&mut self, wanted: Held, maps: &mut impl Maps) -> Result<()> {
        let Some(current) = wanted.current else { bail!("the source has no key") };
        let kernel = KernelKeys::read()?.into();
        // Before the maps learn anything: this is what a read-only /proc/sys refuses.
        let sysctl = KeySysctl::open()?;
        match maps.publish(Publish::Learn { kernel, wanted }) {
            Ok(()) if self.installing.have_failed() => debug!("rotation: the maps know the new keys"),
            Ok(()) => info!("rotation: the maps know the new keys"),
            // One map must not keep a leaked key in the kernel.
            Err(error) if self.is_purging() => warn!("{error:#}"),
            Err(error) => return Err(error),
        }
        sysctl.write(current, wanted.backup)?;
        info!("rotation: net.ipv4.tcp_fastopen_key is written");
        let shown = KernelKeys::read()?;
        if shown != wanted.into() {
            bail!("net.ipv4.tcp_fastopen_key does not show what was just written to it");
        }
        self.installed = Some(shown.fingerprints());
        maps.publish(self.last(wanted))?;
        // Whether the file says so is no part of the rotation: the next step fails by it.
        if let Err(error) = self.purged() {
            debug!("the state file does not say yet that the emergency is over: {error:#}");
        }
        info!("rotation: done, the kernel's current key is {}", fingerprint(current));
        Ok(())
    }

    /// What the maps hold while the kernel has the keys of `held`.
    fn last(&self, held: Held) -> Publish {
        if self.is_purging() { Publish::Only(held) } else { Publish::Held(held) }
    }

    fn is_purging(&self) -> bool {
        matches!(&self.source, Source::Random { state, .. } if state.is_purging())
    }

    /// An emergency is over, if there was one: the kernel and every map hold nothing else.
    fn purged(&mut self) -> Result<()> {
        // Where the file is not written yet, it is not over, and `save` says why.
        if !self.is_purging() || self.unsaved {
            return Ok(());
        }
        self.storing.due()?;
        let changed = self.change(|state| {
            state.purged();
            Ok(())
        });
        self.storing.note(changed)
    }

    fn wanted(&self, now: u64) -> Option<Held> {
        match &self.source {
            Source::Kernel => None,
            Source::Random { state, .. } => Some(state.held()),
            Source::Secret { secret, schedule } => Some(schedule.held(secret, now)),
        }
    }
}

/// Writes `state` to the file at `path`, whose old content has leaked keys: where it can't be written, it is removed.
///
/// Before the kernel gets the new key: after a crash, a file with the leaked key would bring that back.
fn save(state: &State, path: &Path) -> Result<()> {
    let Err(error) = state.store(path) else { return Ok(()) };
    match fs::remove_file(path) {
        Ok(()) => {
            // The space of the old file may be what was missing.
            if state.store(path).is_ok() {
                warn!("{error:#}: the old file was removed first, which helped");
                return Ok(());
            }
            // Nor is it to be there again after a power failure.
            if let Err(error) = File::open(folder(path)).and_then(|folder| folder.sync_all()) {
                debug!("cannot sync the folder of {}: {error}", path.display());
            }
        }
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
        Err(remains) => bail!(
            "{error:#}; the old file still has the leaked key, and can't be removed ({remains}): before a new start, remove {}",
            path.display()
        ),
    }
    bail!("{error:#}; the old file, which had the leaked key, was removed")
}
