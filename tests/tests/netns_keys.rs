//! Keys that change: what clients with old cookies get, and what becomes of a rotation that is disturbed.
#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};
use tfo_common::{
    class::Class,
    cookie,
    keyring::{Held, Key},
    segment::Family,
    verdict::Verdict,
};
use tfo_tests::netns::{
    BPFFS, Counts, IFACE, Running, StopOnDrop, eventually, failure, ip, key, keys_status, rotate, sandbox,
    server_and_client, set_keys, status, tfo, xdp_on,
};
use tfo_userspace::{
    control::{self, FOLDER},
    dataplane::{Publish, pins::Bpffs},
    kernel::{
        sysctl::{self, KernelKeys},
        tcp_ext::TcpExt,
    },
    keys::{
        keeper::{Keeper, Maps, Source},
        schedule::Schedule,
        secret::Secret,
    },
    lab::{
        client::{Syn, fast_open},
        net::{SERVERS, server, source},
        server::Listeners,
    },
    model::keys::{addresses, fingerprint, key_text, parse_key},
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// A `tfo run` with keys of its own, kept in `state`.
fn with_random_keys(state: &Path, more: &[&str]) -> Running {
    let state = state.to_str().unwrap();
    let running = Running::start(
        &[&["-i", IFACE, "--keys", "random", "--rotate", "1w", "--key-state", state], more].concat(),
    );
    in_step(IFACE, "random");
    running
}

/// Waits until the keys of `source` are in the kernel and in the map.
fn in_step(interface: &str, source: &str) {
    eventually("kernel and map are in step", || {
        let status = keys_status(interface);
        status["source"] == source && status["in_step"] == true
    });
}

fn kernel_keys() -> KernelKeys {
    KernelKeys::parse(&sysctl::read_key().unwrap()).unwrap()
}

/// A client comes back after 1 to 9 rotations. With `accelerate` its data is accepted from the SYN each time, and it gets a
/// fresh cookie; the kernel alone refuses it from the second rotation on.
fn comes_back(mode: &str) {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let before = TcpExt::read().unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"), &["--mode", mode]);
        for family in Family::ALL {
            for rotations in 1..=9 {
                let connect =
                    || client.run(|| fast_open(source(*family, rotations), server(*family), DATA)).unwrap();
                connect();
                connect();
                for _ in 0..rotations {
                    rotate(&[]);
                }
                let then = TcpExt::read().unwrap();
                connect();
                let taken = TcpExt::read().unwrap() - then;
                let expected = if rotations == 1 || mode == "accelerate" {
                    TcpExt { passive: 1, passive_alt_key: 1, ..TcpExt::default() }
                } else {
                    TcpExt { passive_fail: 1, ..TcpExt::default() }
                };
                assert_eq!(taken, expected, "{family}, after {rotations} rotations");
                // And it has a fresh cookie now.
                let then = TcpExt::read().unwrap();
                connect();
                assert_eq!(TcpExt::read().unwrap() - then, TcpExt { passive: 1, ..TcpExt::default() });
            }
        }
        let counts = Counts::of(IFACE);
        counts.assert_agree(before);
        assert_eq!(counts.class(Class::CookieRetired), 16);
        let rewritten = if mode == "accelerate" { 16 } else { 0 };
        assert_eq!(counts.verdict(Class::CookieRetired, Verdict::Rewrite), rewritten);
    });
}

#[test]
fn a_client_that_comes_back_is_served_by_accelerate() {
    comes_back("accelerate");
}

#[test]
fn a_client_that_comes_back_is_refused_by_the_kernel_alone() {
    comes_back("observe");
}

