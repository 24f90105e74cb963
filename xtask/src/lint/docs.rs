//! Check of how doc comments begin: with a noun or a verb, as CONTRIBUTING.md asks.

use std::fs;

use anyhow::{Result, ensure};

use crate::workspace::{command, output, root};

/// Words that begin a riddle. They refer to something that the reader does not know yet.
const RIDDLES: [&str; 22] = [
    "How", "It", "Its", "Nobody", "None", "Such", "That", "Their", "They", "These", "Those", "What",
    "Whatever", "When", "Where", "Which", "Who", "Whoever", "Whom", "Whose", "Why", "You",
];

/// Fails if the first word of a doc comment is one of [`RIDDLES`].
pub(super) fn check() -> Result<()> {
    let mut faults = Vec::new();
    for file in output(command("git").args(["ls-files", "--", "*.rs"]))?.lines() {
        let text = fs::read_to_string(root().join(file))?;
        faults.extend(riddles(&text).map(|(line, text)| format!("{file}:{line}: {text}")));
    }
    ensure!(faults.is_empty(), "doc comments that begin with neither noun nor verb:\n{}", faults.join("\n"));
    Ok(())
}

/// Finds the first lines of doc comments in `text` that begin with a riddle, each with its number.
fn riddles(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_inside = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let doc = line.trim_start();
        let doc = doc.strip_prefix("///").or_else(|| doc.strip_prefix("//!"));
        let is_first = doc.is_some() && !is_inside;
        is_inside = doc.is_some();
        let first = doc.filter(|_| is_first)?.trim_start().split(|c: char| !c.is_alphabetic()).next()?;
        RIDDLES.contains(&first).then_some((index + 1, line.trim_start()))
    })
}

#[cfg(test)]
mod tests {
    use super::riddles;

    #[test]
    fn only_the_first_line_of_a_doc_comment_counts() {
        let text = "//! What it is.\nmod a;\n/// Name.\n/// It has two lines.\nfn b() {}\n    /// Its length.\n// How\n";
        let found: Vec<_> = riddles(text).collect();
        assert_eq!(found, [(1, "//! What it is."), (6, "/// Its length.")]);
    }
}
