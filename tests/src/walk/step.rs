//! Steps of the walk, drawn at random.

use fastrand::Rng;
use nix::sys::signal::Signal;
use tfo_userspace::model::guards::Hidden;

use super::{Desired, Link, Model, NAMES, PREFIXES};

/// Step of the walk. Interfaces are given by their index.
#[derive(Clone, Debug)]
pub enum Step {
    /// `tfo reload`, or SIGHUP.
    Reload {
        /// Whether the reload is requested by a signal.
        by_signal: bool,
        /// New configuration.
        desired: Desired,
    },
    /// A reload that must be refused.
    BadReload(FileFault),
    /// A reload that the second interface refuses after the first one has changed.
    FailingReload(Desired),
    /// A reload, and another step during or shortly after it.
    InReload {
        /// New configuration.
        desired: Desired,
        /// Delay of the other step, in milliseconds.
        after_ms: u64,
        /// Step during or after the reload.
        then: Box<Step>,
    },
    /// A reload by SIGHUP. The controller ends during or after it.
    KillInReload(Desired, Death),
    /// SIGTERM.
    Stop,
    /// SIGKILL.
    Kill,
    /// `tfo run`.
    Start(Desired),
    /// `tfo run`, which ends during or after its start.
    KillInStart(Desired, Death),
    /// A `tfo run` that must be refused, since an interface is absent.
    StartWithout,
    /// An upgrade from tfo 0.1: the controller ends by this signal, SIGTERM or SIGKILL, and `tfo run` finds the pins of
    /// tfo 0.1.
    Upgrade(Signal, Desired),
    /// A second controller, which must be refused.
    SecondController,
    /// `tfo hide` or `tfo show`.
    Order {
        /// Whether to hide or to show.
        on: bool,
        /// Service or source that the order concerns.
        what: Hidden,
        /// Only interface that the order concerns. `None` means both.
        only: Option<usize>,
    },
    /// New keys in the kernel, written by another process.
    SetKeys {
        /// Whether the current key becomes the backup key.
        keeps: bool,
    },
    /// `tfo keys rotate`, which is refused if `tfo` makes no keys.
    Rotate,
    /// `tfo keys rotate --emergency`. If `tfo` makes no keys, it fails, but removes old keys all the same.
    Emergency,
    /// An interface goes down.
    Down(usize),
    /// An interface comes up, with its own name.
    Up(usize),
    /// An interface is deleted.
    Delete(usize),
    /// A deleted interface is made again.
    Make(usize),
    /// An interface is deleted and made again at once.
    Remake(usize),
    /// An interface is renamed.
    Rename(usize),
    /// SIGINT, which removes everything.
    Interrupt,
    /// `tfo unload`, which removes everything, with a controller or without.
    Unload,
    /// SIGKILL, and the loss of everything but files, as by a reboot.
    Reboot,
}

impl Step {
    /// Returns the innermost step: the other step of [`Step::InReload`], or the step itself.
    pub fn innermost(&self) -> &Self {
        match self {
            Self::InReload { then, .. } => then.innermost(),
            _ => self,
        }
    }
}

/// End of a controller during its work.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    /// Signal: SIGKILL, SIGTERM or SIGINT.
    pub by: Signal,
    /// Delay in milliseconds.
    pub after_ms: u64,
}

/// Fault of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFault {
    /// The file is not TOML.
    Form,
    /// A value is out of range.
    Value,
    /// The file changes a setting that only a start can change.
    Fixed,
    /// The file does not exist.
    Missing,
}

/// Function that makes a step of one kind, if the model allows one.
type Draw = fn(&Model, &mut Rng) -> Option<Step>;

/// Kinds of steps, each with its number of cards in a [`Deck`].
const KINDS: [(usize, Draw); 21] = [
    (7, |model, rng| {
        let reload = || Step::Reload { by_signal: rng.usize(..4) == 0, desired: changed(model, rng) };
        model.controller.then(reload)
    }),
    (1, |model, rng| {
        model.controller.then(|| {
            Step::BadReload(choose(
                rng,
                [FileFault::Form, FileFault::Value, FileFault::Fixed, FileFault::Missing],
            ))
        })
    }),
    (2, |model, rng| {
        // Without a change there is nothing to refuse. Only a present interface can accept or refuse a program.
        let desired = changed(model, rng);
        let is_other = model.desired.text() != desired.text();
        (model.controller && is_other && !model.links.contains(&Link::Gone))
            .then_some(Step::FailingReload(desired))
    }),
    (3, |model, rng| {
        model.controller.then(|| {
            let desired = changed(model, rng);
            let then = Box::new(in_reload(model, &desired, rng));
            Step::InReload { desired, after_ms: rng.u64(..800), then }
        })
    }),
    (2, |model, rng| model.controller.then(|| Step::KillInReload(changed(model, rng), death(rng, 1500)))),
    (1, |model, _| model.controller.then_some(Step::Stop)),
    (1, |model, _| model.controller.then_some(Step::Kill)),
    (4, start),
    (2, |model, rng| {
        // Before the first start, it is uncertain whether a program learns a key. The kernel's keys are uncertain, too,
        // if their source changes.
        let mut desired = Desired::random(rng);
        desired.makes_keys = model.desired.makes_keys;
        (!model.controller && model.has_both_links() && model.is_installed())
            .then(|| Step::KillInStart(desired, death(rng, 2000)))
    }),
    (1, |model, _| (!model.controller && !model.has_both_links()).then_some(Step::StartWithout)),
    (2, |model, rng| {
        (model.controller && model.has_both_links()).then(|| {
            Step::Upgrade(choose(rng, [Signal::SIGTERM, Signal::SIGKILL]), same_or_changed(model, rng))
        })
    }),
    (1, |model, _| (model.controller && model.has_both_links()).then_some(Step::SecondController)),
    (6, order),
    (3, keys),
    (3, away),
    (3, back),
    (2, |model, rng| pick_interface(model, rng, |link| link == Link::Up).map(Step::Remake)),
    (1, |model, _| model.controller.then_some(Step::Interrupt)),
    (1, |model, _| model.is_installed().then_some(Step::Unload)),
    (1, |model, _| model.is_installed().then_some(Step::Reboot)),
    (2, emergency),
];

