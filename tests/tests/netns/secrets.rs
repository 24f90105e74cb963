//! A fleet whose hosts get a new secret one after the other, in a file.
#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tfo_common::class::Class;
use tfo_tests::{
    fleet::{Fleet, Made},
    netns::{Counts, IFACE, Running, StopOnDrop, eventually, failure, ip, keys_status, rotate, sandbox, tfo},
    random_keys::{kernel_keys, wait_until_in_step},
};
use tfo_userspace::{kernel::tcp_ext::TcpExt, model::keys::fingerprint};

/// Writes a secret beside the file at `path`, and then takes its place.
fn replace(path: &Path, byte: u8) {
    let new = path.with_extension("new");
    fs::write(&new, [byte; 32]).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, path).unwrap();
}

/// Starts `tfo run` with the secret at `path`.
fn start(path: &Path, rotate: &str, overlap: &str, more: &[&str]) -> Running {
    let source = format!("secret:{}", path.display());
    let arguments = ["-i", IFACE, "--keys", &source, "--rotate", rotate, "--overlap", overlap];
    let running = Running::start(&[&arguments, more].concat());
    wait_until_in_step(IFACE, "secret");
    running
}

/// Fingerprint of the kernel's primary key.
fn current() -> String {
    fingerprint(kernel_keys().current.unwrap())
}

/// Whether the map has a key with this fingerprint.
fn knows(shown: &str) -> bool {
    keys_status(IFACE)["keys"].to_string().contains(shown)
}

/// Fingerprint of the current key that a secret of one byte gives.
fn derived(dir: &Path, byte: u8, rotate: &str) -> String {
    let path = dir.join(format!("derive-{byte}"));
    replace(&path, byte);
    let output = tfo(&["keys", "derive", path.to_str().unwrap(), "--rotate", rotate, "--json"]);
    let derived: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    derived["current"].as_str().unwrap().to_owned()
}

/// Makes a host of its own with the secret 1, and runs `test`.
fn on_a_host(overlap: &str, test: impl FnOnce(&Path, Running) + Send) {
    sandbox(|| {
        ip(&format!("link add {IFACE} type veth peer name v1"));
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("secret");
        replace(&path, 1);
        let running = start(&path, "1w", overlap, &[]);
        test(&path, running);
    });
}

/// Three hosts get a new secret one after the other, under traffic that goes to another host each time. Meanwhile their keys
/// change by the clock, and one of them starts anew. No good cookie is refused, neither by the kernel nor by tfo.
#[test]
fn a_secret_is_replaced_host_by_host() {
    let fleet = Fleet::start(3);
    let dir = TempDir::new().unwrap();
    let paths = [0, 1, 2].map(|host| dir.path().join(format!("secret-{host}")));
    let mut running = Vec::new();
    let accelerated = ["--mode", "accelerate"];
    for (host, path) in fleet.hosts.iter().zip(paths.clone()) {
        replace(&path, 1);
        running.push(host.run(move || start(&path, "10s", "8s", &accelerated)));
    }
    let before: Vec<_> = fleet.hosts.iter().map(|host| host.run(|| TcpExt::read().unwrap())).collect();
    let (stop, made) = (AtomicBool::new(false), Made::default());
    let number = AtomicUsize::new(0);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| fleet.visit(150, &stop, &made, || number.fetch_add(7, Ordering::Relaxed) / 3 % 3));
        thread::sleep(Duration::from_secs(3));
        for host in [2, 0, 1] {
            replace(&paths[host], 2);
            thread::sleep(Duration::from_secs(2));
        }
        // In the middle of the overlap.
        let path = paths[0].clone();
        running.remove(0).end(Signal::SIGTERM);
        running.insert(0, fleet.hosts[0].run(move || start(&path, "10s", "8s", &accelerated)));
        thread::sleep(Duration::from_secs(25));
    });
    let expected = derived(dir.path(), 2, "10s");
    let mut translated = 0;
    for (host, before) in fleet.hosts.iter().zip(before) {
        let counts = host.run(|| Counts::of(IFACE));
        translated += counts.class(Class::CookieRetired);
        assert_eq!(counts.class(Class::CookieUnknown), 0, "a cookie that the host does not know");
        let since = host.run(move || TcpExt::read().unwrap() - before);
        assert_eq!(since.passive_fail, 0, "a cookie that the kernel refuses");
    }
    assert!(translated > 0, "hosts have met cookies that their kernels do not know");
    let (all, early) = (made.all.load(Ordering::Relaxed), made.early.load(Ordering::Relaxed));
    // Clients begin with a request, on several threads.
    assert!(all > 500 && early >= all - 50, "{early} of {all}");
    assert_eq!(fleet.hosts[0].run(current), expected, "the new secret is in force");
    drop(running);
}

/// The new secret is recognised within seconds and in force after the overlap, and `tfo keys status` says so.
#[test]
fn a_new_secret_waits_for_the_other_hosts() {
    on_a_host("20s", |path, _running| {
        let (old, new) = (current(), derived(path.parent().unwrap(), 2, "1w"));
        let began = Instant::now();
        replace(path, 2);
        eventually("its keys are known", || knows(&new));
        assert_eq!(current(), old, "it is not in force");
        assert!(keys_status(IFACE)["next_secret_from"].is_u64());
        let page = path.with_extension("html");
        for (args, said) in [
            (&["keys", "status"][..], "a new secret of the fleet is known, and in force in "),
            (&["top", "-i", IFACE], "a new secret of the fleet is known"),
            (&["report", "-i", IFACE, "--html", page.to_str().unwrap()], ""),
        ] {
            let output = tfo(args);
            assert!(output.status.success(), "{:?}", failure(&output));
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains(said), "tfo {args:?}: {text}");
        }
        assert!(fs::read_to_string(&page).unwrap().contains("A new secret is in force in "));
        eventually("it is in force", || current() == new);
        assert!(began.elapsed() >= Duration::from_secs(20), "not before the overlap is over");
        assert_eq!(fingerprint(kernel_keys().backup.unwrap()), old, "the kernel takes the old cookies");
        wait_until_in_step(IFACE, "secret");
        assert!(keys_status(IFACE)["next_secret_from"].is_null());
    });
}

