//! `tfo run` as a service: under the restrictions of `dist/systemd/tfo.service`, and in touch with a service manager.

use std::{
    fs,
    io::Read as _,
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};
use tempfile::TempDir;
use tfo_common::{parse::LinkLayer, verdict::Mode};
use tfo_tests::{
    listener::Listener,
    netns::{Running, assert_clean, binary, eventually, failure, ip, linked, rotate, sandbox, status, tfo},
    program::Program,
    unit::Unit,
};
use tfo_userspace::{
    dataplane::{LoadOptions, Object},
    kernel::sysctl::write_mode,
    util::privileges::{NEEDED, keep},
};

/// Makes the interface v0.
fn interface() {
    ip("link add v0 type veth peer name v1");
    ip("link set v0 up");
    ip("link set v1 up");
    ip("link set lo up");
}

/// Runs `tfo run -i v0` with `capabilities` to its end, which it must come to by itself.
fn failed_with(capabilities: &[&str]) -> (Option<i32>, String) {
    let prefix = Unit::prefix(capabilities);
    let mut command = Command::new(&prefix[0]);
    command.args(&prefix[1..]).arg(binary()).args(["run", "-i", "v0"]);
    // In case that it does run after all.
    let output =
        Command::new("timeout").arg("20").arg(command.get_program()).args(command.get_args()).output();
    failure(&output.expect("timeout can be started"))
}

/// Each is the only one that is missing.
#[test]
fn without_a_capability_the_error_names_it() {
    let unit = Unit::read();
    let all = unit.capabilities();
    assert_eq!(all, NEEDED.map(|needed| needed.name), "the unit (left), and what tfo asks for");
    sandbox(|| {
        interface();
        for needed in &NEEDED {
            let others: Vec<_> = all.iter().copied().filter(|name| *name != needed.name).collect();
            let (code, error) = failed_with(&others);
            assert_eq!(code, Some(1), "{}: {error}", needed.name);
            let expected = format!("error: this process lacks {} ({})", needed.name, needed.why);
            assert!(error.contains(&expected), "{error}");
            assert_clean("v0");
        }
    });
}

/// The unit gives a reason for each. This is what the reasons say, by the kernel's own verdict.
#[test]
fn without_a_capability_the_kernel_refuses() {
    let unit = Unit::read();
    for needed in &NEEDED {
        assert!(unit.text().contains(&format!("\n# {}: without it", needed.name)), "{}", needed.name);
    }
    let load = |missing: Option<&str>| {
        thread::scope(|scope| {
            let load = || {
                let kept = NEEDED.iter().filter(|needed| Some(needed.name) != missing);
                let kept = kept.map(|needed| needed.capability).reduce(|all, one| all | one);
                keep(kept.expect("there are others")).expect("a thread may give up capabilities");
                let object = Object::load(&LoadOptions::new(LinkLayer::Ethernet, Mode::Shield), None);
                object.map(drop).map_err(|error| format!("{error:#}"))
            };
            scope.spawn(load).join().expect("no panic")
        })
    };
    assert_eq!(load(None), Ok(()), "with all of them");
    for (needed, refused) in NEEDED.iter().zip([
        "cannot create the maps",
        "the kernel refused the XDP program",
        "pointer arithmetic with it prohibited for !root",
    ]) {
        let error = load(Some(needed.name)).expect_err(needed.name);
        assert!(error.contains(refused), "{}: {error}", needed.name);
    }
}

