//! What Prometheus gets of a running `tfo`: what `tfo counters` and the kernel say, whatever other clients do.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    collections::HashSet,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tfo_common::{
    class::Class,
    cookie,
    keyring::Role,
    observed::PREFIXES,
    parse::{LinkLayer, Malformed, Unsupported},
    segment::Family,
    verdict::Verdict,
};
use tfo_tests::{
    cases::SERVER_V4,
    netns::{
        BPFFS, Counts, IFACE, StopOnDrop, assert_clean, eventually, failure, ip, key, sandbox,
        server_and_client, set_keys, status, tfo,
    },
    packet::{Carry as _, eth},
    scrape::{self, METRICS, Samples, get, run},
    tap::Tap,
};
use tfo_userspace::{
    dataplane::{Pinned, pins::Bpffs},
    kernel::sysctl::KeySysctl,
    lab::{
        client::{Syn, fast_open},
        net::{SERVERS, server, source},
        server::Listeners,
    },
    model::{
        keys::{addresses, fingerprint, key_text},
        services::MOST,
    },
};

/// A namespace with an interface `v0`, and a loopback that carries metrics.
fn with_interface(test: impl FnOnce() + Send) {
    sandbox(|| {
        ip("link set lo up");
        ip("link add v0 type veth peer name v1");
        test();
    });
}

/// Sends SYNs of each class, of both families: the kernel is to hold `key(3)` and `key(2)`, and `key(1)` before.
fn one_of_each_class() -> anyhow::Result<()> {
    for family in Family::ALL {
        let server = server(*family);
        // It asks for a cookie, and comes back with it.
        for _ in 0..2 {
            fast_open(source(*family, 1), server, b"some data")?;
        }
        let forger = source(*family, 16);
        let made = |n| cookie::make(&key(n), &addresses(forger, server.ip()).unwrap()).to_le_bytes();
        let (retired, backup, current) = (made(1), made(2), made(3));
        let cookies: [&[u8]; 7] = [&[], &[7; 8], &retired, &backup, &current, &[7; 4], &[7; 18]];
        for (port, cookie) in (5000..).zip(cookies) {
            Syn::new(port, server.port(), 1).fast_open(cookie).data(b"data").send(forger, server.ip())?;
        }
        Syn::new(4000, server.port(), 1).send(forger, server.ip())?;
        Syn::new(4001, server.port(), 1).data_offset(4).send(forger, server.ip())?;
    }
    Ok(())
}

/// The counters of Fast Open in /proc/net/netstat, under the names that they have as metrics.
fn kernel_rows() -> Vec<(String, u64)> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let all = names.split(' ').zip(values.split(' '));
    all.filter_map(|(name, value)| {
        let mut snake = String::new();
        for letter in name.strip_prefix("TCPFastOpen")?.chars() {
            if letter.is_uppercase() {
                snake.push('_');
            }
            snake.extend(letter.to_lowercase());
        }
        Some((format!("tfo_kernel{snake}_total"), value.parse().unwrap()))
    })
    .collect()
}

