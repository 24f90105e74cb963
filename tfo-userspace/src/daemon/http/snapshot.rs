//! Values for answers over HTTP, read from the maps and the kernel at that moment.

use anyhow::Result;
use tfo_common::keyring::{KeyRing, Role, SLOTS};
use tracing::debug;

use crate::{
    daemon::{
        controller::Controller,
        health::{attest, each},
        site::Site,
    },
    dataplane::Datapath,
    kernel::tcp_ext::TcpExt,
    util::{logging, secrecy::leaving_no_trace, time::unix_seconds},
    view::metrics::{InterfaceSnapshot, Program, RoleKeys, Snapshot},
};

/// Reads the metrics of `controller`, which should be attached to `interfaces`.
pub(super) fn take(controller: &Controller, interfaces: &[String]) -> Result<Snapshot> {
    let rotation_interval = controller.keeper().rotate_seconds();
    // A program that can't be read is left out, and the others are shown.
    let on_interface = |(name, site): (&str, Option<&Site>)| {
        let program = site.and_then(|site| program(site, controller)).transpose();
        let is_unreadable = program.is_err();
        let failed = |error| debug!("{name}: cannot read the program for a scrape: {error:#}");
        InterfaceSnapshot {
            name: name.to_owned(),
            program: program.map_err(failed).ok().flatten(),
            is_unreadable,
        }
    };
    Ok(Snapshot {
        netns: controller.netns(),
        interfaces: each(controller, interfaces).map(on_interface).collect(),
        kernel: TcpExt::read()?,
        // Another thread reads them.
        listeners: None,
        key_failures: controller.keeper().failures(),
        log_lines_dropped: logging::dropped(),
        rotation_interval: (rotation_interval > 0).then_some(rotation_interval),
        fleet: controller.fleet(),
    })
}

/// Reads the values of the program at `site`, if one is attached.
fn program(site: &Site, controller: &Controller) -> Option<Result<Program>> {
    site.attached().map(|datapath| {
        let program = read(datapath, site.dropped_events())?;
        Ok(Program { answering: controller.answering(), ..program })
    })
}

fn read(datapath: &Datapath, dropped_events: u64) -> Result<Program> {
    let (keys, in_step) = leaving_no_trace(|| {
        let (ring, attestation) = attest(datapath)?;
        anyhow::Ok((roles(&ring, unix_seconds()), attestation.in_step()))
    })?;
    let pins = datapath.pins().clone();
    Ok(Program {
        info: *datapath.info(),
        services: datapath.by_service()?,
        has_outcomes: pins.has_outcomes()?,
        client: datapath.client()?,
        watch: datapath.watch()?,
        answering: Vec::new(),
        dropped_events,
        keys,
        in_step,
        pins,
    })
}

/// Counts the keys of `ring` by role. `now` is in seconds since 1970.
fn roles(ring: &KeyRing, now: u64) -> Vec<RoleKeys> {
    let of_role = |role| {
        let slots = (0..SLOTS).filter(|slot| ring.holds(*slot) && Role::of_slot(*slot) == role);
        let ages = slots.map(|slot| now.saturating_sub(ring.since[slot]));
        RoleKeys { role, count: ages.clone().count() as u64, age: ages.max() }
    };
    [Role::Current, Role::Backup, Role::Next, Role::Retired].map(of_role).into()
}
