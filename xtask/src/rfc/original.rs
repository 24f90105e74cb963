//! Comparison of the list with the text of RFC 7413, as the RFC Editor has it.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::requirements::Requirement;

/// Words that make a sentence a requirement (RFC 2119). MAY asks for nothing.
const DEMANDS: [&str; 5] = ["MUST", "SHOULD", "RECOMMEND", "REQUIRED", "SHALL"];

/// Fails if a requirement is not in its section of `text`, or if a demand of `text` is in no requirement.
pub(super) fn compare(requirements: &[Requirement], text: &str) -> Result<()> {
    let original = Original::parse(text);
    let mut faults = Vec::new();
    let mut found: Vec<Range<usize>> = Vec::new();
    for requirement in requirements {
        let sentence = joined(&requirement.text);
        let places = original.text.match_indices(&sentence);
        match places.map(|(at, _)| at).find(|at| original.section(*at) == requirement.section) {
            Some(at) => found.push(at..at + sentence.len()),
            None => faults.push(format!("not in the RFC: {requirement}")),
        }
    }
    ensure!(found.is_sorted_by_key(|range| range.start), "the list is not in the order of the RFC");
    for demand in DEMANDS {
        for (at, _) in original.text.match_indices(demand) {
            // The words themselves stand in quotation marks.
            let is_named = original.text[..at].ends_with('"');
            if !is_named && !found.iter().any(|range| range.contains(&at)) {
                let around = original.text[at..].chars().take(60).collect::<String>();
                faults.push(format!("not in the list: section {}: {around} …", original.section(at)));
            }
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Text of the RFC in one line, without what repeats on each page.
struct Original {
    text: String,
    /// Sections, each with the place where it begins.
    sections: Vec<(usize, String)>,
}

impl Original {
    fn parse(text: &str) -> Self {
        let mut original = Self { text: String::new(), sections: Vec::new() };
        for line in text.lines() {
            let is_on_each_page = line.starts_with("Cheng, et al.") || line.starts_with("RFC 7413 ");
            if is_on_each_page {
                continue;
            }
            // The lines of the table of contents are indented.
            let number = line.split_once(".  ").map(|(number, _)| number).unwrap_or_default();
            if number.starts_with(|first: char| first.is_ascii_digit()) {
                original.sections.push((original.text.len(), number.to_owned()));
            }
            for word in line.split_whitespace() {
                let is_broken = original.text.ends_with('-') && !original.text.ends_with(" -");
                if !original.text.is_empty() && !is_broken {
                    original.text.push(' ');
                }
                original.text.push_str(word);
            }
        }
        original
    }

    /// Returns the section that the place `at` is in.
    fn section(&self, at: usize) -> &str {
        self.sections.iter().rev().find(|(begin, _)| *begin <= at).map_or("", |(_, number)| number)
    }
}

/// Returns `text` in one line. A word may be broken at its hyphen.
pub(super) fn joined(text: &str) -> String {
    Original::parse(text).text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rfc::requirements::Of;

    const TEXT: &str = "4.  One\n\n   The SYN-\n   ACK is sent. A \"MUST\" is a word. The\n\
                        \nCheng, et al.                 Experimental                      [Page 1]\n\
                        RFC 7413                      TCP Fast Open                December 2014\n\n\
                        \x20  server MUST do it.\n\n4.1.  Two\n\n   It SHOULD stop.\n";

    fn list(sentences: &[(&str, &str)]) -> Vec<Requirement> {
        let requirement = |(section, text): &(&str, &str)| Requirement {
            section: (*section).to_owned(),
            of: Of::Server,
            text: (*text).to_owned(),
            elsewhere: None,
            remark: None,
        };
        sentences.iter().map(requirement).collect()
    }

    #[test]
    fn sentences_are_found_over_lines_and_pages() {
        let all =
            [("4", "The SYN-ACK is sent."), ("4", "The server MUST do it."), ("4.1", "It SHOULD stop.")];
        compare(&list(&all), TEXT).unwrap();
        let error = compare(&list(&all[..2]), TEXT).unwrap_err().to_string();
        assert_eq!(error, "not in the list: section 4.1: SHOULD stop. …");
    }

    #[test]
    fn another_word_section_or_order_is_a_fault() {
        let two = [("4", "The server MUST do it."), ("4.1", "It SHOULD stop.")];
        compare(&list(&two), TEXT).unwrap();
        assert!(compare(&list(&[two[1], two[0]]), TEXT).is_err());
        assert!(compare(&list(&[("4", "A server MUST do it."), two[1]]), TEXT).is_err());
        assert!(compare(&list(&[("4.1", "The server MUST do it."), two[1]]), TEXT).is_err());
    }
}