/// Crafted SYNs carry a checksum that the kernel verifies: a translated one must still be right.
#[test]
fn a_translated_cookie_has_a_right_checksum() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let _tfo = Running::start(&["-i", IFACE, "--mode", "accelerate"]);
        let mut port = 3000;
        for backup in [Some(key(2)), None] {
            set_keys(IFACE, key(1), None);
            set_keys(IFACE, key(3), backup);
            for family in Family::ALL {
                let (from, to) = (source(*family, 7), server(*family));
                let old = cookie::make(&key(1), &addresses(from, to.ip()).unwrap()).to_le_bytes();
                for make in [
                    &(|syn: Syn| syn.fast_open(&old)) as &dyn Fn(Syn) -> Syn,
                    &|syn: Syn| syn.fast_open(&old).data(DATA),
                    &|syn: Syn| syn.no_operation().fast_open(&old).data(b"odd"),
                    &|syn: Syn| syn.experimental(&old).data(DATA),
                    &|syn: Syn| syn.no_operation().experimental(&old),
                ] {
                    port += 1;
                    let then = TcpExt::read().unwrap();
                    let syn = make(Syn::new(port, to.port(), u32::from(port)));
                    client.run(|| syn.send(from, to.ip())).unwrap();
                    let passive_alt_key = u64::from(backup.is_some());
                    let expected = TcpExt { passive: 1, passive_alt_key, ..TcpExt::default() };
                    eventually("the kernel takes it", || TcpExt::read().unwrap() - then == expected);
                }
            }
        }
    });
}

/// The kernel's own rotation test (tools/testing/selftests/net/tcp_fastopen_backup_key.c), harder: the rotation is ours.
#[test]
fn ten_thousand_connections_through_two_hundred_rotations() {
    const CONNECTIONS: u64 = 10_000;
    server_and_client(|client| {
        // Each on both addresses; SO_REUSEPORT lets them share.
        let _listeners: Vec<_> = (0..4).map(|_| Listeners::start(&SERVERS).unwrap()).collect();
        let dir = tempfile::tempdir().unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"), &[]);
        // Two clients of each family, each with a cookie before the counting begins.
        let connect = |n: u64| {
            let family = Family::ALL[(n % 2) as usize];
            fast_open(source(family, (n / 2 % 2) as u16), server(family), DATA)
        };
        client.run(|| (0..4).try_for_each(connect)).unwrap();
        let (before, counted) = (TcpExt::read().unwrap(), Counts::of(IFACE));
        for batch in 0..CONNECTIONS / 50 {
            client.run(|| (batch * 50..(batch + 1) * 50).try_for_each(connect)).unwrap();
            rotate(&[]);
        }
        let kernel = TcpExt::read().unwrap() - before;
        assert_eq!(
            (kernel.passive, kernel.passive_fail, kernel.cookie_reqd),
            (CONNECTIONS, 0, 0),
            "{kernel:?}"
        );
        let counts = Counts::of(IFACE);
        for family in Family::ALL {
            let current = counts.syn(*family, Class::CookieCurrent);
            let backup = counts.syn(*family, Class::CookieBackup);
            assert_eq!(
                current.with_data + backup.with_data,
                CONNECTIONS / 2,
                "every payload came with its SYN"
            );
        }
        assert_eq!(
            counts.class(Class::CookieBackup) - counted.class(Class::CookieBackup),
            kernel.passive_alt_key
        );
        assert_eq!(counts.class(Class::CookieUnknown) + counts.class(Class::CookieRetired), 0);
    });
}

/// A leaked key: at once nothing made with it is taken, by the kernel or by the map.
#[test]
fn an_emergency_leaves_no_old_key() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"), &["--mode", "accelerate"]);
        rotate(&[]);
        let connect =
            || client.run(|| fast_open(source(Family::Ipv4, 1), server(Family::Ipv4), DATA)).unwrap();
        connect();
        connect();
        assert_eq!(Counts::of(IFACE).class(Class::CookieCurrent), 1);
        let leaked = kernel_keys();
        rotate(&["--emergency"]);
        let now = kernel_keys();
        assert!(now.current != leaked.current && now.backup.is_none());
        let status = keys_status(IFACE);
        assert_eq!(status["keys"].as_array().unwrap().len(), 1, "{status}");
        assert_eq!(status["in_step"], true);
        let then = TcpExt::read().unwrap();
        connect();
        assert_eq!(TcpExt::read().unwrap() - then, TcpExt { passive_fail: 1, ..TcpExt::default() });
        assert_eq!(Counts::of(IFACE).class(Class::CookieUnknown), 1);
        // Nor does the state file know it.
        let state = fs::read_to_string(dir.path().join("keys.json")).unwrap();
        assert!(!state.contains(key_text(leaked.current.unwrap()).as_str()));
    });
}

