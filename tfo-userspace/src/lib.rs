//! The controller: loads and attaches the XDP program, keeps its keys in step with the kernel, and shows what it
//! counts. The binary is `tfo`; the modules are public so that the tests drive the same code.

pub mod background;
pub mod check;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod datapath;
pub mod descriptors;
pub mod error;
pub mod events;
pub mod files;
pub mod guards;
pub mod history;
pub mod interface;
pub mod kernel;
pub mod keys;
pub mod lab;
pub mod listeners;
pub mod logging;
pub mod metrics;
pub mod netlink;
pub mod output;
pub mod pins;
pub mod report;
pub mod saved;
pub mod screen;
pub mod secrecy;
pub mod services;
pub mod signals;
pub mod top;

use anyhow::{Context as _, Result};

/// Runs `future` on this very thread: other threads may be in other network namespaces.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(future)
}
