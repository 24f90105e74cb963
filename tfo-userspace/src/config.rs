//! The configuration file. It is read as a whole, and each fault is reported with its line.

mod open;
mod protections;
mod table;
mod values;

use std::{
    fmt,
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::Utf8Error,
    time::Duration,
};

use anyhow::{Context as _, Result};
use open::open;
use serde::Serialize;
use table::{Faults, Table};
use toml::de::DeTable;
pub(crate) use values::{overlap, parse_address};

use crate::{
    keys::schedule,
    model::{
        fleet::Etcd,
        services::Services,
        settings::{AttachMode, KeysFrom, Sizes},
    },
};

/// Maximum length of the file, in bytes.
const LONGEST: u64 = 4 << 20;

/// Configuration of `tfo run`, from the file or from the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Names of the interfaces to attach to.
    pub interfaces: Vec<String>,
    /// Place in the receive path.
    pub attach: AttachMode,
    /// Address at which metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Source and lifetime of the keys.
    pub keys: Keys,
    /// Sizes of the protections' tables.
    pub maps: Sizes,
    /// Services with their modes and protections.
    pub services: Services,
}

/// Source and lifetime of the keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Keys {
    /// Source of the keys.
    pub source: KeysFrom,
    /// Interval between rotations; `None` for the default of the source.
    pub rotate: Option<Duration>,
    /// Time within which all hosts learn a new secret.
    pub overlap: Duration,
    /// Path of the state file, which keeps random keys over a restart.
    pub state: PathBuf,
    /// Share of all valid cookies, from 0 to 1. A rotation drops the retired keys whose share is smaller.
    pub retire_below: Option<f64>,
    /// Age at which retired keys are dropped.
    pub max_age: Option<Duration>,
    /// Access to etcd, for keys of a fleet.
    pub etcd: Option<Etcd>,
}

/// Default of [`Keys::overlap`].
pub const OVERLAP: Duration = Duration::from_hours(1);

impl Keys {
    /// Returns the interval between rotations. For a secret, the default is tofurkey's, so that a mixed fleet agrees.
    pub fn interval(&self) -> Duration {
        let default = match self.source {
            KeysFrom::Secret(_) | KeysFrom::Etcd => schedule::USUAL,
            KeysFrom::Kernel | KeysFrom::Random => Duration::from_hours(4),
        };
        self.rotate.unwrap_or(default)
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            source: KeysFrom::Kernel,
            rotate: None,
            overlap: OVERLAP,
            state: "/var/lib/tfo/keys.json".into(),
            retire_below: None,
            max_age: None,
            etcd: None,
        }
    }
}

/// Fault in a line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Number of the line, from 1.
    pub line: usize,
    /// Description of the fault, with advice.
    pub what: String,
}

/// Faults of a file.
#[derive(Debug)]
pub struct Invalid {
    /// Path of the file.
    pub file: PathBuf,
    /// Faults in the order of their lines. There is at least one.
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
    /// Reads and validates a file. Faults in its content are returned as an [`Invalid`].
    pub fn read(file: &Path) -> Result<Self> {
        let mut content = Vec::new();
        let read = open(file).and_then(|file| Ok(file.take(LONGEST + 1).read_to_end(&mut content)?));
        read.with_context(|| format!("cannot read the configuration {}", file.display()))?;
        Self::parse(&content).map_err(|faults| Invalid { file: file.to_owned(), faults }.into())
    }

    /// Validates the content of a file. Returns all its faults, or only the first if it is not TOML.
    pub fn parse(content: &[u8]) -> Result<Self, Vec<Fault>> {
        let faults = Faults::of(content);
        let config = Self::read_noting(content, &faults);
        let found = faults.all();
        config.filter(|_| found.is_empty()).ok_or(found)
    }

    /// Reads the content of a file, and adds its faults to `faults`. The result is valid only if there are none.
    fn read_noting(content: &[u8], faults: &Faults) -> Option<Self> {
        if content.len() as u64 > LONGEST {
            faults.add(0, format!("this is longer than {LONGEST} bytes; is it the right file?"));
            return None;
        }
        let not_utf8 =
            |error: Utf8Error| faults.add(error.valid_up_to(), "this is not UTF-8; TOML is".to_owned());
        let text = str::from_utf8(content).map_err(not_utf8).ok()?;
        let not_toml = |error: toml::de::Error| {
            let at = error.span().map_or(content.len(), |span| span.start);
            faults.add(at, format!("{}; https://toml.io describes the form", error.message()));
        };
        let root = DeTable::parse(text).map_err(not_toml).ok()?;
        Some(Table::root(root, faults, values::config))
    }

    /// Returns the settings that differ in `other` and can't be changed while tfo runs.
    pub fn fixed(&self, other: &Self) -> Vec<&'static str> {
        let (keys, others) = (&self.keys, &other.keys);
        [
            ("interfaces", self.interfaces == other.interfaces),
            ("attach", self.attach == other.attach),
            ("metrics", self.metrics == other.metrics),
            ("keys.source", keys.source == others.source),
            ("keys.rotate", keys.interval() == others.interval()),
            ("keys.overlap", keys.overlap == others.overlap),
            ("keys.state", keys.state == others.state),
            ("keys.retire_below", keys.retire_below == others.retire_below),
            ("keys.max_age", keys.max_age == others.max_age),
            ("keys.etcd", keys.etcd == others.etcd),
            ("maps.sources", self.maps.sources == other.maps.sources),
            ("maps.replays", self.maps.replays == other.maps.replays),
        ]
        .into_iter()
        .filter_map(|(name, is_same)| (!is_same).then_some(name))
        .collect()
    }
}

#[cfg(test)]
mod tests;
