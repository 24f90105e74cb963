//! A terminal that is drawn over and over.

use std::io::{self, IsTerminal as _, Write as _};

use crossterm::{
    cursor::MoveTo,
    queue,
    terminal::{Clear, ClearType},
};

/// Whether standard output is a terminal, so that live counters make sense.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Shows `text` in place of what was on the terminal.
pub fn draw(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    queue!(out, MoveTo(0, 0))?;
    for line in text.lines() {
        // Line by line, and without clearing first: nothing flickers.
        write!(out, "{line}")?;
        queue!(out, Clear(ClearType::UntilNewLine))?;
        writeln!(out)?;
    }
    queue!(out, Clear(ClearType::FromCursorDown))?;
    out.flush()
}
