//! SIGINT, SIGTERM, and SIGHUP, by which a terminal that is closed ends us, and an operator has the configuration read again.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    /// To end: SIGINT or SIGTERM.
    End,
    /// SIGHUP: to end, where there is nothing to read again.
    HangUp,
}

/// The signals, caught from the moment this is made.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// From now on they are caught.
    pub fn new() -> Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hang_up: catch(SignalKind::hangup())?,
        })
    }

    /// Waits for any of them.
    pub async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.interrupt.recv() => Caught::End,
            _ = self.terminate.recv() => Caught::End,
            _ = self.hang_up.recv() => Caught::HangUp,
        }
    }
}
