//! The protection `answer`, frame by frame: each SYN-ACK that the real program sends, and what the kernel makes of the
//! client's ACK.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs,
    process::Output,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;
use tfo_common::{class::Class, cookie, parse::LinkLayer, policy::Guard, verdict::Verdict};
use tfo_tests::{
    config::{Config, guarded},
    fault::{self, Bpf, Fault},
    listener::Listener,
    netns::{Counts, assert_clean, eventually, failure, ip, key, sandbox, status, tfo},
    packet::{Carry as _, Ip, Tcp, eth, eth_between, flag},
    server::Server,
    tap::Tap,
    wire::Seen,
};
use tfo_userspace::{
    kernel::{
        syncookies::Journal,
        sysctl::{KeySysctl, syncookies, write_mode},
        tcp_ext::TcpExt,
    },
    model::keys::addresses,
};

const IFACE: &str = "nic0";
const PORT: u16 = 7413;
const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const ISN: u32 = 0x0102_0304;
const SYNCOOKIES: &str = "/proc/sys/net/ipv4/tcp_syncookies";
/// Time within which the kernel answers a frame, or never.
const SOON: Duration = Duration::from_millis(300);

/// Way of a packet to the server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Ipv4,
    Ipv6,
    /// With a tag of VLAN 0, which every interface takes.
    Vlan,
    /// With IP options, which the answer does not have.
    Options,
}

impl Way {
    const ALL: [Self; 4] = [Self::Ipv4, Self::Ipv6, Self::Vlan, Self::Options];

    fn ends(self) -> [&'static str; 2] {
        match self {
            Self::Ipv4 | Self::Options | Self::Vlan => ["10.9.0.2", "10.9.0.1"],
            Self::Ipv6 => ["2001:db8:9::2", "2001:db8:9::1"],
        }
    }

    /// Returns a packet of the client.
    fn packet(self) -> Ip {
        let [from, to] = self.ends();
        let [v4, v4_to] = [from, to].map(|end| end.parse());
        match self {
            Self::Ipv4 => eth().ipv4(v4.unwrap(), v4_to.unwrap()).into(),
            Self::Options => eth().ipv4(v4.unwrap(), v4_to.unwrap()).options(&[1; 4]).into(),
            Self::Vlan => eth().vlan(0).ipv4(v4.unwrap(), v4_to.unwrap()).into(),
            Self::Ipv6 => eth().ipv6(from.parse().unwrap(), to.parse().unwrap()).into(),
        }
    }

    /// Returns the Fast Open cookie that the kernel gives to the client.
    fn cookie(self) -> [u8; 8] {
        let [from, to] = self.ends().map(|end| end.parse().unwrap());
        cookie::make(&key(1), &addresses(from, to).unwrap()).to_le_bytes()
    }

    fn syn(self, port: u16) -> Tcp {
        self.packet().syn().ports(port, PORT).sequence(ISN).linux_options()
    }
}

/// Interface with the addresses of all ways. Clients have MAC addresses, so that the kernel does not ask.
fn interface() -> Tap {
    let nic = Tap::new(IFACE, LinkLayer::Ethernet);
    fs::write(format!("/proc/sys/net/ipv6/conf/{IFACE}/accept_dad"), "0").unwrap();
    ip(&format!("address add 10.9.0.1/24 dev {IFACE}"));
    ip(&format!("address add 2001:db8:9::1/64 dev {IFACE} nodad"));
    for address in ["10.9.0.2", "2001:db8:9::2"] {
        ip(&format!("neigh add {address} lladdr 02:00:00:00:00:01 dev {IFACE}"));
    }
    write_mode(3).unwrap();
    KeySysctl::open().unwrap().write(key(1), None).unwrap();
    nic
}

fn service(guards: &str) -> String {
    format!("[[service]]\nname = \"web\"\nports = [{PORT}]\nmode = \"shield\"\n{guards}\n")
}

const ALWAYS: &str = "answer = { when = \"always\" }";

fn listen() -> Listener {
    Listener::on(&format!("[::]:{PORT}")).fast_open(64)
}

/// Sends `frame`, and returns the SYN-ACK or reset that comes back, as it is seen and as it is.
fn exchange(nic: &mut Tap, frame: &[u8]) -> Option<(Seen, Vec<u8>)> {
    while nic.sent().is_some() {}
    nic.receive(frame).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < SOON {
        let Some(out) = nic.sent() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        if let Some(seen) = Seen::of(&out).filter(|seen| seen.is_syn_ack() || seen.rst) {
            return Some((seen, out));
        }
    }
    None
}

