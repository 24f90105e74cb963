//! Fleets that share a secret through a real etcd.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tfo_common::class::Class;
use tfo_tests::{
    etcd::{Etcd, MEMBERS},
    etcd_fleet::{Files, fleet, join, private, start, start_etcd, status, wait_for},
    fleet::{Fleet, Host, Made},
    netns::{Counts, IFACE, Running, StopOnDrop, eventually, ip, keys_status, sandbox, tfo},
    random::is_long,
    random_keys::{kernel_keys, wait_until_in_step},
    scrape,
};
use tfo_userspace::{
    fleet::{document::Document, seal::SealKey},
    kernel::tcp_ext::TcpExt,
    keys::secret::Secret,
    model::keys::{fingerprint, key_text},
};

/// Name of the document in etcd.
const DOCUMENT: &str = "/tfo/secret";
/// Number of all protocols for packet sockets (ETH_P_ALL), in network byte order.
const ALL_PROTOCOLS: i32 = (libc::ETH_P_ALL as u16).to_be() as i32;

/// Returns all files below `folder`.
fn files_below(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        match entry.file_type().expect("a kind").is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => found.push(fs::read(entry.path()).expect("a file")),
        }
    }
    found
}

/// Whether `content` has `part`.
fn has(content: &[u8], part: &[u8]) -> bool {
    content.windows(part.len()).any(|window| window == part)
}

/// Reads the document in etcd.
fn document(etcd: &Etcd, files: &Files) -> Document {
    Document::open(&files.key(), DOCUMENT, &etcd.value(DOCUMENT).expect("a value")).expect("a document")
}

/// Returns what must not be seen of a secret: its digits, its bytes, and one of its keys.
fn forms(secret: &Secret) -> Vec<Vec<u8>> {
    let digits = secret.digits();
    let byte = |at: usize| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).expect("digits");
    vec![digits.as_bytes().to_vec(), (0..32).map(byte).collect(), key_text(secret.key(1)).as_bytes().to_vec()]
}

/// Runs `tfo fleet ARGS`, which must succeed.
fn good(config: &str, args: &[&str]) -> String {
    let (is_good, text) = fleet(config, args);
    assert!(is_good, "tfo fleet {args:?}: {text}");
    text
}

/// Fingerprint of the current key in the kernel of a host.
fn current(host: &Host) -> String {
    host.run(|| fingerprint(kernel_keys().current.expect("a key")))
}

/// Fingerprints of all keys in the map of a host.
fn known(host: &Host) -> String {
    host.run(|| keys_status(IFACE)["keys"].to_string())
}

/// Cuts host `number` off from etcd, or joins it again.
fn cut(number: usize, is_cut: bool) {
    ip(&format!("link set h{number} {}", if is_cut { "down" } else { "up" }));
}

/// Starts etcd, and a fleet of `hosts` hosts with a secret. Hosts are called a, b, c and so on.
fn with_fleet(hosts: usize, test: impl FnOnce(Etcd, Files, Fleet, Vec<Running>, String) + Send) {
    sandbox(|| {
        let etcd = start_etcd();
        let files = Files::new(&etcd);
        let config = files.config("console", "v0");
        good(&config, &["init"]);
        let fleet = Fleet::start(hosts);
        let mut running = Vec::new();
        for (number, host) in fleet.hosts.iter().enumerate() {
            join(host, number);
            running.push(start(host, &files, NAMES[number]));
        }
        wait_for(&config, &in_step(hosts));
        test(etcd, files, fleet, running, config);
    });
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Standings of a fleet of `hosts` hosts that are all in step.
fn in_step(hosts: usize) -> Vec<&'static str> {
    ["a in_step", "b in_step", "c in_step", "d in_step", "e in_step", "f in_step"][..hosts].to_vec()
}

