//! What `tfo run` is told, whether by its command line or by a file.

use clap::ValueEnum;
use tfo_common::{policy::SEATS, verdict::Mode};

/// `--keys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysFrom {
    /// Whoever sets the sysctl.
    Kernel,
    /// We make them.
    Random,
    /// A secret in this file, credential, or standard input.
    Secret(String),
}

impl KeysFrom {
    /// Where `text` says that keys come from.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kernel" => Ok(Self::Kernel),
            None if text == "random" => Ok(Self::Random),
            Some(("secret", file)) if !file.is_empty() => Ok(Self::Secret(file.to_owned())),
            _ => Err("it is kernel, random or secret:FILE".to_owned()),
        }
    }
}

/// `--mode`.
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

/// `--attach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AttachMode {
    /// In the driver (native XDP), or else in the stack (generic)
    #[default]
    Auto,
    /// In the driver (native XDP)
    Native,
    /// In the stack (generic XDP)
    Generic,
}

/// A share of all, such as `0.1%`.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let Some(percent) = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok()) else {
        return Err("it takes a percentage, such as 0.1%".to_owned());
    };
    if (0.0..=100.0).contains(&percent) { Ok(percent / 100.0) } else { Err("it takes 0% to 100%".to_owned()) }
}

/// How many entries the tables of the protections have; what has no room pushes out what was not used for longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Sources that have sent good cookies, and as many that have sent unknown ones.
    pub sources: u32,
    /// SYNs that have become connections.
    pub replays: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Sizes {
    /// What is remembered where nothing else is said.
    pub const DEFAULT: Self = Self { sources: 1 << 16, replays: 1 << 16 };

    /// The rows of either table.
    pub fn rows(self) -> [u32; 2] {
        [self.sources, self.replays].map(|entries| entries.div_ceil(SEATS as u32).next_power_of_two())
    }
}
