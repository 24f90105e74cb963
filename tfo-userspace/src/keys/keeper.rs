//! The keeper brings the source's keys into the kernel and the maps, such that no valid cookie is refused meanwhile.
//!
//! Steps of a rotation: the state file is written, the sysctl is opened, the maps learn the new keys, the sysctl is
//! written, read back and compared, and finally the maps retire the old keys. After a crash between any two steps, the
//! maps still contain the kernel's keys, and the next start continues from the source's keys. If a step fails, the maps
//! get the kernel's keys in their roles again.
//!
//! An emergency goes on even if the state file can't be written: see [`Keeper::rotate`].

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

use super::{
    feed::{Feed, Memory, News},
    secret::Secret,
    state::State,
    succession::{Learnt, Succession, UNTIL_TOLD},
};
use crate::{
    dataplane::Publish,
    kernel::sysctl::{KernelKeys, KeySysctl},
    model::keys::{DatedKey, fingerprint},
    util::files::folder,
};

/// Source of the keys.
pub enum Source {
    /// The kernel. The keeper follows its keys, and never writes them.
    Kernel,
    /// Random keys of this host.
    Random {
        /// The keys up to now.
        state: State,
        /// Path of the state file.
        path: PathBuf,
        /// Lock that keeps other controllers from using the same file.
        lock: Flock<File>,
        /// Time between two rotations.
        rotate: Duration,
    },
    /// Keys that are derived from the fleet's secrets and the time.
    Secret {
        /// The secrets up to now.
        succession: Succession,
        /// Source of new ones.
        feed: Box<dyn Feed>,
        /// File in which they outlive this process; `None` if they are a fleet's in etcd, which also says when one comes in
        /// force.
        memory: Option<Memory>,
    },
}

/// Puts keys into all maps.
pub trait Maps {
    /// Publishes the keys to each map. Fails if one map did not accept them.
    fn publish(&mut self, publish: Publish) -> Result<()>;

    /// Makes each map know `keys`, newest first, with which other hosts make cookies. The oldest retired keys make room.
    fn know(&mut self, keys: &[DatedKey]) -> Result<()>;
}

/// Pause after the first failure. It doubles with each further failure, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Retry state of one operation, with growing pauses between failed tries.
///
/// The failure is boxed, since an unboxed `None` would copy unused bytes of the stack, with leftovers of keys, to here.
#[derive(Default)]
struct Tries(Option<Box<Failed>>);

/// The last failed try.
struct Failed {
    /// Reason of the failure.
    why: String,
    /// Pause after the failure.
    pause: Duration,
    /// End of the pause.
    next: Instant,
}

impl Tries {
    /// Returns the last failure again until its pause is over.
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

    /// Records the outcome of a try, and returns it.
    fn note<T>(&mut self, outcome: Result<T>) -> Result<T> {
        self.0 = outcome.as_ref().err().map(|error| {
            let pause = self.0.as_ref().map_or(FIRST_PAUSE, |failed| LONGEST_PAUSE.min(failed.pause * 2));
            Box::new(Failed { why: format!("{error:#}"), pause, next: Instant::now() + pause })
        });
        outcome
    }
}

/// Keeps the keys of the kernel and of the maps in step with the source.
pub struct Keeper {
    source: Source,
    /// Fingerprints of the keys that were installed last. If the kernel shows others, somebody else has set them.
    installed: Option<[u64; 2]>,
    /// Whether somebody else has set the sysctl. The keeper then follows the kernel's keys until a request to rotate.
    yielded: bool,
    /// Time of the last step.
    latest: u64,
    /// Whether a warning has said that the clock is behind.
    behind: bool,
    /// Retry state of installing the source's keys.
    installing: Tries,
    /// Retry state of writing the state file.
    storing: Tries,
    /// Whether the file lacks a change: the key that an emergency has made, or a secret.
    unsaved: bool,
    failure: Option<String>,
    failures: u64,
}

impl Keeper {
    /// Makes a keeper for the keys of `source`.
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

    /// Returns the kind of the source.
    pub fn source(&self) -> KeySource {
        match self.source {
            Source::Kernel => KeySource::Kernel,
            Source::Random { .. } => KeySource::Random,
            Source::Secret { .. } => KeySource::Secret,
        }
    }