fn answered(class: Class) -> u64 {
    Counts::of(IFACE).verdict(class, Verdict::Answer)
}

/// Waits until the listener is marked: until a SYN is answered.
fn wait_until_answered(nic: &mut Tap) {
    let mut port = 50_000;
    eventually("a SYN is answered", || {
        port += 1;
        exchange(nic, &Way::Ipv4.syn(port).build());
        answered(Class::PlainSyn) > 0
    });
}

/// Sends the ACK for `answer` with `data`, and waits until the server has got it.
fn complete(nic: &mut Tap, server: &Server, way: Way, port: u16, answer: &Seen, data: &[u8]) {
    let before = server.times(data);
    let ack = way.packet().tcp(flag::ACK | flag::PSH).ports(port, PORT).sequence(ISN + 1);
    nic.receive(&ack.acknowledging(answer.sequence + 1).data(data).build()).unwrap();
    eventually("the data has arrived", || server.times(data) == before + 1);
}

#[test]
fn each_answer_is_as_the_kernel_wants_it() {
    sandbox(|| {
        let mut nic = interface();
        let server = Server::echo(listen().listen());
        let config = Config::new(IFACE, &service(ALWAYS));
        let _tfo = config.run();
        wait_until_answered(&mut nic);
        let mut port = 1000;
        for way in Way::ALL {
            for (class, wants_cookie) in [
                (Class::PlainSyn, false),
                (Class::CookieRequest, true),
                (Class::CookieUnknown, true),
                (Class::CookieBadLength, true),
            ] {
                port += 1;
                let syn = match class {
                    Class::PlainSyn => way.syn(port),
                    Class::CookieRequest => way.syn(port).request().nops(2),
                    Class::CookieUnknown => way.syn(port).fast_open(&[9; 8]).nops(2).data(b"x"),
                    _ => way.syn(port).fast_open(&[9; 4]).nops(2).data(b"x"),
                };
                let (before, sent) = (answered(class), syn.build());
                let (seen, frame) =
                    exchange(&mut nic, &sent).unwrap_or_else(|| panic!("{way:?}, {class}: no answer"));
                assert_eq!(answered(class), before + 1, "{way:?}, {class}: it was the kernel's");
                let given = Seen::of(&sent).unwrap();
                assert!(seen.is_syn_ack() && seen.sum_is_right, "{way:?}, {class}: {seen:?}");
                assert_eq!((seen.from, seen.to), (given.to, given.from), "{way:?}, {class}");
                assert_eq!(seen.acknowledged, ISN + 1, "{way:?}, {class}: never the data");
                assert!(
                    seen.ip_len <= given.ip_len,
                    "{way:?}, {class}: {} for {}",
                    seen.ip_len,
                    given.ip_len
                );
                assert_eq!(
                    (&frame[..6], &frame[6..12]),
                    (&sent[6..12], &sent[..6]),
                    "{way:?}: the MAC addresses"
                );
                let mss = if way == Way::Ipv6 { 1440_u16 } else { 1460 }.to_be_bytes();
                let mut options = vec![2, 4, mss[0], mss[1]];
                if wants_cookie {
                    options.extend([1, 1, 34, 10]);
                    options.extend(way.cookie());
                }
                assert_eq!(seen.options, options, "{way:?}, {class}");
                if way == Way::Vlan {
                    assert_eq!(frame[12..16], sent[12..16], "the tag");
                }
                if way != Way::Ipv6 {
                    let at = if way == Way::Vlan { 18 } else { 14 };
                    assert_eq!(
                        tfo_tests::packet::checksum(&frame[at..at + 20]),
                        0,
                        "{way:?}: the IP header's checksum"
                    );
                }
                complete(&mut nic, &server, way, port, &seen, format!("{way:?}, {class}").as_bytes());
            }
            // A good cookie is the kernel's, with its data.
            port += 1;
            let syn = way.syn(port).fast_open(&way.cookie()).nops(2).data(DATA).build();
            let (seen, _) = exchange(&mut nic, &syn).unwrap();
            assert_eq!(seen.acknowledged, ISN + 1 + DATA.len() as u32, "{way:?}");
        }
        let kernel = TcpExt::read().unwrap();
        assert_eq!((kernel.cookies_received, kernel.cookies_failed, kernel.cookies_sent), (16, 0, 0));
        assert_eq!(kernel.passive, 4);
    });
}

