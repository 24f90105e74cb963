//! `tfo report`.

use std::{fs, io, io::Write as _, path::Path};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;

use crate::{
    cli::args,
    control::{self, NotRunning, Request},
    dataplane::{
        Pinned,
        pins::{Bpffs, Pins},
    },
    util::{files, output::print},
    view::{
        counters, fleet, history,
        html::{Hour, Section, page::page},
        key_listing::Listing,
    },
};

/// Writes the page, with every interface whose controller runs here.
pub(super) async fn run(args: &args::Report, bpffs: &Bpffs) -> Result<()> {
    let mut sections = Vec::new();
    let mut not_running = None;
    for pins in super::attached(args.interface.as_deref(), bpffs)? {
        match section(&pins).await {
            Ok(section) => sections.push(section),
            // It may run in another network namespace; other interfaces may be here.
            Err(error) if error.is::<NotRunning>() => not_running = not_running.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    if let (true, Some(error)) = (sections.is_empty(), not_running) {
        return Err(error);
    }
    let page = page(&sections, Timestamp::now())?;
    if args.html == Path::new("-") { print(&page) } else { write(&args.html, &page) }
}

async fn section(pins: &Pins) -> Result<Section> {
    let interface = pins.interface().to_owned();
    let samples = control::send(pins, &Request::History { interface }).await?;
    let hour = Hour::new(history::parse(&samples)?);
    let pinned = Pinned::open(pins)?;
    Ok(Section {
        report: counters::Report::read(pins, &pinned)?,
        keys: Listing::of(pins, &pinned)?,
        fleet: fleet::state(pins, &pinned).await,
        hour,
    })
}

/// Writes `page` atomically. Replaces only a regular file, so that nobody can make root replace a link or a device.
fn write(path: &Path, page: &str) -> Result<()> {
    let path_ = path.display();
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            bail!("{path_} exists and is no regular file (a link, a folder, a device): name another one")
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot examine {path_}")),
    }
    files::replace(path, 0o644, |file| file.write_all(page.as_bytes()))
}
