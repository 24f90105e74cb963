//! Beside an XDP program of others: Debian's `xdp-filter`, on the interface before or after tfo. Needs root and xdp-tools.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::process::Command;

use aya::programs::{SchedClassifier, TcAttachType};
use nix::sys::signal::Signal;
use tfo_common::{class::Class, segment::Family, verdict::Verdict};
use tfo_tests::{
    config::Config,
    netns::{
        Counts, IFACE, Running, eventually, failure, ip, key, linked, server_and_client, set_keys, status,
        tfo, xdp_on,
    },
    server::Server,
};
use tfo_userspace::{
    kernel::{sysctl::KeySysctl, tcp_ext::TcpExt},
    lab::{
        client::fast_open,
        net::{CLIENT_INTERFACE, Namespace, server, source},
        server::listen,
    },
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// Port that `xdp-filter` drops everything for.
const BLOCKED: u16 = 9999;

/// Runs a command, which must succeed. Returns its output.
fn run(command: &str, args: &str) -> String {
    let output = Command::new(command).args(args.split(' ')).output().expect("it is installed");
    assert!(output.status.success(), "{command} {args}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `xdp-filter` on [`IFACE`].
struct Filter {
    id: u32,
}

impl Filter {
    /// Loads it, and has it drop what comes to [`BLOCKED`].
    fn load() -> Self {
        run("xdp-filter", &format!("load {IFACE}"));
        run("xdp-filter", &format!("port {BLOCKED} -p tcp -m dst"));
        Self { id: xdp_on(IFACE).expect("it is on the interface") }
    }

    /// Returns the number of packets that it has let pass, and of those that it has dropped.
    fn seen() -> [u64; 2] {
        let status = run("xdp-filter", "status");
        ["XDP_PASS", "XDP_DROP"].map(|action| {
            let line = status.lines().find_map(|line| line.trim().strip_prefix(action)).expect("its line");
            line.split_whitespace().next().unwrap().replace(',', "").parse().expect("a number")
        })
    }

    /// Panics unless it is still the program on the interface, as it was loaded.
    fn assert_untouched(&self) {
        assert_eq!(xdp_on(IFACE), Some(self.id));
        assert!(run("xdp-filter", "status").contains(IFACE));
    }

    fn unload(self) {
        self.assert_untouched();
        run("xdp-filter", &format!("unload {IFACE}"));
        assert_eq!(xdp_on(IFACE), None);
    }
}

/// Returns the number of programs at tcx on packets that arrive at `interface`.
fn at_tcx(interface: &str) -> usize {
    SchedClassifier::query_tcx(interface, TcAttachType::Ingress).expect("a kernel with tcx").1.len()
}

/// Panics if anything of tfo is left.
fn assert_gone() {
    assert_eq!(at_tcx(IFACE), 0, "a program is left at tcx");
    assert!(!std::path::Path::new("/sys/fs/bpf/tfo").exists(), "pins are left");
}

/// Visits of clients, each of which has an address of its own.
struct Visits<'a> {
    client: &'a Namespace,
    next: u16,
}

impl Visits<'_> {
    /// Has ten clients of each family come twice in a row: with a request, then with a cookie and data. Panics unless the kernel
    /// and tfo, if it runs, have counted the same, and the filter has seen them, if it is there.
    fn check(&mut self, has_tfo: bool, has_filter: bool) {
        let kernel = TcpExt::read().unwrap();
        let counted = || if has_tfo { Counts::of(IFACE).class(Class::CookieCurrent) } else { 0 };
        let filter = || if has_filter { Filter::seen() } else { [0; 2] };
        let (before, seen) = (counted(), filter());
        for family in Family::ALL {
            for number in self.next..self.next + 10 {
                for _ in 0..2 {
                    let visit = || fast_open(source(*family, number), server(*family), DATA);
                    self.client.run(visit).expect("the client is served");
                }
            }
        }
        self.next += 10;
        let since = TcpExt::read().unwrap() - kernel;
        assert_eq!((since.cookie_reqd, since.passive, since.passive_fail), (20, 20, 0));
        assert_eq!(counted() - before, if has_tfo { 20 } else { 0 });
        if has_filter {
            assert!(filter()[0] >= seen[0] + 40, "each connection has several packets");
        }
    }

    /// Sends a SYN to the port that the filter drops. It never comes to tfo.
    fn blocked(&self) {
        let (total, [_, dropped]) = (Counts::of(IFACE).total(), Filter::seen());
        let to = std::net::SocketAddr::new(server(Family::Ipv4).ip(), BLOCKED);
        let connect =
            || Ok(std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(50)).is_err());
        assert!(self.client.run(connect).unwrap(), "nobody answers");
        assert!(Filter::seen()[1] > dropped);
        assert_eq!(Counts::of(IFACE).total(), total);
    }
}

/// Runs `test` with servers and clients, on an interface where nothing is attached.
fn with_visits(test: impl FnOnce(&mut Visits<'_>) + Send) {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let _servers: Vec<_> =
            Family::ALL.iter().map(|family| Server::echo(listen(server(*family)).unwrap())).collect();
        test(&mut Visits { client: &client, next: 1 });
    });
}

