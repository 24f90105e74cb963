//! Ledger of the listeners whose Fast Open queue tfo has changed, so that just that can be undone.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{kernel::netns, util::files::replace};

/// Version of the file format. Other versions are refused.
const VERSION: u64 = 1;

/// Party that wants Fast Open on listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// Operator, by `tfo enable`.
    Operator,
    /// Configuration of the controller of this interface.
    Interface(String),
}

/// Wish of a party for a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The same as before.
    Same,
    /// A queue of this length, or a longer one.
    Queue(u32),
    /// Nothing, so that the listener is as its server made it.
    Nothing,
}

/// Listener whose queue tfo has changed. Lengths of queues are numbers of connections; 0 means off.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Entry {
    /// Local address and port.
    address: SocketAddr,
    /// Queue that the server itself asked for.
    pub(super) server: u32,
    /// Queues that tfo has set: the last one, and the one before until the change is over.
    ours: Vec<u32>,
    /// Queue that the operator wants.
    operator: Option<u32>,
    /// Queue that the configuration wants, by the interface of its controller.
    interfaces: BTreeMap<String, u32>,
}

/// Entries by the cookie of the socket, which no later socket of this boot has (`sock_gen_cookie`).
pub(super) type Entries = BTreeMap<u64, Entry>;

/// Content of the file, as JSON.
#[derive(Deserialize, Serialize)]
struct Document {
    version: u64,
    listeners: Entries,
}

impl Entry {
    /// Makes the entry of a listener that tfo has not changed, and that has the queue `server`.
    pub(super) fn new(address: SocketAddr, server: u32) -> Self {
        Self { address, server, ours: Vec::new(), operator: None, interfaces: BTreeMap::new() }
    }

    /// Takes note of the queue that the listener has now. If tfo has not set it, the server has.
    pub(super) fn observe(&mut self, queue: u32) {
        if !self.ours.contains(&queue) {
            (self.server, self.ours) = (queue, Vec::new());
        }
    }

    /// Takes note of the wish of a party.
    pub(super) fn wish(&mut self, party: &Party, wish: Wish) {
        let wanted = match wish {
            Wish::Same => return,
            Wish::Queue(queue) => Some(queue),
            Wish::Nothing => None,
        };
        match (party, wanted) {
            (Party::Operator, wanted) => self.operator = wanted,
            (Party::Interface(name), Some(queue)) => {
                self.interfaces.insert(name.clone(), queue);
            }
            (Party::Interface(name), None) => {
                self.interfaces.remove(name);
            }
        }
    }

    /// Returns the queue that the listener should have: the longest that a party wants, up to `longest`, and never less than
    /// the server asked for.
    pub(super) fn target(&self, longest: u32) -> u32 {
        let wanted = self.interfaces.values().copied().chain(self.operator).max();
        self.server.max(wanted.unwrap_or(0).min(longest))
    }

    /// Takes note that tfo is about to set `queue`.
    pub(super) fn begin(&mut self, queue: u32) {
        self.ours.push(queue);
    }

    /// Takes note that the listener has `queue`. Returns whether the server asked for another one, so that the entry is
    /// needed to undo the change.
    pub(super) fn end(&mut self, queue: u32) -> bool {
        self.ours = vec![queue];
        queue != self.server
    }

    /// Returns the interfaces whose configuration wants a queue.
    pub(super) fn interfaces(&self) -> Vec<String> {
        self.interfaces.keys().cloned().collect()
    }
}

