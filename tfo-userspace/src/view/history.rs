//! Samples of each interface's counters over the last hour, in the memory of `tfo run`. `tfo report` draws them.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tfo_common::{class::Class, segment::Family, verdict::Verdict};

use crate::{kernel::tcp_ext::TcpExt, view::counters::Report};

/// Interval between samples.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Time for which samples are kept.
pub const SPAN: Duration = Duration::from_secs(60 * 60);
/// Maximum number of samples of an interface: both ends of the span have one.
const SAMPLES: usize = (SPAN.as_secs() / SAMPLE_INTERVAL.as_secs()) as usize + 1;

/// Counters of an interface at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Totals {
    /// SYNs by [`Family`] and [`Class`] index.
    pub syn: [[u64; Class::COUNT]; Family::COUNT],
    /// SYNs whose cookie was translated.
    pub rewritten: u64,
    /// SYNs with a cookie of a retired key that were passed without translation.
    pub outdated: u64,
    /// SYNs on which a protection acted.
    pub guarded: u64,
    /// Frames passed because they are malformed.
    pub malformed: u64,
    /// Frames passed because they use an unsupported feature.
    pub unsupported: u64,
    /// Outcomes of valid cookies; `None` if they are not reported.
    pub outcomes: Option<Outcomes>,
}

/// Outcomes of valid cookies, in the whole network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Outcomes {
    /// Fast Open connections that the kernel made.
    pub accepted: u64,
    /// SYNs with a valid cookie that the kernel did not take.
    pub refused: u64,
    /// Connections whose saved round trip was measured.
    pub measured: u64,
    /// Sum of the measured round trips, in microseconds.
    pub saved_us: u64,
}

impl From<&Report> for Totals {
    fn from(report: &Report) -> Self {
        Self::of(report, None)
    }
}

impl Totals {
    /// Sums the counters of one service, or of all. Unclassified frames have no service and are always included.
    pub fn of(report: &Report, service: Option<&str>) -> Self {
        let mut totals = Self {
            malformed: report.malformed.iter().map(|row| row.packets).sum(),
            unsupported: report.unsupported.iter().map(|row| row.packets).sum(),
            ..Self::default()
        };
        let is_chosen = |name: &str| service.is_none_or(|service| service == name);
        let services = || report.services.iter().filter(|service| is_chosen(&service.name));
        let rows: Vec<_> = match service {
            None => report.syn.iter().collect(),
            Some(_) => services().flat_map(|service| &service.syn).collect(),
        };
        for row in rows {
            let family = Family::ALL.iter().find(|family| family.name() == row.family);
            let class = Class::ALL.iter().find(|class| class.name() == row.class);
            if let (Some(family), Some(class)) = (family, class) {
                totals.syn[family.index()][class.index()] += row.packets;
            }
            if row.verdict == Verdict::Rewrite.name() {
                totals.rewritten += row.packets;
            } else if row.verdict == Verdict::Pass.name() && row.class == Class::CookieRetired.name() {
                totals.outdated += row.packets;
            }
        }
        totals.guarded = services().flat_map(|service| &service.guards).map(|row| row.acted).sum();
        if report.outcomes {
            let mut outcomes = Outcomes::default();
            for service in services() {
                outcomes.accepted += service.accepted;
                outcomes.refused += service.refused;
                outcomes.measured += service.rtt_saved.connections;
                outcomes.saved_us += (service.rtt_saved.seconds * 1e6).round() as u64;
            }
            totals.outcomes = Some(outcomes);
        }
        totals
    }

    /// Returns the number of SYNs of `class`, of both families.
    pub fn class(&self, class: Class) -> u64 {
        self.syn.iter().map(|classes| classes[class.index()]).sum()
    }

    /// Returns the number of SYNs of `family`.
    pub fn family(&self, family: Family) -> u64 {
        self.syn[family.index()].iter().sum()
    }

    /// Returns the number of SYNs.
    pub fn all(&self) -> u64 {
        Family::ALL.iter().map(|family| self.family(*family)).sum()
    }
}

