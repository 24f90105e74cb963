//! Standard output. A failed write, for example on a full disk, is an error.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

/// Writes `text` to standard output, and ends its last line.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    write!(out, "{text}{end}").and_then(|()| out.flush()).context("cannot write to standard output")
}