#[test]
fn what_is_not_ours_to_answer_is_the_kernels() {
    sandbox(|| {
        let mut nic = interface();
        let (own, open) = (PORT + 1, PORT + 2);
        let _server = Server::echo(listen().listen());
        let _own = Server::echo(Listener::on(&format!("[::]:{own}")).fast_open(64).own_key([7; 16]).listen());
        let _open = Server::echo(Listener::on(&format!("[::]:{open}")).fast_open(64).no_cookie().listen());
        let text = format!(
            "[[service]]\nname = \"web\"\nports = \"{PORT}-{}\"\nmode = \"shield\"\n{ALWAYS}\n",
            PORT + 3
        );
        let config = Config::new(
            IFACE,
            &text.replace(&format!("\"{PORT}-{}\"", PORT + 3), &format!("[\"{PORT}-{}\"]", PORT + 3)),
        );
        let _tfo = config.run();
        wait_until_answered(&mut nic);
        let to = |port: u16, to: u16| Way::Ipv4.packet().syn().ports(port, to).sequence(ISN).linux_options();
        eventually("all are marked", || {
            let before = answered(Class::PlainSyn);
            exchange(&mut nic, &to(60_000 + before as u16, own).build());
            exchange(&mut nic, &to(61_000 + before as u16, open).build());
            answered(Class::PlainSyn) == before + 2
        });
        let total =
            |verdict| Class::ALL.iter().map(|class| Counts::of(IFACE).verdict(*class, verdict)).sum::<u64>();
        let mut case = |name: &str, frame: Vec<u8>, is_answered: bool| {
            let before = (total(Verdict::Answer), total(Verdict::Pass));
            let got = exchange(&mut nic, &frame);
            let more = (total(Verdict::Answer) - before.0, total(Verdict::Pass) - before.1);
            assert_eq!(more, (u64::from(is_answered), u64::from(!is_answered)), "{name}: {got:?}");
            got.map(|(seen, _)| seen)
        };
        let closed = case("a closed port", to(2001, PORT + 3).build(), false);
        assert!(closed.unwrap().rst);
        case("an own key, a cookie", to(2002, own).fast_open(&[9; 8]).nops(2).data(b"x").build(), false);
        case("an own key, a request", to(2003, own).request().nops(2).build(), false);
        case("an own key, a plain SYN", to(2004, own).build(), true);
        let taken = case("no cookie needed, data", to(2005, open).data(DATA).build(), false).unwrap();
        assert_eq!(taken.acknowledged, ISN + 1 + DATA.len() as u32, "the kernel takes it");
        case("no cookie needed, no data", to(2006, open).build(), true);
        let from = |source: &str, to: &str| {
            eth()
                .ipv4(source.parse().unwrap(), to.parse().unwrap())
                .syn()
                .ports(2007, PORT)
                .linux_options()
                .build()
        };
        case("from everybody", from("255.255.255.255", "10.9.0.1"), false);
        case("from a group", from("224.0.0.1", "10.9.0.1"), false);
        case("from nobody", from("0.0.0.0", "10.9.0.1"), false);
        case("from itself", from("127.0.0.1", "10.9.0.1"), false);
        let group =
            eth_between([2, 0, 0, 0, 0, 1], [0xff; 6]).ipv4([10, 9, 0, 2].into(), [10, 9, 0, 1].into());
        case("to everybody's MAC address", group.syn().ports(2008, PORT).linux_options().build(), false);
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        thread::sleep(Duration::from_millis(20));
        ip("route add 10.66.0.0/16 via 10.9.0.2");
        case("to another host", from("10.9.0.2", "10.66.0.1"), false);
        // The kernel closes first here, so that it waits.
        let waits = case(
            "a good cookie",
            Way::Ipv4.syn(2009).fast_open(&Way::Ipv4.cookie()).nops(2).data(DATA).build(),
            false,
        );
        assert_eq!(waits.unwrap().acknowledged, ISN + 1 + DATA.len() as u32);
        case("a connection that lives", Way::Ipv4.syn(2009).build(), false);
    });
}

#[test]
fn a_syn_that_comes_again_does_not_keep_its_place_in_the_queue() {
    sandbox(|| {
        let mut nic = interface();
        let _server = Server::echo(listen().listen());
        let config = Config::new(IFACE, &service(""));
        let _tfo = config.run();
        let syn = Way::Ipv4.syn(3000).build();
        exchange(&mut nic, &syn).expect("the kernel's answer");
        config.write(&service(ALWAYS));
        assert!(tfo(&["reload"]).status.success());
        wait_until_answered(&mut nic);
        let before = guarded(IFACE, Guard::Answer).acted;
        exchange(&mut nic, &syn);
        assert_eq!(Counts::of(IFACE).verdict(Class::PlainSyn, Verdict::Drop), 1);
        assert_eq!(guarded(IFACE, Guard::Answer).acted, before + 1);
    });
}

