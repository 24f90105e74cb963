//! Wake-up of the controller between two regular steps, when a program is loaded or an interface comes or goes.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::Notify;
use tracing::debug;

/// Handle that wakes the controller. It carries no message: the controller looks at everything anew and so misses
/// nothing.
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Wakes the controller, from any thread.
    pub fn up(&self) {
        self.0.notify_one();
    }

    /// Waits for a wake-up.
    pub async fn wait(&self) {
        self.0.notified().await;
    }

    /// Wakes the controller at each change of an interface of the calling thread's network namespace (RTNLGRP_LINK).
    pub fn at_link_changes(&self) -> Result<()> {
        let connection = new_multicast_connection(&[MulticastGroup::Link]);
        let (connection, _, mut messages) =
            connection.context("cannot hear of interfaces that come and go")?;
        let wake = self.clone();
        tokio::spawn(connection);
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                wake.up();
            }
            debug!("interfaces that come and go are found by polling");
        });
        Ok(())
    }
}
