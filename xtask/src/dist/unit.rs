//! The service's unit: whether systemd understands it, and how exposed it finds the service.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::Release;
use crate::workspace::{command, output, step};

/// Exposure that `systemd-analyze security` may find, in tenths: 0 is best, 100 worst.
const MOST_EXPOSED: u32 = 25;

/// Checks the unit, with the binary and the manual pages of the stage.
pub(super) fn check(release: &Release) -> Result<()> {
    step("the unit");
    let stage = release.stage();
    let text = fs::read_to_string(stage.join("usr/lib/systemd/system/tfo.service"))?;
    let folder = release.dir.join("unit");
    fs::create_dir_all(&folder)?;
    let copy = folder.join("tfo.service");
    fs::write(&copy, text.replace("/usr/sbin/tfo", &release.binary().display().to_string()))?;
    let verified = command("systemd-analyze")
        .args(["verify", "--recursive-errors=no"])
        .arg(&copy)
        .env("MANPATH", stage.join("usr/share/man"))
        .output()
        .context("cannot start systemd-analyze")?;
    // A setting that it does not know is only a warning.
    let faults = String::from_utf8_lossy(&verified.stderr);
    ensure!(verified.status.success() && faults.is_empty(), "systemd finds fault with the unit: {faults}");

    let mut analyze = command("systemd-analyze");
    analyze.args(["security", "--offline=yes", "--no-pager"]).arg(format!("--threshold={MOST_EXPOSED}"));
    let rows = output(analyze.arg(&copy)).context("the service is too exposed")?;
    let last =
        rows.lines().rfind(|line| !line.trim().is_empty()).context("systemd-analyze printed nothing")?;
    println!("{last}");
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
}
