//! The cgroup hierarchy. A program that is attached at its root sees the connections of all processes.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use procfs::process::Process;

/// Visible part of the cgroup v2 file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup2 {
    /// The root of the hierarchy, which contains all processes.
    Root(PathBuf),
    /// Only the root of a cgroup namespace, as in a container.
    Part(PathBuf),
    /// The file system is not mounted.
    Absent,
}

impl Cgroup2 {
    /// Searches all mounts. On hosts that also have version 1, the mount point is /sys/fs/cgroup/unified.
    pub fn find() -> Result<Self> {
        /// A file that the root cgroup lacks and all others have (Documentation/admin-guide/cgroup-v2.rst).
        const NOT_IN_ROOT: &str = "cgroup.events";

        let mounts = Process::myself()
            .and_then(|myself| myself.mountinfo())
            .context("cannot read /proc/self/mountinfo")?;
        let mut found = Self::Absent;
        for mount in mounts.into_iter().filter(|mount| mount.fs_type == "cgroup2") {
            if !mount.mount_point.join(NOT_IN_ROOT).exists() {
                return Ok(Self::Root(mount.mount_point));
            }
            found = Self::Part(mount.mount_point);
        }
        Ok(found)
    }

    /// Returns the mount point of the root, where programs see all connections. An error is the reason and what to do.
    pub fn root(self) -> Result<PathBuf, [String; 2]> {
        match self {
            Self::Root(mount) => Ok(mount),
            Self::Part(mount) => Err([
                format!("{} shows a part of the hierarchy only, as in a container", mount.display()),
                "run tfo in the host's cgroup namespace, with the host's /sys/fs/cgroup".to_owned(),
            ]),
            Self::Absent => Err([
                "no cgroup2 is mounted".to_owned(),
                "mount -t cgroup2 cgroup2 /sys/fs/cgroup".to_owned(),
            ]),
        }
    }
}
