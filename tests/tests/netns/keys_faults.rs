//! Faults with keys: the sysctl can't be written, the disk is full, a secret is not a regular file.
#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount, umount},
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use serde_json::Value;
use tfo_common::{class::Class, segment::Family};
use tfo_tests::{
    fault::{self, Fault},
    netns::{
        Counts, IFACE, Running, binary, eventually, failure, key, keys_status, rotate, server_and_client, tfo,
    },
};
use tfo_userspace::{
    kernel::{
        sysctl::{KernelKeys, KeySysctl},
        tcp_ext::TcpExt,
    },
    keys::state::State,
    lab::{
        client::fast_open,
        net::{Namespace, SERVERS, server, source},
        server::Listeners,
    },
    model::keys::{fingerprint, key_text},
};

const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_fastopen_key";
const NOTHING: Option<&str> = None;

/// Returns arguments for keys that tfo makes and keeps in `state`, in mode accelerate.
fn random_keys(state: &Path) -> Vec<&str> {
    let keys = ["--mode", "accelerate", "--keys", "random", "--rotate", "1w", "--key-state"];
    [&["-i", IFACE] as &[&str], &keys, &[state.to_str().unwrap()]].concat()
}

/// Starts `tfo run` with these arguments, and waits until the keys are in force.
fn with_random_keys(state: &Path) -> Running {
    let running = Running::start(&random_keys(state));
    wait_until_in_step();
    running
}

fn wait_until_in_step() {
    eventually("kernel and map are in step", || {
        let status = keys_status(IFACE);
        status["source"] == "random" && status["in_step"] == true
    });
}

fn kernel_keys() -> KernelKeys {
    KernelKeys::read().unwrap()
}

/// Returns the fingerprint of the key with `role` in the map.
fn in_map(role: &str) -> Option<Value> {
    let status = keys_status(IFACE);
    let mut keys = status["keys"].as_array().unwrap().iter();
    keys.find(|key| key["role"] == role).map(|key| key["fingerprint"].clone())
}

/// Returns whether the kernel's keys have their roles in the map.
fn map_has_roles_of(kernel: &KernelKeys) -> bool {
    let expected = |key| Option::map(key, |key| Value::from(fingerprint(key)));
    in_map("current") == expected(kernel.current) && in_map("backup") == expected(kernel.backup)
}

/// Connects with Fast Open, and returns the kernel's counts.
fn connect(client: &Namespace, number: u16) -> TcpExt {
    let to: SocketAddr = server(Family::Ipv4);
    let before = TcpExt::read().unwrap();
    client.run(|| fast_open(source(Family::Ipv4, number), to, b"GET / HTTP/1.1\r\n\r\n")).unwrap();
    TcpExt::read().unwrap() - before
}

/// Read-only sysctl in this mount namespace.
struct ReadOnlySysctl;

impl ReadOnlySysctl {
    fn new() -> Self {
        mount(Some(SYSCTL), SYSCTL, NOTHING, MsFlags::MS_BIND, NOTHING).unwrap();
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(NOTHING, SYSCTL, NOTHING, read_only, NOTHING).unwrap();
        Self
    }

    fn end(self) {
        umount(SYSCTL).unwrap();
    }
}

/// The map keeps the kernel's keys while the kernel does not take the new key. The failure is logged once.
#[test]
fn a_sysctl_that_cannot_be_opened_changes_nothing() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tfo_run = with_random_keys(&dir.path().join("keys.json"));
        rotate(&[]);
        connect(&client, 1);
        let before = kernel_keys();
        let read_only = ReadOnlySysctl::new();
        // The second rotation makes no further key.
        for _ in 0..2 {
            let (code, error) = failure(&tfo(&["keys", "rotate"]));
            assert_eq!(code, Some(1), "{error}");
            assert!(error.contains(&format!("cannot open {SYSCTL} for writing")), "{error}");
        }
        let (start, mut served) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(4) {
            assert!(map_has_roles_of(&before), "{}", keys_status(IFACE));
            assert_eq!(connect(&client, 1), TcpExt { passive: 1, ..TcpExt::default() });
            served += 1;
            assert_eq!(Counts::of(IFACE).class(Class::CookieCurrent), served);
            thread::sleep(Duration::from_millis(20));
        }
        assert!(in_map("next").is_some());
        assert_eq!(keys_status(IFACE)["failures"], 1);
        assert!(kernel_keys() == before);
        read_only.end();
        eventually("the rotation is made up for", || kernel_keys().backup == before.current);
        wait_until_in_step();
        let log = tfo_run.end(Signal::SIGINT);
        let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        assert_eq!(lines("cannot open"), 1, "{log}");
        // The line may come at the start, at the rotation before, and at the end.
        assert!(lines("the maps know the new keys") <= 3, "{log}");
    });
}