/// In each mode, a scrape says what `tfo counters` and the kernel say, with a row for all that can be, and for nothing else.
#[test]
fn a_scrape_says_what_tfo_and_the_kernel_have_counted() {
    for mode in ["observe", "accelerate"] {
        server_and_client(|client| {
            let _listeners = Listeners::start(&SERVERS).unwrap();
            let _tfo = run(IFACE, &["--mode", mode, "--service", "echo=7413", "--service", "unused=1-9"]);
            for n in 1..4 {
                set_keys(IFACE, key(n), (n > 1).then(|| key(n - 1)));
            }
            let idle = Samples::now();
            for row in idle.rows_of("tfo_syn_total") {
                assert_eq!(idle.get(row), "0", "{row}");
            }
            for name in ["tfo_syn_data_bytes_total", "tfo_rtt_saved_seconds_count"] {
                assert_eq!(idle.rows_of(name).next(), None);
            }
            client.run(one_of_each_class).unwrap();
            // A handshake may end after its connection was served.
            let is_counted = |counts: &Counts| {
                counts.reason("malformed", "tcp_data_offset") == 2
                    && service(counts, "echo")["rtt_saved"]["connections"] == 2
            };
            eventually("all is counted", || is_counted(&Counts::of(IFACE)));

            let (counts, samples) = (Counts::of(IFACE), Samples::now());
            let names = ["other", "echo", "unused"];
            for name in names {
                assert_syns(&samples, mode, &service(&counts, name));
                assert_outcomes(&samples, &service(&counts, name));
            }
            let of_a_service = 16 + if mode == "accelerate" { 2 } else { 0 };
            assert_eq!(samples.rows_of("tfo_syn_total").count(), names.len() * of_a_service);
            let echo = service(&counts, "echo");
            for class in Class::ALL {
                let rows = echo["syn"].as_array().unwrap();
                assert!(rows.iter().any(|row| row["class"] == class.name()), "no {class}");
            }
            assert!(echo["accepted"].as_u64() > Some(2));

            let reasons = Malformed::ALL.iter().map(|reason| ("malformed", reason.name()));
            let reasons = reasons.chain(Unsupported::ALL.iter().map(|reason| ("unsupported", reason.name())));
            for (kind, reason) in reasons {
                let row = format!("tfo_{kind}_total{{interface=\"{IFACE}\",reason=\"{reason}\"}}");
                assert_eq!(samples.number(&row), counts.reason(kind, reason), "{row}");
            }

            let kernel = kernel_rows();
            assert!(kernel.iter().any(|(_, value)| *value > 0));
            for (row, value) in &kernel {
                assert_eq!(samples.number(row), *value, "{row}");
            }
            let served = samples.names().into_iter().filter(|name| name.starts_with("tfo_kernel_"));
            assert_eq!(served.count(), kernel.len());

            let of_interface = |name: &str, more: &str| format!("{name}{{interface=\"{IFACE}\"{more}}}");
            assert_eq!(samples.get(&of_interface("tfo_xdp_attached", ",mode=\"native\"")), "1");
            assert_eq!(samples.get(&of_interface("tfo_xdp_attached", ",mode=\"generic\"")), "0");
            // Retired and unknown cookies, those of a bad length, options that are ignored and broken headers are worth an
            // event, one of each for both families; how many there may be in a jiffy is limited.
            let events = ["tfo_events_total", "tfo_events_skipped_total"];
            let events = events.map(|name| samples.number(&of_interface(name, "")));
            assert!(events[0] > 0 && events[0] + events[1] == 10, "{events:?}");
            assert_eq!(samples.get(&of_interface("tfo_events_lost_total", ",at=\"ring\"")), "0");
            assert_eq!(samples.get(&of_interface("tfo_events_lost_total", ",at=\"controller\"")), "0");
            // One of each family.
            assert_eq!(samples.get(&of_interface("tfo_map_entries", ",map=\"prefixes\"")), "2");
            assert_eq!(samples.get(&of_interface("tfo_prefixes_evicted_total", "")), "0");
        });
    }
}

/// More prefixes come than are remembered: the newest are, and how many had to make room is told.
#[test]
fn prefixes_that_made_room_are_told() {
    const ALL: u32 = PREFIXES as u32 + 4096;
    const NEWEST: u32 = 1000;
    let source = |n: u32| Ipv4Addr::from((10 << 24) + (n << 8) + 1);
    sandbox(|| {
        ip("link set lo up");
        let mut tap = Tap::new("t0", LinkLayer::Ethernet);
        let _tfo = run("t0", &[]);
        for n in 0..ALL {
            tap.receive(&eth().ipv4(source(n), SERVER_V4).syn().request().build()).unwrap();
            // Slowly enough for each to be looked at: so many in a jiffy are, which is 1 to 10 ms.
            if n.is_multiple_of(16) {
                thread::sleep(Duration::from_millis(4));
            }
        }
        let pinned = Pinned::open(&Bpffs::new(BPFFS.as_ref()).pins("t0")).unwrap();
        let remembered: HashSet<_> = pinned.prefixes().iter().map(|(prefix, _)| prefix.bytes).collect();
        for n in ALL - NEWEST..ALL {
            let [a, b, c, _] = source(n).octets();
            assert!(remembered.contains(&u64::from_le_bytes([a, b, c, 0, 0, 0, 0, 0])), "{}", source(n));
        }
        assert!(remembered.len() <= PREFIXES);

        let samples = Samples::now();
        let entries = samples.number("tfo_map_entries{interface=\"t0\",map=\"prefixes\"}");
        let evicted = samples.number("tfo_prefixes_evicted_total{interface=\"t0\"}");
        assert_eq!((entries, entries + evicted), (remembered.len() as u64, u64::from(ALL)));
    });
}