    /// Returns the time between two rotations, in seconds; 0 if the kernel is the source.
    pub fn rotate_seconds(&self) -> u64 {
        match &self.source {
            Source::Kernel => 0,
            Source::Random { rotate, .. } => rotate.as_secs(),
            Source::Secret { succession, .. } => succession.schedule().interval().as_secs(),
        }
    }

    /// Returns the time from which a secret that is known will be in force, in seconds since 1970; 0 for none, and `u64::MAX` if
    /// it waits for a word.
    pub fn next_secret(&self, now: u64) -> u64 {
        match &self.source {
            Source::Secret { succession, .. } => succession.next(now).map_or(0, |(_, from)| from),
            Source::Kernel | Source::Random { .. } => 0,
        }
    }

    /// Returns the number of failures: a new reason why a step failed, or a change of the kernel's keys by somebody
    /// else.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Returns the reason if the last step failed.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Returns the fingerprints of the keys that the source wants in the kernel at `now`; 0 stands for a missing key.
    pub fn wanted_fingerprints(&self, now: u64) -> [u64; 2] {
        self.wanted(now).map_or([0; 2], |wanted| KernelKeys::from(wanted).fingerprints())
    }

    /// Returns the source's earlier keys that are no older than `max_age`, newest first. Clients may still have cookies
    /// of them.
    pub fn earlier(&self, now: u64, max_age: Option<Duration>) -> Zeroizing<Vec<DatedKey>> {
        // The buffer must not grow: growing would leave a copy of the keys behind.
        let mut earlier = Zeroizing::new(Vec::with_capacity(RETIRED));
        match &self.source {
            Source::Kernel => {}
            Source::Random { state, .. } => earlier.extend(state.retired().take(RETIRED)),
            Source::Secret { succession, .. } => earlier.extend(succession.earlier(now).iter()),
        }
        earlier.retain(|made| max_age.is_none_or(|age| now.saturating_sub(made.made) <= age.as_secs()));
        earlier
    }

    /// Does the work that is due at `now` (seconds since 1970). A failure is logged once, and tried again by a later
    /// step.
    pub fn step(&mut self, now: u64, maps: &mut impl Maps) {
        if now < self.latest {
            warn!(
                "the clock went back by {} s: keys follow it all the same, and no key is forgotten",
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
        // As long as the kernel has not taken the newest key, no further key is made. Otherwise, unused keys would push
        // out the keys whose cookies clients have.
        let is_installed = self.wanted(now).is_some_and(|wanted| kernel == wanted.into());
        let saved = self.save();
        let fed = self.take_news(now);
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
                // If the new key can't be saved, it is not used. The kernel's keys are followed all the same.
                changed = self.storing.due().and_then(|()| {
                    let changed = self.change(|state| state.rotate(now));
                    self.storing.note(changed)
                });
            }
        }
        let pursued = self.pursue(now, kernel, maps);
        let known = self.publish_live(now, maps);
        saved.and(changed).and(pursued).and(known).and(fed)
    }

    /// Takes the news of the fleet's secret.
    fn take_news(&mut self, now: u64) -> Result<()> {
        let Source::Secret { succession, feed, .. } = &mut self.source else { return Ok(()) };
        let news = feed.next();
        let was_tidied = succession.tidy(now);
        if was_tidied {
            self.unsaved = true;
        }
        if let Some(news) = news? {
            self.heed(news, now);
        }
        Ok(())
    }

    /// Learns a secret at `now`, which is in force after the overlap. Returns whether it is new.
    pub fn learn(succession: &mut Succession, secret: Secret, now: u64) -> bool {
        let shown = secret.fingerprint();
        match succession.learn(secret, now, false) {
            Learnt::Nothing => return false,
            Learnt::New(from) => info!(
                "the fleet has a new secret, {shown}: its keys are recognised now, and in force in {} s",
                from.saturating_sub(now)
            ),
            Learnt::Withdrawn => info!("the fleet's secret is {shown} again, which was still in force"),
        }
        true
    }