/// Deck of cards, so that each kind of step comes up in turn.
#[derive(Default)]
pub struct Deck(Vec<Draw>);

impl Deck {
    /// Draws the next step.
    pub fn draw(&mut self, model: &Model, rng: &mut Rng) -> Step {
        // Most steps need a controller, and most checks need the first interface.
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

/// Returns a step that restores the controller or the first interface, if one is missing.
fn remedy(model: &Model, rng: &mut Rng) -> Option<Step> {
    match model.links[0] {
        Link::Gone => Some(Step::Make(0)),
        Link::Down => Some(Step::Up(0)),
        Link::Up | Link::Renamed => start(model, rng),
    }
}

fn start(model: &Model, rng: &mut Rng) -> Option<Step> {
    (!model.controller && model.has_both_links()).then(|| Step::Start(same_or_changed(model, rng)))
}

fn order(model: &Model, rng: &mut Rng) -> Option<Step> {
    let on = rng.usize(..3) > 0;
    let there: Vec<&Hidden> = model.orders.iter().flatten().collect();
    let what = if on || there.is_empty() || rng.usize(..4) == 0 {
        match rng.usize(..5) {
            0 => Hidden::All,
            1 | 2 => Hidden::Service(choose(rng, NAMES).to_owned()),
            _ => Hidden::Source(choose(rng, PREFIXES).parse().expect("a prefix")),
        }
    } else {
        there[rng.usize(..there.len())].clone()
    };
    model.controller.then(|| Step::Order { on, what, only: choose(rng, [None, None, Some(0), Some(1)]) })
}

/// Returns a change of keys by their owner, `tfo` or another process.
fn keys(model: &Model, rng: &mut Rng) -> Option<Step> {
    // Without a controller, the change is possible only if the keys of the last program are certain.
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
    let away = choose(rng, [Step::Down, Step::Delete, Step::Rename]);
    pick_interface(model, rng, |link| link == Link::Up).map(away)
}

fn back(model: &Model, rng: &mut Rng) -> Option<Step> {
    let at = pick_interface(model, rng, |link| link != Link::Up)?;
    let is_gone = model.links[at] == Link::Gone;
    // An interface that is down or renamed may also be deleted before it comes back.
    Some(if is_gone {
        Step::Make(at)
    } else if rng.usize(..4) > 0 {
        Step::Up(at)
    } else {
        Step::Delete(at)
    })
}

/// Returns an interface in a state that satisfies `is`. If both do, it is mostly the second, since clients need the
/// first.
fn pick_interface(model: &Model, rng: &mut Rng, is: fn(Link) -> bool) -> Option<usize> {
    match model.links.map(is) {
        [false, false] => None,
        [true, false] => Some(0),
        [false, true] => Some(1),
        [true, true] => Some(usize::from(rng.usize(..4) > 0)),
    }
}

/// Returns a step that is possible during a reload to `desired`, and has the same effect before and after it.
fn in_reload(model: &Model, desired: &Desired, rng: &mut Rng) -> Step {
    let after = Model { desired: desired.clone(), ..model.clone() };
    loop {
        let draw = choose(rng, [order, keys, emergency, away, back] as [Draw; 5]);
        match draw(model, rng) {
            Some(Step::Order { on, what, .. })
                if model.carries_out(0, on, &what) != after.carries_out(0, on, &what) => {}
            Some(Step::Order { on, what, .. }) => return Step::Order { on, what, only: Some(0) },
            Some(step) => return step,
            None => {}
        }
    }
}

/// Returns a configuration to which a running controller can change.
fn changed(model: &Model, rng: &mut Rng) -> Desired {
    model.desired.with_other_services(rng)
}

fn same_or_changed(model: &Model, rng: &mut Rng) -> Desired {
    if rng.bool() { model.desired.clone() } else { Desired::random(rng) }
}

fn death(rng: &mut Rng, within_ms: u64) -> Death {
    let by = choose(rng, [Signal::SIGKILL, Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT]);
    Death { by, after_ms: rng.u64(..within_ms) }
}

fn choose<T: Copy, const N: usize>(rng: &mut Rng, all: [T; N]) -> T {
    all[rng.usize(..N)]
}
