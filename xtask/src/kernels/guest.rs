//! Boot of one kernel in QEMU, and the output of its guest.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};

use super::packages::Kernel;
use crate::{
    test::tally::Tally,
    workspace::{command, for_each_line},
};

/// Longest time of a guest, in seconds. Only a guest that hangs takes as long.
const PATIENCE: &str = "1800";

/// Command line of the guest's kernel.
///
/// Linux 7.3 takes the storage of a socket from `kmalloc_nolock`. On a CPU without cmpxchg16b, which guests do not get, that
/// has memory only in caches that are debugged.
///
/// On a busy host, an emulated timer may come too late for the kernel's check at boot, which then panics.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 slab_debug=F,kmalloc-* no_timer_check";

/// Results that a guest printed.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// Release of its kernel.
    pub(crate) release: String,
    /// Results of the verifier, one for each form of the program.
    pub(crate) verified: Vec<Verified>,
    pub(crate) tally: Tally,
    is_done: bool,
}

/// Result of the verifier for one form of the program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) form: String,
    pub(crate) instructions: u32,
    /// Depth of the stack in bytes.
    pub(crate) stack: u32,
}

/// Guest to boot.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Kernel,
    /// File system, from [`image`](super::image).
    pub(crate) initramfs: &'a Path,
    /// Whether /dev/kvm is used, instead of emulating the processor.
    pub(crate) kvm: bool,
}

impl Guest<'_> {
    /// Boots it. Shows its output as it comes, and returns the results in it.
    pub(crate) fn run(&self) -> Result<Results> {
        let console = self.kernel.image.with_file_name("console.log");
        // Without cmpxchg16b: QEMU 7.2 sometimes emulates it with wrong flags, the trap flag among them. That crashed the
        // allocator of Linux 6.12.
        let accelerator =
            if self.kvm { ["-accel", "kvm", "-cpu", "host"] } else { ["-accel", "tcg", "-cpu", "max,-cx16"] };
        let mut qemu = command("timeout");
        qemu.args([PATIENCE, "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-reboot", "-display", "none"])
            .args(accelerator)
            .args(["-m", "1G", "-smp", "2"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", COMMAND_LINE])
            .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"])
            .stdin(std::process::Stdio::null());
        Results::of(&mut qemu, &console)
    }
}

impl Results {
    /// Runs the emulator to its end.
    fn of(qemu: &mut Command, console: &Path) -> Result<Self> {
        let mut results = Self::default();
        let status = for_each_line(qemu, |line| {
            // The serial console ends lines with CR and LF.
            let line = line.trim_end_matches('\r');
            println!("{line}");
            results.read(line);
        })?;
        ensure!(
            status.success() && results.is_done,
            "the guest did not come to its end ({status}): see {}",
            console.display()
        );
        ensure!(results.tally.take_unfinished() == 0, "a test program ended without a result");
        Ok(results)
    }

    fn read(&mut self, line: &str) {
        match line.strip_prefix("guest: ") {
            Some("done") => self.is_done = true,
            Some(release) => release.clone_into(&mut self.release),
            None => {}
        }
        self.verified.extend(Verified::parse(line));
        self.tally.read(line);
    }
}

impl Verified {
    /// Reads `verified: observe ethernet 1234 instructions 168 stack`, which libtest may put after the test's name.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("verified: ")?;
        let (form, stack) = rest.strip_suffix(" stack")?.split_once(" instructions ")?;
        let (form, instructions) = form.rsplit_once(' ')?;
        Some(Self {
            form: form.to_owned(),
            instructions: instructions.parse().ok()?,
            stack: stack.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_a_guest_is_read() {
        let mut results = Results::default();
        for line in [
            "guest: 6.1.0-50-cloud-amd64",
            "running 1 test",
            "test verification_costs ... verified: observe ethernet 1234 instructions 168 stack",
            "verified: accelerate ip 5 instructions 8 stack",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            results.read(line);
        }
        assert_eq!(results.release, "6.1.0-50-cloud-amd64");
        let verified =
            |form: &str, instructions, stack| Verified { form: form.to_owned(), instructions, stack };
        assert_eq!(
            results.verified,
            [verified("observe ethernet", 1234, 168), verified("accelerate ip", 5, 8)]
        );
        assert_eq!(results.tally.to_string(), "1 passed, 0 failed, 0 skipped");
        assert!(!results.is_done);
        results.read("guest: done");
        assert!(results.is_done);
    }
}
