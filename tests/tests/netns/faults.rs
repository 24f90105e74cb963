//! Faults around a running tfo: its controller dies, an upgrade fails, its log is not read, its interface goes down,
//! changes or disappears. No connection and no count is lost, and the program stays attached.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    links::{FdLink, PinnedLink},
    loaded_programs,
};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};
use tfo_common::{class::Class, cookie, parse::LinkLayer, segment::Family};
use tfo_tests::{
    fault::{self, Bpf, Fault, was_killed},
    netns::{
        BPFFS, Counts, IFACE, Linked, Running, StopOnDrop, assert_clean, binary, eventually, failure, ip,
        key, linked, pins, sandbox, server_and_client, set_keys, status, tfo, xdp_on,
    },
    packet::{Carry as _, eth},
    tap::Tap,
};
use tfo_userspace::{
    daemon::controller::FOLLOW_EVERY,
    dataplane::pins::{Bpffs, Generation},
    kernel::tcp_ext::TcpExt,
    lab::{
        client::{Syn, fast_open},
        net::{Namespace, SERVERS, server, source},
        server::Listeners,
    },
    model::keys::{addresses, fingerprint},
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const RUN: [&str; 2] = ["-i", IFACE];

/// Sends SYNs of each kind that the kernel distinguishes, over both families. Real clients must be served in any case,
/// the rest is forged. Returns the number of SYNs.
fn connect(round: u32) -> anyhow::Result<u64> {
    for family in Family::ALL {
        let server = server(*family);
        // The kernel remembers the cookies of some five sources for each destination (TCP_METRICS_RECLAIM_DEPTH).
        fast_open(source(*family, (round % 4) as u16), server, DATA)?;
        let forger = source(*family, 16 + (round % 4000) as u16);
        let backup = cookie::make(&key(1), &addresses(forger, server.ip()).unwrap()).to_le_bytes();
        for (port, cookie) in [(5000, &[] as &[u8]), (5001, &[7; 8]), (5002, &backup), (5003, &[7; 4])] {
            Syn::new(port, server.port(), round << 8).fast_open(cookie).send(forger, server.ip())?;
        }
    }
    Ok(Family::ALL.len() as u64 * 5)
}

/// Runs `test` while clients connect to a server. The program must never be detached, every connection must be served,
/// and in the end each SYN is counted once, as the kernel has counted it.
///
/// `test` gets a running controller and returns one. The clients' cookies are of `key(2)`, the backup key is `key(1)`.
fn under_traffic(test: impl FnOnce(Running) -> Running + Send) {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let tfo_run = Running::start(&RUN);
        set_keys(IFACE, key(1), None);
        set_keys(IFACE, key(2), Some(key(1)));
        let since = Counts::of(IFACE).field("since").clone();
        let first = linked(IFACE);

        let stop = AtomicBool::new(false);
        let (tfo_run, sent) = thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                client.run(|| {
                    let mut sent = 0;
                    for round in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        sent += connect(round)?;
                        thread::sleep(Duration::from_millis(2));
                    }
                    Ok(sent)
                })
            });
            let watch = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(xdp_on(IFACE).is_some(), "unattached");
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let guard = StopOnDrop(&stop);
            let tfo_run = test(tfo_run);
            drop(guard);
            watch.join().unwrap();
            (tfo_run, traffic.join().unwrap().unwrap())
        });

        println!("{sent} SYNs");
        // The same link was attached all the time.
        let last = linked(IFACE);
        assert_eq!(last.link, first.link);
        assert_eq!(xdp_on(IFACE), Some(last.program));
        eventually("every SYN is counted", || Counts::of(IFACE).total() == sent);
        let counts = Counts::of(IFACE);
        assert_eq!(counts.field("since"), &since);
        // A client whose SYN or answer is lost sends a plain SYN next.
        assert_eq!(counts.class(Class::PlainSyn), 0);
        counts.assert_agree(before);
        tfo_run.end(Signal::SIGINT);
        assert_clean(IFACE);
    });
}

/// Returns the `part`-th of a hundred parts of `whole`, in an order in which neighbours never follow each other.
fn scattered(part: u32, whole: Duration) -> Duration {
    whole * (part * 61 % 100) / 100
}