/// Counters at one moment of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Sample {
    /// Age in milliseconds when the controller answered. Unlike a time of day, it stays right when a clock is set.
    pub age_ms: u64,
    /// Counters of the interface.
    pub totals: Totals,
    /// Kernel's counters of the network namespace; `None` if they could not be read.
    pub kernel: Option<TcpExt>,
}

/// Returns the rate per second of a counter that rose from `earlier` to `later` within `elapsed`. `None` if the counter
/// was reset in between, or no time passed.
pub fn rate(earlier: u64, later: u64, elapsed: Duration) -> Option<f64> {
    let more = later.checked_sub(earlier)?;
    (!elapsed.is_zero()).then(|| more as f64 / elapsed.as_secs_f64())
}

/// Samples of all interfaces of a controller, a bounded number for each.
#[derive(Debug, Default)]
pub struct History(BTreeMap<String, VecDeque<StoredSample>>);

#[derive(Clone, Copy, Debug)]
struct StoredSample {
    at: Instant,
    totals: Totals,
    kernel: Option<TcpExt>,
}

impl History {
    /// Adds a sample of an interface, and drops the oldest if there are too many. A request for the history takes a
    /// sample, too. If that came soon after another one, the next sample replaces it.
    pub fn add(&mut self, at: Instant, report: &Report, kernel: Option<TcpExt>) {
        let samples = self.0.entry(report.interface.clone()).or_default();
        if let [.., before, last] = samples.make_contiguous()
            && last.at.saturating_duration_since(before.at) < SAMPLE_INTERVAL / 2
        {
            samples.pop_back();
        }
        if samples.len() >= SAMPLES {
            samples.pop_front();
        }
        samples.push_back(StoredSample { at, totals: report.into(), kernel });
    }

    /// Returns the samples of `interface`, oldest first, as JSON for [`parse`].
    pub fn json(&self, interface: &str, now: Instant) -> Result<String> {
        let samples = self.0.get(interface).with_context(|| format!("nothing was sampled on {interface}"))?;
        let samples = samples.iter().map(|sample| Sample {
            age_ms: u64::try_from(now.saturating_duration_since(sample.at).as_millis()).unwrap_or(u64::MAX),
            totals: sample.totals,
            kernel: sample.kernel,
        });
        Ok(serde_json::to_string(&samples.collect::<Vec<_>>())?)
    }
}