/// The first secret is made once, and nothing of it can be read in etcd's data.
#[test]
fn the_first_secret_is_made_once_and_sealed() {
    sandbox(|| {
        let etcd = start_etcd();
        let files = Files::new(&etcd);
        let config = files.config("a", "v0");
        assert!(status(&config)["generation"].is_null());
        assert_eq!(
            fleet(&config, &["init"]),
            (true, "the fleet has its first secret, generation 1\n".to_owned())
        );
        let (made, text) = fleet(&config, &["init"]);
        assert!(!made && text.contains("has a document already"), "{text}");
        assert_eq!(status(&config)["generation"], 1);
        good(&config, &["rotate"]);
        let document = document(&etcd, &files);
        assert_eq!((document.generation, document.former.len()), (3, 1));
        for member in 0..MEMBERS {
            let data = files_below(&etcd.data(member));
            assert!(data.iter().any(|file| has(file, DOCUMENT.as_bytes())), "it is there");
            let secrets = document.entries().flat_map(|entry| forms(&entry.secret)).chain([vec![0x4b; 16]]);
            for secret in secrets {
                assert!(!data.iter().any(|file| has(file, &secret[..12])));
            }
        }
    });
}

/// A host with the secret in a file has the keys of the hosts that have it from etcd, and both have those that
/// `tfo keys derive` shows.
#[test]
fn a_file_and_etcd_give_the_same_keys() {
    with_fleet(1, |etcd, files, hosts, _running, _config| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        private(&path, document(&etcd, &files).in_force.secret.digits().as_bytes());
        let path = path.to_str().unwrap();
        ip(&format!("link add {IFACE} type veth peer name v1"));
        let source = format!("secret:{path}");
        let _tfo = Running::start(&["-i", IFACE, "--keys", &source, "--rotate", "10s"]);
        wait_until_in_step(IFACE, "secret");
        // Between two looks, the keys may change by the clock.
        eventually("their kernels have the same keys", || {
            let here = kernel_keys();
            hosts.hosts[0].run(kernel_keys) == here && here.current.is_some() && here.backup.is_some()
        });
        eventually("they are those of the secret", || {
            let output = tfo(&["keys", "derive", path, "--rotate", "10s", "--json"]);
            let derived: Value = serde_json::from_slice(&output.stdout).unwrap();
            derived["current"] == fingerprint(kernel_keys().current.unwrap())
        });
    });
}

/// A host registers, is missed, starts without etcd with what it kept, and says so when etcd is back.
#[test]
fn a_host_goes_on_without_etcd() {
    with_fleet(1, |mut etcd, files, hosts, mut running, config| {
        let host = &hosts.hosts[0];
        let record = status(&config)["hosts"][0].clone();
        assert_eq!(record["current"], current(host));
        assert_eq!(record["interfaces"], serde_json::json!([IFACE]));
        assert_eq!(record["tfo"], env!("CARGO_PKG_VERSION"));
        running.pop().unwrap().end(Signal::SIGTERM);
        let gone = wait_for(&config, &["a gone"]);
        assert_eq!(gone["hosts"][0]["why"], "its lease is over: it is off, or cannot get to etcd");
        (0..MEMBERS).for_each(|member| etcd.kill_member(member));
        let (is_good, text) = fleet(&config, &["status"]);
        assert!(!is_good && text.contains("no member of etcd answers"), "{text}");

        let again = start(host, &files, "a");
        host.run(|| wait_until_in_step(IFACE, "secret"));
        let (kept, mode) = host.run(|| {
            let path = "/var/lib/tfo/fleet.sealed";
            (fs::read(path).unwrap(), fs::metadata(path).unwrap().permissions().mode() & 0o777)
        });
        assert_eq!(mode, 0o600);
        (0..MEMBERS).for_each(|member| etcd.start_member(member));
        etcd.wait_until_healthy();
        wait_for(&config, &["a in_step"]);
        let log = again.end(Signal::SIGTERM);
        assert!(log.contains("starting with generation 1, which this host has kept"), "{log}");
        assert!(log.contains("in touch with etcd again"), "{log}");
        for secret in forms(&document(&etcd, &files).in_force.secret) {
            assert!(!has(log.as_bytes(), &secret[..12]) && !has(&kept, &secret[..12]));
        }
    });
}

