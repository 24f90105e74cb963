//! State of the screen, without input or output, and the rates between two successive looks.

use std::{collections::VecDeque, time::Instant};

use serde::Serialize;
use tfo_common::{class::Class, segment::Family};

use crate::{
    fleet::feed::State,
    kernel::tcp_ext::TcpExt,
    view::{
        counters::Report,
        history::{Totals, rate},
        key_listing::Generation,
    },
};

/// Number of rates kept for the sparklines, one for each second: more than a terminal has columns.
const TRAIL: usize = 512;

/// Source prefix with its Fast Open SYNs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prefix {
    /// Text of the prefix, such as `192.0.2.0/24`.
    pub prefix: String,
    /// Requests for a cookie.
    pub requests: u64,
    /// Cookies of known keys.
    pub valid: u64,
    /// Cookies of unknown keys, or of a wrong length.
    pub unknown: u64,
}

/// Result of one look at an interface.
#[derive(Clone, Debug)]
pub struct Look {
    /// Time of the look.
    pub at: Instant,
    /// Counters of the interface.
    pub report: Report,
    /// Kernel's counters; `None` if the interface is in another network namespace, or they can't be read.
    pub kernel: Option<TcpExt>,
    /// Whether a controller (`tfo run`) is running.
    pub controller: bool,
    /// Keys in the map.
    pub keys: Vec<Generation>,
    /// Result of comparing the keys in map, kernel and schedule; `None` if only the map is known.
    pub in_step: Option<bool>,
    /// Seconds until a new secret of the fleet is in force; `None` if there is none.
    pub next_secret_in: Option<u64>,
    /// Source prefixes, the one with most SYNs first; `None` if they are not counted.
    pub prefixes: Option<Vec<Prefix>>,
    /// Latest events, newest first, a line each; `None` if no controller answers.
    pub events: Option<Vec<String>>,
    /// State of this host in its fleet; `None` if the keys do not come from etcd, or no controller answers.
    pub fleet: Option<State>,
}

impl Look {
    /// Sums the counters of one service, or of all.
    pub fn totals(&self, service: Option<&str>) -> Totals {
        Totals::of(&self.report, service)
    }

    /// Returns the numbers of accepted and refused cookies, from outcomes of connections or else from the kernel's
    /// counters. The latter do not tell services apart, so they are used only for all services together.
    pub fn accepted_and_refused(&self, service: Option<&str>) -> Option<[u64; 2]> {
        let kernel = self.kernel.filter(|_| service.is_none());
        let outcomes = self.totals(service).outcomes.map(|outcomes| [outcomes.accepted, outcomes.refused]);
        outcomes.or_else(|| kernel.map(|kernel| [kernel.passive, kernel.passive_fail]))
    }
}

/// Rates per second between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// SYNs by [`Class`] index.
    pub classes: [f64; Class::COUNT],
    /// SYNs by [`Family`] index.
    pub families: [f64; Family::COUNT],
    /// Cookies that were translated.
    pub rewritten: f64,
    /// SYNs on which a protection acted.
    pub guarded: f64,
    /// Malformed frames.
    pub malformed: f64,
    /// Frames that are not supported.
    pub unsupported: f64,
    /// Fast Open connections that the kernel made; `None` if neither outcomes nor the kernel's counters are available.
    pub accepted: Option<f64>,
    /// Valid cookies that the kernel did not take; `None` as for `accepted`.
    pub refused: Option<f64>,
}

impl Rates {
    /// Computes the rates of one service, or of all; `None` if the interface changed or the counters were reset.
    pub fn between(earlier: &Look, later: &Look, service: Option<&str>) -> Option<Self> {
        if earlier.report.interface != later.report.interface || earlier.report.since != later.report.since {
            return None;
        }
        let elapsed = later.at.saturating_duration_since(earlier.at);
        let (before, after) = (earlier.totals(service), later.totals(service));
        let of = |count: &dyn Fn(&Totals) -> u64| rate(count(&before), count(&after), elapsed);
        let mut rates = Self {
            rewritten: of(&|totals| totals.rewritten)?,
            guarded: of(&|totals| totals.guarded)?,
            malformed: of(&|totals| totals.malformed)?,
            unsupported: of(&|totals| totals.unsupported)?,
            ..Self::default()
        };
        for class in Class::ALL {
            rates.classes[class.index()] = of(&|totals| totals.class(*class))?;
        }
        for family in Family::ALL {
            rates.families[family.index()] = of(&|totals| totals.family(*family))?;
        }
        if let (Some([accepted, refused]), Some([accepted_now, refused_now])) =
            (earlier.accepted_and_refused(service), later.accepted_and_refused(service))
        {
            rates.accepted = rate(accepted, accepted_now, elapsed);
            rates.refused = rate(refused, refused_now, elapsed);
        }
        Some(rates)
    }

