//! Configuration files, and what the protections in them have done.

use std::{fs, path::Path};

use tempfile::TempDir;
use tfo_common::{counters::Guarded, policy::Guard};
use tfo_userspace::dataplane::{Pinned, pins::Bpffs};

use crate::netns::{BPFFS, Running, eventually, tfo};

/// A file in a folder of its own.
#[derive(Debug)]
pub struct Config {
    dir: TempDir,
    interfaces: Vec<String>,
}

impl Config {
    /// That of one interface.
    pub fn new(interface: &str, more: &str) -> Self {
        Self::of_several(&[interface], more)
    }

    /// Begins with `interfaces`, in line 1.
    pub fn of_several(interfaces: &[&str], more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let interfaces = interfaces.iter().map(|interface| (*interface).to_owned()).collect();
        let config = Self { dir, interfaces };
        config.write(more);
        config
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where it is.
    pub fn path(&self) -> String {
        self.dir().join("tfo.toml").display().to_string()
    }

    /// Writes it anew, in one step, as it should be.
    pub fn write(&self, more: &str) {
        let new = self.dir().join("new");
        // What Debug makes of names without quotes is TOML, too.
        fs::write(&new, format!("interfaces = {:?}\n{more}", self.interfaces)).expect("the folder is ours");
        fs::rename(new, self.path()).expect("the folder is ours");
    }

    /// Starts `tfo run` with it, and waits until it takes orders: then all is attached, and connections are followed.
    pub fn run(&self) -> Running {
        let running = Running::spawn(&["--config", &self.path()]);
        eventually("tfo run is up", || {
            let takes_orders = |interface| tfo(&["hide", "--list", "-i", interface]).status.success();
            self.interfaces.iter().all(|interface| takes_orders(interface))
        });
        running
    }
}

/// Runs `tfo` on `interface` with a service on `port` that `guards` protect, in mode shield; if there are any.
pub fn protected(interface: &str, port: u16, guards: Option<&str>) -> Option<(Config, Running)> {
    let service = format!("[[service]]\nname = \"web\"\nports = [{port}]\nmode = \"shield\"\n{}\n", guards?);
    let config = Config::new(interface, &service);
    let running = config.run();
    Some((config, running))
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
