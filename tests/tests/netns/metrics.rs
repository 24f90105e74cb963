//! Metrics of a running `tfo`, compared with `tfo counters` and the kernel.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{collections::HashSet, fs, net::Ipv4Addr, thread, time::Duration};

use nix::sys::signal::Signal;
use serde_json::Value;
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
    fault::{self, Bpf, Fault},
    forger::{forge, with_forger},
    listener::Listener,
    netns::{BPFFS, Counts, IFACE, eventually, ip, key, sandbox, server_and_client, set_keys, tfo},
    packet::{Carry as _, eth},
    scrape::{self, Samples, get, run, with_interface},
    tap::Tap,
};
use tfo_userspace::{
    dataplane::{Pinned, pins::Bpffs},
    lab::{
        client::{Syn, fast_open},
        net::{SERVERS, server, source},
        server::Listeners,
    },
    model::keys::{addresses, fingerprint, key_text},
};

/// Sends SYNs of each class over both families. The kernel must hold `key(3)` and `key(2)`, and `key(1)` earlier.
fn one_of_each_class() -> anyhow::Result<()> {
    for family in Family::ALL {
        let server = server(*family);
        // The client requests a cookie, and then uses it.
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

/// Returns the counters of Fast Open and of SYN cookies in /proc/net/netstat, under their names as metrics.
fn kernel_rows() -> Vec<(String, u64)> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let all = names.split(' ').zip(values.split(' '));
    all.filter_map(|(name, value)| {
        let mut snake = String::new();
        let name =
            name.strip_prefix("TCPFastOpen").or_else(|| name.starts_with("Syncookies").then_some(name))?;
        for letter in name.chars() {
            if letter.is_uppercase() {
                snake.push('_');
            }
            snake.extend(letter.to_lowercase());
        }
        Some((format!("tfo_kernel{snake}_total"), value.parse().unwrap()))
    })
    .collect()
}

/// A scrape agrees with `tfo counters` and the kernel in each mode. It has a row for everything that is possible in the
/// mode, and no other row.
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
            // Events are retired and unknown cookies, cookies of a bad length, ignored options and broken headers, one
            // of each for either family. Their number per jiffy is limited.
            let events = ["tfo_events_total", "tfo_events_skipped_total"];
            let events = events.map(|name| samples.number(&of_interface(name, "")));
            assert!(events[0] > 0 && events[0] + events[1] == 10, "{events:?}");
            assert_eq!(samples.get(&of_interface("tfo_events_lost_total", ",at=\"ring\"")), "0");
            assert_eq!(samples.get(&of_interface("tfo_events_lost_total", ",at=\"controller\"")), "0");
            // There is one prefix of each family.
            assert_eq!(samples.get(&of_interface("tfo_map_entries", ",map=\"prefixes\"")), "2");
            assert_eq!(samples.get(&of_interface("tfo_prefixes_evicted_total", "")), "0");
        });
    }
}

