//! Sources of a new secret while tfo runs, and the file in which the secrets outlive a restart.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;
use tracing::debug;
use zeroize::Zeroizing;

use super::{schedule::Schedule, secret::Secret, succession::Succession};
use crate::{
    kernel::netns::{netns, netns_cookie},
    util::files::{open_regular, replace},
};

/// News of a fleet's secret.
pub enum News {
    /// The fleet has a new secret, which comes in force after the overlap.
    Learn(Secret),
    /// The fleet has a new secret, which comes in force by [`PutInForce`](Self::PutInForce).
    Expect(Secret),
    /// The newest secret comes in force now.
    PutInForce,
    /// The secrets before this one have leaked.
    Purge(Secret),
}

/// Source of news. It never blocks.
pub trait Feed {
    /// Returns the next piece of news, if there is one. An error is news of a fault, and changes nothing.
    fn next(&mut self) -> Result<Option<News>>;

    /// As [`next`](Self::next), but at once, where it would wait for a file to settle.
    fn next_now(&mut self) -> Result<Option<News>> {
        self.next()
    }
}

/// A secret that never changes, such as one from standard input.
pub struct Fixed;

impl Feed for Fixed {
    fn next(&mut self) -> Result<Option<News>> {
        Ok(None)
    }
}

/// Time between two looks at the file.
const EVERY: Duration = Duration::from_secs(1);

/// A file, which may be replaced or written anew.
///
/// It is looked at by its path, link by link, so that it does not matter how it is replaced: by a rename, by the swap of a
/// link to its folder (`..data` of Kubernetes), by a new mount (credentials of systemd), or in place.
pub struct Watch {
    source: String,
    looked: Instant,
    /// State of the file when it was read last.
    read: Option<Stamp>,
    /// State of the file at the last look.
    seen: Option<Stamp>,
    /// Reason for which the file can't be read.
    fault: Option<String>,
}

/// Content of a file, as far as its metadata tell.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    changed: (i64, i64),
    written: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            file: (found.dev(), found.ino()),
            length: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
            written: (found.mtime(), found.mtime_nsec()),
        })
    }
}

impl Watch {
    /// Begins to watch the secret of `source` (see [`Secret::read`]), which is read next. Returns a [`Fixed`] one for standard
    /// input.
    pub fn start(source: &str) -> Box<dyn Feed> {
        let Some(path) = Secret::path(source) else { return Box::new(Fixed) };
        let stamp = Stamp::of(&path).ok();
        Box::new(Self {
            source: source.to_owned(),
            looked: Instant::now(),
            read: stamp,
            seen: stamp,
            fault: None,
        })
    }

    fn look(&mut self, at_once: bool) -> Result<Option<News>> {
        self.looked = Instant::now();
        let Some(path) = Secret::path(&self.source) else { return Ok(None) };
        let stamp = Stamp::of(&path).with_context(|| format!("cannot examine the secret {}", path.display()));
        let stamp = match stamp {
            Ok(stamp) => stamp,
            Err(error) => return self.complain(&error),
        };
        // A file that is being written may hold half a secret, so it is read when it has not changed for a while.
        let has_settled = self.seen.replace(stamp) == Some(stamp) || at_once;
        if !has_settled || self.read == Some(stamp) {
            return self.fault.as_ref().map_or(Ok(None), |fault| bail!("{fault}"));
        }
        match Secret::read(&self.source) {
            Ok(secret) => {
                (self.read, self.fault) = (Some(stamp), None);
                Ok(Some(News::Learn(secret)))
            }
            Err(error) => {
                self.read = Some(stamp);
                self.complain(&error)
            }
        }
    }

    fn complain(&mut self, error: &anyhow::Error) -> Result<Option<News>> {
        let fault = format!("{error:#}; the secrets that are known stay");
        self.fault = Some(fault.clone());
        bail!(fault)
    }
}

impl Feed for Watch {
    fn next(&mut self) -> Result<Option<News>> {
        if self.looked.elapsed() < EVERY {
            return self.fault.as_ref().map_or(Ok(None), |fault| bail!("{fault}"));
        }
        self.look(false)
    }

    fn next_now(&mut self) -> Result<Option<News>> {
        self.look(true)
    }
}

/// Limit on the bytes of the file that are read, more than it ever has.
const TOO_LONG: u64 = 4096;

/// File in which the secrets of a succession outlive the controller, but not a reboot: in memory, and only for root.
///
/// Without it, a controller that starts during an overlap would know one secret only. Its name has the cookie of the network
/// namespace, whose kernel has the keys.
pub struct Memory {
    path: PathBuf,
}

impl Memory {
    /// Returns the file of this network namespace, in `folder`.
    pub fn new(folder: &Path) -> Result<Self> {
        let name = netns_cookie().or_else(|error| {
            debug!("no cookie of the network namespace: {error}");
            netns()
        })?;
        Ok(Self { path: folder.join(format!("secrets-{name:x}")) })
    }

