//! State that a host keeps of its fleet: the last document, and its own random number. The file is sealed like the document.

use std::{
    fs::{self, DirBuilder, File},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};
use tracing::warn;
use zeroize::Zeroizing;

use super::{document::Document, seal::SealKey};
use crate::util::files::{folder, open_regular, replace};

/// Name of the file in the state folder.
pub const FILE: &str = "fleet.sealed";
/// Name that is authenticated with the content.
const NAME: &str = "kept";
/// Maximum length of the file, in bytes. Real files are smaller.
const LONGEST: u64 = 64 * 1024;
/// Number of hexadecimal digits of a number at the beginning of the content: the host's random number, and the number of
/// what is forgotten.
const DIGITS: usize = 16;

/// File in which a host keeps its fleet's document.
pub struct Kept {
    path: PathBuf,
    /// Random number of this host.
    pub instance: String,
    /// Number below which every secret is gone from kernel and maps.
    pub forgotten: u64,
    /// Lock that keeps other controllers from being the same host of the fleet.
    lock: Option<Flock<File>>,
}

impl Kept {
    /// Opens the file in the folder `state`, and reads the document. A file that does not exist is made.
    pub fn open(state: &Path, key: &SealKey) -> Result<(Self, Option<Document>)> {
        let path = state.join(FILE);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(state);
        made.with_context(|| format!("cannot make {}", state.display()))?;
        match read(&path)? {
            Some(sealed) => {
                let advice = || format!("{}: move it away to begin without it", path.display());
                let text = key.open(NAME, &sealed).with_context(advice)?;
                let (instance, forgotten, document) = split(&text).with_context(advice)?;
                Ok((Self { path, instance, forgotten, lock: None }, document))
            }
            None => {
                let random = getrandom::u64().context("cannot get random numbers (getrandom)")?;
                let kept = Self { path, instance: format!("{random:0DIGITS$x}"), forgotten: 0, lock: None };
                kept.write(key, b"")?;
                Ok((kept, None))
            }
        }
    }

    /// Makes sure that no other process is this host of the fleet. Each change replaces the file, so the lock is on another
    /// file beside it.
    pub fn lock(&mut self) -> Result<()> {
        let beside = self.path.with_extension("lock");
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&beside);
        let file = file.with_context(|| format!("cannot open {}", beside.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => self.lock = Some(lock),
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "another tfo keeps its fleet's secret in {}: give one tfo all interfaces, or give this one its own folder and \
                 name (--state-dir, name of [keys.etcd])",
                self.path.display()
            ),
            Err((_, error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", beside.display()));
            }
        }
        Ok(())
    }

    /// Keeps `document`. After a crash, the file has either the one before or this one.
    ///
    /// If it can't be written in an emergency, the file is removed, since it has leaked secrets.
    pub fn store(&self, key: &SealKey, document: &Document, is_emergency: bool) -> Result<()> {
        let stored = document.text().and_then(|text| self.write(key, &text));
        if let Err(error) = &stored
            && is_emergency
        {
            warn!("{error:#}: the old file is removed, since its secret has leaked");
            fs::remove_file(&self.path).with_context(|| {
                format!("{error:#}; and {} can't be removed: do that by hand", self.path.display())
            })?;
            // The removal may have freed the space that was missing.
            return document.text().and_then(|text| self.write(key, &text));
        }
        stored
    }

    /// Notes that every secret below the number `forgotten` is gone from kernel and maps.
    pub fn forget(&mut self, key: &SealKey, forgotten: u64) -> Result<()> {
        let sealed = read(&self.path)?.with_context(|| format!("{} is gone", self.path.display()))?;
        let text = key.open(NAME, &sealed)?;
        let document = text.get(2 * DIGITS..).context("it is cut off")?;
        self.forgotten = forgotten;
        self.write(key, document)
    }

    fn write(&self, key: &SealKey, document: &[u8]) -> Result<()> {
        // The buffer must not grow: growing would leave a copy of a secret behind.
        let mut text = Zeroizing::new(Vec::with_capacity(2 * DIGITS + document.len()));
        write!(text, "{}{:0DIGITS$x}", self.instance, self.forgotten)?;
        text.extend_from_slice(document);
        let sealed = key.seal(NAME, &text)?;
        replace(&self.path, 0o600, |file| file.write_all(&sealed))
    }
}