/// Queues of the namespace's listeners, summed over the sockets of one address.
#[test]
fn a_scrape_has_the_queues_of_the_listeners() {
    with_forger(|client| {
        let _there = client.run(|| Ok(Listener::on("0.0.0.0:90").listen())).unwrap();
        let _group =
            [3, 4].map(|queue| Listener::shared("198.18.0.1:80").fast_open(queue).backlog(50).listen());
        let _idle = Listener::on("[::1]:81").backlog(7).listen();
        let _tfo = run(IFACE, &[]);
        forge(&client, Family::Ipv4, 1000..1020, 80, |syn| syn);
        let row = |name: &str, address: &str, port: u16| {
            format!("tfo_listener_{name}{{address=\"{address}\",port=\"{port}\"}}")
        };
        let values = |address: &str, port| {
            let samples = Samples::now();
            let names = ["sockets", "syn_queue", "accept_queue", "accept_queue_limit"];
            let fast_open = ["fastopen_queue", "fastopen_queue_limit"];
            names
                .iter()
                .chain(&fast_open)
                .map(|name| samples.number(&row(name, address, port)))
                .collect::<Vec<_>>()
        };
        eventually("the program is loaded", || Samples::now().names().contains("tfo_listeners_omitted"));
        eventually("the SYNs are seen", || values("198.18.0.1", 80) == [2, 20, 0, 100, 0, 3 + 4]);
        assert_eq!(values("::1", 81), [1, 0, 0, 7, 0, 0]);
        let samples = Samples::now();
        // The third is tfo's own, for metrics.
        assert_eq!(samples.rows_of("tfo_listener_sockets").count(), 3);
        assert_eq!(samples.get("tfo_listeners_omitted"), "0");

        let _many: Vec<_> =
            (2000..2200).map(|port| Listener::on(&format!("127.0.0.1:{port}")).listen()).collect();
        let samples = Samples::now();
        assert_eq!(samples.rows_of("tfo_listener_syn_queue").count(), 128);
        assert_eq!(samples.get("tfo_listeners_omitted"), "75");
        assert_eq!(samples.get(&row("sockets", "198.18.0.1", 80)), "2", "those with Fast Open come first");
    });
}

/// Whether the process `id` has a thread called `name`.
fn has_thread(id: u32, name: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
    // A thread may end meanwhile.
    let names = threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
    names.into_iter().any(|found| found.trim_end() == name)
}

/// Without the right to read the listeners, all other metrics are present.
#[test]
fn without_the_iterator_the_listeners_are_missing() {
    with_forger(|_| {
        let tfo = fault::with(Bpf::IterCreate, Fault::Fails(libc::EPERM), || run(IFACE, &[]));
        let has_listeners =
            |samples: &Samples| samples.names().iter().any(|name| name.starts_with("tfo_listener"));
        // The thread that loads the program ends then.
        eventually("the program is loaded", || !has_thread(tfo.id(), "listeners"));
        let samples = Samples::now();
        assert!(!has_listeners(&samples));
        assert!(samples.names().contains("tfo_kernel_passive_total"));
        tfo.kill();
        let _tfo = run(IFACE, &[]);
        eventually("the program is loaded", || has_listeners(&Samples::now()));
    });
}

/// More prefixes come than the table holds. The newest are in it, and evictions are counted.
#[test]
fn evicted_prefixes_are_counted() {
    const ALL: u32 = PREFIXES as u32 + 4096;
    const NEWEST: u32 = 1000;
    let source = |n: u32| Ipv4Addr::from((10 << 24) + (n << 8) + 1);
    sandbox(|| {
        ip("link set lo up");
        let mut tap = Tap::new("t0", LinkLayer::Ethernet);
        let _tfo = run("t0", &[]);
        for n in 0..ALL {
            tap.receive(&eth().ipv4(source(n), SERVER_V4).syn().request().build()).unwrap();
            // A limited number of SYNs is looked at in each jiffy, which is 1 to 10 ms. They are sent slowly enough for
            // all.
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

/// Returns the counts of a service.
fn service(counts: &Counts, name: &str) -> Value {
    let services = counts.field("services").as_array().unwrap().iter();
    services.clone().find(|service| service["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
}

/// Panics unless `samples` have the SYNs of `service`, with zeros for the other rows that are possible in `mode`, and
/// their data, without zeros.
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

/// Panics unless `samples` and `service` agree on the outcomes of its connections.
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
    // Each bound is also a bound of tfo's own buckets, so the sums below it are equal.
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

/// Counters of many services, which are read in batches, belong to the right service.
#[test]
fn each_of_many_services_has_its_own_counters() {
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

/// Keys are counted by role. Neither they nor their fingerprints are shown.
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

        // A key that another process writes is followed, but is out of step with the source.
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

/// Prometheus asks for OpenMetrics. Other clients get the older format, with the same samples.
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

/// The rows of an interface that can't be read are left out, and `tfo_interface_up` is 0. The other interface has all
/// its rows.
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