#[test]
fn a_dry_run_counts_what_would_be_answered() {
    sandbox(|| {
        let mut nic = interface();
        let _server = Server::echo(listen().listen());
        let config = Config::new(IFACE, &service("answer = { when = \"always\", dry_run = true }"));
        let _tfo = config.run();
        let mut port = 4000;
        eventually("it would be answered", || {
            port += 1;
            let (seen, _) = exchange(&mut nic, &Way::Ipv4.syn(port).build()).expect("the kernel's answer");
            assert!(seen.options.len() > 4, "the kernel offers all options");
            guarded(IFACE, Guard::Answer).would > 0
        });
        assert_eq!((guarded(IFACE, Guard::Answer).acted, answered(Class::PlainSyn)), (0, 0));
        let closed = Way::Ipv4.packet().syn().ports(port, PORT + 1).linux_options().build();
        let before = guarded(IFACE, Guard::Answer).would;
        exchange(&mut nic, &closed);
        assert_eq!(guarded(IFACE, Guard::Answer).would, before, "nobody would answer for a closed port");
    });
}

#[test]
fn listeners_come_and_go() {
    sandbox(|| {
        let mut nic = interface();
        let config = Config::new(IFACE, &service(ALWAYS));
        let _tfo = config.run();
        for round in 0..3 {
            let port = 5000 + 100 * round;
            assert!(exchange(&mut nic, &Way::Ipv4.syn(port).build()).unwrap().0.rst, "nobody listens");
            // A group with one mark for all.
            let address = format!("[::]:{PORT}");
            let one = Server::echo(Listener::shared(&address).fast_open(64).listen());
            let two = Server::echo(Listener::shared(&address).fast_open(64).listen());
            let (first, _) = exchange(&mut nic, &Way::Ipv4.syn(port + 1).build()).unwrap();
            assert!(first.is_syn_ack(), "round {round}: by the kernel as long as it is not marked");
            let before = answered(Class::PlainSyn);
            let mut next = port + 2;
            eventually("it is marked", || {
                next += 1;
                let (seen, _) = exchange(&mut nic, &Way::Ipv4.syn(next).build()).unwrap();
                let is_answered = answered(Class::PlainSyn) > before;
                if is_answered {
                    let data = format!("round {round}");
                    let ack = Way::Ipv4.packet().tcp(flag::ACK).ports(next, PORT).sequence(ISN + 1);
                    nic.receive(&ack.acknowledging(seen.sequence + 1).data(data.as_bytes()).build()).unwrap();
                    eventually("it is served", || {
                        one.times(data.as_bytes()) + two.times(data.as_bytes()) == 1
                    });
                }
                is_answered
            });
        }
    });
}

#[test]
fn it_goes_on_in_every_way_to_a_new_program() {
    sandbox(|| {
        let mut nic = interface();
        let server = Server::echo(listen().listen());
        let config = Config::new(IFACE, &service(ALWAYS));
        let mut tfo_run = config.run();
        wait_until_answered(&mut nic);
        let mut port = 6000;
        let mut is_answered = |nic: &mut Tap, how: &str| {
            port += 1;
            let before = answered(Class::PlainSyn);
            let (seen, _) =
                exchange(nic, &Way::Ipv4.syn(port).build()).unwrap_or_else(|| panic!("{how}: no answer"));
            complete(nic, &server, Way::Ipv4, port, &seen, format!("{how}, {port}").as_bytes());
            answered(Class::PlainSyn) == before + 1
        };
        assert!(is_answered(&mut nic, "start"));
        config.write(&service(&format!("{ALWAYS}\nclamp = true")));
        assert!(tfo(&["reload"]).status.success());
        assert!(is_answered(&mut nic, "reload"), "from the first packet on");
        assert_eq!(status(IFACE)["answering"], json!(["web"]));
        assert_eq!(Counts::of(IFACE).field("answering"), &json!(["web"]));
        let page = String::from_utf8(tfo(&["report", "--html", "-"]).stdout).unwrap();
        assert!(page.contains("SYNs to web are answered"), "{page}");
        // Without a controller, nobody keeps keys and marks up to date.
        tfo_run.kill();
        assert!(is_answered(&mut nic, "death"), "it is confirmed for some seconds");
        eventually("it is the kernel's then", || !is_answered(&mut nic, "later"));
        tfo_run = config.run();
        assert!(is_answered(&mut nic, "take-over"));
        ip(&format!("link set {IFACE} down"));
        ip(&format!("link set {IFACE} up"));
        ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:01 dev nic0");
        eventually("it is up", || is_answered(&mut nic, "down and up"));
        config.write(&service("clamp = true"));
        assert!(tfo(&["reload"]).status.success());
        assert!(!is_answered(&mut nic, "without the protection"));
        assert_eq!(status(IFACE)["answering"], json!([]));
        assert_eq!(Counts::of(IFACE).field("answering"), &json!([]));
        tfo_run.end(Signal::SIGINT);
        assert_clean(IFACE);
    });
}