/// A faulty new file changes nothing. It is said, counted, and of no effect as soon as the file is good again.
#[test]
fn a_bad_secret_changes_nothing() {
    on_a_host("1h", |path, running| {
        let old = kernel_keys();
        for (content, mode) in [(&[7; 31][..], 0o600), (&[7; 32], 0o644), (&[0; 32], 0o600)] {
            let failures = keys_status(IFACE)["failures"].as_u64().unwrap();
            fs::write(path, content).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            eventually("it is counted", || keys_status(IFACE)["failures"] == failures + 1);
            assert!(kernel_keys() == old);
        }
        let failures = keys_status(IFACE)["failures"].as_u64().unwrap();
        fs::remove_file(path).unwrap();
        eventually("so is a missing one", || keys_status(IFACE)["failures"] == failures + 1);
        let (code, error) = failure(&tfo(&["keys", "rotate"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("cannot examine the secret"), "{error}");
        replace(path, 1);
        thread::sleep(Duration::from_secs(3));
        let log = running.end(Signal::SIGTERM);
        for what in ["holds 31 bytes", "chmod 600", "holds only zeros", "cannot examine the secret"] {
            assert_eq!(log.matches(what).count(), 1, "{what}: {log}");
        }
        assert!(!log.contains("the fleet has a new secret"), "{log}");
    });
}

/// A secret below a link to a folder that is swapped, as in a volume of Kubernetes.
#[test]
fn a_swapped_link_is_a_new_file() {
    sandbox(|| {
        ip(&format!("link add {IFACE} type veth peer name v1"));
        let dir = TempDir::new().unwrap();
        let publish = |version: &str, byte: u8| -> io::Result<()> {
            let folder = dir.path().join(version);
            fs::create_dir(&folder)?;
            replace(&folder.join("secret"), byte);
            symlink(&folder, dir.path().join("..data_tmp"))?;
            fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data"))
        };
        publish("..1", 1).unwrap();
        let path = dir.path().join("secret");
        symlink("..data/secret", &path).unwrap();
        let _running = start(&path, "1w", "0s", &[]);
        let new = derived(dir.path(), 2, "1w");
        publish("..2", 2).unwrap();
        eventually("the new secret is in force", || current() == new);
    });
}

/// However the controller ends during the overlap, the next one goes on where it was. So does a start after which the file
/// has another secret, as with credentials of systemd, which change by a restart only.
#[test]
fn the_overlap_outlives_a_restart() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        on_a_host("12s", |path, running| {
            let (old, new) = (current(), derived(path.parent().unwrap(), 2, "1w"));
            if signal == Signal::SIGKILL {
                running.kill();
                replace(path, 2);
            } else {
                replace(path, 2);
                eventually("its keys are known", || knows(&new));
                running.end(signal);
            }
            let _running = start(path, "1w", "12s", &[]);
            assert_eq!(current(), old, "{signal}");
            eventually("its keys are known again", || knows(&new));
            eventually("it is in force", || current() == new);
            assert_eq!(fingerprint(kernel_keys().backup.unwrap()), old, "{signal}");
        });
    }
}

/// `tfo keys rotate` puts a new secret in force at once, and an emergency leaves nothing of the old one, nowhere.
#[test]
fn a_new_secret_can_be_hurried() {
    on_a_host("1h", |path, running| {
        let (code, error) = failure(&tfo(&["keys", "rotate"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("no new secret is known"), "{error}");

        let (first, second) = (current(), derived(path.parent().unwrap(), 2, "1w"));
        replace(path, 2);
        rotate(&[]);
        assert_eq!(current(), second, "read at once");
        assert!(knows(&first), "its cookies are still good");

        let third = derived(path.parent().unwrap(), 3, "1w");
        replace(path, 3);
        rotate(&["--emergency"]);
        assert_eq!(current(), third);
        assert!(!knows(&first) && !knows(&second));
        assert_eq!(keys_status(IFACE)["in_step"], true);
        running.kill();
        let _running = start(path, "1w", "1h", &[]);
        thread::sleep(Duration::from_secs(1));
        assert_eq!(current(), third);
        assert!(!knows(&first) && !knows(&second), "a restart does not bring them back");
    });
}

/// The file in which secrets outlive a restart is for root only, and holds no more than it has to.
#[test]
fn the_memory_is_for_root() {
    on_a_host("1h", |_, _running| {
        let folder = fs::read_dir("/run/tfo").unwrap().flatten();
        let memory: Vec<_> =
            folder.filter(|entry| entry.file_name().to_string_lossy().starts_with("secrets-")).collect();
        assert_eq!(memory.len(), 1);
        let mode = memory[0].metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::metadata("/run/tfo").unwrap().permissions().mode() & 0o7777, 0o700);
        let text = fs::read_to_string(memory[0].path()).unwrap();
        assert_eq!(text.matches("secret\"").count(), 1, "one secret");
    });
}
