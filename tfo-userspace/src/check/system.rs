//! Checks of the kernel, our privileges, memory locking, cgroups and the clock.

use std::{io, path::Path};

use anyhow::{Context as _, Result};
use aya::programs::ProgramType;
use nix::unistd::geteuid;
use rustix::thread::{CapabilitySet, capabilities};

use super::Finding;
use crate::{
    kernel::{cgroup, clock, release},
    util::secrecy::may_lock_memory,
};

const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) fn kernel() -> Result<Finding> {
    let release = release::running()?;
    let version =
        release::version(&release).with_context(|| format!("{release:?} is no version of Linux"))?;
    let found = format!("Linux {release}");
    Ok(if version >= release::OLDEST {
        Finding::ok(found)
    } else {
        Finding::fail(found, "the XDP program needs Linux 5.10 or later")
    })
}

pub(super) fn btf() -> Result<Finding> {
    Ok(if Path::new(BTF).exists() {
        Finding::ok(BTF)
    } else {
        Finding::fail(
            format!("this kernel has none ({BTF})"),
            "use one with CONFIG_DEBUG_INFO_BTF=y, as those of all large distributions are",
        )
    })
}

pub(super) fn privileges() -> Result<Finding> {
    let user = geteuid();
    if !user.is_root() {
        return Ok(Finding::fail(
            format!("user {user}: loading an XDP program needs root"),
            "run it with sudo",
        ));
    }
    let held = capabilities(None).map_err(io::Error::from).context("cannot read our capabilities")?.effective;
    let can_load =
        held.contains(CapabilitySet::SYS_ADMIN) || held.contains(CapabilitySet::BPF | CapabilitySet::PERFMON);
    if !can_load || !held.contains(CapabilitySet::NET_ADMIN) {
        return Ok(Finding::fail(
            "root without the capabilities that loading an XDP program needs",
            "give CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN to the container or the service",
        ));
    }
    // This loads a program and attaches it to nothing.
    match aya::sys::is_program_supported(ProgramType::Xdp) {
        Ok(true) => {}
        Ok(false) => return Ok(Finding::fail("this kernel has no XDP", "use one with CONFIG_BPF_SYSCALL=y")),
        Err(error) => {
            return Ok(Finding::fail(
                format!("this kernel does not let us load XDP programs: {error}"),
                "run it in the host's user namespace, and without a filter of system calls",
            ));
        }
    }
    if !held.contains(CapabilitySet::SYS_PTRACE) {
        return Ok(Finding::warn(
            "root without CAP_SYS_PTRACE: listeners of other processes can't be asked",
            "give it to the container or the service",
        ));
    }
    Ok(Finding::ok("root; the kernel loads XDP programs"))
}

pub(super) fn memory_lock() -> Result<Finding> {
    Ok(if may_lock_memory()? {
        Finding::ok("keys can be kept from swap")
    } else {
        Finding::warn(
            "keys may be swapped out: memory can't be locked",
            "give CAP_IPC_LOCK, or lift RLIMIT_MEMLOCK (LimitMEMLOCK=infinity)",
        )
    })
}

pub(super) fn cgroup2() -> Result<Finding> {
    Ok(match cgroup::Cgroup2::find()?.root() {
        Ok(mount) => Finding::ok(mount.display().to_string()),
        Err([why, advice]) => Finding::warn(
            format!("{why}: outcomes of connections can't be seen, and `once` does nothing"),
            advice,
        ),
    })
}

pub(super) fn clock() -> Result<Finding> {
    Ok(if clock::is_clock_synchronised()? {
        Finding::ok("synchronised")
    } else {
        Finding::warn(
            "not synchronised: with --keys secret, hosts drift apart",
            "run chrony or systemd-timesyncd; other sources of keys need no clock",
        )
    })
}
