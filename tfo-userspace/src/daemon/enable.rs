//! Fast Open on the listeners of services with `fast_open`, whatever their servers ask for.
//!
//! A cheap look shows whether a listener lacks what its service asks for. Only then, or when the configuration or the interfaces
//! have changed, a thread goes through all processes, finds the ones that hold the listeners, and changes these.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use tfo_common::listener::Record;
use tracing::{info, warn};

use super::wake::Wake;
use crate::{
    control::FOLDER,
    kernel::{
        listeners::{Demand, Outcome, Party, Walk, Wish, carry_out, has_changed_any},
        sysctl::{SERVER, longest_queue, read_mode},
    },
    model::services::Services,
};

/// Interval between two looks at the listeners. A new listener is to have Fast Open within a second.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Advice where a process does not let its listener be changed.
const ADVICE: &str =
    "clients get ordinary handshakes there; a service needs the drop-in fast-open.conf (docs/enable.md)";

/// State of the listeners that this controller cares for.
#[derive(Default)]
pub struct Enabler {
    /// Desired state at the last step; `None` before the first.
    wanted: Option<Wanted>,
    /// Whether the listeners have to be gone through.
    is_due: bool,
    /// Interfaces that this controller has, or has had and for which something may be left to undo.
    interfaces: BTreeSet<String>,
    looked: Option<Instant>,
    /// Channel of the thread that goes through the listeners.
    working: Option<Receiver<Result<Vec<Outcome>>>>,
    /// Retry after a failure that concerns all listeners.
    retry: Option<Retry>,
    /// Listeners that could not be changed, by the cookies of their sockets.
    failed: HashMap<u64, Retry>,
    /// Addresses of listeners that could not be changed. Each is logged once.
    refused: BTreeSet<SocketAddr>,
    /// Reason why Fast Open is off for all listeners. The same reason is logged once.
    failure: Option<String>,
}

/// Desired state: services, and the interfaces of the controller.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    services: Services,
    interfaces: BTreeSet<String>,
}

/// Retry of a change that failed, with growing pauses.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
}

impl Retry {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);

    /// Returns the state after a failure: the next pause is twice as long.
    fn after(earlier: Option<Self>) -> Self {
        let pause = earlier.map_or(Self::FIRST, |earlier| (earlier.pause * 2).min(Self::LONGEST));
        Self { at: Instant::now() + pause, pause }
    }

    fn waits(self) -> bool {
        self.at > Instant::now()
    }
}

impl Enabler {
    /// Brings the listeners to what `services` ask for, on behalf of `interfaces`. Call it in each step. The work is done by
    /// another thread, which ends with `wake`. `walk` reads the listeners, and is loaded for it.
    pub fn step(
        &mut self,
        services: &Services,
        interfaces: BTreeSet<String>,
        walk: &mut Option<Walk>,
        wake: &Wake,
    ) {
        self.take_outcomes();
        if self.working.is_some() {
            return;
        }
        let is_new = |wanted: &Wanted| wanted.services != *services || wanted.interfaces != interfaces;
        if self.wanted.as_ref().is_none_or(is_new) {
            self.interfaces.extend(interfaces.iter().cloned());
            self.failed.clear();
            self.refused.clear();
            (self.retry, self.failure) = (None, None);
            // What an earlier controller has changed may have to be undone.
            self.is_due = services.has_fast_open() || has_changed_any(FOLDER.as_ref()).unwrap_or(true);
            self.wanted = Some(Wanted { services: services.clone(), interfaces });
        }
        if self.retry.is_some_and(Retry::waits) {
            return;
        }
        if !self.is_due && services.has_fast_open() && self.is_look_due() {
            match self.look(services, walk) {
                Ok(is_due) => self.is_due = is_due,
                Err(error) => self.fail(&error),
            }
        }
        if self.is_due {
            self.begin(wake);
        }
    }

    fn is_look_due(&mut self) -> bool {
        let is_due = self.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        if is_due {
            self.looked = Some(Instant::now());
        }
        is_due
    }

    /// Whether a listener has a shorter queue than its service asks for, and it is time to change that.
    fn look(&self, services: &Services, walk: &mut Option<Walk>) -> Result<bool> {
        if walk.is_none() {
            *walk = Some(Walk::load()?);
        }
        let records = walk.as_mut().context("there is no reader of listeners")?.read()?;
        let longest = longest_queue()?;
        let lacks = |record: &Record| {
            let address = SocketAddr::new(record.local_address(), record.port);
            services.fast_open_at(address).is_some_and(|queue| record.fast_open_limit < queue.min(longest))
        };
        let waits = |record: &Record| self.failed.get(&record.cookie).copied().is_some_and(Retry::waits);
        Ok(records.iter().any(|record| lacks(record) && !waits(record)))
    }

    /// Begins to go through the listeners, on a thread of its own: it looks at every descriptor of the host.
    fn begin(&mut self, wake: &Wake) {
        let Some(wanted) = self.wanted.clone() else { return };
        let (sender, receiver) = channel();
        let (all, wake) = (self.interfaces.clone(), wake.clone());
        let work = move || {
            // The controller may be gone.
            drop(sender.send(apply(&wanted, &all)));
            wake.up();
        };
        match thread::Builder::new().name("enabler".to_owned()).spawn(work) {
            Ok(_) => self.working = Some(receiver),
            Err(error) => self.fail(&anyhow!("cannot start a thread: {error}")),
        }
    }

