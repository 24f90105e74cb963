//! The `tfo` command.

use std::{io, process::ExitCode, time::Duration};

use clap::Parser as _;
use env_logger::Target;
use tfo_userspace::{
    cli::{args::Cli, commands, exit},
    util::{background::Background, logging::Records},
};

/// Log lines that may wait for whoever reads them.
const LOG_QUEUE: usize = 1024;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = match Background::new(io::stderr(), LOG_QUEUE) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("error: cannot start a thread: {error}");
            return ExitCode::FAILURE;
        }
    };
    env_logger::Builder::new()
        .filter_level(cli.libraries_log_level())
        .filter_module("tfo", cli.log_level())
        .format_target(false)
        .target(Target::Pipe(Box::new(Records::to(log.clone()))))
        .init();
    let outcome = commands::run(cli);
    log.drain(Duration::from_secs(1));
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        exit::exit_code(&error)
    })
}