/// Values that were tampered with, that another key has sealed, and older ones are refused and said, and change nothing.
#[test]
fn a_writer_without_the_key_changes_nothing() {
    with_fleet(1, |etcd, files, hosts, mut running, config| {
        let host = &hosts.hosts[0];
        let old = etcd.value(DOCUMENT).unwrap();
        good(&config, &["rotate"]);
        wait_for(&config, &["a in_step"]);
        let new = etcd.value(DOCUMENT).unwrap();
        let mut tampered = new.clone();
        *tampered.last_mut().unwrap() ^= 1;
        let other = SealKey::new(Secret::random().unwrap());
        let foreign = document(&etcd, &files).emergency(1).unwrap().seal(&other, DOCUMENT).unwrap();
        let values: [&[u8]; 5] = [&tampered, &foreign, b"{\"version\":1}", &new[..40], &old];
        for value in values {
            etcd.put(DOCUMENT, value);
            thread::sleep(Duration::from_millis(700));
            println!("{}", fleet(&config, &["status"]).1);
        }
        // The document is the old one now, which the key of the fleet opens.
        assert!(etcd.value(DOCUMENT).unwrap() == old);
        // Records are refused, too, and replayed ones of other hosts.
        let record = etcd.value("/tfo/hosts/a").unwrap();
        etcd.put("/tfo/hosts/b", &record);
        let hosts_ = status(&config)["hosts"].clone();
        assert_eq!(hosts_[1]["standing"], "refused", "{hosts_}");
        etcd.ctl(&["del", "/tfo/hosts/b"]);

        let restore = config.clone();
        let (is_good, text) = host.run(move || fleet(&restore, &["restore"]));
        assert!(is_good && text.contains("generation 4: secret 2 is in force"), "{text}");
        let status = wait_for(&config, &["a in_step"]);
        assert_eq!(status["generation"], 4);
        let log = running.pop().unwrap().end(Signal::SIGTERM);
        assert_eq!(log.matches("the document in etcd is refused").count(), 5, "{log}");
        for said in ["was changed since", "not sealed by tfo", "generation 1 is older than 3"] {
            assert!(log.contains(said), "{said}: {log}");
        }
    });
}

/// A rotation waits for a host that is silent, and names it. If it is ended, the next one takes it up.
#[test]
fn a_rotation_waits_for_every_host() {
    with_fleet(3, |etcd, files, hosts, running, config| {
        let old = document(&etcd, &files).in_force.secret.fingerprint();
        running[1].signal(Signal::SIGSTOP);
        let began = Instant::now();
        let text = thread::scope(|scope| {
            let rotation = scope.spawn(|| fleet(&config, &["rotate", "--wait", "50s"]));
            eventually("it is to be learnt", || status(&config)["next"] == 2);
            let text = fleet(&config, &["status"]).1;
            assert!(text.contains("secret 2 is to be learnt"), "{text}");
            thread::sleep(Duration::from_secs(2));
            assert_eq!(status(&config)["in_force"], 1, "it waits");
            running[1].signal(Signal::SIGCONT);
            rotation.join().unwrap()
        });
        assert!(text.0, "{}", text.1);
        assert!(
            text.1.contains("waiting for b") && text.1.contains("3 hosts have secret 2 in force"),
            "{}",
            text.1
        );
        println!("{} after {:?}", text.1, began.elapsed());
        let after = wait_for(&config, &in_step(3));
        assert_ne!(after["fingerprint"], old);
        let keys: Vec<_> = hosts.hosts.iter().map(current).collect();
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");

        // One that is not waited for.
        running[2].signal(Signal::SIGSTOP);
        let (is_good, text) = fleet(&config, &["rotate", "--force"]);
        println!("{text}");
        assert!(!is_good && text.contains("not waiting any longer for c"), "{text}");
        assert!(text.contains("2 hosts have secret 4 in force"), "{text}");
        running[2].signal(Signal::SIGCONT);
        wait_for(&config, &in_step(3));
    });
}

