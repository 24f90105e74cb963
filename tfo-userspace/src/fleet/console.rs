//! The work of `tfo fleet`: it reads and changes the fleet's document, and waits for the hosts. A member of etcd that fails
//! is replaced by the next.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::time::sleep;
use tracing::debug;

use super::{
    access::Access,
    document::{Document, Outline},
    record::Record,
    standing::{Expected, Host, Records, lacking},
    store::Store,
    value::Value,
};
use crate::{
    keys::{schedule::Schedule, secret::Secret},
    model::keys::fingerprint,
    util::time::unix_seconds,
};

/// Interval between two looks at the records.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest time for which a command tries the members of etcd.
const PATIENCE: Duration = Duration::from_secs(15);
/// Time within which hosts answer if all is well.
const PROMPT: Duration = Duration::from_secs(1);
/// Time for which a command waits until hosts have brought a secret into force.
const SETTLE: Duration = Duration::from_secs(10);

/// Connection of a command to the fleet.
pub struct Console {
    access: Access,
    store: Option<Store>,
    /// Number of the member of etcd that is in use.
    at: usize,
}

/// State of a fleet.
pub struct Overview {
    /// Numbers of the document; `None` if etcd has none.
    pub outline: Option<Outline>,
    /// Time since which the secret is in force, in seconds since 1970, by the clock of the host that said so.
    pub since: Option<u64>,
    /// Hosts, by their names.
    pub hosts: Vec<Host>,
}

/// Result of a rotation.
pub struct Rotated {
    /// Numbers of the document now.
    pub outline: Outline,
    /// Names of the hosts that were not waited for, or have not answered.
    pub silent: Vec<String>,
    /// Number of hosts that have answered.
    pub answered: usize,
}

impl Console {
    /// Makes a console for the fleet that `access` leads to.
    pub fn new(access: Access) -> Self {
        Self { access, store: None, at: 0 }
    }

    /// Reads the state of the fleet.
    pub async fn overview(&mut self) -> Result<Overview> {
        let (stored, records) = (self.read().await?, self.records().await?);
        let Some((document, _)) = stored else {
            let expected = Expected { outline: Outline::default(), current: BTreeMap::new() };
            return Ok(Overview { outline: None, since: None, hosts: records.judge(&expected) });
        };
        let expected = Expected {
            outline: document.outline(),
            current: records
                .intervals()
                .into_iter()
                .map(|rotate| (rotate, current(&document.in_force.secret, rotate, unix_seconds())))
                .collect(),
        };
        Ok(Overview {
            outline: Some(document.outline()),
            since: Some(document.in_force.since),
            hosts: records.judge(&expected),
        })
    }

    /// Makes the first document. Fails if etcd has one.
    pub async fn init(&mut self) -> Result<Outline> {
        if let (Some(found), _) = self.value().await? {
            let why = Document::open(&self.access.key, &found.name, &found.sealed).err();
            let why = why.map(|error| format!(", which can't be read: {error:#}")).unwrap_or_default();
            bail!("the fleet has a document already{why}");
        }
        let records = self.records().await?;
        if !records.known.is_empty() {
            bail!(
                "etcd has hosts of this fleet, but no document: `tfo fleet restore` on one of them writes what it has kept. \
                 To begin anew, remove the hosts first (`tfo fleet forget HOST`)"
            );
        }
        let document = Document::first(unix_seconds())?;
        self.write(0, &document).await?.then(|| document.outline()).context("another command was faster")
    }

    /// Writes `kept`, which a host has kept, as a new generation.
    pub async fn restore(&mut self, kept: Document) -> Result<Outline> {
        let (found, _) = self.value().await?;
        let revision = found.as_ref().map_or(0, |value| value.revision);
        let stored = found.map(|value| Document::open(&self.access.key, &value.name, &value.sealed));
        // A value that can't be opened is no document of this fleet.
        let stored = stored.and_then(Result::ok).map(|document| document.outline());
        if let Some(stored) = &stored
            && stored.generation >= kept.generation
        {
            bail!(
                "etcd has generation {}, and this host has kept {}: nothing is to be restored",
                stored.generation,
                kept.generation
            );
        }
        let document = kept.restored(stored.map_or(0, |stored| stored.generation))?;
        self.write(revision, &document)
            .await?
            .then(|| document.outline())
            .context("another command was faster")
    }

