//! Floods: decides when the protection `answer` engages and lets go, and keeps its listeners marked.
//!
//! A flood has come when a listener's SYN queue is more than half full, or when SYNs without a good cookie exceed a
//! configured rate. While they are answered, the queue stays empty. So a flood is over when few handshakes remain
//! unfinished: the rate of these SYNs, less that of the ACKs by which the kernel has found a SYN cookie right.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tfo_common::{class::Class, counters::Counters, listener::Record, verdict::Verdict};
use tracing::{debug, info, warn};

use crate::{
    control::FOLDER,
    dataplane::Datapath,
    kernel::{
        clock::jiffies_per_second,
        interface::answers_as,
        listeners::Walk,
        syncookies::{Guardian, Journal, host},
        tcp_ext::TcpExt,
    },
    model::{
        guards::Answer,
        services::{Named, Services},
    },
    view::metrics::Answering,
};

/// Age in seconds at which the mark of a listener is made anew: well before the program stops to rely on it
/// ([`MARK_SECONDS`](tfo_common::answer::MARK_SECONDS)).
const MARK_AGAIN: u32 = 30;

/// Time after which it is tried again to mark a listener that has no mark after all.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Shortest time over which a rate is measured.
const SHORTEST: Duration = Duration::from_millis(150);

/// Share of a listener's backlog that unfinished handshakes may take in each second, when nothing else is configured: one
/// in so many.
const BACKLOG_SHARE: f64 = 4.0;

/// Watch over the services that have the protection `answer`.
pub struct Floods {
    gauges: BTreeMap<String, Gauge>,
    /// The process that writes `tcp_syncookies` back if we die.
    guardian: Option<Guardian>,
    /// Time of the last step, and the number of right SYN cookies until then.
    last: Option<(Instant, u64)>,
    /// Time of the last try to mark the listeners of an address and port.
    tried: HashMap<(IpAddr, u16), Instant>,
    /// Reason why the last step failed. The same reason is logged once.
    failure: Option<String>,
    /// Services that have engaged or let go, in the order of time.
    changes: Vec<(String, bool)>,
}

/// State of one service.
#[derive(Clone, Debug, Default)]
struct Gauge {
    /// Number of SYNs without a good cookie so far; `None` before the first reading.
    unproved: Option<u64>,
    is_engaged: bool,
    /// Number of times that it engaged.
    times: u64,
    /// Time since which the flood has been over.
    quiet: Option<Instant>,
}

/// Measurement of one service since the last step.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    /// Number of SYNs without a good cookie in a second.
    unproved: f64,
    /// Number of such SYNs to all engaged services in a second, less the right SYN cookies that came back.
    unfinished: f64,
    /// Number of handshakes in the fullest SYN queue, and its limit.
    fullest: (u32, u32),
    /// Limit on the handshakes of all its listeners together.
    backlog: u32,
}

impl Floods {
    /// Begins the watch. The services in `engaged` were engaged by an earlier controller.
    pub fn new(engaged: BTreeSet<String>) -> Self {
        let gauge = |name| (name, Gauge { is_engaged: true, ..Gauge::default() });
        Self {
            gauges: engaged.into_iter().map(gauge).collect(),
            guardian: None,
            last: None,
            tried: HashMap::new(),
            failure: None,
            changes: Vec::new(),
        }
    }

