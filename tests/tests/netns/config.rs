//! Configuration file: valid files take effect, wrong ones change nothing.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    thread,
};

use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use serde_json::Value;
use tfo_common::segment::Family;
use tfo_tests::{
    config::Config,
    netns::{
        BPFFS, Counts, IFACE, Running, StopOnDrop, assert_clean, binary, eventually, failure, ip, sandbox,
        server_and_client, tfo, tfo_as_nobody, xdp_on,
    },
    scrape::Samples,
};
use tfo_userspace::{
    dataplane::pins::Bpffs,
    lab::{
        client::Syn,
        net::{Namespace, server, source},
    },
};

/// Returns the text of a service.
fn on_ports(name: &str, ports: &str) -> String {
    format!("[[service]]\nname = \"{name}\"\nports = [{ports}]\n")
}

/// Sends a SYN to `port`, and waits until it is counted, so that none is lost.
fn send(client: &Namespace, port: u16) {
    static FROM: AtomicU16 = AtomicU16::new(4000);
    let from = FROM.fetch_add(1, Ordering::Relaxed);
    let before = Counts::of(IFACE).total();
    let [source, server] = [source(Family::Ipv4, 1), server(Family::Ipv4).ip()];
    client.run(|| Syn::new(from, port, 1).send(source, server)).unwrap();
    eventually("it is counted", || Counts::of(IFACE).total() == before + 1);
}

/// Returns the SYNs of each service, in the order of the output.
fn by_service() -> Vec<(String, u64)> {
    let counts = Counts::of(IFACE);
    let services = counts.field("services").as_array().unwrap();
    let packets = |service: &Value| {
        service["syn"].as_array().unwrap().iter().map(|row| row["packets"].as_u64().unwrap()).sum()
    };
    services.iter().map(|service| (service["name"].as_str().unwrap().to_owned(), packets(service))).collect()
}

fn assert_by_service(expected: &[(&str, u64)]) {
    let expected: Vec<_> = expected.iter().map(|(name, packets)| ((*name).to_owned(), *packets)).collect();
    assert_eq!(by_service(), expected);
}

#[test]
fn a_file_says_everything() {
    server_and_client(|client| {
        ip("link set lo up");
        let more = "attach = \"generic\"\nmetrics = \"127.0.0.1:9434\"\n[keys]\nsource = \"random\"\nrotate = \"10m\"\n";
        let file = Config::new(IFACE, "");
        let state = file.dir().join("keys.json");
        file.write(&format!("{more}state = {state:?}\n{}", on_ports("web", "80, \"8000-8010\"")));
        let tfo_run = file.run();
        for port in [80, 8000, 8010, 8011, 443] {
            send(&client, port);
        }
        assert_by_service(&[("other", 2), ("web", 3)]);
        assert_eq!(Counts::of(IFACE).field("attach"), "generic");
        assert_eq!(Counts::of(IFACE).field("mode"), "observe");
        let keys = tfo_tests::netns::keys_status(IFACE);
        assert_eq!((&keys["source"], &keys["rotate"]), (&"random".into(), &600.into()), "{keys}");
        assert!(state.exists());
        let attached = format!("tfo_xdp_attached{{interface=\"{IFACE}\",mode=\"generic\"}}");
        assert_eq!(Samples::now().get(&attached), "1");
        tfo_run.end(Signal::SIGINT);
        assert_clean(IFACE);
    });
}

/// Reloads by request and by signal. The counts stay and continue.
#[test]
fn services_change_while_it_runs() {
    server_and_client(|client| {
        let (web, dns, mail) = (on_ports("web", "80"), on_ports("dns", "53"), on_ports("mail", "25"));
        let file = Config::new(IFACE, &web);
        let tfo_run = file.run();
        [80, 80, 53].into_iter().for_each(|port| send(&client, port));
        assert_by_service(&[("other", 1), ("web", 2)]);

        file.write(&format!("{web}{dns}"));
        let reload = tfo(&["reload"]);
        let said = format!("{IFACE}: {}: 2 services on 2 ports; no protections\n", file.path());
        assert_eq!(String::from_utf8_lossy(&reload.stdout), said, "{:?}", failure(&reload));
        [80, 53].into_iter().for_each(|port| send(&client, port));
        assert_by_service(&[("other", 1), ("web", 3), ("dns", 1)]);

        file.write(&format!("{mail}{dns}"));
        tfo_run.signal(Signal::SIGHUP);
        eventually("it is read again", || by_service().iter().any(|(name, _)| name == "mail"));
        [80, 53, 25, 25].into_iter().for_each(|port| send(&client, port));
        assert_by_service(&[("other", 2), ("dns", 2), ("mail", 2), ("removed", 3)]);

        let log = tfo_run.end(Signal::SIGINT);
        assert_eq!(log.matches("read again").count(), 2, "{log}");
        assert_clean(IFACE);
    });
}