#[test]
fn a_hundred_kills_under_traffic() {
    const KILLS: u32 = 100;
    under_traffic(|mut tfo_run| {
        let (mut taken_over, mut takes) = (0, FOLLOW_EVERY);
        for n in 0..KILLS {
            tfo_run.kill();
            let before = linked(IFACE);
            let start = Instant::now();
            tfo_run = Running::spawn(&RUN);
            // Every second one is killed during its start, the others later.
            if n % 2 == 0 {
                thread::sleep(scattered(n, takes));
            } else {
                eventually("it has taken over", || linked(IFACE) != before);
                takes = start.elapsed();
                thread::sleep(scattered(n, 2 * FOLLOW_EVERY));
            }
            taken_over += u32::from(linked(IFACE) != before);
        }
        assert!(taken_over >= KILLS / 2);
        assert!(taken_over < KILLS, "none was killed while it started");
        tfo_run
    });
}

/// Failing upgrade, and its expected message.
type FailedUpgrade = (fn() -> Output, &'static str);

/// Runs `tfo run` in the server's namespace while one command of bpf(2) fails.
fn run_without(command: Bpf, errno: i32, more: &[&str]) -> Output {
    fault::with(command, Fault::Fails(errno), || tfo(&[&["run"], &RUN as &[&str], more].concat()))
}

/// Runs `tfo run` by a shell script, which gets the command as `"$@"`.
fn run_by(script: &str) -> Output {
    Command::new("sh").args(["-c", script, "sh"]).arg(binary()).arg("run").args(RUN).output().unwrap()
}

/// Runs `tfo run` on a read-only BPF file system.
fn run_on_read_only_bpffs() -> Output {
    let remount = |flags| mount(None::<&str>, BPFFS, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>);
    remount(MsFlags::MS_RDONLY).unwrap();
    let output = tfo(&["run", "-i", IFACE]);
    remount(MsFlags::empty()).unwrap();
    output
}

const FAILED_UPGRADES: [FailedUpgrade; 10] = [
    (|| run_without(Bpf::LinkUpdate, libc::EPERM, &[]), "cannot take over the program on srv0"),
    // The new configuration differs from the old one, so that the old program's effects can be told.
    (
        || run_without(Bpf::LinkUpdate, libc::ENOMEM, &["--mode", "accelerate"]),
        "cannot take over the program on srv0",
    ),
    (|| run_without(Bpf::ProgLoad, libc::EPERM, &[]), "does not let us load XDP programs"),
    (|| run_without(Bpf::MapCreate, libc::ENOMEM, &[]), "cannot create the maps of the XDP program"),
    (|| run_without(Bpf::MapFreeze, libc::EPERM, &[]), "cannot create the maps of the XDP program"),
    (|| run_without(Bpf::MapUpdateElem, libc::ENOMEM, &[]), "cannot create the maps of the XDP program"),
    (|| run_without(Bpf::MapLookupElem, libc::EPERM, &[]), "cannot read the info map"),
    (|| run_without(Bpf::ObjGet, libc::EACCES, &[]), "cannot open the pinned link"),
    (run_on_read_only_bpffs, "Read-only file system"),
    (|| run_by("ulimit -n 12; exec \"$@\""), "may have to open 130 files"),
];

/// Successful upgrades replace the program one by one. Failing ones leave the old one.
#[test]
fn a_hundred_upgrades_ten_of_which_fail() {
    const UPGRADES: usize = 100;
    under_traffic(|mut tfo_run| {
        let mut programs = vec![linked(IFACE).program];
        let mut failures = FAILED_UPGRADES.iter();
        for n in 1..=UPGRADES {
            let old = linked(IFACE);
            tfo_run.kill();
            if n % (UPGRADES / FAILED_UPGRADES.len()) == 0 {
                let (run, expected) = failures.next().unwrap();
                assert_stays(old, run, expected);
                tfo_run = Running::start(&RUN);
            } else {
                tfo_run = Running::start(&RUN);
            }
            eventually("the program is replaced", || linked(IFACE) != old);
            programs.push(linked(IFACE).program);
        }
        assert_eq!(failures.len(), 0);
        let current = programs.pop();
        let is_loaded = |id: &u32| loaded_programs().flatten().any(|program| program.id() == *id);
        eventually("no old program is left", || !programs.iter().any(is_loaded));
        assert_eq!(Some(linked(IFACE).program), current);
        tfo_run
    });
}

/// Panics unless `run` fails with `expected`, and the `old` program continues unchanged.
fn assert_stays(old: Linked, run: &dyn Fn() -> Output, expected: &str) {
    let state = || (pins(IFACE), status(IFACE), Counts::of(IFACE).field("mode").clone());
    let before = state();
    let output = run();
    let (code, error) = failure(&output);
    assert_eq!(code, Some(1), "{expected}: {error}");
    let last = error.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: ") && last.contains(expected), "{expected}: {error}");
    assert_eq!(linked(IFACE), old, "{expected}");
    assert_eq!(xdp_on(IFACE), Some(old.program), "{expected}");
    assert_eq!(state(), before, "{expected}");
    let counted = Counts::of(IFACE).total();
    eventually(&format!("{expected}: it goes on counting"), || Counts::of(IFACE).total() > counted);
}

#[test]
fn a_first_start_that_fails_leaves_nothing() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        for (command, errno, expected) in [
            (Bpf::ProgLoad, libc::EPERM, "does not let us load XDP programs"),
            (Bpf::MapCreate, libc::ENOMEM, "cannot create the maps of the XDP program"),
            (Bpf::ObjPin, libc::ENOSPC, "cannot pin the map"),
            (Bpf::MapUpdateElem, libc::ENOMEM, "cannot create the maps of the XDP program"),
            (Bpf::LinkCreate, libc::EPERM, "cannot attach to v0"),
        ] {
            let output = fault::with(command, Fault::Fails(errno), || tfo(&["run", "-i", "v0"]));
            let (code, error) = failure(&output);
            assert_eq!(code, Some(1), "{command:?}: {error}");
            assert!(error.contains(expected), "{command:?}: {error}");
            assert_clean("v0");
        }
    });
}