/// In an emergency, hosts in reach forget the leaked keys at once: the test prints the time. One that is cut off is named, and
/// follows.
#[test]
fn an_emergency_reaches_every_host() {
    with_fleet(3, |_etcd, _files, hosts, mut running, config| {
        good(&config, &["rotate"]);
        wait_for(&config, &in_step(3));
        let leaked: Vec<String> = hosts.hosts.iter().map(current).collect();
        cut(2, true);
        let began = Instant::now();
        // On an idle machine, the hosts in reach take a fraction of a second.
        let (is_good, text) = fleet(&config, &["rotate", "--emergency", "--wait", "15s"]);
        let took = began.elapsed();
        println!("{text} after {took:?}");
        assert!(!is_good && text.contains("leaked secret, or has not said: c."), "{text}");
        assert!(text.contains("2 hosts have secret"), "{text}");
        for host in &hosts.hosts[..2] {
            let (current, known) = (current(host), known(host));
            assert!(!leaked.contains(&current));
            assert!(!known.contains(&leaked[0]), "{known}");
        }
        assert!(known(&hosts.hosts[2]).contains(&leaked[2]), "it does not know yet");
        cut(2, false);
        let began = Instant::now();
        wait_for(&config, &in_step(3));
        println!("it followed after {:?}", began.elapsed());
        assert!(!known(&hosts.hosts[2]).contains(&leaked[2]));
        // All in reach: it ends as soon as the last host has answered.
        let began = Instant::now();
        let text = good(&config, &["rotate", "--emergency", "--wait", "1m"]);
        println!("{text} after {:?}", began.elapsed());
        let log = running.pop().unwrap().end(Signal::SIGTERM);
        assert!(log.contains("all others have leaked"), "{log}");
    });
}

/// A host that was out of touch while etcd has compacted everything reads the document anew.
#[test]
fn a_host_follows_after_compaction() {
    with_fleet(2, |etcd, _files, _hosts, running, config| {
        running[0].signal(Signal::SIGSTOP);
        for _ in 0..3 {
            fleet(&config, &["rotate", "--force"]);
        }
        let output = etcd.ctl(&["get", DOCUMENT, "-w", "json"]);
        let got: Value = serde_json::from_slice(&output.stdout).unwrap();
        let revision = got["header"]["revision"].as_u64().unwrap().to_string();
        assert!(etcd.ctl(&["compact", &revision]).status.success());
        running[0].signal(Signal::SIGCONT);
        let status = wait_for(&config, &in_step(2));
        assert_eq!(status["generation"], 7);
        // The leader goes, and the fleet follows the next one.
        let mut etcd = etcd;
        let leader = etcd.leader();
        etcd.kill_member(leader);
        good(&config, &["rotate"]);
        wait_for(&config, &in_step(2));
        drop(running);
    });
}

/// A full disk of etcd lets nobody write. Hosts go on, and follow when there is room again.
#[test]
fn a_full_etcd_loses_nothing() {
    with_fleet(1, |mut etcd, _files, hosts, _running, config| {
        etcd.limit(1 << 20);
        wait_for(&config, &["a in_step"]);
        let junk = vec![b'x'; 1 << 19];
        eventually("it is full", || {
            let size = junk.len();
            etcd.try_put("/junk", &junk[..size]);
            String::from_utf8_lossy(&etcd.ctl(&["alarm", "list"]).stdout).contains("NOSPACE")
        });
        let (is_good, text) = fleet(&config, &["rotate", "--force"]);
        assert!(!is_good && text.contains("database space exceeded"), "{text}");
        let before = current(&hosts.hosts[0]);
        eventually("keys change by the clock", || current(&hosts.hosts[0]) != before);
        hosts.hosts[0].run(|| wait_until_in_step(IFACE, "secret"));
        etcd.limit(0);
        assert!(etcd.ctl(&["alarm", "disarm"]).status.success());
        wait_for(&config, &["a in_step"]);
        good(&config, &["rotate"]);
        wait_for(&config, &["a in_step"]);
    });
}

/// A host whose clock is an hour ahead is named. It learns, and loses no secret.
#[test]
fn a_wrong_clock_is_named() {
    with_fleet(2, |etcd, files, hosts, mut running, config| {
        running.pop().unwrap().kill();
        let path = files.config("b", IFACE);
        let late = hosts.hosts[1].run(move || {
            let running = Running::start_with_offset(3600, &["--config", &path]);
            eventually("tfo run is up", || tfo(&["status", "-i", IFACE]).status.success());
            running
        });
        eventually("its clock is named", || {
            let hosts = status(&config)["hosts"].clone();
            hosts[1]["standing"] == "behind" && hosts[1]["why"].to_string().contains("compare its clock")
        });
        good(&config, &["rotate"]);
        wait_for(&config, &["a in_step", "b behind"]);
        assert_eq!(document(&etcd, &files).outline().in_force, 2);
        assert_eq!(status(&config)["hosts"][1]["in_force"], 2);
        drop(late);
    });
}

