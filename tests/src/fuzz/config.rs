//! Random bytes as a configuration file: each fault has an existing line, and each accepted file is within its limits.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tfo_common::{
    service::{ADDRESSES, NAME_LEN},
    verdict::Mode,
};
use tfo_userspace::{
    config::Config,
    kernel::clock::jiffies_per_second,
    model::services::{Named, QUEUES, Unfollowed},
};

/// Checks one file.
pub fn check(data: &[u8]) {
    let lines = data.iter().filter(|byte| **byte == b'\n').count() + 1;
    match Config::parse(data) {
        Ok(config) => check_parsed(&config),
        Err(faults) => {
            assert!(!faults.is_empty());
            assert!(faults.is_sorted_by_key(|fault| fault.line));
            for fault in &faults {
                assert!((1..=lines).contains(&fault.line) && !fault.what.is_empty(), "{fault:?} of {lines}");
            }
            // Behind another line, the faults are the same. (Nothing may stand before a byte order mark.)
            if !data.starts_with(b"\xef\xbb\xbf") {
                let below = Config::parse(&[b"#\n", data].concat()).expect_err("it is wrong there, too");
                assert_eq!(below.len(), faults.len());
                for (below, fault) in below.iter().zip(&faults) {
                    // A setting that is missing altogether is reported in the first line.
                    let is_missing = fault.line == 1 && fault.what.starts_with("interfaces is missing");
                    let is_below = below.line == fault.line + 1 || is_missing && below.line == 1;
                    assert!(is_below, "{below:?} {fault:?}");
                }
            }
        }
    }
}

/// Returns the example file, the same with all that is commented out, and a file with the rest.
pub fn seeds() -> Vec<Vec<u8>> {
    let example = include_str!("../../../dist/tfo.toml");
    // Text stands behind `# `, a disabled setting behind `#`.
    let on =
        |line: &'static str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
    let on: Vec<_> = example.lines().map(on).collect();
    let on = on.join("\n");
    let more = "interfaces = []\nkeys.source = 'secret:F'\nmaps = { sources = 0x1000 }\n[[service]]\nname = 'a'\n\
                ports = [1]\nhide = { dry_run = true }\n[[service]]\nname = 'b'\nports = [1]\naddresses = ['::/0']\n\
                mode = 'shield'\nonce = true\nclamp = false\n[service.shed]\nper_source = '1/min'\n";
    [example, &on, more].map(|text| text.as_bytes().to_vec()).to_vec()
}

fn check_parsed(config: &Config) {
    assert!(!config.interfaces.is_empty() && config.fixed(config).is_empty());
    let Config { interfaces, metrics, keys, maps, services, .. } = config;
    assert!(interfaces.iter().all(|name| (1..=15).contains(&name.len()) && !name.contains(['/', ' ', '\0'])));
    assert!(metrics.is_none_or(|address| address.port() != 0));
    assert!((10..=7 * 86400).contains(&keys.interval().as_secs()) && keys.max_age != Some(Duration::ZERO));
    assert!([maps.sources, maps.replays].iter().all(|size| (1024..=16 << 20).contains(size)));
    assert_eq!(services.other(), Mode::Observe);
    assert!(!services.summary().is_empty());
    let pairs = |service: &Named| {
        let ports: usize = service.ports.iter().map(|range| range.len()).sum();
        ports * service.addresses.iter().collect::<HashSet<_>>().len()
    };
    assert!(services.named().iter().map(pairs).sum::<usize>() <= ADDRESSES);
    // No port belongs to two services at the same addresses. This is checked port by port.
    let mut owners = HashMap::new();
    for (index, service) in services.named().iter().enumerate() {
        assert!((1..=NAME_LEN).contains(&service.name.len()) && service.name != "other");
        assert_eq!(services.named().iter().filter(|other| other.name == service.name).count(), 1);
        assert!(!service.ports.is_empty());
        assert!(service.fast_open.is_none_or(|queue| QUEUES.contains(&queue)));
        let addresses: Vec<_> = match service.addresses.as_slice() {
            [] => vec![None],
            addresses => addresses.iter().copied().map(Some).collect(),
        };
        for address in addresses {
            assert!(address.is_none_or(|address| address == address.trunc()));
            // Two ports of each range are enough: if ranges overlap, they do so at an end of one of them.
            for range in &service.ports {
                for other in services.named().iter().flat_map(|service| &service.ports) {
                    for port in [*other.start(), *other.end()].into_iter().filter(|port| range.contains(port))
                    {
                        let owner = *owners.entry((address, port)).or_insert(index);
                        assert_eq!(owner, index, "port {port} at {address:?}");
                    }
                }
            }
        }
        assert!(service.unfollowed == Unfollowed::Pass || service.mode == Mode::Shield);
        let guards = &service.guards;
        let limits = [guards.fair.map(|fair| fair.limit), guards.shed.and_then(|shed| shed.limit)];
        let limits = limits.into_iter().chain([guards.shed.and_then(|shed| shed.per_source)]);
        for limit in limits.flatten() {
            assert!(limit.count > 0 && limit.burst > 0 && [1, 60, 3600].contains(&limit.per.as_secs()));
            // A burst for each tick of the clock must yield the whole rate.
            let ticks = limit.per.as_secs() * jiffies_per_second().expect("a clock");
            assert!(u64::from(limit.burst) * ticks >= u64::from(limit.count), "{limit:?}");
        }
        assert!(guards.shed.is_none_or(|shed| shed.limit.or(shed.per_source).is_some()));
        assert!(guards.clamp.is_none_or(|clamp| (1..=100).contains(&clamp.factor)));
        assert!(guards.once.is_none_or(|once| (1..=3600).contains(&once.remember.as_secs())));
        let lengths = [guards.fair.map(|fair| fair.source), guards.shed.map(|shed| shed.source)];
        for length in lengths.into_iter().flatten() {
            assert!((8..=32).contains(&length.v4) && (16..=128).contains(&length.v6));
        }
    }
}
