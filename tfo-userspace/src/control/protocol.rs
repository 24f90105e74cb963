//! What goes over the socket: one request and one answer, each a JSON object up to the end of what its side says.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use zeroize::Zeroizing;

use crate::model::guards::Hidden;

/// The version of requests and answers. Whoever speaks another one is told so.
pub const VERSION: u32 = 1;

/// The longest request and, where it has to do with keys, the longest answer, in bytes.
pub(super) const LONGEST: usize = 4096;
/// The longest answer to an order that has nothing to do with keys, in bytes.
pub const LONGEST_ACCOUNT: usize = 2 << 20;

/// An order. It has no Debug: it may hold a key.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Make a new key and use it.
    Rotate {
        /// And let nothing that was made with an earlier one be accepted.
        emergency: bool,
    },
    /// Let go of all keys but those that the kernel is to hold: another controller has changed them, since they leaked.
    Forget,
    /// Use this key, in the sysctl's form.
    Import {
        /// The key.
        key: Zeroizing<String>,
    },
    /// Hand out events: see [`EventLog::json`](crate::view::events::EventLog::json).
    Events {
        /// Of this interface.
        interface: String,
        /// Those behind this number.
        after: u64,
        /// And no more than so many, the newest.
        most: usize,
    },
    /// Hand out what is remembered: see [`History::json`](crate::view::history::History::json).
    History {
        /// Of this interface.
        interface: String,
    },
    /// Read the configuration file again.
    Reload,
    /// Hide Fast Open from the stack, or hide it no longer.
    Hide {
        /// On this interface.
        interface: String,
        /// Whose.
        what: Hidden,
        /// Whether to hide it.
        on: bool,
    },
    /// Hand out what [`Order::Hide`] has hidden, as a list of [`Hidden`] in JSON.
    HideList {
        /// On this interface.
        interface: String,
    },
}

/// The names of all orders, for whoever gives one that is none.
pub(super) const ORDERS: &str = "rotate, forget, import, events, history, reload, hide, hide_list";

impl Order {
    /// How long its answer may get, in bytes.
    pub(super) fn longest_answer(&self) -> usize {
        match self {
            Self::Rotate { .. } | Self::Forget | Self::Import { .. } => LONGEST,
            Self::Events { .. }
            | Self::History { .. }
            | Self::Reload
            | Self::Hide { .. }
            | Self::HideList { .. } => LONGEST_ACCOUNT,
        }
    }

    /// How long its answer may take once it is taken up.
    pub(super) fn patience(&self) -> Duration {
        match self {
            // Programs are loaded for it.
            Self::Reload => Duration::from_secs(120),
            Self::Rotate { .. }
            | Self::Forget
            | Self::Import { .. }
            | Self::Events { .. }
            | Self::History { .. }
            | Self::Hide { .. }
            | Self::HideList { .. } => Duration::from_secs(10),
        }
    }
}

/// A request. It has no Debug: see [`Order`].
#[derive(Deserialize, Serialize)]
pub(super) struct Request<O> {
    pub(super) version: u32,
    /// The order is not to be taken up later than this, in nanoseconds of CLOCK_MONOTONIC: whoever gave it is told by then that it
    /// was not.
    pub(super) deadline_ns: u64,
    pub(super) order: O,
}

/// What every version of a request has.
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) version: u32,
}

/// What has come of an order.
#[derive(Deserialize, Serialize)]
pub(super) struct Answer {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

/// Its outcome, in words.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Done(String),
    Failed(String),
}

/// Nanoseconds of CLOCK_MONOTONIC, which all processes of a host have in common.
pub(super) fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}

/// All that the other side says. It is read into its final place, which does not grow: it may hold a key.
pub(super) async fn read(stream: &mut UnixStream, longest: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(longest));
    stream.take(longest as u64).read_to_end(&mut text).await?;
    Ok(text)
}

/// Says `what`, and nothing more. What holds a key does not grow.
pub(super) async fn write(stream: &mut UnixStream, what: &impl Serialize) -> Result<()> {
    let mut text = Zeroizing::new(Vec::with_capacity(LONGEST));
    serde_json::to_writer(&mut *text, what)?;
    stream.write_all(&text).await?;
    Ok(stream.shutdown().await?)
}
