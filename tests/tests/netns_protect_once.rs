//! Against replays: two kernels with a wire between them that the test holds, by which SYNs come again, get lost, or come twice.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use nix::sys::signal::Signal;
use tfo_common::{class::Class, policy::Guard, verdict::Verdict};
use tfo_tests::{
    between::{Between, NEAR, PORT},
    config::{Config, guarded, protected},
    listener::Listener,
    netns::{Counts, Running, eventually, sandbox, tfo},
    server::Server,
    wire::Seen,
};
use tfo_userspace::kernel::tcp_ext::TcpExt;

/// What a replayed SYN's data does: how often the application gets it, and what `once` has done.
fn replayed(guards: Option<&str>) -> usize {
    let mut times = 0;
    sandbox(|| {
        let mut between = Between::start();
        let server_at = Server::echo(Listener::on(NEAR).fast_open(16).listen());
        let _tfo = protected("near", PORT, guards);
        between.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let mut syn = None;
        between.connect(order, |seen, frame| {
            if seen.data == order && seen.syn {
                syn = Some((seen.clone(), frame.to_vec()));
            }
            1
        });
        let (seen, frame) = syn.expect("the order went with the SYN");
        assert_eq!(server_at.times(order), 1);
        let answer = between.replay(&frame);
        // Where the answer says so, the application has got it, or will.
        if answer.acknowledged == seen.sequence + 1 + order.len() as u32 {
            eventually("it is served again", || server_at.times(order) == 2);
        } else {
            assert_eq!(answer.acknowledged, seen.sequence + 1);
        }
        times = server_at.times(order);
        if guards.is_some() {
            assert_eq!(guarded("near", Guard::Once).acted, 1);
            // The same client goes on as before, with Fast Open.
            let before = TcpExt::read().unwrap().passive;
            between.connect(b"order two", |_, _| 1);
            assert_eq!(TcpExt::read().unwrap().passive, before + 1);
            assert_eq!((server_at.times(b"order two"), guarded("near", Guard::Once).acted), (1, 1));
        }
    });
    times
}

/// RFC 7413, 2.1 and 6.1: data that comes again.
#[test]
fn once_serves_a_replay_no_second_time() {
    let without = replayed(None);
    let with = replayed(Some("once = true"));
    println!("once: a SYN and its replay are served {without} times without it, {with} times with it");
    assert_eq!((without, with), (2, 1));
}

/// A SYN-ACK gets lost, and the client's kernel sends the SYN again, without option and data. A network may also deliver the
/// first one twice. Neither is a replay, while the connection lives.
#[test]
fn once_knows_a_retransmission() {
    sandbox(|| {
        let mut between = Between::start();
        let server_at = Server::echo(Listener::on(NEAR).fast_open(16).listen());
        let _tfo = protected("near", PORT, Some("once = true"));
        between.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let mut syns: Vec<(Seen, Vec<u8>)> = Vec::new();
        let mut lost = 0;
        between.connect(order, |seen, frame| {
            if seen.syn && !seen.ack {
                syns.push((seen.clone(), frame.to_vec()));
            }
            // Nothing comes back until the SYN was sent again.
            let is_lost = seen.is_syn_ack() && syns.len() == 1;
            lost += usize::from(is_lost);
            usize::from(!is_lost)
        });
        assert!(lost > 0);
        let [(first, frame), (second, _)] = &syns[..] else { panic!("{} SYNs", syns.len()) };
        assert!(first.has_fast_open() && first.data == order);
        assert!(!second.has_fast_open() && second.data.is_empty());
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 0));
        // Now it is over, and the same once more is a replay.
        let answer = between.replay(frame);
        assert_eq!(answer.acknowledged, first.sequence + 1);
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 1));
    });
}

/// The very same SYN, twice at once: the kernel knows that it is one connection.
#[test]
fn once_lets_a_duplicate_be() {
    sandbox(|| {
        let mut between = Between::start();
        let server_at = Server::echo(Listener::on(NEAR).fast_open(16).listen());
        let _tfo = protected("near", PORT, Some("once = true"));
        between.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let before = TcpExt::read().unwrap().passive;
        between.connect(order, |seen, _| if seen.syn && seen.data == order { 2 } else { 1 });
        assert_eq!(TcpExt::read().unwrap().passive, before + 1);
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 0));
        assert_eq!(Counts::of("near").verdict(Class::CookieCurrent, Verdict::Pass), 2);
    });
}

/// A service that is only looked at, and one that is served no SYN twice.
const OBSERVED: &str = "[[service]]\nname = \"web\"\nports = [7413]\n";
const ONCE: &str = "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"shield\"\nonce = true\n";

/// Whatever `way` leads to a `tfo run` with `once`: a SYN that is captured then is served once.
fn is_served_once_after(way: &str, go: impl FnOnce(&Config) -> Running + Send) {
    sandbox(|| {
        let mut between = Between::start();
        let server_at = Server::echo(Listener::on(NEAR).fast_open(16).listen());
        let config = Config::new("near", OBSERVED);
        let _tfo = go(&config);
        between.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let (seen, frame) = between.capture(order);
        let answer = between.replay(&frame);
        assert_eq!(answer.acknowledged, seen.sequence + 1, "{way}: its data is served again");
        assert_eq!((server_at.times(order), guarded("near", Guard::Once).acted), (1, 1), "{way}");
    });
}

#[test]
fn once_is_in_force_on_every_way_to_it() {
    is_served_once_after("start", |config| {
        config.write(ONCE);
        config.run()
    });
    is_served_once_after("reload", |config| {
        let running = config.run();
        config.write(ONCE);
        assert!(tfo(&["reload"]).status.success());
        running
    });
    is_served_once_after("kill -9 and take-over", |config| {
        config.write(ONCE);
        config.run().kill();
        config.run()
    });
    is_served_once_after("kill -9 of an observer, and take-over", |config| {
        config.run().kill();
        config.write(ONCE);
        config.run()
    });
    is_served_once_after("stop and start in another mode", |config| {
        config.run().end(Signal::SIGTERM);
        config.write(ONCE);
        config.run()
    });
    is_served_once_after("other sizes of maps", |config| {
        config.write(ONCE);
        config.run().end(Signal::SIGTERM);
        config.write(&format!("{ONCE}[maps]\nreplays = 131072\nsources = 4096\n"));
        config.run()
    });
}

/// What was captured before a controller went, or before the maps got another size, is known to the next one.
#[test]
fn once_remembers_over_restarts_and_other_sizes() {
    sandbox(|| {
        let mut between = Between::start();
        let server_at = Server::echo(Listener::on(NEAR).fast_open(16).listen());
        let config = Config::new("near", ONCE);
        let running = config.run();
        between.connect(b"a cookie, please", |_, _| 1);
        let order = b"order one";
        let (_, frame) = between.capture(order);
        let mut acted = 0;
        let mut assert_known = |way: &str| {
            acted += 1;
            // Not each is answered: to the kernel they are retransmissions of an ordinary SYN.
            between.send(&frame);
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