/// With users in etcd, a host needs no more than the rights below the prefix, and a password in a file.
#[test]
fn a_user_with_a_password_suffices() {
    sandbox(|| {
        let etcd = start_etcd();
        let files = Files::new(&etcd);
        for args in [
            &["user", "add", "root:1"][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "fleet"],
            &["role", "grant-permission", "fleet", "--prefix=true", "readwrite", "/tfo/"],
            &["user", "add", "keeper:hidden"],
            &["user", "grant-role", "keeper", "fleet"],
            &["auth", "enable"],
        ] {
            let output = etcd.ctl(args);
            assert!(output.status.success(), "{args:?}: {output:?}");
        }
        let config = files.config("a", "v0");
        let (is_good, text) = fleet(&config, &["init"]);
        assert!(!is_good, "{text}");
        private(&files.path("password"), b"hidden\n");
        let text = fs::read_to_string(&config).unwrap();
        let password = format!("user = \"keeper\"\npassword_file = {:?}\nname = ", files.path("password"));
        private(Path::new(&config), text.replace("name = \"a\"", &(password + "\"a\"")).as_bytes());
        good(&config, &["init"]);
        ip("link add v0 type veth peer name v1");
        let running = Running::spawn(&["--config", &config]);
        wait_for(&config, &["a in_step"]);
        let log = running.end(Signal::SIGTERM);
        assert!(!log.contains("hidden") && !log.contains("WARN"), "{log}");
    });
}

/// Packets between hosts and etcd show neither names nor values. The status and the metrics of a host show its fleet.
#[test]
fn a_host_says_how_it_is_and_packets_say_nothing() {
    with_fleet(1, |mut etcd, files, hosts, mut running, config| {
        let wire = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL_PROTOCOLS))).unwrap();
        wire.set_recv_buffer_size(8 << 20).unwrap();
        wire.set_nonblocking(true).unwrap();
        let host = &hosts.hosts[0];
        running.pop().unwrap().end(Signal::SIGTERM);
        let path = files.config("a", IFACE);
        let text = fs::read_to_string(&path).unwrap();
        private(Path::new(&path), format!("metrics = \"127.0.0.1:9434\"\n{text}").as_bytes());
        running.push(host.run(move || Running::spawn(&["--config", &path])));
        wait_for(&config, &["a in_step"]);
        good(&config, &["rotate"]);
        wait_for(&config, &["a in_step"]);
        let (mut bytes, mut frame) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(length) = (&wire).read(&mut frame) {
            bytes.extend_from_slice(&frame[..length]);
        }
        assert!(bytes.len() > 10_000 && has(&bytes, &[10, 40, 0, 11]), "{} bytes", bytes.len());
        let document = document(&etcd, &files);
        for entry in document.entries() {
            assert!(forms(&entry.secret).iter().all(|form| !has(&bytes, &form[..12])));
        }
        assert!(!has(&bytes, b"/tfo/") && !has(&bytes, b"tfoS"));

        let status = || {
            let output = tfo(&["status", "-i", IFACE]);
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let shown = host.run(status);
        assert!(
            shown.contains("fleet        generation 3, secret 2 in force, in touch with etcd\n"),
            "{shown}"
        );
        let top = host.run(|| String::from_utf8_lossy(&tfo(&["top", "-i", IFACE]).stdout).into_owned());
        assert!(top.contains("fleet: generation 3, secret 2 in force, in touch with etcd\n"), "{top}");
        let page = host.run(|| {
            let output = tfo(&["report", "-i", IFACE, "--html", "-"]);
            String::from_utf8_lossy(&output.stdout).into_owned()
        });
        assert!(page.contains("Fleet: in step, generation 3, secret 2 in force, in touch with etcd."));
        let scrape = || scrape::Samples::now();
        let is = |samples: &scrape::Samples, name: &str, value: &str| {
            assert_eq!(samples.get(name), value, "{name}")
        };
        let samples = host.run(scrape);
        for (name, value) in [
            ("tfo_fleet_in_step", "1"),
            ("tfo_fleet_connected", "1"),
            ("tfo_fleet_lease", "1"),
            ("tfo_fleet_generation{state=\"taken\"}", "3"),
            ("tfo_fleet_generation{state=\"applied\"}", "3"),
            ("tfo_fleet_secret{state=\"learnt\"}", "2"),
            ("tfo_fleet_secret{state=\"in_force\"}", "2"),
            ("tfo_fleet_failures_total", "0"),
            ("tfo_fleet_refused_total", "0"),
        ] {
            is(&samples, name, value);
        }
        etcd.put(DOCUMENT, b"nonsense");
        eventually("it is refused", || {
            let samples = host.run(scrape);
            samples.get("tfo_fleet_refused_total") == "1" && samples.get("tfo_fleet_in_step") == "0"
        });
        (0..MEMBERS).for_each(|member| etcd.kill_member(member));
        eventually("it is out of touch", || host.run(scrape).get("tfo_fleet_connected") == "0");
        assert!(host.run(status).contains("OUT OF TOUCH with etcd"));
    });
}

