//! Reloads under a stream of SYNs: each SYN is judged by the old rules or by the new ones, never by a mix.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    collections::BTreeMap,
    fs::{read_dir, read_to_string},
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use nix::sys::signal::Signal;
use tfo_common::{class::Class, cookie, segment::Family, verdict::Verdict};
use tfo_tests::{
    config::Config,
    netns::{Counts, IFACE, Running, StopOnDrop, eventually, failure, key, server_and_client, set_keys, tfo},
    wire::{Seen, Wire},
};
use tfo_userspace::{
    kernel::tcp_ext::TcpExt,
    lab::{
        client::Syn,
        net::{Namespace, SERVERS, server, source},
        server::Listeners,
    },
    model::keys::addresses,
};

const DATA: [u8; 100] = [b'x'; 100];

/// Returns the number of SYNs with Fast Open that the kernel's TCP has seen.
fn seen_by_the_kernel() -> u64 {
    let TcpExt { cookie_reqd, passive, passive_fail, .. } = TcpExt::read().unwrap();
    cookie_reqd + passive + passive_fail
}

/// Returns a hidden service on the server's port, and 1,500 others, whose ports depend on `turn`.
fn configuration(name: &str, turn: u16) -> String {
    const OTHERS: u16 = 1500;
    let web = format!("[[service]]\nname = \"{name}\"\nports = [7413]\nmode = \"shield\"\nhide = true\n");
    let others = (0..OTHERS).map(|n| {
        let port = 20_000 + (n + turn) % OTHERS;
        format!(
            "[[service]]\nname = \"s{n}\"\nports = [{port}]\nmode = \"shield\"\nclamp = {{ factor = {} }}\n",
            1 + n % 9
        )
    });
    web + &others.collect::<String>()
}

/// Whether the kernel had no room for a packet.
fn lacks_room(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.and_then(io::Error::raw_os_error) == Some(libc::ENOBUFS)
}

/// Sends SYNs with good cookies over both families without a pause while `test` runs. Returns their number.
fn under_fire(client: &Namespace, test: impl FnOnce()) -> u64 {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let fire = scope.spawn(|| {
            client.run(|| {
                for number in 0_u32.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    for family in Family::ALL {
                        let (from, to) = (source(*family, (number % 4000) as u16), server(*family));
                        let cookie = cookie::make(&key(1), &addresses(from, to.ip())?).to_le_bytes();
                        let port = 10_000 + (number / 4000) as u16;
                        let syn = Syn::new(port, to.port(), number).fast_open(&cookie).data(&DATA);
                        match syn.send(from, to.ip()) {
                            Ok(()) => _ = sent.fetch_add(1, Ordering::Relaxed),
                            // It was not sent: what all namespaces share had no room for a moment.
                            Err(error) if lacks_room(&error) => thread::yield_now(),
                            Err(error) => return Err(error),
                        }
                    }
                }
                Ok(())
            })
        });
        {
            let _stop = StopOnDrop(&stop);
            eventually("SYNs come", || sent.load(Ordering::Relaxed) > 100);
            test();
        }
        fire.join().unwrap().unwrap();
    });
    sent.into_inner()
}

#[test]
fn no_syn_is_judged_by_less_than_the_old_or_the_new_rules() {
    const RELOADS: u16 = 6;
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let config = Config::new(IFACE, &configuration("web", 0));
        let running = config.run();
        set_keys(IFACE, key(1), None);
        let (before, start) = (seen_by_the_kernel(), Instant::now());
        let sent = under_fire(&client, || {
            for turn in 1..=RELOADS {
                // The service is renamed each time, and all others change ports.
                let name = if turn % 2 == 0 { "web" } else { "shop" };
                config.write(&configuration(name, turn * 7));
                let output = tfo(&["reload"]);
                assert!(output.status.success(), "{:?}", failure(&output));
            }
        });
        let took = start.elapsed();
        eventually("every SYN is counted", || Counts::of(IFACE).total() == sent);
        assert_eq!(Counts::of(IFACE).verdict(Class::CookieCurrent, Verdict::Hide), sent, "all are hidden");
        assert_eq!(seen_by_the_kernel(), before, "the kernel serves none");
        println!(
            "{RELOADS} reloads of 1,501 services under {:.0} SYNs a second: none of {sent} SYNs was served",
            sent as f64 / took.as_secs_f64()
        );
        running.end(Signal::SIGINT);
    });
}

