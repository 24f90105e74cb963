//! Report of an interface's counters, as a table and as JSON.

use std::{collections::BTreeSet, fmt::Write as _};

use comfy_table::CellAlignment::{Left, Right};
use jiff::Timestamp;
use serde::Serialize;
use tfo_common::{
    class::Class,
    counters::{Counters, GuardCounts},
    info::{Attach, Info},
    parse::{Malformed, Unsupported},
    policy::Guard,
    segment::Family,
    verdict::{Mode, Verdict},
};

use crate::{
    dataplane::{Datapath, Pinned, ServiceCounters, pins::Pins},
    model::services::OTHER_NAME,
    view::{
        client::Client,
        rtt_saved::{RttSaved, seconds},
        table::table,
    },
};

/// Counters of one interface; see `tfo counters --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the interface.
    pub interface: String,
    /// Name of its network namespace, if `--netns` named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// Name of the mode.
    pub mode: &'static str,
    /// Place of the program in the receive path: `native` or `generic`.
    pub attach: &'static str,
    /// Time at which counting began (RFC 3339, UTC).
    pub since: Timestamp,
    /// Services whose SYNs are answered now, since a flood is under way or they always are.
    pub answering: BTreeSet<String>,
    /// Number of SYN-ACKs in which the kernel's cookie was replaced by a portable one.
    pub portable_cookies: u64,
    /// SYNs, without the rows that are zero.
    pub syn: Vec<SynRow>,
    /// Frames passed because they are malformed, without the rows that are zero.
    pub malformed: Vec<ReasonRow>,
    /// Frames not classified because they use an unsupported feature, without the rows that are zero.
    pub unsupported: Vec<ReasonRow>,
    /// Whether outcomes of connections are reported.
    pub outcomes: bool,
    /// SYNs by service, and outcomes of the service's connections in the whole network namespace.
    pub services: Vec<ServiceReport>,
    /// Connections from here; null if they are not followed.
    pub client: Option<Client>,
}

/// SYNs of one family, class and verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SynRow {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Name of the class.
    pub class: &'static str,
    /// Name of the verdict.
    pub verdict: &'static str,
    /// Number of SYNs.
    pub packets: u64,
    /// Number of SYNs with data.
    pub with_data: u64,
    /// Bytes of data in these SYNs.
    pub data_bytes: u64,
}

/// Frames without a class for one reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReasonRow {
    /// Name of the reason.
    pub reason: &'static str,
    /// Number of frames.
    pub packets: u64,
}

/// Counters of one service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceReport {
    /// Name of the service; `other` for SYNs to no configured service.
    pub name: String,
    /// SYNs to the service, without the rows that are zero.
    pub syn: Vec<SynRow>,
    /// Connections that began with Fast Open.
    pub accepted: u64,
    /// SYNs with a good cookie that the kernel answered with an ordinary handshake.
    pub refused: u64,
    /// Round trips that accepted connections saved.
    pub rtt_saved: RttSaved,
    /// Protections of the service, without the rows that are zero.
    pub guards: Vec<GuardRow>,
    /// Unsupported frames that may be a SYN to the service, without the rows that are zero. Those of no service are not
    /// listed.
    pub unfollowed: Vec<UnfollowedRow>,
}

/// Unsupported frames that may be a SYN to a service, for one reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnfollowedRow {
    /// Name of the reason.
    pub reason: &'static str,
    /// Frames that were passed.
    pub passed: u64,
    /// Frames that were dropped.
    pub dropped: u64,
}

/// Counters of one protection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GuardRow {
    /// Name of the protection.
    pub guard: &'static str,
    /// SYNs on which the protection acted.
    pub acted: u64,
    /// SYNs on which the protection would have acted, but for a dry run.
    pub would: u64,
}

impl Report {
    /// Reads the counters of `datapath`, without the destinations of connections from here: each takes a system call.
    pub fn of(datapath: &Datapath) -> anyhow::Result<Self> {
        let outcomes = datapath.pins().has_outcomes()?;
        let report = Self::new(datapath.pins(), datapath.info(), &datapath.by_service()?, outcomes);
        let portable_cookies = datapath.watch()?.exchanged;
        let client = datapath.client()?.map(|counts| Client::new(&counts, None));
        Ok(Self { answering: datapath.answering()?, portable_cookies, client, ..report })
    }

    /// Reads the counters in the maps `pinned` of the interface of `pins`.
    pub fn read(pins: &Pins, pinned: &Pinned) -> anyhow::Result<Self> {
        let outcomes = pins.has_outcomes()?;
        let report = Self::new(pins, pinned.info(), &pinned.by_service()?, outcomes);
        let portable_cookies = pinned.watch()?.exchanged;
        Ok(Self { answering: pinned.answering()?, portable_cookies, client: Client::read(pinned)?, ..report })
    }

