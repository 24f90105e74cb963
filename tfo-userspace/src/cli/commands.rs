//! The subcommands, one file each.

mod check;
mod counters;
mod enable;
mod events;
mod fleet;
mod generate;
mod hide;
mod keys;
mod listeners;
mod reload;
mod report;
mod run;
mod status;
mod top;
mod unload;
mod version;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{
    cli::{
        args::{Cli, Command, Keys},
        exit::die_quietly_on_broken_pipe,
    },
    control::{self, NotRunning, Request},
    dataplane::pins::{Bpffs, Pins},
    kernel::{netns::Netns, syncookies::guard},
    lab,
    util::{runtime::block_on, secrecy::protect_process, service},
};

/// Value of `--netns` for all network namespaces.
const ALL: &str = "all";

/// Carries out the command line.
pub fn run(cli: Cli) -> Result<ExitCode> {
    // Nearly all other commands hold keys, if only to show their fingerprints. Memory that is locked stays in use.
    if !matches!(cli.command, Command::GuardSyncookies { .. }) {
        protect_process()?;
    }
    if !matches!(cli.command, Command::Run(_) | Command::Lab(_)) {
        // A reader that closes the pipe early, such as `head`, ends the command, but never the controller.
        die_quietly_on_broken_pipe();
    }
    let bpffs = enter(&cli)?;
    match cli.command {
        Command::Run(args) => block_on(run::run(&args, &bpffs, &cli.state_dir))
            .inspect_err(|error| service::failed(&format!("{error:#}")))
            .map(done),
        Command::Reload(args) => block_on(reload::run(&args, &bpffs)).map(done),
        Command::Hide(args) => block_on(hide::hide(&args, &bpffs)).map(done),
        Command::Show(args) => block_on(hide::show(&args, &bpffs)).map(done),
        Command::Lab(args) => block_on(lab::run(args.duration, &bpffs)),
        Command::Status(args) => block_on(status::run(&args, &bpffs)),
        Command::Counters(args) => counters::run(&args, &bpffs).map(done),
        Command::Events(args) => block_on(events::run(&args, &bpffs)).map(done),
        Command::Check(args) => block_on(check::run(&args, &bpffs)),
        Command::Listeners(args) => block_on(listeners::run(&args)).map(done),
        Command::Enable(args) => enable::enable(&args),
        Command::Disable(args) => enable::disable(&args),
        Command::Top(args) => top::run(&args, &bpffs).map(done),
        Command::Report(args) => block_on(report::run(&args, &bpffs)).map(done),
        Command::Keys(Keys::Cookie(args)) => keys::cookie(&args).map(done),
        Command::Keys(Keys::Derive(args)) => keys::derive(&args).map(done),
        Command::Keys(Keys::Status(args)) => keys::status(&args, &bpffs).map(done),
        Command::Keys(Keys::Rotate(args)) => block_on(keys::rotate(&args, &bpffs)).map(done),
        Command::Keys(Keys::Import(args)) => block_on(keys::import(&args, &bpffs)).map(done),
        Command::Fleet(args) => block_on(fleet::run(&args, &cli.state_dir)),
        Command::Version(args) => version::run(&args).map(done),
        Command::GuardSyncookies { folder } => guard(&folder).map(done),
        Command::Generate(args) => generate::run(&args).map(done),
        Command::Unload(args) => block_on(unload::run(&args, &bpffs, &cli.state_dir)).map(done),
    }
}

/// Enters the network namespace that the command line names, and returns its pins. Threads come later, so all are there.
fn enter(cli: &Cli) -> Result<Bpffs> {
    let bpffs = Bpffs::new(&cli.bpffs);
    let Some(name) = &cli.netns else { return Ok(bpffs) };
    if name == ALL {
        if !matches!(cli.command, Command::Status(_) | Command::Counters(_) | Command::Top(_)) {
            bail!("--netns {ALL} is for status, counters and top: name one namespace");
        }
        return Ok(bpffs.of_all());
    }
    let netns = match Netns::find(name) {
        // What is pinned may outlive the namespace. Nothing of it acts on packets then.
        Err(_) if matches!(cli.command, Command::Unload(_)) && !bpffs.of_netns(name).all()?.is_empty() => {
            return Ok(bpffs.of_netns(name));
        }
        netns => netns?,
    };
    let Some(netns) = netns else { return Ok(bpffs) };
    netns.enter()?;
    Ok(bpffs.of_netns(netns.name()))
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

/// Returns the pins of the attached interfaces, or only of `interface`. Fails if there are none.
fn attached(interface: Option<&str>, bpffs: &Bpffs) -> Result<Vec<Pins>> {
    choose(bpffs.attached()?, interface)
}

/// Sends a request to the controller of each attached interface, or only of `interface`, and shows the answers. After a
/// failure it goes on with the rest. It returns the first failure and prints the others.
async fn send(
    interface: Option<&str>,
    bpffs: &Bpffs,
    request: impl Fn(String) -> Request,
    show: impl Fn(&str, &str) -> Result<()>,
) -> Result<()> {
    let mut outcome = Ok(());
    for pins in attached(interface, bpffs)? {
        let name = pins.interface();
        let answer = control::send(&pins, &request(name.to_owned())).await;
        match answer.and_then(|answer| show(name, &answer)) {
            Err(error) if outcome.is_err() => eprintln!("error: {error:#}"),
            shown => outcome = outcome.and(shown),
        }
    }
    outcome
}

/// Returns the pins of `interface` among `all`, or all if none is given. Fails if there are none.
fn choose(all: impl Iterator<Item = Pins>, interface: Option<&str>) -> Result<Vec<Pins>> {
    let chosen: Vec<_> = all.filter(|pins| interface.is_none_or(|name| pins.interface() == name)).collect();
    match interface {
        _ if !chosen.is_empty() => Ok(chosen),
        None => Err(NotRunning("tfo is attached to no interface".to_owned()).into()),
        Some(name) => Err(NotRunning(format!("tfo is not attached to {name}")).into()),
    }
}
