//! `cargo xtask rfc`: holds RFC 7413 against the quotes in code and tests, and writes `docs/rfc7413.md` from both.
//!
//! A quote is a comment above the code or the test that holds a sentence of the RFC, in the form of duvet:
//!
//! ```text
//! //= RFC 7413 section 4.1.1
//! //# The number MUST be even.
//! ```
//!
//! [`requirements`] has the sentences, [`quotes`] finds the quotes, [`original`] compares the sentences with the RFC.

mod original;
mod quotes;
mod requirements;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use self::{
    quotes::Quote,
    requirements::{Of, Requirement},
};
use crate::workspace::{command, output, root};

/// Page that is made.
const PAGE: &str = "docs/rfc7413.md";

/// Arguments of `cargo xtask rfc`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Text of RFC 7413, as the RFC Editor has it, to compare the list of its requirements with
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
}

/// Writes the page. Fails if a requirement is without a quote, or a quote is of no requirement.
pub(crate) fn rfc(args: &Args) -> Result<()> {
    let table = Table::read()?;
    if let Some(path) = &args.text {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        original::compare(&table.requirements, &text)?;
        println!("{}: every sentence is as in the RFC, and none is missing", path.display());
    }
    let page = root().join(PAGE);
    fs::write(&page, table.page()).with_context(|| format!("cannot write {}", page.display()))?;
    println!("{}", table.summary());
    table.check()
}

/// Fails as [`rfc`] does, or if the page is not the one that it would write.
pub(crate) fn check() -> Result<()> {
    let table = Table::read()?;
    table.check()?;
    let is_current = fs::read_to_string(root().join(PAGE)).is_ok_and(|text| text == table.page());
    ensure!(is_current, "{PAGE} is not what code and tests say: run `cargo xtask rfc`");
    Ok(())
}

/// Requirements, and the quotes in the tree.
struct Table {
    requirements: Vec<Requirement>,
    quotes: Vec<Quote>,
}

impl Table {
    fn read() -> Result<Self> {
        let mut quotes = Vec::new();
        // A new file counts before it is committed.
        let files = ["ls-files", "--cached", "--others", "--exclude-standard", "--", "*.rs", ":!xtask"];
        for file in output(command("git").args(files))?.lines() {
            let path = root().join(file);
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            quotes.extend(quotes::find(file, &text)?);
        }
        Ok(Self { requirements: requirements::all()?, quotes })
    }

    /// Returns the quotes of `requirement`.
    fn of(&self, requirement: &Requirement) -> impl Iterator<Item = &Quote> {
        self.quotes.iter().filter(|quote| quote.is_of(requirement))
    }

    /// Returns whether nothing holds `requirement`, although something should.
    fn is_open(&self, requirement: &Requirement) -> bool {
        requirement.elsewhere.is_none() && self.of(requirement).next().is_none()
    }

    fn check(&self) -> Result<()> {
        let open = self.requirements.iter().filter(|requirement| self.is_open(requirement));
        let mut faults: Vec<_> = open.map(|open| format!("nothing quotes {open}")).collect();
        let is_known = |quote: &&Quote| self.requirements.iter().any(|requirement| quote.is_of(requirement));
        let unknown = self.quotes.iter().filter(|quote| !is_known(quote));
        faults.extend(unknown.map(|quote| format!("{quote}: no requirement has this sentence")));
        let contradicted = |requirement: &&Requirement| {
            requirement.elsewhere.is_some() && self.of(requirement).next().is_some()
        };
        let contradicted = self.requirements.iter().filter(contradicted);
        faults
            .extend(contradicted.map(|found| format!("held here, though listed as held elsewhere: {found}")));
        ensure!(faults.is_empty(), "RFC 7413:\n{}", faults.join("\n"));
        Ok(())
    }

    fn summary(&self) -> String {
        let count = |holds: &dyn Fn(&Requirement) -> bool| {
            self.requirements.iter().filter(|requirement| holds(requirement)).count()
        };
        let held = count(&|requirement| self.of(requirement).next().is_some());
        let elsewhere = count(&|requirement| requirement.elsewhere.is_some());
        let open = count(&|requirement| self.is_open(requirement));
        format!(
            "{} requirements: {held} held by {} quotes, {elsewhere} held elsewhere, {open} open",
            self.requirements.len(),
            self.quotes.len()
        )
    }

    fn page(&self) -> String {
        let mut page = format!("{}\n{}.\n\n", include_str!("rfc/head.md"), self.summary());
        page.push_str("| section | of | RFC 7413 says | held by |\n|---|---|---|---|\n");
        for requirement in &self.requirements {
            let Requirement { section, of, text, elsewhere, remark } = requirement;
            let mut held: Vec<_> = self.of(requirement).map(link).collect();
            held.sort();
            held.dedup();
            let held = match elsewhere {
                Some(reason) => reason.clone(),
                None if held.is_empty() => "**open**".to_owned(),
                None => held.join("<br>"),
            };
            let remark = remark.as_ref().map(|remark| format!("<br>*{remark}*")).unwrap_or_default();
            let of = match of {
                Of::Server => "server",
                Of::Client => "client",
                Of::Both => "both",
                Of::Application => "application",
            };
            writeln!(page, "| {section} | {of} | {text}{remark} | {held} |").expect("a string takes it");
        }
        page
    }
}

/// Returns a link to the file of `quote`, relative to the page, with the item's name as its text.
fn link(quote: &Quote) -> String {
    let kind = if quote.file.starts_with("tests/") { "test" } else { "code" };
    let name = Path::new(&quote.file).file_stem().unwrap_or_default().to_string_lossy();
    // The test program is the first folder.
    let program = quote.file.strip_prefix("tests/tests/").and_then(|path| path.split_once('/'));
    let name = program.map(|(program, _)| format!("{program}::{name}")).unwrap_or(name.into_owned());
    format!("{kind}: [`{name}::{}`](../{})", quote.item, quote.file)
}
