//! Replays over a wire that the test controls, which also loses and repeats SYNs.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use nix::sys::signal::Signal;
use tfo_common::{class::Class, policy::Guard, verdict::Verdict};
use tfo_tests::{
    config::{Config, guarded, protected},
    listener::Listener,
    netns::{Counts, Running, eventually, sandbox, tfo},
    server::Server,
    two_hosts::{PORT, SERVER, TwoHosts},
    wire::Seen,
};
use tfo_userspace::kernel::tcp_ext::TcpExt;

/// Replays a captured SYN. Returns how often the application got its data.
fn replayed(guards: Option<&str>) -> usize {
    let mut times = 0;
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let _tfo = protected("near", PORT, guards);
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let mut syn = None;
        hosts.connect(order, |seen, frame| {
            if seen.data == order && seen.syn {
                syn = Some((seen.clone(), frame.to_vec()));
            }
            1
        });
        let (seen, frame) = syn.expect("the order went with the SYN");
        assert_eq!(server_at.times(order), 1);
        let answer = hosts.replay(&frame);
        // The answer acknowledges the data, so the application gets it again.
        if answer.acknowledged == seen.sequence + 1 + order.len() as u32 {
            eventually("it is served again", || server_at.times(order) == 2);
        } else {
            assert_eq!(answer.acknowledged, seen.sequence + 1);
        }
        times = server_at.times(order);
        if guards.is_some() {
            assert_eq!(guarded("near", Guard::Once).acted, 1);
            // The same client still gets Fast Open.
            let before = TcpExt::read().unwrap().passive;
            hosts.connect(b"order two", |_, _| 1);
            assert_eq!(TcpExt::read().unwrap().passive, before + 1);
            assert_eq!((server_at.times(b"order two"), guarded("near", Guard::Once).acted), (1, 1));
        }
    });
    times
}

/// RFC 7413, sections 2.1 and 6.1: replayed data.
#[test]
fn once_serves_a_replay_no_second_time() {
    let without = replayed(None);
    let with = replayed(Some("once = true"));
    println!("once: a SYN and its replay are served {without} times without it, {with} times with it");
    assert_eq!((without, with), (2, 1));
}

/// A SYN-ACK is lost, and the client's kernel repeats the SYN without option and data. The network may also deliver the
/// first SYN twice. Neither is a replay while the connection lives.
#[test]
fn once_knows_a_retransmission() {
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let _tfo = protected("near", PORT, Some("once = true"));
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let mut syns: Vec<(Seen, Vec<u8>)> = Vec::new();
        let mut lost = 0;
        hosts.connect(order, |seen, frame| {
            if seen.syn && !seen.ack {
                syns.push((seen.clone(), frame.to_vec()));
            }
            // No answer is delivered until the SYN is repeated.
            let is_lost = seen.is_syn_ack() && syns.len() == 1;
            lost += usize::from(is_lost);
            usize::from(!is_lost)
        });
        assert!(lost > 0);
        let [(first, frame), (second, _)] = &syns[..] else { panic!("{} SYNs", syns.len()) };
        assert!(first.has_fast_open() && first.data == order);
        assert!(!second.has_fast_open() && second.data.is_empty());
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 0));
        // The connection is over, so the same SYN is a replay now.
        let answer = hosts.replay(frame);
        assert_eq!(answer.acknowledged, first.sequence + 1);
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 1));
    });
}

/// The same SYN twice at once is one connection to the kernel.
#[test]
fn once_lets_a_duplicate_be() {
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let _tfo = protected("near", PORT, Some("once = true"));
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let before = TcpExt::read().unwrap().passive;
        hosts.connect(order, |seen, _| if seen.syn && seen.data == order { 2 } else { 1 });
        assert_eq!(TcpExt::read().unwrap().passive, before + 1);
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 0));
        assert_eq!(Counts::of("near").verdict(Class::CookieCurrent, Verdict::Pass), 2);
    });
}

/// Service in mode `observe`, and one with `once`.
const OBSERVED: &str = "[[service]]\nname = \"web\"\nports = [7413]\n";
const ONCE: &str = "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"shield\"\nonce = true\n";

/// Starts `tfo run` with `once` by `go`, captures a SYN and replays it. Panics if its data is served again.
fn assert_served_once_after(way: &str, go: impl FnOnce(&Config) -> Running + Send) {
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let config = Config::new("near", OBSERVED);
        let _tfo = go(&config);
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let (seen, frame) = hosts.capture(order);
        let answer = hosts.replay(&frame);
        assert_eq!(answer.acknowledged, seen.sequence + 1, "{way}: its data is served again");
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 1), "{way}");
    });
}

#[test]
fn once_is_in_force_on_every_way_to_it() {
    assert_served_once_after("start", |config| {
        config.write(ONCE);
        config.run()
    });
    assert_served_once_after("reload", |config| {
        let running = config.run();
        config.write(ONCE);
        assert!(tfo(&["reload"]).status.success());
        running
    });
    assert_served_once_after("kill -9 and take-over", |config| {
        config.write(ONCE);
        config.run().kill();
        config.run()
    });
    assert_served_once_after("kill -9 of an observer, and take-over", |config| {
        config.run().kill();
        config.write(ONCE);
        config.run()
    });
    assert_served_once_after("stop and start in another mode", |config| {
        config.run().end(Signal::SIGTERM);
        config.write(ONCE);
        config.run()
    });
    assert_served_once_after("other sizes of maps", |config| {
        config.write(ONCE);
        config.run().end(Signal::SIGTERM);
        config.write(&format!("{ONCE}[maps]\nreplays = 131072\nsources = 4096\n"));
        config.run()
    });
}

/// The next controller knows the captured SYN, after a restart and after a change of the map's size.
#[test]
fn once_remembers_over_restarts_and_other_sizes() {
    sandbox(|| {
        let mut hosts = TwoHosts::start();
        let server_at = Server::echo(Listener::on(SERVER).fast_open(16).listen());
        let config = Config::new("near", ONCE);
        let running = config.run();
        hosts.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let (_, frame) = hosts.capture(order);
        let mut acted = 0;
        let mut assert_known = |way: &str| {
            acted += 1;
            // Not every SYN is answered, since the kernel takes them for repeated ordinary SYNs.
            hosts.send(&frame);
            eventually(&format!("{way}: it is known"), || guarded("near", Guard::Once).acted == acted);
            assert_eq!(server_at.times(order), 1, "{way}: its data is served again");
        };
        assert_known("at once");
        running.kill();
        assert_known("without a controller");
        let running = config.run();
        assert_known("take-over");
        running.end(Signal::SIGTERM);
        config.write(&format!("{ONCE}[maps]\nreplays = 131072\nsources = 4096\n"));
        let running = config.run();
        assert_known("more room");
        running.end(Signal::SIGTERM);
        config.write(&format!("{ONCE}[maps]\nreplays = 1024\n"));
        let _running = config.run();
        assert_known("less room");
        config.write(&format!("{ONCE}[maps]\nreplays = 1024\n[[service]]\nname = \"dns\"\nports = [53]\n"));
        assert!(tfo(&["reload"]).status.success());
        assert_known("one more service");
    });
}
