//! The configuration file: read as a whole, with the line of all that is wrong with it.

mod protections;
mod table;

use std::{
    fmt,
    fs::{self, File, Metadata},
    io::Read as _,
    net::SocketAddr,
    ops::RangeInclusive,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::Utf8Error,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use nix::unistd::geteuid;
use protections::guards;
use serde::Serialize;
use table::{Faults, Table, number, text, wrong_type};
use tfo_common::verdict::Mode;
use toml::de::{DeTable, DeValue};

use crate::{
    kernel::interface,
    keys::schedule::Schedule,
    model::{
        services::{Conflict, Conflicts, Named, Place, Services, parse_name, parse_ports, parse_prefix},
        settings::{AttachMode, KeysFrom, ProgramMode, Sizes, parse_share},
    },
    util::time::parse_duration,
};

/// The longest file, in bytes.
const LONGEST: u64 = 4 << 20;

/// What `tfo run` is to do, whether a file or the command line says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The interfaces to attach to.
    pub interfaces: Vec<String>,
    /// Where in the receive path.
    pub attach: AttachMode,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Where keys come from.
    pub keys: Keys,
    /// How much is remembered.
    pub maps: Sizes,
    /// Services, with their modes and protections.
    pub services: Services,
}

/// Where keys come from, and when they go.
#[derive(Clone, Debug, PartialEq)]
pub struct Keys {
    /// Who makes them.
    pub source: KeysFrom,
    /// How often they change.
    pub rotate: Duration,
    /// Where keys of our own are kept over a restart.
    pub state: PathBuf,
    /// At a rotation, retired keys whose share of all valid cookies is below this are given up.
    pub retire_below: Option<f64>,
    /// The age at which retired keys are given up.
    pub max_age: Option<Duration>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            source: KeysFrom::Kernel,
            rotate: Duration::from_secs(4 * 60 * 60),
            state: "/var/lib/tfo/keys.json".into(),
            retire_below: None,
            max_age: None,
        }
    }
}

/// What [`Sizes`] may be.
const SIZES: RangeInclusive<u32> = 1024..=16 << 20;

/// What is wrong in a line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Which line, from 1 on.
    pub line: usize,
    /// What is wrong, and what to do.
    pub what: String,
}

/// All that is wrong with a file.
#[derive(Debug)]
pub struct Invalid {
    /// Its path.
    pub file: PathBuf,
    /// In the order of its lines; at least one.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        let lines: Vec<_> =
            self.faults.iter().map(|Fault { line, what }| format!("{file}:{line}: {what}")).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Invalid {}

impl Config {
    /// Reads and validates a file. What is wrong in it is an [`Invalid`].
    pub fn read(file: &Path) -> Result<Self> {
        let mut content = Vec::new();
        let read = open(file).and_then(|file| Ok(file.take(LONGEST + 1).read_to_end(&mut content)?));
        read.with_context(|| format!("cannot read the configuration {}", file.display()))?;
        Self::parse(&content).map_err(|faults| Invalid { file: file.to_owned(), faults }.into())
    }

    /// Validates the content of a file. Where it is not even TOML, the first fault; else all.
    pub fn parse(content: &[u8]) -> Result<Self, Vec<Fault>> {
        let faults = Faults::of(content);
        let config = Self::noting(content, &faults);
        let found = faults.all();
        config.filter(|_| found.is_empty()).ok_or(found)
    }

    /// The same, with what is wrong in `faults`; where there are any, what has come of it is of no use.
    fn noting(content: &[u8], faults: &Faults) -> Option<Self> {
        if content.len() as u64 > LONGEST {
            faults.add(0, format!("this is longer than {LONGEST} bytes; is it the right file?"));
            return None;
        }
        let not_utf8 =
            |error: Utf8Error| faults.add(error.valid_up_to(), "this is not UTF-8; TOML is".to_owned());
        let text = str::from_utf8(content).map_err(not_utf8).ok()?;
        let not_toml = |error: toml::de::Error| {
            let at = error.span().map_or(content.len(), |span| span.start);
            faults.add(at, format!("{}; https://toml.io tells the form", error.message()));
        };
        let root = DeTable::parse(text).map_err(not_toml).ok()?;
        Some(Table::root(root, faults, config))
    }

