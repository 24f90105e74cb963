//! Choice of the next step for an interface, from its desired and its actual state.
//!
//! Start, reload, take-over, upgrade, orders and an interface that comes back all go the same way: the desired state or
//! the actual state changes, and steps are made until both are alike. [`Site`](super::site::Site) carries them out.

use crate::{dataplane::Program, model::guards::Orders};

/// Desired state of an interface.
#[derive(Clone, Copy, Debug)]
pub struct Desired<'a> {
    /// The program, with its constants and its services.
    pub program: &'a Program,
    /// Orders for its services.
    pub orders: &'a Orders,
}

/// Interface, and the program on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The interface is gone.
    Absent,
    /// The interface has no program of ours, and room for one.
    Bare,
    /// The interface has the program that our pinned link attaches.
    Ours,
    /// The interface has somebody else's program, or [`on_device`](crate::dataplane::on_device) fails otherwise.
    Refused,
}

/// Actual state of an interface.
#[derive(Clone, Copy, Debug)]
pub struct Actual<'a> {
    /// The interface, and the XDP program on it.
    pub device: Device,
    /// Program that this controller has put in force, and whose maps it has. It is kept while the interface is gone.
    pub in_force: Option<&'a Program>,
    /// Orders in those maps.
    pub orders: &'a Orders,
    /// Program that is loaded and ready to be put in force.
    pub built: Option<&'a Program>,
    /// Whether a program is being loaded.
    pub is_building: bool,
}

/// Step from the actual state to the desired one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes the orders into the maps in force.
    Order,
    /// Loads the program, on a thread of its own.
    Build,
    /// Puts the loaded program in force.
    Enforce,
    /// Attaches the program in force to the interface, which has come back.
    Attach,
}

/// Returns the next step, or `None` if there is nothing to do or the interface has to wait.
pub fn next_step(desired: Desired<'_>, actual: Actual<'_>) -> Option<Step> {
    // An order comes first, since it must not wait for a program.
    if actual.in_force.is_some() && actual.orders != desired.orders {
        return Some(Step::Order);
    }
    if actual.in_force == Some(desired.program) {
        return (actual.device == Device::Bare).then_some(Step::Attach);
    }
    if actual.built == Some(desired.program) {
        return matches!(actual.device, Device::Bare | Device::Ours).then_some(Step::Enforce);
    }
    // A program is loaded in any state of the interface, so that the verifier causes no delay later.
    (!actual.is_building).then_some(Step::Build)
}

#[cfg(test)]
mod tests {
    use tfo_common::{parse::LinkLayer, verdict::Mode};

    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        dataplane::LoadOptions,
        model::{guards::Hidden, services::Services},
    };

    fn program(mode: Mode) -> Program {
        let services = Services::new(Vec::new(), mode).expect("services");
        Program { options: LoadOptions::new(LinkLayer::Ethernet, mode), services }
    }

    #[test]
    fn a_start_builds_and_enforces() {
        let (wanted, none) = (program(Mode::Shield), Orders::default());
        let desired = Desired { program: &wanted, orders: &none };
        let nothing =
            Actual { device: Device::Bare, in_force: None, orders: &none, built: None, is_building: false };
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
        let (wanted, none) = (program(Mode::Shield), Orders::default());
        let desired = Desired { program: &wanted, orders: &none };
        let other_mode = Program { options: program(Mode::Observe).options, ..wanted.clone() };
        let seen = LoadOptions { log_level: 4, ..wanted.options };
        let other_level = Program { options: seen, ..wanted.clone() };
        for other in [other_mode, other_level, program(Mode::Observe)] {
            let actual = Actual {
                device: Device::Ours,
                in_force: Some(&other),
                orders: &none,
                built: None,
                is_building: false,
            };
            assert_eq!(next_step(desired, actual), Some(Step::Build));
            assert_eq!(next_step(desired, Actual { built: Some(&other), ..actual }), Some(Step::Build));
        }
    }

    #[test]
    fn an_interface_that_comes_back_needs_no_new_program() {
        let (wanted, none) = (program(Mode::Observe), Orders::default());
        let desired = Desired { program: &wanted, orders: &none };
        let of = |device| {
            let actual =
                Actual { device, in_force: Some(&wanted), orders: &none, built: None, is_building: false };
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
        let (none, all) =
            (Orders::default(), Orders { hidden: BTreeSet::from([Hidden::All]), ..Orders::default() });
        let desired = Desired { program: &wanted, orders: &all };
        for device in [Device::Absent, Device::Bare, Device::Ours, Device::Refused] {
            let actual = Actual {
                device,
                in_force: Some(&old),
                orders: &none,
                built: Some(&wanted),
                is_building: false,
            };
            assert_eq!(next_step(desired, actual), Some(Step::Order));
        }
        // Without maps in force, the order comes into force with the program.
        let actual = Actual {
            device: Device::Bare,
            in_force: None,
            orders: &none,
            built: Some(&wanted),
            is_building: false,
        };
        assert_eq!(next_step(desired, actual), Some(Step::Enforce));
    }
}
