//! State of a host in its fleet, as its controller says it.

use std::time::Duration;

use tfo_common::info::KeySource;
use tokio::time::timeout;

use crate::{
    control::{self, Request},
    dataplane::{Pinned, pins::Pins},
    fleet::feed::State,
};

/// Longest wait for the answer of a controller.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the controller of `pins`, which are open as `pinned`. `None` if the keys do not come from etcd, if no controller runs,
/// or if it does not answer at once.
pub async fn state(pins: &Pins, pinned: &Pinned) -> Option<State> {
    let has_secret = pinned.info().key_source == KeySource::Secret as u64;
    if !has_secret || !pins.has_controller().unwrap_or(false) {
        return None;
    }
    let answer = timeout(PATIENCE, control::send(pins, &Request::Fleet)).await.ok()?.ok()?;
    serde_json::from_str(&answer).ok()?
}
