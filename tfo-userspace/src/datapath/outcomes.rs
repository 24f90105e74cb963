//! Attaching the program that follows connections (`tfo-ebpf/src/outcome.rs`). Without it all else works.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{
    CgroupAttachMode, ProgramError, ProgramInfo,
    links::{FdLink, PinnedLink},
    loaded_programs,
};
use log::debug;

use super::Object;
use crate::{
    kernel,
    pins::{Pins, remove_if_there},
};

impl Object {
    /// Attaches it to all processes that we see, and pins the link; where an earlier controller has left the same program there
    /// with the same maps, that goes on.
    pub(super) fn follow_connections(&mut self, pins: &Pins) -> Result<()> {
        let program = self.outcomes_program()?;
        program.load().map_err(|error| {
            debug!("{error:#}");
            // Not with all that the verifier says of it.
            let cause = match &error {
                ProgramError::LoadError { io_error, .. } => io_error.to_string(),
                other => other.to_string(),
            };
            anyhow!("the kernel refused the program, which needs Linux 5.15: {cause}")
        })?;
        let path = pins.outcomes_link();
        if left_behind(&path).is_some_and(|left| program.info().is_ok_and(|ours| ours.tag() == left.tag())) {
            debug!("{}: connections are followed already", pins.interface());
            return Ok(());
        }
        let cgroup = kernel::cgroup2()?;
        let cgroup = cgroup.context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")?;
        let context = || format!("cannot attach to {}", cgroup.display());
        let dir = File::open(&cgroup).with_context(context)?;
        // A link always leaves room for others (`cgroup_bpf_link_attach`), and takes no flag that says so.
        let link = program.attach(dir, CgroupAttachMode::Single).with_context(context)?;
        let link: FdLink = program.take_link(link)?.try_into()?;
        remove_if_there(&path)?;
        link.pin(&path).with_context(|| format!("cannot pin {}", path.display()))?;
        Ok(())
    }
}

/// The program behind the link that is pinned at `path`.
fn left_behind(path: &PathBuf) -> Option<ProgramInfo> {
    if !fs::exists(path).ok()? {
        return None;
    }
    let id = FdLink::from(PinnedLink::from_pin(path).ok()?).info().ok()?.program_id();
    loaded_programs().flatten().find(|program| program.id() == id)
}