    /// Makes a report from the counters of each service. `outcomes` says whether outcomes of connections are reported.
    fn new(pins: &Pins, info: &Info, by_service: &[ServiceCounters], outcomes: bool) -> Self {
        let mut counters = Counters::default();
        by_service.iter().for_each(|service| counters.add(&service.counters));
        let malformed =
            Malformed::ALL.iter().map(|reason| (reason.name(), counters.malformed[reason.index()]));
        let unsupported =
            Unsupported::ALL.iter().map(|reason| (reason.name(), counters.unsupported[reason.index()]));
        Self {
            interface: pins.interface().to_owned(),
            netns: pins.netns().map(str::to_owned),
            mode: mode_name(info),
            attach: attach_name(info),
            since: since(info),
            answering: BTreeSet::new(),
            portable_cookies: 0,
            syn: syn_rows(&counters),
            malformed: reason_rows(malformed),
            unsupported: reason_rows(unsupported),
            outcomes,
            services: by_service
                .iter()
                .map(|ServiceCounters { name, counters, outcomes }| ServiceReport {
                    name: name.clone(),
                    syn: syn_rows(counters),
                    accepted: outcomes.accepted,
                    refused: outcomes.refused,
                    rtt_saved: RttSaved::new(&outcomes.rtt_saved),
                    guards: guard_rows(counters),
                    unfollowed: if name == OTHER_NAME { Vec::new() } else { unfollowed_rows(counters) },
                })
                .collect(),
            client: None,
        }
    }

    /// Returns the number of connections that began with Fast Open; `None` if outcomes are not reported.
    pub fn accepted(&self) -> Option<u64> {
        self.outcomes.then(|| self.outcome().0)
    }

    /// Returns the numbers of accepted and refused connections of all services, and the round trips that were saved.
    pub fn outcome(&self) -> (u64, u64, RttSaved) {
        let mut saved = RttSaved::default();
        self.services.iter().for_each(|service| saved.add(&service.rtt_saved));
        let sum = |of: fn(&ServiceReport) -> u64| self.services.iter().map(of).sum();
        (sum(|service| service.accepted), sum(|service| service.refused), saved)
    }

    /// Returns the names of the services whose SYNs are answered now, if there are any.
    pub fn answered(&self) -> Option<String> {
        let names: Vec<_> = self.answering.iter().map(String::as_str).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Returns an empty report, for tests.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        use crate::dataplane::pins::{Bpffs, DEFAULT_BPFFS};

        let bpffs = Bpffs::new(DEFAULT_BPFFS.as_ref());
        Self::new(&bpffs.pins("v0"), &Info::default(), &[], false)
    }

    /// Returns the report in one line, for the log.
    pub fn summary(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        for class in Class::ALL {
            let packets: u64 =
                self.syn.iter().filter(|row| row.class == class.name()).map(|row| row.packets).sum();
            if packets > 0 {
                parts.push(format!("{class} {packets}"));
            }
        }
        for (what, rows) in [("malformed", &self.malformed), ("unsupported", &self.unsupported)] {
            let packets: u64 = rows.iter().map(|row| row.packets).sum();
            if packets > 0 {
                parts.push(format!("{what} {packets}"));
            }
        }
        if parts.is_empty() { "no SYN yet".to_owned() } else { parts.join(", ") }
    }

    /// Returns the report as text for a terminal.
    pub fn text(&self) -> String {
        let Self { interface, mode, attach, since, syn, malformed, unsupported, outcomes, services, .. } =
            self;
        let Self { portable_cookies, client, netns, .. } = self;
        let netns = netns.as_ref().map(|netns| format!("{netns}/")).unwrap_or_default();
        let mut text = format!("{netns}{interface}  {mode}  {attach}  counting since {since:.0}\n");
        if let Some(services) = self.answered() {
            writeln!(
                text,
                "SYNs to {services} are answered, so that a flood of them takes no room in the kernel"
            )
            .expect("writing to a String cannot fail");
        }
        if syn.is_empty() {
            text.push_str("no SYN yet\n");
        } else {
            let rows = syn.iter().map(|row| {
                let numbers = [row.packets, row.with_data, row.data_bytes].map(|n| n.to_string());
                [row.family, row.class, row.verdict].map(str::to_owned).into_iter().chain(numbers)
            });
            let columns = [
                ("family", Left),
                ("class", Left),
                ("verdict", Left),
                ("packets", Right),
                ("with data", Right),
                ("data bytes", Right),
            ];
            text.push_str(&table(&columns, rows));
        }
        for (what, rows) in [("malformed", malformed), ("unsupported", unsupported)] {
            if !rows.is_empty() {
                let rows = rows.iter().map(|row| [row.reason.to_owned(), row.packets.to_string()]);
                text.push_str(&table(&[(what, Left), ("packets", Right)], rows));
            }
        }
        if services.len() > 1 {
            text.push_str(&service_table(services));
        }
        if services.iter().any(|service| !service.guards.is_empty()) {
            text.push_str(&guard_table(services));
        }
        if services.iter().any(|service| !service.unfollowed.is_empty()) {
            text.push_str(&unfollowed_table(services));
        }
        if *portable_cookies > 0 {
            writeln!(text, "SYN-ACKs with a portable cookie: {portable_cookies}")
                .expect("writing to a String cannot fail");
        }
        text.push_str(&if *outcomes { self.sentence() } else { UNKNOWN.to_owned() });
        text.push('\n');
        // A server that is never a client needs no line on that.
        if let Some(client) = client.as_ref().filter(|client| client.sum().all() > 0) {
            text.push_str(&client.text());
            text.push('\n');
        }
        text
    }

