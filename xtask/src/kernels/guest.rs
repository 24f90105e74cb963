//! One boot: a kernel in QEMU, and what its guest says.

use std::path::Path;

use anyhow::{Result, ensure};

use super::packages::Kernel;
use crate::{
    test::tally::Tally,
    workspace::{command, for_each_line},
};

/// How long a guest may take, in seconds. Only one that hangs ever does.
const PATIENCE: &str = "900";

/// What a guest said.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// The release of its kernel.
    pub(super) release: String,
    /// What the verifier made of each form of the program.
    pub(super) verified: Vec<Verified>,
    pub(super) tally: Tally,
    is_done: bool,
}

/// What the verifier made of one form of the program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) form: String,
    pub(super) instructions: u32,
    /// Bytes.
    pub(super) stack: u32,
}

/// Boots `kernel` with that file system and takes in what it says, which is shown as it comes.
pub(super) fn run(kernel: &Kernel, initramfs: &Path, kvm: bool) -> Result<Said> {
    let console = kernel.image.with_file_name("console.log");
    // Without cmpxchg16b: QEMU 7.2 now and then spoils the flags in emulating it, and with those the trap flag. Linux 6.12
    // died of that in its allocator.
    let accelerator =
        if kvm { ["-accel", "kvm", "-cpu", "host"] } else { ["-accel", "tcg", "-cpu", "max,-cx16"] };
    let mut qemu = command("timeout");
    qemu.args([PATIENCE, "qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none"])
        .args(accelerator)
        .args(["-m", "1G", "-smp", "2"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 panic=-1"])
        .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"])
        .stdin(std::process::Stdio::null());
    let mut said = Said::default();
    let status = for_each_line(&mut qemu, |line| {
        // As terminals end them.
        let line = line.trim_end_matches('\r');
        println!("{line}");
        said.read(line);
    })?;
    ensure!(
        status.success() && said.is_done,
        "the guest did not come to its end ({status}): see {}",
        console.display()
    );
    ensure!(said.tally.take_unfinished() == 0, "a test program ended without a result");
    Ok(said)
}

impl Said {
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
    fn what_a_guest_says_is_taken_in() {
        let mut said = Said::default();
        for line in [
            "guest: 6.1.0-50-cloud-amd64",
            "running 1 test",
            "test the_cost_is_told ... verified: observe ethernet 1234 instructions 168 stack",
            "verified: accelerate ip 5 instructions 8 stack",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            said.read(line);
        }
        assert_eq!(said.release, "6.1.0-50-cloud-amd64");
        let verified =
            |form: &str, instructions, stack| Verified { form: form.to_owned(), instructions, stack };
        assert_eq!(said.verified, [verified("observe ethernet", 1234, 168), verified("accelerate ip", 5, 8)]);
        assert_eq!(said.tally.to_string(), "1 passed, 0 failed, 0 skipped");
        assert!(!said.is_done);
        said.read("guest: done");
        assert!(said.is_done);
    }
}
