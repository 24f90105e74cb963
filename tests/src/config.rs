//! Configuration files, and what the protections in them have done.

use std::{fs, path::Path};

use tempfile::TempDir;
use tfo_common::{counters::Guarded, policy::Guard};
use tfo_userspace::{datapath::Pinned, pins::Bpffs};

use crate::netns::{BPFFS, Running, eventually, tfo};

/// A file in a folder of its own.
#[derive(Debug)]
pub struct Config {
    dir: TempDir,
    interface: String,
}

impl Config {
    /// Begins with `interfaces`, in line 1.
    pub fn new(interface: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = Self { dir, interface: interface.to_owned() };
        config.write(more);
        config
    }

    /// Where it is.
    pub fn path(&self) -> String {
        self.dir.path().join("tfo.toml").display().to_string()
    }

    /// Writes it anew, in one step, as it should be.
    pub fn write(&self, more: &str) {
        let new = self.dir.path().join("new");
        fs::write(&new, format!("interfaces = [\"{}\"]\n{more}", self.interface))
            .expect("the folder is ours");
        fs::rename(new, self.path()).expect("the folder is ours");
    }

    /// Starts `tfo run` with it, and waits until it takes orders: then all is attached, and connections are followed.
    pub fn run(&self) -> Running {
        let running = Running::spawn(&["--config", &self.path()]);
        eventually("tfo run is up", || tfo(&["hide", "--list", "-i", &self.interface]).status.success());
        running
    }
}

/// What `guard` has done on `interface`, over all services.
pub fn guarded(interface: &str, guard: Guard) -> Guarded {
    let pinned = Pinned::open(&Bpffs::new(Path::new(BPFFS)).pins(interface)).expect("tfo runs");
    let services = pinned.by_service().expect("counters can be read");
    services.iter().fold(Guarded::default(), |sum, service| {
        let Guarded { acted, would } = service.counters.guards[guard.index()];
        Guarded { acted: sum.acted + acted, would: sum.would + would }
    })
}
