//! A terminal that is drawn over and over.

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

use crate::background::Background;

/// The terminal on standard output.
#[derive(Debug)]
pub struct Screen(Background);

impl Screen {
    /// It; `None` where standard output is something else, for which live counters make no sense.
    pub fn open() -> Option<Self> {
        // One picture may wait while another is drawn; a newer one is worth nothing more.
        io::stdout().is_terminal().then(|| Background::new(io::stdout(), 1).ok().map(Self)).flatten()
    }

    /// Shows `text` in place of what was on the terminal: as much as fits, without scrolling. Nothing while we run in the
    /// background: the terminal is somebody else's then.
    pub fn draw(&mut self, text: &str) {
        // A terminal that is not our controlling one has no foreground for us to be in.
        if tcgetpgrp(io::stdout()).is_ok_and(|foreground| foreground != getpgrp()) {
            return;
        }
        let (columns, rows) = size().unwrap_or((80, 24));
        // Writing to the queue cannot fail.
        let _: io::Result<()> = self.0.write_all(&picture(text, columns, rows));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.0.drain(Duration::from_secs(1));
    }
}

fn picture(text: &str, columns: u16, rows: u16) -> Vec<u8> {
    let mut out = Vec::new();
    let mut paint = || -> io::Result<()> {
        queue!(out, MoveTo(0, 0))?;
        // The last row stays free: a line feed there would scroll.
        for line in text.lines().take(usize::from(rows.saturating_sub(1))) {
            let shown: String = line.chars().take(usize::from(columns)).collect();
            // Line by line, and without clearing first: nothing flickers.
            write!(out, "{shown}")?;
            queue!(out, Clear(ClearType::UntilNewLine))?;
            write!(out, "\r\n")?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))
    };
    paint().expect("writing to memory cannot fail");
    out
}
