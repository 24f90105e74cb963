//! What wakes the controller between two of its rounds: a program that is loaded, or an interface that comes or goes.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::Notify;
use tracing::debug;

/// Wakes the controller. What happened it finds out by itself, so that nothing is missed.
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Wakes it, from whichever thread.
    pub fn up(&self) {
        self.0.notify_one();
    }

    /// Waits until somebody does.
    pub async fn wait(&self) {
        self.0.notified().await;
    }

    /// Wakes it at each change of an interface of the calling thread's network namespace (RTNLGRP_LINK).
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
            debug!("interfaces that come and go are found by looking for them");
        });
        Ok(())
    }
}
