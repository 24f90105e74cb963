//! The subcommands, a file each.

mod check;
mod counters;
mod events;
mod hide;
mod keys;
mod listeners;
mod reload;
mod report;
mod run;
mod status;
mod top;
mod unload;

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    cli::{
        args::{Cli, Command, Keys},
        exit::die_quietly_on_broken_pipe,
    },
    control::{self, NotRunning, Order},
    dataplane::pins::{Bpffs, Pins},
    lab,
    util::{runtime::block_on, secrecy::protect_process},
};

/// Carries out the command line.
pub fn run(cli: Cli) -> Result<ExitCode> {
    // Nearly all of them hold keys, if only to show their fingerprints.
    protect_process()?;
    if !matches!(cli.command, Command::Run(_) | Command::Lab(_)) {
        // A reader that closes the pipe early, such as `head`, ends the command; nothing ends the controller.
        die_quietly_on_broken_pipe();
    }
    let bpffs = Bpffs::new(&cli.bpffs);
    match cli.command {
        Command::Run(args) => block_on(run::run(&args, &bpffs, &cli.state_dir)).map(done),
        Command::Reload(args) => block_on(reload::run(&args, &bpffs)).map(done),
        Command::Hide(args) => block_on(hide::hide(&args, &bpffs)).map(done),
        Command::Show(args) => block_on(hide::show(&args, &bpffs)).map(done),
        Command::Lab(args) => block_on(lab::run(args.duration, &bpffs)),
        Command::Status(args) => block_on(status::run(&args, &bpffs)),
        Command::Counters(args) => counters::run(&args, &bpffs).map(done),
        Command::Events(args) => block_on(events::run(&args, &bpffs)).map(done),
        Command::Check(args) => block_on(check::run(&args, &bpffs)),
        Command::Listeners(args) => listeners::run(&args).map(done),
        Command::Top(args) => top::run(&args, &bpffs).map(done),
        Command::Report(args) => block_on(report::run(&args, &bpffs)).map(done),
        Command::Keys(Keys::Cookie(args)) => keys::cookie(&args).map(done),
        Command::Keys(Keys::Derive(args)) => keys::derive(&args).map(done),
        Command::Keys(Keys::Status(args)) => keys::status(&args, &bpffs).map(done),
        Command::Keys(Keys::Rotate(args)) => block_on(keys::rotate(&args, &bpffs)).map(done),
        Command::Keys(Keys::Import(args)) => block_on(keys::import(&args, &bpffs)).map(done),
        Command::Unload(args) => block_on(unload::run(&args, &bpffs, &cli.state_dir)).map(done),
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

/// What is attached, or only to `interface`; an error where there is nothing.
fn attached(interface: Option<&str>, bpffs: &Bpffs) -> Result<Vec<Pins>> {
    choose(bpffs.attached()?, interface)
}

/// Gives an order to the controller of each interface that is attached, or only of `interface`, and shows the answers. One
/// that fails keeps no other from it; the first failure is the outcome.
async fn tell(
    interface: Option<&str>,
    bpffs: &Bpffs,
    order: impl Fn(String) -> Order,
    show: impl Fn(&str, &str) -> Result<()>,
) -> Result<()> {
    let mut outcome = Ok(());
    for pins in attached(interface, bpffs)? {
        let name = pins.interface();
        let told = control::give(&pins, &order(name.to_owned())).await.and_then(|answer| show(name, &answer));
        match told {
            Err(error) if outcome.is_err() => eprintln!("error: {error:#}"),
            told => outcome = outcome.and(told),
        }
    }
    outcome
}

/// Those of `all` that are of `interface`, or simply all; an error where there is none.
fn choose(all: impl Iterator<Item = Pins>, interface: Option<&str>) -> Result<Vec<Pins>> {
    let chosen: Vec<_> = all.filter(|pins| interface.is_none_or(|name| pins.interface() == name)).collect();
    match interface {
        _ if !chosen.is_empty() => Ok(chosen),
        None => Err(NotRunning("tfo is attached to no interface".to_owned()).into()),
        Some(name) => Err(NotRunning(format!("tfo is not attached to {name}")).into()),
    }
}
