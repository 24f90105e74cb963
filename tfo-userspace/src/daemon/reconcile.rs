//! What is to be done next for an interface: a function of what is desired and what is there.
//!
//! Start, reload, take-over, upgrade, an interface that comes back, and orders are all this: what is desired changes, or what
//! is there does, and steps are made until both are alike. See [`Site`](super::site::Site) for who carries them out.

use std::collections::BTreeSet;

use crate::{dataplane::Program, model::guards::Hidden};

/// What an interface is to have.
#[derive(Clone, Copy, Debug)]
pub struct Desired<'a> {
    /// The program, with its constants and its services.
    pub program: &'a Program,
    /// All that is hidden by order.
    pub hidden: &'a BTreeSet<Hidden>,
}

/// What is on the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The interface is not there.
    Absent,
    /// It has no XDP program.
    Bare,
    /// It has the program that our pinned link attaches.
    Ours,
    /// It has somebody else's program, or can't take one.
    Refused,
}

/// What is there.
#[derive(Clone, Copy, Debug)]
pub struct Actual<'a> {
    /// What is on the interface.
    pub device: Device,
    /// The program that this controller has put in force, and whose maps it has. It stays in force for an interface that is gone.
    pub in_force: Option<&'a Program>,
    /// What is hidden by order in those maps.
    pub hidden: &'a BTreeSet<Hidden>,
    /// The program that is loaded and waits to be put in force.
    pub built: Option<&'a Program>,
    /// Whether one is being loaded.
    pub is_building: bool,
}

/// A step from what is there to what is desired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write what is hidden by order into the maps in force.
    Hide,
    /// Load the program, on a thread of its own.
    Build,
    /// Put the program that is loaded in force.
    Enforce,
    /// Attach the program in force to the interface once more: it has been made anew.
    Attach,
}

/// The next step; `None` where there is nothing to be done, or something to be waited for.
pub fn next_step(desired: Desired<'_>, actual: Actual<'_>) -> Option<Step> {
    // An order waits for nothing.
    if actual.in_force.is_some() && actual.hidden != desired.hidden {
        return Some(Step::Hide);
    }
    if actual.in_force == Some(desired.program) {
        return (actual.device == Device::Bare).then_some(Step::Attach);
    }
    if actual.built == Some(desired.program) {
        return matches!(actual.device, Device::Bare | Device::Ours).then_some(Step::Enforce);
    }
    // Whatever is on the interface: once that is right, nobody waits for the verifier.
    (!actual.is_building).then_some(Step::Build)
}

#[cfg(test)]
mod tests {
    use tfo_common::{parse::LinkLayer, verdict::Mode};

    use super::*;
    use crate::{dataplane::LoadOptions, model::services::Services};

    fn program(mode: Mode) -> Program {
        let services = Services::new(Vec::new(), mode).expect("services");
        Program { options: LoadOptions::new(LinkLayer::Ethernet, mode), services }
    }

    #[test]
    fn from_nothing_to_what_is_desired() {
        let (wanted, none) = (program(Mode::Shield), BTreeSet::new());
        let desired = Desired { program: &wanted, hidden: &none };
        let nothing =
            Actual { device: Device::Bare, in_force: None, hidden: &none, built: None, is_building: false };
        assert_eq!(next_step(desired, nothing), Some(Step::Build));
        assert_eq!(next_step(desired, Actual { is_building: true, ..nothing }), None);
        let built = Actual { built: Some(&wanted), ..nothing };
        assert_eq!(next_step(desired, built), Some(Step::Enforce));
        for device in [Device::Absent, Device::Refused] {
            assert_eq!(next_step(desired, Actual { device, ..nothing }), Some(Step::Build), "{device:?}");
            assert_eq!(next_step(desired, Actual { device, ..built }), None, "{device:?}");
        }
        let done = Actual { device: Device::Ours, in_force: Some(&wanted), ..nothing };
        assert_eq!(next_step(desired, done), None);
    }

    #[test]
    fn a_program_is_the_same_only_with_the_same_constants() {
        let (wanted, none) = (program(Mode::Shield), BTreeSet::new());
        let desired = Desired { program: &wanted, hidden: &none };
        let other_mode = Program { options: program(Mode::Observe).options, ..wanted.clone() };
        let seen = LoadOptions { log_level: 4, ..wanted.options };
        let other_level = Program { options: seen, ..wanted.clone() };
        for other in [other_mode, other_level, program(Mode::Observe)] {
            let actual = Actual {
                device: Device::Ours,
                in_force: Some(&other),
                hidden: &none,
                built: None,
                is_building: false,
            };
            assert_eq!(next_step(desired, actual), Some(Step::Build));
            assert_eq!(next_step(desired, Actual { built: Some(&other), ..actual }), Some(Step::Build));
        }
    }

    #[test]
    fn an_interface_that_comes_back_waits_for_nothing() {
        let (wanted, none) = (program(Mode::Observe), BTreeSet::new());
        let desired = Desired { program: &wanted, hidden: &none };
        let of = |device| {
            let actual =
                Actual { device, in_force: Some(&wanted), hidden: &none, built: None, is_building: false };
            next_step(desired, actual)
        };
        assert_eq!(of(Device::Absent), None);
        assert_eq!(of(Device::Refused), None);
        assert_eq!(of(Device::Bare), Some(Step::Attach));
        assert_eq!(of(Device::Ours), None);
    }

    #[test]
    fn an_order_comes_first() {
        let (wanted, old) = (program(Mode::Shield), program(Mode::Observe));
        let (none, all) = (BTreeSet::new(), BTreeSet::from([Hidden::All]));
        let desired = Desired { program: &wanted, hidden: &all };
        for device in [Device::Absent, Device::Bare, Device::Ours, Device::Refused] {
            let actual = Actual {
                device,
                in_force: Some(&old),
                hidden: &none,
                built: Some(&wanted),
                is_building: false,
            };
            assert_eq!(next_step(desired, actual), Some(Step::Hide));
        }
        // Where there are no maps yet, it is in force with the first of them.
        let actual = Actual {
            device: Device::Bare,
            in_force: None,
            hidden: &none,
            built: Some(&wanted),
            is_building: false,
        };
        assert_eq!(next_step(desired, actual), Some(Step::Enforce));
    }
}
