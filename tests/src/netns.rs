//! Tier 3: the real `tfo`, the real kernel, in namespaces that end with the test.

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    io::Read as _,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::programs::links::{FdLink, PinnedLink};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tfo_common::{class::Class, counters::Tally, keyring::Key, segment::Family, verdict::Verdict};
use tfo_userspace::{
    dataplane::pins::Bpffs,
    kernel::{interface::Interface, sysctl::KeySysctl, tcp_ext::TcpExt},
    lab::net::{self, Namespace},
    model::keys::fingerprint,
    util::runtime::block_on,
};

/// How long anything may take that has to happen. Only a failure is ever waited for that long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The usual mount point.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Runs `test` in a network and a mount namespace of its own, with an empty BPF file system at the usual place, and with nothing
/// in /run and in /var/lib.
///
/// Both belong to one thread and end with it, and with them every interface, pin and attachment.
pub fn sandbox(test: impl FnOnce() + Send) {
    let result = thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                    .expect("tier 3 needs root: it makes namespaces");
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
                    .expect("a private mount namespace");
                mount_on("bpf", BPFFS);
                // Where tfo has its sockets, and what outlives it.
                mount_on("tmpfs", "/run");
                mount_on("tmpfs", "/var/lib");
                test();
            })
            .join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Mounts a new file system of `kind` over `path`, in the sandbox only.
pub fn mount_on(kind: &str, path: &str) {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
        .unwrap_or_else(|error| panic!("cannot mount {kind} on {path}: {error}"));
}

/// A sandbox whose own namespace is the server's, joined to a client's: see [`net::connect`].
pub fn server_and_client(test: impl FnOnce(Namespace) + Send) {
    sandbox(|| {
        let client = block_on(net::connect(IFACE)).expect("two namespaces on a veth pair");
        tfo_userspace::kernel::sysctl::write_mode(3).expect("Fast Open for clients and servers");
        test(client);
    });
}

/// The server's interface in [`server_and_client`].
pub const IFACE: &str = "srv0";

/// `ip ARGS`, which must succeed.
pub fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {args}: {status}");
}

