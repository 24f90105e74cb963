//! The record of a host: what it runs, and which secrets it has. The commands of `tfo fleet` wait for it.

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::seal::SealKey;

/// Version of the format. No other version is read.
pub const VERSION: u64 = 1;

/// State of the keys on a host, as its controller has brought it about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Generation of the last document that is in all maps.
    pub generation: u64,
    /// Number of the newest secret whose keys are in all maps.
    pub learnt: u64,
    /// Number of the secret whose keys are in force in kernel and maps.
    pub in_force: u64,
    /// Number below which every secret is gone from kernel and maps.
    pub forgotten: u64,
    /// Fingerprint of the kernel's current key.
    pub current: Option<String>,
    /// Fingerprint of the kernel's backup key.
    pub backup: Option<String>,
    /// Interfaces to which the program is attached.
    pub interfaces: Vec<String>,
    /// Fault on the host; `None` if all is well.
    pub fault: Option<String>,
}

/// Record of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u64,
    /// Name of the host.
    pub name: String,
    /// Random number that a host keeps, by which two hosts with one name are noticed.
    pub instance: String,
    /// Version of tfo.
    pub tfo: String,
    /// Time between two keys, in seconds. It has to be the same on all hosts.
    pub rotate: u64,
    /// Time at which the record was written, in seconds since 1970, by the clock of the host.
    pub written: u64,
    /// State of the keys.
    #[serde(flatten)]
    pub applied: Applied,
}

/// Part of the content that all versions have.
#[derive(Deserialize)]
struct Header {
    version: u64,
}

impl Record {
    /// Makes the record of the host `name`.
    pub fn new(name: &str, instance: &str, rotate: u64, written: u64, applied: Applied) -> Self {
        Self {
            version: VERSION,
            name: name.to_owned(),
            instance: instance.to_owned(),
            tfo: env!("CARGO_PKG_VERSION").to_owned(),
            rotate,
            written,
            applied,
        }
    }

    /// Seals the record for storage under `place`, which ends with the name of the host.
    pub fn seal(&self, key: &SealKey, place: &str) -> Result<Vec<u8>> {
        key.seal(place, &serde_json::to_vec(self)?)
    }

    /// Opens what is stored under `place`. Fails if it was not written by a host with the key of the fleet.
    pub fn open(key: &SealKey, place: &str, sealed: &[u8]) -> Result<Self> {
        let text = key.open(place, sealed)?;
        let broken = |error: serde_json::Error| anyhow!("it is no record of a host: {error}");
        let Header { version } = serde_json::from_slice(&text).map_err(broken)?;
        if version != VERSION {
            bail!("it is a record of version {version}, and this tfo reads version {VERSION}");
        }
        serde_json::from_slice(&text).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::seal::tests::key;

    #[test]
    fn a_record_belongs_to_one_place() {
        let record = Record::new("a", "12", 10, 100, Applied { learnt: 3, ..Applied::default() });
        let sealed = record.seal(&key(1), "tfo/hosts/a").unwrap();
        assert_eq!(Record::open(&key(1), "tfo/hosts/a", &sealed).unwrap(), record);
        for (key, place) in [(key(1), "tfo/hosts/b"), (key(1), "tfo/known/a"), (key(2), "tfo/hosts/a")] {
            assert!(Record::open(&key, place, &sealed).is_err(), "{place}");
        }
        let other = key(1).seal("a", br#"{"version":2,"anything":1}"#).unwrap();
        let error = Record::open(&key(1), "a", &other).unwrap_err().to_string();
        assert!(error.contains("of version 2"), "{error}");
    }
}
