//! A terminal that is redrawn in place, as by `watch`.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use crossterm::{
    cursor::MoveTo,
    queue,
    terminal::{Clear, ClearType, size},
};

use nix::unistd::{getpgrp, tcgetpgrp};

use crate::util::{background::Background, logging};

/// The terminal on standard output. While it is drawn, log lines that would go to a terminal are shown below the text.
/// They are written as usual after it is closed.
#[derive(Debug)]
pub struct Screen {
    out: Background,
    /// Whether standard error is a terminal, which is then taken for the same one.
    has_log: bool,
    /// Text on the screen.
    text: String,
}

impl Screen {
    /// Opens the terminal on standard output; `None` if that is no terminal, or the writer can't start.
    pub fn open() -> Option<Self> {
        if !io::stdout().is_terminal() {
            return None;
        }
        // One picture may wait while another is written. Further pictures are dropped.
        let out = Background::new(io::stdout(), 1).ok()?;
        Some(Self { out, has_log: io::stderr().is_terminal(), text: String::new() })
    }

    /// Replaces the content of the terminal by `text` with the last log lines below it, as much as fits without
    /// scrolling. Draws nothing while tfo runs in the background, since another process has the terminal. Log lines are
    /// written as usual then.
    pub fn draw(&mut self, text: &str) {
        text.clone_into(&mut self.text);
        let is_ours = is_ours();
        logging::hold(is_ours && self.has_log);
        if is_ours {
            self.paint(&if self.has_log { logging::last_lines() } else { Vec::new() });
        }
    }

    fn paint(&mut self, log: &[String]) {
        let (columns, rows) = size().unwrap_or((80, 24));
        // Writing to the queue cannot fail.
        let _: io::Result<()> = self.out.write_all(&picture(&self.text, log, columns, rows));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The last picture has no log lines, since they are written below it.
        self.out.drain(Duration::from_secs(1));
        if self.has_log && is_ours() {
            self.paint(&[]);
            self.out.drain(Duration::from_secs(1));
        }
        logging::hold(false);
    }
}

/// Whether tfo runs in the foreground of the terminal. A terminal that is not its controlling terminal counts as
/// foreground.
fn is_ours() -> bool {
    tcgetpgrp(io::stdout()).map_or(true, |foreground| foreground == getpgrp())
}

fn picture(text: &str, log: &[String], columns: u16, rows: u16) -> Vec<u8> {
    // The last row stays free: a line feed there would scroll.
    let (columns, rows) = (usize::from(columns.max(1)), usize::from(rows.saturating_sub(1)));
    let log = wrapped(log, columns);
    // The newest log lines take at most half of the rows, with a blank row above them.
    let log = &log[log.len() - log.len().min(rows / 2)..];
    let blank = usize::from(!log.is_empty() && !text.is_empty());
    let text = text.lines().take(rows.saturating_sub(log.len() + blank));
    let text = text.map(|line| line.chars().take(columns).collect());
    let lines = text.chain(vec![String::new(); blank]).chain(log.iter().cloned());

    let mut out = Vec::new();
    let paint = || -> io::Result<()> {
        queue!(out, MoveTo(0, 0))?;
        for line in lines {
            // Each line is overwritten in place. Clearing the screen first would make it flicker.
            write!(out, "{line}")?;
            queue!(out, Clear(ClearType::UntilNewLine))?;
            write!(out, "\r\n")?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))
    };
    paint().expect("writing to memory cannot fail");
    out
}

/// Wraps lines at `columns`, and replaces control characters by spaces.
fn wrapped(lines: &[String], columns: usize) -> Vec<String> {
    let wrap = |line: &String| {
        let line: Vec<_> =
            line.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        line.chunks(columns).map(|part| part.iter().collect()).collect::<Vec<String>>()
    };
    lines.iter().flat_map(wrap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, log: &[&str], columns: u16, rows: u16) -> Vec<String> {
        let log: Vec<_> = log.iter().map(|line| (*line).to_owned()).collect();
        let picture = String::from_utf8(picture(text, &log, columns, rows)).expect("text");
        let body = picture.strip_prefix("\u{1b}[1;1H").and_then(|rest| rest.strip_suffix("\u{1b}[J"));
        body.expect("a picture").split_terminator("\u{1b}[K\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn log_lines_stand_below_and_fit() {
        assert_eq!(lines("a\nb", &[], 9, 24), ["a", "b"]);
        assert_eq!(lines("a\nb", &["one", "two"], 9, 24), ["a", "b", "", "one", "two"]);
        assert_eq!(lines("", &["one"], 9, 24), ["one"]);
        assert_eq!(lines("abcdef", &["one\u{1b}[2J"], 4, 24), ["abcd", "", "one ", "[2J"]);
        // The newest log lines take half of the rows, and the text takes the rest.
        assert_eq!(lines("a\nb\nc\nd", &["1", "2", "3", "4"], 9, 7), ["a", "b", "", "2", "3", "4"]);
        for (columns, rows) in [(0, 0), (1, 1), (1, 2), (3, 3)] {
            assert!(lines("a\nb\nc", &["one", "two"], columns, rows).len() < usize::from(rows.max(1)));
        }
    }
}