    /// The keys of the file whose values `other` has changed, and that can't be changed in a running tfo.
    pub fn fixed(&self, other: &Self) -> Vec<&'static str> {
        let (keys, others) = (&self.keys, &other.keys);
        [
            ("interfaces", self.interfaces == other.interfaces),
            ("attach", self.attach == other.attach),
            ("metrics", self.metrics == other.metrics),
            ("keys.source", keys.source == others.source),
            ("keys.rotate", keys.rotate == others.rotate),
            ("keys.state", keys.state == others.state),
            ("keys.retire_below", keys.retire_below == others.retire_below),
            ("keys.max_age", keys.max_age == others.max_age),
            ("maps.sources", self.maps.sources == other.maps.sources),
            ("maps.replays", self.maps.replays == other.maps.replays),
        ]
        .into_iter()
        .filter_map(|(name, is_same)| (!is_same).then_some(name))
        .collect()
    }
}

/// Opens a configuration, which only root and we may change.
fn open(path: &Path) -> Result<File> {
    // Before it is opened, too: opening some devices has effects.
    regular(&fs::metadata(path)?)?;
    // A FIFO that has come there since must not keep us waiting.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    regular(&metadata)?;
    let (user, path) = (geteuid(), path.display());
    if metadata.uid() != 0 && metadata.uid() != user.as_raw() {
        bail!("it belongs to user {}, who could change it: `chown root {path}`", metadata.uid());
    }
    if metadata.mode() & 0o002 != 0 {
        bail!("anybody may write to it: `chmod o-w {path}`");
    }
    Ok(file)
}

fn regular(metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    bail!("it is {kind}: give --config a regular file")
}

// Below, what is wrong is noted and something else taken instead: the rest is to be looked at, too.

fn config(root: &mut Table) -> Config {
    root.need("interfaces", "[\"eth0\"]");
    Config {
        interfaces: root
            .list("interfaces", text(interface::parse_name))
            .into_iter()
            .map(|(_, name)| name)
            .collect(),
        attach: root.get("attach", choice).unwrap_or_default(),
        metrics: root.get("metrics", text(parse_address)),
        keys: root.table("keys", keys).unwrap_or_default(),
        maps: root.table("maps", sizes).unwrap_or_default(),
        services: services(root),
    }
}

fn keys(table: &mut Table) -> Keys {
    let default = Keys::default();
    Keys {
        source: table.get("source", text(KeysFrom::parse)).unwrap_or(default.source),
        rotate: table.get("rotate", text(interval)).unwrap_or(default.rotate),
        state: table.get("state", text(not_empty)).map_or(default.state, PathBuf::from),
        retire_below: table.get("retire_below", text(parse_share)),
        max_age: table.get("max_age", text(age)),
    }
}

fn sizes(table: &mut Table) -> Sizes {
    let default = Sizes::default();
    Sizes {
        sources: table.get("sources", number(SIZES)).unwrap_or(default.sources),
        replays: table.get("replays", number(SIZES)).unwrap_or(default.replays),
    }
}

/// Where the name of a service stands, and each of its ports.
type Offsets = (usize, Vec<usize>);

fn services(root: &mut Table) -> Services {
    let (named, offsets): (Vec<_>, Vec<Offsets>) = root.tables("service", service).into_iter().unzip();
    // What no service names is only looked at.
    let services = Services::new(named, Mode::Observe);
    services.unwrap_or_else(|Conflicts(conflicts)| {
        let offset = |(service, ports): Place| match ports {
            Some(ports) => offsets[service].1[ports],
            None => offsets[service].0,
        };
        for Conflict { at, earlier, what, advice } in conflicts {
            let earlier = earlier.map(|earlier| format!(" (line {})", root.faults.line(offset(earlier))));
            root.faults.add(offset(at), format!("{what}{}; {advice}", earlier.unwrap_or_default()));
        }
        Services::default()
    })
}

fn service(table: &mut Table) -> (Named, Offsets) {
    table.need("name", "\"web\"");
    table.need("ports", "[80, 443, \"8000-8010\"]");
    let offset = table.place("name");
    // What stands in for a name can't be one.
    let line = table.faults.line(table.at);
    let name = table.get("name", text(parse_name)).unwrap_or_else(|| format!("on line {line}"));
    let (offsets, ports) = table.list("ports", ports).into_iter().unzip();
    let named = Named {
        name,
        ports,
        addresses: table
            .list("addresses", text(parse_prefix))
            .into_iter()
            .map(|(_, prefix)| prefix)
            .collect(),
        mode: table.get("mode", choice::<ProgramMode>).unwrap_or_default().into(),
        guards: guards(table),
    };
    (named, (offset, offsets))
}