    /// Returns the rate of all SYNs.
    pub fn all(&self) -> f64 {
        self.families.iter().sum()
    }
}

/// Part of the screen that can have the focus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panel {
    /// SYNs by class.
    Classes,
    /// Outcomes of connections.
    Outcomes,
    /// Keys.
    Keys,
    /// Source prefixes, or destinations of connections from here.
    Prefixes,
    /// Latest events.
    Events,
}

impl Panel {
    /// Panels in the order of the focus.
    pub const ALL: [Self; 5] = [Self::Classes, Self::Outcomes, Self::Keys, Self::Prefixes, Self::Events];
}

/// State of the screen.
#[derive(Debug)]
pub struct Model {
    /// Name of the interface, behind that of its network namespace if that has one.
    pub interface: String,
    /// Name of the service that is shown; `None` for all services.
    pub service: Option<String>,
    /// Last successful look. It stays on the screen when a later look fails.
    pub look: Option<Look>,
    /// Rates of the last seconds, newest first; `None` where counters were reset.
    pub trail: VecDeque<Option<Rates>>,
    /// Error of the latest look, if it failed.
    pub error: Option<String>,
    /// Whether updates are paused.
    pub paused: bool,
    /// Whether the help is shown.
    pub help: bool,
    /// Whether [`Panel::Prefixes`] shows destinations of connections from here, and not sources.
    pub destinations: bool,
    /// Panel with the focus.
    pub focus: Panel,
    /// Selected row of each panel.
    selected: [usize; Panel::ALL.len()],
}

impl Model {
    /// Makes a model of `interface` without a look.
    pub fn new(interface: &str) -> Self {
        Self {
            interface: interface.to_owned(),
            service: None,
            look: None,
            trail: VecDeque::new(),
            error: None,
            paused: false,
            help: false,
            destinations: false,
            focus: Panel::Classes,
            selected: Default::default(),
        }
    }

    /// Stores a look, and the rates since the one before.
    pub fn record(&mut self, look: Look) {
        if let Some(earlier) = &self.look {
            self.trail.push_front(Rates::between(earlier, &look, self.service.as_deref()));
            self.trail.truncate(TRAIL);
        }
        self.error = None;
        self.look = Some(look);
    }

    /// Stores the error of a look that failed. The last successful look is kept.
    pub fn record_error(&mut self, error: String) {
        self.error = Some(error);
    }

    /// Shows another interface.
    pub fn switch(&mut self, interface: &str) {
        let (focus, help, destinations) = (self.focus, self.help, self.destinations);
        *self = Self { focus, help, destinations, ..Self::new(interface) };
    }

    /// Shows the next service if there are several. All services together follow the last one.
    pub fn next_service(&mut self) {
        let Some(look) = self.look.as_ref().filter(|look| look.report.services.len() > 1) else { return };
        let mut names = look.report.services.iter().map(|service| service.name.clone());
        self.service = match &self.service {
            None => names.next(),
            Some(shown) => names.skip_while(|name| name != shown).nth(1),
        };
        self.trail.clear();
    }

    /// Returns the latest rates; `None` if they are unknown or the last look failed.
    pub fn rates(&self) -> Option<Rates> {
        self.trail.front().copied().flatten().filter(|_| self.error.is_none())
    }

    /// Returns the number of rows of a panel.
    pub fn rows(&self, panel: Panel) -> usize {
        let Some(look) = &self.look else { return 0 };
        match panel {
            Panel::Classes => Class::COUNT + Family::COUNT,
            Panel::Outcomes => 0,
            Panel::Keys => look.keys.len(),
            Panel::Prefixes if self.destinations => {
                look.report.client.as_ref().map_or(0, |client| client.destinations.len())
            }
            Panel::Prefixes => look.prefixes.as_ref().map_or(0, Vec::len),
            Panel::Events => look.events.as_ref().map_or(0, Vec::len),
        }
    }

    /// Returns the selected row of a panel; `None` if it has no focus or no rows.
    pub fn selected(&self, panel: Panel) -> Option<usize> {
        let last = self.rows(panel).checked_sub(1)?;
        (self.focus == panel).then(|| self.selected[panel as usize].min(last))
    }

    /// Moves the selection in the panel with the focus by `rows`, within its rows.
    pub fn move_by(&mut self, rows: isize) {
        let last = self.rows(self.focus).saturating_sub(1);
        let at = &mut self.selected[self.focus as usize];
        *at = (*at).min(last).saturating_add_signed(rows).min(last);
    }