#[test]
fn an_interface_that_comes_back_has_what_was_read_last() {
    sandbox(|| {
        let add = format!("link add {IFACE} type veth peer name v1");
        ip(&add);
        let (web, dns) = (on_ports("web", "80"), on_ports("dns", "53"));
        let file = Config::new(IFACE, &web);
        let _tfo = file.run();
        file.write(&dns);
        assert!(tfo(&["reload", "-i", IFACE]).status.success());
        ip(&format!("link del {IFACE}"));
        eventually("it is seen to be gone", || !tfo(&["status"]).status.success());
        ip(&add);
        eventually("it is back", || tfo(&["status"]).status.success());
        assert_by_service(&[("other", 0), ("dns", 0)]);
    });
}

/// Two interfaces, of which the second refuses a change after the first has made it. The first one is restored, and
/// neither loses counts.
#[test]
fn several_interfaces_change_together_or_not_at_all() {
    const SECOND: &str = "tfo-second";
    server_and_client(|client| {
        ip(&format!("link add {SECOND} type veth peer name v1"));
        ip(&format!("link set {SECOND} up"));
        // The first generation of the first interface had maps for many services.
        let many: String = (1..=100).map(|n| on_ports(&format!("s{n}"), &(1000 + n).to_string())).collect();
        let earlier = Config::new(IFACE, &many).run();
        send(&client, 1100);
        earlier.kill();

        let (web, dns) = (on_ports("web", "80"), on_ports("dns", "53"));
        let config = Config::of_several(&[IFACE, SECOND], &format!("{web}{dns}"));
        let tfo_run = config.run();
        [80, 80, 53, 1001].into_iter().for_each(|port| send(&client, port));
        let before = by_service();
        let expected = [("other", 1), ("web", 2), ("dns", 1), ("removed", 1)];
        assert_by_service(&expected);
        config.write(&format!("{}{many}", on_ports("web", "80, 53")));
        // All numbers of generations are used up, so that the program can be loaded, but not be put in force.
        let last = Bpffs::new(Path::new(BPFFS)).pins(SECOND).dir().join(u32::MAX.to_string());
        fs::create_dir(&last).unwrap();
        let program = xdp_on(IFACE);
        let (code, error) = failure(&tfo(&["reload", "-i", IFACE]));
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains("no number is left"), "{error}");
        assert_eq!(xdp_on(IFACE), program, "the first has gone back");
        fs::remove_dir(&last).unwrap();
        assert_eq!(by_service(), before);
        [80, 53, 1001].into_iter().for_each(|port| send(&client, port));
        let of = |before: &[(String, u64)], name: &str| {
            before.iter().find(|(service, _)| service == name).map_or(0, |(_, packets)| *packets)
        };
        for name in ["web", "dns", "other"] {
            assert_eq!(of(&by_service(), name), of(&before, name) + 1, "{name}");
        }

        // A change that both accept takes effect.
        config.write(&dns);
        assert!(tfo(&["reload", "-i", SECOND]).status.success());
        for interface in [IFACE, SECOND] {
            let names = Counts::of(interface);
            let names = names.field("services").as_array().unwrap().iter().map(|it| it["name"].clone());
            assert!(names.into_iter().all(|name| name != "web"), "{interface}");
        }
        tfo_run.end(Signal::SIGINT);
        [IFACE, SECOND].iter().for_each(|interface| assert_clean(interface));
    });
}

