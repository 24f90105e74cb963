//! Attaching, taking over, refusing and unloading.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use aya::{programs::XdpMode, util::nr_cpus};
use nix::sys::signal::Signal;
use tfo_common::{class::Class, parse::LinkLayer, segment::Family, verdict::Mode};
use tfo_tests::{
    config::Config,
    netns::{
        BPFFS, Counts, IFACE, Running, StopOnDrop, assert_clean, binary, eventually, failure, ip, key,
        keys_status, mount_on, pins, sandbox, server_and_client, set_keys, status, tfo, xdp_on,
    },
};
use tfo_userspace::{
    dataplane::{LoadOptions, Object},
    kernel::{sysctl::KeySysctl, tcp_ext::TcpExt},
    lab::{
        client::{Syn, fast_open},
        net::{SERVERS, server, source},
        server::Listeners,
    },
    model::keys::fingerprint,
};

#[test]
fn attaches_native_where_the_driver_can_and_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        sandbox(|| {
            ip("link add v0 type veth peer name v1");
            let tfo_run = Running::start(&["-i", "v0"]);
            assert_eq!(status("v0")["attach"], "native");
            assert_eq!(Counts::of("v0").field("attach"), "native");
            assert_eq!(Counts::of("v0").field("mode"), "observe");
            assert!(xdp_on("v0").is_some());
            tfo_run.end(signal);
            assert_clean("v0");
            assert_eq!(tfo(&["status"]).status.code(), Some(3), "nothing runs any more");
        });
    }
}

#[test]
fn falls_back_to_generic_where_the_driver_cannot() {
    sandbox(|| {
        ip("tuntap add d0 mode tun");
        let tfo_run = Running::start(&["-i", "d0"]);
        assert_eq!(status("d0")["attach"], "generic");
        tfo_run.end(Signal::SIGINT);

        let output = tfo(&["run", "-i", "d0", "--attach", "native"]);
        let (code, error) = failure(&output);
        assert_eq!(code, Some(1));
        assert!(error.contains("cannot attach to d0 in native mode"), "{error}");
        assert_clean("d0");
    });
}

/// `tfo status` shows the memory of the maps: at most 32 MiB with default sizes, and more for larger tables.
#[test]
fn the_memory_of_the_maps_is_shown() {
    const MIB: u64 = 1 << 20;
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let config = Config::new("v0", "");
        let tfo_run = config.run();
        let memory = || status("v0")["map_bytes"].as_u64().unwrap();
        let before = memory();
        // Beyond two CPUs, each has its own counters and free entries of the hash maps.
        let more_cpus = nr_cpus().unwrap().saturating_sub(2) as u64;
        assert!(before <= (32 + more_cpus) * MIB, "{before} bytes");
        let text = String::from_utf8(tfo(&["status"]).stdout).unwrap();
        let shown = format!("  memory       {:.1} MiB in maps\n", before as f64 / MIB as f64);
        assert!(text.contains(&shown), "{text}");
        tfo_run.end(Signal::SIGTERM);
        // An entry has 16 bytes. There are two tables of sources and one of replays.
        for (sizes, more) in [("sources = 131072", 2), ("sources = 131072\nreplays = 262144", 5), ("", 0)] {
            config.write(&format!("[maps]\n{sizes}\n"));
            let tfo_run = config.run();
            assert_eq!(memory() - before, more * MIB, "{sizes}");
            tfo_run.end(Signal::SIGTERM);
        }
    });
}

#[test]
fn generic_mode_on_request() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let _tfo = Running::start(&["-i", "v0", "--attach", "generic"]);
        assert_eq!(status("v0")["attach"], "generic");
    });
}

#[test]
fn several_interfaces_have_their_own_state() {
    sandbox(|| {
        ip("link add v0 type veth peer name v0.100");
        let mut tfo_run = Running::start(&["-i", "v0", "-i", "v0.100", "-i", "v0"]);
        assert_eq!(status("v0")["attached"], true);
        assert_eq!(status("v0.100")["attached"], true, "a dot is reserved in the BPF file system");
        assert_eq!(tfo(&["counters", "--json"]).stdout.split(|byte| *byte == b'\n').count(), 3);

        let unload = tfo(&["unload"]);
        assert!(unload.status.success(), "{:?}", failure(&unload));
        assert_clean("v0");
        assert_clean("v0.100");
        let log = tfo_run.wait();
        assert!(log.contains("unloaded, by `tfo unload`"), "{log}");
    });
}

