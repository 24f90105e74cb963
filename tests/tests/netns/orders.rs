//! Lifetime of orders to hide, and of the confirmation of keys by a controller.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{mount::umount, sys::signal::Signal};
use serde_json::{Value, json};
use tfo_common::{class::Class, cookie, policy::Guard, segment::Family, verdict::Verdict};
use tfo_tests::{
    config::{Config, guarded},
    netns::{
        BPFFS, Counts, IFACE, Running, assert_clean, binary, eventually, failure, ip, key, mount_on, sandbox,
        server_and_client, set_keys, status, tfo, xdp_on,
    },
};
use tfo_userspace::{
    control::FOLDER,
    kernel::{sysctl::KeySysctl, tcp_ext::TcpExt},
    lab::{
        client::{Syn, fast_open},
        net::{Namespace, SERVERS, server, source},
        server::Listeners,
    },
    model::keys::addresses,
};

const WEB: &str = "[[service]]\nname = \"web\"\nports = [7413]\nmode = \"shield\"\n";
const MORE_ROOM: &str = "[maps]\nsources = 131072\n";

/// Runs `tfo ARGS`, which must succeed.
fn order(args: &[&str]) {
    let output = tfo(args);
    assert!(output.status.success(), "{args:?}: {:?}", failure(&output));
}

/// Returns what is hidden, by `tfo status`.
fn hidden() -> Value {
    status(IFACE)["hidden"].clone()
}

/// Returns the number of SYNs with Fast Open that the kernel's TCP has seen.
fn seen_by_the_kernel() -> u64 {
    let TcpExt { cookie_reqd, passive, passive_fail, .. } = TcpExt::read().unwrap();
    cookie_reqd + passive + passive_fail
}

/// Returns whether the kernel sees a client's request or cookie.
fn connect_is_seen(client: &Namespace) -> bool {
    let before = seen_by_the_kernel();
    client.run(|| fast_open(source(Family::Ipv4, 1), server(Family::Ipv4), b"GET /")).unwrap();
    seen_by_the_kernel() > before
}

/// Returns the text of `count` services on unused ports.
fn services(count: u16) -> String {
    (0..count).map(|n| format!("[[service]]\nname = \"s{n}\"\nports = [{}]\n", 10_000 + n)).collect()
}

#[test]
fn hidden_is_hidden_until_it_is_shown() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let config = Config::new(IFACE, WEB);
        let running = config.run();
        assert!(connect_is_seen(&client));
        order(&["hide", "--all"]);
        let assert_hidden = |way: &str| {
            assert_eq!(hidden(), json!(["all"]), "{way}");
            assert!(!connect_is_seen(&client), "{way}");
        };
        assert_hidden("the order");
        running.end(Signal::SIGTERM);
        assert_hidden("stop");
        let running = config.run();
        assert_hidden("start");
        running.kill();
        assert_hidden("kill -9");
        config.write(&format!("{WEB}{MORE_ROOM}"));
        let running = config.run();
        assert_hidden("other sizes");
        running.end(Signal::SIGTERM);
        config.write(&format!("{WEB}{}", services(100)));
        let running = config.run();
        assert_hidden("more services than fitted");
        // An order takes effect even in a mode that changes nothing.
        config.write("[[service]]\nname = \"web\"\nports = [7413]\n");
        order(&["reload"]);
        assert_hidden("reload into observe");
        running.end(Signal::SIGTERM);
        // As after a reboot, nothing is left but files.
        umount(BPFFS).unwrap();
        mount_on("bpf", BPFFS);
        eventually("the program is gone with its link", || xdp_on(IFACE).is_none());
        assert!(connect_is_seen(&client));
        config.write(WEB);
        let running = config.run();
        assert_hidden("reboot");
        order(&["show", "--all"]);
        assert_eq!(hidden(), json!([]));
        assert!(connect_is_seen(&client));
        running.kill();
        let running = config.run();
        assert_eq!(hidden(), json!([]), "shown is shown");
        running.end(Signal::SIGINT);
        assert_clean(IFACE);
        let orders = fs::read_dir("/var/lib/tfo/orders").unwrap();
        assert_eq!(orders.count(), 0);
    });
}

