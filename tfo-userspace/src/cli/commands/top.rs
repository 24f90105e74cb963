//! `tfo top`.

use std::io::{IsTerminal as _, stdout};

use anyhow::{Context as _, Result};
use comfy_table::CellAlignment::{Left, Right};
use serde::Serialize;

use crate::{
    cli::args::Top,
    dataplane::{
        Pinned,
        pins::{Bpffs, Pins},
    },
    util::{
        output::{json, print},
        runtime::block_on,
    },
    view::{
        counters::Report,
        fleet,
        key_listing::{Generation, Listing},
        table::table,
        tui::{self, model::Prefix},
    },
};

/// State of one interface, for JSON.
#[derive(Serialize)]
struct State<'a> {
    #[serde(flatten)]
    report: &'a Report,
    keys: &'a [Generation],
    prefixes: &'a Option<Vec<Prefix>>,
}

/// Shows the screen, or prints the state once.
pub(super) fn run(args: &Top, bpffs: &Bpffs) -> Result<()> {
    let all = super::attached(args.select.interface.as_deref(), bpffs)?;
    if args.once || args.select.json || !stdout().is_terminal() {
        return all.iter().try_for_each(|pins| print(&state(pins, args.select.json)?));
    }
    let first = all.first().context("nothing is attached")?;
    // An error is reported before the screen opens.
    tui::look(first)?;
    block_on(tui::run(&first.full_name(), bpffs))
}

fn state(pins: &Pins, as_json: bool) -> Result<String> {
    let look = tui::look(pins)?;
    if as_json {
        let state = State { report: &look.report, keys: &look.keys, prefixes: &look.prefixes };
        return json(&state);
    }
    let pinned = Pinned::open(pins)?;
    let keys = Listing::of(pins, &pinned)?;
    let fleet = block_on(async { anyhow::Ok(fleet::state(pins, &pinned).await) })?;
    let fleet = fleet.map_or_else(String::new, |state| format!("fleet: {}\n", state.text()));
    Ok(format!("{}{}{fleet}{}", look.report.text(), keys.text(), prefixes(look.prefixes.as_deref())))
}

fn prefixes(prefixes: Option<&[Prefix]>) -> String {
    let Some(prefixes) = prefixes else { return "source prefixes: not available\n".to_owned() };
    let rows = prefixes.iter().map(|row| {
        let [requests, valid, unknown] = [row.requests, row.valid, row.unknown].map(|n| n.to_string());
        [row.prefix.clone(), requests, valid, unknown]
    });
    table(&[("source prefix", Left), ("asked", Right), ("valid", Right), ("unknown", Right)], rows)
}