    /// Reads the secrets; `None` if there is no file. Others may neither own nor read it.
    pub fn load(&self, schedule: Schedule, overlap: Duration) -> Result<Option<Succession>> {
        let path = self.path.display();
        if !self.path.exists() {
            return Ok(None);
        }
        let mut file = open_regular(&self.path)?;
        let found = file.metadata().with_context(|| format!("cannot examine {path}"))?;
        if found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
            bail!("{path} is not ours alone: remove it");
        }
        if found.len() > TOO_LONG {
            bail!("{path} has {} bytes, too many: remove it", found.len());
        }
        let mut text = Zeroizing::new(vec![0; found.len() as usize]);
        file.read_exact(&mut text).with_context(|| format!("cannot read {path}"))?;
        let parsed = Succession::parse(&text, schedule, overlap);
        parsed.map(Some).with_context(|| format!("cannot use {path}: remove it"))
    }

    /// Writes the secrets. If that fails, no file stays: an old one could bring a leaked secret back.
    pub fn store(&self, succession: &Succession) -> Result<()> {
        let stored = self.write(succession);
        if stored.is_err() && fs::remove_file(&self.path).is_ok() {
            return stored.context("the file was removed");
        }
        stored
    }

    fn write(&self, succession: &Succession) -> Result<()> {
        let text = succession.text().with_context(|| format!("cannot write {}", self.path.display()))?;
        if let Some(folder) = self.path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.with_context(|| format!("cannot make {}", folder.display()))?;
        }
        replace(&self.path, 0o600, |file: &mut File| file.write_all(&text))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;

    fn put(path: &Path, byte: u8) {
        fs::write(path, [byte; 32]).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn fingerprint(news: Result<Option<News>>) -> Option<String> {
        match news.unwrap() {
            Some(News::Learn(secret)) => Some(secret.fingerprint()),
            Some(_) => panic!("a file only lets learn"),
            None => None,
        }
    }

    /// Begins to watch the file at `path`.
    fn watch(path: &Path) -> Watch {
        Watch {
            source: path.to_str().unwrap().to_owned(),
            looked: Instant::now(),
            read: Stamp::of(path).ok(),
            seen: Stamp::of(path).ok(),
            fault: None,
        }
    }

    fn of(byte: u8) -> String {
        Secret::from_digits(format!("{byte:02x}").repeat(32).as_bytes()).unwrap().fingerprint()
    }

    #[test]
    fn a_file_is_read_when_it_has_settled() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("secret");
        put(&path, 1);
        let mut watch = watch(&path);
        assert_eq!(fingerprint(watch.look(false)), None);
        put(&path, 2);
        assert_eq!(fingerprint(watch.look(false)), None, "it may be half written");
        assert_eq!(fingerprint(watch.look(false)), Some(of(2)));
        assert_eq!(fingerprint(watch.look(false)), None);
        put(&path, 3);
        assert_eq!(fingerprint(watch.look(true)), Some(of(3)), "at once");
        // A renamed file and a swapped link are new files.
        let other = dir.path().join("other");
        put(&other, 4);
        fs::rename(&other, &path).unwrap();
        assert_eq!(fingerprint(watch.look(true)), Some(of(4)));
        put(&other, 5);
        fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        assert_eq!(fingerprint(watch.look(true)), Some(of(5)));
    }

    #[test]
    fn a_bad_file_is_said_until_it_is_good() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("secret");
        put(&path, 1);
        let mut watch = watch(&path);
        fs::write(&path, [7; 31]).unwrap();
        for _ in 0..2 {
            let error = watch.look(true).err().unwrap().to_string();
            assert!(error.contains("holds 31 bytes") && error.contains("stay"), "{error}");
        }
        assert!(watch.next().is_err(), "also between two looks");
        fs::remove_file(&path).unwrap();
        assert!(watch.look(true).err().unwrap().to_string().contains("cannot examine"));
        put(&path, 2);
        assert_eq!(fingerprint(watch.look(true)), Some(of(2)));
        assert_eq!(fingerprint(watch.next()), None);
    }

    #[test]
    fn the_memory_is_ours_alone() {
        let dir = TempDir::new().unwrap();
        let memory = Memory { path: dir.path().join("new/secrets") };
        let schedule = Schedule::new(Duration::from_secs(40)).unwrap();
        let load = || memory.load(schedule, Duration::ZERO);
        assert!(load().unwrap().is_none());
        let secret = Secret::from_digits("07".repeat(32).as_bytes()).unwrap();
        let succession = Succession::new(secret, schedule, Duration::ZERO);
        memory.store(&succession).unwrap();
        assert_eq!(fs::metadata(&memory.path).unwrap().mode() & 0o777, 0o600);
        assert!(load().unwrap().unwrap().held(9) == succession.held(9));
        fs::set_permissions(&memory.path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(format!("{:#}", load().err().unwrap()).contains("not ours alone"));
        fs::set_permissions(&memory.path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&memory.path, "07".repeat(32)).unwrap();
        let error = format!("{:#}", load().err().unwrap());
        assert!(error.contains("remove it") && !error.contains("0707"), "{error}");
    }
}