/// An order for an absent service waits for a service of that name.
#[test]
fn an_order_for_a_service_waits_for_it() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let config = Config::new(IFACE, WEB);
        let running = config.run();
        order(&["hide", "--service", "web"]);
        assert!(!connect_is_seen(&client));
        config.write(&WEB.replace("web", "shop"));
        order(&["reload"]);
        assert!(connect_is_seen(&client), "another service");
        config.write(WEB);
        order(&["reload"]);
        assert!(!connect_is_seen(&client));
        assert_eq!(hidden(), json!([{"service": "web"}]));
        // Without the service, the order can be taken back once, but not twice.
        config.write(&WEB.replace("web", "shop"));
        order(&["reload"]);
        order(&["show", "--service", "web"]);
        let (code, error) = failure(&tfo(&["show", "--service", "web"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("there is no service web"), "{error}");
        config.write(WEB);
        order(&["reload"]);
        assert!(connect_is_seen(&client));
        running.end(Signal::SIGINT);
    });
}

#[test]
fn an_interface_made_anew_has_its_orders() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let _running = Running::start(&["-i", "v0", "--mode", "shield"]);
        order(&["hide", "--source", "192.0.2.0/24"]);
        let start = Instant::now();
        ip("link del v0");
        eventually("it is noticed", || status("v0")["attached"] == false);
        ip("link add v0 type veth peer name v1");
        let made = Instant::now();
        eventually("it is attached again", || xdp_on("v0").is_some());
        println!(
            "an interface made anew is attached after {:.0?} ({:.0?} in all)",
            made.elapsed(),
            start.elapsed()
        );
        assert_eq!(status("v0")["hidden"], json!([{"source": "192.0.2.0/24"}]));
    });
}

/// Cookies that can't be judged pass: the controller is stopped, and the kernel has another key.
#[test]
fn shed_drops_no_good_cookie_while_nobody_confirms_the_keys() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let guards = format!("{WEB}shed = {{ limit = \"1/h\", burst = 1, drop = true }}\n");
        let running = Config::new(IFACE, &guards).run();
        set_keys(IFACE, key(1), None);
        let from = |number: u16| source(Family::Ipv4, number);
        let to = server(Family::Ipv4);
        let send = |number: u16, by: u32| {
            let cookie = cookie::make(&key(by), &addresses(from(number), to.ip()).unwrap()).to_le_bytes();
            let syn = Syn::new(5000 + number, to.port(), u32::from(number) << 8).fast_open(&cookie);
            client.run(|| syn.data(b"GET /").send(from(number), to.ip())).unwrap();
        };
        let unknown = |verdict| Counts::of(IFACE).verdict(Class::CookieUnknown, verdict);
        // Forged cookies are dropped while the keys are confirmed.
        (1..5).for_each(|number| send(number, 9));
        eventually("they are dropped", || unknown(Verdict::Drop) >= 3);
        running.signal(Signal::SIGSTOP);
        KeySysctl::open().unwrap().write(key(2), None).unwrap();
        // The wait is five seconds after the last confirmation, and one more for a confirmation in progress.
        thread::sleep(Duration::from_secs(6));
        let (passive, dropped) = (TcpExt::read().unwrap().passive, unknown(Verdict::Drop));
        (100..120).for_each(|number| send(number, 2));
        eventually("all are served", || TcpExt::read().unwrap().passive == passive + 20);
        assert_eq!(unknown(Verdict::Drop), dropped, "none is dropped");
        running.signal(Signal::SIGCONT);
        eventually("the keys are followed", || status(IFACE)["keys"]["in_step"] == true);
        eventually("forged ones are dropped again", || {
            let before = unknown(Verdict::Drop);
            (200..204).for_each(|number| send(number, 9));
            unknown(Verdict::Drop) > before
        });
        assert!(guarded(IFACE, Guard::Shed).acted > 0);
    });
}

/// A client that gave up waiting for a stopped controller was told so. Its order is not carried out later.
#[test]
fn an_order_that_was_given_up_is_not_carried_out() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let running = Running::start(&["-i", "v0", "--mode", "shield"]);
        running.signal(Signal::SIGSTOP);
        let (code, error) = failure(&tfo(&["hide", "--all"]));
        assert_eq!(code, Some(1));
        assert!(error.contains("no answer") && error.contains("is it stopped?"), "{error}");
        running.signal(Signal::SIGCONT);
        // When it answers this order, it has read the earlier one, too.
        order(&["hide", "--source", "192.0.2.1"]);
        assert_eq!(status("v0")["hidden"], json!([{"source": "192.0.2.1/32"}]));
    });
}

/// Connects to the socket of the attachment, in a folder of root's.
fn socket() -> UnixStream {
    let sockets: Vec<_> = fs::read_dir(FOLDER).unwrap().flatten().map(|entry| entry.path()).collect();
    let [path] = &sockets[..] else { panic!("{sockets:?}") };
    UnixStream::connect(path).unwrap()
}