    /// Returns the services whose SYNs are to be answered, and has marked their listeners. `walk` reads the listeners, and
    /// is loaded for it. A failure is logged, and lets all go.
    pub fn step<'a>(
        &mut self,
        services: &Services,
        walk: &mut Option<Walk>,
        datapaths: impl Iterator<Item = &'a mut Datapath>,
    ) -> BTreeSet<String> {
        let watched: Vec<&Named> = services.named().iter().filter(|named| named.answers()).collect();
        if watched.is_empty() {
            *self = Self::new(BTreeSet::new());
            return BTreeSet::new();
        }
        self.gauges.retain(|name, _| watched.iter().any(|named| named.name == *name));
        // A rate over a shorter time says little.
        if self.last.is_some_and(|(at, _)| at.elapsed() < SHORTEST) {
            return self.engaged();
        }
        match self.measure(&watched, walk, datapaths) {
            Ok(()) => self.failure = None,
            Err(error) => {
                let failure = format!("{error:#}");
                if self.failure.as_ref() != Some(&failure) {
                    warn!("SYNs are not answered: {failure}");
                }
                self.failure = Some(failure);
                self.gauges.values_mut().for_each(|gauge| gauge.is_engaged = false);
            }
        }
        self.engaged()
    }

    fn engaged(&self) -> BTreeSet<String> {
        let engaged = self.gauges.iter().filter(|(_, gauge)| gauge.is_engaged);
        engaged.map(|(name, _)| name.clone()).collect()
    }

    /// Takes the services that have engaged or let go since the last call, in the order of time.
    pub fn take_changes(&mut self) -> Vec<(String, bool)> {
        std::mem::take(&mut self.changes)
    }

    /// Returns the state of each service.
    pub fn states(&self) -> Vec<Answering> {
        let state = |(name, gauge): (&String, &Gauge)| Answering {
            service: name.clone(),
            is_engaged: gauge.is_engaged,
            engaged: gauge.times,
        };
        self.gauges.iter().map(state).collect()
    }

    fn measure<'a>(
        &mut self,
        watched: &[&Named],
        walk: &mut Option<Walk>,
        datapaths: impl Iterator<Item = &'a mut Datapath>,
    ) -> Result<()> {
        let mut unproved: BTreeMap<String, u64> = BTreeMap::new();
        let (mut interfaces, host) = (Vec::new(), host());
        for datapath in datapaths {
            let index = datapath.interface.index;
            datapath.set_host(host.at(answers_as(&datapath.interface)))?;
            interfaces.push(index);
            for (name, counters) in datapath.counted(|name| watched.iter().any(|named| named.name == name))? {
                *unproved.entry(name).or_default() += count(&counters);
            }
        }
        if walk.is_none() {
            *walk = Some(Walk::load()?);
        }
        let walk = walk.as_mut().context("there is no reader of listeners")?;
        walk.load_marker()?;
        let records = walk.read()?;
        let now = Instant::now();
        let right = TcpExt::read()?.cookies_received;
        let (before, right_before) = self.last.replace((now, right)).unwrap_or((now, right));
        let seconds = now.duration_since(before).as_secs_f64().max(0.001);
        let mut rates = BTreeMap::new();
        for (name, count) in unproved {
            let gauge = self.gauges.entry(name.clone()).or_default();
            // A reload begins to count anew.
            let more = gauge.unproved.replace(count).map_or(0, |before| count.saturating_sub(before));
            rates.insert(name, more as f64 / seconds);
        }
        let engaged =
            rates.iter().filter(|(name, _)| self.gauges.get(*name).is_some_and(|gauge| gauge.is_engaged));
        let finished = right.saturating_sub(right_before) as f64 / seconds;
        let unfinished = engaged.map(|(_, rate)| rate).sum::<f64>() - finished;
        for named in watched {
            let Some(answer) = named.guards.answer else { continue };
            let its: Vec<&Record> = records.iter().filter(|record| is_its(named, record)).collect();
            let measured = Measured {
                unproved: rates.get(&named.name).copied().unwrap_or(0.0),
                unfinished,
                fullest: its
                    .iter()
                    .map(|record| (record.syn_queue, record.accept_limit))
                    .max_by_key(|(waiting, limit)| u64::from(*waiting) * 1000 / u64::from(*limit).max(1))
                    .unwrap_or((0, 0)),
                backlog: its.iter().map(|record| record.accept_limit).sum(),
            };
            let gauge = self.gauges.entry(named.name.clone()).or_default();
            let was_engaged = gauge.is_engaged;
            gauge.step(&named.name, answer, measured, now);
            if gauge.is_engaged != was_engaged {
                self.changes.push((named.name.clone(), gauge.is_engaged));
            }
        }
        self.mark(watched, walk, &records, &interfaces)
    }

    /// Marks the listeners of engaged services whose mark gets old.
    fn mark(
        &mut self,
        watched: &[&Named],
        walk: &mut Walk,
        records: &[Record],
        interfaces: &[u32],
    ) -> Result<()> {
        let hz = u32::try_from(jiffies_per_second()?)?;
        let is_engaged = |named: &&&Named| {
            named.answers_indeed() && self.gauges.get(&named.name).is_some_and(|gauge| gauge.is_engaged)
        };
        let engaged: Vec<_> = watched.iter().filter(is_engaged).collect();
        let is_old = |record: &&Record| record.overflow_age(hz).is_none_or(|age| age > MARK_AGAIN * hz);
        self.tried.retain(|_, at| at.elapsed() < TRY_AGAIN);
        let was_tried = |record: &&Record| self.tried.contains_key(&(record.local_address(), record.port));
        let is_due = |record: &&Record| {
            is_old(record) && !was_tried(record) && engaged.iter().any(|named| is_its(named, record))
        };
        let due: Vec<_> = records.iter().filter(is_due).collect();
        if due.is_empty() || interfaces.is_empty() {
            return Ok(());
        }
        if self.guardian.as_mut().is_none_or(|guardian| !guardian.is_there()) {
            self.guardian = Some(Guardian::start(FOLDER.as_ref())?);
        }
        let marked = Journal::new(FOLDER.as_ref())?.forced(|| {
            // A listener that is bound to an interface is found through that one only, and fails on the others.
            for (record, index) in
                due.iter().flat_map(|record| interfaces.iter().map(move |index| (record, index)))
            {
                if let Err(error) = walk.mark(record, *index) {
                    debug!("{} port {}: {error:#}", record.local_address(), record.port);
                }
            }
        })?;
        // Another tfo marks its own listeners right now. The next step is soon.
        let Some(()) = marked else { return Ok(()) };
        let after = walk.read()?;
        let failed: Vec<_> =
            after.iter().filter(is_due).map(|record| (record.local_address(), record.port)).collect();
        for (address, port) in failed {
            info!("{address} port {port}: not marked, so its SYNs are left to the kernel");
            self.tried.insert((address, port), Instant::now());
        }
        Ok(())
    }
}

