use tfo_common::verdict::Mode;

use super::*;
use crate::model::{
    fleet::PREFIX,
    guards::{Answer, Clamp, Fair, Guards, Hide, Limit, Once, Same, Shed, SourceLen},
    services::{Named, Unfollowed},
};

const FULL: &str = r#"
interfaces = ["eth0", "eth1"]
attach = "native"
metrics = "[::1]:9434"
[keys]
source = "secret:FILE"
rotate = "10m"
state = "keys"
retire_below = "0.1%"
max_age = "1d"
[keys.etcd]
endpoints = ["https://10.0.0.1:2379", "https://etcd.example:2379"]
prefix = "/site/tfo/"
name = "web-1"
seal_key = "fleet.key"
ca = "ca.pem"
certificate = "web-1.pem"
key = "web-1.key"
user = "tfo"
password_file = "password"
[maps]
sources = 1024
replays = 16_777_216
[[service]]
name = "web"
ports = [80, 0x1bb, "8000-8010"]
addresses = ["192.0.2.0/24", "2001:db8::1"]
mode = "shield"
unfollowed = "drop"
fast_open = 256
hide = true
once = { remember = "1h", match = "data", dry_run = true }
fair = { limit = "10/min", burst = 20, source_v4 = 24, source_v6 = 56, dry_run = true }
clamp = { factor = 100 }
[service.shed]
limit = "1000/s"
per_source = "36000/h"
per_source_burst = 1
drop = true
others = true
own_keys = true
[service.answer]
when = "always"
above = 500
release = "5m"
dry_run = true
[[service]]
name = "dns"
ports = [53]
mode = "accelerate"
portable = true
once = true
clamp = true
hide = { dry_run = true }
shed = false
fair = { limit = "7/s" }
answer = true
"#;

fn parse(text: &str) -> Config {
    Config::parse(text.as_bytes()).unwrap_or_else(|faults| panic!("{faults:#?}"))
}

#[test]
fn every_key_is_read() {
    let limit = |count, seconds, burst| Limit { count, per: Duration::from_secs(seconds), burst };
    let expected = Config {
        interfaces: ["eth0", "eth1"].map(str::to_owned).to_vec(),
        attach: AttachMode::Native,
        metrics: Some("[::1]:9434".parse().unwrap()),
        keys: Keys {
            source: KeysFrom::Secret("FILE".to_owned()),
            rotate: Some(Duration::from_secs(600)),
            overlap: Duration::from_hours(1),
            state: "keys".into(),
            retire_below: Some(0.001),
            max_age: Some(Duration::from_secs(86400)),
            etcd: Some(Etcd {
                endpoints: ["https://10.0.0.1:2379", "https://etcd.example:2379"].map(str::to_owned).to_vec(),
                prefix: "/site/tfo/".to_owned(),
                name: Some("web-1".to_owned()),
                seal_key: "fleet.key".to_owned(),
                ca: Some("ca.pem".into()),
                certificate: Some("web-1.pem".into()),
                key: Some("web-1.key".into()),
                user: Some("tfo".to_owned()),
                password_file: Some("password".into()),
            }),
        },
        maps: Sizes { sources: 1024, replays: 1 << 24 },
        services: Services::new(
            vec![
                Named {
                    name: "web".to_owned(),
                    ports: vec![80..=80, 443..=443, 8000..=8010],
                    addresses: ["192.0.2.0/24", "2001:db8::1/128"].map(|net| net.parse().unwrap()).to_vec(),
                    mode: Mode::Shield,
                    guards: Guards {
                        hide: Some(Hide { dry_run: false }),
                        once: Some(Once {
                            remember: Duration::from_secs(3600),
                            same: Same::Data,
                            dry_run: true,
                        }),
                        fair: Some(Fair {
                            limit: limit(10, 60, 20),
                            source: SourceLen { v4: 24, v6: 56 },
                            dry_run: true,
                        }),
                        clamp: Some(Clamp { factor: 100, dry_run: false }),
                        shed: Some(Shed {
                            limit: Some(limit(1000, 1, 1000)),
                            per_source: Some(limit(36000, 3600, 1)),
                            source: SourceLen::default(),
                            drop: true,
                            others: true,
                            own_keys: true,
                            dry_run: false,
                        }),
                        answer: Some(Answer {
                            waits: false,
                            above: Some(500),
                            release: Duration::from_secs(300),
                            dry_run: true,
                        }),
                    },
                    unfollowed: Unfollowed::Drop,
                    portable: false,
                    fast_open: Some(256),
                },
                Named {
                    name: "dns".to_owned(),
                    ports: vec![53..=53],
                    addresses: Vec::new(),
                    mode: Mode::Accelerate,
                    guards: Guards {
                        hide: Some(Hide { dry_run: true }),
                        once: Some(Once {
                            remember: Duration::from_secs(60),
                            same: Same::Syn,
                            dry_run: false,
                        }),
                        fair: Some(Fair {
                            limit: limit(7, 1, 7),
                            source: SourceLen { v4: 32, v6: 64 },
                            dry_run: false,
                        }),
                        clamp: Some(Clamp { factor: 3, dry_run: false }),
                        shed: None,
                        answer: Some(Answer {
                            waits: true,
                            above: None,
                            release: Duration::from_secs(60),
                            dry_run: false,
                        }),
                    },
                    unfollowed: Unfollowed::Pass,
                    portable: true,
                    fast_open: None,
                },
            ],
            Mode::Observe,
        )
        .unwrap(),
    };
    assert_eq!(parse(FULL), expected);
}