/// Returns a program of another owner on an interface, which keeps `tfo run` from starting.
fn occupied(name: &str) -> Object {
    // It is our own program, but without pins it does not belong to a tfo controller.
    let mut foreign = Object::load(&LoadOptions::new(LinkLayer::Ethernet, Mode::Observe), None).unwrap();
    foreign.program().unwrap().attach(name, XdpMode::default()).unwrap();
    foreign
}

#[test]
fn a_start_that_fails_half_way_undoes_what_it_did() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let _foreign = occupied("v1");
        let (code, error) = failure(&tfo(&["run", "-i", "v0", "-i", "v1"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("v1 already has an XDP program"), "{error}");
        assert_clean("v0");
    });
}

#[test]
fn a_start_that_fails_half_way_leaves_what_was_there() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let _foreign = occupied("v1");
        Running::start(&["-i", "v0"]).kill();
        let since = Counts::of("v0").field("since").clone();
        assert_eq!(tfo(&["run", "-i", "v0", "-i", "v1"]).status.code(), Some(1));
        assert_eq!(status("v0")["attached"], true);
        assert_eq!(Counts::of("v0").field("since"), &since);
    });
}

/// The kernel chooses its key while tfo attaches to several interfaces. In the end all must have it.
#[test]
fn a_key_that_changes_during_the_start_reaches_every_interface() {
    sandbox(|| {
        for pair in 0..3 {
            ip(&format!("link add a{pair} type veth peer name b{pair}"));
        }
        let names = ["a0", "a1", "a2", "b0", "b1", "b2"];
        let arguments: Vec<_> = names.iter().flat_map(|name| ["-i", name]).collect();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    KeySysctl::open().unwrap().write(key(n), None).unwrap();
                    thread::sleep(Duration::from_millis(1));
                }
                n
            });
            let _stop = StopOnDrop(&stop);
            let _tfo = Running::start(&arguments);
            stop.store(true, Ordering::Relaxed);
            let last = fingerprint(key(writer.join().unwrap()));
            for name in names {
                eventually("the last key has arrived", || status(name)["keys"]["current"] == last);
            }
        });
    });
}

/// An unreadable sysctl does not mean "no key".
#[test]
fn an_unreadable_key_changes_nothing() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let first = Running::start(&["-i", "v0"]);
        set_keys("v0", key(1), None);
        first.kill();
        let file = tempfile::NamedTempFile::new().unwrap();
        let sysctl = "/proc/sys/net/ipv4/tcp_fastopen_key";
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(file.path()), sysctl, None::<&str>, bind, None::<&str>).unwrap();
        let second = Running::start(&["-i", "v0"]);
        assert_eq!(status("v0")["keys"]["current"], fingerprint(key(1)));
        eventually("it is counted", || keys_status("v0")["failures"] == 1);
        let log = second.end(Signal::SIGINT);
        assert!(log.contains("the keys in force stay"), "{log}");
    });
}

#[test]
fn an_interface_that_goes_and_comes_back_is_attached_again() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let tfo_run = Running::start(&["-i", "v0"]);
        set_keys("v0", key(1), None);
        let since = Counts::of("v0").field("since").clone();
        ip("link del v0");
        eventually("it is noticed", || status("v0")["attached"] == false);
        ip("link add v0 type veth peer name v1");
        eventually("it is attached again", || tfo(&["status", "-i", "v0"]).status.success());
        assert!(xdp_on("v0").is_some());
        assert_eq!(Counts::of("v0").field("since"), &since, "counting goes on");
        assert_eq!(status("v0")["keys"]["current"], fingerprint(key(1)));
        ip("link del v0");
        eventually("it is noticed", || status("v0")["attached"] == false);
        let log = tfo_run.end(Signal::SIGINT);
        assert!(log.contains("the interface is gone") && log.contains("the interface is back"), "{log}");
        assert!(!Path::new(BPFFS).join("tfo").exists());
    });
}