/// Six hosts, three members of etcd and 300 connections a second that go to another host each time: the keys change by
/// the clock, the secret is replaced, etcd loses its leader, a host is cut off, all of etcd stops. No good cookie is
/// refused.
#[test]
fn no_good_cookie_is_refused() {
    with_fleet(6, |mut etcd, _files, hosts, running, config| {
        let show = |what: &str| println!("{what}:\n{}", fleet(&config, &["status"]).1);
        let before: Vec<_> = hosts.hosts.iter().map(|host| host.run(|| TcpExt::read().unwrap())).collect();
        let (stop, made, number) = (AtomicBool::new(false), Made::default(), AtomicUsize::new(0));
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                hosts.visit(300, &stop, &made, || {
                    // Steps that are odd multiples of a prime go to all hosts in no simple order.
                    number.fetch_add(7919, Ordering::Relaxed) / 5 % 6
                });
            });
            let first = current(&hosts.hosts[0]);
            eventually("keys change by the clock", || current(&hosts.hosts[0]) != first);
            wait_for(&config, &in_step(6));
            show("an ordinary rotation");

            println!("{}", good(&config, &["rotate"]));
            wait_for(&config, &in_step(6));
            show("the secret is replaced");

            let leader = etcd.leader();
            etcd.kill_member(leader);
            println!("{}", good(&config, &["rotate"]));
            wait_for(&config, &in_step(6));
            show("etcd has lost its leader, and the secret is replaced");

            cut(5, true);
            wait_for(&config, &["a in_step", "b in_step", "c in_step", "d in_step", "e in_step", "f gone"]);
            show("a host is cut off");
            let rotation = scope.spawn(|| fleet(&config, &["rotate", "--wait", "3m"]));
            thread::sleep(Duration::from_secs(if is_long() { 60 } else { 10 }));
            show("a host is cut off, and the secret is to be replaced");
            cut(5, false);
            let (is_good, text) = rotation.join().unwrap();
            println!("{text}");
            assert!(is_good && text.contains("waiting for f"), "{text}");
            wait_for(&config, &in_step(6));
            show("it is back, and has the new secret");

            (0..MEMBERS).for_each(|member| etcd.kill_member(member));
            thread::sleep(Duration::from_secs(15));
            println!("{}", fleet(&config, &["status"]).1);
            (0..MEMBERS).for_each(|member| etcd.start_member(member));
            etcd.wait_until_healthy();
            wait_for(&config, &in_step(6));
            show("all of etcd has stopped and started");
            println!("{}", good(&config, &["rotate"]));
            wait_for(&config, &in_step(6));
            thread::sleep(Duration::from_secs(3));
        });
        let mut translated = 0;
        for (host, before) in hosts.hosts.iter().zip(before) {
            let (counts, since) = host.run(move || (Counts::of(IFACE), TcpExt::read().unwrap() - before));
            translated += counts.class(Class::CookieRetired);
            println!(
                "current {} backup {} retired {} unknown {} PassiveFail {}",
                counts.class(Class::CookieCurrent),
                counts.class(Class::CookieBackup),
                counts.class(Class::CookieRetired),
                counts.class(Class::CookieUnknown),
                since.passive_fail
            );
            assert_eq!(counts.class(Class::CookieUnknown), 0, "a cookie that the host does not know");
            assert_eq!(since.passive_fail, 0, "a cookie that the kernel refuses");
        }
        let (all, early) = (made.all.load(Ordering::Relaxed), made.early.load(Ordering::Relaxed));
        println!("{all} connections, {early} with data in the SYN taken, {translated} cookies translated");
        assert!(all > 1000 && early >= all - 50, "{early} of {all}");
        drop(running);
    });
}