/// What `counts` say of a service.
fn service(counts: &Counts, name: &str) -> Value {
    let services = counts.field("services").as_array().unwrap().iter();
    services.clone().find(|service| service["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
}

/// Panics unless `samples` have the SYNs of `service`, and zeros for the rest of what can be in `mode`; and their data, without
/// zeros.
fn assert_syns(samples: &Samples, mode: &str, service: &Value) {
    let name = service["name"].as_str().unwrap();
    for family in Family::ALL {
        for class in Class::ALL {
            for verdict in Verdict::ALL {
                let labels = format!(
                    "{{interface=\"{IFACE}\",service=\"{name}\",family=\"{family}\",class=\"{class}\",\
                     verdict=\"{verdict}\"}}"
                );
                let translates = (mode, *class) == ("accelerate", Class::CookieRetired);
                let is_possible = *verdict == Verdict::Pass || translates && *verdict == Verdict::Rewrite;
                let row = format!("tfo_syn_total{labels}");
                assert_eq!(samples.rows_of("tfo_syn_total").any(|known| known == row), is_possible, "{row}");
                if is_possible {
                    let rows = service["syn"].as_array().unwrap().iter();
                    let is_this = |row: &&Value| {
                        (&row["family"], &row["class"], &row["verdict"])
                            == (&family.name().into(), &class.name().into(), &verdict.name().into())
                    };
                    let counted = rows.clone().find(is_this);
                    let number = |field: &str| counted.map_or(0, |row| row[field].as_u64().unwrap());
                    assert_eq!(samples.number(&row), number("packets"), "{row}");
                    let row = format!("tfo_syn_data_bytes_total{labels}");
                    let is_there = samples.rows_of("tfo_syn_data_bytes_total").any(|known| known == row);
                    let bytes = if is_there { samples.number(&row) } else { 0 };
                    assert_eq!((is_there, bytes), (bytes > 0, number("data_bytes")), "{row}");
                }
            }
        }
    }
}

/// Panics unless `samples` say the same as `service` of what became of its connections.
fn assert_outcomes(samples: &Samples, service: &Value) {
    let name = service["name"].as_str().unwrap();
    let labels = format!("service=\"{name}\"");
    assert_eq!(samples.number(&format!("tfo_accepted_total{{{labels}}}")), service["accepted"]);
    let refused = format!("tfo_refused_total{{interface=\"{IFACE}\",{labels}}}");
    assert_eq!(samples.number(&refused), service["refused"]);
    let saved = &service["rtt_saved"];
    if service["accepted"] == 0 {
        let rows = ["sum", "count", "bucket"].map(|row| format!("tfo_rtt_saved_seconds_{row}"));
        let mut rows = rows.iter().flat_map(|name| samples.rows_of(name));
        assert_eq!(rows.find(|row| row.contains(&labels)), None);
        return;
    }
    assert_eq!(samples.number(&format!("tfo_rtt_saved_seconds_count{{{labels}}}")), saved["connections"]);
    let sum: f64 = samples.get(&format!("tfo_rtt_saved_seconds_sum{{{labels}}}")).parse().unwrap();
    assert!((sum - saved["seconds"].as_f64().unwrap()).abs() < 1e-9);
    // Each bound is one of tfo's own: what is below it there is what is below it here.
    for power in 7..24 {
        let us = 1_u64 << power;
        let below = saved["buckets"].as_array().unwrap().iter();
        let below = below.filter(|bucket| bucket["below_us"].as_u64().unwrap() <= us);
        let below: u64 = below.map(|bucket| bucket["connections"].as_u64().unwrap()).sum();
        let bound = us as f64 / 1e6;
        let row = samples.rows_of("tfo_rtt_saved_seconds_bucket").find(|row| {
            let le = row.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
            row.contains(&labels) && le.parse::<f64>().unwrap() == bound
        });
        assert_eq!(samples.number(row.unwrap()), below, "up to {bound} s");
    }
    let all = format!("tfo_rtt_saved_seconds_bucket{{le=\"+Inf\",{labels}}}");
    assert_eq!(samples.number(&all), saved["connections"]);
}

/// Each of many services has its own counters: they are read many at a time.
#[test]
fn of_many_services_each_has_its_own() {
    server_and_client(|client| {
        const SERVICES: u16 = 100;
        let named: Vec<_> = (1..=SERVICES).map(|port| format!("service-{port}={port}")).collect();
        let args: Vec<_> = named.iter().flat_map(|service| ["--service", service]).collect();
        let _tfo = run(IFACE, &args);
        let (source, address) = (source(Family::Ipv4, 1), server(Family::Ipv4).ip());
        let send = || {
            for port in 1..=SERVICES {
                for n in 0..port % 7 {
                    Syn::new(5000 + n, port, 1).data(b"data").send(source, address)?;
                }
            }
            anyhow::Ok(())
        };
        client.run(send).unwrap();
        let all: u64 = (1..=SERVICES).map(|port| u64::from(port % 7)).sum();
        eventually("all is counted", || Counts::of(IFACE).total() == all);
        let samples = Samples::now();
        for port in 1..=SERVICES {
            let labels = format!(
                "{{interface=\"{IFACE}\",service=\"service-{port}\",family=\"ipv4\",class=\"plain_syn\",\
                 verdict=\"pass\"}}"
            );
            assert_eq!(samples.number(&format!("tfo_syn_total{labels}")), u64::from(port % 7), "{port}");
        }
        assert_eq!(samples.rows_of("tfo_syn_total").count(), 16 * (usize::from(SERVICES) + 1));
    });
}

/// Scrapes take their time with the most services there can be: however many come, a new key of the kernel arrives.
#[test]
fn a_key_arrives_among_many_large_scrapes() {
    server_and_client(|_client| {
        let named: Vec<_> = (1..=MOST).map(|port| format!("s{port}={port}")).collect();
        let args: Vec<_> = named.iter().flat_map(|service| ["--service", service]).collect();
        let _tfo = run(IFACE, &args);
        let pinned = Pinned::open(&Bpffs::new(Path::new(BPFFS)).pins(IFACE)).unwrap();
        let is_current = || pinned.key_ring().unwrap().held().current == Some(key(1));
        let sysctl = KeySysctl::open().unwrap();
        let (stop, scrapes) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            for _ in 0..6 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(get("/metrics").status, 200);
                        scrapes.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            eventually("they scrape", || scrapes.load(Ordering::Relaxed) > 0);
            let start = Instant::now();
            sysctl.write(key(1), None).unwrap();
            eventually("the key is in the map", is_current);
            println!("the key arrived after {:?}, among scrapes by six", start.elapsed());
        });
    });
}