/// Where keys are the kernel's an emergency makes no new one, and must not look as if it had: also beside a tfo that could
/// have made one.
#[test]
fn an_emergency_that_makes_no_key_is_no_success() {
    server_and_client(|_| {
        ip("link add v0 type veth peer name v1");
        let dir = tempfile::tempdir().unwrap();
        let _follows = Running::start(&["-i", "v0"]);
        for n in 1..=3 {
            set_keys("v0", key(n), None);
        }
        let generation = || status("v0")["keys"]["generation"].clone();
        let emergency = || {
            let before = kernel_keys();
            let (code, error) = failure(&tfo(&["keys", "rotate", "--emergency", "-i", "v0"]));
            assert_eq!(code, Some(1), "{error}");
            let current = format!("its current one is {} still", fingerprint(before.current.unwrap()));
            assert!(error.contains("no new key was made") && error.contains(&current), "{error}");
            assert!(kernel_keys() == before);
            assert_eq!(status("v0")["keys"]["retired"], serde_json::json!([]));
        };
        emergency();
        // A map that holds nothing else is not written again.
        let then = generation();
        emergency();
        assert_eq!(generation(), then);
        let _makes = with_random_keys(&dir.path().join("keys.json"), &[]);
        rotate(&[]);
        in_step("v0", "kernel");
        emergency();
    });
}

/// The answer to an order names the keys that the kernel has, and says where there is none.
#[test]
fn an_emergency_says_what_is_in_force() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"), &[]);
        let said = rotate(&["--emergency"]);
        let current = fingerprint(kernel_keys().current.unwrap());
        assert_eq!(said, format!("the kernel and the maps hold current {current}, backup none\n"));
    });
}

/// A controller that has not seen yet that its keys are not the kernel's any more: an emergency of another one leaves the
/// kernel's in its map, not its own.
#[test]
fn an_emergency_leaves_the_kernels_keys_in_every_map() {
    struct Published(Vec<Publish>);
    impl Maps for Published {
        fn publish(&mut self, publish: Publish) -> anyhow::Result<()> {
            self.0.push(publish);
            Ok(())
        }
    }
    sandbox(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        fs::write(&file, [0x5a; 32]).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let secret = || Secret::read(file.to_str().unwrap()).unwrap();
        let schedule = || Schedule::new(Duration::from_hours(1)).unwrap();
        let now = 1_000_000;
        let held = schedule().held(&secret(), now);
        let mut keeper = Keeper::new(Source::Secret { secret: secret(), schedule: schedule() });
        let mut forget = |current: Key, backup: Option<Key>| {
            sysctl::KeySysctl::open().unwrap().write(current, backup).unwrap();
            let mut maps = Published(Vec::new());
            keeper.forget(now, &mut maps).unwrap();
            maps.0
        };
        let ours = forget(held.current.unwrap(), held.backup);
        assert!(ours == [Publish::Only(held)], "with the next one");
        let other = forget(key(1), None);
        assert!(other == [Publish::Only(Held { current: Some(key(1)), ..Held::default() })]);
    });
}

/// Somebody else writes the sysctl: it is said, counted and followed, and nobody fights.
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

/// The sysctl can't be written: it is said, the kernel's keys stay in the map, and the rotation is made up for later.
#[test]
fn a_read_only_sysctl_loses_nothing() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"), &[]);
        let before = kernel_keys();
        let path = "/proc/sys/net/ipv4/tcp_fastopen_key";
        let none = None::<&str>;
        // The controller shares this mount namespace, and opens the file for each rotation.
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
        in_step(IFACE, "random");
    });
}

/// Killed at any moment of a rotation, again and again: the map always covers the kernel's keys, and the next start
/// finishes what was begun.
#[test]
fn kill_9_during_rotations() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // It may be killed under it.
                    tfo(&["keys", "rotate"]);
                }
            });
            let guard = StopOnDrop(&stop);
            for round in 0..15_u64 {
                let tfo_run = with_random_keys(&state, &[]);
                thread::sleep(Duration::from_millis(20 + 37 * round % 150));
                tfo_run.kill();
                let held = keys_status(IFACE)["keys"].to_string();
                let kernel = kernel_keys();
                for key in [kernel.current, kernel.backup].into_iter().flatten() {
                    assert!(held.contains(&fingerprint(key)), "the kernel's key is not in the map: {held}");
                }
            }
            drop(guard);
        });
        let _tfo = with_random_keys(&state, &[]);
        assert!(xdp_on(IFACE).is_some());
    });
}

