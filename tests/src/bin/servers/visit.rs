//! One server in its namespaces, and the visits of its client.

use std::{
    fs::{self, File, Permissions},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use tempfile::TempDir;
use tfo_common::{class::Class, segment::Family, verdict::Verdict};
use tfo_tests::{
    config::Config,
    netns::{Counts, IFACE, eventually, failure, key, server_and_client, set_keys, tfo},
    server,
};
use tfo_userspace::{
    kernel::tcp_ext::TcpExt,
    lab::net::{self, Namespace},
};

use crate::list::{ADDRESS, BACKEND, Client, KDIG, PAGE, SOCKS, SS_LOCAL, Server};

/// Number of visits, of which the first asks for a cookie.
pub(crate) const VISITS: u64 = 4;

/// Mode of tfo meanwhile.
#[derive(Clone, Copy)]
pub(crate) enum Service {
    /// Mode observe.
    Observed,
    /// All protections, with limits that no visit reaches.
    Protected,
}

impl Service {
    fn config(self, port: u16) -> String {
        let service = format!("[[service]]\nname = \"server\"\nports = [{port}]\n");
        match self {
            Self::Observed => service,
            Self::Protected => {
                service
                    + "mode = \"shield\"\nonce = true\nfair = { limit = \"1000/s\" }\nclamp = true\n\
                       shed = { limit = \"1000/s\", drop = true }\nanswer = true\n"
            }
        }
    }
}

/// Returns the length of the listener's Fast Open queue when the server is started with `line`. 0 means that it does not ask
/// for Fast Open.
pub(crate) fn queue(server: &Server, line: &str, packages: &Path) -> u64 {
    let mut queue = 0;
    server_and_client(|_| {
        let _running = Running::start(server, line, packages);
        let output = tfo(&["listeners", "--json"]);
        assert!(output.status.success(), "{:?}", failure(&output));
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
        let all = shown["listeners"].as_array().expect("rows").iter();
        let address = format!("0.0.0.0:{}", server.port);
        let ours = all.filter(|listener| listener["address"] == address.as_str());
        let queues = ours.map(|listener| listener["fast_open"]["queue"].as_u64().expect("a number"));
        queue = queues.min().unwrap_or_else(|| panic!("nothing listens on {address}: {shown}"));
    });
    queue
}

/// Visits the server [`VISITS`] times over IPv4. Returns the number of visits whose data reached it with the SYN, by the
/// kernel's counters and by tfo's.
pub(crate) fn at_0_rtt(server: &Server, service: Service, packages: &Path) -> u64 {
    let mut at_0_rtt = 0;
    server_and_client(|client| {
        let _running = Running::start(server, server.line, packages);
        let before = TcpExt::read().expect("TcpExt");
        let _tfo = Config::new(IFACE, &service.config(server.port)).run();
        set_keys(IFACE, key(1), None);
        let visitor = Visitor::new(server.client, &client);
        for number in 0..VISITS {
            let answer = visitor.visit();
            assert!(answer.contains(visitor.expected()), "visit {number}: the answer is {answer:?}");
            let kernel = TcpExt::read().expect("TcpExt") - before;
            assert_eq!(kernel.passive, number, "visit {number}: TCPFastOpenPassive");
        }
        let counts = Counts::of(IFACE);
        let (ours, kernel) = (counts.as_kernel(), TcpExt::read().expect("TcpExt") - before);
        // The kernel's TCPFastOpenCookieReqd also counts what ss-server asks its backend for, over the loopback.
        let accepted = counts.outcome("accepted");
        assert_eq!((ours.passive, ours.passive_fail), (kernel.passive, kernel.passive_fail), "the kernel");
        assert_eq!(accepted, kernel.passive, "connections that were accepted with Fast Open");
        let current = counts.syn(Family::Ipv4, Class::CookieCurrent);
        assert_eq!(current.packets, current.with_data, "each cookie comes with data");
        assert_eq!(counts.class(Class::CookieRequest), 1, "one visit asks for a cookie");
        assert_eq!(counts.total_of(Verdict::Pass), counts.total(), "no SYN is changed or dropped");
        at_0_rtt = current.with_data;
    });
    assert_eq!(at_0_rtt, VISITS - 1, "visits at 0-RTT");
    at_0_rtt
}

/// Returns the version of the server's package.
pub(crate) fn version(server: &Server, packages: &Path) -> String {
    let version = fs::read_to_string(packages.join(server.package).join("version"));
    version.map_or_else(|_| "?".to_owned(), |version| version.trim().to_owned())
}

/// Server that runs, and ends when this is dropped.
struct Running {
    /// `unshare`, whose death ends all processes of the server.
    child: Child,
    dir: TempDir,
    _backend: server::Server,
}

impl Running {
    /// Starts `server` with `line` in the calling thread's namespaces, and waits until it listens.
    fn start(server: &Server, line: &str, packages: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        // Some servers change their user.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("the folder is ours");
        let folder = dir.path().to_str().expect("a path in UTF-8");
        let filled = |text: &str| text.replace("DIR", folder).replace("LINE", line);
        for (name, content) in server.files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("it is in a folder")).expect("the folder is ours");
            fs::write(path, filled(content)).expect("the folder is ours");
        }
        overlay("/usr", &[packages.join(server.package).join("usr"), packages.join(KDIG).join("usr")]);
        overlay("/etc", &[dir.path().join("etc"), packages.join(server.package).join("etc")]);

        let backend = TcpListener::bind(("127.0.0.1", BACKEND)).expect("a port of the namespace");
        let backend = server::Server::start(backend, page);
        let log = File::create(dir.path().join("log")).expect("the folder is ours");
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sh", "-ec", &filled(server.start)])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn();
        let mut running = Self { child: child.expect("unshare is installed"), dir, _backend: backend };
        eventually("the server listens", || {
            if let Some(status) = running.child.try_wait().expect("a child can be asked") {
                panic!("the server ended with {status}: {}", running.log());
            }
            TcpStream::connect(("127.0.0.1", server.port)).is_ok()
        });
        running
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // It may have ended already.
        let _: std::io::Result<()> = self.child.kill();
        let _: std::io::Result<_> = self.child.wait();
    }
}