#[test]
fn defaults_are_those_of_the_command_line() {
    let expected = Config {
        interfaces: vec!["v0".to_owned()],
        attach: AttachMode::Auto,
        metrics: None,
        keys: Keys::default(),
        maps: Sizes { sources: 65_536, replays: 65_536 },
        services: Services::default(),
    };
    assert_eq!(parse("interfaces = ['v0']"), expected);
}

#[test]
fn the_example_is_right_and_complete() {
    let example = include_str!("../../../dist/tfo.toml");
    assert_eq!(parse(example), parse("interfaces = ['eth0']"));
    // Comments begin with `# `. Settings that are off begin with `#`.
    let on =
        |line: &'static str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
    let on: Vec<_> = example.lines().map(on).collect();
    let config = parse(&on.join("\n"));
    assert_eq!((config.attach, config.maps), (AttachMode::Auto, Sizes::default()));
    let Keys { rotate, retire_below, max_age, ref etcd, .. } = config.keys;
    let expected = Keys { rotate, retire_below, max_age, etcd: etcd.clone(), ..Keys::default() };
    assert_eq!(config.keys, expected, "they are the defaults");
    assert_eq!(config.keys.interval(), Keys::default().interval());
    let etcd = etcd.as_ref().expect("a table");
    assert!(etcd.prefix == PREFIX && etcd.user.is_some() && etcd.key.is_some() && etcd.name.is_some());
    assert!(config.metrics.is_some() && retire_below.is_some() && max_age.is_some());
    let [web] = config.services.named() else { panic!("one service") };
    assert_eq!(web.guards.dry_runs().count(), 6);
    assert!(!web.addresses.is_empty());
    assert_eq!((web.mode, web.unfollowed), (Mode::Shield, Unfollowed::Drop));
}

