//! Exit statuses: 0 fine, 1 failed, 2 usage (clap's own), 3 not running.

use std::process::ExitCode;

use nix::sys::signal::{SigHandler, Signal, signal};

use crate::control::NotRunning;

/// Exit status of a command that needs a running program and finds none.
pub const NOT_RUNNING: u8 = 3;

/// Returns the exit status for `error`.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<NotRunning>() { ExitCode::from(NOT_RUNNING) } else { ExitCode::FAILURE }
}

/// Makes a write to a closed pipe end the process, as it does for other commands, instead of a panic.
pub fn die_quietly_on_broken_pipe() {
    // SAFETY: SIG_DFL runs no code of ours.
    let result = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    debug_assert!(result.is_ok(), "SIGPIPE has a default action");
}
