//! Rotations: cookies of old keys, a controller that is killed, emergencies, and requests from strangers.
#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use tfo_common::{
    class::Class,
    cookie,
    keyring::{CONFIRMED_FOR_NS, Held, Key},
    segment::Family,
    verdict::Verdict,
};
use tfo_tests::{
    netns::{
        BPFFS, Counts, IFACE, Running, StopOnDrop, eventually, failure, ip, key, keys_status, rotate,
        sandbox, server_and_client, set_keys, status, tfo, xdp_on,
    },
    random_keys::{kernel_keys, wait_until_in_step, with_random_keys},
};
use tfo_userspace::{
    control::{self, FOLDER},
    dataplane::{Publish, confirm_keys, pins::Bpffs},
    kernel::{sysctl::KeySysctl, tcp_ext::TcpExt},
    keys::{
        feed::{Fixed, Memory},
        keeper::{Keeper, Maps, Source},
        schedule::Schedule,
        secret::Secret,
        succession::Succession,
    },
    lab::{
        client::{Syn, fast_open},
        net::{SERVERS, server, source},
        server::Listeners,
    },
    model::keys::{DatedKey, addresses, fingerprint, key_text},
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// Connects a client after 1 to 9 rotations. With `accelerate`, the data in its SYN is accepted each time, and it gets
/// a fresh cookie. The kernel alone refuses it from the second rotation on.
fn check_returning_client(mode: &str) {
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
                // The client has a fresh cookie now.
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
    check_returning_client("accelerate");
}

#[test]
fn a_client_that_comes_back_is_refused_by_the_kernel_alone() {
    check_returning_client("observe");
}

/// Crafted SYNs with an old cookie. The kernel verifies the checksum after the translation.
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

/// The kernel's own test of rotations (tools/testing/selftests/net/tcp_fastopen_backup_key.c), with rotations by tfo.
//= RFC 7413 section 4.1.2
//# To gradually invalidate cookies over time, the server can implement
//# key rotation to generate and verify cookies using multiple keys.
#[test]
fn ten_thousand_connections_through_two_hundred_rotations() {
    const CONNECTIONS: u64 = 10_000;
    server_and_client(|client| {
        // Each listens on both addresses, which they share by SO_REUSEPORT.
        let _listeners: Vec<_> = (0..4).map(|_| Listeners::start(&SERVERS).unwrap()).collect();
        let dir = tempfile::tempdir().unwrap();
        let _tfo = with_random_keys(&dir.path().join("keys.json"), &[]);
        // Two clients of each family get their cookies before the counting begins.
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

/// Cookies of a leaked key are refused at once, and the map no longer has the key.
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
        // The state file does not have it, either.
        let state = fs::read_to_string(dir.path().join("keys.json")).unwrap();
        assert!(!state.contains(key_text(leaked.current.unwrap()).as_str()));
    });
}

/// An emergency with `--keys kernel` makes no new key, so it must fail, even beside another tfo that makes keys.
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
            let current = format!("its current key is still {}", fingerprint(before.current.unwrap()));
            assert!(error.contains("no new key was made") && error.contains(&current), "{error}");
            assert!(kernel_keys() == before);
            assert_eq!(status("v0")["keys"]["retired"], serde_json::json!([]));
        };
        emergency();
        // A map without other keys is not written again.
        let then = generation();
        emergency();
        assert_eq!(generation(), then);
        let _makes = with_random_keys(&dir.path().join("keys.json"), &[]);
        rotate(&[]);
        wait_until_in_step("v0", "kernel");
        emergency();
    });
}

/// The answer to a request names the kernel's keys, and says which is missing.
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

/// A controller may not have noticed yet that another process has changed the kernel's keys. An emergency leaves the
/// kernel's keys in its map, not its own.
#[test]
fn an_emergency_leaves_the_kernels_keys_in_every_map() {
    struct Published(Vec<Publish>);
    impl Maps for Published {
        fn publish(&mut self, publish: Publish) -> anyhow::Result<()> {
            self.0.push(publish);
            Ok(())
        }

        fn know(&mut self, _keys: &[DatedKey]) -> anyhow::Result<()> {
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
        let succession = Succession::new(secret(), schedule(), Duration::ZERO);
        let memory = Memory::new(dir.path()).unwrap();
        let mut keeper =
            Keeper::new(Source::Secret { succession, feed: Box::new(Fixed), memory: Some(memory) });
        let mut forget = |current: Key, backup: Option<Key>| {
            KeySysctl::open().unwrap().write(current, backup).unwrap();
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

/// The controller is killed at random moments of a rotation. The map always has the kernel's keys, and the next start
/// finishes the rotation.
#[test]
fn kill_9_during_rotations() {
    server_and_client(|_| {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // This may fail, since the controller may be killed meanwhile.
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

/// Rotations in mode accelerate while clients connect. A cookie is never translated into one that the kernel refuses.
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

/// A restart loses no key, so an earlier cookie is still translated.
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
        // The first file is one that a controller leaves if it is killed while writing. The second is not tfo's.
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

/// The next controller confirms the keys of the one that was killed, before its own program is loaded. So cookies of old keys
/// are translated meanwhile.
#[test]
fn a_take_over_confirms_the_keys_of_the_program_before() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tfo_run = with_random_keys(&dir.path().join("keys.json"), &["--mode", "accelerate"]);
        let connect = |number: u16| {
            let before = TcpExt::read().unwrap();
            let family = Family::Ipv4;
            client.run(|| fast_open(source(family, number), server(family), DATA)).unwrap();
            let TcpExt { passive, passive_fail, .. } = TcpExt::read().unwrap() - before;
            (passive, passive_fail)
        };
        for number in [1, 2] {
            assert_eq!((connect(number), connect(number)), ((0, 0), (1, 0)));
        }
        (0..2).for_each(|_| drop(rotate(&[])));
        tfo_run.kill();
        thread::sleep(Duration::from_nanos(CONFIRMED_FOR_NS) + Duration::from_secs(1));
        assert_eq!(connect(1), (0, 1), "nobody says that the keys are the kernel's");
        let pins = Bpffs::new(Path::new(BPFFS)).pins(IFACE).lock(Duration::from_secs(5)).unwrap();
        confirm_keys(&pins, kernel_keys().into()).unwrap();
        assert_eq!(connect(2), (1, 0));
    });
}

/// Retired keys whose cookies no client uses are dropped at the next rotation. Those in use stay.
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

/// Changes the effective user of this thread. seteuid(3) would change that of all tests.
fn become_user(user: libc::uid_t) {
    let same = libc::uid_t::MAX;
    // SAFETY: takes three numbers, and changes nothing but the credentials of the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, same, user, same) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// A folder of sockets that belongs to another user is not used, neither by the controller nor by a client.
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
        // A listener on the socket that is not root gets no data.
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

/// Output and log never show a key.
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
