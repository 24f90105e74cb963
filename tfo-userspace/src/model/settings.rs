//! Settings of `tfo run`, from its command line or its configuration file.

use clap::ValueEnum;
use tfo_common::{table::SEATS, verdict::Mode};

/// Value of `--keys`: the source of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysFrom {
    /// The kernel: tfo follows its keys.
    Kernel,
    /// tfo makes random keys.
    Random,
    /// A secret, in this file or credential, or on standard input.
    Secret(String),
    /// The secret of a fleet, in etcd.
    Etcd,
}

impl KeysFrom {
    /// Parses the value of `--keys`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kernel" => Ok(Self::Kernel),
            None if text == "random" => Ok(Self::Random),
            None if text == "etcd" => Ok(Self::Etcd),
            Some(("secret", file)) if !file.is_empty() => Ok(Self::Secret(file.to_owned())),
            _ => Err("it is kernel, random, secret:FILE or etcd".to_owned()),
        }
    }
}

/// Value of `--mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgramMode {
    /// Look and count; never change a packet
    #[default]
    Observe,
    /// Also translate cookies of old keys into ones that the kernel accepts
    Accelerate,
    /// Also let protections act
    Shield,
}

impl From<ProgramMode> for Mode {
    fn from(mode: ProgramMode) -> Self {
        match mode {
            ProgramMode::Observe => Self::Observe,
            ProgramMode::Accelerate => Self::Accelerate,
            ProgramMode::Shield => Self::Shield,
        }
    }
}

/// Value of `--attach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AttachMode {
    /// In the driver (native XDP), or else in the stack (generic); behind an XDP program of others, if there is one (tcx)
    #[default]
    Auto,
    /// In the driver (native XDP)
    Native,
    /// In the stack (generic XDP)
    Generic,
    /// Behind XDP and before netfilter, beside any XDP program of others
    Tcx,
}

/// Parses a percentage such as `0.1%` into a fraction from 0 to 1.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let Some(percent) = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok()) else {
        return Err("it takes a percentage, such as 0.1%".to_owned());
    };
    if (0.0..=100.0).contains(&percent) { Ok(percent / 100.0) } else { Err("it takes 0% to 100%".to_owned()) }
}

/// Sizes of the protections' tables, in entries. A full row of a table evicts its least recently used entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Number of sources with good cookies, and the same number of sources with unknown cookies.
    pub sources: u32,
    /// Number of SYNs that have become connections.
    pub replays: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Sizes {
    /// Default sizes.
    pub const DEFAULT: Self = Self { sources: 1 << 16, replays: 1 << 16 };

    /// Returns the number of rows of the tables for sources and for replays, each a power of two.
    pub fn rows(self) -> [u32; 2] {
        [self.sources, self.replays].map(|entries| entries.div_ceil(SEATS as u32).next_power_of_two())
    }
}
