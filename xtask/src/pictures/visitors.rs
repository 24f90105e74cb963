//! Clients: curl from many addresses.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::site::{Background, Site};

/// Number of clients of each family that come back within seconds.
///
/// Linux keeps the cookies of some five sources for each address of a server (`TCP_METRICS_RECLAIM_DEPTH`).
const REGULARS: u64 = 3;
/// Number of clients that come back after as many seconds, when the kernel no longer has the key of their cookie.
const RARE: u64 = 45;
/// Seconds from one peak of visits to the next.
const WAVE: f64 = 60.0;

/// Clients, with the curls that are connecting now.
pub(super) struct Visitors<'a> {
    site: &'a Site,
    second: u64,
    next: Instant,
    connecting: Vec<Background>,
}

impl<'a> Visitors<'a> {
    /// Makes clients in the clients' namespace of `site`.
    pub(super) fn new(site: &'a Site) -> Self {
        Self { site, second: 0, next: Instant::now(), connecting: Vec::new() }
    }

    /// Starts the visits of the next second, and waits until it is over.
    pub(super) fn visit(&mut self) -> Result<()> {
        let wave = (self.second as f64 / WAVE * std::f64::consts::TAU).sin();
        let visits = (30.0 + 18.0 * wave) as u64;
        let (regular, rare) = (1 + self.second % REGULARS, 1 + self.second % RARE);
        self.curl("192.0.2.1", &format!("198.51.100.{regular}"), visits, true)?;
        self.curl("[2001:db8::1]", &format!("2001:db8:1::{regular}"), visits / 2, true)?;
        // Each rare client visits another address of the server.
        self.curl(&format!("192.0.2.{}", 128 + rare), &format!("203.0.113.{rare}"), 2, true)?;
        self.curl("192.0.2.1", "198.51.100.250", 5, false)?;

        self.second += 1;
        self.next += Duration::from_secs(1);
        thread::sleep(self.next.saturating_duration_since(Instant::now()));
        let mut connecting = Vec::new();
        for mut curl in self.connecting.drain(..) {
            if !curl.has_ended()? {
                connecting.push(curl);
            }
        }
        self.connecting = connecting;
        Ok(())
    }

    /// Starts a curl that connects to `server` from `source` this many times within a second.
    fn curl(&mut self, server: &str, source: &str, visits: u64, fast_open: bool) -> Result<()> {
        let mut curl = self.site.client("curl");
        curl.args(["--silent", "--noproxy", "*", "--max-time", "5", "--http1.0", "--interface", source])
            .args(["--header", "Connection: close", "--rate", &format!("{visits}/s")])
            .args(fast_open.then_some("--tcp-fastopen"))
            // curl counts through the range in brackets.
            .arg(format!("http://{server}/?[1-{visits}]"))
            .stdout(Stdio::null());
        self.connecting.push(Background::start(&mut curl)?);
        Ok(())
    }
}
