//! `tfo check`: its findings in a real namespace, and the changes of `--fix`.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use aya::programs::XdpMode;
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};
use tfo_common::{cookie, keyring::Key, parse::LinkLayer, segment::Family, verdict::Mode};
use tfo_tests::{
    listener::Listener,
    netns::{
        IFACE, Running, eventually, failure, ip, key, mount_on, sandbox, server_and_client, tfo,
        tfo_as_nobody, xdp_on,
    },
};
use tfo_userspace::{
    dataplane::{LoadOptions, Object},
    kernel::{
        sysctl::{CLIENT, EVERY_LISTENER, KeySysctl, SERVER, SERVER_NO_COOKIE, read_mode, write_mode},
        tcp_ext::TcpExt,
    },
    lab::{
        client::{self, Syn},
        net::{Namespace, server, source},
        server::Listeners,
    },
    model::keys::{addresses, fingerprint, key_text},
};

/// Returns the output of `tfo check --json ARGS`. Panics unless the exit status matches the worst line.
fn check(args: &[&str]) -> Value {
    let output = tfo(&[&["check", "--json"], args].concat());
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {:?}", failure(&output)));
    let lines = report["checks"].as_array().expect("lines");
    let worst =
        ["fail", "warn", "ok"].into_iter().find(|status| lines.iter().any(|line| line["status"] == *status));
    assert_eq!(report["worst"], json!(worst));
    assert_eq!(output.status.code(), Some(i32::from(worst == Some("fail"))), "{report}");
    report
}

/// Returns the status and the finding of the check `name`.
fn line(report: &Value, name: &str) -> (String, String) {
    let mut lines = report["checks"].as_array().expect("lines").iter().filter(|line| line["name"] == name);
    let line = lines.next().unwrap_or_else(|| panic!("there is no {name} in {report}"));
    assert!(lines.next().is_none(), "{name} is there twice");
    // A finding other than "ok" has advice.
    assert_eq!(line["advice"].is_string(), line["status"] != "ok", "{line}");
    let text = |field: &str| line[field].as_str().expect("text").to_owned();
    (text("status"), text("found"))
}

/// Runs all checks, and returns the status and the finding of the check `name`.
fn found(name: &str) -> (String, String) {
    line(&check(&[]), name)
}

fn status(name: &str) -> String {
    found(name).0
}

fn set(sysctl: &str, value: &str) {
    fs::write(Path::new("/proc/sys/net").join(sysctl), value).expect("a namespace of our own");
}

#[test]
fn names_of_checks_are_stable() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let report = check(&["-i", "v0"]);
        let names: Vec<_> = report["checks"].as_array().unwrap().iter().map(|line| &line["name"]).collect();
        let expected = [
            "kernel",
            "btf",
            "privileges",
            "memory_lock",
            "cgroup2",
            "clock",
            "tcp_fastopen",
            "tcp_fastopen_key",
            "no_cookie",
            "tcp_syncookies",
            "listeners",
            "accept_backlog",
            "fast_open_queue",
            "cookies_refused",
            "client_fallback",
            "client",
            "syn_data",
            "xdp",
            "mtu",
            "vlan_tags",
        ];
        assert_eq!(names, expected);
        let text = String::from_utf8(tfo(&["check"]).stdout).unwrap();
        for name in &expected[..17] {
            assert!(text.lines().any(|line| line.split_whitespace().nth(1) == Some(name)), "{name}: {text}");
        }
    });
}