/// Keys by their role, and whether they are in step; what is shown of them tells nobody which they are.
#[test]
fn keys_are_shown_by_role_only() {
    server_and_client(|_client| {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json");
        let keys = ["--keys", "random", "--rotate", "1w", "--key-state", state.to_str().unwrap()];
        let _tfo = run(IFACE, &keys);
        eventually("keys are in step", || get("/healthz").status == 200);
        for _ in 0..3 {
            assert!(tfo(&["keys", "rotate"]).status.success());
        }
        let samples = Samples::now();
        let of = |name: &str, role: Role| format!("{name}{{interface=\"{IFACE}\",role=\"{}\"}}", role.name());
        for (role, count) in [(Role::Current, 1), (Role::Backup, 1), (Role::Next, 0), (Role::Retired, 2)] {
            assert_eq!(samples.number(&of("tfo_keys", role)), count, "{role:?}");
            let has_age =
                samples.rows_of("tfo_key_age_seconds").any(|row| row == of("tfo_key_age_seconds", role));
            assert_eq!(has_age, count > 0, "{role:?}");
        }
        assert_eq!(samples.get("tfo_key_rotation_interval_seconds"), "604800");
        assert_eq!(samples.get("tfo_key_failures_total"), "0");
        assert_eq!(samples.get(&format!("tfo_keys_in_step{{interface=\"{IFACE}\"}}")), "1");

        // Somebody else's key is followed, but it is not what the source wants.
        set_keys(IFACE, key(9), None);
        eventually("they are not in step", || get("/healthz").status == 503);
        assert_eq!(
            get("/healthz").body,
            format!("{IFACE}: keys are out of step (`tfo keys status` shows them)\n")
        );
        let answer = get("/metrics");
        let samples = Samples::of(&answer.body);
        assert_eq!(samples.get(&format!("tfo_keys_in_step{{interface=\"{IFACE}\"}}")), "0");
        assert_eq!(samples.get("tfo_key_failures_total"), "1");
        for group in key_text(key(9)).split('-').chain([fingerprint(key(9)).as_str()]) {
            assert!(!answer.body.contains(group), "{group} in {}", answer.body);
        }
    });
}