    /// Describes the outcomes of all connections in a sentence.
    fn sentence(&self) -> String {
        let (accepted, refused, saved) = self.outcome();
        let mut sentence = match accepted {
            0 => "No connection has begun with Fast Open yet".to_owned(),
            1 => "1 connection began with Fast Open".to_owned(),
            n => format!("{n} connections began with Fast Open"),
        };
        if let Some(median) = saved.median() {
            let [all, median] = [saved.seconds, median].map(seconds);
            write!(sentence, ", which saved {all} of waiting (a round trip of {median} in the median)")
                .expect("writing to a String cannot fail");
        }
        if refused > 0 {
            write!(sentence, "; {refused} had a good cookie and were refused").expect("as above");
        }
        sentence + "."
    }
}

const UNKNOWN: &str = "The outcomes of connections are not known here (`tfo check` says why).";

fn service_table(services: &[ServiceReport]) -> String {
    let is_valid = |row: &&SynRow| {
        [Class::CookieCurrent, Class::CookieBackup, Class::CookieRetired]
            .iter()
            .any(|class| class.name() == row.class)
    };
    let rows = services.iter().map(|service| {
        let sum =
            |rows: &mut dyn Iterator<Item = &SynRow>| rows.map(|row| row.packets).sum::<u64>().to_string();
        [
            service.name.clone(),
            sum(&mut service.syn.iter()),
            sum(&mut service.syn.iter().filter(is_valid)),
            service.accepted.to_string(),
            service.refused.to_string(),
            seconds(service.rtt_saved.seconds),
        ]
    });
    let columns = [
        ("service", Left),
        ("SYNs", Right),
        ("good cookies", Right),
        ("accepted", Right),
        ("refused", Right),
        ("waiting saved", Right),
    ];
    table(&columns, rows)
}

fn guard_table(services: &[ServiceReport]) -> String {
    let rows = services.iter().flat_map(|service| {
        service.guards.iter().map(|GuardRow { guard, acted, would }| {
            [(*guard).to_owned(), service.name.clone(), acted.to_string(), would.to_string()]
        })
    });
    table(&[("protections", Left), ("service", Left), ("acted", Right), ("would have", Right)], rows)
}

fn unfollowed_table(services: &[ServiceReport]) -> String {
    let rows = services.iter().flat_map(|service| {
        service.unfollowed.iter().map(|UnfollowedRow { reason, passed, dropped }| {
            [(*reason).to_owned(), service.name.clone(), passed.to_string(), dropped.to_string()]
        })
    });
    table(&[("not followed", Left), ("service", Left), ("passed", Right), ("dropped", Right)], rows)
}

fn unfollowed_rows(counters: &Counters) -> Vec<UnfollowedRow> {
    let counted = Unsupported::ALL.iter().map(|reason| {
        let (all, dropped) = (counters.unsupported[reason.index()], counters.dropped[reason.index()]);
        UnfollowedRow { reason: reason.name(), passed: all.saturating_sub(dropped), dropped }
    });
    counted.filter(|row| row.passed > 0 || row.dropped > 0).collect()
}

fn guard_rows(counters: &Counters) -> Vec<GuardRow> {
    let counted =
        Guard::ALL.iter().zip(counters.guards).filter(|(_, count)| *count != GuardCounts::default());
    counted
        .map(|(guard, GuardCounts { acted, would })| GuardRow { guard: guard.name(), acted, would })
        .collect()
}

fn syn_rows(counters: &Counters) -> Vec<SynRow> {
    let mut rows = Vec::new();
    for family in Family::ALL {
        for class in Class::ALL {
            for verdict in Verdict::ALL {
                let tally = counters.syn[family.index()][class.index()][verdict.index()];
                if tally.packets > 0 {
                    rows.push(SynRow {
                        family: family.name(),
                        class: class.name(),
                        verdict: verdict.name(),
                        packets: tally.packets,
                        with_data: tally.with_data,
                        data_bytes: tally.data_bytes,
                    });
                }
            }
        }
    }
    rows
}

/// Returns the name of the program's mode.
pub fn mode_name(info: &Info) -> &'static str {
    Mode::ALL.get(info.mode as usize).map_or("unknown", |mode| mode.name())
}

/// Returns the name of the program's place in the receive path.
pub fn attach_name(info: &Info) -> &'static str {
    Attach::ALL.get(info.attach as usize).map_or("unknown", |attach| attach.name())
}

/// Returns the time at which counting began.
pub fn since(info: &Info) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(info.since_unix_ns)).unwrap_or_default()
}

fn reason_rows(reasons: impl Iterator<Item = (&'static str, u64)>) -> Vec<ReasonRow> {
    reasons
        .filter(|(_, packets)| *packets > 0)
        .map(|(reason, packets)| ReasonRow { reason, packets })
        .collect()
}