    /// Takes the outcomes of the thread, if it has ended.
    fn take_outcomes(&mut self) {
        let Some(working) = &self.working else { return };
        let outcomes = match working.try_recv() {
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => Err(anyhow!("the thread for it has failed")),
            Ok(outcomes) => outcomes,
        };
        self.working = None;
        match outcomes {
            Ok(outcomes) => self.note(&outcomes),
            Err(error) => self.fail(&error),
        }
    }

    /// Logs outcomes, and takes note of the listeners that have to be tried again.
    fn note(&mut self, outcomes: &[Outcome]) {
        (self.is_due, self.retry) = (false, None);
        let earlier = std::mem::take(&mut self.failed);
        for outcome in outcomes {
            let Some(failure) = &outcome.failure else {
                self.refused.remove(&outcome.address);
                log(outcome);
                continue;
            };
            self.failed.insert(outcome.cookie, Retry::after(earlier.get(&outcome.cookie).copied()));
            // Members of a group have one address, and a process that was started again has another number.
            if self.refused.insert(outcome.address) {
                warn!("{}: the Fast Open queue cannot be set: {failure}: {ADVICE}", outcome.name());
            }
        }
        // Another controller may have an interface that this one has no more.
        if outcomes.iter().all(|outcome| outcome.failure.is_none())
            && let Some(wanted) = &self.wanted
        {
            self.interfaces.clone_from(&wanted.interfaces);
        }
        let is_in_vain = outcomes.iter().any(|outcome| outcome.after.is_some_and(|after| after > 0))
            && read_mode().is_ok_and(|bits| bits & SERVER == 0);
        self.say(is_in_vain.then(|| "net.ipv4.tcp_fastopen lacks bit 0x2: `tfo check --fix`".to_owned()));
    }

    fn fail(&mut self, error: &anyhow::Error) {
        self.retry = Some(Retry::after(self.retry));
        self.say(Some(format!("{error:#}")));
    }

    fn say(&mut self, failure: Option<String>) {
        if self.failure != failure
            && let Some(failure) = &failure
        {
            warn!("fast_open of services: {failure}");
        }
        self.failure = failure;
    }

    /// Takes back all that this controller has changed, and waits until that is done.
    pub fn undo(&mut self) {
        match self.working.take().map(|working| working.recv()) {
            Some(Ok(Ok(outcomes))) => self.note(&outcomes),
            Some(Ok(Err(error))) => self.fail(&error),
            // The thread has panicked, which is in the log.
            Some(Err(_)) | None => {}
        }
        if !has_changed_any(FOLDER.as_ref()).unwrap_or(true) {
            return;
        }
        let nothing = Wanted { services: Services::default(), interfaces: BTreeSet::new() };
        match apply(&nothing, &self.interfaces) {
            Ok(outcomes) => self.note(&outcomes),
            Err(error) => warn!("Fast Open stays on where tfo has turned it on: {error:#}"),
        }
    }
}

/// Takes back what the controller of `interface` has changed, for which none runs.
pub fn forget(interface: &str) -> Result<()> {
    if !has_changed_any(FOLDER.as_ref())? {
        return Ok(());
    }
    let nothing = Wanted { services: Services::default(), interfaces: BTreeSet::new() };
    let outcomes = apply(&nothing, &[interface.to_owned()].into())?;
    let failed = outcomes.iter().find_map(|outcome| Some((outcome.name(), outcome.failure.as_ref()?)));
    failed.map_or(Ok(()), |(name, failure)| Err(anyhow!("Fast Open stays on at {name}: {failure}")))
}

/// Brings all listeners to what is wanted. An interface of `all` that the controller does not have any more wants nothing.
fn apply(wanted: &Wanted, all: &BTreeSet<String>) -> Result<Vec<Outcome>> {
    let of_services =
        |address: SocketAddr| wanted.services.fast_open_at(address).map_or(Wish::Nothing, Wish::Queue);
    let nothing = |_: SocketAddr| Wish::Nothing;
    let demand = |interface: &String| {
        let wish: &dyn Fn(SocketAddr) -> Wish =
            if wanted.interfaces.contains(interface) { &of_services } else { &nothing };
        Demand { party: Party::Interface(interface.clone()), wish }
    };
    carry_out(FOLDER.as_ref(), &all.iter().map(demand).collect::<Vec<_>>(), true)
}

/// Logs a change.
fn log(outcome: &Outcome) {
    let (Some(before), Some(after), Some(server)) = (outcome.before, outcome.after, outcome.server) else {
        return;
    };
    if before == after {
        return;
    }
    let name = outcome.name();
    match after {
        0 => info!("{name}: Fast Open is off again, since its server does not ask for it"),
        after if after == server => {
            info!("{name}: the Fast Open queue is {after} again, as its server asked for")
        }
        after => {
            info!("{name}: Fast Open is on, with a queue of {after} (its server asked for {server})");
        }
    }
}
