//! The keys that this host has made for itself, and the state file in which they survive a restart.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::unistd::{Uid, geteuid};
use serde::{Deserialize, Serialize};
use tfo_common::keyring::{Held, Key, RETIRED};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    model::keys::{DatedKey, key_text, parse_key},
    util::files::{END, beginning, folder, replace},
};

/// Number of keys that are remembered: the size of a [`KeyRing`](tfo_common::keyring::KeyRing) without the slot of the
/// next key. A random key is not known before it is made.
pub const REMEMBERED: usize = 2 + RETIRED;

/// Version of the file format. No other version is read.
pub const VERSION: u64 = 1;
/// Limit on the size of a state file, in bytes. Real files are smaller.
const TOO_LONG: u64 = 64 * 1024;
/// Capacity for the text of an entry, in bytes, with room to spare.
const ENTRY: usize = 128;
/// Advice for a file that can't be used.
const MOVE_AWAY: &str = "move it away to begin with new keys";

/// The keys that this host has made for itself, from one to [`REMEMBERED`].
///
/// The type has no `Debug`, and is zeroed on drop.
pub struct State {
    /// Keys, newest first. The vector never grows beyond its capacity: growing would leave a copy of the keys behind.
    keys: Vec<DatedKey>,
    /// Whether an emergency is in progress: earlier keys have leaked, and may still be in the kernel or a map.
    purge: bool,
}

/// Content of the file, as JSON. Keys are in the form of the sysctl.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    version: u64,
    #[serde(borrow)]
    keys: Vec<Entry<'a>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    purge: bool,
}

/// Entry of one key. It borrows, so that the text of a key is only in the file's buffer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'a> {
    key: &'a str,
    made: u64,
}

/// Part of the content that all versions of the file have.
#[derive(Deserialize)]
struct Header {
    version: u64,
}

impl State {
    /// Makes a state with one new key, made at `now` (seconds since 1970).
    pub fn new(now: u64) -> Result<Self> {
        let mut state = Self::empty();
        state.rotate(now)?;
        Ok(state)
    }

    fn empty() -> Self {
        Self { keys: Vec::with_capacity(REMEMBERED), purge: false }
    }