/// Rotations while clients come, in accelerate mode: at no moment is a cookie translated into one that the kernel refuses.
#[test]
fn rotations_under_accelerated_traffic_refuse_nobody() {
    server_and_client(|client| {
        let _listeners: Vec<_> = (0..2).map(|_| Listeners::start(&SERVERS).unwrap()).collect();
        let dir = tempfile::tempdir().unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"), &["--mode", "accelerate"]);
        let connect = |n: u64| {
            let family = Family::ALL[(n % 2) as usize];
            fast_open(source(family, (n / 2 % 2) as u16), server(family), DATA)
        };
        client.run(|| (0..4).try_for_each(connect)).unwrap();
        let before = TcpExt::read().unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                client.run(|| {
                    let mut connections = 0;
                    while !stop.load(Ordering::Relaxed) {
                        connect(connections)?;
                        connections += 1;
                    }
                    Ok(connections)
                })
            });
            let guard = StopOnDrop(&stop);
            for _ in 0..40 {
                rotate(&[]);
            }
            drop(guard);
            let connections = traffic.join().unwrap().unwrap();
            let kernel = TcpExt::read().unwrap() - before;
            assert_eq!(
                (kernel.passive, kernel.passive_fail, kernel.cookie_reqd),
                (connections, 0, 0),
                "{kernel:?}"
            );
            assert!(connections > 40, "{connections}");
        });
    });
}

/// A secret was replaced: told to, the map forgets the keys of the old one.
#[test]
fn a_replaced_secret_can_be_forgotten() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        let start = |byte: u8| {
            fs::write(&file, [byte; 32]).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            let source = format!("secret:{}", file.display());
            let running = Running::start(&["-i", "v0", "--keys", &source, "--rotate", "1w"]);
            in_step("v0", "secret");
            running
        };
        start(1).kill();
        let leaked = kernel_keys();
        let _tfo = start(2);
        eventually("the kernel has the new secret's keys", || kernel_keys() != leaked);
        in_step("v0", "secret");
        let holds =
            |key: Option<Key>| keys_status("v0")["keys"].to_string().contains(&fingerprint(key.unwrap()));
        assert!(holds(leaked.current), "as a retired key");
        rotate(&["--emergency"]);
        assert!(!holds(leaked.current) && !holds(leaked.backup));
        let now = kernel_keys();
        assert!(holds(now.current) && holds(now.backup));
    });
}

/// A restart forgets no key: a client's cookie from before is still known.
#[test]
fn a_restart_refuses_nobody() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        let connect =
            || client.run(|| fast_open(source(Family::Ipv6, 1), server(Family::Ipv6), DATA)).unwrap();
        let first = with_random_keys(&state, &["--mode", "accelerate"]);
        connect();
        for _ in 0..3 {
            rotate(&[]);
        }
        first.end(Signal::SIGINT);
        // What a controller leaves that was killed while it wrote, and somebody else's file.
        let (left, other) =
            (dir.path().join(".keys.json.0123456789abcdef.new"), dir.path().join(".other.new"));
        fs::write(&left, "keys").unwrap();
        fs::write(&other, "not ours").unwrap();
        let _second = with_random_keys(&state, &["--mode", "accelerate"]);
        let then = TcpExt::read().unwrap();
        connect();
        assert_eq!((TcpExt::read().unwrap() - then).passive, 1);
        assert_eq!(Counts::of(IFACE).verdict(Class::CookieRetired, Verdict::Rewrite), 1);
        assert!(!left.exists() && other.exists());
    });
}

/// Retired keys that nobody uses any more are given up at the next rotation; those that are used stay.
#[test]
fn retired_keys_go_by_evidence() {
    server_and_client(|client| {
        let _tfo = Running::start(&["-i", IFACE, "--retire-below", "10%"]);
        for n in 1..=4 {
            set_keys(IFACE, key(n), None);
        }
        let (from, to) = (source(Family::Ipv4, 1), server(Family::Ipv4));
        let addresses = addresses(from, to.ip()).unwrap();
        let send = |key: Key, count: u32| {
            let cookie = cookie::make(&key, &addresses).to_le_bytes();
            for n in 0..count {
                let syn = Syn::new(2000 + n as u16, to.port(), n).fast_open(&cookie);
                client.run(|| syn.send(from, to.ip())).unwrap();
            }
        };
        send(key(4), 50);
        send(key(2), 50);
        eventually("all are counted", || Counts::of(IFACE).total() == 100);
        set_keys(IFACE, key(5), None);
        let held = || keys_status(IFACE)["keys"].to_string();
        eventually("key 1 and key 3 go", || {
            let held = held();
            [1, 3].iter().all(|n| !held.contains(&fingerprint(key(*n))))
        });
        assert!([2, 4, 5].iter().all(|n| held().contains(&fingerprint(key(*n)))), "{}", held());
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

/// The public tool's vector, through our own command.
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

/// Two hosts of a fleet, each with its own tfo and kernel: the same secret gives both the same keys.
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
            in_step("v0", "secret");
            keys = kernel_keys();
        });
        keys
    };
    let (one, other) = (host(), host());
    assert!(one == other && one.current.is_some() && one.backup.is_some());
}