#[test]
fn invalid_requests_are_refused() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let running = Running::start(&["-i", "v0"]);
        for (request, expected) in [
            (r#"{"version":9,"deadline_ns":1,"order":"reload"}"#, "understands version 1"),
            (
                r#"{"version":1,"deadline_ns":18446744073709551615,"order":"dance"}"#,
                "does not understand that request",
            ),
            (r#"{"version":1,"deadline_ns":1,"order":"reload"}"#, "came too late"),
            ("reload", "no request"),
        ] {
            let mut socket = socket();
            socket.write_all(request.as_bytes()).unwrap();
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).unwrap();
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["version"], 1);
            assert!(
                answer["failed"].as_str().is_some_and(|why| why.contains(expected)),
                "{request}: {answer}"
            );
        }
        running.end(Signal::SIGINT);
        assert_eq!(fs::read_dir(FOLDER).unwrap().count(), 0, "the socket is gone");
    });
}

/// An abstract socket, which any user can make, has no effect. The first tfo used one.
#[test]
fn a_stranger_with_the_name_disarms_nothing() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let address = SocketAddr::from_abstract_name("tfo/v0").unwrap();
        let _squatter = UnixListener::bind_addr(&address).unwrap();
        let _running = Running::start(&["-i", "v0", "--mode", "shield"]);
        order(&["hide", "--all"]);
        assert_eq!(status("v0")["hidden"], json!(["all"]));
        // Without the folder, no orders can be given.
        mount_on("tmpfs", "/run");
        let (code, error) = failure(&tfo(&["show", "--all"]));
        assert_eq!(code, Some(3));
        assert!(error.contains("no controller runs on"), "{error}");
        assert_eq!(status("v0")["hidden"], json!(["all"]));
    });
}

/// Two network namespaces and two BPF file systems, with interfaces of the same name.
#[test]
fn orders_reach_the_controller_of_their_attachment() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let here = Running::start(&["-i", "v0", "--mode", "shield"]);
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().display().to_string();
        mount_on("bpf", &elsewhere);
        let there = Namespace::new().unwrap();
        let other = |args: &[&str]| tfo(&[&["--bpffs", &elsewhere], args].concat());
        let running = there
            .run(|| {
                ip("link add v0 type veth peer name v1");
                let running = Running::spawn(&["--bpffs", &elsewhere, "-i", "v0", "--mode", "shield"]);
                eventually("it is up", || other(&["status", "-i", "v0"]).status.success());
                Ok(running)
            })
            .unwrap();
        order(&["hide", "--all"]);
        assert!(other(&["hide", "--source", "192.0.2.1"]).status.success());
        let hidden = |output: std::process::Output| -> Value {
            let line: Value = serde_json::from_slice(&output.stdout).unwrap();
            line["hidden"].clone()
        };
        assert_eq!(hidden(tfo(&["hide", "--list", "--json"])), json!(["all"]));
        assert_eq!(hidden(other(&["hide", "--list", "--json"])), json!([{"source": "192.0.2.1/32"}]));
        // Each order stays with the interface that it was given for.
        here.end(Signal::SIGTERM);
        running.end(Signal::SIGTERM);
        let _here = Running::start(&["-i", "v0"]);
        assert_eq!(hidden(tfo(&["hide", "--list", "--json"])), json!(["all"]));
        assert!(other(&["unload"]).status.success());
        umount(dir.path()).unwrap();
    });
}

/// Files in a folder that another user could have written are not used.
#[test]
fn a_foreign_pin_folder_is_refused() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let ours = Path::new(BPFFS).join("tfo");
        for prepare in ["mkdir -m 777 $0", "mkdir -m 700 $0 && chown 65534 $0"] {
            let status = Command::new("sh").args(["-c", prepare]).arg(&ours).status().unwrap();
            assert!(status.success());
            let (code, error) = failure(&tfo(&["run", "-i", "v0"]));
            assert_eq!(code, Some(1), "{error}");
            assert!(error.contains("may be somebody else's"), "{error}");
            fs::remove_dir_all(&ours).unwrap();
        }
    });
}

