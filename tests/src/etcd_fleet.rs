//! Hosts of a fleet, each with its own kernel state, folders and `tfo`, and an etcd that they share.
//!
//! Each host is a thread in namespaces of its own. A bridge in the test's namespace joins them to etcd.

use std::{
    fs::{self, Permissions},
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::unistd::gettid;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tfo_userspace::{fleet::seal::SealKey, kernel::sysctl::write_mode};

use crate::{
    etcd::{Etcd, MEMBERS},
    netns::{IFACE, failure, ip, sandbox, tfo},
};

/// Addresses of etcd's members.
pub const ETCD: [Ipv4Addr; MEMBERS] =
    [Ipv4Addr::new(10, 40, 0, 11), Ipv4Addr::new(10, 40, 0, 12), Ipv4Addr::new(10, 40, 0, 13)];

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a sandbox of its own, which does what it is given.
#[derive(Debug)]
pub struct Host {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Option<JoinHandle<()>>,
    /// Number of the thread, by which `ip` finds its network namespace.
    pub thread_id: i32,
}

impl Host {
    /// Starts a host without interfaces.
    pub fn start() -> Self {
        let (jobs, work) = channel::<Job>();
        let (sender, id) = channel();
        let thread = thread::spawn(move || {
            // The receivers can't be shared, but moved.
            let work = Mutex::new(work);
            sandbox(|| {
                ip("link set lo up");
                sender.send(gettid().as_raw()).expect("the test waits");
                let work = work.into_inner().expect("no panic");
                work.into_iter().for_each(|job| job());
            });
        });
        let thread_id = id.recv().expect("a sandbox");
        Self { jobs: Mutex::new(Some(jobs)), thread: Some(thread), thread_id }
    }

    /// Runs `work` on the host, and returns its result. A panic there is one here.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, done) = channel();
        let job: Job = Box::new(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // If it fails, the test has ended.
            drop(sender.send(result));
        });
        let jobs = self.jobs.lock().expect("no panic");
        jobs.as_ref().expect("a running host").send(job).expect("a running host");
        drop(jobs);
        match done.recv().expect("an answer") {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.jobs.lock().map(|mut jobs| jobs.take()));
        let _: Option<thread::Result<()>> = self.thread.take().map(JoinHandle::join);
    }
}

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

/// Joins a host to the bridge of the calling thread's namespace, as number `number`.
pub fn join(host: &Host, number: u8) {
    ip(&format!("link add h{number} type veth peer name up0 netns {}", host.thread_id));
    ip(&format!("link set h{number} master br0 up"));
    host.run(move || {
        ip(&format!("address add 10.40.0.{}/24 dev up0", 100 + number));
        ip("link set up0 up");
    });
}

/// Address at which all hosts serve, as by anycast.
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), 7413);

/// Returns the address of client `number`.
pub fn client(number: u8) -> IpAddr {
    Ipv4Addr::new(198, 19, 0, number).into()
}

/// Sets up the namespace of the clients on `clients`, which has all addresses of [`client`].
pub fn prepare_clients(clients: &Host) {
    clients.run(|| {
        prepare();
        ip("route add local 198.19.0.0/16 dev lo");
    });
}

/// Joins `host`, number `number`, to the clients, who reach it by [`visit`].
pub fn serve(host: &Host, clients: &Host, number: u8) {
    let thread = clients.thread_id;
    host.run(move || {
        prepare();
        ip(&format!("link add {IFACE} type veth peer name c{number} netns {thread}"));
        ip(&format!("link set {IFACE} address 02:00:00:00:01:{number:02x}"));
        ip(&format!("address add {}/32 dev {IFACE}", SERVICE.ip()));
        ip(&format!("link set {IFACE} up"));
    });
    clients.run(move || {
        ip(&format!("link set c{number} address 02:00:00:00:02:{number:02x}"));
        ip(&format!("link set c{number} up"));
        ip(&format!("neighbour add {} lladdr 02:00:00:00:01:{number:02x} dev c{number}", SERVICE.ip()));
        ip(&format!("route add {} dev c{number} table 10{number}", SERVICE.ip()));
        ip(&format!("rule add fwmark {number} table 10{number}"));
    });
    host.run(move || {
        let via = "198.18.100.2";
        ip(&format!("route add 198.19.0.0/16 via {via} dev {IFACE} onlink"));
        ip(&format!("neighbour add {via} lladdr 02:00:00:00:02:{number:02x} dev {IFACE}"));
    });
}

/// Writes the sysctls of the calling thread's namespace.
fn prepare() {
    write_mode(3).expect("Fast Open for clients and servers");
    for (name, value) in [
        ("ipv4/tcp_fastopen_blackhole_timeout_sec", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
    ] {
        fs::write(format!("/proc/sys/net/{name}"), value).expect("a sysctl of a namespace");
    }
}

/// Connects from `source` to host `number` with Fast Open, and checks that the data comes back. To be called in the
/// namespace of the clients.
pub fn visit(source: IpAddr, number: u8) -> io::Result<()> {
    const DATA: &[u8] = b"hello";
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_mark(number.into())?;
    socket.set_freebind_v4(true)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    let sent = socket.send_to_with_flags(DATA, &SERVICE.into(), libc::MSG_FASTOPEN)?;
    let mut connection = TcpStream::from(socket);
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    connection.write_all(&DATA[sent..])?;
    connection.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    if answer == DATA { Ok(()) } else { Err(io::Error::other(format!("{} bytes came back", answer.len()))) }
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

/// Runs `tfo fleet ARGS --config CONFIG`. Returns whether it ended with status 0, and all that it has written.
pub fn fleet(config: &str, args: &[&str]) -> (bool, String) {
    let output = tfo(&[&["fleet"], args, &["--config", config]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &failure(&output).1;
    (output.status.success(), text)
}

/// Returns the output of `tfo fleet status --json`.
pub fn status(config: &str) -> Value {
    let output = tfo(&["fleet", "status", "--json", "--config", config]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", failure(&output)))
}

/// Returns the standing of each host, as `NAME STANDING`.
pub fn standings(status: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let hosts = status["hosts"].as_array().expect("hosts").iter();
    hosts.map(|host| format!("{} {}", text(&host["name"]), text(&host["standing"]))).collect()
}
