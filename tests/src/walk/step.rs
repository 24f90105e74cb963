//! Steps of the walk, and how they are drawn.

use fastrand::Rng;
use nix::sys::signal::Signal;
use tfo_userspace::model::guards::Hidden;

use super::{Desired, Link, Model, NAMES, PREFIXES};

/// A step. What is done to an interface has its index.
#[derive(Clone, Debug)]
pub enum Step {
    /// `tfo reload`, or SIGHUP.
    Reload {
        /// Whether by a signal.
        by_signal: bool,
        /// The configuration.
        desired: Desired,
    },
    /// A reload that must be refused.
    BadReload(Bad),
    /// A reload that the second interface refuses when the first one has it already.
    FailingReload(Desired),
    /// A reload, and another step so many milliseconds later, while it may be under way.
    InReload {
        /// The configuration.
        desired: Desired,
        /// How much later.
        after_ms: u64,
        /// The other step.
        then: Box<Step>,
    },
    /// A new configuration by SIGHUP, and the end of the controller in or behind that.
    KillInReload(Desired, Death),
    /// SIGTERM.
    Stop,
    /// SIGKILL.
    Kill,
    /// `tfo run`.
    Start(Desired),
    /// `tfo run`, and its end in or behind the start.
    KillInStart(Desired, Death),
    /// A `tfo run` that must be refused, since an interface is not there.
    StartWithout,
    /// The controller ends by a signal, SIGTERM or SIGKILL; then `tfo run`, which finds what tfo 0.1 would have left.
    Upgrade(Signal, Desired),
    /// A second controller, which must be refused.
    SecondController,
    /// `tfo hide` or `tfo show`.
    Order {
        /// Whether to hide.
        on: bool,
        /// What.
        what: Hidden,
        /// On which interface, or on both.
        only: Option<usize>,
    },
    /// Somebody writes other keys for the kernel.
    SetKeys {
        /// Whether the key before becomes the backup key.
        keeps: bool,
    },
    /// `tfo keys rotate`, which is refused where `tfo` makes no keys.
    Rotate,
    /// `tfo keys rotate --emergency`. Where `tfo` makes no keys, that fails, and old keys are forgotten all the same.
    Emergency,
    /// An interface goes down.
    Down(usize),
    /// It comes up, and has its own name.
    Up(usize),
    /// It is deleted.
    Delete(usize),
    /// It is made anew.
    Make(usize),
    /// It is deleted and made anew at once.
    Remake(usize),
    /// It is given another name.
    Rename(usize),
    /// SIGINT, which leaves nothing.
    Interrupt,
    /// `tfo unload`, which leaves nothing, with a controller or without.
    Unload,
    /// SIGKILL, and nothing is left but files, as after a reboot.
    Reboot,
}

impl Step {
    /// The step, or the one that is made in it.
    pub fn innermost(&self) -> &Self {
        match self {
            Self::InReload { then, .. } => then.innermost(),
            _ => self,
        }
    }
}

/// How a controller ends in the middle of something.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    /// SIGKILL, SIGTERM or SIGINT.
    pub by: Signal,
    /// How many milliseconds later.
    pub after_ms: u64,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It is no TOML.
    Form,
    /// A value is out of range.
    Value,
    /// It has what only a start can change.
    Fixed,
    /// It is not there.
    Missing,
}

/// Makes a step of one kind, where there can be one now.
type Draw = fn(&Model, &mut Rng) -> Option<Step>;

/// Each kind of step, and how many cards of it are in a [`Deck`].
const KINDS: [(usize, Draw); 21] = [
    (7, |model, rng| {
        let reload = || Step::Reload { by_signal: rng.usize(..4) == 0, desired: other(model, rng) };
        model.controller.then(reload)
    }),
    (1, |model, rng| {
        model.controller.then(|| Step::BadReload(any(rng, [Bad::Form, Bad::Value, Bad::Fixed, Bad::Missing])))
    }),
    (2, |model, rng| {
        // Where nothing changes, there is nothing to refuse; and only what is there can take a program, or refuse it.
        let desired = other(model, rng);
        let is_other = model.desired.text() != desired.text();
        (model.controller && is_other && !model.links.contains(&Link::Gone))
            .then_some(Step::FailingReload(desired))
    }),
    (3, |model, rng| {
        model.controller.then(|| {
            let desired = other(model, rng);
            let then = Box::new(in_reload(model, &desired, rng));
            Step::InReload { desired, after_ms: rng.u64(..800), then }
        })
    }),
    (2, |model, rng| model.controller.then(|| Step::KillInReload(other(model, rng), death(rng, 1500)))),
    (1, |model, _| model.controller.then_some(Step::Stop)),
    (1, |model, _| model.controller.then_some(Step::Kill)),
    (4, start),
    (2, |model, rng| {
        // Before the first start, it is not certain whether a program comes to know a key; nor which keys the kernel
        // has, when their source changes.
        let mut desired = Desired::random(rng);
        desired.makes_keys = model.desired.makes_keys;
        (!model.controller && model.is_whole() && model.is_installed())
            .then(|| Step::KillInStart(desired, death(rng, 2000)))
    }),
    (1, |model, _| (!model.controller && !model.is_whole()).then_some(Step::StartWithout)),
    (2, |model, rng| {
        (model.controller && model.is_whole())
            .then(|| Step::Upgrade(any(rng, [Signal::SIGTERM, Signal::SIGKILL]), same_or_other(model, rng)))
    }),
    (1, |model, _| (model.controller && model.is_whole()).then_some(Step::SecondController)),
    (6, order),
    (3, keys),
    (3, away),
    (3, back),
    (2, |model, rng| one(model, rng, |link| link == Link::Up).map(Step::Remake)),
    (1, |model, _| model.controller.then_some(Step::Interrupt)),
    (1, |model, _| model.is_installed().then_some(Step::Unload)),
    (1, |model, _| model.is_installed().then_some(Step::Reboot)),
    (2, emergency),
];

