//! Protocol of the socket: one request and one answer. Each is a JSON object that ends with the end of the stream.

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

/// Version of requests and answers. A request of another version is answered with an error.
pub const VERSION: u32 = 1;

/// Maximum length of a request, and of an answer about keys, in bytes.
pub(super) const LONGEST: usize = 4096;
/// Maximum length of an answer that is not about keys, in bytes.
pub const MAX_ANSWER_BYTES: usize = 2 << 20;

/// Request of a client to a controller. The type has no `Debug`, since it may hold a key.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Makes a new key and uses it.
    Rotate {
        /// Whether cookies of earlier keys are refused from now on.
        emergency: bool,
    },
    /// Makes the maps forget all keys but the kernel's and the next one. The client sends it to the other controllers
    /// after an emergency rotation by one of them.
    Forget,
    /// Makes a given key the current one.
    Import {
        /// The key, in the sysctl's form.
        key: Zeroizing<String>,
    },
    /// Returns events: see [`EventLog::json`](crate::view::events::EventLog::json).
    Events {
        /// Name of the interface.
        interface: String,
        /// Sequence number after which events are returned.
        after: u64,
        /// Maximum number of events. The newest are returned.
        most: usize,
    },
    /// Returns the samples of the last hour: see [`History::json`](crate::view::history::History::json).
    History {
        /// Name of the interface.
        interface: String,
    },
    /// Reads the configuration file again.
    Reload,
    /// Gives an order of `tfo hide`, or takes it back.
    Hide {
        /// Name of the interface.
        interface: String,
        /// Target of the order.
        what: Hidden,
        /// Whether the order is given: false takes it back.
        on: bool,
    },
    /// Returns the orders of `tfo hide` as a list of [`Hidden`] in JSON.
    HideList {
        /// Name of the interface.
        interface: String,
    },
    /// Returns the state of the host in its fleet in JSON, or `null` if its keys do not come from etcd.
    Fleet,
}

/// Names of all requests, for the answer to an unknown one.
pub(super) const NAMES: &str = "rotate, forget, import, events, history, reload, hide, hide_list, fleet";

impl Request {
    /// Returns the maximum length of the answer, in bytes.
    pub(super) fn longest_answer(&self) -> usize {
        match self {
            Self::Rotate { .. } | Self::Forget | Self::Import { .. } | Self::Fleet => LONGEST,
            Self::Events { .. }
            | Self::History { .. }
            | Self::Reload
            | Self::Hide { .. }
            | Self::HideList { .. } => MAX_ANSWER_BYTES,
        }
    }

    /// Returns the time that the answer may take after the controller has taken the request up.
    pub(super) fn patience(&self) -> Duration {
        match self {
            // A reload loads and verifies programs.
            Self::Reload => Duration::from_secs(120),
            Self::Rotate { .. }
            | Self::Forget
            | Self::Import { .. }
            | Self::Events { .. }
            | Self::History { .. }
            | Self::Hide { .. }
            | Self::HideList { .. }
            | Self::Fleet => Duration::from_secs(10),
        }
    }
}

/// Request with its version and deadline. The type has no `Debug`: see [`Request`].
#[derive(Deserialize, Serialize)]
pub(super) struct Envelope<O> {
    pub(super) version: u32,
    /// Deadline for taking the request up, in nanoseconds of CLOCK_MONOTONIC. A later request is refused, since
    /// its client may have given up.
    pub(super) deadline_ns: u64,
    pub(super) order: O,
}

/// Common part of all versions of a request.
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) version: u32,
}

/// Answer to a request.
#[derive(Deserialize, Serialize)]
pub(super) struct Answer {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

/// Outcome of a request, as text.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Done(String),
    Failed(String),
}

/// Returns the time of CLOCK_MONOTONIC in nanoseconds. All processes of a host share this clock.
pub(super) fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}

/// Reads a message of at most `longest` bytes, up to the end of the stream. The message may hold a key, so its buffer
/// does not grow: growing would leave a copy behind.
pub(super) async fn read(stream: &mut UnixStream, longest: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(longest));
    stream.take(longest as u64).read_to_end(&mut text).await?;
    Ok(text)
}

/// Writes `message` and shuts down our side of the stream. The buffer of a message with a key does not grow.
pub(super) async fn write(stream: &mut UnixStream, message: &impl Serialize) -> Result<()> {
    let mut text = Zeroizing::new(Vec::with_capacity(LONGEST));
    serde_json::to_writer(&mut *text, message)?;
    stream.write_all(&text).await?;
    Ok(stream.shutdown().await?)
}
