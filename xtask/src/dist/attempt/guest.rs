//! Boot of a Debian in QEMU, and what its operator says.

use std::{path::Path, process::Stdio};

use anyhow::{Result, ensure};

use super::{dir, system::System};
use crate::workspace::{command, for_each_line};

/// Longest time of a guest, in seconds. Only a guest that hangs takes as long.
const PATIENCE: &str = "3000";

/// Steps that the operator has reported.
#[derive(Debug, Default)]
struct Report {
    passed: usize,
    failed: Vec<String>,
    is_done: bool,
}

/// Boots `system`, with the disk `goods` beside its own. Shows its output as it comes. Returns the number of steps.
pub(super) fn run(system: &System, goods: &Path, kvm: bool) -> Result<usize> {
    // Without cmpxchg16b, as for `cargo xtask kernels`.
    let accelerator =
        if kvm { ["-accel", "kvm", "-cpu", "host"] } else { ["-accel", "tcg", "-cpu", "max,-cx16"] };
    let drive =
        |path: &Path, options: &str| format!("file={},format=raw,if=virtio,{options}", path.display());
    let mut qemu = command("timeout");
    qemu.args([PATIENCE, "qemu-system-x86_64", "-nodefaults", "-display", "none"])
        .args(accelerator)
        .args(["-m", "1G", "-smp", "2"])
        .arg("-kernel")
        .arg(&system.kernel)
        .arg("-initrd")
        .arg(&system.initrd)
        .args(["-append", "root=/dev/vda rw console=ttyS0"])
        // What the guest writes goes into a temporary file, which outlives a reboot and ends with QEMU.
        .args(["-drive", &drive(&system.disk, "snapshot=on")])
        .args(["-drive", &drive(goods, "readonly=on")])
        .args(["-serial", &format!("file:{}", system.console.display()), "-serial", "stdio"])
        .env("TMPDIR", dir())
        .stdin(Stdio::null());
    let mut report = Report::default();
    let status = for_each_line(&mut qemu, |line| {
        // The serial console ends lines with CR and LF.
        let line = line.trim_end_matches('\r');
        println!("{line}");
        report.read(line);
    })?;
    ensure!(report.failed.is_empty(), "{}", report.failed.join("\n"));
    ensure!(
        status.success() && report.is_done && report.passed > 0,
        "the guest did not come to its end ({status}): see {}",
        system.console.display()
    );
    Ok(report.passed)
}

impl Report {
    fn read(&mut self, line: &str) {
        let Some(said) = line.strip_prefix("try: ") else { return };
        if said == "done" {
            self.is_done = true;
        } else if said.starts_with("ok: ") {
            self.passed += 1;
        } else {
            self.failed.push(said.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_and_failures_kept() {
        let mut report = Report::default();
        for line in [
            "[  OK  ] Reached target",
            "try: ok: install: ii 0.2.0-1",
            "try: failed: purge: left",
            "try: done",
        ] {
            report.read(line);
        }
        assert_eq!((report.passed, report.is_done), (1, true));
        assert_eq!(report.failed, ["failed: purge: left"]);
    }
}