/// The `tfo` that was built along with the tests.
pub fn binary() -> PathBuf {
    let mut path = std::env::current_exe().expect("a test knows its own path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push("tfo");
    assert!(path.exists(), "{} is missing: run the tests by `cargo xtask test`", path.display());
    path
}

/// It, under libfaketime.
fn with_other_clock() -> Command {
    let library = fs::read_dir("/usr/lib")
        .expect("/usr/lib")
        .flatten()
        .map(|arch| arch.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
        .expect("Debian's faketime is installed");
    // Of a process that is killed, it leaves files there.
    mount_on("tmpfs", "/dev/shm");
    let mut command = Command::new(binary());
    // The monotonic clock goes on as it is: timers are by it.
    command.env("LD_PRELOAD", library).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

/// `tfo ARGS`, to its end.
pub fn tfo(args: &[&str]) -> Output {
    Command::new(binary()).args(args).stdin(Stdio::null()).output().expect("tfo can be started")
}

/// The same as a user without rights.
pub fn tfo_as_nobody(args: &[&str]) -> Output {
    // Where that user can reach it, whatever the tree's own permissions are.
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("the folder is ours");
    let copy = dir.path().join("tfo");
    // By another process: what is open for writing here, what other threads start has open, too, for an instant, and it
    // can't be executed then.
    let status = Command::new("cp").arg(binary()).arg(&copy).status().expect("cp can be started");
    assert!(status.success(), "cp: {status}");
    Command::new(&copy)
        .args(args)
        .stdin(Stdio::null())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .expect("tfo can be started")
}

/// The user and group that have no rights.
const NOBODY: u32 = 65_534;

/// Its exit status and what it wrote to standard error.
pub fn failure(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Waits until `holds`.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not after {} s", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the calling thread's namespace has no TCP connection.
pub fn is_idle() -> bool {
    const LISTEN: &str = "0A";
    ["tcp", "tcp6"].iter().all(|protocol| {
        let sockets =
            fs::read_to_string(format!("/proc/thread-self/net/{protocol}")).expect("procfs is there");
        sockets.lines().skip(1).all(|line| line.split_whitespace().nth(3) == Some(LISTEN))
    })
}

/// Tells background threads to end, in a test that panics, too.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A `tfo run` in the background, killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts `tfo run ARGS`, and waits until all is attached.
    pub fn start(args: &[&str]) -> Self {
        Self::wait_until_up(Command::new(binary()), args)
    }

    /// The same with a clock that is `offset` seconds ahead, by libfaketime.
    pub fn start_at(offset: i64, args: &[&str]) -> Self {
        let mut command = with_other_clock();
        command.env("FAKETIME", format!("{offset:+}s"));
        Self::wait_until_up(command, args)
    }

    /// The same where the file `clock` says by how many seconds it is ahead, now and whenever that changes: `+0s`.
    pub fn start_by(clock: &Path, args: &[&str]) -> Self {
        let mut command = with_other_clock();
        command.env("FAKETIME_TIMESTAMP_FILE", clock).env("FAKETIME_NO_CACHE", "1");
        Self::wait_until_up(command, args)
    }

    /// The same by another command, which is `PREFIX tfo run ARGS`, and has to become that.
    pub fn start_under(prefix: &[&str], args: &[&str]) -> Self {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(binary());
        Self::wait_until_up(command, args)
    }

    /// Starts `tfo run ARGS`, and waits for nothing.
    pub fn spawn(args: &[&str]) -> Self {
        Self::spawn_by(Command::new(binary()), args)
    }

    fn spawn_by(mut command: Command, args: &[&str]) -> Self {
        let command = command.arg("run").args(args);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Self { child: command.spawn().expect("tfo can be started") }
    }

    fn wait_until_up(command: Command, args: &[&str]) -> Self {
        let mut running = Self::spawn_by(command, args);
        let interfaces: Vec<_> = args.windows(2).filter(|pair| pair[0] == "-i").map(|pair| pair[1]).collect();
        eventually("tfo run is up", || {
            if let Some(status) = running.child.try_wait().expect("a child can be asked") {
                panic!("tfo run {args:?} ended with {status}: {}", running.log());
            }
            interfaces.iter().all(|interface| tfo(&["status", "-i", interface]).status.success())
        });
        running
    }

    /// Kills it as nobody can clean up after.
    pub fn kill(mut self) {
        self.child.kill().expect("a running child");
        let status = self.child.wait().expect("a child ends");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a running child");
    }

    /// Reads its log no longer.
    pub fn close_log(&mut self) {
        self.child.stderr = None;
    }

    /// Sends `signal`, waits for the end and returns what it logged; it must end with status 0.
    pub fn end(mut self, signal: Signal) -> String {
        self.signal(signal);
        self.wait()
    }

    /// Waits for it to end by itself, with status 0, and returns what it logged.
    pub fn wait(&mut self) -> String {
        let mut status = None;
        eventually("tfo run ends", || {
            status = self.child.try_wait().expect("a child can be asked");
            status.is_some()
        });
        let log = self.log();
        assert!(status.is_some_and(|status| status.success()), "{status:?}: {log}");
        log
    }

    /// Sends `signal` and waits for the end: whether it ended with status 0, or else of the signal.
    pub fn end_anyhow(mut self, signal: Signal) -> bool {
        self.signal(signal);
        let status = self.child.wait().expect("a child ends");
        let log = self.log();
        assert!(status.success() || status.signal() == Some(signal as i32), "{status}: {log}");
        status.success()
    }

    /// Kills it, and returns what it has logged.
    pub fn last_words(mut self) -> String {
        // It may have ended already.
        let _: std::io::Result<()> = self.child.kill();
        self.log()
    }

    /// What it has logged, once it has ended.
    fn log(&mut self) -> String {
        let mut log = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut log).expect("the log is text");
        }
        log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _: std::io::Result<()> = self.child.kill();
        let _: std::io::Result<_> = self.child.wait();
    }
}

/// What `tfo counters --json` says of one interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Counts(Value);

impl Counts {
    /// Asks for those of `interface`.
    pub fn of(interface: &str) -> Self {
        let output = tfo(&["counters", "--json", "-i", interface]);
        assert!(output.status.success(), "{:?}", failure(&output));
        Self(serde_json::from_slice(&output.stdout).expect("one JSON document"))
    }

    /// A field at the top.
    pub fn field(&self, name: &str) -> &Value {
        &self.0[name]
    }

    /// SYNs of a family and class.
    pub fn syn(&self, family: Family, class: Class) -> Tally {
        let rows = self.0["syn"].as_array().expect("rows");
        let rows = rows.iter().filter(|row| row["family"] == family.name() && row["class"] == class.name());
        rows.fold(Tally::default(), |sum, row| {
            let number = |name: &str| row[name].as_u64().expect("a number");
            Tally {
                packets: sum.packets + number("packets"),
                with_data: sum.with_data + number("with_data"),
                data_bytes: sum.data_bytes + number("data_bytes"),
            }
        })
    }

    /// SYNs of a class and a verdict, of both families.
    pub fn verdict(&self, class: Class, verdict: Verdict) -> u64 {
        let rows = self.0["syn"].as_array().expect("rows").iter();
        rows.filter(|row| row["class"] == class.name() && row["verdict"] == verdict.name())
            .map(|row| row["packets"].as_u64().expect("a number"))
            .sum()
    }

    /// SYNs of a class, of both families.
    pub fn class(&self, class: Class) -> u64 {
        Family::ALL.iter().map(|family| self.syn(*family, class).packets).sum()
    }

    /// Frames of one reason, under `malformed` or `unsupported`.
    pub fn reason(&self, kind: &str, reason: &str) -> u64 {
        let rows = self.0[kind].as_array().expect("rows");
        rows.iter()
            .find(|row| row["reason"] == reason)
            .map_or(0, |row| row["packets"].as_u64().expect("a number"))
    }

    /// All SYNs.
    pub fn total(&self) -> u64 {
        Class::ALL.iter().map(|class| self.class(*class)).sum()
    }

    /// What the kernel must have counted, where all SYNs went to listeners with Fast Open.
    pub fn as_kernel(&self) -> TcpExt {
        use Class::{
            CookieBackup, CookieBadLength, CookieCurrent, CookieRequest, CookieRetired, CookieUnknown,
        };
        // What is hidden it takes for an ordinary SYN, and what is dropped it does not see.
        let of_class = |class: Class| {
            [Verdict::Pass, Verdict::Rewrite].map(|verdict| self.verdict(class, verdict)).iter().sum::<u64>()
        };
        let sum = |classes: &[Class]| classes.iter().map(|class| of_class(*class)).sum::<u64>();
        // The kernel sees the cookie of its backup key instead.
        let translated = self.verdict(CookieRetired, Verdict::Rewrite);
        TcpExt {
            cookie_reqd: sum(&[CookieRequest]),
            passive: sum(&[CookieCurrent, CookieBackup]) + translated,
            passive_alt_key: sum(&[CookieBackup]) + translated,
            passive_fail: sum(&[CookieRetired, CookieUnknown, CookieBadLength]) - translated,
            ..TcpExt::default()
        }
    }

    /// A number that each service has, such as `accepted`, over all services.
    pub fn outcome(&self, name: &str) -> u64 {
        assert_eq!(self.0["outcomes"], true, "it is known what becomes of connections");
        let services = self.0["services"].as_array().expect("services").iter();
        services.map(|service| service[name].as_u64().expect("a number")).sum()
    }

    /// Panics unless the kernel has counted the same since `before`.
    pub fn assert_agree(&self, before: TcpExt) {
        let kernel = TcpExt::read().expect("TcpExt") - before;
        assert_eq!(self.as_kernel(), kernel, "tfo (left), the kernel (right)");
        // An old kernel does not tell; `netns_outcomes` insists.
        if self.0["outcomes"] == true {
            assert_eq!(self.outcome("accepted"), kernel.passive, "accepted (left), the kernel (right)");
        }
    }
}

/// What `tfo keys status --json` says of `interface`.
pub fn keys_status(interface: &str) -> Value {
    let output = tfo(&["keys", "status", "--json", "-i", interface]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", failure(&output)))
}

/// `tfo keys rotate`, which must succeed; what it said.
pub fn rotate(args: &[&str]) -> String {
    let output = tfo(&[&["keys", "rotate"], args].concat());
    assert!(output.status.success(), "{:?}", failure(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `tfo status --json` says of `interface`.
pub fn status(interface: &str) -> Value {
    let output = tfo(&["status", "--json", "-i", interface]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", failure(&output)))
}

/// Gives the kernel keys by its sysctl, and waits until `interface`'s program has them.
pub fn set_keys(interface: &str, current: Key, backup: Option<Key>) {
    KeySysctl::open().and_then(|sysctl| sysctl.write(current, backup)).expect("the sysctl takes keys");
    let (current, backup) = (Value::from(fingerprint(current)), Value::from(backup.map(fingerprint)));
    eventually("the new keys are in the map", || {
        let keys = &status(interface)["keys"];
        keys["current"] == current && keys["backup"] == backup
    });
}

/// A key that is told apart from others by `n`.
pub fn key(n: u32) -> Key {
    Key::from_words([0x0bad_c0de, n, n.wrapping_mul(0x9e37_79b9), !n])
}

/// The id of the XDP program on `interface`.
pub fn xdp_on(interface: &str) -> Option<u32> {
    let found = block_on(Interface::find(interface)).expect("the interface exists");
    found.xdp.map(|xdp| xdp.program_id)
}

/// A link and what it attaches, by the kernel's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The link. One that was detached once attaches nothing any more: while this id stays and the link attaches
    /// something, it was never off.
    pub link: u32,
    /// The program.
    pub program: u32,
}

/// What is pinned as the link of `interface`.
pub fn linked(interface: &str) -> Linked {
    let pins = Bpffs::new(Path::new(BPFFS)).pins(interface);
    // A change may move it to the next generation meanwhile.
    let open = || PinnedLink::from_pin(pins.current().ok()?.link()).ok();
    let link = (0..100).find_map(|_| open()).expect("a pinned link");
    let info = FdLink::from(link).info().expect("a link can be asked");
    Linked { link: info.id(), program: info.program_id() }
}

/// The pins of `interface`, each with its inode.
pub fn pins(interface: &str) -> Vec<(OsString, u64)> {
    let generation = Bpffs::new(Path::new(BPFFS)).pins(interface).current().expect("a generation in force");
    let entries = fs::read_dir(generation.dir()).expect("a pin folder").flatten();
    let inode = |entry: &fs::DirEntry| entry.metadata().expect("a pin").ino();
    let mut pins: Vec<_> = entries.map(|entry| (entry.file_name(), inode(&entry))).collect();
    pins.sort();
    pins
}

/// Panics unless nothing of ours is left: no program on `interface`, nothing in the BPF file system.
pub fn assert_clean(interface: &str) {
    assert_eq!(xdp_on(interface), None, "an XDP program is left on {interface}");
    assert!(!Path::new(BPFFS).join("tfo").exists(), "pins are left: {:?}", left_in(BPFFS));
}

fn left_in(dir: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(dir).join("tfo"));
    entries.map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}
