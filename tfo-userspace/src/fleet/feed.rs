//! Feed of a host: a thread that follows the fleet's document in etcd, and tells etcd how the host fares.
//!
//! The controller never waits for it. Its keeper takes documents from a channel, as news of secrets, and it gives the state
//! of its keys through another. Without etcd the thread tries again and again, member after member, and everything else goes on.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{debug, info, warn};

use super::{
    access::Access,
    document::{Document, Outline},
    kept::Kept,
    member::{Decision, Member},
    record::{Applied, Record},
    store::Store,
    value::{News as Seen, PATIENCE, Value},
};
use crate::{
    keys::{self, feed::News, schedule::Schedule, succession::Succession},
    util::{privileges, runtime::block_on, secrecy::leaving_no_trace, time::unix_seconds},
};

/// Time after which a silent host counts as gone, in seconds.
pub const LEASE: i64 = 10;
/// Interval between renewals of the lease.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Interval between two looks of a start at what was read.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Pause before the next member of etcd is tried.
const PAUSE: Duration = Duration::from_millis(300);
/// Pause after all members of etcd have failed.
const LONG_PAUSE: Duration = Duration::from_secs(3);

/// Documents for the keeper, as news of secrets.
pub struct Incoming {
    documents: Receiver<Document>,
    shared: Arc<Shared>,
    /// News of documents that have come, still to be handed over.
    news: VecDeque<News>,
    /// Numbers of the last document whose news are all handed over or waiting.
    known: Outline,
}

/// Reporter of the state of the keys.
pub struct Reporter {
    applied: watch::Sender<Applied>,
    shared: Arc<Shared>,
}

/// State of the connection to etcd, for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Whether the host is in touch with etcd.
    pub is_connected: bool,
    /// Whether the value in etcd was read since the start.
    pub was_read: bool,
    /// Whether the host is registered under a lease.
    pub has_lease: bool,
    /// Numbers of the last document that was taken.
    pub taken: Outline,
    /// Time at which it was taken, in seconds since 1970; 0 for a start with what was kept.
    pub taken_at: u64,
    /// Number of failures of etcd, or of the way to it.
    pub failures: u64,
    /// Number of values that were refused: tampered ones, those of another key, and older ones.
    pub refused: u64,
    /// Reason of the last failure, as long as it lasts.
    pub failure: Option<String>,
    /// Reason of the last refusal, as long as the value is there.
    pub refusal: Option<String>,
}

/// State of a host in its fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// State of the connection to etcd.
    pub link: Link,
    /// State of the keys.
    pub applied: Applied,
}

impl State {
    /// Describes the state in one line.
    pub fn text(&self) -> String {
        let Self { link, applied } = self;
        let touch = match (&link.failure, link.is_connected) {
            (Some(failure), _) => format!("OUT OF TOUCH with etcd: {failure}"),
            (None, true) => "in touch with etcd".to_owned(),
            (None, false) => "not yet in touch with etcd".to_owned(),
        };
        let learnt = match applied.learnt {
            learnt if learnt > applied.in_force => format!(", {learnt} learnt"),
            _ => String::new(),
        };
        let refusal = link.refusal.as_ref().map(|why| format!("; its document is REFUSED: {why}"));
        format!(
            "generation {}, secret {} in force{learnt}, {touch}{}",
            applied.generation,
            applied.in_force,
            refusal.unwrap_or_default()
        )
    }

    /// Whether kernel and maps have the secrets of the last document, and no later one is refused.
    pub fn is_in_step(&self) -> bool {
        let Self { link, applied } = self;
        applied.fault.is_none() && link.refusal.is_none() && applied.generation == link.taken.generation
    }
}