/// Texts after line 1, which sets `interfaces`, each with its faults: the line and a part of the message.
const WRONG: &[(&str, &[(usize, &str)])] = &[
    ("attach = 'x'", &[(2, "attach: `x` is unknown; use one of auto, native, generic, tcx")]),
    ("attach = 1", &[(2, "this is of type integer; it takes a string")]),
    ("attach = 'auto", &[(2, "https://toml.io")]),
    ("attach = 'auto'\nattach = 'auto'\nx = 1", &[(3, "duplicate key")]),
    ("metrics = 'localhost'", &[(2, "not an address with a port")]),
    ("metrics = '[::1]:0'", &[(2, "metrics: [::1]:0 has port 0; write, for example,")]),
    (
        "interface = 1\n[keys]\nfrom = 1",
        &[(2, "no key interface; there are interfaces, "), (4, "no key keys.from; there are source, ")],
    ),
    ("keys = 1", &[(2, "keys: this is of type integer; it takes a table")]),
    ("[keys]\nsource = 'etcd'", &[(2, "keys.etcd is missing")]),
    (
        "[keys.etcd]\nprefix = 'x'\nname = 'a/b'\nuser = 'u'\ncertificate = 'c'",
        &[
            (2, "keys.etcd.endpoints is missing"),
            (2, "keys.etcd.seal_key is missing"),
            (2, "certificate needs ca"),
            (2, "certificate needs key"),
            (2, "user and password_file need each other"),
            (3, "`x` is no prefix"),
            (4, "`a/b` is no name of a host"),
        ],
    ),
    (
        "[keys.etcd]\nseal_key = 'k'\nendpoints = [\n'x',\n'https://a:1',\n]",
        &[(5, "`x` is no member of etcd"), (6, "https://a:1 needs ca")],
    ),
    (
        "[keys.etcd]\nseal_key = 'k'\nca = 'c'\nendpoints = ['http://a:1']",
        &[(5, "http://a:1 is without TLS")],
    ),
    (
        "[keys]\nsource = 'x'\nrotate = '11s'\nstate = ''\nretire_below = '1'\nmax_age = '0s'",
        &[
            (3, "it is kernel, random, secret:FILE or etcd"),
            (4, "no half"),
            (5, "empty"),
            (6, "percentage"),
            (7, "at least 1s"),
        ],
    ),
    (
        "maps = { sources = 1023, replays = 16777217 }",
        &[
            (2, "maps.sources: 1023 is out of range; it takes a whole number from 1024 to 16777216"),
            (2, "maps.replays: 16777217 is out of range"),
        ],
    ),
    ("[maps]\nsources = -1\nreplays = 1e6", &[(3, "-1 is out of range"), (4, "type float")]),
    ("[service]\nname = 'a'", &[(2, "service: this is of type table; it takes tables, each as [[service]]")]),
    ("service = [1]", &[(2, "service: this is of type integer")]),
    ("\n[[service]]", &[(3, "service.name is missing"), (3, "service.ports is missing")]),
    ("[[service]]\nname = 'a'\nports = []", &[(4, "service.ports is missing")]),
    ("[[service]]\nname = 'other'\nports = 80", &[(3, "other is the name of"), (4, "it takes a list")]),
    (
        "[[service]]\nname = 'a b'\nports = [0, 65536,\n'2-1', '', true,\n 80]",
        &[
            (3, "1 to 32 letters"),
            (4, "0 is out of range; it takes a whole number from 1 to 65535"),
            (4, "65536 is out of range"),
            (5, "`2-1` is not a port or a range"),
            (5, "`` is not a port"),
            (5, "it takes ports such as"),
        ],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1]\naddresses = ['x',\n'192.0.2.1/24', '::/129', 1]",
        &[
            (5, "`x` is not an address or a prefix"),
            (6, "write 192.0.2.1 or 192.0.2.0/24"),
            (6, "`::/129` is not an address"),
            (6, "it takes a string"),
        ],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1]\nmode = 'drop'\nhide = 1\nonce = { remember = '61m', match = 'cookie' }\nclamp.factor = 0",
        &[
            (5, "`drop` is unknown; use one of observe, accelerate, shield"),
            (6, "hide: this is of type integer; it takes true, false, or a table"),
            (7, "service.once.remember: 61m is out of range"),
            (7, "service.once.match: `cookie` is unknown; use one of syn, data"),
            (8, "service.clamp.factor: 0 is out of range; it takes a whole number from 1 to 100"),
        ],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1]\nfast_open = 0\n[[service]]\nname = 'b'\nports = [2]\nfast_open = true",
        &[
            (5, "service.fast_open: 0 is out of range; it takes a whole number from 1 to 65536"),
            (9, "service.fast_open: this is of type boolean; it takes a whole number"),
        ],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1]\nunfollowed = 'drop'",
        &[(5, "service.unfollowed: `drop` needs mode = \"shield\"")],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1]\nunfollowed = 'drop'\nmode = 'accelerate'",
        &[(5, "service.unfollowed: `drop` needs mode = \"shield\"")],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1]\nunfollowed = true\n[[service]]\nname = 'b'\nports = [2]\nunfollowed = 'hide'",
        &[
            (5, "service.unfollowed: this is of type boolean; it takes a string"),
            (9, "service.unfollowed: `hide` is unknown; use one of pass, drop"),
        ],
    ),
    // A wrong mode is the only fault.
    (
        "[[service]]\nname = 'a'\nports = [1]\nunfollowed = 'drop'\nmode = 'x'",
        &[(6, "`x` is unknown; use one of observe, accelerate, shield")],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1]\nfair = true\nshed = true",
        &[(5, "service.fair.limit is missing"), (6, "service.shed.limit is missing")],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1]\n[service.fair]\nlimit = '1/m'\nsource_v4 = 7\nsource_v6 = 129\ndry_run = 1\ndrop = true",
        &[
            (6, "`1/m` is not a limit"),
            (7, "from 8 to 32"),
            (8, "from 16 to 128"),
            (9, "it takes true or false"),
            (10, "no key service.fair.drop; there are limit, burst, source_v4, source_v6, dry_run"),
        ],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1]\n[service.shed]\nlimit = '0/s'\nper_source = '+1/s'\nburst = 0",
        &[(6, "`0/s` is not a limit"), (7, "`+1/s` is not a limit"), (8, "from 1 to 4294967295")],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1]\n[service.shed]\nlimit = '1/s'\nper_source_burst = 1",
        &[(7, "per_source_burst needs per_source")],
    ),
    (
        "[[service]]\nname = 'a'\nports = [1, 80]\n[[service]]\nname = 'a'\nports = [2,\n80, 80, 3,\n3]",
        &[
            (6, "there are two services a (line 3); give"),
            (8, "port 80 of service a belongs to service a already (line 4); take"),
            (8, "service a has port 80 twice (line 8); leave"),
            (9, "service a has port 3 twice (line 8); leave"),
        ],
    ),
    // Conflicts are reported along with other faults. An invalid name conflicts with no other.
    (
        "[[service]]\nname = ''\nports = [80]\n[[service]]\nports = ['79-80']\n[[service]]\nname = 'c'\nports = [80]",
        &[
            (3, "1 to 32 letters"),
            (5, "service.name is missing"),
            (6, "port 80 of service on line 5 belongs to service on line 2 already (line 4)"),
            (9, "port 80 of service c belongs to service on line 5 already (line 6)"),
        ],
    ),
    (
        "[[service]]\nname = 'a'\nports = ['1-16384']\naddresses = ['::1', '::2']",
        &[(
            3,
            "the services have 32768 pairs of a port and an address, 32768 of them in service a, and there may",
        )],
    ),
    (
        "[[service]]\nname = 'a'\nports = [80]\naddresses = ['::1']\n[[service]]\nname = 'b'\nports = [80]\naddresses = ['::1/128']",
        &[(8, "already at ::1/128 (line 4)")],
    ),
];

