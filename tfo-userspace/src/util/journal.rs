//! The log as entries of systemd's journal, with its level and place as fields.
//!
//! tracing-journald sends from the thread that logs, and waits while journald does not read. So the entries are made here,
//! and a thread of their own sends them.

use std::{
    env, fmt,
    io::{self, Write},
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, net::UnixDatagram},
    },
};

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format},
    registry::LookupSpan,
};

/// Socket of journald.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Whether standard error leads to the journal, by what systemd.exec(5) says of `JOURNAL_STREAM`.
pub fn is_on_stderr() -> bool {
    let Some(stream) = env::var_os("JOURNAL_STREAM") else { return false };
    fstat(io::stderr().as_fd())
        .is_ok_and(|found| stream.as_bytes() == format!("{}:{}", found.st_dev, found.st_ino).as_bytes())
}

/// Returns the level of syslog(3) for `level`.
pub fn priority(level: Level) -> libc::c_int {
    match level {
        Level::ERROR => libc::LOG_ERR,
        Level::WARN => libc::LOG_WARNING,
        Level::INFO => libc::LOG_INFO,
        Level::DEBUG | Level::TRACE => libc::LOG_DEBUG,
    }
}

/// Formatter of entries, in a form of journald's protocol that is plain text: a field on each line, and line breaks in the
/// message are left out.
#[derive(Debug)]
pub struct Entries;

impl<S, N> FormatEvent<S, N> for Entries
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
        let mut message = String::new();
        context.format_fields(format::Writer::new(&mut message), event)?;
        let metadata = event.metadata();
        writeln!(writer, "MESSAGE={}", message.trim_end().replace('\n', " | "))?;
        writeln!(writer, "PRIORITY={}", priority(*metadata.level()))?;
        writeln!(writer, "SYSLOG_IDENTIFIER=tfo")?;
        // Messages about an interface begin with its name.
        if let Some((interface, _)) = message.split_once(": ")
            && !interface.contains(' ')
        {
            writeln!(writer, "TFO_SUBJECT={interface}")?;
        }
        writeln!(writer, "TARGET={}", metadata.target())?;
        match (metadata.file(), metadata.line()) {
            (Some(file), Some(line)) => writeln!(writer, "CODE_FILE={file}\nCODE_LINE={line}"),
            _ => Ok(()),
        }
    }
}

/// Writer of entries. Each write is one entry.
#[derive(Debug)]
pub struct Journal(UnixDatagram);

impl Journal {
    /// Connects to journald.
    pub fn open() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SOCKET)?;
        Ok(Self(socket))
    }
}

impl Write for Journal {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        let sent = self.0.send(entry).or_else(|_| {
            // journald was started anew.
            self.0.connect(SOCKET)?;
            self.0.send(entry)
        });
        match sent {
            Ok(_) => Ok(entry.len()),
            // An entry that is too long, for example. Standard error leads to the journal, too.
            Err(_) => io::stderr().write(entry),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