/// Only the write fails, after the maps have the new keys. They must return to the kernel's.
#[test]
fn a_sysctl_that_cannot_be_written_leaves_the_kernels_keys_in_the_maps() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        KeySysctl::open().unwrap().write(key(1), Some(key(2))).unwrap();
        let kernel = kernel_keys();
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        let tfo_run = fault::with_call(libc::SYS_pwrite64, Fault::Fails(libc::EIO), || {
            Running::start(&random_keys(&state))
        });
        eventually("it has failed", || keys_status(IFACE)["failures"] == 1);
        assert!(map_has_roles_of(&kernel), "{}", keys_status(IFACE));
        let wanted = State::load(&state).unwrap().unwrap().held().current.unwrap();
        assert!(in_map("next") == Some(fingerprint(wanted).into()));
        connect(&client, 1);
        assert_eq!(connect(&client, 1), TcpExt { passive: 1, ..TcpExt::default() });
        assert!(kernel_keys() == kernel);
        let log = tfo_run.end(Signal::SIGINT);
        let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        assert_eq!((lines("cannot write /proc/sys"), lines("the maps know the new keys")), (1, 1), "{log}");
    });
}

/// Keys that the kernel does not hold are removed at once, the one that it holds as soon as possible.
#[test]
fn an_emergency_outlives_a_read_only_sysctl() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"));
        for _ in 0..3 {
            rotate(&[]);
        }
        let leaked = kernel_keys();
        let read_only = ReadOnlySysctl::new();
        let (code, error) = failure(&tfo(&["keys", "rotate", "--emergency"]));
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains("the kernel still has the leaked key"), "{error}");
        assert!(map_has_roles_of(&leaked) && in_map("retired").is_none(), "{}", keys_status(IFACE));
        read_only.end();
        eventually("the leaked key is gone", || kernel_keys().current != leaked.current);
        wait_until_in_step();
        eventually("nor is it in the map", || keys_status(IFACE)["keys"].as_array().unwrap().len() == 1);
    });
}

/// Runs `test` with a `tfo run` whose state file is on a small disk, after two keys.
fn on_a_small_disk(test: impl FnOnce(&Namespace, &Path, KernelKeys) + Send) {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"));
        rotate(&[]);
        connect(&client, 1);
        assert_eq!(connect(&client, 1).passive, 1);
        test(&client, dir.path(), kernel_keys());
    });
}

/// Fills the disk at `dir` by a file, whose path it returns.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = File::create(&path).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    path
}

/// Panics if a leaked key is in the kernel, in the map or in the file.
fn assert_gone(client: &Namespace, state: &Path, leaked: &KernelKeys) {
    let kernel = kernel_keys();
    assert!(kernel.current.is_some() && kernel.current != leaked.current && kernel.backup.is_none());
    assert!(map_has_roles_of(&kernel));
    assert_eq!(keys_status(IFACE)["keys"].as_array().unwrap().len(), 1);
    assert_eq!(connect(client, 1), TcpExt { passive_fail: 1, ..TcpExt::default() });
    let text = fs::read_to_string(state).unwrap_or_default();
    for key in [leaked.current, leaked.backup].into_iter().flatten() {
        assert!(!text.contains(key_text(key).as_str()));
    }
}

/// Returns whether the file has the kernel's key, and the emergency is over.
fn is_stored(path: &Path) -> bool {
    let Ok(Some(state)) = State::load(path) else { return false };
    let mode = fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    KernelKeys::from(state.held()) == kernel_keys() && !state.is_purging() && mode == 0o600
}