    /// Moves the focus by `panels`; the first panel follows the last.
    pub fn focus_by(&mut self, panels: isize) {
        let count = Panel::ALL.len() as isize;
        let next = (self.focus as isize + panels).rem_euclid(count);
        self.focus = Panel::ALL[next as usize];
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::view::{
        counters::{ServiceReport, SynRow},
        rtt_saved::RttSaved,
    };

    /// Makes a look `seconds` after `start`, with `packets` SYNs of `class` over IPv4.
    pub(crate) fn look(start: Instant, seconds: u64, class: Class, packets: u64) -> Look {
        let row = SynRow {
            family: Family::ALL[0].name(),
            class: class.name(),
            verdict: "pass",
            packets,
            with_data: 0,
            data_bytes: 0,
        };
        Look {
            at: start + Duration::from_secs(seconds),
            report: Report { syn: vec![row], ..Report::empty() },
            kernel: Some(TcpExt { passive: packets / 2, ..TcpExt::default() }),
            controller: true,
            keys: Vec::new(),
            in_step: Some(true),
            next_secret_in: None,
            prefixes: None,
            events: None,
            fleet: None,
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let (mut model, start) = (Model::new("v0"), Instant::now());
        model.record(look(start, 0, Class::CookieCurrent, 100));
        assert_eq!(model.rates(), None, "one look has no rate");
        model.record(look(start, 2, Class::CookieCurrent, 150));
        let rates = model.rates().unwrap();
        assert_eq!(rates.classes[Class::CookieCurrent.index()], 25.0);
        assert_eq!((rates.all(), rates.families[0], rates.families[1]), (25.0, 25.0, 0.0));
        assert_eq!((rates.accepted, rates.refused), (Some(12.5), Some(0.0)));
    }

    #[test]
    fn counters_that_begin_anew_give_no_rate_and_no_panic() {
        let (mut model, start) = (Model::new("v0"), Instant::now());
        model.record(look(start, 0, Class::PlainSyn, 100));
        model.record(look(start, 1, Class::PlainSyn, 7));
        assert_eq!(model.rates(), None);
        model.record(look(start, 2, Class::PlainSyn, 9));
        assert_eq!(model.rates().unwrap().all(), 2.0);
        // The number is higher, but counting began anew.
        let mut anew = look(start, 3, Class::PlainSyn, 500);
        anew.report.since = jiff::Timestamp::now();
        model.record(anew);
        assert_eq!(model.rates(), None);
    }

    #[test]
    fn a_service_is_shown_by_itself() {
        let (mut model, start) = (Model::new("v0"), Instant::now());
        let with_services = |seconds, packets| {
            let mut look = look(start, seconds, Class::PlainSyn, packets);
            look.report.services = [("other", 0), ("web", packets)]
                .map(|(name, packets)| ServiceReport {
                    name: name.to_owned(),
                    syn: super::tests::look(start, seconds, Class::PlainSyn, packets).report.syn,
                    accepted: 0,
                    refused: 0,
                    rtt_saved: RttSaved::default(),
                    guards: Vec::new(),
                    unfollowed: Vec::new(),
                })
                .into();
            look
        };
        model.record(with_services(0, 0));
        for (name, rate) in [(Some("other"), 0.0), (Some("web"), 7.0), (None, 7.0)] {
            model.next_service();
            assert_eq!((model.service.as_deref(), model.rates()), (name, None));
            let seconds = model.look.as_ref().unwrap().at.duration_since(start).as_secs() + 1;
            model.record(with_services(seconds, 7 * seconds));
            assert_eq!(model.rates().unwrap().all(), rate, "{name:?}");
        }
    }

    #[test]
    fn what_is_gone_has_no_rate() {
        let (mut model, start) = (Model::new("v0"), Instant::now());
        model.record(look(start, 0, Class::PlainSyn, 1));
        model.record(look(start, 1, Class::PlainSyn, 2));
        model.record_error("gone".to_owned());
        assert_eq!(model.rates(), None);
        assert!(model.look.is_some(), "the last totals stay");
    }

    #[test]
    fn the_selection_stays_inside() {
        let mut model = Model::new("v0");
        model.move_by(1);
        assert_eq!(model.selected(Panel::Classes), None, "there is nothing yet");
        model.record(look(Instant::now(), 0, Class::PlainSyn, 1));
        model.move_by(-1);
        assert_eq!(model.selected(Panel::Classes), Some(0));
        model.move_by(isize::MAX);
        assert_eq!(model.selected(Panel::Classes), Some(9));
        model.focus_by(-1);
        assert_eq!(model.focus, Panel::Events);
        model.focus_by(2);
        assert_eq!(model.focus, Panel::Outcomes);
        assert_eq!(model.selected(Panel::Classes), None, "another one has the focus");
    }
}