/// A start is killed before one request to the kernel. The next start repairs everything.
#[test]
fn a_start_that_dies_at_any_step_is_made_up_for() {
    let dies = |command| {
        let output = fault::with(command, Fault::Kills, || tfo(&["run", "-i", "v0"]));
        assert!(was_killed(output.status), "{command:?}: {output:?}");
    };
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        use Bpf::{
            LinkCreate, LinkUpdate, MapCreate, MapLookupElem, MapUpdateElem, ObjGet, ObjPin, ProgLoad,
        };
        for command in [ProgLoad, MapCreate, ObjPin, MapUpdateElem, MapLookupElem, LinkCreate] {
            dies(command);
            assert_eq!(xdp_on("v0"), None, "{command:?}");
            Running::start(&["-i", "v0"]).end(Signal::SIGINT);
            assert_clean("v0");
        }
        // Three starts die in a row, without a successful one between them.
        [ObjPin, LinkCreate, ObjPin].into_iter().for_each(dies);
        Running::start(&["-i", "v0"]).kill();
        let old = linked("v0");
        for command in [ProgLoad, ObjGet, MapCreate, MapUpdateElem, MapLookupElem, LinkUpdate] {
            dies(command);
            assert_eq!(linked("v0"), old, "{command:?}");
            assert_eq!(xdp_on("v0"), Some(old.program), "{command:?}");
        }
        Running::start(&["-i", "v0"]).end(Signal::SIGINT);
        assert_clean("v0");
    });
}

