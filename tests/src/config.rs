//! Configuration files, and the counts of the protections in them.

use std::{fs, path::Path};

use tempfile::TempDir;
use tfo_common::{counters::GuardCounts, policy::Guard};
use tfo_userspace::dataplane::{Pinned, pins::Bpffs};

use crate::netns::{BPFFS, Running, eventually, tfo};

/// Configuration file in its own temporary folder.
#[derive(Debug)]
pub struct Config {
    dir: TempDir,
    interfaces: Vec<String>,
}

impl Config {
    /// Writes a file for one interface.
    pub fn new(interface: &str, more: &str) -> Self {
        Self::of_several(&[interface], more)
    }

    /// Writes a file for `interfaces`, which stand in line 1.
    pub fn of_several(interfaces: &[&str], more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let interfaces = interfaces.iter().map(|interface| (*interface).to_owned()).collect();
        let config = Self { dir, interfaces };
        config.write(more);
        config
    }

    /// Returns the folder of the file.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the path of the file.
    pub fn path(&self) -> String {
        self.dir().join("tfo.toml").display().to_string()
    }

    /// Rewrites the file in one step, by a rename.
    pub fn write(&self, more: &str) {
        let new = self.dir().join("new");
        // The Debug form of names without quotes is valid TOML.
        fs::write(&new, format!("interfaces = {:?}\n{more}", self.interfaces)).expect("the folder is ours");
        fs::rename(new, self.path()).expect("the folder is ours");
    }

    /// Starts `tfo run` with the file, and waits until it accepts requests: then everything is attached, and
    /// connections are followed.
    pub fn run(&self) -> Running {
        let running = Running::spawn(&["--config", &self.path()]);
        eventually("tfo run is up", || {
            let takes_orders = |interface| tfo(&["hide", "--list", "-i", interface]).status.success();
            self.interfaces.iter().all(|interface| takes_orders(interface))
        });
        running
    }
}

/// Runs `tfo` on `interface` with a service on `port` that `guards` protect, in mode shield. Returns `None` without
/// guards.
pub fn protected(interface: &str, port: u16, guards: Option<&str>) -> Option<(Config, Running)> {
    let service = format!("[[service]]\nname = \"web\"\nports = [{port}]\nmode = \"shield\"\n{}\n", guards?);
    let config = Config::new(interface, &service);
    let running = config.run();
    Some((config, running))
}

/// Returns the counts of `guard` on `interface`, over all services.
pub fn guarded(interface: &str, guard: Guard) -> GuardCounts {
    let pinned = Pinned::open(&Bpffs::new(Path::new(BPFFS)).pins(interface)).expect("tfo runs");
    let services = pinned.by_service().expect("counters can be read");
    services.iter().fold(GuardCounts::default(), |sum, service| {
        let GuardCounts { acted, would } = service.counters.guards[guard.index()];
        GuardCounts { acted: sum.acted + acted, would: sum.would + would }
    })
}