/// All that tfo does for an operator, with the unit's capabilities, system calls and files.
#[test]
fn a_whole_life_fits_into_the_unit() {
    const CONFIG: &str = r#"
interfaces = ["v0"]
metrics = "127.0.0.1:9434"
[keys]
source = "random"
[[service]]
name = "web"
ports = [7413]
mode = "shield"
once = { remember = "60s" }
fair = { limit = "6/min" }
shed = { limit = "8/s" }
answer = { when = "always" }
"#;

    let unit = Unit::read();
    sandbox(|| {
        interface();
        write_mode(3).expect("Fast Open");
        let _listener = Listener::on("127.0.0.1:7413").fast_open(16).listen();
        unit.protect_files();
        assert!(fs::write("/proc/sys/net/core/somaxconn", "100").is_err(), "other sysctls are read-only");
        assert!(fs::write("/tfo-was-here", "").is_err(), "the system is read-only");
        let path = "/run/tfo.toml";
        fs::write(path, CONFIG).expect("/run is ours");

        let prefix = Unit::prefix(&unit.capabilities());
        let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
        // The filter is for the service. The other commands are an operator's, without limits.
        let start = || {
            let running = unit.filtered(|| Running::spawn_under(&prefix, &["--config", path]));
            eventually("tfo run is up", || tfo(&["status", "-i", "v0"]).status.success());
            running
        };
        let first = start();
        let link = linked("v0").link;
        assert_eq!(status("v0")["mode"], "shield");
        let log = first.end(Signal::SIGTERM);
        assert!(log.contains("v0: attached in native mode"), "{log}");
        assert!(log.contains("web: SYNs without a good cookie are answered"), "{log}");

        let second = start();
        assert_eq!(linked("v0").link, link, "the link stays");
        fs::write(path, CONFIG.replace("8/s", "9/s")).expect("/run is ours");
        for order in [&["reload"][..], &["hide", "--all"], &["show", "--all"]] {
            let output = tfo(order);
            assert!(output.status.success(), "tfo {order:?}: {:?}", failure(&output));
        }
        assert!(rotate(&[]).contains("the kernel and the maps hold current"));
        eventually("listeners are among the metrics", || {
            get("/metrics").contains("tfo_listener_sockets{address=\"127.0.0.1\",port=\"7413\"} 1")
        });
        assert!(get("/healthz").contains("200 OK"));
        let log = second.end(Signal::SIGINT);
        assert!(log.contains("took over the program"), "{log}");
        assert!(!log.contains(" WARN ") && !log.contains("ERROR"), "{log}");
        assert_clean("v0");
    });
}

/// A user without privileges, who runs a server.
const SOMEBODY: u32 = 65_534;

/// Returns the queue of the only listener, as the kernel has it.
fn queue() -> u64 {
    let output = tfo(&["listeners", "--json"]);
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    all["listeners"][0]["fast_open"]["queue"].as_u64().expect("it can be read")
}

/// The unit alone can't change the listeners of others, and says so. With its drop-in it can, also of other users. With less
/// than the drop-in it can't.
#[test]
fn the_drop_in_has_what_fast_open_for_services_takes() {
    const CONFIG: &str = "interfaces = ['v0']\n[[service]]\nname = 'web'\nports = [7413]\nfast_open = 16\n";

    let unit = Unit::read();
    let more = unit.with("fast-open.conf");
    let added: Vec<_> = more.capabilities().split_off(unit.capabilities().len());
    for name in &added {
        assert!(more.text().contains(&format!("\n# {name}: without it")), "{name}");
    }
    sandbox(|| {
        interface();
        write_mode(3).expect("Fast Open");
        fs::write("/run/tfo.toml", CONFIG).expect("/run is ours");
        let _server = Program::python_as(SOMEBODY, "127.0.0.1:7413".parse().expect("an address"));
        more.protect_files();
        let life = |unit: &Unit, capabilities: &[&str], is_changed: bool| {
            let prefix = Unit::prefix(capabilities);
            let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
            let running = unit.filtered(|| Running::spawn_under(&prefix, &["--config", "/run/tfo.toml"]));
            eventually("it takes orders", || tfo(&["hide", "--list"]).status.success());
            if is_changed {
                eventually("Fast Open is on", || queue() == 16);
            }
            let log = running.end(Signal::SIGINT);
            assert_eq!(queue(), 0);
            assert_eq!(log.contains("Fast Open is on, with a queue of 16"), is_changed, "{log}");
            assert_eq!(log.contains("needs the drop-in fast-open.conf"), !is_changed, "{log}");
            assert_clean("v0");
        };
        let (usual, all) = (unit.capabilities(), more.capabilities());
        life(&unit, &usual, false);
        life(&more, &usual, false);
        life(&unit, &all, false);
        life(&more, &all, true);
    });
}