#[test]
fn it_answers_in_generic_mode_too() {
    sandbox(|| {
        let mut nic = interface();
        let server = Server::echo(listen().listen());
        let config = Config::new(IFACE, &service(ALWAYS));
        let text = fs::read_to_string(config.path()).unwrap();
        fs::write(config.path(), format!("attach = \"generic\"\n{text}")).unwrap();
        let _tfo = config.run();
        assert_eq!(status(IFACE)["attach"], "generic");
        wait_until_answered(&mut nic);
        for (port, way) in (7000..).zip([Way::Ipv4, Way::Ipv6, Way::Options]) {
            let before = answered(Class::CookieUnknown);
            let syn = way.syn(port).fast_open(&[9; 8]).nops(2).data(&[1; 400]).build();
            let (seen, frame) = exchange(&mut nic, &syn).unwrap();
            assert!(seen.sum_is_right && frame.len() < 120, "{way:?}: {} bytes", frame.len());
            complete(&mut nic, &server, way, port, &seen, format!("{way:?}").as_bytes());
            assert_eq!(answered(Class::CookieUnknown), before + 1, "{way:?}");
        }
    });
}

#[test]
fn a_crash_leaves_syncookies_as_they_were() {
    sandbox(|| {
        let _nic = interface();
        let _server = Server::echo(listen().listen());
        let config = Config::new(IFACE, &service(ALWAYS));
        let path = config.path();
        let run = || tfo(&["run", "--config", &path]);
        let died = |when: &str, output: Output| {
            assert!(fault::was_killed(output.status), "{when}: {output:?}");
            eventually("it is as it was", || syncookies().unwrap() == 1);
            thread::sleep(Duration::from_millis(50));
            assert_eq!(syncookies().unwrap(), 1, "{when}");
        };
        died("before it is 2", fault::with_call(libc::SYS_pwrite64, Fault::Kills, run));
        died("while it is 2", fault::with(Bpf::ProgTestRun, Fault::Kills, run));
        // Death when the value is back, but not the journal gone.
        let journal = Journal::new("/run/tfo".as_ref()).unwrap();
        fs::write(journal.path(), "1").unwrap();
        config.run().end(Signal::SIGINT);
        assert_eq!((syncookies().unwrap(), journal.path().exists()), (1, false));
        // Death of both processes at the worst moment.
        fs::write(journal.path(), "1").unwrap();
        fs::write(SYNCOOKIES, "2").unwrap();
        let tfo_run = config.run();
        assert_eq!(syncookies().unwrap(), 1, "the next start restores it");
        assert!(!journal.path().exists());
        tfo_run.end(Signal::SIGINT);
        fs::write(SYNCOOKIES, "2").unwrap();
        let tfo_run = config.run();
        assert_eq!(syncookies().unwrap(), 2, "somebody else's 2 stays");
        tfo_run.end(Signal::SIGINT);
        assert_eq!(syncookies().unwrap(), 2);
    });
}

#[test]
fn where_nothing_can_be_answered_it_is_refused_by_name() {
    sandbox(|| {
        let nic = interface();
        let _tun = Tap::new("tun0", LinkLayer::Ip);
        let config = Config::new(IFACE, &service("answer = true"));
        let good = config.run();
        let checked = || failure(&tfo(&["check", "--config", &config.path()]));
        assert_eq!(checked().0, Some(0));
        fs::write(SYNCOOKIES, "0").unwrap();
        let output = tfo(&["check", "--config", &config.path()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("answer: net.ipv4.tcp_syncookies is 0"), "{text}");
        assert_eq!(output.status.code(), Some(1));
        let (code, error) = failure(&tfo(&["reload"]));
        assert!(code == Some(1) && error.contains("tcp_syncookies is 0"), "{error}");
        fs::write(SYNCOOKIES, "1").unwrap();
        good.end(Signal::SIGINT);
        let on_tun = Config::new("tun0", &service("answer = true"));
        for command in [&["check", "--config"][..], &["run", "--config"]] {
            let path = on_tun.path();
            let (code, error) = failure(&tfo(&[command, &[&path]].concat()));
            assert!(code == Some(1) && error.contains("no Ethernet header"), "{command:?}: {error}");
        }
        drop(nic);
    });
}