    /// Removes a host that will not come back.
    pub async fn forget(&mut self, host: &str) -> Result<()> {
        let live = format!("{}{host}", self.access.names.live());
        let known = format!("{}{host}", self.access.names.known());
        if self.records().await?.live.contains_key(host) {
            bail!("{host} is there: stop its tfo first");
        }
        let mut was_there = false;
        for name in [live, known] {
            was_there |= self.call(async |store| store.remove(&name).await).await?;
        }
        if was_there { Ok(()) } else { bail!("the fleet knows no host {host}") }
    }

    /// Replaces the secret in two steps. Hosts that have not learnt the new one within `wait` are not waited for.
    /// `progress` is told what happens.
    pub async fn rotate(&mut self, wait: Duration, progress: impl Fn(&str)) -> Result<Rotated> {
        let next = self.propose(&progress).await?;
        let began = Instant::now();
        let end = began + wait;
        let mut named = Vec::new();
        let silent = loop {
            let records = self.records().await?;
            let silent = lacking(&records, true, |record| record.applied.learnt >= next);
            if silent.is_empty() || Instant::now() >= end {
                break silent;
            }
            // Hosts that are well answer within a moment.
            if silent != named && began.elapsed() > PROMPT {
                progress(&format!("waiting for {}", silent.join(", ")));
                named = silent;
            }
            sleep(LOOK_EVERY).await;
        };
        if !silent.is_empty() {
            progress(&format!("not waiting any longer for {}", silent.join(", ")));
        }
        let outline = self.enforce(next).await?;
        progress(&format!("generation {}: secret {next} is in force", outline.generation));
        let late = self.settle(SETTLE, false, |record| record.applied.in_force >= next).await?;
        let mut all: Vec<_> = silent.into_iter().chain(late.0).collect();
        all.sort();
        all.dedup();
        Ok(Rotated { outline, silent: all, answered: late.1 })
    }

    /// Replaces the secret at once, since it has leaked. Waits up to `wait` for the hosts.
    pub async fn emergency(&mut self, wait: Duration, progress: impl Fn(&str)) -> Result<Rotated> {
        let outline = loop {
            let (document, revision) = self.existing().await?;
            let document = document.emergency(unix_seconds())?;
            if self.write(revision, &document).await? {
                break document.outline();
            }
        };
        progress(&format!("generation {}: only secret {} is in force", outline.generation, outline.in_force));
        let (silent, answered) = self
            .settle(wait, true, |record| {
                let applied = &record.applied;
                applied.in_force >= outline.in_force && applied.forgotten >= outline.forget_below
            })
            .await?;
        Ok(Rotated { outline, silent, answered })
    }

    /// Writes a secret that all hosts are to learn, or takes up one that is there. Returns its number.
    async fn propose(&mut self, progress: &impl Fn(&str)) -> Result<u64> {
        loop {
            let (document, revision) = self.existing().await?;
            if let Some(next) = &document.next {
                progress(&format!("secret {} is waiting already: taking up that rotation", next.id));
                return Ok(next.id);
            }
            let document = document.with_next()?;
            let outline = document.outline();
            if self.write(revision, &document).await? {
                progress(&format!(
                    "generation {}: secret {} is to be learnt",
                    outline.generation,
                    outline.newest()
                ));
                return Ok(outline.newest());
            }
        }
    }

    /// Brings secret `next` into force, unless it is already.
    async fn enforce(&mut self, next: u64) -> Result<Outline> {
        loop {
            let (document, revision) = self.existing().await?;
            let outline = document.outline();
            if outline.in_force == next {
                return Ok(outline);
            }
            if outline.next != Some(next) {
                bail!(
                    "another command has changed the fleet meanwhile: secret {} is in force, and secret {next} never will \
                     be",
                    outline.in_force
                );
            }
            let document = document.enforced(unix_seconds());
            if self.write(revision, &document).await? {
                return Ok(document.outline());
            }
        }
    }

