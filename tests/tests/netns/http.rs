//! HTTP server of the metrics: its paths and address, `/healthz`, and clients that are many, slow or stuck.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};
use tfo_tests::{
    netns::{
        BPFFS, IFACE, StopOnDrop, assert_clean, eventually, failure, ip, key, server_and_client, set_keys,
        status, tfo,
    },
    scrape::{self, METRICS, Samples, get, run, with_interface},
};
use tfo_userspace::{
    dataplane::{Pinned, pins::Bpffs},
    kernel::sysctl::KeySysctl,
    model::{keys::fingerprint, services::MAX_SERVICES},
};

#[test]
fn other_paths_and_methods_are_refused() {
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
        // Counts of the whole namespace are missing with the first interface. Counts of the second one are there.
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

/// `/healthz` fails if keys can't be read.
#[test]
fn unreadable_keys_fail_the_health_check() {
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

/// A start that can't listen on the address attaches nothing.
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

/// Scrapes with the largest number of services take long. However many there are, a new key of the kernel is followed.
#[test]
fn a_key_arrives_among_many_large_scrapes() {
    server_and_client(|_client| {
        let named: Vec<_> = (1..=MAX_SERVICES).map(|port| format!("s{port}={port}")).collect();
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

/// More clients than there are places send nothing, half a request, or don't read the answer. Keys are still followed,
/// and other clients are served.
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
        // With a few of them, the next client is served at once.
        add("", 4);
        add("GET /metrics HTTP/1.1\r\nHost:", 4);
        add("GET /metrics HTTP/1.1\r\nHost: tfo\r\n\r\n", 4);
        assert_eq!(get("/healthz").status, 200);
        assert_eq!(get("/metrics").status, 200);
        // With many, keys are followed, and a waiting client is served in the end.
        add("GET /metrics HTTP/1.1\r\nHost:", 40);
        set_keys("v0", key(2), Some(key(1)));
        assert_eq!(status("v0")["keys"]["current"], fingerprint(key(2)));
        assert_eq!(get("/metrics").status, 200);
        // A silent client is cut off after a time.
        let mut rest = String::new();
        let _: std::io::Result<usize> = stuck[0].read_to_string(&mut rest);
        assert!(!rest.contains("200 OK"), "{rest}");
        tfo_run.end(Signal::SIGINT);
        assert_clean("v0");
    });
}

/// Far more clients than there are places send nothing, half a request, or never read the answer. A scrape takes less
/// than a second, not as long as they are given.
#[test]
fn slow_clients_cost_others_no_scrape() {
    with_interface(|| {
        // An answer must not fit into the socket's buffer.
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
        // All are cut off, although none has closed its connection.
        eventually("all are gone", || {
            let sockets = fs::read_dir(format!("/proc/{}/fd", tfo_run.id())).unwrap().flatten();
            let links = sockets.filter_map(|fd| fs::read_link(fd.path()).ok());
            links.filter(|link| link.to_string_lossy().starts_with("socket:")).count() < 10
        });
        drop(stuck);
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