/// State that both threads see.
#[derive(Default)]
struct Shared {
    link: Mutex<Link>,
    /// Numbers of the document whose news the keeper has.
    handed: Mutex<Outline>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handed(&self) -> MutexGuard<'_, Outline> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

/// Starts the thread of the host that has `access`, with what it has `kept`: a document with the numbers `taken`, if any.
/// `rotate` is the time between two keys.
pub fn start(
    access: Access,
    kept: Kept,
    taken: Option<Outline>,
    rotate: Duration,
) -> Result<(Incoming, Reporter)> {
    let taken = taken.unwrap_or_default();
    let (sender, documents) = channel();
    let (applied, seen) = watch::channel(Applied::default());
    let shared = Arc::new(Shared::default());
    shared.link().taken = taken.clone();
    let worker = Worker {
        access,
        kept,
        rotate: rotate.as_secs(),
        member: Member::new(taken),
        lease: None,
        written: Vec::new(),
        refused: None,
        is_missing: false,
        documents: sender,
        applied: seen,
        shared: Arc::clone(&shared),
    };
    let run = move || {
        // All files are read. To keep the document takes no capability.
        drop(privileges::drop_all());
        if let Err(error) = block_on(worker.run()) {
            warn!("fleet: {error:#}");
        }
    };
    thread::Builder::new().name("fleet".to_owned()).spawn(run).context("cannot start a thread")?;
    let incoming =
        Incoming { documents, shared: Arc::clone(&shared), news: VecDeque::new(), known: Outline::default() };
    Ok((incoming, Reporter { applied, shared }))
}

impl Incoming {
    /// Waits until the document in etcd is read, but no longer than `patience`. Returns it, if it is to be taken.
    pub fn wait(&self, patience: Duration) -> Result<Option<Document>> {
        let end = Instant::now() + patience;
        loop {
            let (was_read, is_over) = (self.shared.link().was_read, Instant::now() >= end);
            match self.documents.recv_timeout(LOOK_EVERY) {
                Ok(document) => return Ok(Some(document)),
                Err(RecvTimeoutError::Timeout) if was_read || is_over => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the thread of the fleet has ended"),
            }
        }
    }

    /// Begins with a document, and returns its secrets for the keeper. Of secrets below the number `forgotten`, kernel and
    /// maps have nothing.
    pub fn begin(
        &mut self,
        document: &Document,
        forgotten: u64,
        schedule: Schedule,
        overlap: Duration,
    ) -> Succession {
        let now = unix_seconds();
        self.known = document.outline();
        let is_emergency = document.forget_below > forgotten;
        if is_emergency {
            let before = Outline { forget_below: forgotten, next: None, ..self.known.clone() };
            self.news = news(&before, document).into();
        }
        self.note_handed();
        // From the oldest on. The clock of the host that said since when may have been ahead of this one.
        let mut in_order = document.former.iter().rev().chain([&document.in_force]);
        let first = in_order.next().expect("one is in force");
        let mut succession = Succession::new(first.copy().secret, schedule, overlap);
        for entry in in_order {
            let since = entry.since.min(now);
            succession.learn(entry.copy().secret, since, true);
            succession.put_in_force(since);
        }
        if let Some(next) = document.next.as_ref().filter(|_| !is_emergency) {
            succession.learn(next.copy().secret, now, true);
        }
        succession
    }

    fn note_handed(&self) {
        if self.news.is_empty() {
            self.shared.handed().clone_from(&self.known);
        }
    }
}

impl keys::feed::Feed for Incoming {
    fn next(&mut self) -> Result<Option<News>> {
        while self.news.is_empty()
            && let Ok(document) = self.documents.try_recv()
        {
            self.news = news(&self.known, &document).into();
            self.known = document.outline();
        }
        let next = self.news.pop_front();
        self.note_handed();
        if !self.news.is_empty() {
            self.shared.wake();
        }
        Ok(next)
    }
}

/// Returns what a keeper that has the secrets of a document with the numbers `known` learns from `document`, in order.
fn news(known: &Outline, document: &Document) -> Vec<News> {
    let mut news = Vec::new();
    let in_force = || document.in_force.copy().secret;
    if document.forget_below > known.forget_below {
        news.push(News::Purge(in_force()));
    } else if document.in_force.id != known.in_force {
        if known.next != Some(document.in_force.id) {
            news.push(News::Expect(in_force()));
        }
        news.push(News::PutInForce);
    }
    if let Some(next) = &document.next
        && known.next != Some(next.id)
    {
        news.push(News::Expect(next.copy().secret));
    }
    news
}

impl Reporter {
    /// Calls `wake`, from another thread, whenever there is a document.
    pub fn wake_by(&self, wake: impl Fn() + Send + Sync + 'static) {
        // A reporter belongs to one controller.
        drop(self.shared.wake.set(Box::new(wake)));
    }