    /// Reads the state from the file at `path`; `None` if the file does not exist.
    ///
    /// It refuses a file that belongs to another user or to which others have any right, a symbolic link, and anything
    /// but a complete state file of this version. A refused file stays unchanged.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        match open(path, geteuid())? {
            Some(file) => Self::parse(&read(file, path)?, path).map(Some),
            None => Ok(None),
        }
    }

    /// Parses the content of a state file. Error messages name the file `path`, and show nothing of its keys.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self> {
        let Header { version } = serde_json::from_slice(text).map_err(|error| unreadable(&error, path))?;
        let path_ = path.display();
        if version != VERSION {
            bail!(
                "{path_} is of version {version}, and this tfo reads version {VERSION}: use the tfo that wrote it, or \
                 {MOVE_AWAY}"
            );
        }
        let document: Document<'_> =
            serde_json::from_slice(text).map_err(|error| unreadable(&error, path))?;
        let count = document.keys.len();
        if !(1..=REMEMBERED).contains(&count) {
            bail!("{path_} has {count} keys and not 1 to {REMEMBERED}: {MOVE_AWAY}");
        }
        let mut state = Self::empty();
        state.purge = document.purge;
        for (at, entry) in document.keys.iter().enumerate() {
            let key = parse_key(entry.key).filter(|key| !key.is_zero());
            let key = key.with_context(|| format!("key {} in {path_} is not valid: {MOVE_AWAY}", at + 1))?;
            state.keys.push(DatedKey { key, made: entry.made });
        }
        Ok(state)
    }

    /// Writes the state to `path`. A reader sees either the old state or the whole new one, even after a crash.
    ///
    /// It writes a new file of mode 0600 in the same folder, which then replaces the old one. On an error, the old file
    /// stays.
    pub fn store(&self, path: &Path) -> Result<()> {
        let text = self.text().with_context(|| format!("cannot write {}", path.display()))?;
        replace(path, 0o600, |file| file.write_all(&text))
    }

    /// Removes temporary files, which contain keys. A controller leaves them beside `path` if it is killed during a
    /// write. The caller must hold the lock of the state file.
    pub fn tidy(path: &Path) -> Result<()> {
        let (folder, beginning) = (folder(path), beginning(path)?);
        let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&beginning) && name.ends_with(END) {
                let left = entry.path();
                fs::remove_file(&left).with_context(|| format!("cannot remove {}", left.display()))?;
            }
        }
        Ok(())
    }

    /// Returns the content of the file.
    pub fn text(&self) -> Result<Zeroizing<Vec<u8>>> {
        let texts: Vec<_> = self.keys.iter().map(|made| key_text(made.key)).collect();
        let entries = texts.iter().zip(&self.keys).map(|(key, made)| Entry { key, made: made.made });
        let document = Document { version: VERSION, keys: entries.collect(), purge: self.purge };
        // The buffer must not grow: growing would leave a copy of the keys behind.
        let mut text = Zeroizing::new(Vec::with_capacity(ENTRY * (1 + self.keys.len())));
        serde_json::to_writer(&mut *text, &document)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Returns the keys, newest first.
    pub fn keys(&self) -> &[DatedKey] {
        &self.keys
    }

    /// Makes a new key. If there are [`REMEMBERED`] keys already, the oldest is forgotten. An error changes nothing.
    pub fn rotate(&mut self, now: u64) -> Result<()> {
        self.import(random_key()?, now);
        Ok(())
    }

    /// Makes `key` the newest key, as if this host had made it.
    pub fn import(&mut self, key: Key, now: u64) {
        self.keys.retain(|made| made.key != key);
        self.forget_beyond(REMEMBERED - 1);
        self.keys.insert(0, DatedKey { key, made: now });
    }

    /// Makes a new key and forgets all others. An error changes nothing.
    pub fn emergency(&mut self, now: u64) -> Result<()> {
        self.rotate(now)?;
        self.forget_beyond(1);
        self.purge = true;
        Ok(())
    }

    /// Zeroes and drops all keys but the first `count`.
    fn forget_beyond(&mut self, count: usize) {
        self.keys.iter_mut().skip(count).for_each(Zeroize::zeroize);
        self.keys.truncate(count);
    }

    /// Returns the keys for the kernel: the newest is current, the second is backup. There is no next key.
    pub fn held(&self) -> Held {
        let key = |at: usize| self.keys.get(at).map(|made| made.key);
        Held { current: key(0), backup: key(1), next: None }
    }

    /// Whether an emergency is in progress: kernel and maps may accept only the keys of [`held`](Self::held).
    pub fn is_purging(&self) -> bool {
        self.purge
    }

    /// Ends the emergency.
    pub fn purged(&mut self) {
        self.purge = false;
    }

    /// Returns the keys that the kernel no longer holds, newest first.
    pub fn retired(&self) -> impl Iterator<Item = DatedKey> + '_ {
        self.keys.iter().skip(2).copied()
    }

    /// Whether the newest key is at least `interval` old. False for a key from the future, after the clock was set
    /// back.
    pub fn due(&self, interval: Duration, now: u64) -> bool {
        let age = self.keys.first().and_then(|newest| now.checked_sub(newest.made));
        age.is_some_and(|age| Duration::from_secs(age) >= interval)
    }
}

impl Clone for State {
    fn clone(&self) -> Self {
        let mut keys = Vec::with_capacity(REMEMBERED);
        keys.extend(&self.keys);
        Self { keys, purge: self.purge }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.keys.zeroize();
    }
}

/// Makes a key from the kernel's random numbers. It is never all zeros, since that means "no key".
pub fn random_key() -> Result<Key> {
    loop {
        let random = || getrandom::u64().context("cannot get random numbers for a key (getrandom)");
        let key = Key { k0: random()?, k1: random()? };
        if !key.is_zero() {
            return Ok(key);
        }
    }
}