/// Parses the samples in the controller's answer.
pub fn parse(json: &str) -> Result<Vec<Sample>> {
    serde_json::from_str(json)
        .context("the controller is of another version of tfo: its history can't be read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::protocol::MAX_ANSWER_BYTES,
        view::{
            counters::{GuardRow, ServiceReport, SynRow},
            rtt_saved::RttSaved,
        },
    };

    fn report(packets: u64) -> Report {
        let syn = Family::ALL.iter().flat_map(|family| {
            Class::ALL.iter().map(|class| SynRow {
                family: family.name(),
                class: class.name(),
                verdict: Verdict::Pass.name(),
                packets,
                with_data: 0,
                data_bytes: 0,
            })
        });
        Report { interface: "v0".to_owned(), syn: syn.collect(), ..Report::empty() }
    }

    #[test]
    fn the_last_hour_is_remembered_and_nothing_before_it() {
        let (mut history, start) = (History::default(), Instant::now());
        for n in 0..2 * SAMPLES as u32 {
            history.add(start + SAMPLE_INTERVAL * n, &report(u64::from(n)), None);
        }
        let now = start + SAMPLE_INTERVAL * (2 * SAMPLES as u32 - 1);
        let samples = parse(&history.json("v0", now).unwrap()).unwrap();
        assert_eq!(samples.len(), SAMPLES);
        assert_eq!(Duration::from_millis(samples[0].age_ms), SPAN);
        assert_eq!(samples[0].totals.class(Class::PlainSyn), 2 * SAMPLES as u64);
        assert_eq!(samples.last().unwrap().age_ms, 0);
        assert!(history.json("v1", now).is_err());
    }

    #[test]
    fn asking_again_and_again_pushes_nothing_out() {
        let (mut history, start) = (History::default(), Instant::now());
        for tenth in 0..1000 {
            history.add(start + Duration::from_millis(100) * tenth, &report(u64::from(tenth)), None);
        }
        let samples = parse(&history.json("v0", start + Duration::from_secs(100)).unwrap()).unwrap();
        assert!((30..45).contains(&samples.len()), "{}", samples.len());
        assert_eq!(samples[0].totals.class(Class::PlainSyn), 0);
        assert_eq!(samples.last().unwrap().totals.class(Class::PlainSyn), 2 * 999);
    }

    #[test]
    fn the_longest_history_fits_into_an_answer() {
        let most = u64::MAX / 64;
        let outcomes = Outcomes { accepted: most, refused: most, measured: most, saved_us: most };
        let totals = Totals {
            syn: [[most; Class::COUNT]; Family::COUNT],
            rewritten: most,
            outdated: most,
            guarded: most,
            malformed: most,
            unsupported: most,
            outcomes: Some(outcomes),
        };
        let kernel = TcpExt {
            active: most,
            active_fail: most,
            cookie_reqd: most,
            passive: most,
            passive_alt_key: most,
            passive_fail: most,
            cookies_sent: most,
            cookies_received: most,
            cookies_failed: most,
            listen_overflow: most,
            blackhole: most,
        };
        let sample = StoredSample { at: Instant::now(), totals, kernel: Some(kernel) };
        let history = History([("v0".to_owned(), vec![sample; SAMPLES].into())].into());
        let json = history.json("v0", Instant::now()).unwrap();
        // The answer contains it as a string, with escaped quotation marks.
        assert!(serde_json::to_string(&json).unwrap().len() < MAX_ANSWER_BYTES / 2);
    }

    #[test]
    fn a_service_has_totals_of_its_own() {
        let [web, dns] = [("web", 3), ("dns", 5)].map(|(name, packets)| ServiceReport {
            name: name.to_owned(),
            syn: report(packets).syn,
            accepted: packets,
            refused: 1,
            rtt_saved: RttSaved { connections: 2, seconds: 0.5, buckets: Vec::new() },
            guards: vec![GuardRow { guard: "fair", acted: 3, would: 40 }],
            unfollowed: Vec::new(),
        });
        let mut report = Report { services: vec![web, dns], outcomes: true, ..report(8) };
        assert_eq!(Totals::from(&report).class(Class::CookieCurrent), 2 * 8);
        assert_eq!((Totals::from(&report).guarded, Totals::of(&report, Some("web")).guarded), (6, 3));
        let expected = Outcomes { accepted: 8, refused: 2, measured: 4, saved_us: 1_000_000 };
        assert_eq!(Totals::from(&report).outcomes, Some(expected));
        let dns = Totals::of(&report, Some("dns"));
        assert_eq!((dns.class(Class::CookieCurrent), dns.outcomes.unwrap().accepted), (2 * 5, 5));
        report.outcomes = false;
        assert_eq!(Totals::from(&report).outcomes, None);
    }

    #[test]
    fn only_old_cookies_that_went_on_are_outdated() {
        let mut report = report(0);
        report.syn = Verdict::ALL
            .iter()
            .zip([1, 2, 4, 8])
            .map(|(verdict, packets)| SynRow {
                family: Family::Ipv4.name(),
                class: Class::CookieRetired.name(),
                verdict: verdict.name(),
                packets,
                with_data: 0,
                data_bytes: 0,
            })
            .collect();
        let totals = Totals::from(&report);
        assert_eq!((totals.class(Class::CookieRetired), totals.outdated, totals.rewritten), (15, 1, 2));
    }

    #[test]
    fn a_counter_that_began_anew_has_no_rate() {
        assert_eq!(rate(10, 20, Duration::from_secs(5)), Some(2.0));
        assert_eq!(rate(20, 10, Duration::from_secs(5)), None);
        assert_eq!(rate(10, 20, Duration::ZERO), None);
    }
}
