//! `tfo counters`.

use std::{fmt::Write as _, thread, time::Duration};

use anyhow::Result;

use crate::{
    cli::args::{Counters, Select},
    dataplane::{
        Pinned,
        pins::{Bpffs, Pins},
    },
    util::{
        output::{json, print},
        screen::Screen,
    },
    view::counters::Report,
};

/// Prints the counters, and with `--watch` again every second.
pub(super) fn run(args: &Counters, bpffs: &Bpffs) -> Result<()> {
    let mut screen = if args.watch && !args.select.json { Screen::open() } else { None };
    loop {
        let (text, outcome) = render(&args.select, bpffs)?;
        match &mut screen {
            Some(screen) => screen.draw(&text),
            None => print(&text)?,
        }
        outcome?;
        if !args.watch {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Returns the text for every interface that can be read, and the first failure.
fn render(select: &Select, bpffs: &Bpffs) -> Result<(String, Result<()>)> {
    let mut text = String::new();
    let mut outcome = Ok(());
    for pins in super::attached(select.interface.as_deref(), bpffs)? {
        match report(&pins) {
            Ok(report) if select.json => writeln!(text, "{}", json(&report)?)?,
            Ok(report) => writeln!(text, "{}", report.text())?,
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    Ok((text, outcome))
}

fn report(pins: &Pins) -> Result<Report> {
    Report::read(pins, &Pinned::open(pins)?)
}
