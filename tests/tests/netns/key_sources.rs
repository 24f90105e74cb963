//! Sources of keys: the state file, secrets, imported keys, and a sysctl that others write.

use std::{fs, os::unix::fs::PermissionsExt as _, thread, time::Duration};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};
use tfo_tests::{
    netns::{
        IFACE, Running, eventually, failure, ip, key, keys_status, rotate, sandbox, server_and_client,
        set_keys, tfo, xdp_on,
    },
    random_keys::{kernel_keys, wait_until_in_step, with_random_keys},
};
use tfo_userspace::{
    kernel::sysctl::KernelKeys,
    model::keys::{fingerprint, key_text, parse_key},
};

/// A key that another process writes into the sysctl is logged, counted and followed, and stays.
#[test]
fn a_foreign_key_is_followed() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let tfo_run = with_random_keys(&dir.path().join("keys.json"), &[]);
        set_keys(IFACE, key(9), None);
        eventually("it is counted", || keys_status(IFACE)["failures"] == 1);
        thread::sleep(Duration::from_millis(500));
        assert!(kernel_keys().current == Some(key(9)), "it stays");
        assert_eq!(keys_status(IFACE)["in_step"], false);
        rotate(&[]);
        assert_eq!(keys_status(IFACE)["in_step"], true, "told to, we write again");
        let log = tfo_run.end(Signal::SIGINT);
        assert!(log.contains("somebody else has set net.ipv4.tcp_fastopen_key"), "{log}");
    });
}

/// The sysctl can't be written. The rotation fails, the kernel's keys stay in the map, and the rotation follows later.
#[test]
fn a_read_only_sysctl_loses_nothing() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"), &[]);
        let before = kernel_keys();
        let path = "/proc/sys/net/ipv4/tcp_fastopen_key";
        let none = None::<&str>;
        // The controller is in this mount namespace, and opens the file for each rotation.
        mount(Some(path), path, none, MsFlags::MS_BIND, none).unwrap();
        mount(none, path, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, none).unwrap();
        let (code, error) = failure(&tfo(&["keys", "rotate"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("cannot open /proc/sys/net/ipv4/tcp_fastopen_key for writing"), "{error}");
        assert!(kernel_keys() == before);
        let held = |role: &str| {
            let keys = keys_status(IFACE)["keys"].as_array().unwrap().clone();
            keys.iter().find(|key| key["role"] == role).map(|key| key["fingerprint"].clone())
        };
        eventually("the map has the kernel's", || {
            held("current") == Some(fingerprint(before.current.unwrap()).into())
        });
        nix::mount::umount(path).unwrap();
        eventually("the rotation is made up for", || kernel_keys().backup == before.current);
        wait_until_in_step(IFACE, "random");
    });
}

#[test]
fn an_imported_key_is_used() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"), &[]);
        let before = kernel_keys();
        let file = dir.path().join("key");
        fs::write(&file, key_text(key(7))).unwrap();
        let output = tfo(&["keys", "import", file.to_str().unwrap()]);
        assert!(output.status.success(), "{:?}", failure(&output));
        assert!(kernel_keys() == KernelKeys { current: Some(key(7)), backup: before.current });
        assert_eq!(keys_status(IFACE)["in_step"], true);
    });
}

/// `tfo keys derive` gives the keys of tofurkey's test vector.
#[test]
fn derives_what_tofurkey_derives() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    fs::write(&file, "363ec6a05e76eedeb9eb73bc5c25ca5f13f7c1df70c9af3531db4c83d23a8f6b\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let output =
        tfo(&["keys", "derive", file.to_str().unwrap(), "--rotate", "1d", "--at", "1000000", "--json"]);
    let derived: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let shown = |text| fingerprint(parse_key(text).unwrap());
    assert_eq!(derived["current"], shown("c998252e-8f89667d-31961e08-3897526b"));
    assert_eq!(derived["backup"], shown("1c9ca1a5-9d295055-f8e3d4df-7107b577"));
}