/// Windows behind the program are those of the old policy or of the new one, never of a mix.
#[test]
fn no_window_is_cut_by_half_a_policy() {
    const RELOADS: usize = 6;
    server_and_client(|client| {
        let with = |factor: usize| {
            format!(
                "[[service]]\nname = \"by{factor}\"\nports = [7413]\nmode = \"shield\"\nclamp = {{ factor = {factor} }}\n"
            )
        };
        let factor = |turn: usize| 2 + turn % 2;
        let config = Config::new(IFACE, &with(factor(0)));
        let running = config.run();
        set_keys(IFACE, key(1), None);
        let wire = Wire::at(IFACE);
        let mut windows = BTreeMap::<_, u64>::new();
        let mut look = || {
            while let Some(frame) = wire.seen() {
                if let Some(seen) = Seen::of(&frame).filter(|seen| seen.syn && !seen.ack) {
                    *windows.entry(usize::from(seen.window)).or_default() += 1;
                }
            }
        };
        let sent = under_fire(&client, || {
            for turn in 1..=RELOADS {
                config.write(&with(factor(turn)));
                let output = tfo(&["reload"]);
                assert!(output.status.success(), "{:?}", failure(&output));
                look();
            }
        });
        eventually("every SYN is counted", || Counts::of(IFACE).total() == sent);
        look();
        let found: Vec<_> = windows.keys().copied().collect();
        assert_eq!(found, [2 * DATA.len(), 3 * DATA.len()], "{windows:?}");
        println!("{RELOADS} reloads of a clamp under {sent} SYNs: windows {windows:?}");
        running.end(Signal::SIGINT);
    });
}

/// Ten thousand prefixes are replaced by ten thousand others. No map has room for both.
#[test]
fn all_prefixes_are_replaced_at_once() {
    server_and_client(|client| {
        let with = |net: u8| {
            let prefixes = (0..10_000).map(|n| format!("\"10.{net}.{}.{}\"", n / 250, 1 + n % 250));
            let prefixes = prefixes.collect::<Vec<_>>().join(",");
            let ours = server(Family::Ipv4).ip();
            format!("[[service]]\nname = \"n{net}\"\nports = [7413]\naddresses = [\"{ours}\",{prefixes}]\n")
        };
        let config = Config::new(IFACE, &with(1));
        let running = config.run();
        let counted = |name: &str| {
            let counts = Counts::of(IFACE);
            let services = counts.field("services").as_array().unwrap().clone();
            let service = services.into_iter().find(|service| service["name"] == name);
            service.and_then(|service| service["syn"][0]["packets"].as_u64()).unwrap_or(0)
        };
        let send = || {
            let to = server(Family::Ipv4);
            client.run(|| Syn::new(5000, to.port(), 1).send(source(Family::Ipv4, 1), to.ip())).unwrap();
        };
        send();
        assert_eq!(counted("n1"), 1);
        config.write(&with(2));
        let output = tfo(&["reload"]);
        assert!(output.status.success(), "{:?}", failure(&output));
        send();
        assert_eq!((counted("n2"), counted("removed")), (1, 1));
        running.end(Signal::SIGINT);
    });
}

/// The program that follows connections has the constants of the XDP program beside it, whoever loaded either.
#[test]
fn connections_are_followed_by_the_program_that_was_loaded_last() {
    server_and_client(|_| {
        let running = Running::start(&["-i", IFACE]);
        let before = outcomes_program();
        running.kill();
        let running = Running::start(&["-i", IFACE, "--mode", "shield"]);
        eventually("it is another program", || outcomes_program() != before);
        running.end(Signal::SIGINT);
    });
}

/// Returns the kernel's id of the program that follows connections.
fn outcomes_program() -> u32 {
    use aya::programs::links::{FdLink, PinnedLink};
    let pins = tfo_userspace::dataplane::pins::Bpffs::new(tfo_tests::netns::BPFFS.as_ref()).pins(IFACE);
    let link = PinnedLink::from_pin(pins.current().unwrap().outcomes_link()).unwrap();
    FdLink::from(link).info().unwrap().program_id()
}

/// A SIGHUP while an earlier reload is in progress is not lost: the file is read once more when that has ended.
#[test]
fn a_sighup_during_a_reload_is_not_lost() {
    server_and_client(|_client| {
        let config = Config::new(IFACE, &configuration("web", 0));
        let running = config.run();
        let is_loading = || {
            let tasks = read_dir(format!("/proc/{}/task", running.id())).unwrap();
            let mut names = tasks.filter_map(|task| read_to_string(task.ok()?.path().join("comm")).ok());
            names.any(|name| name.trim() == "loader")
        };
        let names = ["first", "second"];
        config.write(&configuration(names[0], 7));
        running.signal(Signal::SIGHUP);
        eventually("the reload begins", is_loading);
        config.write(&configuration(names[1], 14));
        running.signal(Signal::SIGHUP);
        let has = |name: &str| {
            let counters = Counts::of(IFACE);
            let services = counters.field("services").as_array().unwrap();
            services.iter().any(|service| service["name"] == name)
        };
        eventually("the second file is in force", || has(names[1]));
        running.end(Signal::SIGINT);
    });
}
