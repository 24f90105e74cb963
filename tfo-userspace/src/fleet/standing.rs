//! Standing of each host of a fleet: in step, behind, or gone.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{document::Outline, record::Record};

/// Standing of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The host has all secrets of the document, and the right one is in force.
    InStep,
    /// The host is there, but lacks something.
    Behind,
    /// The lease of the host is over: it is off, or can't get to etcd.
    Gone,
    /// The record is not from a host with the key of the fleet.
    Refused,
}

impl Standing {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::InStep => "in step",
            Self::Behind => "BEHIND",
            Self::Gone => "GONE",
            Self::Refused => "REFUSED",
        }
    }
}

/// A host, as its records show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Name of the host.
    pub name: String,
    /// Standing of the host.
    pub standing: Standing,
    /// Reason for which it is not in step.
    pub why: Option<String>,
    /// Last record of the host; `None` if it can't be read.
    #[serde(flatten)]
    pub record: Option<Record>,
}

/// Records that etcd has, by the name of the host. An error says why a record is refused.
#[derive(Debug, Default)]
pub struct Records {
    /// Records under a lease.
    pub live: BTreeMap<String, Result<Record, String>>,
    /// Records without a lease.
    pub known: BTreeMap<String, Result<Record, String>>,
}

/// State that the fleet expects of each host.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Numbers of the document.
    pub outline: Outline,
    /// Fingerprints of the keys that may be current now, by the time between two keys in seconds: the one of the clock,
    /// and its neighbours.
    pub current: BTreeMap<u64, Vec<String>>,
}

impl Records {
    /// Returns the names of all hosts.
    pub fn names(&self) -> BTreeSet<&str> {
        self.live.keys().chain(self.known.keys()).map(String::as_str).collect()
    }

    /// Returns the times between two keys that the hosts have, in seconds, the most frequent first.
    pub fn intervals(&self) -> Vec<u64> {
        let mut counts = BTreeMap::<u64, usize>::new();
        for record in self.live.values().flatten() {
            *counts.entry(record.rotate).or_default() += 1;
        }
        let mut intervals: Vec<_> = counts.into_iter().collect();
        intervals.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        intervals.into_iter().map(|(interval, _)| interval).collect()
    }

    /// Judges each host.
    pub fn judge(&self, expected: &Expected) -> Vec<Host> {
        let usual = self.intervals().first().copied();
        self.names().into_iter().map(|name| self.host(name, expected, usual)).collect()
    }

    fn host(&self, name: &str, expected: &Expected, usual: Option<u64>) -> Host {
        let name_ = name.to_owned();
        let refused = |why: &String| Host {
            name: name_.clone(),
            standing: Standing::Refused,
            why: Some(why.clone()),
            record: None,
        };
        match (self.live.get(name), self.known.get(name)) {
            (Some(Err(why)), _) | (None, Some(Err(why))) => refused(why),
            (Some(Ok(record)), _) => {
                let why = behind(record, expected, usual);
                let standing = if why.is_some() { Standing::Behind } else { Standing::InStep };
                Host { name: name_, standing, why, record: Some(record.clone()) }
            }
            (None, Some(Ok(record))) => Host {
                name: name_,
                standing: Standing::Gone,
                why: Some("its lease is over: it is off, or cannot get to etcd".to_owned()),
                record: Some(record.clone()),
            },
            (None, None) => refused(&"it has no record".to_owned()),
        }
    }
}

/// Returns what a host lacks.
fn behind(record: &Record, expected: &Expected, usual: Option<u64>) -> Option<String> {
    let (applied, outline) = (&record.applied, &expected.outline);
    if let Some(fault) = &applied.fault {
        return Some(fault.clone());
    }
    if applied.generation != outline.generation {
        return Some(format!("it has generation {}, the fleet {}", applied.generation, outline.generation));
    }
    if applied.in_force != outline.in_force {
        return Some(format!(
            "secret {} is in force there, {} in the fleet",
            applied.in_force, outline.in_force
        ));
    }
    if applied.learnt < outline.newest() {
        return Some(format!("it has not learnt secret {}", outline.newest()));
    }
    if applied.forgotten < outline.forget_below {
        return Some("it has not forgotten the leaked secret".to_owned());
    }
    if usual.is_some_and(|usual| usual != record.rotate) {
        return Some(format!("its keys change every {} s, unlike others' (keys.rotate)", record.rotate));
    }
    let may_be = expected.current.get(&record.rotate)?;
    let is_current = applied.current.as_ref().is_some_and(|current| may_be.contains(current));
    (!is_current).then(|| "its current key is of another time or secret: compare its clock".to_owned())
}