/// A stalled controller does not block the next one for ever, and does it no harm when it continues.
#[test]
fn a_stalled_controller_lets_go_when_it_wakes() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let mut stalled = Running::start(&["-i", "v0"]);
        stalled.signal(Signal::SIGSTOP);
        let (code, error) = failure(&tfo(&["unload"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("the controller does not let go"), "{error}");
        assert_eq!(xdp_on("v0"), None, "detached all the same");
        stalled.signal(Signal::SIGCONT);
        stalled.wait();
        let next = Running::start(&["-i", "v0"]);
        assert!(xdp_on("v0").is_some());
        next.end(Signal::SIGINT);
        assert_clean("v0");
    });
}

/// The controller continues when the reader of its log ends.
#[test]
fn a_closed_log_ends_nothing() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let mut tfo_run = Running::start(&["-i", "v0"]);
        tfo_run.close_log();
        set_keys("v0", key(1), None);
        set_keys("v0", key(2), None);
        tfo_run.end(Signal::SIGINT);
        assert_clean("v0");
    });
}

#[test]
fn a_change_of_the_key_arrives_and_zeros_are_no_key() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let tfo_run = Running::start(&["-i", "v0"]);
        let keys = || status("v0")["keys"].clone();
        assert!(keys()["current"].is_null(), "a namespace begins without a key");

        set_keys("v0", key(1), None);
        set_keys("v0", key(2), Some(key(1)));
        assert_eq!(keys()["retired"].as_array().unwrap().len(), 0, "the backup key is not retired");
        set_keys("v0", key(3), None);
        assert_eq!(keys()["retired"].as_array().unwrap().len(), 2);

        let zero = tfo_common::keyring::Key::default();
        KeySysctl::open().unwrap().write(zero, None).unwrap();
        eventually("zeros are taken as no key", || keys()["current"].is_null());
        assert_eq!(keys()["retired"].as_array().unwrap().len(), 3);

        let log = tfo_run.end(Signal::SIGINT);
        for n in 1..4 {
            for group in tfo_userspace::model::keys::key_text(key(n)).split('-') {
                assert!(!log.contains(group), "a key is in the log: {log}");
            }
        }
    });
}

/// A controller is killed under traffic, and another takes over. Each SYN is counted, and the program is never
/// detached.
#[test]
fn takes_over_after_kill_9_with_no_counter_lost() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let first = Running::start(&["-i", IFACE]);
        set_keys(IFACE, key(1), None);
        let since = Counts::of(IFACE).field("since").clone();

        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                client.run(|| {
                    let mut sent = 0_u32;
                    while !stop.load(Ordering::Relaxed) {
                        for family in Family::ALL {
                            let (source, server) = (source(*family, (sent % 4096) as u16), server(*family));
                            Syn::new(5000, server.port(), sent)
                                .fast_open(&[7; 8])
                                .send(source, server.ip())?;
                            sent += 1;
                        }
                        thread::sleep(Duration::from_micros(200));
                    }
                    Ok(u64::from(sent))
                })
            });
            let watch = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(xdp_on(IFACE).is_some(), "unattached");
                }
            });

            let _stop = StopOnDrop(&stop);
            first.kill();
            assert_eq!(status(IFACE)["attached"], true, "the program outlives its controller");
            assert_eq!(status(IFACE)["controller"], false);
            assert_eq!(tfo(&["status"]).status.code(), Some(3));
            let orphaned = (xdp_on(IFACE), Counts::of(IFACE).total());
            eventually("it goes on counting", || Counts::of(IFACE).total() > orphaned.1);
            // Meanwhile the kernel's keys change.
            KeySysctl::open().unwrap().write(key(2), None).unwrap();

            let second = Running::start(&["-i", IFACE]);
            eventually("the program is replaced", || xdp_on(IFACE) != orphaned.0);
            eventually("key 2 has arrived", || status(IFACE)["keys"]["current"] == fingerprint(key(2)));
            assert_eq!(status(IFACE)["keys"]["retired"][0], fingerprint(key(1)), "key 1 is remembered");
            thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
            watch.join().unwrap();
            let sent = traffic.join().unwrap().unwrap();

            eventually("every SYN is counted", || Counts::of(IFACE).class(Class::CookieUnknown) == sent);
            let counts = Counts::of(IFACE);
            assert_eq!(counts.field("since"), &since);
            counts.assert_agree(before);
            second.end(Signal::SIGINT);
        });
        assert_clean(IFACE);
    });
}