/// Opens the state file at `path`, and checks that only the user `owner` can read or write it; `None` if it does not
/// exist.
fn open(path: &Path, owner: Uid) -> Result<Option<File>> {
    let path_ = path.display();
    // With O_NONBLOCK, opening a named pipe does not wait for a writer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            bail!("{path_} is a symbolic link, which is not followed: name the file itself, or {MOVE_AWAY}")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open {path_}")),
    };
    let metadata = file.metadata().with_context(|| format!("cannot examine {path_}"))?;
    if !metadata.is_file() {
        bail!("{path_} is no regular file: name another one");
    }
    if metadata.uid() != owner.as_raw() {
        bail!(
            "{path_} belongs to user {} and not to user {owner}, who runs this: if its keys can be trusted, chown it; \
             otherwise {MOVE_AWAY}",
            metadata.uid()
        );
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        bail!(
            "others can read or change {path_} (mode {mode:04o}): if nobody has, chmod 600 {path_}; otherwise \
             {MOVE_AWAY}"
        );
    }
    Ok(Some(file))
}

/// Reads all of `file`.
fn read(file: File, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let path = path.display();
    let length = file.metadata().with_context(|| format!("cannot examine {path}"))?.len();
    if length > TOO_LONG {
        bail!("{path} has {length} bytes, too many for a state file: {MOVE_AWAY}");
    }
    let mut text = Zeroizing::new(vec![0; length as usize]);
    (&file).read_exact(&mut text).with_context(|| format!("cannot read {path}"))?;
    Ok(text)
}