/// Ledger of the calling thread's network namespace: a file in a folder that does not outlive a reboot, like the sockets
/// themselves.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// Returns the ledger in `folder`. Its name has the inode of the network namespace. A later namespace may get the same
    /// inode, but none of its sockets has a cookie that is in the file.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        Ok(Self { path: folder.join(format!("fast-open-{}.json", netns::netns()?)) })
    }

    /// Whether tfo has changed any listener.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Locks the ledger, and waits while another process uses it.
    pub(super) fn lock(&self) -> Result<Flock<File>> {
        if let Some(folder) = self.path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let path = self.path.with_extension("lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| anyhow!("cannot lock {}: {error}", path.display()))
    }

    /// Reads the entries. A missing file has none.
    pub(super) fn read(&self) -> Result<Entries> {
        let shown = self.path.display();
        let advice = "move it away; what tfo has changed on running listeners then stays";
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Entries::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {shown}: {advice}")),
        };
        let document: Document = serde_json::from_slice(&text)
            .with_context(|| format!("{shown} is no ledger of listeners: {advice}"))?;
        let version = document.version;
        ensure!(
            version == VERSION,
            "{shown} is of version {version}, and this tfo reads version {VERSION}: {advice}"
        );
        Ok(document.listeners)
    }

    /// Writes the file, or removes it if there are no entries. On failure, the old file stays.
    pub(super) fn write(&self, entries: &Entries) -> Result<()> {
        if entries.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
                }
                _ => Ok(()),
            };
        }
        let text = serde_json::to_vec(&Document { version: VERSION, listeners: entries.clone() })?;
        replace(&self.path, 0o600, |file| file.write_all(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: u32 = 4096;

    fn entry(server: u32) -> Entry {
        Entry::new("192.0.2.1:443".parse().expect("an address"), server)
    }

    /// Carries out a wish, and returns the queue that results.
    fn after(entry: &mut Entry, party: &Party, wish: Wish) -> u32 {
        entry.wish(party, wish);
        let target = entry.target(LONGEST);
        entry.begin(target);
        entry.end(target);
        target
    }

    #[test]
    fn what_the_server_asked_for_is_never_lowered_and_comes_back() {
        let eth0 = Party::Interface("eth0".to_owned());
        for (server, with) in [(0, 256), (1, 256), (256, 256), (512, 512)] {
            for party in [&Party::Operator, &eth0] {
                let mut entry = entry(server);
                assert_eq!(after(&mut entry, party, Wish::Queue(256)), with);
                assert_eq!(after(&mut entry, party, Wish::Same), with);
                assert_eq!(after(&mut entry, party, Wish::Nothing), server);
                assert!(!entry.end(server), "nothing is left to undo");
            }
        }
    }

    #[test]
    fn the_longest_wish_holds_until_nobody_has_one() {
        let [eth0, eth1] = ["eth0", "eth1"].map(|name| Party::Interface(name.to_owned()));
        let mut entry = entry(5);
        assert_eq!(after(&mut entry, &eth0, Wish::Queue(100)), 100);
        assert_eq!(after(&mut entry, &eth1, Wish::Queue(50)), 100);
        assert_eq!(after(&mut entry, &Party::Operator, Wish::Queue(9999)), LONGEST);
        assert_eq!(after(&mut entry, &Party::Operator, Wish::Nothing), 100);
        assert_eq!(entry.interfaces(), ["eth0", "eth1"]);
        assert_eq!(after(&mut entry, &eth0, Wish::Nothing), 50);
        assert_eq!(after(&mut entry, &eth1, Wish::Nothing), 5);
    }

    #[test]
    fn a_queue_that_tfo_has_not_set_is_the_servers() {
        let mut entry = entry(0);
        assert_eq!(after(&mut entry, &Party::Operator, Wish::Queue(256)), 256);
        entry.observe(256);
        assert_eq!(entry.server, 0);
        entry.observe(7);
        assert_eq!((entry.server, entry.target(LONGEST)), (7, 256));
        assert_eq!(after(&mut entry, &Party::Operator, Wish::Nothing), 7);
    }

    /// A crash before or after setsockopt(2): the file has both queues.
    #[test]
    fn a_change_that_was_interrupted_is_not_the_servers() {
        for queue in [100, 200] {
            let mut entry = entry(5);
            after(&mut entry, &Party::Operator, Wish::Queue(100));
            entry.wish(&Party::Operator, Wish::Queue(200));
            entry.begin(200);
            entry.observe(queue);
            assert_eq!((entry.server, entry.target(LONGEST)), (5, 200));
        }
    }

    #[test]
    fn a_file_comes_back_as_it_was_and_goes_with_its_last_entry() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ledger = Ledger::new(folder.path()).expect("a network namespace");
        assert_eq!(ledger.read().expect("no file"), Entries::new());
        let mut entry = entry(5);
        after(&mut entry, &Party::Interface("eth0".to_owned()), Wish::Queue(100));
        let entries = Entries::from([(u64::MAX, entry)]);
        ledger.write(&entries).expect("the folder is ours");
        assert_eq!(ledger.read().expect("a ledger"), entries);
        let text = fs::read_to_string(&ledger.path).expect("a file");
        fs::write(&ledger.path, text.replace("\"version\":1", "\"version\":2")).expect("the folder is ours");
        let error = ledger.read().expect_err("another version").to_string();
        assert!(error.contains("is of version 2, and this tfo reads version 1"), "{error}");
        ledger.write(&Entries::new()).expect("the folder is ours");
        assert!(!ledger.exists());
        ledger.write(&Entries::new()).expect("it may be gone already");
    }
}