#[test]
fn a_second_controller_is_refused() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let first = Running::start(&["-i", "v0"]);
        let output = tfo(&["run", "-i", "v0"]);
        let (code, error) = failure(&output);
        assert_eq!(code, Some(1));
        assert!(error.contains("another tfo already runs on v0"), "{error}");
        assert_eq!(status("v0")["controller"], true);
        first.end(Signal::SIGINT);
    });
}

#[test]
fn leaves_a_foreign_program_alone() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let _foreign = occupied("v0");
        let there = xdp_on("v0");
        assert!(there.is_some());

        let output = tfo(&["run", "-i", "v0"]);
        let (code, error) = failure(&output);
        assert_eq!(code, Some(1));
        assert!(error.contains("v0 already has an XDP program: tfo_ingress (id "), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains("a tfo that sees another BPF file system"), "{error}");
        assert_eq!(xdp_on("v0"), there);
        assert!(!Path::new(BPFFS).join("tfo").exists());

        assert_eq!(tfo(&["unload"]).status.code(), Some(3), "there is nothing of ours to unload");
        assert_eq!(xdp_on("v0"), there);
    });
}

/// A program at the same interface index need not be tfo's.
#[test]
fn an_interface_that_comes_back_with_a_foreign_program_is_not_taken_for_ours() {
    sandbox(|| {
        let add = || ip("link add name v0 index 77 type veth peer name v1");
        add();
        let tfo_run = Running::start(&["-i", "v0"]);
        // All of this happens between two looks of the controller.
        tfo_run.signal(Signal::SIGSTOP);
        ip("link del v0");
        add();
        let foreign = occupied("v0");
        let there = xdp_on("v0");
        tfo_run.signal(Signal::SIGCONT);
        eventually("it is noticed", || status("v0")["attached"] == false);
        assert_eq!(status("v0")["controller"], true, "it waits");
        assert_eq!(xdp_on("v0"), there);
        drop(foreign);
        eventually("it is attached again", || tfo(&["status", "-i", "v0"]).status.success());
        tfo_run.end(Signal::SIGINT);
        assert_clean("v0");
    });
}

/// An interface is made again under its name. The counts continue, and the program is attached again.
#[test]
fn an_interface_that_was_made_anew_is_attached_again() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        Running::start(&["-i", "v0"]).kill();
        ip("link del v0");
        assert_eq!(status("v0")["attached"], false);
        ip("link add v0 type veth peer name v1");
        let tfo_run = Running::start(&["-i", "v0"]);
        assert!(xdp_on("v0").is_some());
        tfo_run.end(Signal::SIGINT);
        assert_clean("v0");
    });
}

/// Pins of a tfo with other maps: the counters can't be carried over, but the program is replaced.
#[test]
fn maps_of_another_layout_are_replaced() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        Running::start(&["-i", "v0"]).kill();
        let info = Path::new(BPFFS).join("tfo/v0/1/TFO_INFO");
        fs::remove_file(&info).unwrap();
        let other = aya::maps::Array::<aya::maps::MapData, u64>::create(1, 0).unwrap();
        other.pin(&info).unwrap();

        let (code, error) = failure(&tfo(&["counters"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("of another version of tfo"), "{error}");

        let tfo_run = Running::start(&["-i", "v0"]);
        assert_eq!(Counts::of("v0").total(), 0);
        let log = tfo_run.end(Signal::SIGINT);
        assert!(log.contains("counting starts anew"), "{log}");
        assert_clean("v0");
    });
}

/// State that another version has left can be removed.
#[test]
fn maps_of_another_layout_are_unloaded() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        Running::start(&["-i", "v0"]).kill();
        let info = Path::new(BPFFS).join("tfo/v0/1/TFO_INFO");
        fs::remove_file(&info).unwrap();
        aya::maps::Array::<aya::maps::MapData, u64>::create(1, 0).unwrap().pin(&info).unwrap();
        assert!(xdp_on("v0").is_some());
        let unload = tfo(&["unload"]);
        assert!(unload.status.success(), "{:?}", failure(&unload));
        assert_clean("v0");
    });
}

