//! A real etcd of three members, with TLS, which ends with the test.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use tempfile::TempDir;

use crate::netns::eventually;

/// Number of members.
pub const MEMBERS: usize = 3;

/// The members, each with a folder of its own.
#[derive(Debug)]
pub struct Etcd {
    folder: TempDir,
    addresses: [Ipv4Addr; MEMBERS],
    members: [Option<Child>; MEMBERS],
    /// Size that the data may have, in bytes; 0 for etcd's default.
    quota: u64,
}

impl Etcd {
    /// Starts a member at each address, in the calling thread's namespaces, and waits until they have a leader.
    pub fn start(addresses: [Ipv4Addr; MEMBERS]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        make_certificates(folder.path(), &addresses);
        let mut etcd = Self { folder, addresses, members: [const { None }; MEMBERS], quota: 0 };
        (0..MEMBERS).for_each(|member| etcd.start_member(member));
        etcd.wait_until_healthy();
        etcd
    }

    /// Starts a member, with the data that it had.
    pub fn start_member(&mut self, member: usize) {
        let address = self.addresses[member];
        let cluster: Vec<_> = self
            .addresses
            .iter()
            .enumerate()
            .map(|(number, address)| format!("m{number}=https://{address}:2380"))
            .collect();
        let file = |name: &str| self.file(name).display().to_string();
        let mut command = Command::new("etcd");
        command.args(["--name", &format!("m{member}"), "--data-dir"]).arg(self.data(member)).args([
            "--initial-cluster",
            &cluster.join(","),
            "--initial-cluster-state",
            "new",
        ]);
        for (kind, port) in [("client", 2379), ("peer", 2380)] {
            let url = format!("https://{address}:{port}");
            command.args([format!("--listen-{kind}-urls={url}")]);
            let advertise = if kind == "peer" { "initial-advertise-peer" } else { "advertise-client" };
            command.arg(format!("--{advertise}-urls={url}"));
        }
        for prefix in ["", "peer-"] {
            command.args([
                format!("--{prefix}client-cert-auth"),
                format!("--{prefix}trusted-ca-file={}", file("ca.pem")),
                format!("--{prefix}cert-file={}", file("server.pem")),
                format!("--{prefix}key-file={}", file("server.key")),
            ]);
        }
        command.args(["--logger=zap", "--log-level=error", &format!("--quota-backend-bytes={}", self.quota)]);
        let log = fs::File::options().create(true).append(true).open(self.log(member)).expect("a log");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.members[member] = Some(child.expect("Debian's etcd-server is installed"));
    }

    /// Kills a member by SIGKILL.
    pub fn kill_member(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].take() {
            child.kill().expect("a running child");
            child.wait().expect("a child ends");
        }
    }

    /// Starts all members anew, with a limit on the size of their data in bytes.
    pub fn limit(&mut self, quota: u64) {
        self.quota = quota;
        (0..MEMBERS).for_each(|member| self.kill_member(member));
        (0..MEMBERS).for_each(|member| self.start_member(member));
        self.wait_until_healthy();
    }

    /// Waits until a member answers, and so has a leader.
    pub fn wait_until_healthy(&self) {
        eventually("etcd has a leader", || {
            (0..MEMBERS)
                .filter(|member| self.members[*member].is_some())
                .all(|member| self.at(member, &["endpoint", "health"]).status.success())
        });
    }

    /// Returns the number of the member that is the leader.
    pub fn leader(&self) -> usize {
        let mut leader = None;
        eventually("etcd has a leader", || {
            leader = (0..MEMBERS).filter(|member| self.members[*member].is_some()).find(|member| {
                let output = self.at(*member, &["endpoint", "status", "-w", "json"]);
                let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                let status = &status[0]["Status"];
                status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
            });
            leader.is_some()
        });
        leader.expect("a leader")
    }

    /// Runs `etcdctl ARGS` by any member.
    pub fn ctl(&self, args: &[&str]) -> Output {
        let endpoints: Vec<_> = self.endpoints();
        self.run(&endpoints.join(","), args)
    }

    /// Runs `etcdctl ARGS` by one member.
    pub fn at(&self, member: usize, args: &[&str]) -> Output {
        self.run(&self.endpoints()[member], args)
    }

    fn run(&self, endpoints: &str, args: &[&str]) -> Output {
        self.command(endpoints).args(args).stdin(Stdio::null()).output().expect("etcdctl can be started")
    }

    fn command(&self, endpoints: &str) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3");
        command.args(["--dial-timeout=2s", "--command-timeout=3s", "--endpoints", endpoints]);
        for (option, name) in [("--cacert", "ca.pem"), ("--cert", "client.pem"), ("--key", "client.key")] {
            command.arg(option).arg(self.file(name));
        }
        command
    }

    /// Returns the content of the value `name`; `None` if there is none.
    pub fn value(&self, name: &str) -> Option<Vec<u8>> {
        let output = self.ctl(&["get", name, "--print-value-only"]);
        assert!(output.status.success(), "{output:?}");
        let mut value = output.stdout;
        // etcdctl ends it with a newline.
        value.pop();
        (!value.is_empty()).then_some(value)
    }

    /// Writes `content` as the value `name`.
    pub fn put(&self, name: &str, content: &[u8]) {
        let output = self.try_put(name, content);
        assert!(output.status.success(), "{output:?}");
    }

    /// Writes `content` as the value `name`, which may fail.
    pub fn try_put(&self, name: &str, content: &[u8]) -> Output {
        let file = self.file("value");
        fs::write(&file, content).expect("a file");
        self.command(&self.endpoints().join(","))
            .args(["put", name])
            .stdin(fs::File::open(&file).expect("a file"))
            .output()
            .expect("etcdctl can be started")
    }

    /// URLs of the members.
    pub fn endpoints(&self) -> Vec<String> {
        self.addresses.iter().map(|address| format!("https://{address}:2379")).collect()
    }

    /// Path of a file of certificates: `ca.pem`, `client.pem` or `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Folder of a member's data.
    pub fn data(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("data{member}"))
    }

    /// File with a member's log.
    pub fn log(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("log{member}"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in self.members.iter_mut().flatten() {
            // It may have ended already.
            let _: std::io::Result<()> = child.kill();
            let _: std::io::Result<_> = child.wait();
        }
    }
}

/// Makes an authority, and by it a certificate of all members and one of their clients.
fn make_certificates(folder: &Path, addresses: &[Ipv4Addr]) {
    let names: Vec<_> = addresses.iter().map(|address| format!("IP:{address}")).collect();
    openssl(folder, "ca", &["-subj", "/CN=authority of a test", "-addext", "keyUsage=critical,keyCertSign"]);
    let by_ca = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"];
    let usage = ["-addext", "extendedKeyUsage=serverAuth,clientAuth"];
    let name = format!("subjectAltName={}", names.join(","));
    openssl(folder, "server", &[&["-subj", "/CN=etcd", "-addext", &name], &by_ca[..], &usage].concat());
    openssl(folder, "client", &[&["-subj", "/CN=tfo"], &by_ca[..], &usage].concat());
}

fn openssl(folder: &Path, name: &str, args: &[&str]) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")])
        .args(args)
        .output()
        .expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
