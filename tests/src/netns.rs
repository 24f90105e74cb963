//! Tier 3: the real `tfo` on the real kernel, in namespaces that end with the test.

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

/// Longest wait for an expected event. Only a failing test waits that long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Usual mount point of the BPF file system.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Runs `test` in its own network and mount namespaces. The BPF file system at the usual place, /run and /var/lib are
/// empty.
///
/// Both namespaces belong to one thread and end with it, and with them every interface, pin and attachment.
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
                // tfo has its sockets in /run, and its persistent files in /var/lib.
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

/// Runs `test` in a sandbox whose namespace is the server's, joined to a client's: see [`net::connect`].
pub fn server_and_client(test: impl FnOnce(Namespace) + Send) {
    sandbox(|| {
        let client = block_on(net::connect(IFACE)).expect("two namespaces on a veth pair");
        tfo_userspace::kernel::sysctl::write_mode(3).expect("Fast Open for clients and servers");
        test(client);
    });
}

/// The server's interface in [`server_and_client`].
pub const IFACE: &str = "srv0";

/// Runs `ip ARGS`, which must succeed.
pub fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {args}: {status}");
}

/// Returns the path of the `tfo` that was built along with the tests.
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

/// Returns the command `tfo` under libfaketime.
fn with_other_clock() -> Command {
    let library = fs::read_dir("/usr/lib")
        .expect("/usr/lib")
        .flatten()
        .map(|arch| arch.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
        .expect("Debian's faketime is installed");
    // A killed process leaves files of libfaketime in /dev/shm.
    mount_on("tmpfs", "/dev/shm");
    let mut command = Command::new(binary());
    // The monotonic clock stays real, since timers use it.
    command.env("LD_PRELOAD", library).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command
}

/// Runs `tfo ARGS` to its end.
pub fn tfo(args: &[&str]) -> Output {
    Command::new(binary()).args(args).stdin(Stdio::null()).output().expect("tfo can be started")
}

/// Runs `tfo ARGS` to its end, as a user without privileges.
pub fn tfo_as_nobody(args: &[&str]) -> Output {
    // The copy lies where that user can reach it, whatever the permissions of the tree.
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("the folder is ours");
    let copy = dir.path().join("tfo");
    // Another process makes the copy. A file open for writing in this process is inherited for an instant by the
    // children of other threads, and can't be executed then.
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

/// User and group without privileges.
const NOBODY: u32 = 65_534;

/// Returns the exit status, and the text on standard error.
pub fn failure(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Waits until `holds`. Panics after [`PATIENCE`].
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not after {} s", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Returns whether the calling thread's namespace has no TCP connection.
pub fn has_no_connections() -> bool {
    const LISTEN: &str = "0A";
    ["tcp", "tcp6"].iter().all(|protocol| {
        let sockets =
            fs::read_to_string(format!("/proc/thread-self/net/{protocol}")).expect("procfs is there");
        sockets.lines().skip(1).all(|line| line.split_whitespace().nth(3) == Some(LISTEN))
    })
}

/// Tells background threads to end when it is dropped, even if the test panics.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Background `tfo run`, killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts `tfo run ARGS`, and waits until everything is attached.
    pub fn start(args: &[&str]) -> Self {
        Self::wait_until_up(Command::new(binary()), args)
    }

    /// Starts it as [`start`](Self::start) does, with a clock that is `offset` seconds ahead, by libfaketime.
    pub fn start_with_offset(offset: i64, args: &[&str]) -> Self {
        let mut command = with_other_clock();
        command.env("FAKETIME", format!("{offset:+}s"));
        Self::wait_until_up(command, args)
    }

    /// Starts it as [`start`](Self::start) does, with a clock that is as far ahead as the file `clock` says, like
    /// `+0s`. The file may change.
    pub fn start_with_clock(clock: &Path, args: &[&str]) -> Self {
        let mut command = with_other_clock();
        command.env("FAKETIME_TIMESTAMP_FILE", clock).env("FAKETIME_NO_CACHE", "1");
        Self::wait_until_up(command, args)
    }

    /// Starts it as [`start`](Self::start) does, by the command `PREFIX tfo run ARGS`, which must become `tfo` by exec.
    pub fn start_under(prefix: &[&str], args: &[&str]) -> Self {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(binary());
        Self::wait_until_up(command, args)
    }

    /// Starts it as [`start_under`](Self::start_under) does, without waiting.
    pub fn spawn_under(prefix: &[&str], args: &[&str]) -> Self {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(binary());
        Self::spawn_by(command, args)
    }

    /// Starts `tfo run ARGS`, without waiting.
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

    /// Kills it by SIGKILL, so that it can't clean up.
    pub fn kill(mut self) {
        self.child.kill().expect("a running child");
        let status = self.child.wait().expect("a child ends");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a running child");
    }

    /// Closes the reading end of its log.
    pub fn close_log(&mut self) {
        self.child.stderr = None;
    }

    /// Sends `signal`, waits for the end and returns the log. Panics unless it ends with status 0.
    pub fn end(mut self, signal: Signal) -> String {
        self.signal(signal);
        self.wait()
    }

    /// Waits for it to end by itself, and returns the log. Panics unless it ends with status 0.
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

    /// Sends `signal` and waits for the end. Returns whether it ended with status 0; else it must have died of the
    /// signal.
    pub fn end_or_die(mut self, signal: Signal) -> bool {
        self.signal(signal);
        let status = self.child.wait().expect("a child ends");
        let log = self.log();
        assert!(status.success() || status.signal() == Some(signal as i32), "{status}: {log}");
        status.success()
    }

    /// Kills it, and returns the log.
    pub fn kill_and_read_log(mut self) -> String {
        // It may have ended already.
        let _: std::io::Result<()> = self.child.kill();
        self.log()
    }

    /// Reads the log to its end.
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

/// Output of `tfo counters --json` for one interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Counts(Value);

impl Counts {
    /// Runs `tfo counters` for `interface`.
    pub fn of(interface: &str) -> Self {
        let output = tfo(&["counters", "--json", "-i", interface]);
        assert!(output.status.success(), "{:?}", failure(&output));
        Self(serde_json::from_slice(&output.stdout).expect("one JSON document"))
    }

    /// Returns a field at the top.
    pub fn field(&self, name: &str) -> &Value {
        &self.0[name]
    }

    /// Returns the SYNs of a family and class.
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

    /// Returns the number of SYNs of a class and a verdict, over both families.
    pub fn verdict(&self, class: Class, verdict: Verdict) -> u64 {
        let rows = self.0["syn"].as_array().expect("rows").iter();
        rows.filter(|row| row["class"] == class.name() && row["verdict"] == verdict.name())
            .map(|row| row["packets"].as_u64().expect("a number"))
            .sum()
    }

    /// Returns the number of SYNs of a verdict, over all classes.
    pub fn total_of(&self, verdict: Verdict) -> u64 {
        Class::ALL.iter().map(|class| self.verdict(*class, verdict)).sum()
    }

    /// Returns the number of SYNs of a class, over both families.
    pub fn class(&self, class: Class) -> u64 {
        Family::ALL.iter().map(|family| self.syn(*family, class).packets).sum()
    }

    /// Returns the number of frames of one reason, under `malformed` or `unsupported`.
    pub fn reason(&self, kind: &str, reason: &str) -> u64 {
        let rows = self.0[kind].as_array().expect("rows");
        rows.iter()
            .find(|row| row["reason"] == reason)
            .map_or(0, |row| row["packets"].as_u64().expect("a number"))
    }

    /// Returns the number of all SYNs.
    pub fn total(&self) -> u64 {
        Class::ALL.iter().map(|class| self.class(*class)).sum()
    }

    /// Returns what the kernel must have counted if all SYNs went to listeners with Fast Open.
    pub fn as_kernel(&self) -> TcpExt {
        use Class::{
            CookieBackup, CookieBadLength, CookieCurrent, CookieRequest, CookieRetired, CookieUnknown,
        };
        // The kernel sees an ordinary SYN instead of a hidden one, and does not see a dropped one.
        let of_class = |class: Class| {
            [Verdict::Pass, Verdict::Rewrite].map(|verdict| self.verdict(class, verdict)).iter().sum::<u64>()
        };
        let sum = |classes: &[Class]| classes.iter().map(|class| of_class(*class)).sum::<u64>();
        // The kernel sees a cookie of its backup key instead.
        let translated = self.verdict(CookieRetired, Verdict::Rewrite);
        TcpExt {
            cookie_reqd: sum(&[CookieRequest]),
            passive: sum(&[CookieCurrent, CookieBackup]) + translated,
            passive_alt_key: sum(&[CookieBackup]) + translated,
            passive_fail: sum(&[CookieRetired, CookieUnknown, CookieBadLength]) - translated,
            ..TcpExt::default()
        }
    }

    /// Returns a number that each service has, such as `accepted`, summed over all services.
    pub fn outcome(&self, name: &str) -> u64 {
        assert_eq!(self.0["outcomes"], true, "it is known what becomes of connections");
        let services = self.0["services"].as_array().expect("services").iter();
        services.map(|service| service[name].as_u64().expect("a number")).sum()
    }

    /// Panics unless the kernel has counted the same since `before`.
    pub fn assert_agree(&self, before: TcpExt) {
        let since = TcpExt::read().expect("TcpExt") - before;
        // SYN cookies are no business of the classes.
        let TcpExt { cookie_reqd, passive, passive_alt_key, passive_fail, .. } = since;
        let kernel = TcpExt { cookie_reqd, passive, passive_alt_key, passive_fail, ..TcpExt::default() };
        assert_eq!(self.as_kernel(), kernel, "tfo (left), the kernel (right)");
        // Old kernels can't follow connections. `netns::outcomes` requires it.
        if self.0["outcomes"] == true {
            assert_eq!(self.outcome("accepted"), kernel.passive, "accepted (left), the kernel (right)");
        }
    }
}

/// Returns the output of `tfo keys status --json` for `interface`.
pub fn keys_status(interface: &str) -> Value {
    let output = tfo(&["keys", "status", "--json", "-i", interface]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", failure(&output)))
}

/// Runs `tfo keys rotate`, which must succeed, and returns its output.
pub fn rotate(args: &[&str]) -> String {
    let output = tfo(&[&["keys", "rotate"], args].concat());
    assert!(output.status.success(), "{:?}", failure(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the output of `tfo status --json` for `interface`.
pub fn status(interface: &str) -> Value {
    let output = tfo(&["status", "--json", "-i", interface]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", failure(&output)))
}

/// Writes keys into the kernel's sysctl, and waits until the program on `interface` has them.
pub fn set_keys(interface: &str, current: Key, backup: Option<Key>) {
    KeySysctl::open().and_then(|sysctl| sysctl.write(current, backup)).expect("the sysctl takes keys");
    let (current, backup) = (Value::from(fingerprint(current)), Value::from(backup.map(fingerprint)));
    eventually("the new keys are in the map", || {
        let keys = &status(interface)["keys"];
        keys["current"] == current && keys["backup"] == backup
    });
}

/// Returns the key with the number `n`.
pub fn key(n: u32) -> Key {
    Key::from_words([0x0bad_c0de, n, n.wrapping_mul(0x9e37_79b9), !n])
}

/// Returns the id of the XDP program on `interface`.
pub fn xdp_on(interface: &str) -> Option<u32> {
    let found = block_on(Interface::find(interface)).expect("the interface exists");
    found.xdp.map(|xdp| xdp.program_id)
}

/// Link and the program that it attaches, by the kernel's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Id of the link. A link that was detached never attaches anything again. So while the id stays and the link
    /// attaches a program, it was never detached.
    pub link: u32,
    /// Id of the program.
    pub program: u32,
}

/// Returns the pinned link of `interface`.
pub fn linked(interface: &str) -> Linked {
    let pins = Bpffs::new(Path::new(BPFFS)).pins(interface);
    // A change may move the pin to the next generation at any moment.
    let open = || PinnedLink::from_pin(pins.current().ok()?.link()).ok();
    let link = (0..100).find_map(|_| open()).expect("a pinned link");
    let info = FdLink::from(link).info().expect("a link can be asked");
    Linked { link: info.id(), program: info.program_id() }
}

/// Returns the pins of `interface`, each with its inode.
pub fn pins(interface: &str) -> Vec<(OsString, u64)> {
    let generation = Bpffs::new(Path::new(BPFFS)).pins(interface).current().expect("a generation in force");
    let entries = fs::read_dir(generation.dir()).expect("a pin folder").flatten();
    let inode = |entry: &fs::DirEntry| entry.metadata().expect("a pin").ino();
    let mut pins: Vec<_> = entries.map(|entry| (entry.file_name(), inode(&entry))).collect();
    pins.sort();
    pins
}

/// Panics if anything of tfo is left: a program on `interface`, or pins in the BPF file system.
pub fn assert_clean(interface: &str) {
    // The kernel frees a link whose pin was removed a moment later, on a queue of work.
    eventually(&format!("no XDP program is on {interface}"), || xdp_on(interface).is_none());
    assert!(!Path::new(BPFFS).join("tfo").exists(), "pins are left: {:?}", left_in(BPFFS));
}

fn left_in(dir: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(dir).join("tfo"));
    entries.map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}