/// Whether `record` is a listener of the service `named`.
pub(super) fn is_its(named: &Named, record: &Record) -> bool {
    let address = Some(record.local_address()).filter(|address| !address.is_unspecified());
    named.is_at(address, record.port)
}

/// Number of SYNs that the kernel has served as ordinary ones, or would have.
fn count(counters: &Counters) -> u64 {
    let sum = |class: Class, verdicts: &[Verdict]| -> u64 {
        verdicts.iter().map(|verdict| counters.verdict(class, *verdict)).sum()
    };
    let of_class = |class: &Class| match class {
        Class::CookieCurrent | Class::CookieBackup => sum(*class, &[Verdict::Hide, Verdict::Answer]),
        Class::PlainSyn
        | Class::OptionIgnored
        | Class::CookieRequest
        | Class::CookieRetired
        | Class::CookieUnknown
        | Class::CookieBadLength => sum(*class, &[Verdict::Pass, Verdict::Hide, Verdict::Answer]),
    };
    Class::ALL.iter().map(of_class).sum()
}

impl Gauge {
    /// Engages or lets go, as `measured` demands.
    fn step(&mut self, name: &str, answer: Answer, measured: Measured, now: Instant) {
        let (waiting, limit) = measured.fullest;
        let default = f64::from(measured.backlog.max(1)) / BACKLOG_SHARE;
        let most = answer.above.map_or(default, f64::from);
        let is_above = answer.above.is_some_and(|above| measured.unproved > f64::from(above));
        let is_filling = waiting > 1 && waiting > limit / 2;
        if !self.is_engaged {
            if !answer.waits || is_above || is_filling {
                (self.is_engaged, self.quiet) = (true, None);
                self.times += 1;
                let unproved = measured.unproved;
                info!(
                    "{name}: SYNs without a good cookie are answered from now on ({unproved:.0} a second, SYN queue \
                     {waiting} of {limit})"
                );
            }
            return;
        }
        let is_quiet = measured.unproved < most / 2.0 || measured.unfinished < most / 2.0;
        if !answer.waits || !is_quiet || is_filling {
            self.quiet = None;
        } else if now.duration_since(*self.quiet.get_or_insert(now)) >= answer.release {
            (self.is_engaged, self.quiet) = (false, None);
            info!("{name}: SYNs are not answered any more, since the flood is over");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Answer =
        Answer { waits: true, above: None, release: Duration::from_secs(60), dry_run: false };
    const CALM: Measured = Measured { unproved: 0.0, unfinished: 0.0, fullest: (0, 128), backlog: 128 };

    fn after(gauge: &mut Gauge, answer: Answer, measured: Measured, at: Instant) -> bool {
        gauge.step("web", answer, measured, at);
        gauge.is_engaged
    }

    #[test]
    fn a_filling_queue_or_a_configured_rate_engages() {
        let now = Instant::now();
        let engages = |answer, measured| after(&mut Gauge::default(), answer, measured, now);
        assert!(!engages(WAITS, CALM));
        assert!(!engages(WAITS, Measured { unproved: 1e6, ..CALM }), "many clients are no flood");
        assert!(!engages(WAITS, Measured { fullest: (64, 128), ..CALM }));
        assert!(engages(WAITS, Measured { fullest: (65, 128), ..CALM }));
        assert!(!engages(WAITS, Measured { fullest: (1, 1), ..CALM }), "one handshake is no flood");
        let above = Answer { above: Some(100), ..WAITS };
        assert!(!engages(above, Measured { unproved: 100.0, ..CALM }));
        assert!(engages(above, Measured { unproved: 101.0, ..CALM }));
        assert!(engages(Answer { waits: false, ..WAITS }, CALM));
    }

    #[test]
    fn it_lets_go_once_the_flood_has_been_over_for_the_whole_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut gauge = Gauge { is_engaged: true, ..Gauge::default() };
        let flood = Measured { unproved: 1000.0, unfinished: 900.0, ..CALM };
        assert!(after(&mut gauge, WAITS, CALM, at(0)));
        assert!(after(&mut gauge, WAITS, flood, at(59)), "it comes again");
        assert!(after(&mut gauge, WAITS, CALM, at(60)));
        // Many clients that finish their handshakes are no flood.
        assert!(after(&mut gauge, WAITS, Measured { unproved: 1000.0, unfinished: 15.0, ..CALM }, at(119)));
        assert!(!after(&mut gauge, WAITS, CALM, at(120)));
        let mut always = Gauge { is_engaged: true, ..Gauge::default() };
        for seconds in [0, 100, 1000] {
            assert!(after(&mut always, Answer { waits: false, ..WAITS }, CALM, at(seconds)));
        }
    }
}
