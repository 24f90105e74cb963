//! The subcommands, a file each.

mod counters;
mod keys;
mod run;
mod status;
mod unload;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{
    cli::{Cli, Command, Keys, Select},
    error::NotRunning,
    lab,
    pins::{Bpffs, Pins},
};

/// Carries out the command line.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let bpffs = Bpffs::new(&cli.bpffs);
    let log_level = cli.log_level();
    match cli.command {
        Command::Run(args) => block_on(run::run(&args, &bpffs, log_level)).map(done),
        Command::Lab(args) => block_on(lab::run(&args, &bpffs, log_level)),
        Command::Status(args) => block_on(status::run(&args, &bpffs)),
        Command::Counters(args) => counters::run(&args, &bpffs).map(done),
        Command::Keys(Keys::Cookie(args)) => keys::cookie(&args).map(done),
        Command::Unload(args) => unload::run(&args, &bpffs).map(done),
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

/// Runs `future` on this very thread: other threads may be in other network namespaces.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(future)
}

/// The pins that `select` names; an error where there are none.
fn selected(select: &Select, bpffs: &Bpffs) -> Result<Vec<Pins>> {
    let all = bpffs.all()?;
    match &select.interface {
        None if all.is_empty() => Err(NotRunning("tfo is attached to no interface".to_owned()).into()),
        None => Ok(all),
        Some(name) => {
            let found: Vec<_> = all.into_iter().filter(|pins| pins.interface() == name).collect();
            if found.is_empty() {
                return Err(NotRunning(format!("tfo is not attached to {name}")).into());
            }
            Ok(found)
        }
    }
}
