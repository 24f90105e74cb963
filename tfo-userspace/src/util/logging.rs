//! The log on standard error. While a screen is drawn on the same terminal, the log is held back: the screen shows the
//! last lines, and all lines are written after it has closed.

use std::{
    collections::VecDeque,
    env, fmt,
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tracing::{Event, Level, Subscriber, enabled, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format},
    registry::LookupSpan,
};

use crate::util::{
    background::Background,
    journal::{self, Entries, Journal, priority},
};

/// Number of log writes that may wait for the reader of standard error.
const QUEUE: usize = 1024;
/// Number of records that a screen shows.
const MAX_ANSWERED: usize = 5;
/// Number of records that are held while a screen is drawn. Older records are left out.
const HELD: usize = 1000;

static LOG: Mutex<Log> =
    Mutex::new(Log { out: None, last: VecDeque::new(), held: None, left_out: 0, all_left_out: 0 });

struct Log {
    /// Writer of standard error; `None` before [`init`].
    out: Option<Background>,
    /// The last [`MAX_ANSWERED`] records.
    last: VecDeque<String>,
    /// Records that wait for the end of the screen; `None` if each record is written at once.
    held: Option<VecDeque<String>>,
    /// Number of held records that were left out during the present screen.
    left_out: u64,
    /// Number of held records that were left out during earlier screens.
    all_left_out: u64,
}

/// Format of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The time, the level and the message
    #[default]
    Text,
    /// A JSON object on each line
    Json,
    /// For systemd's journal: the level as sd-daemon(3) has it, such as <4>, and the message; the journal adds the time
    Journald,
}

/// Begins to log to standard error, in `format`. Without one, it is text; if standard error leads to systemd's journal, the
/// entries go there themselves, with their fields. The environment variable RUST_LOG selects the records. Without it, tfo
/// logs up to level `ours`, and libraries up to level `libraries`.
pub fn init(format: Option<Format>, ours: LevelFilter, libraries: LevelFilter) -> Result<()> {
    let directives = match env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => directives,
        _ => format!("{libraries},tfo={ours}"),
    };
    let filter = EnvFilter::builder().parse(&directives).with_context(|| {
        format!(
            "RUST_LOG is {directives:?}: give it a level, such as debug, or a list such as warn,tfo=debug"
        )
    })?;
    let journal = if format.is_none() && journal::is_on_stderr() { Journal::open().ok() } else { None };
    let is_journal = journal.is_some();
    let out = match journal {
        Some(journal) => Background::new(journal, QUEUE),
        None => Background::new(io::stderr(), QUEUE),
    };
    log().out = Some(out.context("cannot start a thread")?);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    let builder = builder.with_target(false).with_writer(|| Records);
    match format.unwrap_or_default() {
        _ if is_journal => builder.event_format(Entries).init(),
        Format::Text => builder.init(),
        Format::Json => builder.json().flatten_event(true).init(),
        Format::Journald => builder.event_format(Journald).init(),
    }
    Ok(())
}

/// Waits until all lines are written, but no longer than `patience`.
pub fn drain(patience: Duration) {
    let out = log().out.clone();
    if let Some(out) = out {
        out.drain(patience);
    }
}

/// Returns the number of records that were not written, since there were too many or they were not read in time.
pub fn dropped() -> u64 {
    let log = log();
    log.all_left_out + log.out.as_ref().map_or(0, Background::dropped)
}

/// Returns the level up to which the XDP program logs, in aya's numbers; 0 means off.
pub fn program_level() -> u8 {
    const OFF: u8 = 0;
    const DEBUG: u8 = 4;
    const TRACE: u8 = 5;
    if enabled!(target: "tfo_ebpf", Level::TRACE) {
        TRACE
    } else if enabled!(target: "tfo_ebpf", Level::DEBUG) {
        DEBUG
    } else {
        OFF
    }
}

/// Formatter of lines for systemd's journal.
struct Journald;

impl<S, N> FormatEvent<S, N> for Journald
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Writer that takes one log record per write.
#[derive(Debug)]
struct Records;

impl Write for Records {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        log().add(&String::from_utf8_lossy(record));
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts to hold records back, or ends it and writes the held records.
pub(crate) fn hold(is_held: bool) {
    log().hold(is_held);
}

/// Returns the lines of the last records.
pub(crate) fn last_lines() -> Vec<String> {
    log().last.iter().flat_map(|record| record.lines()).map(str::to_owned).collect()
}

fn log() -> MutexGuard<'static, Log> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    fn add(&mut self, record: &str) {
        push(&mut self.last, record, MAX_ANSWERED);
        match &mut self.held {
            Some(held) => self.left_out += u64::from(push(held, record, HELD)),
            None => self.write(record),
        }
    }

    fn hold(&mut self, is_held: bool) {
        if is_held {
            self.held.get_or_insert_default();
        } else if let Some(held) = self.held.take() {
            let left_out = std::mem::take(&mut self.left_out);
            self.all_left_out += left_out;
            let before =
                if left_out > 0 { format!("({left_out} log lines are left out)\n") } else { String::new() };
            // It is one write, since a write that finds the queue full is dropped.
            self.write(&held.into_iter().fold(before, |text, record| text + &record));
        }
    }

    fn write(&mut self, text: &str) {
        if let Some(out) = &mut self.out
            && !text.is_empty()
        {
            // `Background` never returns an error.
            let _: io::Result<()> = out.write_all(text.as_bytes());
        }
    }
}

/// Adds a record, and removes the oldest one beyond `most`. Returns whether it removed one.
fn push(records: &mut VecDeque<String>, record: &str, most: usize) -> bool {
    records.push_back(record.to_owned());
    let is_over = records.len() > most;
    if is_over {
        records.pop_front();
    }
    is_over
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, time::Duration};

    use super::*;

    #[test]
    fn held_records_are_written_in_the_end() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let out = Background::new(writer, 16).expect("a thread");
        let mut log = Log { out: Some(out), last: VecDeque::new(), held: None, left_out: 0, all_left_out: 0 };
        log.add("one\n");
        log.hold(true);
        log.hold(true);
        (0..HELD + 2).for_each(|n| log.add(&format!("{n}\n")));
        assert_eq!(log.last, [997, 998, 999, 1000, 1001].map(|n| format!("{n}\n")));
        log.hold(false);
        log.hold(false);
        log.add("end\n");
        log.out.take().expect("it is there").drain(Duration::from_secs(20));
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..3], ["one", "(2 log lines are left out)", "2"]);
        assert_eq!(lines[lines.len() - 2..], ["1001", "end"]);
        assert_eq!(lines.len(), HELD + 3);
    }
}