#[test]
fn every_fault_is_reported_with_its_line() {
    for (text, expected) in WRONG {
        let faults = Config::parse(format!("interfaces = ['v0']\n{text}").as_bytes()).expect_err(text);
        let is_expected = |(fault, (line, what)): (&Fault, &(usize, &str))| {
            fault.line == *line && fault.what.contains(what)
        };
        let all = faults.len() == expected.len() && faults.iter().zip(*expected).all(is_expected);
        assert!(all, "{text}\n{faults:#?}");
    }
}

/// The minimum depends on CONFIG_HZ of the kernel.
#[test]
fn a_burst_has_a_minimum_that_depends_on_the_clock() {
    let hz = crate::kernel::clock::jiffies_per_second().unwrap();
    let fault = |guard: &str, key: &str, burst: u64| {
        let table = format!("[service.{guard}]\n{key}limit = '{}/min'\n{key}burst = {burst}", 600 * hz);
        let table = table.replace("per_source_limit", "per_source");
        let text = format!("interfaces = ['v0']\n[[service]]\nname = 'a'\nports = [1]\n{table}");
        match Config::parse(text.as_bytes()) {
            Ok(_) => None,
            Err(faults) => Some((faults.len(), faults[0].line, faults[0].what.clone())),
        }
    };
    for (guard, key) in [("fair", ""), ("shed", ""), ("shed", "per_source_")] {
        assert_eq!(fault(guard, key, 10), None);
        let (1, 7, what) = fault(guard, key, 9).expect("a fault") else { panic!("one, in line 7") };
        let expected = format!("service.{guard}.{key}burst: 9 is too small for {} in 60 s: ", 600 * hz);
        assert!(what.starts_with(&expected) && what.ends_with("it takes at least 10"), "{what}");
    }
}

