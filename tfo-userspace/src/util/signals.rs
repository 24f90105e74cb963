//! SIGINT, SIGTERM, and SIGHUP, by which a terminal that is closed ends us, and an operator has the configuration read again.
//! A SIGHUP that is ignored from the beginning, as by nohup(1), stays ignored.

use std::future::pending;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal as Number;
use procfs::process::Process;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    /// To end and to clean up: SIGINT.
    Interrupt,
    /// To end and to leave all as it is: SIGTERM.
    Terminate,
    /// SIGHUP: to read the configuration again, or to end and to clean up where there is none.
    HangUp,
}

/// The signals, caught from the moment this is made.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` where it is ignored.
    hang_up: Option<Signal>,
}

impl Signals {
    /// From now on they are caught.
    pub fn new() -> Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hang_up: if is_ignored(Number::SIGHUP)? { None } else { Some(catch(SignalKind::hangup())?) },
        })
    }

    /// Waits for any of them.
    pub async fn next(&mut self) -> Caught {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Caught::Interrupt,
            _ = self.terminate.recv() => Caught::Terminate,
            _ = hang_up => Caught::HangUp,
        }
    }
}

/// Whether we ignore `signal`, since whoever started us did.
fn is_ignored(signal: Number) -> Result<bool> {
    let status = Process::myself().and_then(|myself| myself.status());
    let status = status.context("cannot read which signals are ignored (/proc/self/status)")?;
    Ok(status.sigign >> (signal as u32 - 1) & 1 == 1)
}
