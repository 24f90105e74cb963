//! Version of the JSON that every command prints, and `tfo version`.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use clap::CommandFactory as _;
use serde_json::{Value, json};
use tfo_common::{info::LAYOUT_VERSION, names, segment::Family};
use tfo_tests::netns::{
    BPFFS, IFACE, Running, eventually, failure, key, server_and_client, set_keys, tfo, tfo_as_nobody,
};
use tfo_userspace::{
    cli::args::Cli,
    lab::{
        client::Syn,
        net::{server, source},
    },
    util::output::JSON_VERSION,
};

/// Returns the names of all commands below `command` that take `--json`.
fn with_json(command: &clap::Command, path: &str, found: &mut BTreeSet<String>) {
    for sub in command.get_subcommands() {
        let path = format!("{path} {}", sub.get_name()).trim_start().to_owned();
        if sub.get_arguments().any(|argument| argument.get_long() == Some("json")) {
            found.insert(path.clone());
        }
        with_json(sub, &path, found);
    }
}

/// Runs `tfo ARGS --json`. Returns its objects, and panics unless each begins with the version.
fn objects(args: &[&str]) -> Vec<Value> {
    let output = tfo(&[args, &["--json"]].concat());
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    let beginning = format!("{{\"version\":{JSON_VERSION},");
    for line in text.lines() {
        assert!(line.starts_with(&beginning), "tfo {args:?}: {line}");
    }
    assert!(!text.is_empty(), "tfo {args:?}: {:?}", failure(&output));
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn every_object_has_a_version() {
    let mut commands = BTreeSet::new();
    with_json(&Cli::command(), "", &mut commands);
    // It needs etcd: `status` in `tests/src/etcd_fleet.rs` looks at its version.
    assert!(commands.remove("fleet status"));
    server_and_client(|client| {
        let _tfo = Running::start(&["-i", IFACE]);
        set_keys(IFACE, key(1), None);
        let family = Family::Ipv4;
        let (from, to) = (source(family, 1), server(family));
        let forged = Syn::new(10_000, to.port(), 1).fast_open(&[7; 8]).data(b"GET /");
        eventually("an event", || {
            client.run(|| forged.send(from, to.ip())).expect("a raw socket sends");
            !tfo(&["events"]).stdout.is_empty()
        });
        let dir = tempfile::tempdir().expect("a temporary folder");
        let secret = dir.path().join("secret");
        fs::write(&secret, [7; 32]).expect("the folder is ours");
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("the file is ours");
        let config = dir.path().join("tfo.toml");
        fs::write(&config, format!("interfaces = [{IFACE:?}]\n")).expect("the folder is ours");
        let [secret, config] = [&secret, &config].map(|path| path.to_str().expect("UTF-8"));

        let mut seen = BTreeSet::new();
        for args in [
            &["status"] as &[&str],
            &["counters"],
            &["events"],
            &["top"],
            &["listeners"],
            &["check"],
            &["check", "--config", config],
            &["enable", "--port", "1", "--dry-run"],
            &["disable", "--port", "1"],
            &["hide", "--list"],
            &["version"],
            &["keys", "status"],
            &["keys", "derive", secret],
            &["keys", "cookie", "1-2-3-4", "192.0.2.1", "192.0.2.2"],
        ] {
            objects(args);
            seen.extend(commands.iter().filter(|name| args.join(" ").starts_with(*name)).cloned());
        }
        assert_eq!(seen, commands, "this test runs each command that has --json");

        // So has the object of an interface whose state can't be read.
        for entry in fs::read_dir(Path::new(BPFFS).join("tfo").join(IFACE)).expect("the pin folder").flatten()
        {
            let map = entry.path().join(names::KEYS);
            if map.exists() {
                fs::remove_file(map).expect("the pins are ours");
            }
        }
        let failed = objects(&["status"]);
        assert!(failed[0]["error"].is_string(), "{failed:?}");
    });
}

#[test]
fn versions_are_shown_without_root() {
    let output = tfo_as_nobody(&["version", "--json"]);
    assert!(output.status.success(), "{:?}", failure(&output));
    let versions: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(versions["tfo"], env!("CARGO_PKG_VERSION"), "the tests and tfo have one version");
    assert_eq!(versions["map_layout"], LAYOUT_VERSION);
    assert_eq!(versions["other_map_layouts"], json!([6]));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs is there");
    assert_eq!(versions["kernel"], kernel.trim_end());

    let text = String::from_utf8(tfo(&["version"]).stdout).expect("text");
    for shown in ["tfo", "map_layout", "control", "key_file", "order_file", "oldest_kernel", "kernel"] {
        let value = &versions[shown];
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        assert!(text.contains(&value), "{shown} is {value}: {text}");
    }
}