    /// Tells the fleet the state of the keys after a step. If there was a `fault`, kernel and maps may lack the newest
    /// secrets, and are said to have those of the report before.
    pub fn tell(&self, keys: Keys, fault: Option<String>) {
        let handed = self.shared.handed().clone();
        self.applied.send_if_modified(|applied| {
            let before = applied.clone();
            if fault.is_none() {
                applied.generation = handed.generation;
                applied.learnt = handed.newest();
                applied.in_force = handed.in_force;
                applied.forgotten = handed.forget_below;
            }
            applied.fault = fault;
            (applied.current, applied.backup, applied.interfaces) =
                (keys.current, keys.backup, keys.interfaces);
            *applied != before
        });
    }

    /// Returns the state of this host in its fleet.
    pub fn state(&self) -> State {
        State { link: self.shared.link().clone(), applied: self.applied.borrow().clone() }
    }
}

/// Keys in the kernel, and the interfaces with programs that know them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Fingerprint of the kernel's current key.
    pub current: Option<String>,
    /// Fingerprint of the kernel's backup key.
    pub backup: Option<String>,
    /// Names of the interfaces.
    pub interfaces: Vec<String>,
}

/// The thread's part.
struct Worker {
    access: Access,
    kept: Kept,
    rotate: u64,
    member: Member,
    lease: Option<i64>,
    /// Record that was written last, sealed.
    written: Vec<u8>,
    /// Revision of the value that was refused last.
    refused: Option<i64>,
    is_missing: bool,
    documents: Sender<Document>,
    applied: watch::Receiver<Applied>,
    shared: Arc<Shared>,
}

/// End of a session with a member of etcd.
enum End {
    /// The controller has ended.
    Stopped,
    /// Read everything again.
    Again,
}