#[test]
fn an_emergency_on_a_full_disk() {
    on_a_small_disk(|client, dir, leaked| {
        let state = dir.join("keys.json");
        let filler = fill(dir);
        // An ordinary rotation is refused, since the file is written first.
        let (code, error) = failure(&tfo(&["keys", "rotate"]));
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains("No space left") && kernel_keys() == leaked, "{error}");
        // The space of the old file is enough.
        rotate(&["--emergency"]);
        assert_gone(client, &state, &leaked);
        assert!(State::load(&state).unwrap().is_some());
        fs::remove_file(filler).unwrap();
        eventually("it is stored", || is_stored(&state));
        rotate(&[]);
    });
}

#[test]
fn an_emergency_on_a_full_disk_that_is_freed_later() {
    on_a_small_disk(|client, dir, leaked| {
        let state = dir.join("keys.json");
        let filler = fill(dir);
        // The file is open here, so its removal frees no space.
        let open = File::open(&state).unwrap();
        let (code, error) = failure(&tfo(&["keys", "rotate", "--emergency"]));
        assert_eq!(code, Some(1), "{error}");
        let expected = [
            "the kernel and the maps hold the new key only",
            "No space left",
            state.to_str().unwrap(),
            "the old file, which had the leaked key, was removed",
        ];
        assert!(expected.iter().all(|expected| error.contains(expected)), "{error}");
        assert!(!state.exists());
        assert_gone(client, &state, &leaked);
        eventually("it is counted", || keys_status(IFACE)["failures"] == 1);
        fs::remove_file(filler).unwrap();
        eventually("it is stored", || is_stored(&state));
        drop(open);
        rotate(&[]);
        wait_until_in_step();
    });
}

/// The old file can't be removed from a read-only folder, either.
#[test]
fn an_emergency_on_a_read_only_disk() {
    on_a_small_disk(|client, dir, leaked| {
        let state = dir.join("keys.json");
        // The lock is open for writing, so the whole file system can't be made read-only.
        mount(Some(dir), dir, NOTHING, MsFlags::MS_BIND, NOTHING).unwrap();
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(NOTHING, dir, NOTHING, read_only, NOTHING).unwrap();
        let (code, error) = failure(&tfo(&["keys", "rotate", "--emergency"]));
        assert_eq!(code, Some(1), "{error}");
        let remove = format!("before a new start, remove {}", state.display());
        assert!(
            error.contains("the old file still has the leaked key") && error.contains(&remove),
            "{error}"
        );
        assert!(kernel_keys().current != leaked.current && kernel_keys().backup.is_none());
        assert_eq!(keys_status(IFACE)["keys"].as_array().unwrap().len(), 1);
        umount(dir).unwrap();
        eventually("it is stored", || is_stored(&state));
        assert_gone(client, &state, &leaked);
    });
}

/// Returns the complaint of `tfo ARGS`, which must end by itself.
fn complaint(args: &[&str]) -> String {
    let mut command = Command::new("timeout");
    let command = command.arg("20").arg(binary()).args(args).stdin(Stdio::null());
    let (code, error) = failure(&command.output().unwrap());
    assert_eq!(code, Some(1), "tfo {args:?}: {error}");
    error
}

#[test]
fn a_secret_is_a_file_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    let secret = path.to_str().unwrap();
    let derive = || complaint(&["keys", "derive", secret]);

    mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    for error in [
        derive(),
        complaint(&["run", "-i", "none", "--keys", &format!("secret:{secret}")]),
        complaint(&["keys", "import", secret]),
        complaint(&["keys", "cookie", &format!("@{secret}"), "10.0.0.1", "10.0.0.2"]),
    ] {
        assert!(error.contains("is a pipe") && error.contains("standard input"), "{error}");
    }
    assert!(complaint(&["keys", "derive", "/dev/zero"]).contains("is a device"));

    fs::remove_file(&path).unwrap();
    fs::write(&path, [0; 32]).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert!(derive().contains("holds only zeros"));

    fs::write(&path, [7; 32]).unwrap();
    assert!(tfo(&["keys", "derive", secret]).status.success());
    // The owner has no name, and is not the user of the test.
    chown(&path, Some(54_321), None).unwrap();
    let error = derive();
    assert!(error.contains("belongs to user 54321") && error.contains("chown"), "{error}");
}
