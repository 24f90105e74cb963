//! The service's unit: whether systemd understands it, and how exposed it finds the service.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::{
    Release,
    stage::{DROP_IN, install},
};
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
    let man = stage.join("usr/share/man");
    verify(&copy, &man)?;
    expose(&copy, "tfo.service")?;
    // A drop-in is found beside the unit.
    install(&release.root.join(DROP_IN), &folder.join("tfo.service.d/fast-open.conf"))?;
    verify(&copy, &man)?;
    expose(&copy, "tfo.service with fast-open.conf")?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// Fails if systemd does not understand `unit`. The manual pages that it names are below `man`.
fn verify(unit: &Path, man: &Path) -> Result<()> {
    let verified = command("systemd-analyze")
        .args(["verify", "--recursive-errors=no"])
        .arg(unit)
        .env("MANPATH", man)
        .output()
        .context("cannot start systemd-analyze")?;
    // A setting that it does not know is only a warning.
    let faults = String::from_utf8_lossy(&verified.stderr);
    ensure!(verified.status.success() && faults.is_empty(), "systemd finds fault with the unit: {faults}");
    Ok(())
}

/// Fails if the service of `unit` is too exposed.
fn expose(unit: &Path, name: &str) -> Result<()> {
    let mut analyze = command("systemd-analyze");
    analyze.args(["security", "--offline=yes", "--no-pager"]).arg(format!("--threshold={MOST_EXPOSED}"));
    let rows = output(analyze.arg(unit)).with_context(|| format!("{name} is too exposed"))?;
    let last =
        rows.lines().rfind(|line| !line.trim().is_empty()).context("systemd-analyze printed nothing")?;
    println!("{name}: {}", last.trim_start_matches(['\u{2192}', ' ']));
    Ok(())
}