    /// Does what the news of the fleet's secret ask for.
    fn heed(&mut self, news: News, now: u64) {
        let Source::Secret { succession, .. } = &mut self.source else { return };
        let in_force = succession.fingerprint(now);
        match news {
            News::Learn(secret) => {
                if !Self::learn(succession, secret, now) {
                    return;
                }
            }
            News::Expect(secret) => {
                let shown = secret.fingerprint();
                if succession.learn(secret, now, true) == Learnt::New(UNTIL_TOLD) {
                    info!("the fleet has a new secret, {shown}: its keys are recognised now");
                }
            }
            News::PutInForce => {
                if !succession.put_in_force(now) {
                    return;
                }
                self.yielded = false;
                info!("the fleet's secret {} is in force instead of {in_force}", succession.fingerprint(now));
            }
            News::Purge(secret) => {
                succession.learn(secret, now, true);
                succession.purge();
                self.yielded = false;
                warn!(
                    "emergency: the fleet's secret is {}, and no other key is good",
                    succession.fingerprint(now)
                );
            }
        }
        self.unsaved = true;
        self.storing = Tries::default();
        // A failure is said by the next step, which tries again.
        if let Err(error) = self.save() {
            debug!("the secrets are not stored: {error:#}");
        }
    }

    /// Makes the maps know the keys with which other hosts of the fleet make cookies.
    fn publish_live(&self, now: u64, maps: &mut impl Maps) -> Result<()> {
        match &self.source {
            Source::Secret { succession, .. } => maps.know(&succession.live(now)),
            Source::Kernel | Source::Random { .. } => Ok(()),
        }
    }

