//! `tfo top` in tmux, with real traffic.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tfo_common::segment::Family;
use tfo_tests::{
    netns::{IFACE, Running, StopOnDrop, binary, eventually, ip, sandbox, server_and_client, status, tfo},
    terminal::Terminal,
};
use tfo_userspace::lab::{
    client::{Syn, fast_open},
    net::{Namespace, SERVERS, server, source},
    server::Listeners,
};

fn top(args: &str) -> String {
    format!("{} top {args}", binary().display())
}

/// Returns the second cell of the row with `name`, if it is a known rate.
fn rate(picture: &str, name: &str) -> Option<f64> {
    let line = picture.lines().find(|line| line.contains(name))?;
    line.split_once(name)?.1.split_whitespace().next()?.parse().ok()
}

/// Returns the numbers beside a source prefix.
fn numbers(picture: &str, prefix: &str) -> [u64; 3] {
    let line =
        picture.lines().find(|line| line.contains(prefix)).unwrap_or_else(|| panic!("{prefix}: {picture}"));
    let (_, behind) = line.split_once(prefix).expect("it is there");
    let numbers: Vec<_> =
        behind.split_whitespace().filter_map(|word| word.trim_matches('│').parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|numbers| panic!("{numbers:?}: {line}"))
}

/// Connects clients of both families again and again, and sends forged cookies, until `stop`.
fn traffic(client: &Namespace, stop: &AtomicBool) {
    let again = || {
        let mut sequence = 0;
        while !stop.load(Ordering::Relaxed) {
            sequence += 1;
            for family in Family::ALL {
                fast_open(source(*family, 1), server(*family), b"data")?;
                let forged = Syn::new(40_000, server(*family).port(), sequence).fast_open(&[7; 8]);
                forged.send(source(*family, 2), server(*family).ip())?;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    client.run(again).expect("clients connect");
}

#[test]
fn the_screen_shows_rates_and_leaves_a_sane_terminal() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let _tfo = Running::start(&["-i", IFACE, "--service", "web=80"]);
        let terminal = Terminal::open();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| traffic(&client, &stop));
            terminal.type_in(&top(""));
            for name in ["cookie_current", "cookie_unknown", "ipv4", "ipv6", "accepted"] {
                eventually(name, || rate(&terminal.picture(), name).is_some_and(|rate| rate > 1.0));
            }
            let picture = terminal.picture();
            assert!(picture.contains(&format!("tfo  {IFACE}  observe  native  since 20")), "{picture}");
            assert_eq!(rate(&picture, "cookie_retired"), Some(0.0), "{picture}");
            assert!(picture.contains("Keys, in step"), "{picture}");
            let key = status(IFACE)["keys"]["current"].as_str().unwrap().to_owned();
            assert!(picture.contains(&format!("current {key}")), "{picture}");

            for prefix in ["198.19.0.0/24", "2001:db8:1::/64"] {
                let [_, valid, unknown] = numbers(&picture, prefix);
                assert!(valid > 0 && unknown > 0, "{picture}");
            }

            eventually("an event is told", || {
                let picture = terminal.picture();
                let events = picture.split_once("Latest events").map(|(_, events)| events);
                events.is_some_and(|events| events.contains("cookie_unknown 198.19.0.2:40000 -> "))
            });

            // There is no listener on the port of this service.
            terminal.press(&["s", "s"]);
            terminal.wait_for("SYNs of web");
            eventually("the service has no SYN", || rate(&terminal.picture(), "ipv6") == Some(0.0));
            terminal.press(&["s"]);
            eventually("all SYNs", || rate(&terminal.picture(), "ipv6").is_some_and(|rate| rate > 1.0));

            terminal.press(&["?"]);
            terminal.wait_for("the next interface");
            terminal.press(&["x"]);
            eventually("the help is closed", || !terminal.shows("the next interface"));

            terminal.resize(60, 24);
            terminal.wait_for("too small: 60 × 24");
            terminal.resize(80, 24);
            terminal.wait_for("cookie_bad_length");
            eventually("rates are there again", || rate(&terminal.picture(), "ipv6").is_some());

            terminal.press(&["p"]);
            terminal.wait_for("PAUSED");
            terminal.press(&["p"]);
            eventually("it goes on", || !terminal.shows("PAUSED"));

            // The shell has the terminal while `tfo top` is suspended. Then the screen returns.
            terminal.press(&["C-z"]);
            terminal.wait_for_shell();
            terminal.assert_sane();
            terminal.type_in("clear; fg");
            terminal.wait_for("cookie_bad_length");
        });
        terminal.press(&["q"]);
        assert_eq!(terminal.assert_sane(), 0);
    });
}

#[test]
fn every_way_to_quit_restores_the_terminal() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let _tfo = Running::start(&["-i", "v0"]);
        let terminal = Terminal::open();
        for quit in ["Escape", "C-c", "SIGTERM", "SIGHUP", "SIGINT"] {
            terminal.type_in(&format!("clear; {}", top("-i v0")));
            terminal.wait_for("cookie_bad_length");
            match quit.parse::<Signal>() {
                Ok(signal) => {
                    let pid = terminal.tfo().expect("tfo runs in the terminal");
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
                }
                Err(_) => terminal.press(&[quit]),
            }
            terminal.wait_for_shell();
            assert_eq!(terminal.assert_sane(), 0, "{quit}");
        }
    });
}

/// `tfo top` waits for an ended controller, and counts from the next start. A key switches to another interface.
#[test]
fn it_waits_for_the_next_run_and_shows_the_next_interface() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let running = Running::start(&["-i", "v0"]);
        let terminal = Terminal::open();
        terminal.type_in(&top(""));
        terminal.wait_for("tfo  v0  observe");
        running.end(Signal::SIGINT);
        terminal.wait_for("tfo  v0  not attached: waiting for `tfo run`");
        let killed = Running::start(&["-i", "v0", "-i", "v1"]);
        terminal.wait_for("tfo  v0  observe");
        terminal.press(&["i"]);
        terminal.wait_for("tfo  v1  observe");
        killed.kill();
        terminal.wait_for("no controller");
        terminal.press(&["i"]);
        terminal.wait_for("tfo  v0  observe");
        terminal.press(&["q"]);
        assert_eq!(terminal.assert_sane(), 0);
    });
}

#[test]
fn without_a_terminal_it_prints_the_state_once() {
    sandbox(|| {
        assert_eq!(tfo(&["top"]).status.code(), Some(3));
        ip("link add v0 type veth peer name v1");
        let _tfo = Running::start(&["-i", "v0", "-i", "v1"]);
        let said = String::from_utf8(tfo(&["top", "-i", "v0"]).stdout).unwrap();
        assert!(said.starts_with("v0  observe") && said.contains("keys from kernel"), "{said}");
        assert!(!said.contains("v1"), "{said}");
        let json = tfo(&["top", "--json"]);
        let lines: Vec<Value> = serde_json::Deserializer::from_slice(&json.stdout)
            .into_iter()
            .collect::<Result<_, _>>()
            .expect("JSON objects");
        assert_eq!(lines.iter().map(|line| &line["interface"]).collect::<Vec<_>>(), ["v0", "v1"]);
        assert!(lines[0]["keys"].is_array() && lines[0]["syn"].is_array());
        assert_eq!(tfo(&["top", "-i", "v2"]).status.code(), Some(3));
    });
}
