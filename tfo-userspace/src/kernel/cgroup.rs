//! The cgroup hierarchy, at whose root programs see the connections of all processes.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use procfs::process::Process;

/// The cgroup file system of version 2, as far as it is in sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup2 {
    /// The root of the hierarchy, in which all processes are.
    Root(PathBuf),
    /// Only a part of it, as in a container: the root of a cgroup namespace.
    Part(PathBuf),
    /// It is mounted nowhere.
    Absent,
}

impl Cgroup2 {
    /// Looks at every mount: on hosts that have version 1, too, it is /sys/fs/cgroup/unified.
    pub fn find() -> Result<Self> {
        /// A file that each cgroup has but the root (Documentation/admin-guide/cgroup-v2.rst).
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

    /// The root, where programs see all connections; else why there is none, and what to do.
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