fn ports(value: &DeValue) -> Result<RangeInclusive<u16>, String> {
    match value {
        DeValue::Integer(_) => number(1..=u16::MAX)(value).map(|port| port..=port),
        DeValue::String(range) => parse_ports(range),
        other => Err(wrong_type(other, "ports such as 80 and \"8000-8010\"")),
    }
}

fn choice<T: ValueEnum>(value: &DeValue) -> Result<T, String> {
    let names = || T::value_variants().iter().filter_map(T::to_possible_value);
    let names = || names().map(|value| value.get_name().to_owned()).collect::<Vec<_>>().join(", ");
    text(|name| T::from_str(name, false).map_err(|_| format!("`{name}` is unknown; use one of {}", names())))(
        value,
    )
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("this is empty; leave it out, or fill it".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// The address where metrics are served. Port 0 would be another one at each start.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    const EXAMPLE: &str = "it is such as 127.0.0.1:9434";
    let address: SocketAddr =
        text.parse().map_err(|_| format!("`{text}` is not an address with a port; {EXAMPLE}"))?;
    if address.port() == 0 { Err(format!("{text} has port 0; {EXAMPLE}")) } else { Ok(address) }
}

fn interval(text: &str) -> Result<Duration, String> {
    Schedule::new(parse_duration(text)?)
        .map(|schedule| schedule.interval())
        .map_err(|error| error.to_string())
}

fn age(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .and_then(|age| if age.is_zero() { Err("it takes at least 1s".to_owned()) } else { Ok(age) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::guards::{Clamp, Fair, Guards, Hide, Limit, Once, Shed, SourceLen};

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
[maps]
sources = 1024
replays = 16_777_216
[[service]]
name = "web"
ports = [80, 0x1bb, "8000-8010"]
addresses = ["192.0.2.0/24", "2001:db8::1"]
mode = "shield"
hide = true
once = { remember = "1h", dry_run = true }
fair = { limit = "10/min", burst = 20, source_v4 = 24, source_v6 = 56, dry_run = true }
clamp = { factor = 100 }
[service.shed]
limit = "1000/s"
per_source = "36000/h"
per_source_burst = 1
drop = true
[[service]]
name = "dns"
ports = [53]
mode = "accelerate"
once = true
clamp = true
hide = { dry_run = true }
shed = false
fair = { limit = "7/s" }
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
                rotate: Duration::from_secs(600),
                state: "keys".into(),
                retire_below: Some(0.001),
                max_age: Some(Duration::from_secs(86400)),
            },
            maps: Sizes { sources: 1024, replays: 1 << 24 },
            services: Services::new(
                vec![
                    Named {
                        name: "web".to_owned(),
                        ports: vec![80..=80, 443..=443, 8000..=8010],
                        addresses: ["192.0.2.0/24", "2001:db8::1/128"]
                            .map(|net| net.parse().unwrap())
                            .to_vec(),
                        mode: Mode::Shield,
                        guards: Guards {
                            hide: Some(Hide { dry_run: false }),
                            once: Some(Once { remember: Duration::from_secs(3600), dry_run: true }),
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
                                dry_run: false,
                            }),
                        },
                    },
                    Named {
                        name: "dns".to_owned(),
                        ports: vec![53..=53],
                        addresses: Vec::new(),
                        mode: Mode::Accelerate,
                        guards: Guards {
                            hide: Some(Hide { dry_run: true }),
                            once: Some(Once { remember: Duration::from_secs(60), dry_run: false }),
                            fair: Some(Fair {
                                limit: limit(7, 1, 7),
                                source: SourceLen { v4: 32, v6: 64 },
                                dry_run: false,
                            }),
                            clamp: Some(Clamp { factor: 3, dry_run: false }),
                            shed: None,
                        },
                    },
                ],
                Mode::Observe,
            )
            .unwrap(),
        };
        assert_eq!(parse(FULL), expected);
    }

    #[test]
    fn what_is_left_out_is_as_on_the_command_line() {
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
        let example = include_str!("../../dist/tfo.toml");
        assert_eq!(parse(example), parse("interfaces = ['eth0']"));
        // Text is behind `# `, what is off behind `#`.
        let on =
            |line: &'static str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
        let on: Vec<_> = example.lines().map(on).collect();
        let config = parse(&on.join("\n"));
        assert_eq!((config.attach, config.maps), (AttachMode::Auto, Sizes::default()));
        let Keys { retire_below, max_age, .. } = config.keys;
        assert_eq!(config.keys, Keys { retire_below, max_age, ..Keys::default() }, "they are the defaults");
        assert!(config.metrics.is_some() && retire_below.is_some() && max_age.is_some());
        let [web] = config.services.named() else { panic!("one service") };
        assert_eq!(web.guards.dry_runs().count(), 5);
        assert!(!web.addresses.is_empty());
    }

    /// Behind `interfaces`, in line 1; and what is to be found wrong: line and part of the text.
    const WRONG: &[(&str, &[(usize, &str)])] = &[
        ("attach = 'x'", &[(2, "attach: `x` is unknown; use one of auto, native, generic")]),
        ("attach = 1", &[(2, "this is of type integer; it takes a string")]),
        ("attach = 'auto", &[(2, "https://toml.io")]),
        ("attach = 'auto'\nattach = 'auto'\nx = 1", &[(3, "duplicate key")]),
        ("metrics = 'localhost'", &[(2, "not an address with a port")]),
        ("metrics = '[::1]:0'", &[(2, "metrics: [::1]:0 has port 0; it is such as")]),
        (
            "interface = 1\n[keys]\nfrom = 1",
            &[(2, "no key interface; there are interfaces, "), (4, "no key keys.from; there are source, ")],
        ),
        ("keys = 1", &[(2, "keys: this is of type integer; it takes a table")]),
        (
            "[keys]\nsource = 'x'\nrotate = '11s'\nstate = ''\nretire_below = '1'\nmax_age = '0s'",
            &[
                (3, "it is kernel, random or secret:FILE"),
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
        (
            "[service]\nname = 'a'",
            &[(2, "service: this is of type table; it takes tables, each as [[service]]")],
        ),
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
            "[[service]]\nname = 'a'\nports = [1]\nmode = 'drop'\nhide = 1\nonce = { remember = '61m' }\nclamp.factor = 0",
            &[
                (5, "`drop` is unknown; use one of observe, accelerate, shield"),
                (6, "hide: this is of type integer; it takes true, false, or a table"),
                (7, "service.once.remember: 61m is out of range"),
                (8, "service.clamp.factor: 0 is out of range; it takes a whole number from 1 to 100"),
            ],
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
                (8, "port 80 of service a is one of service a already (line 4); take"),
                (8, "service a has port 80 twice (line 8); leave"),
                (9, "service a has port 3 twice (line 8); leave"),
            ],
        ),
        // With what else is wrong; the first name is in nobody's way.
        (
            "[[service]]\nname = ''\nports = [80]\n[[service]]\nports = ['79-80']\n[[service]]\nname = 'c'\nports = [80]",
            &[
                (3, "1 to 32 letters"),
                (5, "service.name is missing"),
                (6, "port 80 of service on line 5 is one of service on line 2 already (line 4)"),
                (9, "port 80 of service c is one of service on line 5 already (line 6)"),
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
    fn all_that_is_wrong_is_told_with_its_line() {
        for (text, expected) in WRONG {
            let faults = Config::parse(format!("interfaces = ['v0']\n{text}").as_bytes()).expect_err(text);
            let is_expected = |(fault, (line, what)): (&Fault, &(usize, &str))| {
                fault.line == *line && fault.what.contains(what)
            };
            let all = faults.len() == expected.len() && faults.iter().zip(*expected).all(is_expected);
            assert!(all, "{text}\n{faults:#?}");
        }
    }

    /// A limit is by the kernel's clock, whose ticks are not the same everywhere.
    #[test]
    fn a_burst_is_what_the_clock_needs_at_least() {
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
    fn what_is_no_file_of_ours() {
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
    fn what_a_running_tfo_cannot_change() {
        let full = parse(FULL);
        assert_eq!(full.fixed(&full), [""; 0]);
        let other = Config { services: Services::default(), ..full.clone() };
        assert_eq!(full.fixed(&other), [""; 0]);
        let other = parse("interfaces = ['v0']");
        let all = full.fixed(&other);
        assert_eq!(all.len(), 10);
        assert_eq!(other.fixed(&full), all);
        let other = Config { maps: Sizes { replays: 2048, ..full.maps }, ..full.clone() };
        assert_eq!(full.fixed(&other), ["maps.replays"]);
    }
}