impl Worker {
    /// Follows the document until the controller ends.
    async fn run(mut self) -> Result<()> {
        let members = self.access.endpoints.len();
        // Hosts begin with different members.
        let mut at = getrandom::u32().unwrap_or(0) as usize % members;
        let mut failed = 0;
        loop {
            let begun = Instant::now();
            let endpoint = self.access.endpoints[at].clone();
            let ended = self.session(&endpoint).await;
            match ended {
                Ok(End::Stopped) => return Ok(()),
                Ok(End::Again) => continue,
                Err(error) => self.note(&format!("{endpoint}: {error:#}")),
            }
            at = (at + 1) % members;
            failed = if begun.elapsed() > PATIENCE * 2 { 1 } else { failed + 1 };
            let pause = if failed % members == 0 { LONG_PAUSE } else { PAUSE };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stopped() => return Ok(()),
            }
        }
    }

    /// Waits until the controller has ended.
    async fn stopped(&self) {
        let mut applied = self.applied.clone();
        while applied.changed().await.is_ok() {}
    }

    /// Notes that a member of etcd has failed. The first of several failures is logged.
    fn note(&self, failure: &str) {
        let mut link = self.shared.link();
        link.failures += 1;
        if link.failure.is_none() {
            warn!(
                "fleet: {failure}; the secret and the schedule stay as they are; trying the other members of etcd"
            );
        } else {
            debug!("fleet: {failure}");
        }
        link.failure = Some(failure.to_owned());
        link.is_connected = false;
    }

    /// Follows the document through one member of etcd.
    async fn session(&mut self, endpoint: &str) -> Result<End> {
        let mut store = Store::connect(&self.access, endpoint).await?;
        let name = self.access.names.document();
        let (value, revision) = store.get(&name).await?;
        self.take(value);
        self.shared.link().was_read = true;
        // The watch begins before the host is registered, so nothing that happens meanwhile waits for it.
        let mut watch = store.watch(&name, revision + 1).await?;
        self.register(&mut store).await?;
        {
            let mut link = self.shared.link();
            link.is_connected = true;
            if link.failure.take().is_some() {
                info!("fleet: in touch with etcd again, by {endpoint}");
            }
        }
        let mut renew = interval(RENEW_EVERY);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                news = watch.next() => match news? {
                    Seen::Value(value) => self.take(value),
                    Seen::Lost => {
                        info!("fleet: etcd has compacted changes away: reading the document again");
                        return Ok(End::Again);
                    }
                },
                changed = self.applied.changed() => match changed {
                    Ok(()) => self.register(&mut store).await?,
                    Err(_) => return Ok(End::Stopped),
                },
                _ = renew.tick() => if !self.renew(&mut store).await? {
                    self.register(&mut store).await?;
                },
            }
        }
    }

    /// Notes what kernel and maps have forgotten, for the next start.
    fn note_forgotten(&mut self) {
        let forgotten = self.applied.borrow().forgotten;
        if forgotten > self.kept.forgotten
            && let Err(error) = leaving_no_trace(|| self.kept.forget(&self.access.key, forgotten))
        {
            debug!("fleet: the next start will forget the leaked secret once more: {error:#}");
        }
    }

    /// Renews the lease. Returns false if it is over, or if somebody else has changed or removed the record.
    async fn renew(&mut self, store: &mut Store) -> Result<bool> {
        let Some(lease) = self.lease else { return Ok(false) };
        if !store.keep_alive(lease).await? {
            info!("fleet: the lease of this host is over: registering it again");
            self.lease = None;
            self.shared.link().has_lease = false;
            return Ok(false);
        }
        let live = format!("{}{}", self.access.names.live(), self.access.host);
        let (value, _) = store.get(&live).await?;
        let is_ours = value.is_some_and(|value| value.sealed == self.written);
        if !is_ours {
            warn!("fleet: the record of this host was changed or removed by somebody else: writing it again");
        }
        Ok(is_ours)
    }

    /// Writes the record of this host, under its lease and without one. Before the first report there is none, and the
    /// one of the controller before stays.
    async fn register(&mut self, store: &mut Store) -> Result<()> {
        if *self.applied.borrow() == Applied::default() {
            return Ok(());
        }
        self.note_forgotten();
        let host = &self.access.host;
        let live = format!("{}{host}", self.access.names.live());
        let known = format!("{}{host}", self.access.names.known());
        let lease = match self.lease {
            Some(lease) => lease,
            None => {
                self.refuse_namesake(store, &live).await?;
                let lease = store.grant(LEASE).await?;
                *self.lease.insert(lease)
            }
        };
        let applied = self.applied.borrow_and_update().clone();
        let record = Record::new(host, &self.kept.instance, self.rotate, unix_seconds(), applied);
        self.written = record.seal(&self.access.key, &live)?;
        let writes = vec![
            (live.clone(), self.written.clone(), Some(lease)),
            (known.clone(), record.seal(&self.access.key, &known)?, None),
        ];
        let written = store.put(writes).await;
        if written.is_err() {
            // The lease may be over.
            self.lease = None;
        }
        written?;
        self.shared.link().has_lease = true;
        Ok(())
    }

    /// Fails if another host is registered by the name of this one.
    async fn refuse_namesake(&self, store: &mut Store, live: &str) -> Result<()> {
        let (Some(value), _) = store.get(live).await? else { return Ok(()) };
        match Record::open(&self.access.key, live, &value.sealed) {
            Ok(record) if record.instance != self.kept.instance => bail!(
                "another host is registered as {}: give each host its own name (name of [keys.etcd])",
                self.access.host
            ),
            _ => Ok(()),
        }
    }

    /// Takes the document in `value`, unless it is refused.
    fn take(&mut self, value: Option<Value>) {
        let Some(value) = value else {
            if !self.is_missing {
                self.is_missing = true;
                warn!(
                    "fleet: etcd has no document of the fleet: the secret of this host stays in force (`tfo fleet init` \
                     makes one, and `tfo fleet restore` writes what a host has kept)"
                );
            }
            return;
        };
        self.is_missing = false;
        let refusal = leaving_no_trace(|| self.try_take(&value)).err().map(|error| format!("{error:#}"));
        let mut link = self.shared.link();
        if let Some(why) = &refusal
            && self.refused != Some(value.revision)
        {
            self.refused = Some(value.revision);
            link.refused += 1;
            warn!(
                "fleet: the document in etcd is refused, and the secret of this host stays in force: {why}"
            );
        }
        link.refusal = refusal;
    }

    fn try_take(&mut self, value: &Value) -> Result<()> {
        let document = Document::open(&self.access.key, &value.name, &value.sealed)?;
        let is_emergency = match self.member.receive(&document) {
            Decision::Known => return Ok(()),
            Decision::Refuse(refusal) => bail!("{refusal}"),
            Decision::Take { is_emergency } => is_emergency,
        };
        let outline = document.outline();
        info!(
            "fleet: generation {}: secret {} is in force{}{}",
            outline.generation,
            outline.in_force,
            outline.next.map(|next| format!(", {next} is to be learnt")).unwrap_or_default(),
            if is_emergency { "; all others have leaked" } else { "" },
        );
        // The controller gets it first: in an emergency, no sick disk may keep a leaked secret in force.
        let text = document.text()?;
        let copy = Document::parse(&text)?;
        // If it fails, the controller has ended.
        drop(self.documents.send(document));
        self.shared.wake();
        let stored = self.kept.store(&self.access.key, &copy, is_emergency);
        let mut link = self.shared.link();
        link.taken = outline;
        link.taken_at = unix_seconds();
        if let Err(error) = stored {
            link.failures += 1;
            warn!("fleet: a start without etcd will not know generation {}: {error:#}", copy.generation);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Describes news, with the fingerprints of secrets.
    fn told(known: &Outline, document: &Document) -> Vec<String> {
        let describe = |news| match news {
            News::Learn(_) => panic!("a fleet waits for a word"),
            News::Expect(secret) => format!("expect {}", secret.fingerprint()),
            News::PutInForce => "put in force".to_owned(),
            News::Purge(secret) => format!("purge {}", secret.fingerprint()),
        };
        news(known, document).into_iter().map(describe).collect()
    }

    #[test]
    fn each_step_is_told() {
        let document = Document::first(1).unwrap();
        let known = document.outline();
        assert!(told(&known, &document).is_empty());
        let document = document.with_next().unwrap();
        let next = document.next.as_ref().unwrap().secret.fingerprint();
        assert_eq!(told(&known, &document), [format!("expect {next}")]);
        let known = document.outline();
        let document = document.enforced(2);
        assert_eq!(told(&known, &document), ["put in force"]);
        let known = document.outline();
        let document = document.emergency(3).unwrap();
        let only = document.in_force.secret.fingerprint();
        assert_eq!(told(&known, &document), [format!("purge {only}")]);
        assert!(told(&document.outline(), &document).is_empty());
    }

    #[test]
    fn steps_that_were_missed_are_told_together() {
        let document = Document::first(1).unwrap();
        let known = document.outline();
        let document = document.with_next().unwrap().enforced(2).with_next().unwrap();
        let [next, in_force] =
            [document.next.as_ref().unwrap(), &document.in_force].map(|entry| entry.secret.fingerprint());
        let all = [format!("expect {in_force}"), "put in force".to_owned(), format!("expect {next}")];
        assert_eq!(told(&known, &document), all);
        let document = document.emergency(3).unwrap().with_next().unwrap().enforced(4);
        let in_force = document.in_force.secret.fingerprint();
        assert_eq!(told(&known, &document), [format!("purge {in_force}")]);
    }
}
