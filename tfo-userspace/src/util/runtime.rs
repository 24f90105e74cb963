//! Async code in a place that is not.

use anyhow::{Context as _, Result};

/// Runs `future` on this very thread: other threads may be in other network namespaces.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(future)
}