/// Prometheus asks for OpenMetrics; who does not gets the older format, with the same samples.
#[test]
fn both_formats_have_the_same_samples() {
    with_interface(|| {
        let _tfo = run("v0", &[]);
        set_keys("v0", key(1), None);
        let accept =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let open = scrape::ask("GET", "/metrics", accept).unwrap();
        let plain = get("/metrics");
        assert!(
            open.head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8")
        );
        assert!(plain.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"));
        assert!(open.body.ends_with("\n# EOF\n") && open.body.contains("\n# TYPE tfo_syn counter\n"));
        assert!(!plain.body.contains("# EOF") && plain.body.contains("\n# TYPE tfo_syn_total counter\n"));
        let without_ages = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with("tfo_key_age_seconds"));
            Samples::of(&lines.collect::<Vec<_>>().join("\n"))
        };
        assert_eq!(without_ages(&open.body), without_ages(&plain.body));
    });
}

#[test]
fn there_is_nothing_else() {
    with_interface(|| {
        let _tfo = run("v0", &[]);
        assert_eq!(get("/").status, 404);
        assert_eq!(get("/metrics/").status, 404);
        assert_eq!(scrape::ask("POST", "/metrics", "*/*").unwrap().status, 405);
        assert_eq!(scrape::ask("DELETE", "/healthz", "*/*").unwrap().status, 405);
    });
}

/// `/healthz` says when the interface is gone, and when it is back.
#[test]
fn health_follows_the_interfaces() {
    with_interface(|| {
        ip("link add w0 type veth peer name w1");
        let _tfo = run("v0", &["-i", "w0"]);
        set_keys("v0", key(1), None);
        assert_eq!((get("/healthz").status, get("/healthz").body.as_str()), (200, "ok\n"));
        ip("link del v0");
        eventually("it is noticed", || get("/healthz").status == 503);
        let why = "v0: not attached: the interface is gone, or the program was unloaded\n";
        assert_eq!(get("/healthz").body, why);
        let samples = Samples::now();
        for (interface, native) in [("v0", "0"), ("w0", "1")] {
            let row = |mode| format!("tfo_xdp_attached{{interface=\"{interface}\",mode=\"{mode}\"}}");
            assert_eq!((samples.get(&row("native")), samples.get(&row("generic"))), (native, "0"));
        }
        // What is of the whole namespace is the first interface's to count; what is of an interface is there.
        assert_eq!(samples.rows_of("tfo_accepted_total").next(), None);
        let refused: Vec<_> = samples.rows_of("tfo_refused_total").collect();
        assert_eq!(refused, ["tfo_refused_total{interface=\"w0\",service=\"other\"}"]);
        ip("link add v0 type veth peer name v1");
        eventually("it is back", || get("/healthz").status == 200);
        assert_eq!(Samples::now().rows_of("tfo_accepted_total").count(), 1);
        assert!(tfo(&["unload", "-i", "w0"]).status.success() || tfo(&["unload"]).status.success());
        eventually("it is unloaded", || get("/healthz").body.starts_with("w0: not attached"));
    });
}

