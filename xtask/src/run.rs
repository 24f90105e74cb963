//! `cargo xtask run`: builds `tfo` and becomes it, so that signals and the exit status are its own.

use std::{
    convert::Infallible, ffi::OsString, io::ErrorKind, os::unix::process::CommandExt as _, process::Command,
};

use anyhow::{Result, anyhow};

use crate::{build, workspace::is_root};

/// Arguments of `cargo xtask run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of `tfo run` if `-i`/`--interface` is among them, else of `tfo lab`; or a subcommand of `tfo` with its
    /// own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

/// Builds `tfo` and replaces this process with it, through sudo unless root.
pub(crate) fn run(args: &Args) -> Result<Infallible> {
    let tfo = build::build(&build::Args::default())?;
    let mut command = if is_root() {
        Command::new(&tfo)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("--").arg(&tfo);
        sudo
    };
    let err = command.args(subcommand(&args.args)).args(&args.args).exec();
    if !is_root() && err.kind() == ErrorKind::NotFound {
        return Err(anyhow!("tfo needs root, and sudo is not installed: install sudo, or run this as root"));
    }
    Err(anyhow!(err).context(format!("cannot start {}", tfo.display())))
}

/// Returns the subcommand of `tfo` that the arguments are meant for; `None` if they start with one.
fn subcommand(args: &[OsString]) -> Option<&'static str> {
    let is_word = |arg: &OsString| !arg.as_encoded_bytes().starts_with(b"-");
    if args.first().is_some_and(is_word) {
        None
    } else if args.iter().any(names_interface) {
        Some("run")
    } else {
        Some("lab")
    }
}

/// Whether this is `-i` or `--interface`, alone or with its value.
fn names_interface(arg: &OsString) -> bool {
    let arg = arg.as_encoded_bytes();
    let is_short = arg.starts_with(b"-i");
    is_short || arg == b"--interface" || arg.starts_with(b"--interface=")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    /// Returns the command line that `tfo` gets from `cargo xtask run LINE`.
    fn routed(line: &str) -> String {
        let words = ["xtask", "run"].into_iter().chain(line.split_whitespace());
        let crate::Task::Run(args) = crate::Task::parse_from(words) else { panic!("not the run task") };
        let args = &args.args;
        let words = subcommand(args).into_iter().chain(args.iter().map(|arg| arg.to_str().expect("UTF-8")));
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn without_an_interface_it_is_the_lab() {
        assert_eq!(routed(""), "lab");
        assert_eq!(routed("-- --for 20"), "lab --for 20");
        assert_eq!(routed("--for 20"), "lab --for 20");
        assert_eq!(routed("-- --help"), "lab --help");
    }

    #[test]
    fn with_an_interface_it_is_run() {
        assert_eq!(routed("-i eth0"), "run -i eth0");
        assert_eq!(routed("-ieth0"), "run -ieth0");
        assert_eq!(routed("--interface eth0 --mode shield"), "run --interface eth0 --mode shield");
        assert_eq!(routed("-- --mode observe --interface=eth0"), "run --mode observe --interface=eth0");
    }

    #[test]
    fn a_subcommand_is_taken_as_it_stands() {
        assert_eq!(routed("counters -i eth0 --json"), "counters -i eth0 --json");
        assert_eq!(routed("keys status"), "keys status");
    }
}