/// Two hosts whose clocks are a quarter of an interval early and late accept each other's cookies all the time.
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
            let _tfo = Running::start_at(offset, &["-i", "v0", "--keys", &source, "--rotate", &interval]);
            in_step("v0", "secret");
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

/// The clock goes back below the time at which the newest key was made: it is said, and every key stays.
#[test]
fn a_clock_that_goes_back_loses_nothing() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        with_random_keys(&state, &[]).end(Signal::SIGINT);
        let (before, file) = (kernel_keys(), fs::read(&state).unwrap());
        let arguments =
            ["-i", IFACE, "--keys", "random", "--rotate", "10s", "--key-state", state.to_str().unwrap()];
        let tfo_run = Running::start_at(-86_400, &arguments);
        in_step(IFACE, "random");
        assert!(kernel_keys() == before);
        let log = tfo_run.end(Signal::SIGINT);
        assert!(log.contains("the clock is behind"), "{log}");
        assert_eq!(fs::read(&state).unwrap(), file);
    });
}

/// Two controllers that keep their keys in one file would forget each other's.
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

/// Each with its own clear error, before anything is attached.
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

/// Changes the effective user of this thread; seteuid(3) would change that of all tests.
fn become_user(user: libc::uid_t) {
    let same = libc::uid_t::MAX;
    // SAFETY: takes three numbers, and changes nothing but the credentials of the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, same, user, same) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// A folder in which somebody else could wait for orders: none are taken or given there.
#[test]
fn a_stranger_at_the_socket_learns_nothing() {
    server_and_client(|_| {
        fs::create_dir(FOLDER).unwrap();
        std::os::unix::fs::chown(FOLDER, Some(65_534), None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tfo_run = with_random_keys(&dir.path().join("keys.json"), &[]);
        let (code, error) = failure(&tfo(&["keys", "rotate"]));
        assert_eq!(code, Some(3));
        assert!(error.contains("no controller runs on"), "{error}");
        // One that listens in its place is not root: it is told nothing.
        let pins = Bpffs::new(Path::new(BPFFS)).pins(IFACE);
        let socket = control::socket(&pins).unwrap();
        become_user(65_534);
        let stranger = UnixListener::bind(socket);
        become_user(0);
        let stranger = stranger.unwrap();
        let (code, error) = failure(&tfo(&["keys", "rotate"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("belongs to another user"), "{error}");
        stranger.set_nonblocking(true).unwrap();
        let mut heard = Vec::new();
        std::io::Read::read_to_end(&mut stranger.accept().unwrap().0, &mut heard).unwrap();
        assert!(heard.is_empty());
        let log = tfo_run.end(Signal::SIGINT);
        assert!(log.contains("will not be heard"), "{log}");
    });
}

/// Nothing that is printed or logged shows a key.
#[test]
fn keys_are_shown_nowhere() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let tfo_run = with_random_keys(&dir.path().join("keys.json"), &["-v"]);
        let mut said = rotate(&[]) + &rotate(&[]);
        let keys = kernel_keys();
        for args in [
            &["status"] as &[&str],
            &["status", "--json"],
            &["keys", "status"],
            &["keys", "status", "--json"],
            &["counters", "--json"],
        ] {
            said += &String::from_utf8_lossy(&tfo(args).stdout);
        }
        said += &fs::read_to_string(format!("/proc/{}/cmdline", tfo_run.id())).unwrap();
        said += &tfo_run.end(Signal::SIGINT);
        for key in [keys.current, keys.backup].into_iter().flatten() {
            for group in key_text(key).split('-') {
                assert!(!said.contains(group), "{said}");
            }
        }
    });
}