    /// Brings the kernel, which holds the keys of `kernel`, and the maps to the keys that the source wants.
    fn pursue(&mut self, now: u64, kernel: KernelKeys, maps: &mut impl Maps) -> Result<()> {
        let Some(wanted) = self.wanted(now) else { return maps.publish(Publish::Held(kernel.into())) };
        if kernel == wanted.into() {
            self.installed = Some(kernel.fingerprints());
            self.yielded = false;
            self.installing = Tries::default();
            maps.publish(self.publication(wanted))?;
            return self.end_emergency();
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

    /// Rotates now. After an emergency, neither the kernel nor the maps accept an earlier key. A failed write of the
    /// state file stops an ordinary rotation, but not an emergency: the old file, which has the leaked key, is removed,
    /// and the write is tried again until it succeeds. The emergency itself returns an error about it.
    ///
    /// If the kernel has not taken the newest key yet, an ordinary rotation makes no further key, and tries again at
    /// once.
    ///
    /// With a secret, a rotation puts one in force that is known and not yet in force; without such a one it fails. An
    /// emergency reads the secret first, puts it in force, and forgets all keys of the ones before. With the kernel as the
    /// source an emergency returns an error, since the current key stays in force.
    pub fn rotate(&mut self, emergency: bool, now: u64, maps: &mut impl Maps) -> Result<()> {
        match self.source {
            Source::Kernel if emergency => {
                self.forget(now, maps)?;
                let current = KernelKeys::read()?.current.map_or_else(|| "none".to_owned(), fingerprint);
                bail!(
                    "no new key was made, since tfo only follows the kernel's keys: its current key is still {current}, \
                     and only older keys are forgotten. If the current key has leaked, write another to \
                     net.ipv4.tcp_fastopen_key and give this command again to forget it, or give it to an interface \
                     whose tfo makes keys"
                );
            }
            Source::Secret { memory: None, .. } => return self.take_back(emergency, now, maps),
            Source::Secret { .. } => return self.replace_secret(emergency, now, maps),
            Source::Kernel | Source::Random { .. } => {}
        }
        if emergency {
            return self.replace_leaked(now, maps);
        }
        if !self.is_pending(now)? {
            self.change(|state| state.rotate(now))?;
        }
        self.install(self.wanted(now).unwrap_or_default(), maps)
    }

    /// Installs the keys of a secret that only the fleet replaces, after somebody else has set the kernel's.
    fn take_back(&mut self, emergency: bool, now: u64, maps: &mut impl Maps) -> Result<()> {
        if emergency {
            bail!(
                "the secret of the fleet is in etcd: `tfo fleet rotate --emergency` replaces it on every host, and makes them \
                 forget all others"
            );
        }
        if !self.yielded {
            bail!("the secret of the fleet is in etcd: `tfo fleet rotate` replaces it on every host");
        }
        self.yielded = false;
        self.install(self.wanted(now).unwrap_or_default(), maps)
    }

    /// Puts the newest secret in force. In an emergency, nothing of the ones before remains.
    fn replace_secret(&mut self, emergency: bool, now: u64, maps: &mut impl Maps) -> Result<()> {
        let Source::Secret { feed, .. } = &mut self.source else { return Ok(()) };
        let news = feed.next_now();
        let is_read = news.as_ref().map(drop).map_err(|error| anyhow!("{error:#}"));
        if let Ok(Some(news)) = news {
            self.heed(news, now);
        }
        let Source::Secret { succession, .. } = &mut self.source else { return Ok(()) };
        if emergency {
            succession.purge();
            (self.unsaved, self.storing) = (true, Tries::default());
        } else if succession.next(now).is_none() {
            is_read?;
            bail!(
                "keys come from the fleet's secret and the time, and no new secret is known: replace it on every host, and give                  this command there to put it in force at once"
            );
        } else {
            self.heed(News::PutInForce, now);
        }
        self.yielded = false;
        let saved = self.save();
        self.install(self.wanted(now).unwrap_or_default(), maps)?;
        self.publish_live(now, maps)?;
        saved.and(is_read)
    }

    /// Whether the installation of the newest random key has failed, and the kernel still lacks it.
    fn is_pending(&self, now: u64) -> Result<bool> {
        let is_ours = matches!(self.source, Source::Random { .. }) && !self.yielded;
        Ok(is_ours
            && self.installing.have_failed()
            && self.wanted(now).map(KernelKeys::from) != Some(KernelKeys::read()?))
    }

    /// Replaces all keys by a new one. The file is written first, as in [`change`](Self::change), so that a crash does
    /// not bring the leaked key back. If that fails, the leaked key is removed from the kernel and the maps all the
    /// same.
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
            installed = installed.context("the kernel still has the leaked key");
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

    /// Writes the file if it lacks a change: the key of an emergency, or a secret.
    fn save(&mut self) -> Result<()> {
        if !self.unsaved {
            return Ok(());
        }
        self.storing.due()?;
        let saved = match &self.source {
            Source::Kernel => Ok(()),
            Source::Random { state, path, .. } => save(state, path),
            Source::Secret { succession, memory, .. } => {
                memory.as_ref().map_or(Ok(()), |memory| memory.store(succession))
            }
        };
        self.storing.note(saved)?;
        self.unsaved = false;
        Ok(())
    }

    /// Makes the maps forget all keys but those that the kernel holds now, and the next key if it is known.
    pub fn forget(&mut self, now: u64, maps: &mut impl Maps) -> Result<()> {
        let kernel = KernelKeys::read()?;
        // Somebody else may have just set the sysctl. The maps must contain the kernel's keys in any case.
        let ours = self.wanted(now).filter(|wanted| kernel == (*wanted).into());
        maps.publish(Publish::Only(ours.unwrap_or(kernel.into())))
    }

    /// Makes `key` the current key, as if this host had made it.
    pub fn import(&mut self, key: Key, now: u64, maps: &mut impl Maps) -> Result<()> {
        self.change(|state| {
            state.import(key, now);
            Ok(())
        })?;
        self.install(self.wanted(now).unwrap_or_default(), maps)
    }

    /// Applies `edit` to the random keys. The file is written first, so that a crash can't lose a key that the kernel
    /// has held.
    fn change(&mut self, edit: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        let (state, path) = match &mut self.source {
            Source::Random { state, path, .. } => (state, path),
            Source::Kernel => {
                bail!("tfo only follows the kernel's keys: `tfo run --keys random` makes its own")
            }
            Source::Secret { .. } => {
                bail!("keys come from the fleet's secret and the time: replace the secret on every host")
            }
        };
        let mut next = state.clone();
        edit(&mut next)?;
        next.store(path)?;
        *state = next;
        self.unsaved = false;
        self.yielded = false;
        Ok(())
    }

    /// Makes `wanted` the kernel's keys. If that fails, the maps get the kernel's keys in their roles again.
    fn install(&mut self, wanted: Held, maps: &mut impl Maps) -> Result<()> {
        let installed = self.try_install(wanted, maps);
        if installed.is_err()
            && let Err(error) = KernelKeys::read().and_then(|kernel| self.fall_back(kernel, wanted, maps))
        {
            debug!("the maps may not have the kernel's keys in their roles: {error:#}");
        }
        self.installing.note(installed)
    }

    /// Gives the kernel's keys their roles in the maps while `wanted` can't be installed. The first key of `wanted`
    /// that the kernel does not hold becomes the next key.
    fn fall_back(&self, kernel: KernelKeys, wanted: Held, maps: &mut impl Maps) -> Result<()> {
        if kernel == wanted.into() {
            return maps.publish(self.publication(wanted));
        }
        let held = [kernel.current, kernel.backup];
        let next = [wanted.current, wanted.backup, wanted.next].into_iter().flatten();
        let next = next.into_iter().find(|key| !held.contains(&Some(*key)));
        maps.publish(self.publication(Held { next, ..kernel.into() }))
    }

    /// Adds the new keys to the maps, writes the sysctl, compares it, and retires the old keys in the maps.
    fn try_install(&mut self, wanted: Held, maps: &mut impl Maps) -> Result<()> {
        let Some(current) = wanted.current else { bail!("the source has no key") };
        let kernel = KernelKeys::read()?.into();
        // The sysctl is opened before the maps change, since a read-only /proc/sys fails here.
        let sysctl = KeySysctl::open()?;
        match maps.publish(Publish::Learn { kernel, wanted }) {
            Ok(()) if self.installing.have_failed() => debug!("rotation: the maps know the new keys"),
            Ok(()) => info!("rotation: the maps know the new keys"),
            // In an emergency, the failure of one map must not keep the leaked key in the kernel.
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
        maps.publish(self.publication(wanted))?;
        // The rotation does not depend on this write of the state file. The next step tries it again, and reports a
        // failure.
        if let Err(error) = self.end_emergency() {
            debug!("the state file still says that an emergency is in progress: {error:#}");
        }
        info!("rotation: done, the kernel's current key is {}", fingerprint(current));
        Ok(())
    }

    /// Returns the content for the maps while the kernel has the keys of `held`. In an emergency, that is only these
    /// keys.
    fn publication(&self, held: Held) -> Publish {
        if self.is_purging() { Publish::Only(held) } else { Publish::Held(held) }
    }

    /// Whether an emergency is in progress: leaked keys may still be in the kernel or a map.
    pub fn is_purging(&self) -> bool {
        match &self.source {
            Source::Kernel => false,
            Source::Random { state, .. } => state.is_purging(),
            Source::Secret { succession, .. } => succession.is_purging(),
        }
    }

    /// Ends an emergency, if one is in progress. The caller has made sure that the kernel and all maps hold only the
    /// new key.
    fn end_emergency(&mut self) -> Result<()> {
        // The emergency goes on until the file is written. `save` reports why it is not.
        if !self.is_purging() || self.unsaved {
            return Ok(());
        }
        if let Source::Secret { succession, .. } = &mut self.source {
            succession.purged();
            self.unsaved = true;
            return self.save();
        }
        self.storing.due()?;
        let changed = self.change(|state| {
            state.purged();
            Ok(())
        });
        self.storing.note(changed)
    }

    /// Returns the keys that the source wants in the kernel; `None` if the kernel is the source.
    fn wanted(&self, now: u64) -> Option<Held> {
        match &self.source {
            Source::Kernel => None,
            Source::Random { state, .. } => Some(state.held()),
            Source::Secret { succession, .. } => Some(succession.held(now)),
        }
    }
}

/// Writes `state` to the file at `path`, which has leaked keys until then. If the write fails, the old file is removed.
///
/// It is called before the kernel gets the new key: after a crash, a file with the leaked key would bring it back.
fn save(state: &State, path: &Path) -> Result<()> {
    let Err(error) = state.store(path) else { return Ok(()) };
    match fs::remove_file(path) {
        Ok(()) => {
            // The removal may have freed the space that was missing.
            if state.store(path).is_ok() {
                warn!("{error:#}: the old file was removed first, which helped");
                return Ok(());
            }
            // The sync keeps the old file from coming back after a power failure.
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