/// The program's own log is a ring of 128 KiB. Without a reader, some 6000 events of more than 40 bytes each don't fit,
/// but packets are passed and counted as ever.
#[test]
fn a_log_that_is_full_stops_nothing() {
    const EVENTS: u32 = 6000;
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let tfo_run = Running::start(&["-i", IFACE, "-v"]);
        set_keys(IFACE, key(1), None);
        set_keys(IFACE, key(2), Some(key(1)));
        tfo_run.signal(Signal::SIGSTOP);
        let send = || {
            let (source, server) = (source(Family::Ipv4, 1), server(Family::Ipv4));
            for n in 0..EVENTS {
                Syn::new(6000, server.port(), n).data_offset(4).send(source, server.ip())?;
            }
            (0..8).map(connect).sum()
        };
        let sent: u64 = client.run(send).unwrap();
        let malformed = || Counts::of(IFACE).reason("malformed", "tcp_data_offset");
        eventually("every frame is counted", || malformed() == u64::from(EVENTS));
        eventually("every SYN is counted", || Counts::of(IFACE).total() == sent);
        Counts::of(IFACE).assert_agree(before);

        // The controller continues, with the events that did fit.
        tfo_run.signal(Signal::SIGCONT);
        set_keys(IFACE, key(3), Some(key(2)));
        let log = tfo_run.end(Signal::SIGINT);
        let logged = log.matches("unclassified frame: tcp_data_offset").count();
        assert!((1..EVENTS as usize).contains(&logged), "{logged} events logged");
        assert_clean(IFACE);
    });
}

/// A start dies after each step of moving the links' pins to its generation, when both programs are in force. The next
/// one goes on with the same links: a second program that follows connections would count them twice.
#[test]
fn a_start_that_dies_while_it_moves_the_links() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let tfo_run = Running::start(&RUN);
        set_keys(IFACE, key(1), None);
        set_keys(IFACE, key(2), Some(key(1)));
        let generations = || Bpffs::new(Path::new(BPFFS)).pins(IFACE).generations().unwrap();
        let following = || {
            let links: Vec<_> = generations().iter().map(Generation::outcomes_link).collect();
            let link = links.iter().find(|link| link.exists()).unwrap();
            FdLink::from(PinnedLink::from_pin(link).unwrap()).info().unwrap().id()
        };
        let (attached, follows) = (linked(IFACE).link, following());
        tfo_run.kill();
        for is_moved in [false, true] {
            let output = fault::with_call(libc::SYS_rename, Fault::Kills, || tfo(&["run", "-i", IFACE]));
            assert!(was_killed(output.status), "{output:?}");
            let [now, next] = &generations()[..] else { panic!("two generations: {:?}", generations()) };
            if is_moved {
                fs::rename(now.outcomes_link(), next.outcomes_link()).unwrap();
            }
            let tfo_run = Running::start(&RUN);
            eventually("it has taken over", || generations().len() == 1);
            assert_eq!((linked(IFACE).link, following()), (attached, follows));
            assert_counted(&client);
            Counts::of(IFACE).assert_agree(before);
            tfo_run.kill();
        }
        Running::start(&RUN).end(Signal::SIGINT);
        assert_clean(IFACE);
    });
}

/// Client's end of the link: see [`tfo_userspace::lab::net`].
const PEER: &str = "tfo-client";

/// Runs `ip ARGS` in the client's namespace.
fn ip_in(client: &Namespace, args: &str) {
    let run = || {
        ip(args);
        Ok(())
    };
    client.run(run).unwrap();
}

/// Connects in every way. Panics unless each SYN is counted.
fn assert_counted(client: &Namespace) {
    let counted = Counts::of(IFACE).total();
    let sent: u64 = client.run(|| (0..8).map(connect).sum()).unwrap();
    eventually("every SYN is counted", || Counts::of(IFACE).total() == counted + sent);
}