/// The same secret gives two hosts of a fleet, each with its own tfo and kernel, the same keys.
//= RFC 7413 section 6.3.4
//# Servers behind load balancers that accept connection requests to the
//# same server IP address should use the same key such that they generate
//# identical Fast Open cookies for a particular client IP address.
#[test]
fn a_fleet_shares_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    fs::write(&file, [0x5a; 32]).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let source = format!("secret:{}", file.display());
    let host = || {
        let mut keys = KernelKeys::default();
        sandbox(|| {
            ip("link add v0 type veth peer name v1");
            let _tfo = Running::start(&["-i", "v0", "--keys", &source, "--rotate", "1w"]);
            wait_until_in_step("v0", "secret");
            keys = kernel_keys();
        });
        keys
    };
    let (one, other) = (host(), host());
    assert!(one == other && one.current.is_some() && one.backup.is_some());
}

/// Two hosts always accept each other's cookies if their clocks are a quarter of an interval early and late.
#[test]
fn clocks_may_differ_by_half_an_interval() {
    const INTERVAL: i64 = 600;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    fs::write(&file, [0xa5; 32]).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let source = format!("secret:{}", file.display());
    let host = |offset: i64| {
        let mut keys = KernelKeys::default();
        sandbox(|| {
            ip("link add v0 type veth peer name v1");
            let interval = INTERVAL.to_string() + "s";
            let _tfo =
                Running::start_with_offset(offset, &["-i", "v0", "--keys", &source, "--rotate", &interval]);
            wait_until_in_step("v0", "secret");
            keys = kernel_keys();
        });
        keys
    };
    for eighth in 0..8 {
        let now = eighth * INTERVAL / 8;
        let (early, late) = (host(now + INTERVAL / 4), host(now - INTERVAL / 4));
        let takes = |host: &KernelKeys, cookie_of: &KernelKeys| {
            host.current == cookie_of.current || host.backup == cookie_of.current
        };
        assert!(takes(&early, &late) && takes(&late, &early), "{eighth}/8 of an interval");
    }
}

/// The clock goes back before the time at which the newest key was made. That is logged, and every key stays.
#[test]
fn a_clock_that_goes_back_loses_nothing() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        with_random_keys(&state, &[]).end(Signal::SIGINT);
        let (before, file) = (kernel_keys(), fs::read(&state).unwrap());
        let arguments =
            ["-i", IFACE, "--keys", "random", "--rotate", "10s", "--key-state", state.to_str().unwrap()];
        let tfo_run = Running::start_with_offset(-86_400, &arguments);
        wait_until_in_step(IFACE, "random");
        assert!(kernel_keys() == before);
        let log = tfo_run.end(Signal::SIGINT);
        assert!(log.contains("the clock is behind"), "{log}");
        assert_eq!(fs::read(&state).unwrap(), file);
    });
}

/// A second controller may not use the same state file, since each would lose the other's keys.
#[test]
fn a_state_file_has_one_owner() {
    server_and_client(|_| {
        ip("link add v0 type veth peer name v1");
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        let _tfo = with_random_keys(&state, &[]);
        let (code, error) =
            failure(&tfo(&["run", "-i", "v0", "--keys", "random", "--key-state", state.to_str().unwrap()]));
        assert_eq!(code, Some(1));
        assert!(error.contains("another tfo keeps its keys in"), "{error}");
    });
}

/// Faults of secrets and state files have clear errors, before anything is attached.
#[test]
fn bad_secrets_and_states_are_refused() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let path = file.to_str().unwrap();
        let secret = format!("secret:{path}");
        let refused = |content: &[u8], mode: u32, args: &[&str], expected: &str| {
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let (code, error) = failure(&tfo(&[&["run", "-i", "v0"], args].concat()));
            assert_eq!(code, Some(1), "{error}");
            assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
            assert_eq!(fs::read(&file).unwrap(), content, "the file is as it was");
            assert_eq!(xdp_on("v0"), None);
        };
        let from_secret = ["--keys", &secret];
        refused(&[1; 31], 0o600, &from_secret, "31");
        refused(&[1; 32], 0o644, &from_secret, "chmod 600");
        let from_state = ["--keys", "random", "--key-state", path];
        refused(b"{\"version\":1,\"keys\":[", 0o600, &from_state, path);
        refused(b"{\"version\":1,\"keys\":[]}", 0o644, &from_state, "chmod 600");
        refused(b"{\"version\":99,\"keys\":[]}", 0o600, &from_state, "version");
    });
}
