//! A terminal that is drawn over and over.

use std::io::{self, IsTerminal as _, Write as _};

use crossterm::{
    cursor::MoveTo,
    queue,
    terminal::{Clear, ClearType, size},
};

/// Whether standard output is a terminal, so that live counters make sense.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Shows `text` in place of what was on the terminal: as much as fits, without scrolling.
pub fn draw(text: &str) -> io::Result<()> {
    let (columns, rows) = size()?;
    let mut out = io::stdout().lock();
    queue!(out, MoveTo(0, 0))?;
    // The last row stays free: a line feed there would scroll.
    for line in text.lines().take(usize::from(rows.saturating_sub(1))) {
        let shown: String = line.chars().take(usize::from(columns)).collect();
        // Line by line, and without clearing first: nothing flickers.
        write!(out, "{shown}")?;
        queue!(out, Clear(ClearType::UntilNewLine))?;
        write!(out, "\r\n")?;
    }
    queue!(out, Clear(ClearType::FromCursorDown))?;
    out.flush()
}