#[test]
fn auto_goes_behind_a_filter_that_is_there() {
    with_visits(|visits| {
        let filter = Filter::load();
        let running = Running::start(&["-i", IFACE]);
        assert_eq!(
            (status(IFACE)["attach"].as_str(), status(IFACE)["attached"].as_bool()),
            (Some("tcx"), Some(true))
        );
        filter.assert_untouched();
        visits.check(true, true);
        visits.blocked();
        filter.unload();
        visits.check(true, false);
        assert_eq!(status(IFACE)["attached"], true, "it stays where it is");
        assert!(tfo(&["unload", "-i", IFACE]).status.success());
        assert_gone();
        let log = running.kill_and_read_log();
        assert!(
            log.contains("attached in tcx mode, behind the XDP program that is there: xdpfilt_alw_all"),
            "{log}"
        );
        visits.check(false, false);
    });
}

#[test]
fn unloading_leaves_a_filter_that_was_there() {
    with_visits(|visits| {
        let filter = Filter::load();
        let running = Running::start(&["-i", IFACE]);
        visits.check(true, true);
        running.end(Signal::SIGINT);
        assert_gone();
        filter.assert_untouched();
        visits.check(false, true);
        filter.unload();
    });
}

#[test]
fn a_filter_comes_to_tfo_at_tcx() {
    with_visits(|visits| {
        for tfo_ends_first in [false, true] {
            let running = Running::start(&["-i", IFACE, "--attach", "tcx"]);
            assert_eq!((status(IFACE)["attach"].as_str(), xdp_on(IFACE)), (Some("tcx"), None));
            visits.check(true, false);
            let link = linked(IFACE);
            let filter = Filter::load();
            visits.check(true, true);
            visits.blocked();
            assert_eq!(linked(IFACE), link, "it was never detached");
            if tfo_ends_first {
                running.end(Signal::SIGINT);
                assert_gone();
                visits.check(false, true);
                filter.unload();
            } else {
                filter.unload();
                visits.check(true, false);
                running.end(Signal::SIGINT);
                assert_gone();
            }
        }
    });
}