/// SYNs during a change that is undone are counted as `removed`.
#[test]
fn what_a_change_that_is_undone_has_counted_is_kept() {
    const SECOND: &str = "tfo-second";
    server_and_client(|client| {
        ip(&format!("link add {SECOND} type veth peer name v1"));
        ip(&format!("link set {SECOND} up"));
        let config = Config::of_several(&[IFACE, SECOND], &on_ports("web", "80"));
        let _tfo = config.run();
        config.write(&on_ports("mail", "25"));
        fs::create_dir(Bpffs::new(Path::new(BPFFS)).pins(SECOND).dir().join(u32::MAX.to_string())).unwrap();
        let stop = AtomicBool::new(false);
        let [source, server] = [source(Family::Ipv4, 1), server(Family::Ipv4).ip()];
        let fire = || {
            while !stop.load(Ordering::Relaxed) {
                Syn::new(4000, 25, 1).send(source, server)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            scope.spawn(|| client.run(fire).unwrap());
            let _stop = StopOnDrop(&stop);
            eventually("a SYN comes in between", || {
                assert_eq!(tfo(&["reload"]).status.code(), Some(1));
                by_service().iter().any(|(name, packets)| name == "removed" && *packets > 0)
            });
        });
        let of_services: u64 = by_service().iter().map(|(_, packets)| packets).sum();
        assert_eq!(of_services, Counts::of(IFACE).total());
    });
}

/// The last good configuration stays, whichever way the file is read again.
#[test]
fn a_file_that_is_wrong_changes_nothing() {
    server_and_client(|client| {
        let web = on_ports("web", "80");
        let file = Config::new(IFACE, &web);
        let tfo_run = file.run();
        send(&client, 80);

        let path = file.path();
        let both = on_ports("dns", "53") + &on_ports("web", "0,\n53");
        let none = "cannot read the configuration";
        let running = "while tfo runs, these can't be changed: attach, keys.rotate";
        for (content, expected) in [
            (
                Some(both.as_str()),
                vec![format!("{path}:7: service.ports: 0 is"), format!("{path}:8: port 53 ")],
            ),
            (Some("[[service]"), vec![format!("{path}:2: ")]),
            (Some("attach = \"generic\"\nkeys.rotate = \"10m\""), vec![format!("{path}: {running}")]),
            (None, vec![format!("{none} {path}: No such file")]),
        ] {
            match content {
                Some(content) => file.write(content),
                None => fs::remove_file(&path).unwrap(),
            }
            let (code, error) = failure(&tfo(&["reload"]));
            assert_eq!(code, Some(1), "{error}");
            for line in &expected {
                assert!(error.contains(line), "{line}: {error}");
            }
            assert_eq!(error.lines().count(), expected.len(), "{error}");
            assert_by_service(&[("other", 0), ("web", 1)]);
        }
        file.write(&both);
        tfo_run.signal(Signal::SIGHUP);
        // Requests are handled one after the other, and so are signals.
        assert_eq!(tfo(&["reload"]).status.code(), Some(1));
        send(&client, 80);
        send(&client, 53);
        assert_by_service(&[("other", 1), ("web", 2)]);

        // A corrected file takes effect.
        file.write(&on_ports("web", "80, 53"));
        assert!(tfo(&["reload"]).status.success());
        send(&client, 53);
        assert_by_service(&[("other", 1), ("web", 3)]);
        let log = tfo_run.end(Signal::SIGINT);
        assert!(
            log.contains("the configuration is not changed: ") && log.contains(&format!("{path}:8: ")),
            "{log}"
        );
    });
}

#[test]
fn a_start_with_a_file_that_is_wrong_touches_nothing() {
    sandbox(|| {
        ip(&format!("link add {IFACE} type veth peer name v1"));
        let file = Config::new(IFACE, "prot = 1\n[[service]]");
        let path = file.path();
        let (code, error) = failure(&tfo(&["run", "--config", &path]));
        assert_eq!(code, Some(1));
        let lines: Vec<_> = error.lines().collect();
        let expected = [format!("error: {path}:2: "), format!("{path}:3: "), format!("{path}:3: ")];
        assert!(
            lines.len() == 3 && lines.iter().zip(expected).all(|(it, start)| it.starts_with(&start)),
            "{error}"
        );
        assert_clean(IFACE);
    });
}

/// Runs `tfo ARGS`, and kills it after 20 seconds.
fn tfo_in_time(args: &[&str]) -> Output {
    Command::new("timeout").args(["-s", "KILL", "20"]).arg(binary()).args(args).output().unwrap()
}