#[test]
fn a_link_that_goes_down_and_up() {
    server_and_client(|client| {
        let keep_ipv6 = |interface: &str| {
            Ok(fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/keep_addr_on_down"), "1")?)
        };
        keep_ipv6(IFACE).unwrap();
        client.run(|| keep_ipv6(PEER)).unwrap();
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let tfo_run = Running::start(&RUN);
        let attached = linked(IFACE);
        let set = |end: &str, state: &str| match end {
            IFACE => ip(&format!("link set {IFACE} {state}")),
            peer => ip_in(&client, &format!("link set {peer} {state}")),
        };
        for (n, end) in (0..).zip([IFACE, PEER, IFACE]) {
            set_keys(IFACE, key(2), Some(key(1)));
            assert_counted(&client);
            set(end, "down");
            // The controller has noticed, and continues.
            set_keys(IFACE, key(10 + n), Some(key(2)));
            assert_eq!(status(IFACE)["attached"], true);
            set(end, "up");
            // These routes went with the link.
            ip("route replace 198.19.0.0/16 via 198.18.0.2");
            ip("-6 route replace 2001:db8:1::/112 via 2001:db8::2");
            let is_served = |family| client.run(|| fast_open(source(family, 9), server(family), DATA));
            for family in Family::ALL {
                eventually("the link carries packets", || is_served(*family).is_ok());
            }
            assert_eq!(linked(IFACE), attached);
            assert_eq!(xdp_on(IFACE), Some(attached.program));
        }
        set_keys(IFACE, key(2), Some(key(1)));
        assert_counted(&client);
        Counts::of(IFACE).assert_agree(before);
        let log = tfo_run.end(Signal::SIGINT);
        assert!(!log.contains("gone"), "{log}");
        assert_clean(IFACE);
    });
}

/// Makes real clients send `len` bytes, all in the SYN once they have a cookie. Panics unless all are counted.
fn assert_counted_with(client: &Namespace, len: usize) {
    let data = vec![b'x'; len];
    for family in Family::ALL {
        let send = || fast_open(source(*family, 1), server(*family), &data);
        // With the first connection a client learns the server's segment size.
        client.run(send).unwrap();
        let before = Counts::of(IFACE).syn(*family, Class::CookieCurrent);
        client.run(send).unwrap();
        let after = Counts::of(IFACE).syn(*family, Class::CookieCurrent);
        assert_eq!(after.with_data, before.with_data + 1, "{family}: {len} bytes");
        assert_eq!(after.data_bytes, before.data_bytes + len as u64, "{family}: {len} bytes");
    }
}

/// Sets the MTU of both ends of the link, the server's end first.
fn set_mtu(client: &Namespace, mtu: u32) {
    ip(&format!("link set {IFACE} mtu {mtu}"));
    ip_in(client, &format!("link set {PEER} mtu {mtu}"));
}

#[test]
fn an_mtu_that_changes() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let tfo_run = Running::start(&RUN);
        set_keys(IFACE, key(2), Some(key(1)));
        let attached = linked(IFACE);
        // A frame of 9000 bytes lies in several pages.
        for (mtu, len) in [(1500, 1000), (1280, 1000), (3000, 2500), (9000, 8000), (1500, 1000)] {
            set_mtu(&client, mtu);
            assert_counted_with(&client, len);
            assert_counted(&client);
        }
        assert_eq!(status(IFACE)["attach"], "native");
        assert_eq!(linked(IFACE), attached);
        assert_eq!(xdp_on(IFACE), Some(attached.program));
        Counts::of(IFACE).assert_agree(before);
        tfo_run.end(Signal::SIGINT);
        assert_clean(IFACE);
    });
}

/// All data of frames in several buffers is counted, in the driver and in the stack.
#[test]
fn jumbo_frames_are_counted_in_both_modes() {
    for attach in ["native", "generic"] {
        server_and_client(|client| {
            let _listeners = Listeners::start(&SERVERS).unwrap();
            let before = TcpExt::read().unwrap();
            set_mtu(&client, 9000);
            let tfo_run = Running::start(&[&RUN[..], &["--attach", attach]].concat());
            assert_eq!(status(IFACE)["attach"], attach);
            set_keys(IFACE, key(2), Some(key(1)));
            assert_counted_with(&client, 8000);
            // This comes again, now that the program is attached.
            set_mtu(&client, 1500);
            set_mtu(&client, 9000);
            assert_counted_with(&client, 8000);
            assert_counted(&client);
            Counts::of(IFACE).assert_agree(before);
            tfo_run.end(Signal::SIGINT);
            assert_clean(IFACE);
        });
    }
}

const NIC: &str = "nic0";

/// Makes `nic` receive a SYN.
fn receive_syn(nic: &mut Tap) {
    let frame = eth().ipv4([192, 0, 2, 1].into(), [192, 0, 2, 2].into()).syn().build();
    nic.receive(&frame).unwrap();
}