/// An emergency reaches each program through its controller, or directly if it has none.
#[test]
fn an_emergency_reaches_every_map() {
    sandbox(|| {
        for pair in 0..2 {
            ip(&format!("link add a{pair} type veth peer name b{pair}"));
        }
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("keys.json").display().to_string();
        let random = ["--keys", "random", "--rotate", "1w", "--key-state", &state, "--mode", "accelerate"];
        let mut first = vec!["-i", "a0", "-i", "a1"];
        first.extend(random);
        let first = Running::start(&first);
        let current = |interface: &str| status(interface)["keys"]["current"].clone();
        eventually("it has made a key", || current("a0").is_string() && current("a1") == current("a0"));
        let leaked = current("a0");
        let knows =
            |interface: &str| status(interface)["keys"].to_string().contains(leaked.as_str().unwrap());
        // a1 goes to another controller, and b0 to a third one, which is stopped. b1 has no controller.
        order(&["unload", "-i", "a1"]);
        let second = Running::start(&["-i", "a1", "--mode", "accelerate"]);
        let third = Running::start(&["-i", "b0", "--mode", "accelerate"]);
        Running::start(&["-i", "b1", "--mode", "accelerate"]).end(Signal::SIGTERM);
        assert!(["a0", "a1", "b0", "b1"].into_iter().all(knows));
        third.signal(Signal::SIGSTOP);
        let (code, error) = failure(&tfo(&["keys", "rotate", "--emergency"]));
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains("b0: its map may still contain old keys"), "{error}");
        assert_eq!(["a0", "a1", "b0", "b1"].map(knows), [false, false, true, false], "{error}");
        third.signal(Signal::SIGCONT);
        let (code, error) = failure(&tfo(&["keys", "rotate", "--emergency"]));
        assert_eq!(code, Some(0), "{error}");
        assert_eq!(["a0", "a1", "b0", "b1"].map(knows), [false; 4]);
        drop((first, second));
    });
}

/// Connections can't be followed in a container whose cgroup namespace hides the root. That is logged.
#[test]
fn a_cgroup_namespace_hides_the_root() {
    use tfo_userspace::kernel::cgroup::Cgroup2;
    sandbox(|| {
        let Cgroup2::Root(root) = Cgroup2::find().unwrap() else { panic!("this host has a cgroup2") };
        let part = root.join(format!("tfo-test-{}", std::process::id()));
        fs::create_dir(&part).unwrap();
        // This is another process, since the tests must stay in their cgroup.
        let script = "echo $$ > $1/cgroup.procs; exec unshare --cgroup --mount sh -c '\
                      while umount -l /sys/fs/cgroup 2>/dev/null; do :; done; mount -t cgroup2 none /sys/fs/cgroup; \
                      ip link add v0 type veth peer name v1; $0 check; \
                      timeout -s INT 5 $0 run --config /run/c.toml' $0";
        fs::write(
            "/run/c.toml",
            "interfaces = [\"v0\"]\n[[service]]\nname = \"web\"\nports = [1]\nmode = \"shield\"\nonce = true\n",
        )
        .unwrap();
        let output = Command::new("sh").args(["-c", script]).arg(binary()).arg(&part).output().unwrap();
        eventually("nothing runs there", || fs::remove_dir(&part).is_ok());
        let (_, log) = failure(&output);
        let checked = String::from_utf8_lossy(&output.stdout);
        let expected = "shows a part of the hierarchy only";
        assert!(checked.contains(expected), "{checked}{log}");
        assert!(log.contains(expected) && log.contains("`once` protects nothing"), "{log}");
    });
}

/// A shell of a service starts tfo in the background. SIGTERM leaves everything in place.
#[test]
fn a_stop_leaves_everything_and_an_unload_nothing() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let running = Running::start(&["-i", "v0"]);
        let before = (xdp_on("v0"), Counts::of("v0").field("since").clone());
        let log = running.end(Signal::SIGTERM);
        assert!(log.contains("the program stays attached"), "{log}");
        assert_eq!(status("v0")["controller"], false);
        assert_eq!((xdp_on("v0"), Counts::of("v0").field("since").clone()), before);
        let mut child = Command::new(binary());
        let child = child.args(["status"]).stdout(Stdio::piped()).output().unwrap();
        assert_eq!(child.status.code(), Some(3), "nobody is in charge");
        let text = String::from_utf8(child.stdout).unwrap();
        assert!(text.contains("controller   none"), "{text}");
        let running = Running::start(&["-i", "v0"]);
        assert_eq!(status("v0")["pid"], running.id());
        assert_eq!(Counts::of("v0").field("since").clone(), before.1);
        order(&["unload"]);
        drop(running);
        assert_clean("v0");
    });
}
