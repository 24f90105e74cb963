//! SIGINT, SIGTERM and SIGHUP. SIGHUP comes from a closing terminal, or from an operator who wants a reload. If it is
//! ignored at the start, as under nohup(1), it stays ignored.

use std::future::pending;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal as Number;
use procfs::process::Process;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    /// SIGINT: `tfo run` ends and cleans up.
    Interrupt,
    /// SIGTERM: `tfo run` ends and leaves everything in place.
    Terminate,
    /// SIGHUP: `tfo run` reads its configuration again. Without a configuration file, it ends and cleans up.
    HangUp,
}

/// Receiver of the signals.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Receiver of SIGHUP; `None` if it is ignored.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Begins to catch the signals.
    pub fn new() -> Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hang_up: if is_ignored(Number::SIGHUP)? { None } else { Some(catch(SignalKind::hangup())?) },
        })
    }

    /// Waits for the next signal.
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

/// Whether this process ignores `signal`, which it inherits from its parent.
fn is_ignored(signal: Number) -> Result<bool> {
    let status = Process::myself().and_then(|myself| myself.status());
    let status = status.context("cannot read which signals are ignored (/proc/self/status)")?;
    Ok(status.sigign >> (signal as u32 - 1) & 1 == 1)
}
