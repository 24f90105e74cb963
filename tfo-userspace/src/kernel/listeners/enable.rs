//! Fast Open for servers that do not ask for it: TCP_FASTOPEN, set on the running listeners of other processes.
//!
//! pidfd_getfd(2) copies a descriptor, and setsockopt(2) on the copy changes the one socket behind both. No program of the
//! kernel could do it: bpf_setsockopt knows no such option. What the server had is written to the [`Ledger`] first.

use std::{collections::HashSet, net::SocketAddr, path::Path};

use anyhow::Result;
use serde::Serialize;

use super::{
    Process,
    diag::{ListeningSocket, listening_sockets},
    ledger::{Entries, Entry, Ledger, Party, Wish},
    sockopt::{Holder, holders, queue, set_queue, with_socket},
};
use crate::kernel::sysctl::longest_queue;

/// Wishes of a party.
pub struct Demand<'a> {
    /// The party.
    pub party: Party,
    /// Returns its wish for the listener with this local address.
    pub wish: &'a dyn Fn(SocketAddr) -> Wish,
}

/// Result for one listener. Queues are limits on Fast Open connections in their handshake; 0 means off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Local address and port.
    pub address: SocketAddr,
    /// First process that holds the socket; `None` if it is not known.
    pub process: Option<Process>,
    /// Queue before; `None` if it can't be read.
    pub before: Option<u32>,
    /// Queue after, or the one that would result; `None` if it can't be set.
    pub after: Option<u32>,
    /// Queue that the server itself asked for; `None` if it is not known.
    pub server: Option<u32>,
    /// Interfaces whose configuration wants a queue.
    pub interfaces: Vec<String>,
    /// Reason why it can't be changed.
    pub failure: Option<String>,
    /// Cookie of the socket.
    #[serde(skip)]
    pub cookie: u64,
}

impl Outcome {
    /// Returns the listener's address, and the process that holds it.
    pub fn name(&self) -> String {
        match &self.process {
            Some(process) => format!("{} ({})", self.address, process.name),
            None => self.address.to_string(),
        }
    }
}

/// Whether tfo has changed a listener of the calling thread's network namespace. `folder` has the ledger.
pub fn has_changed_any(folder: &Path) -> Result<bool> {
    Ledger::new(folder).map(|ledger| ledger.exists())
}

/// Carries out `demands` on the listeners of the calling thread's network namespace, and returns the result for each that they
/// concern. `folder` has the ledger. Without `acts`, it only finds out what would result.
///
/// A listener that can't be changed is no error. An error means that nothing was changed, or that the ledger could not be
/// written, and then the rest is left as it is.
pub fn carry_out(folder: &Path, demands: &[Demand<'_>], acts: bool) -> Result<Vec<Outcome>> {
    let ledger = Ledger::new(folder)?;
    let sockets = listening_sockets()?;
    let has = |socket: &ListeningSocket, is: fn(Wish) -> bool| {
        demands.iter().any(|demand| is((demand.wish)(socket.address)))
    };
    let is_wanted = |socket: &ListeningSocket| has(socket, |wish| matches!(wish, Wish::Queue(_)));
    if !ledger.exists() && !sockets.iter().any(is_wanted) {
        return Ok(Vec::new());
    }
    let _lock = acts.then(|| ledger.lock()).transpose()?;
    let mut entries = ledger.read()?;
    let known = entries.len();
    entries.retain(|cookie, _| sockets.iter().any(|socket| socket.cookie == *cookie));
    let is_stale = entries.len() != known;
    let concerns = |socket: &&ListeningSocket| {
        let is_known = entries.contains_key(&socket.cookie);
        is_wanted(socket) || is_known && has(socket, |wish| wish != Wish::Same)
    };
    let concerned: Vec<_> = sockets.iter().filter(concerns).collect();
    let inodes: HashSet<_> =
        concerned.iter().map(|socket| socket.inode).filter(|inode| *inode != 0).collect();
    // It looks at every descriptor of the host.
    let holders = if inodes.is_empty() { Default::default() } else { holders(&inodes) };
    let mut work = Work { ledger, entries, demands, longest: longest_queue()?, acts };
    let mut outcomes = Vec::new();
    for socket in concerned {
        let holders = holders.get(&socket.inode).map(Vec::as_slice).unwrap_or_default();
        outcomes.push(work.change(socket, holders));
    }
    if acts && (is_stale || !outcomes.is_empty()) {
        work.ledger.write(&work.entries)?;
    }
    Ok(outcomes)
}

/// Changes in progress.
struct Work<'a> {
    ledger: Ledger,
    entries: Entries,
    demands: &'a [Demand<'a>],
    longest: u32,
    acts: bool,
}

impl Work<'_> {
    /// Changes one listener.
    fn change(&mut self, socket: &ListeningSocket, holders: &[Holder]) -> Outcome {
        let mut outcome = Outcome {
            address: socket.address,
            process: holders.first().map(|holder| holder.process.clone()),
            before: None,
            after: None,
            server: None,
            interfaces: Vec::new(),
            failure: None,
            cookie: socket.cookie,
        };
        let known = self.entries.get(&socket.cookie).cloned();
        let changed = with_socket(socket.inode, holders, |copy| {
            let before = queue(copy)?;
            let mut entry = known.clone().unwrap_or_else(|| Entry::new(socket.address, before));
            entry.observe(before);
            self.demands.iter().for_each(|demand| entry.wish(&demand.party, (demand.wish)(socket.address)));
            let target = entry.target(self.longest);
            outcome.before = Some(before);
            outcome.server = Some(entry.server);
            outcome.interfaces = entry.interfaces();
            if !self.acts {
                return Ok(target);
            }
            if target != before {
                // The ledger comes first, so that a crash leaves no change that nobody knows of.
                entry.begin(target);
                self.entries.insert(socket.cookie, entry.clone());
                self.ledger.write(&self.entries)?;
                set_queue(copy, target)?;
            }
            let after = queue(copy)?;
            let is_needed = entry.end(after);
            self.remember(socket, is_needed.then_some(entry));
            Ok(after)
        });
        match changed {
            Ok(after) => outcome.after = Some(after),
            Err(error) => {
                outcome.failure = Some(format!("{error:#}"));
                self.remember(socket, known);
            }
        }
        outcome
    }

    fn remember(&mut self, socket: &ListeningSocket, entry: Option<Entry>) {
        match entry {
            Some(entry) => self.entries.insert(socket.cookie, entry),
            None => self.entries.remove(&socket.cookie),
        };
    }
}
