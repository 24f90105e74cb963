//! What the screen shows: pure state, and the rates that follow from two successive looks.

use std::{collections::VecDeque, time::Instant};

use serde::Serialize;
use tfo_common::{class::Class, segment::Family};

use crate::{
    kernel::tcp_ext::TcpExt,
    view::{
        counters::Report,
        history::{Totals, rate},
        key_listing::Generation,
    },
};

/// Seconds of rates that are kept for the sparklines: more than a terminal is wide.
const TRAIL: usize = 512;

/// A source prefix, and what came from it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prefix {
    /// The prefix, such as `192.0.2.0/24`.
    pub prefix: String,
    /// Requests for a cookie.
    pub requests: u64,
    /// Cookies of known keys.
    pub valid: u64,
    /// Cookies that no known key made.
    pub unknown: u64,
}

/// What one look at an interface finds.
#[derive(Clone, Debug)]
pub struct Look {
    /// When it was.
    pub at: Instant,
    /// The counters.
    pub report: Report,
    /// The kernel's counters of the same network namespace; `None` where that is not ours.
    pub kernel: Option<TcpExt>,
    /// Whether a `tfo run` keeps its keys in step.
    pub controller: bool,
    /// The keys in the map, by their fingerprints.
    pub keys: Vec<Generation>,
    /// Whether they are where they should be; `None` where that is not known.
    pub in_step: Option<bool>,
    /// Source prefixes, the one with most first; `None` where nobody counts them.
    pub prefixes: Option<Vec<Prefix>>,
    /// The latest events, newest first, a line each; `None` where nobody tells them.
    pub events: Option<Vec<String>>,
}

impl Look {
    /// Its counters, summed over a service or all of them.
    pub fn totals(&self, service: Option<&str>) -> Totals {
        Totals::of(&self.report, service)
    }

    /// How many cookies the kernel took, and how many not: as its connections tell, or else as it counts itself, which it
    /// does for all services together.
    pub fn accepted_and_refused(&self, service: Option<&str>) -> Option<[u64; 2]> {
        let kernel = self.kernel.filter(|_| service.is_none());
        let outcomes = self.totals(service).outcomes.map(|outcomes| [outcomes.accepted, outcomes.refused]);
        outcomes.or_else(|| kernel.map(|kernel| [kernel.passive, kernel.passive_fail]))
    }
}

/// What happened in each second between two looks.
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
    /// Fast Open connections that the kernel made; `None` where nobody reports them.
    pub accepted: Option<f64>,
    /// Cookies that it did not take.
    pub refused: Option<f64>,
}

impl Rates {
    /// Those of a service, or of all, between two looks at the same counters; `None` where they began anew in between.
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

    /// All SYNs.
    pub fn all(&self) -> f64 {
        self.families.iter().sum()
    }
}

/// A part of the screen that can have the focus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panel {
    /// SYNs by class.
    Classes,
    /// What became of them.
    Outcomes,
    /// Keys.
    Keys,
    /// Source prefixes.
    Prefixes,
    /// Latest events.
    Events,
}

impl Panel {
    /// In the order in which the focus goes.
    pub const ALL: [Self; 5] = [Self::Classes, Self::Outcomes, Self::Keys, Self::Prefixes, Self::Events];
}

/// All that the screen shows.
#[derive(Debug)]
pub struct Model {
    /// The interface.
    pub interface: String,
    /// The service whose SYNs are shown; `None` for all.
    pub service: Option<String>,
    /// The last look; what it found is shown on when nothing is there any more.
    pub look: Option<Look>,
    /// The rates of the last seconds, newest first; `None` where counters began anew.
    pub trail: VecDeque<Option<Rates>>,
    /// Why nothing is seen at the moment.
    pub trouble: Option<String>,
    /// Whether the picture stands still.
    pub paused: bool,
    /// Whether the help is shown.
    pub help: bool,
    /// The panel with the focus.
    pub focus: Panel,
    /// The selected row of each panel.
    selected: [usize; Panel::ALL.len()],
}

impl Model {
    /// One that has not seen anything of `interface` yet.
    pub fn new(interface: &str) -> Self {
        Self {
            interface: interface.to_owned(),
            service: None,
            look: None,
            trail: VecDeque::new(),
            trouble: None,
            paused: false,
            help: false,
            focus: Panel::Classes,
            selected: Default::default(),
        }
    }

    /// Takes in what was found.
    pub fn see(&mut self, look: Look) {
        if let Some(earlier) = &self.look {
            self.trail.push_front(Rates::between(earlier, &look, self.service.as_deref()));
            self.trail.truncate(TRAIL);
        }
        self.trouble = None;
        self.look = Some(look);
    }