/// Keys that can't be read are no health.
#[test]
fn health_says_what_is_wrong_with_keys() {
    with_interface(|| {
        let _tfo = run("v0", &[]);
        set_keys("v0", key(1), None);
        let file = tempfile::NamedTempFile::new().unwrap();
        let bind = nix::mount::MsFlags::MS_BIND;
        let sysctl = "/proc/sys/net/ipv4/tcp_fastopen_key";
        nix::mount::mount(Some(file.path()), sysctl, None::<&str>, bind, None::<&str>).unwrap();
        eventually("it is not well", || get("/healthz").status == 503);
        let why = get("/healthz").body;
        assert!(why.starts_with("keys: net.ipv4.tcp_fastopen_key is not in the form"), "{why}");
        assert_eq!(Samples::now().get("tfo_key_failures_total"), "1");
    });
}

/// Where nobody can listen, nothing is attached.
#[test]
fn an_address_that_is_taken() {
    with_interface(|| {
        let _taken = TcpListener::bind(scrape::ADDRESS).unwrap();
        for (address, why) in [(METRICS[1], "Address already in use"), ("192.0.2.1:9434", "Cannot assign")] {
            let (code, error) = failure(&tfo(&["run", "-i", "v0", "--metrics", address]));
            assert_eq!(code, Some(1));
            let expected = format!(
                "error: cannot serve metrics on {address} (give --metrics a local address that is free): {why}"
            );
            assert!(error.starts_with(&expected), "{error}");
            assert!(!error.contains("attached"), "{error}");
            assert_clean("v0");
        }
        assert_eq!(tfo(&["run", "-i", "v0", "--metrics", "9434"]).status.code(), Some(2));
    });
}

/// Clients that say nothing, half of it, or don't read the answer, more than there are places: keys go on, and so do others.
#[test]
fn stuck_clients_disturb_nobody() {
    with_interface(|| {
        let tfo_run = run("v0", &[]);
        set_keys("v0", key(1), None);
        let mut stuck = Vec::new();
        let mut add = |said: &str, count: usize| {
            for _ in 0..count {
                let mut stream = scrape::connect();
                stream.write_all(said.as_bytes()).unwrap();
                stuck.push(stream);
            }
        };
        // A few: the next client is served at once.
        add("", 4);
        add("GET /metrics HTTP/1.1\r\nHost:", 4);
        add("GET /metrics HTTP/1.1\r\nHost: tfo\r\n\r\n", 4);
        assert_eq!(get("/healthz").status, 200);
        assert_eq!(get("/metrics").status, 200);
        // Many: keys are followed, and whoever waits is served in the end.
        add("GET /metrics HTTP/1.1\r\nHost:", 40);
        set_keys("v0", key(2), Some(key(1)));
        assert_eq!(status("v0")["keys"]["current"], fingerprint(key(2)));
        assert_eq!(get("/metrics").status, 200);
        // Who says nothing is let go, not kept for ever.
        let mut rest = String::new();
        let _: std::io::Result<usize> = stuck[0].read_to_string(&mut rest);
        assert!(!rest.contains("200 OK"), "{rest}");
        tfo_run.end(Signal::SIGINT);
        assert_clean("v0");
    });
}

