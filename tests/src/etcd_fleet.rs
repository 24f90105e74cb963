//! A fleet whose hosts share their secret through a real etcd. A bridge in the test's namespace joins them.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::TempDir;
use tfo_userspace::{fleet::seal::SealKey, lab::net::Namespace};

use crate::{
    etcd::{Etcd, MEMBERS},
    fleet::Host,
    netns::{IFACE, Running, eventually, failure, ip, tfo},
};

/// Addresses of etcd's members.
pub const ETCD: [Ipv4Addr; MEMBERS] =
    [Ipv4Addr::new(10, 40, 0, 11), Ipv4Addr::new(10, 40, 0, 12), Ipv4Addr::new(10, 40, 0, 13)];

/// Makes the bridge and the addresses of etcd in the calling thread's namespace, and starts etcd.
pub fn start_etcd() -> Etcd {
    ip("link set lo up");
    ip("link add br0 type bridge");
    ip("link set br0 up");
    for address in ETCD {
        ip(&format!("address add {address}/24 dev br0"));
    }
    Etcd::start(ETCD)
}

/// Joins host `number` to the bridge of the calling thread's namespace, where its link is `h NUMBER`.
pub fn join(host: &Host, number: usize) {
    let namespace = host.run(|| Namespace::current().expect("a namespace"));
    ip(&format!("link add h{number} type veth peer name up0 netns {}", namespace.path()));
    ip(&format!("link set h{number} master br0 up"));
    host.run(move || {
        ip(&format!("address add 10.40.0.{}/24 dev up0", 100 + number));
        ip("link set up0 up");
    });
}

/// Starts `tfo run` on a host, by the name and with the files of the fleet.
pub fn start(host: &Host, files: &Files, name: &str) -> Running {
    let config = files.config(name, IFACE);
    host.run(move || {
        let running = Running::spawn(&["--config", &config]);
        eventually("tfo run is up", || tfo(&["status", "-i", IFACE]).status.success());
        running
    })
}

/// Files of a fleet: its key, and a configuration for each host.
#[derive(Debug)]
pub struct Files {
    folder: TempDir,
    /// Part of the configuration that all hosts have.
    common: String,
}

impl Files {
    /// Makes the key, and remembers how to get to `etcd`.
    pub fn new(etcd: &Etcd) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        private(&folder.path().join("fleet.key"), &[0x4b; 32]);
        let common = format!(
            "[keys]\nsource = \"etcd\"\nrotate = \"10s\"\noverlap = \"20s\"\n[keys.etcd]\nendpoints = {:?}\nseal_key = {:?}\nca = {:?}\n\
             certificate = {:?}\nkey = {:?}\n",
            etcd.endpoints(),
            folder.path().join("fleet.key"),
            etcd.file("ca.pem"),
            etcd.file("client.pem"),
            etcd.file("client.key"),
        );
        Self { folder, common }
    }

    /// Key of the fleet.
    pub fn key(&self) -> SealKey {
        SealKey::read(self.folder.path().join("fleet.key").to_str().expect("text")).expect("a key")
    }

    /// Writes the configuration of the host `name`, for the interface `interface` in mode `accelerate`, and returns its
    /// path.
    pub fn config(&self, name: &str, interface: &str) -> String {
        let path = self.folder.path().join(format!("{name}.toml"));
        let services = "[[service]]\nname = \"test\"\nports = [7413]\nmode = \"accelerate\"\n";
        let text = format!("interfaces = [{interface:?}]\n{}name = {name:?}\n{services}", self.common);
        private(&path, text.as_bytes());
        path.to_str().expect("text").to_owned()
    }

    /// Path of a file beside them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Writes a file that only root may read.
pub fn private(path: &Path, content: &[u8]) {
    let mut file = fs::File::create(path).expect("a file");
    file.set_permissions(Permissions::from_mode(0o600)).expect("our own file");
    file.write_all(content).expect("a write");
}

/// Waits until the hosts have these standings, each as `NAME STANDING`, and returns the status.
pub fn wait_for(config: &str, expected: &[&str]) -> Value {
    let mut last = Value::Null;
    eventually(&format!("the hosts are {expected:?}"), || {
        // On a busy machine a member of etcd may be late.
        last = try_status(config).unwrap_or_default();
        let is_so = last["hosts"].is_array() && standings(&last) == expected;
        if !is_so {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        is_so
    });
    last
}

/// Runs `tfo fleet ARGS --config CONFIG`. Returns whether it ended with status 0, and all that it has written.
pub fn fleet(config: &str, args: &[&str]) -> (bool, String) {
    let output = tfo(&[&["fleet"], args, &["--config", config]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &failure(&output).1;
    (output.status.success(), text)
}

/// Returns the output of `tfo fleet status --json`.
pub fn status(config: &str) -> Value {
    try_status(config).unwrap_or_else(|error| panic!("{error}"))
}

fn try_status(config: &str) -> Result<Value, String> {
    let output = tfo(&["fleet", "status", "--json", "--config", config]);
    let status: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {:?}", failure(&output)))?;
    assert_eq!(status["version"], 1);
    Ok(status)
}

/// Returns the standing of each host, as `NAME STANDING`.
pub fn standings(status: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let hosts = status["hosts"].as_array().expect("hosts").iter();
    hosts.map(|host| format!("{} {}", text(&host["name"]), text(&host["standing"]))).collect()
}