/// Returns the answer of the metrics' server.
fn get(path: &str) -> String {
    use std::io::Write as _;

    let mut stream = TcpStream::connect("127.0.0.1:9434").expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// Every thread of a process, with its name, the capabilities in force, and the bounding set.
fn threads(process: u32) -> Vec<(String, u64, u64)> {
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of status");
        line.trim().to_owned()
    };
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("a process").flatten();
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.path().join("status")).expect("a thread");
            let effective = u64::from_str_radix(&field(&status, "CapEff:"), 16).expect("a number");
            let bounding = u64::from_str_radix(&field(&status, "CapBnd:"), 16).expect("a number");
            (field(&status, "Name:"), effective, bounding)
        })
        .collect()
}

#[test]
fn what_is_not_needed_is_given_up_after_the_start() {
    sandbox(|| {
        interface();
        let running = Running::start(&["-i", "v0"]);
        let needed = NEEDED.iter().fold(0, |all, needed| all | needed.capability.bits());
        // CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_IPC_LOCK.
        let useful = 1 << 1 | 1 << 2 | 1 << 14;
        // It answers requests before that.
        eventually("the main thread has only what it uses", || {
            let all = threads(running.id());
            let (_, main, _) = all.iter().find(|(name, ..)| name == "tfo").expect("a main thread");
            assert_eq!(main & needed, needed, "it still can reload");
            main & !(needed | useful) == 0
        });
        let threads = threads(running.id());
        for (name, effective, bounding) in &threads {
            assert_eq!(effective & !bounding, 0, "{name} has {effective:x} of {bounding:x}");
            assert_eq!(effective & !(needed | useful), 0, "{name} has {effective:x}");
            assert!(name != "writer" || *effective == 0, "{name} has {effective:x}");
        }
        assert!(threads.iter().any(|(name, ..)| name == "writer"), "{threads:?}");
        running.end(Signal::SIGINT);
    });
}

/// A reload may bring services with `fast_open`.
#[test]
fn the_right_to_trace_is_kept_for_a_configuration() {
    sandbox(|| {
        interface();
        fs::write("/run/tfo.toml", "interfaces = ['v0']\n").expect("/run is ours");
        let running = Running::spawn(&["--config", "/run/tfo.toml"]);
        // CAP_SYS_PTRACE, and CAP_SETPCAP, which tfo gives up.
        let (traces, sets) = (1 << 19, 1 << 8);
        eventually("the main thread has given up what it does not use", || {
            let all = threads(running.id());
            let main = all.iter().find(|(name, ..)| name == "tfo").map(|(_, main, _)| *main);
            main.is_some_and(|main| main & (traces | sets) == traces)
        });
        running.end(Signal::SIGINT);
    });
}

/// Service manager that hears what a service says.
struct Manager {
    folder: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
        Self { folder, socket }
    }

    /// Returns the start of a command line that makes the rest of it a service.
    fn prefix(&self) -> [String; 3] {
        let path: PathBuf = self.folder.path().join("notify");
        ["env".to_owned(), format!("NOTIFY_SOCKET={}", path.display()), "WATCHDOG_USEC=500000".to_owned()]
    }

    /// Waits for the next message.
    fn hear(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message within a minute");
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    /// Waits for a message with this line, and returns all messages up to it.
    fn hear_until(&self, line: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            heard.push(self.hear());
            if heard.last().is_some_and(|last| last.lines().any(|one| one == line)) {
                return heard;
            }
            assert!(heard.len() < 1000, "no {line}: {heard:?}");
        }
    }
}

