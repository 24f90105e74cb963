//! Calls of async code from synchronous code.

use anyhow::{Context as _, Result};

/// Runs `future` on the calling thread, since other threads may be in other network namespaces.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(future)
}
