//! Quotes of the RFC in comments of the code.

use std::fmt;

use anyhow::{Result, bail};

use super::{original::joined, requirements::Requirement};

/// Begins a quote; the section follows.
const SOURCE: &str = "//= RFC 7413 section ";
/// Begins each line of a quote.
const LINE: &str = "//#";

/// Quote, and the place where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Quote {
    /// Path from the root of the tree.
    pub(super) file: String,
    /// Number of its first line, from 1 on.
    line: usize,
    section: String,
    /// Text, in one line.
    text: String,
    /// Name of the function or the type that it stands above or in.
    pub(super) item: String,
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: section {}: {}", self.file, self.line, self.section, self.text)
    }
}

impl Quote {
    pub(super) fn is_of(&self, requirement: &Requirement) -> bool {
        self.section == requirement.section && self.text == requirement.text
    }
}

/// Returns the quotes in `text`, the content of `file`.
pub(super) fn find(file: &str, text: &str) -> Result<Vec<Quote>> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let mut quotes = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("//=") && !line.starts_with(SOURCE) {
            bail!("{file}:{}: a quote begins with `{SOURCE}`", at + 1);
        }
        let Some(section) = line.strip_prefix(SOURCE) else { continue };
        let quoted: Vec<_> = lines[at + 1..].iter().map_while(|line| line.strip_prefix(LINE)).collect();
        quotes.push(Quote {
            file: file.to_owned(),
            line: at + 1,
            section: section.to_owned(),
            text: joined(&quoted.join("\n")),
            item: item(&lines, at).to_owned(),
        });
    }
    Ok(quotes)
}

/// Returns the name of what is declared below the comment at line `at`, or else of what that line is inside of: the last
/// that was declared before.
fn item<'a>(lines: &[&'a str], at: usize) -> &'a str {
    let is_code = |line: &&&str| !line.is_empty() && !line.starts_with("//") && !line.starts_with("#[");
    let below = lines[at..].iter().find(is_code).and_then(|line| declared(line));
    below.or_else(|| lines[..at].iter().rev().find_map(|line| declared(line))).unwrap_or("the file")
}

/// Returns the name of the item that `line` declares.
fn declared(line: &str) -> Option<&str> {
    const BEFORE: [&str; 6] = ["pub", "pub(crate)", "pub(super)", "async", "unsafe", "const"];
    const KINDS: [&str; 7] = ["fn", "struct", "enum", "trait", "mod", "static", "impl"];
    let mut words = line.split_whitespace().skip_while(|word| BEFORE.contains(word));
    let kind = words.next()?;
    let is_constant = line.split_whitespace().any(|word| word == "const") && kind.ends_with(':');
    let name = if KINDS.contains(&kind) { words.next()? } else { is_constant.then_some(kind)? };
    name.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .next()
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_has_the_name_of_what_it_stands_above_or_in() {
        let text = "/// Doc.\n//= RFC 7413 section 9\n//# A two-\n//# line sentence.\n#[inline]\npub const fn a(x: u8) {\n    \
                    //= RFC 7413 section 4.1\n    //# Two.\n    let y = 1;\n}\n\
                    //= RFC 7413 section 1\n//# Three.\npub(super) const KIND: u8 = 34;\n";
        let found: Vec<_> = find("f.rs", text)
            .unwrap()
            .into_iter()
            .map(|quote| (quote.line, quote.section, quote.text, quote.item))
            .collect();
        let expected =
            [(2, "9", "A two-line sentence.", "a"), (7, "4.1", "Two.", "a"), (11, "1", "Three.", "KIND")];
        let expected = expected
            .map(|(line, section, text, item)| (line, section.to_owned(), text.to_owned(), item.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn another_source_is_a_fault() {
        assert!(find("f.rs", "//= https://example.com/rfc#1\n//# One.\n").is_err());
        assert_eq!(find("f.rs", "// = no quote\n//# none\n").unwrap(), []);
    }
}