/// Start, check and reload refuse files that other users could have written, and files that are not regular.
#[test]
fn only_a_regular_file_of_root_or_ours_is_read() {
    sandbox(|| {
        ip(&format!("link add {IFACE} type veth peer name v1"));
        let good = Config::new(IFACE, "");
        let running = good.run();
        let good = good.path();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let [fifo, writable, foreign, folder] = ["fifo", "writable", "foreign", "folder"].map(at);
        mkfifo(fifo.as_str(), Mode::from_bits_truncate(0o600)).unwrap();
        fs::create_dir(&folder).unwrap();
        for file in [&writable, &foreign] {
            fs::copy(&good, file).unwrap();
        }
        let anybody = fs::Permissions::from_mode(0o646);
        fs::set_permissions(&writable, anybody.clone()).unwrap();
        chown(&foreign, Some(1234), None).unwrap();
        for (path, why) in [
            (fifo.as_str(), "it is a pipe: give --config a regular file".to_owned()),
            ("/dev/null", "it is a device: give --config a regular file".to_owned()),
            (&folder, "it is a folder: give --config a regular file".to_owned()),
            (&writable, format!("anybody may write to it: `chmod o-w {writable}`")),
            (&foreign, format!("it belongs to user 1234, who could change it: `chown root {foreign}`")),
        ] {
            let expected = format!("error: cannot read the configuration {path}: {why}\n");
            for command in ["run", "check"] {
                let refused = tfo_in_time(&[command, "--config", path]);
                assert_eq!(failure(&refused), (Some(1), expected.clone()), "{command}");
            }
        }
        fs::set_permissions(&good, anybody).unwrap();
        let (code, error) = failure(&tfo(&["reload"]));
        assert!(code == Some(1) && error.contains("anybody may write to it"), "{error}");
        fs::set_permissions(&good, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(tfo(&["reload"]).status.success());
        running.end(Signal::SIGINT);
        assert_clean(IFACE);
    });
}

/// A plan that no map can hold is refused before it takes memory. It would have 19 million entries.
#[test]
fn a_plan_that_no_map_can_hold_is_a_fault_with_its_line() {
    let addresses: Vec<_> = (0..300).map(|n| format!("10.0.{}.{}", n / 256, n % 256)).collect();
    let service = on_ports("web", "\"1-65535\"");
    let file = Config::new(IFACE, &format!("{}{service}addresses = {addresses:?}\n", on_ports("a", "1")));
    let line = format!(
        "{}:6: the services have 19660500 pairs of a port and an address, 19660500 of them in service web, and there may \
         be 16384; name fewer ports where addresses are named, or a prefix in place of many addresses\n",
        file.path()
    );
    let check = tfo(&["check", "--config", &file.path()]);
    assert_eq!((check.status.code(), String::from_utf8(check.stdout).unwrap()), (Some(1), line.clone()));
    // The limit is a tenth of the memory that the plan would take.
    let limited = |args: &[&str]| {
        Command::new("prlimit").arg("--as=200000000").arg(binary()).args(args).output().unwrap()
    };
    let run = limited(&["run", "--config", &file.path()]);
    assert_eq!(failure(&run), (Some(1), format!("error: {line}")));
}

#[test]
fn names_that_no_interface_has_are_faults_with_their_line() {
    let file = Config::of_several(&[IFACE, "a/b", "", ".."], "metrics = \"127.0.0.1:0\"\n");
    let (path, check) = (file.path(), tfo(&["check", "--config", &file.path()]));
    assert_eq!(check.status.code(), Some(1));
    let text = String::from_utf8(check.stdout).unwrap();
    let expected = [
        format!("{path}:1: interfaces: \"a/b\" cannot be the name of an interface: it has a slash"),
        format!("{path}:1: interfaces: \"\" cannot be the name of an interface: it is empty"),
        format!("{path}:1: interfaces: \"..\" cannot be the name of an interface: it is . or .."),
        format!("{path}:2: metrics: 127.0.0.1:0 has port 0"),
    ];
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(&start), "{line}");
    }
}