    /// Waits until each host `has` it, but no longer than `wait`. Returns the names of those that have not, with those that
    /// are gone if `with_gone`, and the number of the others.
    async fn settle(
        &mut self,
        wait: Duration,
        with_gone: bool,
        has: impl Fn(&Record) -> bool,
    ) -> Result<(Vec<String>, usize)> {
        let end = Instant::now() + wait;
        loop {
            let records = self.records().await?;
            let lacking = lacking(&records, with_gone, &has);
            // Hosts that are gone will not answer.
            let live = lacking.iter().filter(|name| records.live.contains_key(*name)).count();
            if live == 0 || Instant::now() >= end {
                let answered = records.live.values().flatten().filter(|record| has(record)).count();
                return Ok((lacking, answered));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Reads the document. Fails if there is none.
    async fn existing(&mut self) -> Result<(Document, i64)> {
        self.read()
            .await?
            .context("the fleet has no document: `tfo fleet init` makes one, once for all hosts")
    }

    /// Reads the document, with the revision of its last change.
    async fn read(&mut self) -> Result<Option<(Document, i64)>> {
        let (Some(value), _) = self.value().await? else { return Ok(None) };
        let document = Document::open(&self.access.key, &value.name, &value.sealed);
        Ok(Some((document.with_context(|| format!("{} in etcd", value.name))?, value.revision)))
    }

    async fn value(&mut self) -> Result<(Option<Value>, i64)> {
        let name = self.access.names.document();
        self.call(async |store| store.get(&name).await).await
    }

    /// Writes the document if its last change is of `revision`. Returns false if somebody else has changed it.
    async fn write(&mut self, revision: i64, document: &Document) -> Result<bool> {
        let name = self.access.names.document();
        let sealed = document.seal(&self.access.key, &name)?;
        let swapped = self.call(async |store| store.swap(&name, revision, sealed.clone()).await).await?;
        if swapped {
            return Ok(true);
        }
        // The answer to an earlier try may have been lost.
        Ok(self.read().await?.is_some_and(|(stored, _)| stored.outline() == document.outline()))
    }

    async fn records(&mut self) -> Result<Records> {
        let (live, known) = (self.access.names.live(), self.access.names.known());
        Ok(Records { live: self.list(&live).await?, known: self.list(&known).await? })
    }

    async fn list(&mut self, prefix: &str) -> Result<BTreeMap<String, Result<Record, String>>> {
        let values = self.call(async |store| store.list(prefix).await).await?;
        let read = |value: Value| {
            let host = value.name.strip_prefix(prefix)?.to_owned();
            let record = Record::open(&self.access.key, &value.name, &value.sealed);
            Some((host, record.map_err(|error| format!("its record: {error:#}"))))
        };
        Ok(values.into_iter().filter_map(read).collect())
    }

    /// Carries out a call, by the next member of etcd if one fails.
    async fn call<T>(&mut self, call: impl AsyncFn(&mut Store) -> Result<T>) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        let mut failures = BTreeMap::new();
        loop {
            let endpoint = &self.access.endpoints[self.at];
            let store = match self.store.take() {
                Some(store) => Ok(store),
                None => Store::connect(&self.access, endpoint).await,
            };
            let outcome = match store {
                Ok(mut store) => {
                    let outcome = call(&mut store).await;
                    if outcome.is_ok() {
                        self.store = Some(store);
                    }
                    outcome
                }
                Err(error) => Err(error),
            };
            let error = match outcome {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            debug!("{endpoint}: {error:#}");
            failures.insert(endpoint.clone(), format!("{endpoint}: {error:#}"));
            self.at = (self.at + 1) % self.access.endpoints.len();
            let has_tried_all = failures.len() == self.access.endpoints.len();
            if has_tried_all && (Instant::now() >= end || cfg!(not(feature = "etcd"))) {
                let failures: Vec<_> = failures.into_values().collect();
                return Err(anyhow!("no member of etcd answers: {}", failures.join("; ")));
            }
            if has_tried_all {
                sleep(LOOK_EVERY * 4).await;
            }
        }
    }
}

/// Returns the fingerprints of the keys of `secret` that may be current at `now`, if keys change every `rotate` seconds.
fn current(secret: &Secret, rotate: u64, now: u64) -> Vec<String> {
    let Ok(schedule) = Schedule::new(Duration::from_secs(rotate)) else { return Vec::new() };
    let number = schedule.number(now);
    let numbers = number.saturating_sub(1)..=number.saturating_add(1);
    numbers.map(|number| fingerprint(secret.key(number))).collect()
}