/// Far more clients than there are places, some of which say nothing, some half a request, and some never read the answer: a
/// scrape takes a part of a second, and not the time that they are given.
#[test]
fn slow_clients_cost_others_no_scrape() {
    with_interface(|| {
        // An answer does not fit into the socket's buffer.
        fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 16384").unwrap();
        let named: Vec<_> = (1..=100).map(|port| format!("service-{port}={port}")).collect();
        let services: Vec<_> = named.iter().flat_map(|service| ["--service", service]).collect();
        let tfo_run = run("v0", &services);
        set_keys("v0", key(1), None);
        let all = Samples::now();
        let mut stuck = Vec::new();
        for count in [40, 200] {
            let said = ["", "GET /metrics HTTP/1.1\r\nHost:", "GET /metrics HTTP/1.1\r\nHost: tfo\r\n\r\n"];
            for n in 0..count {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_recv_buffer_size(4096).unwrap();
                socket.connect(&scrape::ADDRESS.into()).unwrap();
                let mut stream = TcpStream::from(socket);
                stream.write_all(said[n % said.len()].as_bytes()).unwrap();
                stuck.push(stream);
            }
            let start = Instant::now();
            let url = format!("http://{}/metrics", scrape::ADDRESS);
            let curl = Command::new("curl").args(["-sS", "--max-time", "5", &url]).output().unwrap();
            println!("a scrape among {count} slow clients: {:?}", start.elapsed());
            assert!(curl.status.success(), "{count}: {:?}", failure(&curl));
            let samples = Samples::of(str::from_utf8(&curl.stdout).unwrap());
            assert!(samples.names().is_superset(&all.names()), "{count}");
            assert_eq!(get("/healthz").status, 200);
        }
        // Nobody keeps a place, without going away.
        eventually("all are gone", || {
            let sockets = fs::read_dir(format!("/proc/{}/fd", tfo_run.id())).unwrap().flatten();
            let links = sockets.filter_map(|fd| fs::read_link(fd.path()).ok());
            links.filter(|link| link.to_string_lossy().starts_with("socket:")).count() < 10
        });
        drop(stuck);
        tfo_run.end(Signal::SIGINT);
    });
}

/// One that can't be read is left out, and says so; the other is there with all its rows.
#[test]
fn an_interface_that_cannot_be_read_spoils_no_other() {
    with_interface(|| {
        ip("link add w0 type veth peer name w1");
        let tfo_run = run("v0", &["-i", "w0"]);
        set_keys("v0", key(1), None);
        set_keys("w0", key(2), None);
        assert_eq!(get("/healthz").status, 200);
        let row = |name: &str| format!("tfo_interface_up{{interface=\"{name}\"}}");
        let before = Samples::now();
        assert_eq!([before.get(&row("v0")), before.get(&row("w0"))], ["1", "1"]);

        // A symbolic link to itself is neither there nor missing.
        let link = Bpffs::new(BPFFS.as_ref()).pins("v0").current().unwrap().outcomes_link();
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&link, &link).unwrap();
        let after = Samples::now();
        assert_eq!([after.get(&row("v0")), after.get(&row("w0"))], ["0", "1"]);
        let rows_of = |samples: &Samples, interface: &str| {
            let names = samples.names();
            let rows = names.iter().flat_map(|name| samples.rows_of(name));
            rows.filter(|row| row.contains(&format!("interface=\"{interface}\""))).count()
        };
        assert_eq!(rows_of(&after, "v0"), 1);
        assert_eq!(rows_of(&after, "w0"), rows_of(&before, "w0"));
        assert_eq!(get("/healthz").status, 200, "its keys are in step");
        fs::remove_file(&link).unwrap();
        assert_eq!(Samples::now().get(&row("v0")), "1");
        tfo_run.end(Signal::SIGINT);
    });
}

#[test]
fn a_hundred_scrapes_at_once() {
    with_interface(|| {
        let tfo_run = run("v0", &[]);
        set_keys("v0", key(1), None);
        let all = Samples::now();
        thread::scope(|scope| {
            let scrapes: Vec<_> = (0..100).map(|_| scope.spawn(Samples::now)).collect();
            KeySysctl::open().unwrap().write(key(2), None).unwrap();
            for scrape in scrapes {
                assert!(scrape.join().unwrap().names().is_superset(&all.names()));
            }
        });
        eventually("keys are followed", || status("v0")["keys"]["current"] == fingerprint(key(2)));
        tfo_run.end(Signal::SIGINT);
    });
}