/// One way to a state: reload, take-over after a crash and after an end, another mode, an interface that comes back.
#[test]
fn each_way_to_a_new_program_leaves_the_filter() {
    with_visits(|visits| {
        let filter = Filter::load();
        let config = Config::new(IFACE, "");
        let running = config.run();
        let link = linked(IFACE);
        visits.check(true, true);
        config.write(
            "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"shield\"\nhide = { dry_run = true }\n",
        );
        let output = tfo(&["reload"]);
        assert!(output.status.success(), "{:?}", failure(&output));
        assert_eq!(
            (linked(IFACE).link, at_tcx(IFACE)),
            (link.link, 1),
            "the program was exchanged in its link"
        );
        assert_ne!(linked(IFACE).program, link.program);
        config.write("");
        assert!(tfo(&["reload"]).status.success());
        visits.check(true, true);
        // A place can't be changed while tfo runs. The error says so, and nothing changes.
        config.write("attach = \"native\"\n");
        let (code, error) = failure(&tfo(&["reload"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("these can't be changed: attach"), "{error}");
        config.write("");
        running.kill();
        let counted = Counts::of(IFACE).total();
        visits.check(true, true);
        let running = config.run();
        assert!(Counts::of(IFACE).total() >= counted + 40, "nothing is lost");
        visits.check(true, true);
        running.end(Signal::SIGTERM);
        visits.check(true, true);
        let running = config.run();
        assert_eq!(
            (linked(IFACE).link, at_tcx(IFACE), status(IFACE)["attach"].as_str()),
            (link.link, 1, Some("tcx"))
        );
        visits.check(true, true);
        filter.unload();
        running.end(Signal::SIGTERM);
        // What is attached stays where it is.
        let running = Running::start(&["-i", IFACE, "--attach", "native"]);
        assert_eq!((linked(IFACE).link, status(IFACE)["attach"].as_str()), (link.link, Some("tcx")));
        let log = running.end(Signal::SIGINT);
        assert!(log.contains("it stays in tcx mode"), "{log}");
        assert_gone();
    });
}

#[test]
fn an_interface_that_comes_back_is_attached_beside_what_is_there() {
    tfo_tests::netns::sandbox(|| {
        let make = || ip(&format!("link add {IFACE} type veth peer name peer"));
        make();
        // It goes with the interface.
        Filter::load();
        let _running = Running::start(&["-i", IFACE]);
        let mode = |expected: &str| {
            eventually(expected, || {
                let status = status(IFACE);
                status["attached"] == true && status["attach"] == expected
            });
        };
        mode("tcx");
        for (has_filter, expected) in [(false, "native"), (true, "tcx"), (true, "tcx"), (false, "native")] {
            ip(&format!("link delete {IFACE}"));
            eventually("it is gone", || status(IFACE)["attached"] == false);
            if has_filter {
                // It is on the interface before tfo sees it, as in a network of its own that is moved here.
                ip("link add made type veth peer name peer");
                run("xdp-filter", "load made");
                let id = xdp_on("made").unwrap();
                ip(&format!("link set made name {IFACE}"));
                mode(expected);
                assert_eq!((xdp_on(IFACE), at_tcx(IFACE)), (Some(id), 1));
            } else {
                make();
                mode(expected);
                assert_eq!(at_tcx(IFACE), 0);
            }
        }
        assert!(tfo(&["unload", "-i", IFACE]).status.success());
        assert_gone();
    });
}

#[test]
fn native_mode_names_what_is_in_the_way() {
    with_visits(|visits| {
        let filter = Filter::load();
        let (code, error) = failure(&tfo(&["run", "-i", IFACE, "--attach", "native"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("already has an XDP program: xdpfilt_alw_all"), "{error}");
        assert!(error.contains("--attach tcx"), "{error}");
        assert_gone();
        visits.check(false, true);
        filter.unload();
    });
}

/// Returns the number of our filters on the qdisc clsact, on packets that arrive at `interface`.
fn filters(interface: &str) -> usize {
    let shown = run("tc", &format!("filter show dev {interface} ingress"));
    shown.lines().filter(|line| line.contains("handle 0x1cf5")).count()
}

/// Before Linux 6.6 there is no tcx. The kernel says so by an error, as here.
#[test]
fn before_linux_6_6_a_filter_attaches_it() {
    use tfo_tests::fault::{Bpf, Fault, with};

    with_visits(|visits| {
        let filter = Filter::load();
        let config = Config::new(IFACE, "");
        let start = || with(Bpf::LinkCreate, Fault::Fails(libc::EINVAL), || config.run());
        let running = start();
        let shown = |total: usize| {
            assert_eq!((filters(IFACE), at_tcx(IFACE)), (total, 0));
            assert_eq!(
                (status(IFACE)["attach"].as_str(), status(IFACE)["attached"].as_bool()),
                (Some("tcx"), Some(true))
            );
        };
        shown(1);
        visits.check(true, true);
        let hide = "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"shield\"\nclamp = true\n";
        for services in [hide, ""] {
            config.write(services);
            let output = tfo(&["reload"]);
            assert!(output.status.success(), "{:?}", failure(&output));
            shown(1);
            visits.check(true, true);
        }
        running.kill();
        shown(1);
        visits.check(true, true);
        let counted = Counts::of(IFACE).total();
        let running = start();
        shown(1);
        assert_eq!(Counts::of(IFACE).total(), counted, "nothing is lost");
        visits.check(true, true);
        running.end(Signal::SIGTERM);
        shown(1);
        visits.check(true, true);
        assert!(tfo(&["unload", "-i", IFACE]).status.success());
        assert_eq!(filters(IFACE), 0);
        assert_gone();
        visits.check(false, true);
        filter.unload();
    });
}

/// Old cookies are translated, and cookies are hidden, as by XDP: in packets whose checksum the network card is to make, and in
/// those that have one.
#[test]
fn it_acts_at_tcx_as_in_xdp() {
    ["on", "off"].into_iter().for_each(acts_at_tcx);
}

/// `offload` says whether the client leaves checksums to its network card.
fn acts_at_tcx(offload: &str) {
    with_visits(|visits| {
        visits.client.run(|| Ok(run("ethtool", &format!("-K {CLIENT_INTERFACE} tx {offload}")))).unwrap();
        let _filter = Filter::load();
        let config = Config::new(IFACE, "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"shield\"\n");
        let _running = config.run();
        // The client's kernel keeps no more than some five cookies of one server, whatever the client's address
        // (TCP_METRICS_RECLAIM_DEPTH), and of equally old ones it may forget the newest.
        let comes_back = || {
            let before = TcpExt::read().unwrap();
            for family in Family::ALL {
                for number in 1..4 {
                    let visit = || fast_open(source(*family, number), server(*family), DATA);
                    visits.client.run(visit).expect("the client is served");
                }
            }
            TcpExt::read().unwrap() - before
        };
        assert_eq!(comes_back().cookie_reqd, 6);
        assert_eq!(comes_back().passive, 6);
        // The same clients come back with cookies of a key that the kernel has forgotten.
        set_keys(IFACE, key(2), Some(key(3)));
        let since = comes_back();
        assert_eq!((since.passive, since.passive_alt_key, since.passive_fail), (6, 6, 0));
        assert_eq!(Counts::of(IFACE).verdict(Class::CookieRetired, Verdict::Rewrite), 6);
        // From here on, none gets through.
        let hide = tfo(&["hide", "--all", "-i", IFACE]);
        assert!(hide.status.success(), "{:?}", failure(&hide));
        let since = comes_back();
        assert_eq!((since.passive, since.cookie_reqd, since.passive_fail), (0, 0, 0));
        assert_eq!(Counts::of(IFACE).total_of(Verdict::Hide), 6);
    });
}
