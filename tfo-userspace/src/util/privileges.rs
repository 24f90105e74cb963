//! Capabilities of this process: those that `tfo run` needs, and the end of all others.
//!
//! The kernel keeps them by thread, so each thread gives up its own. A thread that is started later inherits what is left.

use anyhow::{Context as _, Result, bail};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// A capability that `tfo run` needs as long as it runs, with what fails without it.
pub struct Needed {
    /// The capability.
    pub capability: CapabilitySet,
    /// Name of the capability.
    pub name: &'static str,
    /// Use of it.
    pub why: &'static str,
}

/// Capabilities without which `tfo run` can't attach its programs, nor load others at a reload.
pub const NEEDED: [Needed; 3] = [
    Needed { capability: CapabilitySet::BPF, name: "CAP_BPF", why: "loading programs and making maps" },
    Needed {
        capability: CapabilitySet::NET_ADMIN,
        name: "CAP_NET_ADMIN",
        why: "loading programs that see packets, and attaching them to interfaces",
    },
    Needed {
        capability: CapabilitySet::PERFMON,
        name: "CAP_PERFMON",
        why: "loading programs that compute with pointers, or read the kernel's sockets",
    },
];

/// Capabilities that are of use to `tfo run` after its start, where it has them: files of other users that its command line
/// names, and memory that stays locked as it grows.
const USEFUL: CapabilitySet =
    CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH).union(CapabilitySet::IPC_LOCK);

/// Fails if the calling thread lacks one of [`NEEDED`]. CAP_SYS_ADMIN includes the two that are newer (Linux 5.8).
pub fn check() -> Result<()> {
    let effective = capabilities(None).context("cannot read the capabilities of this process")?.effective;
    let has = |needed: &&Needed| {
        let is_included = needed.capability != CapabilitySet::NET_ADMIN;
        effective.contains(needed.capability) || is_included && effective.contains(CapabilitySet::SYS_ADMIN)
    };
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|needed| !has(needed))
        .map(|needed| format!("{} ({})", needed.name, needed.why))
        .collect();
    if !missing.is_empty() {
        bail!(
            "this process lacks {}: run it as root with all capabilities, or add it to those of the service (CapabilityBoundingSet=) or container",
            missing.join(" and ")
        );
    }
    Ok(())
}

/// Gives up every capability of the calling thread that `tfo run` does not use after its start. It keeps CAP_SYS_ADMIN if
/// that stands in for others, or if it `keeps_admin`. It keeps CAP_SYS_PTRACE if it may have to set options of other processes'
/// sockets (`may_enable`).
pub fn drop_unneeded(keeps_admin: bool, may_enable: bool) -> Result<()> {
    let useful = if may_enable { USEFUL | CapabilitySet::SYS_PTRACE } else { USEFUL };
    let needed = NEEDED.iter().fold(useful, |all, needed| all.union(needed.capability));
    let has_all = capabilities(None)?.effective.contains(CapabilitySet::BPF | CapabilitySet::PERFMON);
    keep(if keeps_admin || !has_all { needed | CapabilitySet::SYS_ADMIN } else { needed })
}

/// Gives up every capability of the calling thread.
pub fn drop_all() -> Result<()> {
    keep(CapabilitySet::empty())
}

/// Gives up every capability of the calling thread that is not `kept`. Programs that it starts can't get them back.
pub fn keep(kept: CapabilitySet) -> Result<()> {
    let context = "cannot give up capabilities";
    let before = capabilities(None).context(context)?;
    // Without CAP_SETPCAP the bounding set stays. Where a service manager has taken that one, it has taken others, too.
    if before.effective.contains(CapabilitySet::SETPCAP) {
        for (_, one) in CapabilitySet::all().difference(kept).iter_names() {
            // An older kernel does not know all of them.
            if capability_is_in_bounding_set(one).unwrap_or(false) {
                remove_capability_from_bounding_set(one).context(context)?;
            }
        }
    }
    let after = CapabilitySets {
        effective: before.effective & kept,
        permitted: before.permitted & kept,
        inheritable: before.inheritable & kept,
    };
    set_capabilities(None, after).context(context)
}