/// An interface disappears and returns, at once or after a while, and a controller sees it each time.
#[test]
fn an_interface_that_goes_and_comes_back_again_and_again() {
    sandbox(|| {
        let mut nic = Tap::new(NIC, LinkLayer::Ethernet);
        let tfo_run = Running::start(&["-i", NIC]);
        set_keys(NIC, key(1), None);
        let since = Counts::of(NIC).field("since").clone();
        for n in 1..=6 {
            receive_syn(&mut nic);
            assert_eq!(Counts::of(NIC).total(), n);
            drop(nic);
            if n % 2 == 0 {
                eventually("it is noticed", || status(NIC)["attached"] == false);
            }
            nic = Tap::new(NIC, LinkLayer::Ethernet);
            eventually("it is attached again", || tfo(&["status", "-i", NIC]).status.success());
        }
        assert_eq!(Counts::of(NIC).field("since"), &since);
        assert_eq!(status(NIC)["keys"]["current"], fingerprint(key(1)));
        tfo_run.end(Signal::SIGINT);
        assert_clean(NIC);
    });
}

#[test]
fn an_interface_that_goes_while_no_controller_runs() {
    sandbox(|| {
        for n in 1..=4 {
            let mut nic = Tap::new(NIC, LinkLayer::Ethernet);
            let tfo_run = Running::start(&["-i", NIC]);
            receive_syn(&mut nic);
            tfo_run.kill();
            receive_syn(&mut nic);
            assert_eq!(Counts::of(NIC).total(), 2 * n);
            drop(nic);
            assert_eq!(status(NIC)["attached"], false);
        }
        assert!(tfo(&["unload"]).status.success());
        assert!(!Path::new(BPFFS).join("tfo").exists());
    });
}

/// Name and index do not identify an interface.
#[test]
fn an_interface_that_comes_back_with_the_same_index() {
    sandbox(|| {
        let add = || ip("link add name v0 index 77 type veth peer name v1");
        add();
        let tfo_run = Running::start(&["-i", "v0"]);
        let first = linked("v0");
        ip("link del v0");
        add();
        eventually("it is attached again", || xdp_on("v0").is_some());
        eventually("by another link", || tfo(&["status"]).status.success() && linked("v0") != first);
        tfo_run.end(Signal::SIGINT);
        assert_clean("v0");
    });
}

#[test]
fn an_interface_that_is_renamed() {
    sandbox(|| {
        let mut nic = Tap::new(NIC, LinkLayer::Ethernet);
        let tfo_run = Running::start(&["-i", NIC]);
        let attached = linked(NIC);
        ip("link set nic0 down");
        ip("link set nic0 name renamed0");
        ip("link set renamed0 up");
        // Only the name has changed, and the controller still works.
        set_keys(NIC, key(1), None);
        assert!(tfo(&["status"]).status.success(), "{}", status(NIC));
        assert_eq!((linked(NIC), xdp_on("renamed0")), (attached, Some(attached.program)));
        receive_syn(&mut nic);
        assert_eq!(Counts::of(NIC).total(), 1);
        // Under its new name, the interface has a program of another owner.
        let (code, error) = failure(&tfo(&["run", "-i", "renamed0"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("renamed: run `tfo unload -i OLDNAME`"), "{error}");
        tfo_run.end(Signal::SIGINT);
        assert_clean("renamed0");
    });
}

/// The program on the renamed interface is not detached on behalf of the new one.
#[test]
fn an_interface_that_takes_the_name_of_a_renamed_one() {
    sandbox(|| {
        let _renamed = Tap::new(NIC, LinkLayer::Ethernet);
        Running::start(&["-i", NIC]).kill();
        let attached = linked(NIC);
        ip("link set nic0 down");
        ip("link set nic0 name renamed0");
        let _new = Tap::new(NIC, LinkLayer::Ethernet);
        let (code, error) = failure(&tfo(&["run", "-i", NIC]));
        assert_eq!(code, Some(1));
        assert!(error.contains("renamed") && error.contains("`tfo unload -i nic0`"), "{error}");
        assert_eq!((linked(NIC), xdp_on("renamed0")), (attached, Some(attached.program)));
        // This is the command that the message names.
        assert!(tfo(&["unload", "-i", NIC]).status.success());
        assert_clean("renamed0");
        let tfo_run = Running::start(&["-i", NIC]);
        assert!(xdp_on(NIC).is_some());
        tfo_run.end(Signal::SIGINT);
        assert_clean(NIC);
    });
}