#[test]
fn unusable_files_are_refused() {
    let faults = |content: &[u8]| Config::parse(content).expect_err("a fault");
    for missing in ["", "interfaces = []"] {
        let [fault] = &faults(missing.as_bytes())[..] else { panic!("{missing}") };
        assert_eq!(fault.what, "interfaces is missing; write, for example, interfaces = [\"eth0\"]");
    }
    let names = "interfaces = ['a/b',\n'v0',\n'', \"v\\u0000\", '..', 'sixteen--letters']";
    let found = faults(names.as_bytes());
    let lines: Vec<_> = found.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [1, 3, 3, 3, 3], "{found:#?}");
    assert!(found[0].what.starts_with("interfaces: \"a/b\" cannot be the name of an interface"));
    let [fault] = &faults(b"interfaces = [\n'\xff']")[..] else { panic!() };
    assert_eq!((fault.line, fault.what.as_str()), (2, "this is not UTF-8; TOML is"));
    let [fault] = &faults(&vec![b'\n'; LONGEST as usize + 1])[..] else { panic!() };
    assert!(fault.what.contains("longer"), "{fault:?}");
    let error = Config::read(Path::new("/nonexistent/x")).unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "cannot read the configuration /nonexistent/x: No such file or directory (os error 2)"
    );
    for (path, kind) in [("/dev/zero", "a device"), ("/proc", "a folder")] {
        let error = Config::read(Path::new(path)).unwrap_err();
        let expected =
            format!("cannot read the configuration {path}: it is {kind}: give --config a regular file");
        assert_eq!(format!("{error:#}"), expected);
    }
}

#[test]
fn some_settings_are_fixed_while_tfo_runs() {
    let full = parse(FULL);
    assert_eq!(full.fixed(&full), [""; 0]);
    let other = Config { services: Services::default(), ..full.clone() };
    assert_eq!(full.fixed(&other), [""; 0]);
    let other = parse("interfaces = ['v0']");
    let all = full.fixed(&other);
    assert_eq!(all.len(), 11);
    assert_eq!(other.fixed(&full), all);
    let other = Config { maps: Sizes { replays: 2048, ..full.maps }, ..full.clone() };
    assert_eq!(full.fixed(&other), ["maps.replays"]);
}