/// Cards to draw from, so that each kind of step comes round.
#[derive(Default)]
pub struct Deck(Vec<Draw>);

impl Deck {
    /// Draws the next step.
    pub fn draw(&mut self, model: &Model, rng: &mut Rng) -> Step {
        // Most steps need a controller, and most checks the first interface.
        if rng.bool()
            && let Some(step) = remedy(model, rng)
        {
            return step;
        }
        loop {
            for at in 0..self.0.len() {
                if let Some(step) = self.0[at](model, rng) {
                    self.0.remove(at);
                    return step;
                }
            }
            self.0 = KINDS.iter().flat_map(|(count, draw)| std::iter::repeat_n(*draw, *count)).collect();
            rng.shuffle(&mut self.0);
        }
    }
}

/// What is missing for most steps and checks, if anything is.
fn remedy(model: &Model, rng: &mut Rng) -> Option<Step> {
    match model.links[0] {
        Link::Gone => Some(Step::Make(0)),
        Link::Down => Some(Step::Up(0)),
        Link::Up | Link::Renamed => start(model, rng),
    }
}

fn start(model: &Model, rng: &mut Rng) -> Option<Step> {
    (!model.controller && model.is_whole()).then(|| Step::Start(same_or_other(model, rng)))
}

fn order(model: &Model, rng: &mut Rng) -> Option<Step> {
    let on = rng.usize(..3) > 0;
    let there: Vec<&Hidden> = model.orders.iter().flatten().collect();
    let what = if on || there.is_empty() || rng.usize(..4) == 0 {
        match rng.usize(..5) {
            0 => Hidden::All,
            1 | 2 => Hidden::Service(any(rng, NAMES).to_owned()),
            _ => Hidden::Source(any(rng, PREFIXES).parse().expect("a prefix")),
        }
    } else {
        there[rng.usize(..there.len())].clone()
    };
    model.controller.then(|| Step::Order { on, what, only: any(rng, [None, None, Some(0), Some(1)]) })
}

/// Other keys, by whom it is to make them.
fn keys(model: &Model, rng: &mut Rng) -> Option<Step> {
    // Without a controller, it must be known which keys a program had from the last one.
    let is_known = model.controller || model.is_known[0];
    if model.desired.makes_keys || rng.usize(..4) == 0 {
        model.controller.then_some(Step::Rotate)
    } else {
        is_known.then(|| Step::SetKeys { keeps: rng.usize(..4) > 0 })
    }
}

fn emergency(model: &Model, _: &mut Rng) -> Option<Step> {
    model.controller.then_some(Step::Emergency)
}

fn away(model: &Model, rng: &mut Rng) -> Option<Step> {
    let away = any(rng, [Step::Down, Step::Delete, Step::Rename]);
    one(model, rng, |link| link == Link::Up).map(away)
}

fn back(model: &Model, rng: &mut Rng) -> Option<Step> {
    let at = one(model, rng, |link| link != Link::Up)?;
    let is_gone = model.links[at] == Link::Gone;
    // What is down or has another name may go, too, before it comes back.
    Some(if is_gone {
        Step::Make(at)
    } else if rng.usize(..4) > 0 {
        Step::Up(at)
    } else {
        Step::Delete(at)
    })
}

/// An interface whose link `is` so. Where both are, it is mostly the second one: without the first, no client connects.
fn one(model: &Model, rng: &mut Rng, is: fn(Link) -> bool) -> Option<usize> {
    match model.links.map(is) {
        [false, false] => None,
        [true, false] => Some(0),
        [false, true] => Some(1),
        [true, true] => Some(usize::from(rng.usize(..4) > 0)),
    }
}

/// A step that can be made in a reload to `desired`, and has the same outcome before it and behind it.
fn in_reload(model: &Model, desired: &Desired, rng: &mut Rng) -> Step {
    let after = Model { desired: desired.clone(), ..model.clone() };
    loop {
        let draw = any(rng, [order, keys, emergency, away, back] as [Draw; 5]);
        match draw(model, rng) {
            Some(Step::Order { on, what, .. }) if model.obeys(0, on, &what) != after.obeys(0, on, &what) => {}
            Some(Step::Order { on, what, .. }) => return Step::Order { on, what, only: Some(0) },
            Some(step) => return step,
            None => {}
        }
    }
}

/// A configuration to which a running controller can change.
fn other(model: &Model, rng: &mut Rng) -> Desired {
    model.desired.with_other_services(rng)
}

fn same_or_other(model: &Model, rng: &mut Rng) -> Desired {
    if rng.bool() { model.desired.clone() } else { Desired::random(rng) }
}

fn death(rng: &mut Rng, within_ms: u64) -> Death {
    let by = any(rng, [Signal::SIGKILL, Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT]);
    Death { by, after_ms: rng.u64(..within_ms) }
}

fn any<T: Copy, const N: usize>(rng: &mut Rng, all: [T; N]) -> T {
    all[rng.usize(..N)]
}
