//! The log on standard error. While a screen is drawn on the same terminal, lines are not written over it: the screen shows
//! the last ones, and all are written when it is gone.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::util::background::Background;

/// Records that a screen shows.
const SHOWN: usize = 5;
/// Records that are held until a screen is gone. Older ones are left out.
const HELD: usize = 1000;

static LOG: Mutex<Log> = Mutex::new(Log { out: None, last: VecDeque::new(), held: None, left_out: 0 });

struct Log {
    /// `None` until it is set up.
    out: Option<Background>,
    /// The last records.
    last: VecDeque<String>,
    /// Records that are still to be written; `None` where each is written at once.
    held: Option<VecDeque<String>>,
    /// Number of records that were held and made room for others.
    left_out: usize,
}

/// Takes log records, one at each write.
#[derive(Debug)]
pub struct Records(());

impl Records {
    /// From now on they go to `out`.
    pub fn to(out: Background) -> Self {
        log().out = Some(out);
        Self(())
    }
}

impl Write for Records {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        log().add(&String::from_utf8_lossy(record));
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Holds records back, or writes those that were.
pub(crate) fn hold(is_held: bool) {
    log().hold(is_held);
}

/// The lines of the last records.
pub(crate) fn last_lines() -> Vec<String> {
    log().last.iter().flat_map(|record| record.lines()).map(str::to_owned).collect()
}

fn log() -> MutexGuard<'static, Log> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    fn add(&mut self, record: &str) {
        push(&mut self.last, record, SHOWN);
        match &mut self.held {
            Some(held) => self.left_out += usize::from(push(held, record, HELD)),
            None => self.write(record),
        }
    }

    fn hold(&mut self, is_held: bool) {
        if is_held {
            self.held.get_or_insert_default();
        } else if let Some(held) = self.held.take() {
            let left_out = std::mem::take(&mut self.left_out);
            let before =
                if left_out > 0 { format!("({left_out} log lines are left out)\n") } else { String::new() };
            // In one piece: what finds the queue full is dropped.
            self.write(&held.into_iter().fold(before, |text, record| text + &record));
        }
    }

    fn write(&mut self, text: &str) {
        if let Some(out) = &mut self.out
            && !text.is_empty()
        {
            // It never fails.
            let _: io::Result<()> = out.write_all(text.as_bytes());
        }
    }
}

/// Adds a record to the last `most`. Whether one had to make room.
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
    fn what_is_held_is_written_in_the_end() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let out = Background::new(writer, 16).expect("a thread");
        let mut log = Log { out: Some(out), last: VecDeque::new(), held: None, left_out: 0 };
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
