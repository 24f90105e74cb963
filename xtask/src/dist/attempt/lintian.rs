//! Debian's own opinion of the package.

use std::path::Path;

use anyhow::Result;

use crate::workspace::{command, run, step};

/// Fails at errors and warnings. What does not apply here is in `dist/debian/lintian-overrides`, with the reasons.
pub(super) fn check(package: &Path) -> Result<()> {
    step("lintian");
    run(command("lintian").args(["--fail-on", "error,warning", "--allow-root"]).arg(package))
}
