//! From the maps of tfo 0.1 to those of this one: nothing is lost, whenever the controller dies.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::{fs, path::Path};

use aya::{
    maps::{
        Array, Map, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    util::nr_cpus,
};
use nix::sys::signal::Signal;
use serde_json::json;
use tfo_common::{names, segment::Family};
use tfo_tests::{
    fault::{self, Bpf, Fault, was_killed},
    netns::{
        BPFFS, Counts, IFACE, Running, assert_clean, failure, linked, server_and_client, set_keys, status,
        tfo, xdp_on,
    },
};
use tfo_userspace::{
    dataplane::pins::{Bpffs, MAPS},
    lab::{
        client::Syn,
        net::{Namespace, server, source},
    },
    model::keys::fingerprint,
};

const RUN: [&str; 6] = ["-i", IFACE, "--mode", "shield", "--service", "web=7413"];
/// Words of the info map and of a CPU's state of observing, in tfo 0.1.
type Info = [u32; 22];
type Watch = [u64; 10];

/// Makes of the pins of this tfo, whose controller is gone, what tfo 0.1 would have left: no folder for a generation, no map of
/// carried counts, a state of observing without confirmation, and sources hidden without their family.
fn as_of_0_1() {
    let pins = Bpffs::new(Path::new(BPFFS)).pins(IFACE);
    let generation = pins.current().unwrap();
    assert_ne!(generation.dir(), pins.dir());
    for name in MAPS {
        fs::rename(generation.map(name), pins.dir().join(name)).unwrap();
    }
    fs::remove_file(pins.dir().join(names::CARRIED)).unwrap();

    let info = pins.dir().join(names::INFO);
    let mut map: Array<_, Info> = Map::Array(MapData::from_pin(&info).unwrap()).try_into().unwrap();
    let mut words = map.get(&0, 0).unwrap();
    words[0] = 6;
    map.set(0, words, 0).unwrap();

    let watch = pins.dir().join(names::WATCH);
    fs::remove_file(&watch).unwrap();
    let mut map = PerCpuArray::<_, Watch>::create(1, 0).unwrap();
    let mut words = [0; 10];
    words[5] = 40;
    let cpus = (0..nr_cpus().unwrap()).map(|cpu| if cpu == 0 { words } else { [0; 10] });
    map.set(0, cpus.collect::<Vec<_>>().try_into().unwrap(), 0).unwrap();
    map.pin(&watch).unwrap();

    let hidden = pins.dir().join(names::HIDDEN);
    fs::remove_file(&hidden).unwrap();
    const NO_PREALLOC: u32 = 1;
    let mut map = LpmTrie::<_, [u32; 4], u32>::create(4096, NO_PREALLOC).unwrap();
    let mapped = [0, 0, 0xffff_u32.to_be(), u32::from_le_bytes([192, 0, 2, 0])];
    map.insert(&Key::new(96 + 24, mapped), 1, 0).unwrap();
    map.insert(&Key::new(32, [u32::from_le_bytes([0x20, 1, 0xd, 0xb8]), 0, 0, 0]), 1, 0).unwrap();
    map.pin(&hidden).unwrap();

    for (from, to) in [(generation.link(), "link"), (generation.outcomes_link(), "outcomes-link")] {
        fs::rename(from, pins.dir().join(to)).unwrap();
    }
    fs::remove_dir(generation.dir()).unwrap();
    // Orders were kept in the maps only.
    fs::remove_dir_all("/var/lib/tfo/orders").unwrap_or_default();
}

fn send(client: &Namespace, port: u16) {
    let to = server(Family::Ipv4);
    client.run(|| Syn::new(5000, port, 1).send(source(Family::Ipv4, 1), to.ip())).unwrap();
}

/// What is counted, by service.
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
            as_of_0_1();
            let (code, error) = failure(&tfo(&["counters"]));
            assert_eq!(code, Some(1));
            assert!(error.contains("of another version of tfo"), "{error}");
            let output = death();
            assert!(was_killed(output.status), "death {n}: {output:?}");
            assert!(xdp_on(IFACE).is_some(), "death {n}: the program is off");
            for port in [7413, 7413, 99] {
                send(&client, port);
            }
            running = Running::start(&RUN);
            assert_eq!(linked(IFACE).link, first.link, "death {n}: it was off for a moment");
            // What was carried into the maps before is not in them as tfo 0.1 would have had them.
            let expected = [("other".to_owned(), 1), ("web".to_owned(), 2)];
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
