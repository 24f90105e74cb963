//! Standard output, where a full disk is an error like any other.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

/// Writes `text`, and an end of the line where it has none.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    write!(out, "{text}{end}").and_then(|()| out.flush()).context("cannot write to standard output")
}