/// Returns an error that names only the position in the text. The library's own message may quote the text, and so a
/// key.
fn unreadable(error: &serde_json::Error, path: &Path) -> anyhow::Error {
    let path = path.display();
    if error.is_eof() {
        return anyhow!("{path} is cut off: {MOVE_AWAY}");
    }
    anyhow!("{path} is no state file (line {}, column {}): {MOVE_AWAY}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};
    use tempfile::TempDir;

    use super::*;

    const ONE: &str = "a0bf63f7-ed803d81-cd641d30-cebc4a90";
    const TWO: &str = "a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4";

    fn new_folder() -> (TempDir, PathBuf) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("keys.json");
        (folder, path)
    }

    fn put(path: &Path, content: &str) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    fn load(path: &Path) -> State {
        State::load(path).unwrap().expect("there is a file")
    }

    /// Returns the error for `path`, and checks that the file is unchanged.
    fn complaint(path: &Path) -> String {
        let before = fs::symlink_metadata(path).unwrap();
        let complaint = format!("{:#}", State::load(path).err().expect("it is refused"));
        assert!(complaint.contains(path.to_str().unwrap()), "{complaint}");
        let after = fs::symlink_metadata(path).unwrap();
        assert_eq!((before.ino(), before.mode(), before.len()), (after.ino(), after.mode(), after.len()));
        complaint
    }

    fn files(folder: &TempDir) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(folder).unwrap().map(name).collect()
    }

    fn numbers(state: &State) -> Vec<u64> {
        state.keys().iter().map(|made| made.made).collect()
    }

    #[test]
    fn a_state_comes_back_as_it_was_stored() {
        let (folder, path) = new_folder();
        assert!(State::load(&path).unwrap().is_none());
        let mut state = State::new(1).unwrap();
        for now in 2..30 {
            state.store(&path).unwrap();
            assert!(load(&path).keys() == state.keys(), "{now}");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
            assert_eq!(files(&folder), ["keys.json"]);
            state.rotate(now).unwrap();
        }
    }

    #[test]
    fn the_form_of_the_file() {
        let (_folder, path) = new_folder();
        let content = format!(
            "{{\"version\":1,\"keys\":[{{\"key\":\"{TWO}\",\"made\":18446744073709551615}},\
             {{\"key\":\"{ONE}\",\"made\":0}}]}}\n"
        );
        put(&path, &content);
        let state = load(&path);
        assert!(state.held().current == parse_key(TWO) && state.held().backup == parse_key(ONE));
        assert_eq!(numbers(&state), [u64::MAX, 0]);
        state.store(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }

    #[test]
    fn text_buffers_never_grow() {
        let mut state = State::new(u64::MAX).unwrap();
        let capacity = state.keys.capacity();
        for _ in 0..20 {
            state.rotate(u64::MAX).unwrap();
            assert!(state.text().unwrap().len() <= ENTRY * (1 + state.keys.len()));
        }
        assert_eq!(state.keys.capacity(), capacity);
    }

    #[test]
    fn what_others_can_read_or_write_is_refused() {
        let (_folder, path) = new_folder();
        State::new(1).unwrap().store(&path).unwrap();
        for mode in [0o640, 0o620, 0o604, 0o602, 0o666, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let complaint = complaint(&path);
            assert!(complaint.contains(&format!("mode {mode:04o}")), "{complaint}");
            assert!(complaint.contains("chmod 600") && complaint.contains(MOVE_AWAY), "{complaint}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            load(&path);
        }
    }

    #[test]
    fn what_belongs_to_another_is_refused() {
        let (_folder, path) = new_folder();
        State::new(1).unwrap().store(&path).unwrap();
        let other = Uid::from_raw(geteuid().as_raw() + 1);
        let complaint = format!("{:#}", open(&path, other).unwrap_err());
        assert!(complaint.contains("chown") && complaint.contains(MOVE_AWAY), "{complaint}");
        assert!(complaint.contains(&format!("belongs to user {} and not to user {other}", geteuid())));
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let (folder, path) = new_folder();
        let real = folder.path().join("real");
        // A dangling link must not count as a missing file.
        symlink(&real, &path).unwrap();
        assert!(complaint(&path).contains("is a symbolic link"));
        State::new(1).unwrap().store(&real).unwrap();
        assert!(complaint(&path).contains("is a symbolic link"));

        fs::remove_file(&path).unwrap();
        mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
        assert!(complaint(&path).contains("no regular file"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(complaint(&path).contains("no regular file"));
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_is_refused() {
        let (_folder, path) = new_folder();
        let mut state = State::new(1).unwrap();
        state.rotate(2).unwrap();
        let text = String::from_utf8(state.text().unwrap().to_vec()).unwrap();
        let whole = text.trim_end();
        for length in 0..whole.len() {
            put(&path, &whole[..length]);
            let complaint = complaint(&path);
            assert!(
                complaint.contains("is cut off") && complaint.contains(MOVE_AWAY),
                "{length}: {complaint}"
            );
        }
        put(&path, whole);
        assert!(load(&path).keys() == state.keys());
    }

    #[test]
    fn other_content_is_refused_and_not_repeated() {
        let (_folder, path) = new_folder();
        let entry = format!("{{\"key\":\"{ONE}\",\"made\":1}}");
        let eleven = [entry.as_str(); REMEMBERED + 1].join(",");
        let zero = format!("{{\"key\":\"{}\",\"made\":1}}", *key_text(Key::default()));
        let document = |keys: &str| format!("{{\"version\":1,\"keys\":[{keys}]}}");
        for (content, expected) in [
            (ONE.to_owned(), "no state file"),
            ("\0\0\0\0".to_owned(), "no state file"),
            (format!("{}x", document(&entry)), "no state file"),
            (format!("{{\"version\":1,\"keys\":\"{ONE}\"}}"), "no state file"),
            (format!("{{\"version\":1,\"keys\":[{entry}],\"{ONE}\":1}}"), "no state file"),
            (document(&format!("{{\"key\":1,\"made\":\"{ONE}\"}}")), "no state file"),
            (document(&format!("{{\"key\":\"{ONE}\",\"made\":\"{ONE}\"}}")), "no state file"),
            (document(&format!("{{\"key\":\"{ONE}\",\"made\":-1}}")), "no state file"),
            (document(&format!("{{\"key\":\"{ONE}\"}}")), "no state file"),
            (document(&format!("{{\"{ONE}\":1}}")), "no state file"),
            (document(&format!("{{\"key\":\"\\u0061{}\",\"made\":1}}", &ONE[1..])), "no state file"),
            (document(&format!("{entry},{{\"key\":\"{ONE},{TWO}\",\"made\":1}}")), "key 2 in"),
            (document(&format!("{{\"key\":\"{}\",\"made\":1}}", &ONE[..34].replace('-', "+"))), "key 1 in"),
            (document(&zero), "key 1 in"),
            (document(""), "has 0 keys"),
            (document(&eleven), "has 11 keys"),
            (format!("{{\"version\":2,\"secrets\":[\"{ONE}\"]}}"), "is of version 2"),
            (format!("{{\"version\":0,\"keys\":[{entry}]}}"), "is of version 0"),
            (format!("{{\"version\":\"{ONE}\",\"keys\":[{entry}]}}"), "no state file"),
            (format!("{{\"keys\":[{entry}]}}"), "no state file"),
            (" ".repeat(TOO_LONG as usize + 1), "too many for a state file"),
        ] {
            put(&path, &content);
            let complaint = complaint(&path);
            assert!(complaint.contains(expected) && complaint.contains(MOVE_AWAY), "{complaint}");
            for group in ONE.split('-').chain(TWO.split('-')) {
                assert!(!complaint.contains(group), "{complaint}");
            }
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let (folder, path) = new_folder();
        let state = State::new(1).unwrap();
        state.store(&path).unwrap();
        let fail = |file: &mut File| {
            file.write_all(b"{\"version\":1,")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        assert!(format!("{:#}", replace(&path, 0o600, fail).unwrap_err()).contains("cannot write"));
        assert!(load(&path).keys() == state.keys());
        assert_eq!(files(&folder), ["keys.json"]);

        // A failure of the last step leaves no temporary file behind.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(state.store(&path).is_err());
        assert_eq!(files(&folder), ["keys.json"]);

        let nowhere = folder.path().join("none").join("keys.json");
        assert!(format!("{:#}", state.store(&nowhere).unwrap_err()).contains("cannot make a file in"));
        assert!(state.store(Path::new("/")).is_err());
    }

    #[test]
    fn a_link_is_replaced_and_not_written_through() {
        let (folder, path) = new_folder();
        let real = folder.path().join("real");
        fs::write(&real, "untouched").unwrap();
        symlink(&real, &path).unwrap();
        State::new(1).unwrap().store(&path).unwrap();
        load(&path);
        assert_eq!(fs::read_to_string(&real).unwrap(), "untouched");
    }

    #[test]
    fn writers_and_readers_never_see_half_a_file() {
        let (folder, path) = new_folder();
        State::new(1).unwrap().store(&path).unwrap();
        std::thread::scope(|scope| {
            for now in 1..3 {
                let path = &path;
                scope.spawn(move || {
                    let mut state = State::new(now).unwrap();
                    for _ in 0..50 {
                        state.rotate(now).unwrap();
                        state.store(path).unwrap();
                    }
                });
            }
            for _ in 0..200 {
                let made = numbers(&load(&path));
                assert!(made.iter().all(|now| *now == made[0]), "{made:?}");
            }
        });
        assert_eq!(files(&folder), ["keys.json"]);
    }

    #[test]
    fn a_rotation_moves_each_key_to_the_next_role() {
        let mut state = State::new(1).unwrap();
        assert!(state.held().backup.is_none() && state.retired().next().is_none());
        let mut seen = vec![state.held().current.unwrap()];
        for now in 2..20 {
            state.rotate(now).unwrap();
            let held = state.held();
            let newest = held.current.unwrap();
            assert!(!seen.contains(&newest) && held.next.is_none());
            seen.insert(0, newest);
            assert!(held.backup == seen.get(1).copied());
            assert!(
                state.retired().map(|made| made.key).collect::<Vec<_>>()
                    == seen[2..seen.len().min(REMEMBERED)]
            );
            assert_eq!(state.keys()[0].made, now);
        }
        assert_eq!(numbers(&state), (10..20).rev().collect::<Vec<_>>());
        assert_eq!(state.retired().count(), RETIRED);
    }

    #[test]
    fn an_emergency_forgets_all_earlier_keys() {
        let mut state = State::new(1).unwrap();
        for now in 2..20 {
            state.rotate(now).unwrap();
        }
        let before: Vec<_> = state.keys().to_vec();
        state.emergency(20).unwrap();
        assert_eq!(numbers(&state), [20]);
        assert!(before.iter().all(|made| Some(made.key) != state.held().current));
        assert!(state.held().backup.is_none() && state.retired().next().is_none());
    }

    #[test]
    fn a_key_is_due_after_its_interval() {
        let state = State::new(10_000).unwrap();
        let hour = Duration::from_secs(3600);
        for (now, is_due) in
            [(0, false), (9_999, false), (10_000, false), (13_599, false), (13_600, true), (u64::MAX, true)]
        {
            assert_eq!(state.due(hour, now), is_due, "{now}");
        }
        assert!(!state.due(Duration::from_millis(1500), 10_001));
        assert!(state.due(Duration::from_millis(1500), 10_002));
    }
}