/// The old program stays complete until the new one is in force.
#[test]
fn maps_of_another_layout_stay_if_the_start_fails() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        Running::start(&["-i", "v0"]).kill();
        let info = Path::new(BPFFS).join("tfo/v0/1/TFO_INFO");
        fs::remove_file(&info).unwrap();
        aya::maps::Array::<aya::maps::MapData, u64>::create(1, 0).unwrap().pin(&info).unwrap();
        let before = pins("v0");
        // This limit on descriptors is too low to load the program.
        let script = "ulimit -n 12; exec \"$0\" run -i v0";
        let failed = std::process::Command::new("sh").args(["-c", script]).arg(binary()).output().unwrap();
        assert_eq!(failed.status.code(), Some(1), "{:?}", failure(&failed));
        assert_eq!(pins("v0"), before);
        assert_eq!(fs::metadata(&info).map(|pin| pin.len()).unwrap(), 0);
        assert!(xdp_on("v0").is_some());
    });
}

/// Without a mounted BPF file system, tfo mounts one at the usual place for as long as it runs.
#[test]
fn mounts_the_bpf_file_system_and_unmounts_it() {
    sandbox(|| {
        mount_on("tmpfs", BPFFS);
        ip("link add v0 type veth peer name v1");
        let is_bpf =
            || nix::sys::statfs::statfs(BPFFS).unwrap().filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC;
        let tfo_run = Running::start(&["-i", "v0"]);
        assert!(is_bpf());
        tfo_run.end(Signal::SIGINT);
        assert!(!is_bpf());
    });
}

/// The program's own log is off by default.
#[test]
fn rare_events_are_logged_on_request() {
    server_and_client(|client| {
        let malformed = |port| {
            let server = server(Family::Ipv4);
            let syn = Syn::new(port, server.port(), 1).data_offset(4);
            client.run(|| syn.send(source(Family::Ipv4, 1), server.ip())).unwrap();
        };
        for (verbose, expected) in [(&["-i", IFACE] as &[&str], false), (&["-i", IFACE, "-v"], true)] {
            let tfo_run = Running::start(verbose);
            malformed(6000);
            eventually("it is counted", || Counts::of(IFACE).reason("malformed", "tcp_data_offset") == 1);
            let log = tfo_run.end(Signal::SIGINT);
            assert_eq!(log.contains("unclassified frame: tcp_data_offset"), expected, "{verbose:?}: {log}");
        }
    });
}

/// Interfaces of the same name in two namespaces can't share pins.
#[test]
fn pins_of_another_namespace_are_left_alone() {
    server_and_client(|client| {
        ip("link add v0 type veth peer name v1");
        Running::start(&["-i", "v0"]).kill();
        client
            .run(|| {
                ip("link add v0 type veth peer name v1");
                let (code, error) = failure(&tfo(&["run", "-i", "v0"]));
                assert_eq!(code, Some(1));
                assert!(error.contains("another network namespace"), "{error}");
                Ok(())
            })
            .unwrap();
        assert_eq!(status("v0")["attached"], true);
        assert!(xdp_on("v0").is_some());
    });
}

/// Keys are in the map before the first packet, so no valid cookie is unknown.
#[test]
fn a_start_under_traffic_knows_the_keys_at_once() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                client.run(|| {
                    while !stop.load(Ordering::Relaxed) {
                        fast_open(source(Family::Ipv4, 1), server(Family::Ipv4), b"data")?;
                    }
                    Ok(())
                })
            });
            let _stop = StopOnDrop(&stop);
            for _ in 0..3 {
                let tfo_run = Running::start(&["-i", IFACE]);
                eventually("traffic is seen", || Counts::of(IFACE).class(Class::CookieCurrent) > 10);
                assert_eq!(Counts::of(IFACE).class(Class::CookieUnknown), 0);
                tfo_run.end(Signal::SIGINT);
            }
            stop.store(true, Ordering::Relaxed);
            traffic.join().unwrap().unwrap();
        });
    });
}