#[test]
fn fix_turns_fast_open_on_here_and_at_boot() {
    sandbox(|| {
        write_mode(EVERY_LISTENER).unwrap();
        let elsewhere = Namespace::new().unwrap();
        let before = elsewhere.run(read_mode).unwrap();
        assert_eq!(status("tcp_fastopen"), "fail");

        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        let file = folder.join("30-tcp_fastopen.conf");
        let fix = || {
            let output = tfo(&["check", "--fix", "--sysctl-dir", folder.to_str().unwrap()]);
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let all = EVERY_LISTENER | CLIENT | SERVER;
        let said = fix();
        let expected = format!("net.ipv4.tcp_fastopen: 1024 -> 1027\n{}: new\n    + # By", file.display());
        assert!(said.starts_with(&expected), "{said}");
        assert_eq!(read_mode().unwrap(), all, "the other bits stay");
        assert_eq!(elsewhere.run(read_mode).unwrap(), before, "another namespace is left alone");
        let written = fs::read_to_string(&file).unwrap();
        assert!(written.ends_with("\nnet.ipv4.tcp_fastopen = 1027\n"), "{written}");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(status("tcp_fastopen"), "ok");

        // A correct file is not written again.
        let inode = file.metadata().unwrap().ino();
        assert!(fix().starts_with("nothing to fix\n"));
        assert_eq!(file.metadata().unwrap().ino(), inode);

        // The change of another file is shown, and its other lines stay.
        fs::write(&file, "net.core.somaxconn=77\nnet.ipv4.tcp_fastopen=1\n").unwrap();
        let said = fix();
        for expected in [
            ": replaced\n",
            "- net.ipv4.tcp_fastopen=1\n",
            "- net.core.somaxconn=77\n",
            "+ net.core.somaxconn=77\n",
        ] {
            assert!(said.contains(expected), "{said}");
        }
        assert!(!said.contains(" -> 1027"), "the sysctl is as it should be: {said}");
        let written = fs::read_to_string(&file).unwrap();
        assert_eq!(written, "net.core.somaxconn=77\nnet.ipv4.tcp_fastopen = 1027\n");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left there");
    });
}

#[test]
fn fix_tells_json_what_it_changed() {
    sandbox(|| {
        write_mode(CLIENT).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        let report = check(&["--fix", "--sysctl-dir", folder]);
        let changes = report["changes"].as_array().unwrap();
        assert_eq!(changes[0], json!({"what": "net.ipv4.tcp_fastopen", "old": "1", "new": "3"}));
        assert_eq!(changes[1]["what"], format!("{folder}/30-tcp_fastopen.conf"));
        assert_eq!(changes[1]["old"], Value::Null);
        assert_eq!(changes.len(), 2);
        assert_eq!(line(&report, "tcp_fastopen").0, "ok", "it looks after the fix");
        assert_eq!(check(&["--fix", "--sysctl-dir", folder])["changes"], json!([]));
        assert_eq!(check(&[])["changes"], Value::Null, "nothing without --fix");
    });
}

#[test]
fn a_fix_that_cannot_be_made_is_an_error() {
    sandbox(|| {
        let before = read_mode().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("sysctl.d");
        let output = tfo(&["check", "--fix", "--sysctl-dir", missing.to_str().unwrap()]);
        let expected = format!("error: there is no folder {}: make it, or give ", missing.display());
        let (code, error) = failure(&output);
        assert!(code == Some(1) && error.starts_with(&expected), "{error}");
        assert!(output.stdout.is_empty() && !missing.exists(), "nothing is promised, nothing is made");
        assert_eq!(read_mode().unwrap(), before);

        let (code, error) = failure(&tfo(&["check", "--fix", "--sysctl-dir", "/proc"]));
        assert_eq!(code, Some(1));
        assert!(error.starts_with("error: cannot write /proc/30-tcp_fastopen.conf: "), "{error}");
        assert_eq!(tfo(&["check", "--sysctl-dir", "/tmp"]).status.code(), Some(2), "it is for --fix only");

        let before = read_mode().unwrap();
        let output = tfo_as_nobody(&["check", "--fix", "--sysctl-dir", "/proc/nowhere"]);
        let expected = "error: setting net.ipv4.tcp_fastopen takes root: run it with sudo\n";
        assert_eq!(failure(&output), (Some(1), expected.to_owned()));
        assert!(output.stdout.is_empty(), "nothing is promised");
        assert_eq!(read_mode().unwrap(), before);
    });
}

/// The usual folder is made if it is missing. A host without /etc/sysctl.d is not at fault.
#[test]
fn fix_makes_the_usual_folder() {
    sandbox(|| {
        mount_on("tmpfs", "/etc");
        write_mode(CLIENT).unwrap();
        let output = tfo(&["check", "--fix"]);
        assert!(output.status.success(), "{output:?}");
        let written = fs::read_to_string("/etc/sysctl.d/30-tcp_fastopen.conf").unwrap();
        assert!(written.ends_with("\nnet.ipv4.tcp_fastopen = 3\n"), "{written}");
    });
}

/// Each of the three ways is named, and the kernel really takes data by it.
#[test]
fn data_without_a_cookie_is_a_warning() {
    server_and_client(|client| {
        let server = server(Family::Ipv4);
        let listen = || Listener::on(&server.to_string()).fast_open(9);
        let send = || {
            let syn = Syn::new(1000, server.port(), 1).data(b"data");
            client.run(|| syn.send(source(Family::Ipv4, 1), server.ip())).unwrap();
        };
        let said = |way: &str| ("warn".to_owned(), format!("data is taken without a cookie: {way}"));
        let with_cookie = || ("ok".to_owned(), "data is taken with a cookie only".to_owned());
        let is_served = |what: &str| {
            let before = TcpExt::read().unwrap().passive;
            send();
            eventually(what, || TcpExt::read().unwrap().passive == before + 1);
        };
        let listener = listen().listen();
        assert_eq!(found("no_cookie"), with_cookie());

        write_mode(CLIENT | SERVER | SERVER_NO_COOKIE).unwrap();
        assert_eq!(found("no_cookie"), said("net.ipv4.tcp_fastopen has bit 0x200"));
        is_served("by the sysctl");
        write_mode(CLIENT | SERVER).unwrap();

        // The first way to the client, and one of IPv6 that nobody uses.
        ip(&format!("route add 198.19.0.0/24 via 198.18.0.2 dev {IFACE} fastopen_no_cookie 1"));
        ip(&format!("-6 route add 2001:db8:2::/64 dev {IFACE} fastopen_no_cookie 1"));
        let routes = said("fastopen_no_cookie on the route to 198.19.0.0/24, 2001:db8:2::/64");
        assert_eq!(found("no_cookie"), routes);
        is_served("by the route");
        ip(&format!("route del 198.19.0.0/24 dev {IFACE}"));
        ip(&format!("-6 route del 2001:db8:2::/64 dev {IFACE}"));
        assert_eq!(found("no_cookie"), with_cookie());

        drop(listener);
        let _holder = listen().no_cookie().held();
        let way = format!("TCP_FASTOPEN_NO_COOKIE on {server} (sleep)");
        eventually("only sleep holds it", || found("no_cookie") == said(&way));
        is_served("by the listener's option");
    });
}

#[test]
fn syn_cookies_for_everybody_end_fast_open() {
    sandbox(|| {
        write_mode(CLIENT | SERVER).unwrap();
        for (value, expected) in [("2", "fail"), ("1", "ok"), ("0", "ok")] {
            set("ipv4/tcp_syncookies", value);
            let report = check(&[]);
            assert_eq!(line(&report, "tcp_syncookies").0, expected);
            assert_eq!(report["worst"] == "fail", expected == "fail", "{report}");
        }
    });
}

#[test]
fn a_key_of_zeros_is_told_from_none() {
    sandbox(|| {
        write_mode(CLIENT | SERVER).unwrap();
        assert_eq!(found("tcp_fastopen_key"), ("warn".to_owned(), "none yet".to_owned()));
        let sysctl = KeySysctl::open().unwrap();
        sysctl.write(Key { k0: 0, k1: 0 }, None).unwrap();
        let _own = Listener::on("127.0.0.1:81").own_key([7; 16]).fast_open(5).held();
        assert_eq!(status("tcp_fastopen_key"), "warn", "nobody uses it");
        let _listener = Listener::on("127.0.0.1:80").fast_open(5).held();
        let (status, what) = found("tcp_fastopen_key");
        assert_eq!((status.as_str(), what.starts_with("all zero, and in force")), ("fail", true), "{what}");

        sysctl.write(key(1), Some(key(2))).unwrap();
        let (status, what) = found("tcp_fastopen_key");
        let expected = format!("current {}, backup {}", fingerprint(key(1)), fingerprint(key(2)));
        assert_eq!((status.as_str(), what), ("ok", expected));
        assert!(!check(&[]).to_string().contains(key_text(key(1)).split('-').next().unwrap()));
    });
}

#[test]
fn listeners_are_judged() {
    sandbox(|| {
        ip("link set lo up");
        write_mode(CLIENT | SERVER).unwrap();
        assert_eq!(found("listeners"), ("warn".to_owned(), "0 of 0 with Fast Open".to_owned()));
        let _off = Listener::on("127.0.0.1:80").backlog(0).held();
        assert_eq!(status("listeners"), "warn");
        let _on = Listener::on("127.0.0.1:81").fast_open(5).held();
        let expected = "1 of 2 with Fast Open; without: 127.0.0.1:80 (sleep)".to_owned();
        assert_eq!(found("listeners"), ("ok".to_owned(), expected));
        let _own = Listener::on("127.0.0.1:82").own_key([7; 16]).fast_open(5).held();
        let (status, what) = found("listeners");
        assert!(status == "warn" && what.contains("127.0.0.1:82: its own key"), "{what}");

        assert_eq!(self::status("accept_backlog"), "ok");
        let _waiting = std::net::TcpStream::connect("127.0.0.1:80").unwrap();
        let expected =
            ("warn".to_owned(), "full, so that connections are dropped: 127.0.0.1:80 (sleep)".to_owned());
        eventually("the queue of nobody is full", || found("accept_backlog") == expected);
    });
}

/// Sends the server a SYN with this cookie and data. The client never gets an answer.
fn forge(client: &Namespace, port: u16, cookie: [u8; 8]) {
    // The MAC address is not the client's, whose kernel would reset the unknown connection.
    ip(&format!("neigh replace {GATEWAY} lladdr 02:00:00:00:00:99 dev {IFACE}"));
    let server = server(Family::Ipv4);
    let syn = Syn::new(port, server.port(), 1).fast_open(&cookie).data(b"hello");
    client.run(|| syn.send(source(Family::Ipv4, 1), server.ip())).expect("raw sockets are for root");
}

/// Gateway through which the server reaches every address of the client.
const GATEWAY: &str = "198.18.0.2";

#[test]
fn a_full_fast_open_queue_and_refused_cookies_are_counted() {
    server_and_client(|client| {
        let address = server(Family::Ipv4);
        let _listener = Listener::on(&address.to_string()).fast_open(1).held();
        KeySysctl::open().and_then(|sysctl| sysctl.write(key(1), None)).unwrap();
        let valid =
            cookie::make(&key(1), &addresses(source(Family::Ipv4, 1), address.ip()).unwrap()).to_le_bytes();
        let report = check(&[]);
        assert_eq!(line(&report, "fast_open_queue").0, "ok");
        assert_eq!(line(&report, "cookies_refused").1, "no cookies yet");

        forge(&client, 1001, valid);
        eventually("the first is taken", || TcpExt::read().unwrap().passive == 1);
        assert_eq!(status("fast_open_queue"), "ok");
        assert_eq!(found("cookies_refused").1, "0 of 1 cookies were refused (0.0%)");
        // The connection stays in its handshake, so there is no room for the next.
        forge(&client, 1002, valid);
        eventually("the second finds the queue full", || TcpExt::read().unwrap().listen_overflow == 1);
        let (status, what) = found("fast_open_queue");
        assert!(status == "warn" && what.starts_with("full 1 times"), "{what}");
    });
}

#[test]
fn refused_cookies_are_a_share() {
    server_and_client(|client| {
        let _listener = Listener::on(&server(Family::Ipv4).to_string()).fast_open(100).held();
        KeySysctl::open().and_then(|sysctl| sysctl.write(key(1), None)).unwrap();
        forge(&client, 1001, [9; 8]);
        eventually("it is refused", || TcpExt::read().unwrap().passive_fail == 1);
        let expected = ("warn".to_owned(), "1 of 1 cookies were refused (100.0%)".to_owned());
        assert_eq!(found("cookies_refused"), expected);
    });
}

#[test]
fn clients_that_were_refused_are_reported() {
    server_and_client(|client| {
        let _servers = Listeners::start(&[server(Family::Ipv4)]).unwrap();
        let at_client = || client.run(|| Ok(found("client_fallback"))).unwrap();
        client.run(|| write_mode(CLIENT)).unwrap();
        let connect = || {
            client
                .run(|| client::fast_open(source(Family::Ipv4, 1), server(Family::Ipv4), b"hello"))
                .unwrap();
        };
        connect();
        assert_eq!(
            at_client(),
            ("ok".to_owned(), "no attempts from here yet".to_owned()),
            "it had no cookie"
        );
        connect();
        assert_eq!(at_client(), ("ok".to_owned(), "0 of 1 attempts from here failed (0.0%)".to_owned()));
        // The client still has its cookie.
        write_mode(0).unwrap();
        connect();
        assert_eq!(at_client(), ("warn".to_owned(), "1 of 2 attempts from here failed (50.0%)".to_owned()));
    });
}

#[test]
fn what_an_interface_can_do() {
    sandbox(|| {
        ip("link add v0 type veth peer name v1");
        let on = |interface: &str| check(&["-i", interface]);
        assert_eq!(line(&on("v0"), "xdp").0, "ok");
        assert_eq!(xdp_on("v0"), None, "nothing is attached to find out");
        assert_eq!(line(&on("v0"), "mtu"), ("ok".to_owned(), "1500: a frame fits into one page".to_owned()));
        ip("link set v0 mtu 9000");
        let jumbo = "9000: a frame lies in several pages, which the driver shows";
        assert_eq!(line(&on("v0"), "mtu"), ("ok".to_owned(), jumbo.to_owned()));
        ip("link set v0 mtu 1500");
        let (status, what) = line(&on("nope"), "xdp");
        assert!(status == "fail" && what.starts_with("there is no interface nope"), "{what}");

        // The loopback has no native XDP. Kernels before 6.3 do not tell.
        let (status, what) = line(&on("lo"), "xdp");
        let is_told = !what.contains("since Linux 6.3");
        assert_eq!(status, if is_told { "warn" } else { "ok" }, "{what}");

        let running = Running::start(&["-i", "v0", "--attach", "native"]);
        let expected = ("ok".to_owned(), "v0: tfo runs, native mode".to_owned());
        assert_eq!(line(&on("v0"), "xdp"), expected);
        running.kill();
        let (status, what) = line(&on("v0"), "xdp");
        assert!(status == "warn" && what.ends_with("without its controller"), "{what}");

        let options = LoadOptions::new(LinkLayer::Ethernet, Mode::Observe);
        let mut foreign = Object::load(&options, None).unwrap();
        foreign.program().unwrap().attach("v1", XdpMode::default()).unwrap();
        let (status, what) = line(&on("v1"), "xdp");
        let id = xdp_on("v1").unwrap();
        assert!(
            status == "fail" && what.contains(&format!("another XDP program already (id {id}")),
            "{what}"
        );
    });
}

#[test]
fn generic_mode_is_reported_if_the_driver_has_native_mode() {
    server_and_client(|_client| {
        let _running = Running::start(&["-i", IFACE, "--attach", "generic"]);
        let (status, what) = line(&check(&["-i", IFACE]), "xdp");
        assert!(status == "warn" && what.contains("tfo runs, generic mode"), "{what}");
    });
}

#[test]
fn cgroup2_is_found_where_it_is() {
    sandbox(|| {
        while let Some(mount) = kernel_cgroup2() {
            umount2(mount.as_str(), MntFlags::MNT_DETACH).unwrap();
        }
        assert_eq!(status("cgroup2"), "warn");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        mount_on("cgroup2", path);
        assert_eq!(found("cgroup2"), ("ok".to_owned(), path.to_owned()));
        umount2(path, MntFlags::MNT_DETACH).unwrap();
    });
}

/// Returns the mount point in this thread's mount namespace.
fn kernel_cgroup2() -> Option<String> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("/proc");
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(mount.split(' ').nth(4).expect("a mount point").to_owned())
}

#[test]
fn without_btf() {
    sandbox(|| {
        mount_on("tmpfs", "/sys/kernel/btf");
        assert_eq!(status("btf"), "fail");
    });
}

#[test]
fn without_root_the_rest_is_still_checked() {
    sandbox(|| {
        write_mode(CLIENT | SERVER).unwrap();
        let output = tfo_as_nobody(&["check", "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(line(&report, "privileges").0, "fail");
        assert_eq!(line(&report, "tcp_fastopen").0, "ok");
        let (status, what) = line(&report, "tcp_fastopen_key");
        assert!(status == "warn" && what.starts_with("unknown: "), "{what}");
    });
}
