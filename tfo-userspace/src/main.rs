//! Binary of the `tfo` command.

use std::{process::ExitCode, time::Duration};

use clap::Parser as _;
use tfo_userspace::{
    cli::{args::Cli, commands, exit},
    util::logging,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let logging = logging::init(cli.log_format, cli.log_level(), cli.libraries_log_level());
    let outcome = logging.and_then(|()| commands::run(cli));
    logging::drain(Duration::from_secs(1));
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        exit::exit_code(&error)
    })
}