#[test]
fn a_service_manager_is_told_of_each_turn() {
    sandbox(|| {
        interface();
        fs::write("/run/tfo.toml", "interfaces = ['v0']\n").expect("/run is ours");
        let manager = Manager::new();
        let prefix = manager.prefix();
        let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
        let running = Running::spawn_under(&prefix, &["--config", "/run/tfo.toml"]);
        let ready = manager.hear_until("READY=1");
        assert!(tfo(&["status", "-i", "v0"]).status.success(), "it is ready when it is attached");
        let last = ready.last().expect("a message");
        assert!(last.contains("STATUS=attached to v0 (native), keys in step"), "{last}");

        // Twice half a second is more than one sign of life takes.
        manager.hear_until("WATCHDOG=1");
        manager.hear_until("WATCHDOG=1");

        for text in ["interfaces = ['v0']\n[[service]]\nname = 'web'\nports = [80]\n", "nonsense"] {
            fs::write("/run/tfo.toml", text).expect("/run is ours");
            running.signal(Signal::SIGHUP);
            let begun = manager.hear_until("RELOADING=1");
            let begun = begun.last().expect("a message");
            assert!(begun.lines().any(|line| line.starts_with("MONOTONIC_USEC=")), "{begun}");
            manager.hear_until("READY=1");
        }
        ip("link del v0");
        manager.hear_until("STATUS=v0: not attached: the interface is gone, or the program was unloaded");
        running.signal(Signal::SIGTERM);
        manager.hear_until("STOPPING=1");
        running.end(Signal::SIGCONT);
    });
}

/// A key that cannot be written is one out of step.
#[test]
fn it_is_not_ready_before_the_keys_are_in_step() {
    sandbox(|| {
        const KEY: &str = "/proc/sys/net/ipv4/tcp_fastopen_key";

        interface();
        let flags = [MsFlags::MS_BIND, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY];
        for flags in flags {
            mount(Some(KEY), KEY, None::<&str>, flags, None::<&str>).expect("a sysctl is a file");
        }
        let manager = Manager::new();
        let prefix = manager.prefix();
        let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
        let running = Running::spawn_under(&prefix, &["-i", "v0", "--keys", "random"]);
        let mut heard = Vec::new();
        while heard.iter().filter(|message: &&String| message.contains("WATCHDOG=1")).count() < 4 {
            heard.push(manager.hear());
        }
        assert!(!heard.iter().any(|message| message.contains("READY=1")), "{heard:?}");
        assert!(heard.iter().any(|message| message.contains("keys are out of step")), "{heard:?}");
        drop(running);
    });
}

#[test]
fn a_failed_start_says_why() {
    sandbox(|| {
        let manager = Manager::new();
        let prefix = manager.prefix();
        let output = Command::new(&prefix[0])
            .args(&prefix[1..])
            .arg(binary())
            .args(["run", "-i", "v0"])
            .stdin(Stdio::null())
            .output()
            .expect("tfo can be started");
        assert_eq!(output.status.code(), Some(1));
        let heard = manager.hear();
        assert!(heard.starts_with("STATUS=there is no interface v0"), "{heard}");
    });
}

/// A socket in the place of journald's gets entries with fields, and standard error nothing.
#[test]
fn the_journal_gets_entries_with_fields() {
    // `stat` shows the device and the inode as systemd puts them into the variable.
    const IS_JOURNAL: &str = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$@\"";

    sandbox(|| {
        interface();
        let folder = Path::new("/run/systemd/journal");
        fs::create_dir_all(folder).expect("/run is ours");
        let journal = UnixDatagram::bind(folder.join("socket")).expect("a socket");
        journal.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
        let running = Running::start_under(&["sh", "-c", IS_JOURNAL, "sh"], &["-i", "v0"]);
        let attached = loop {
            let mut entry = [0; 65_536];
            let length = journal.recv(&mut entry).expect("an entry within a minute");
            let entry = String::from_utf8_lossy(&entry[..length]).into_owned();
            if entry.contains("MESSAGE=v0: attached in native mode\n") {
                break entry;
            }
        };
        for field in ["PRIORITY=6", "SYSLOG_IDENTIFIER=tfo", "TFO_SUBJECT=v0"] {
            assert!(attached.lines().any(|line| line == field), "no {field}: {attached}");
        }
        assert!(attached.contains("CODE_FILE=tfo-userspace/src/daemon/"), "{attached}");
        assert_eq!(running.end(Signal::SIGINT), "");
    });
}