/// Returns the random number, what is forgotten, and the document of the text in a file.
fn split(text: &[u8]) -> Result<(String, u64, Option<Document>)> {
    let (numbers, document) = text.split_at_checked(2 * DIGITS).context("it is cut off")?;
    let numbers = str::from_utf8(numbers).ok().filter(|numbers| numbers.is_ascii());
    let (instance, forgotten) = numbers.context("it is no state of a fleet")?.split_at(DIGITS);
    let forgotten = u64::from_str_radix(forgotten, 16).context("it is no state of a fleet")?;
    let document = if document.is_empty() { None } else { Some(Document::parse(document)?) };
    Ok((instance.to_owned(), forgotten, document))
}

/// Reads the file; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let path_ = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot examine {path_}")),
        Ok(metadata) if metadata.is_symlink() => bail!("{path_} is a symbolic link, which is not followed"),
        Ok(_) => {}
    }
    let file = open_regular(path)?;
    let metadata = file.metadata().with_context(|| format!("cannot examine {path_}"))?;
    let (owner, user) = (metadata.uid(), geteuid().as_raw());
    if owner != user || metadata.mode() & 0o077 != 0 {
        bail!(
            "{path_} belongs to user {owner} with mode {:04o}, and only user {user} may read or change it: move it away",
            metadata.mode() & 0o7777
        );
    }
    let mut sealed = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut sealed).with_context(|| format!("cannot read {path_}"))?;
    if sealed.len() as u64 > LONGEST {
        bail!("{path_} in {} is too long for a state of a fleet: move it away", folder(path).display());
    }
    Ok(Some(sealed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;
    use crate::fleet::seal::tests::key;

    fn error(state: &Path, byte: u8) -> String {
        format!("{:#}", Kept::open(state, &key(byte)).err().expect("it is refused"))
    }

    #[test]
    fn a_document_is_kept_over_starts() {
        let folder = TempDir::new().unwrap();
        let (kept, none) = Kept::open(folder.path(), &key(1)).unwrap();
        assert!(none.is_none());
        let document = Document::first(1).unwrap().with_next().unwrap();
        kept.store(&key(1), &document, false).unwrap();
        let (mut again, found) = Kept::open(folder.path(), &key(1)).unwrap();
        assert_eq!((&again.instance, again.forgotten), (&kept.instance, 0));
        assert_eq!(found.unwrap().outline(), document.outline());
        again.forget(&key(1), 7).unwrap();
        let (again, found) = Kept::open(folder.path(), &key(1)).unwrap();
        assert_eq!((again.instance, again.forgotten), (kept.instance, 7));
        assert_eq!(found.unwrap().outline(), document.outline());
        let path = folder.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let digits = document.in_force.secret.digits();
        assert!(!fs::read(&path).unwrap().windows(8).any(|part| part == &digits.as_bytes()[..8]));
    }

    #[test]
    fn a_host_is_one_controller() {
        let folder = TempDir::new().unwrap();
        let open = || Kept::open(folder.path(), &key(1)).unwrap().0;
        let (mut one, mut other) = (open(), open());
        one.lock().unwrap();
        assert!(other.lock().unwrap_err().to_string().contains("another tfo"));
        drop(one);
        other.lock().unwrap();
    }

    #[test]
    fn a_changed_or_foreign_file_is_refused() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(FILE);
        let (kept, _) = Kept::open(folder.path(), &key(1)).unwrap();
        kept.store(&key(1), &Document::first(1).unwrap(), false).unwrap();
        assert!(error(folder.path(), 2).contains("another key"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(error(folder.path(), 1).contains("mode 0640"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let sealed = fs::read(&path).unwrap();
        fs::write(&path, &sealed[..sealed.len() - 1]).unwrap();
        assert!(error(folder.path(), 1).contains("move it away"));
        fs::write(&path, vec![0; LONGEST as usize + 1]).unwrap();
        assert!(error(folder.path(), 1).contains("too long"));
    }
}
