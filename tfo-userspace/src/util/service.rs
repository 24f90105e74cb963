//! Notices to systemd, if it runs this process as a service: sd_notify(3). Without it they do nothing.

use std::{
    env,
    fmt::Display,
    time::{Duration, Instant},
};

use sd_notify::{NotifyState, notify, watchdog_enabled};
use tracing::debug;

/// Time between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Service as systemd sees it.
#[derive(Debug)]
pub struct Service {
    /// Whether a service manager listens.
    is_heard: bool,
    is_ready: bool,
    is_reloading: bool,
    /// Text of the last status.
    status: String,
    /// Time of the last report.
    reported: Option<Instant>,
    watchdog: Option<Watchdog>,
}

/// Signs of life that systemd asks for (`WatchdogSec=`).
#[derive(Debug)]
struct Watchdog {
    every: Duration,
    last: Option<Instant>,
}

impl Default for Service {
    fn default() -> Self {
        // Half the time, as sd_watchdog_enabled(3) advises.
        let watchdog = watchdog_enabled().map(|limit| Watchdog { every: limit / 2, last: None });
        Self {
            is_heard: env::var_os("NOTIFY_SOCKET").is_some(),
            is_ready: false,
            is_reloading: false,
            status: String::new(),
            reported: None,
            watchdog,
        }
    }
}

impl Service {
    /// Gives a sign of life, if one is due. Call it as often as the main loop goes round.
    pub fn is_alive(&mut self) {
        if let Some(Watchdog { every, last }) = &mut self.watchdog
            && last.is_none_or(|last| last.elapsed() >= *every)
        {
            *last = Some(Instant::now());
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// Whether it is time for a [`report`](Self::report): each second, and at each call until the end of the start.
    pub fn is_report_due(&self) -> bool {
        let is_old = |at: Instant| at.elapsed() >= REPORT_EVERY;
        self.is_heard && (!self.is_ready || self.reported.is_none_or(is_old))
    }

    /// Reports the state in one line, and the end of the start once all is well.
    pub fn report(&mut self, state: Result<&str, &str>) {
        self.reported = Some(Instant::now());
        let text = state.unwrap_or_else(|why| why).replace('\n', "; ");
        if state.is_ok() && !self.is_ready {
            self.is_ready = true;
            tell(&[NotifyState::Ready, NotifyState::Status(&text)]);
        } else if text != self.status {
            tell(&[NotifyState::Status(&text)]);
        }
        self.status = text;
    }

    /// Reports that a reload begins. `Type=notify-reload` also takes the time of it.
    pub fn reload_begins(&mut self) {
        if self.is_ready && !self.is_reloading {
            self.is_reloading = true;
            match NotifyState::monotonic_usec_now() {
                Ok(now) => tell(&[NotifyState::Reloading, now]),
                Err(error) => debug!("systemd is not told of a reload: {error}"),
            }
        }
    }

    /// Reports the end of a reload, if one has begun.
    pub fn reload_ended(&mut self) {
        if std::mem::take(&mut self.is_reloading) {
            tell(&[NotifyState::Ready]);
        }
    }

    /// Reports that the process is about to end.
    pub fn stops(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

/// Reports the error of which the process ends, for `systemctl status`.
pub fn failed(error: &impl Display) {
    tell(&[NotifyState::Status(&error.to_string().replace('\n', "; "))]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = notify(state) {
        debug!("systemd is not told {state:?}: {error}");
    }
}