    /// Takes in why nothing was found. What comes next is not compared with what was before.
    pub fn miss(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Shows another interface.
    pub fn switch(&mut self, interface: &str) {
        let (focus, help) = (self.focus, self.help);
        *self = Self { focus, help, ..Self::new(interface) };
    }

    /// Shows the next service, where there are several; behind the last one, all.
    pub fn next_service(&mut self) {
        let Some(look) = self.look.as_ref().filter(|look| look.report.services.len() > 1) else { return };
        let mut names = look.report.services.iter().map(|service| service.name.clone());
        self.service = match &self.service {
            None => names.next(),
            Some(shown) => names.skip_while(|name| name != shown).nth(1),
        };
        self.trail.clear();
    }

    /// The rates of the last second, where they are known and not out of date.
    pub fn rates(&self) -> Option<Rates> {
        self.trail.front().copied().flatten().filter(|_| self.trouble.is_none())
    }

    /// Rows of a panel.
    pub fn rows(&self, panel: Panel) -> usize {
        let Some(look) = &self.look else { return 0 };
        match panel {
            Panel::Classes => Class::COUNT + Family::COUNT,
            Panel::Outcomes => 0,
            Panel::Keys => look.keys.len(),
            Panel::Prefixes => look.prefixes.as_ref().map_or(0, Vec::len),
            Panel::Events => look.events.as_ref().map_or(0, Vec::len),
        }
    }

    /// The selected row of the panel, where it has the focus and any row.
    pub fn selected(&self, panel: Panel) -> Option<usize> {
        let last = self.rows(panel).checked_sub(1)?;
        (self.focus == panel).then(|| self.selected[panel as usize].min(last))
    }

    /// Moves the selection of the panel with the focus by so many rows, as far as there are any.
    pub fn move_by(&mut self, rows: isize) {
        let last = self.rows(self.focus).saturating_sub(1);
        let at = &mut self.selected[self.focus as usize];
        *at = (*at).min(last).saturating_add_signed(rows).min(last);
    }

    /// Moves the focus by so many panels, round and round.
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

    /// A look `seconds` after `start`, at which so many SYNs of the class had come over IPv4.
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
            report: Report { syn: vec![row], ..Report::nothing() },
            kernel: Some(TcpExt { passive: packets / 2, ..TcpExt::default() }),
            controller: true,
            keys: Vec::new(),
            in_step: Some(true),
            prefixes: None,
            events: None,
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let (mut model, start) = (Model::new("v0"), Instant::now());
        model.see(look(start, 0, Class::CookieCurrent, 100));
        assert_eq!(model.rates(), None, "one look has no rate");
        model.see(look(start, 2, Class::CookieCurrent, 150));
        let rates = model.rates().unwrap();
        assert_eq!(rates.classes[Class::CookieCurrent.index()], 25.0);
        assert_eq!((rates.all(), rates.families[0], rates.families[1]), (25.0, 25.0, 0.0));
        assert_eq!((rates.accepted, rates.refused), (Some(12.5), Some(0.0)));
    }

    #[test]
    fn counters_that_begin_anew_give_no_rate_and_no_panic() {
        let (mut model, start) = (Model::new("v0"), Instant::now());
        model.see(look(start, 0, Class::PlainSyn, 100));
        model.see(look(start, 1, Class::PlainSyn, 7));
        assert_eq!(model.rates(), None);
        model.see(look(start, 2, Class::PlainSyn, 9));
        assert_eq!(model.rates().unwrap().all(), 2.0);
        // More than before, but not of the same count.
        let mut anew = look(start, 3, Class::PlainSyn, 500);
        anew.report.since = jiff::Timestamp::now();
        model.see(anew);
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
                })
                .into();
            look
        };
        model.see(with_services(0, 0));
        for (name, rate) in [(Some("other"), 0.0), (Some("web"), 7.0), (None, 7.0)] {
            model.next_service();
            assert_eq!((model.service.as_deref(), model.rates()), (name, None));
            let seconds = model.look.as_ref().unwrap().at.duration_since(start).as_secs() + 1;
            model.see(with_services(seconds, 7 * seconds));
            assert_eq!(model.rates().unwrap().all(), rate, "{name:?}");
        }
    }

    #[test]
    fn what_is_gone_has_no_rate() {
        let (mut model, start) = (Model::new("v0"), Instant::now());
        model.see(look(start, 0, Class::PlainSyn, 1));
        model.see(look(start, 1, Class::PlainSyn, 2));
        model.miss("gone".to_owned());
        assert_eq!(model.rates(), None);
        assert!(model.look.is_some(), "the last totals stay");
    }

    #[test]
    fn the_selection_stays_inside() {
        let mut model = Model::new("v0");
        model.move_by(1);
        assert_eq!(model.selected(Panel::Classes), None, "there is nothing yet");
        model.see(look(Instant::now(), 0, Class::PlainSyn, 1));
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