/// Under nohup, SIGHUP is ignored even with a file. A reload by request still works.
#[test]
fn a_hang_up_that_is_ignored_from_the_beginning_stays_ignored() {
    server_and_client(|client| {
        let file = Config::new(IFACE, &on_ports("web", "80"));
        let path = file.path();
        for args in [&["-i", IFACE] as &[&str], &["--config", &path]] {
            let tfo_run = Running::start_under(&["nohup"], args);
            // It may not handle signals before it accepts requests.
            eventually("it takes orders", || tfo(&["hide", "--list", "-i", IFACE]).status.success());
            file.write(&on_ports("dns", "53"));
            tfo_run.signal(Signal::SIGHUP);
            send(&client, 80);
            let reload = tfo(&["reload"]);
            assert_eq!(reload.status.success(), args[0] == "--config", "{:?}", failure(&reload));
            assert!(tfo(&["status"]).status.success());
            let log = tfo_run.end(Signal::SIGINT);
            assert_eq!(log.matches("read again").count(), usize::from(args[0] == "--config"), "{log}");
            assert_clean(IFACE);
        }
    });
}

#[test]
fn commands_that_need_a_file_or_a_mode_are_refused_without() {
    sandbox(|| {
        for args in [&["reload"] as &[&str], &["hide", "--all"], &["hide", "--list"], &["show", "--all"]] {
            assert_eq!(tfo(args).status.code(), Some(3), "nothing runs: {args:?}");
        }
        ip(&format!("link add {IFACE} type veth peer name v1"));
        let refused = |args: &[&str], expected: &str| {
            let (code, error) = failure(&tfo(args));
            assert_eq!(code, Some(1), "{args:?}: {error}");
            assert!(error.contains(expected), "{args:?}: {error}");
        };
        let tfo_run = Running::start(&["-i", IFACE, "--service", "web=80", "--mode", "accelerate"]);
        // Everything is attached before it accepts requests.
        eventually("it takes orders", || tfo(&["hide", "--list"]).status.success());
        refused(&["reload"], "this tfo runs without --config");
        let mode =
            "hiding changes packets and tfo runs in mode accelerate here: give a service mode = \"shield\"";
        refused(&["hide", "--all"], mode);
        refused(&["hide", "--source", "192.0.2.0/24", "-i", IFACE], mode);
        refused(
            &["hide", "--service", "web"],
            "hiding changes packets and service web runs in mode accelerate",
        );
        refused(&["hide", "--service", "dns"], "there is no service dns: there are web, other");
        refused(&["show", "--service", "dns"], "there is no service dns: there are web, other");
        tfo_run.end(Signal::SIGINT);
    });
}

/// A user without privileges may check a file, since nothing of the host is read.
#[test]
fn a_file_is_checked() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    // The copy belongs to the user of the test, whoever owns the tree.
    let example = dir.path().join("example.toml");
    fs::write(&example, include_str!("../../../dist/tfo.toml")).unwrap();
    let check = tfo(&["check", "--config", example.to_str().unwrap()]);
    assert!(check.status.success(), "{:?}", failure(&check));

    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("tfo.toml").to_str().unwrap().to_owned();
    let check = |content: &str, more: &[&str]| {
        fs::write(&path, format!("interfaces = [\"{IFACE}\"]\n{content}")).unwrap();
        let output = tfo_as_nobody(&[&["check", "--config", &path], more].concat());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let web = on_ports("web", "80, 443, \"8000-8010\"");
    let right = format!("{web}mode = \"shield\"\nonce = true\nhide = {{ dry_run = true }}\nclamp = true\n");
    let right = format!("{right}{}{}fair = {{ limit = \"1/s\" }}\n", on_ports("a", "1"), on_ports("b", "2"));
    let summary = "3 services on 15 ports; 2 protections act, 2 dry runs";
    assert_eq!(check(&right, &[]), (Some(0), format!("{path}: ok: {summary}\n")));
    let (code, json) = check(&right, &["--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (code, &json),
        (
            Some(0),
            &serde_json::json!({"version": 1, "file": path, "faults": [], "summary": summary, "warnings": []})
        )
    );

    let wrong = format!("attach = 1\n{web}{web}");
    let (code, text) = check(&wrong, &[]);
    assert_eq!(code, Some(1));
    let lines: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(lines, [2, 7, 8, 8, 8].map(|line| format!("{path}:{line}:")), "{text}");
    let (code, json) = check(&wrong, &["--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["faults"][0]["line"], &json["summary"]), (Some(1), &2.into(), &Value::Null));
}
