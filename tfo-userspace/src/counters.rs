//! Counters as users see them: a table, and JSON.

use comfy_table::{
    Cell,
    CellAlignment::{self, Left, Right},
    Table, presets,
};
use jiff::Timestamp;
use serde::Serialize;
use tfo_common::{
    class::Class,
    counters::Counters,
    info::{Attach, Info},
    parse::{Malformed, Unsupported},
    segment::Family,
    verdict::{Mode, Verdict},
};

/// The counters of one interface; see `tfo counters --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The interface's name.
    pub interface: String,
    /// What the program may do.
    pub mode: &'static str,
    /// Where in the receive path it runs.
    pub attach: &'static str,
    /// When counting began (RFC 3339, UTC).
    pub since: Timestamp,
    /// SYNs, without the rows that are zero.
    pub syn: Vec<SynRow>,
    /// Frames passed because they are malformed, without the rows that are zero.
    pub malformed: Vec<ReasonRow>,
    /// Frames passed because they use what is not supported, without the rows that are zero.
    pub unsupported: Vec<ReasonRow>,
}

/// SYNs of one family, class and verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SynRow {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// The class.
    pub class: &'static str,
    /// What was done with them.
    pub verdict: &'static str,
    /// How many.
    pub packets: u64,
    /// How many of them carried data.
    pub with_data: u64,
    /// The bytes of data in those.
    pub data_bytes: u64,
}

/// Frames passed for one reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReasonRow {
    /// The reason.
    pub reason: &'static str,
    /// How many.
    pub packets: u64,
}

impl Report {
    /// The report on `counters`.
    pub fn new(interface: &str, info: &Info, counters: &Counters) -> Self {
        let mut syn = Vec::new();
        for family in Family::ALL {
            for class in Class::ALL {
                for verdict in Verdict::ALL {
                    let tally = counters.syn[family.index()][class.index()][verdict.index()];
                    if tally.packets > 0 {
                        syn.push(SynRow {
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
        let malformed =
            Malformed::ALL.iter().map(|reason| (reason.name(), counters.malformed[reason.index()]));
        let unsupported =
            Unsupported::ALL.iter().map(|reason| (reason.name(), counters.unsupported[reason.index()]));
        Self {
            interface: interface.to_owned(),
            mode: Mode::ALL.get(info.mode as usize).map_or("unknown", |mode| mode.name()),
            attach: attach_name(info),
            since: since(info),
            syn,
            malformed: reason_rows(malformed),
            unsupported: reason_rows(unsupported),
        }
    }

    /// The report in one line, for a log.
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

    /// The report as text for a terminal.
    pub fn text(&self) -> String {
        let Self { interface, mode, attach, since, syn, malformed, unsupported } = self;
        let mut text = format!("{interface}  {mode}  {attach}  counting since {since:.0}\n");
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
        text
    }
}

/// Where the program runs, by its name.
pub fn attach_name(info: &Info) -> &'static str {
    Attach::ALL.get(info.attach as usize).map_or("unknown", |attach| attach.name())
}

/// When counting began.
pub fn since(info: &Info) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(info.since_unix_ns)).unwrap_or_default()
}

fn reason_rows(reasons: impl Iterator<Item = (&'static str, u64)>) -> Vec<ReasonRow> {
    reasons
        .filter(|(_, packets)| *packets > 0)
        .map(|(reason, packets)| ReasonRow { reason, packets })
        .collect()
}

/// A plain table of `rows`, with the head and the alignment of each column.
pub fn table<R>(columns: &[(&str, CellAlignment)], rows: impl Iterator<Item = R>) -> String
where
    R: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|(head, align)| Cell::new(head).set_alignment(*align)));
    for row in rows {
        table.add_row(
            row.into_iter().zip(columns).map(|(text, (_, align))| Cell::new(text).set_alignment(*align)),
        );
    }
    table.trim_fmt() + "\n"
}