/// Returns the page of the backend, as HTTP.
fn page(_: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", PAGE.len());
    (head + PAGE).into_bytes()
}

/// Lays those of `folders` that exist over `path`, for the calling thread's mount namespace.
fn overlay(path: &str, folders: &[PathBuf]) {
    let folders = folders.iter().filter(|folder| folder.is_dir());
    let lower: Vec<_> =
        folders.map(|folder| folder.to_str().expect("a path in UTF-8")).chain([path]).collect();
    if lower.len() > 1 {
        let options = format!("lowerdir={}", lower.join(":"));
        mount(Some("overlay"), path, Some("overlay"), MsFlags::MS_RDONLY, Some(&options[..]))
            .unwrap_or_else(|error| panic!("cannot lay {options} over {path}: {error}"));
    }
}

/// Client in its namespace.
struct Visitor<'a> {
    client: Client,
    namespace: &'a Namespace,
    /// ss-local, killed when this is dropped.
    proxy: Option<Child>,
}

impl<'a> Visitor<'a> {
    fn new(client: Client, namespace: &'a Namespace) -> Self {
        let mut visitor = Self { client, namespace, proxy: None };
        if client == Client::Shadowsocks {
            let start = || -> Result<Child> {
                let mut words = SS_LOCAL.split(' ');
                let mut command = Command::new(words.next().expect("a program"));
                let command = command.args(words).stdin(Stdio::null()).stdout(Stdio::null());
                Ok(command.stderr(Stdio::null()).spawn()?)
            };
            visitor.proxy = Some(namespace.run(start).expect("ss-local can be started"));
            eventually("ss-local listens", || {
                namespace.run(|| Ok(TcpStream::connect(("127.0.0.1", SOCKS)).is_ok())).expect("a namespace")
            });
        }
        visitor
    }

    /// Returns the output of one visit.
    fn visit(&self) -> String {
        let server = net::server(Family::Ipv4).ip();
        let curl = "curl --silent --show-error --max-time 20 --noproxy";
        let line = match self.client {
            Client::Http => format!("{curl} * --tcp-fastopen http://{server}/"),
            Client::Https => format!("{curl} * --insecure --tcp-fastopen https://{server}/"),
            Client::Dns => format!("kdig +tcp +fastopen +short +timeout=20 +retry=0 @{server} example.com A"),
            Client::Shadowsocks => {
                format!("{curl} nowhere --socks5 127.0.0.1:{SOCKS} http://127.0.0.1:{BACKEND}/")
            }
        };
        let visit = || -> Result<String> {
            let mut words = line.split(' ');
            let output = Command::new(words.next().context("a program")?).args(words).output()?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "`{line}`: {} {error}", output.status);
            Ok(String::from_utf8(output.stdout)?)
        };
        self.namespace.run(visit).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Returns what the output must contain.
    fn expected(&self) -> &'static str {
        if self.client == Client::Dns { ADDRESS } else { PAGE }
    }
}

impl Drop for Visitor<'_> {
    fn drop(&mut self) {
        if let Some(proxy) = &mut self.proxy {
            // It may have ended already.
            let _: std::io::Result<()> = proxy.kill();
            let _: std::io::Result<_> = proxy.wait();
        }
    }
}
