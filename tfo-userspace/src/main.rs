//! The `tfo` command.

use std::process::ExitCode;

use clap::Parser as _;
use tfo_userspace::{cli::Cli, cmd, error};

fn main() -> ExitCode {
    // A reader that closes the pipe early, such as `head`, is no failure of ours.
    error::die_quietly_on_broken_pipe();
    let cli = Cli::parse();
    let mut logger = env_logger::Builder::new();
    logger
        .filter_level(cli.libraries_log_level())
        .filter_module("tfo", cli.log_level())
        .format_target(false)
        .init();
    match cmd::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            error::exit_code(&error)
        }
    }
}
