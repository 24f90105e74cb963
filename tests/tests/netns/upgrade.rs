//! Upgrade from the maps of tfo 0.1: nothing is lost, even if the controller dies on the way.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::json;
use tfo_common::segment::Family;
use tfo_tests::{
    fault::{self, Bpf, Fault, was_killed},
    layout_0_1::downgrade_pins,
    netns::{
        BPFFS, Counts, IFACE, Running, assert_clean, failure, linked, server_and_client, set_keys, status,
        tfo, xdp_on,
    },
};
use tfo_userspace::{
    dataplane::pins::Bpffs,
    lab::{
        client::Syn,
        net::{Namespace, server, source},
    },
    model::keys::fingerprint,
};

const RUN: [&str; 6] = ["-i", IFACE, "--mode", "shield", "--service", "web=7413"];

fn send(client: &Namespace, port: u16) {
    let to = server(Family::Ipv4);
    client.run(|| Syn::new(5000, port, 1).send(source(Family::Ipv4, 1), to.ip())).unwrap();
}

/// Returns the counts by service.
fn by_service() -> Vec<(String, u64)> {
    let counts = Counts::of(IFACE);
    let services = counts.field("services").as_array().unwrap().clone();
    let packets = |service: &serde_json::Value| service["syn"][0]["packets"].as_u64().unwrap_or(0);
    services.iter().map(|it| (it["name"].as_str().unwrap().to_owned(), packets(it))).collect()
}

#[test]
fn maps_of_0_1_are_carried_over_whenever_the_controller_dies() {
    const RENAME: i64 = libc::SYS_rename;
    const UNLINK: i64 = libc::SYS_unlink;
    server_and_client(|client| {
        let key = tfo_tests::netns::key;
        let mut running = Running::start(&RUN);
        set_keys(IFACE, key(1), None);
        set_keys(IFACE, key(2), None);
        for source in ["192.0.2.0/24", "2001:db8::/32"] {
            let hide = tfo(&["hide", "--source", source]);
            assert!(hide.status.success(), "{:?}", failure(&hide));
        }
        let since = Counts::of(IFACE).field("since").clone();
        let first = linked(IFACE);
        let deaths: [fn() -> std::process::Output; 10] = [
            || fault::with(Bpf::MapCreate, Fault::Kills, run),
            || fault::with(Bpf::ProgLoad, Fault::Kills, run),
            || fault::with(Bpf::MapLookupElem, Fault::Kills, run),
            || fault::with(Bpf::MapUpdateElem, Fault::Kills, run),
            || fault::with(Bpf::ObjPin, Fault::Kills, run),
            || fault::with(Bpf::ObjGet, Fault::Kills, run),
            || fault::with(Bpf::LinkUpdate, Fault::Kills, run),
            || fault::with_call(libc::SYS_mkdir, Fault::Kills, run),
            || fault::with_call(RENAME, Fault::Kills, run),
            || fault::with_call(UNLINK, Fault::Kills, run),
        ];
        for (n, death) in deaths.into_iter().enumerate() {
            running.kill();
            for port in [7413, 7413, 99] {
                send(&client, port);
            }
            // The program that is attached goes on counting in its own maps, which are no longer those that are pinned.
            downgrade_pins(IFACE);
            let (code, error) = failure(&tfo(&["counters"]));
            assert_eq!(code, Some(1));
            assert!(error.contains("of another version of tfo"), "{error}");
            let output = death();
            assert!(was_killed(output.status), "death {n}: {output:?}");
            assert!(xdp_on(IFACE).is_some(), "death {n}: the program is off");
            running = Running::start(&RUN);
            assert_eq!(linked(IFACE).link, first.link, "death {n}: it was off for a moment");
            let sent = n as u64 + 1;
            let expected = [("other".to_owned(), sent), ("web".to_owned(), 2 * sent)];
            assert_eq!(by_service(), expected, "death {n}");
            assert_eq!(Counts::of(IFACE).field("since"), &since, "death {n}");
            let hidden = json!([{"source": "192.0.2.0/24"}, {"source": "2001:db8::/32"}]);
            assert_eq!(status(IFACE)["hidden"], hidden, "death {n}");
            assert_eq!(status(IFACE)["keys"]["retired"][0], fingerprint(key(1)), "death {n}");
            let generations = Bpffs::new(Path::new(BPFFS)).pins(IFACE).generations().unwrap();
            assert_eq!(generations.len(), 1, "death {n}: nothing is left behind");
        }
        running.end(Signal::SIGINT);
        assert_clean(IFACE);
    });
}

fn run() -> std::process::Output {
    tfo(&[&["run"], &RUN as &[&str]].concat())
}
