//! `tfo counters`.

use std::{fmt::Write as _, thread, time::Duration};

use anyhow::Result;

use crate::{
    cli::{Counters, Select},
    counters::Report,
    datapath::Pinned,
    pins::Bpffs,
    screen,
};

/// Prints the counters, with `--watch` again every second.
pub(super) fn run(args: &Counters, bpffs: &Bpffs) -> Result<()> {
    loop {
        let text = render(&args.select, bpffs)?;
        if !args.watch {
            print!("{text}");
            return Ok(());
        }
        if !args.select.json && screen::is_terminal() {
            screen::draw(&text)?;
        } else {
            print!("{text}");
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn render(select: &Select, bpffs: &Bpffs) -> Result<String> {
    let mut text = String::new();
    for pins in super::attached(select.interface.as_deref(), bpffs)? {
        let pinned = Pinned::open(&pins)?;
        let report = Report::new(pins.interface(), pinned.info(), &pinned.counters()?);
        if select.json {
            writeln!(text, "{}", serde_json::to_string(&report)?)?;
        } else {
            writeln!(text, "{}", report.text())?;
        }
    }
    Ok(text)
}