/// Returns the names of the hosts that do not satisfy `has`, among all if `with_gone`, else among those under a lease.
pub fn lacking(records: &Records, with_gone: bool, has: impl Fn(&Record) -> bool) -> Vec<String> {
    let names = records.names().into_iter();
    let is_lacking = |name: &&str| match records.live.get(*name) {
        Some(Ok(record)) => !has(record),
        Some(Err(_)) => true,
        None => with_gone,
    };
    names.filter(is_lacking).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::record::Applied;

    fn record(name: &str, applied: Applied) -> Record {
        Record::new(name, "1", 10, 100, applied)
    }

    fn applied() -> Applied {
        Applied {
            generation: 5,
            learnt: 5,
            in_force: 3,
            forgotten: 2,
            current: Some("aa".to_owned()),
            ..Applied::default()
        }
    }

    fn expected() -> Expected {
        Expected {
            outline: Outline {
                generation: 5,
                in_force: 3,
                fingerprint: String::new(),
                next: Some(5),
                forget_below: 2,
            },
            current: [(10, vec!["aa".to_owned(), "bb".to_owned()])].into(),
        }
    }

    fn records(live: &[Record], known: &[Record]) -> Records {
        let by_name = |records: &[Record]| {
            records.iter().map(|record| (record.name.clone(), Ok(record.clone()))).collect()
        };
        Records { live: by_name(live), known: by_name(known) }
    }

    fn standing(applied: Applied) -> (Standing, String) {
        let host = records(&[record("a", applied)], &[]).judge(&expected()).remove(0);
        (host.standing, host.why.unwrap_or_default())
    }

    #[test]
    fn a_host_that_has_all_is_in_step() {
        assert_eq!(standing(applied()), (Standing::InStep, String::new()));
    }

    #[test]
    fn each_lack_is_named() {
        for (lacking, named) in [
            (Applied { generation: 4, ..applied() }, "generation 4"),
            (Applied { in_force: 1, ..applied() }, "secret 1 is in force there"),
            (Applied { learnt: 3, ..applied() }, "not learnt secret 5"),
            (Applied { forgotten: 0, ..applied() }, "not forgotten"),
            (Applied { current: Some("cc".to_owned()), ..applied() }, "another time or secret"),
            (Applied { current: None, ..applied() }, "another time or secret"),
            (Applied { fault: Some("no disk".to_owned()), ..applied() }, "no disk"),
        ] {
            let (standing, why) = standing(lacking);
            assert!(standing == Standing::Behind && why.contains(named), "{named}: {why}");
        }
    }

    #[test]
    fn silent_and_forged_hosts_are_named() {
        let mut records =
            records(&[record("a", applied())], &[record("a", applied()), record("b", applied())]);
        records.live.insert("c".to_owned(), Err("forged".to_owned()));
        let standings: Vec<_> =
            records.judge(&expected()).into_iter().map(|host| (host.name, host.standing)).collect();
        let expected = [("a", Standing::InStep), ("b", Standing::Gone), ("c", Standing::Refused)];
        assert_eq!(standings, expected.map(|(name, standing)| (name.to_owned(), standing)));
        assert_eq!(lacking(&records, true, |_| true), ["b", "c"]);
        assert_eq!(lacking(&records, false, |_| false), ["a", "c"]);
    }

    #[test]
    fn another_interval_is_named() {
        let mut odd = record("c", applied());
        odd.rotate = 20;
        let records = records(&[record("a", applied()), record("b", applied()), odd], &[]);
        let hosts = records.judge(&expected());
        assert_eq!(hosts[0].standing, Standing::InStep);
        assert!(hosts[2].why.as_ref().unwrap().contains("every 20 s"));
    }
}
