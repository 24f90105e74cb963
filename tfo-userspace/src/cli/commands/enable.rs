//! `tfo enable` and `tfo disable`.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::{Result, ensure};
use nix::unistd::geteuid;

use crate::{
    cli::args::{Disable, Enable, Manner},
    control::FOLDER,
    kernel::{
        listeners::{Demand, Outcome, Party, Wish, carry_out},
        sysctl::read_mode,
    },
    util::output::{json, print},
    view::enable::Report,
};

/// Turns Fast Open on for the listeners of some ports. The exit status is 1 if a port has no listener, or if a listener can't be
/// changed.
pub(super) fn enable(args: &Enable) -> Result<ExitCode> {
    let Enable { ports, queue, how } = args;
    let outcomes = change(ports, Wish::Queue(*queue), *how)?;
    show(&Report::of_enable(outcomes, ports, *queue, read_mode()?, how.dry_run), ports, *how)
}

/// Undoes that. The exit status is 1 if a listener can't be changed.
pub(super) fn disable(args: &Disable) -> Result<ExitCode> {
    let Disable { ports, how } = args;
    let outcomes = change(ports, Wish::Nothing, *how)?;
    show(&Report::of_disable(outcomes, how.dry_run), ports, *how)
}

fn change(ports: &[u16], wish: Wish, how: Manner) -> Result<Vec<Outcome>> {
    ensure!(geteuid().is_root(), "only root may change the listeners of other processes: run it with sudo");
    let wish = |address: SocketAddr| if ports.contains(&address.port()) { wish } else { Wish::Same };
    let demand = Demand { party: Party::Operator, wish: &wish };
    carry_out(FOLDER.as_ref(), &[demand], !how.dry_run)
}

fn show(report: &Report, ports: &[u16], how: Manner) -> Result<ExitCode> {
    print(&if how.json { json(report)? } else { report.text() })?;
    Ok(if report.is_complete(ports) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
