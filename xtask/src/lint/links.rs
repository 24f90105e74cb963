//! Checks of links between the Markdown pages of the tree: the file has to exist, and so has the heading in it.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::workspace::{command, output, root};

/// Fails if a page links to a file or a heading that does not exist.
pub(super) fn check() -> Result<()> {
    let pages = output(command("git").args(["ls-files", "*.md"]))?;
    let mut faults = Vec::new();
    for page in pages.lines() {
        for link in Page::read(&root().join(page))?.links {
            if let Some(fault) = fault(page, &link)? {
                faults.push(format!("{page}: {fault}"));
            }
        }
    }
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("\n")) }
}

/// Returns the fault of the link to `to` on `page`. Links out of the tree are not followed.
fn fault(page: &str, to: &str) -> Result<Option<String>> {
    if to.contains("://") || to.starts_with("mailto:") {
        return Ok(None);
    }
    let (file, heading) = to.split_once('#').unwrap_or((to, ""));
    let page = root().join(page);
    let target = if file.is_empty() { page } else { page.parent().unwrap_or(root()).join(file) };
    if !target.exists() {
        return Ok(Some(format!("there is no {to}")));
    }
    let is_there = heading.is_empty() || Page::read(&target)?.headings.contains(heading);
    Ok((!is_there).then(|| format!("there is no heading {to}")))
}

/// Links of a page, and the anchors of its headings.
#[derive(Default)]
struct Page {
    links: Vec<String>,
    headings: BTreeSet<String>,
}

impl Page {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let (mut page, mut heading) = (Self::default(), None);
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url: to, .. } | Tag::Image { dest_url: to, .. }) => {
                    page.links.push(to.to_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::End(TagEnd::Heading(_)) => {
                    page.headings.extend(heading.take().map(|text| anchor(&text)))
                }
                _ => {}
            }
        }
        page
    }
}

/// Returns the anchor that GitHub gives a heading: small letters, dashes for spaces, and no punctuation.
fn anchor(heading: &str) -> String {
    let letter = |letter: char| match letter {
        ' ' => Some('-'),
        '-' | '_' => Some(letter),
        _ => letter.is_alphanumeric().then_some(letter),
    };
    heading.to_lowercase().chars().filter_map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_headings_are_found() {
        let page =
            Page::parse("# How a `state` is reached, 1\n\n[a](b.md#c) and ![d](e.svg)\n\n    [no](link)\n");
        assert_eq!(page.links, ["b.md#c", "e.svg"]);
        assert_eq!(page.headings, ["how-a-state-is-reached-1".to_owned()].into());
    }

    #[test]
    fn what_is_not_there_is_a_fault() {
        let fault = |to: &str| fault("README.md", to).unwrap();
        assert_eq!(fault("ARCHITECTURE.md"), None);
        assert_eq!(fault("https://example.com/nothing"), None);
        assert!(fault("nothing.md").is_some());
        assert!(fault("ARCHITECTURE.md#nothing").is_some());
    }
}
