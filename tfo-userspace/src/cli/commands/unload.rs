//! `tfo unload`.

use std::path::Path;

use anyhow::Result;

use crate::{
    cli::args::Unload,
    control::{self, NotRunning},
    daemon::{enable, order_file},
    dataplane::{
        pins::{Bpffs, remove_if_there},
        unload,
    },
    util::output::print,
};

/// Detaches the program and removes its state, with the orders of `tfo hide`, and what its configuration has turned on. A running
/// controller notices that and ends.
pub(super) async fn run(args: &Unload, bpffs: &Bpffs, state: &Path) -> Result<()> {
    let chosen = match super::choose(bpffs.all()?.into_iter(), args.interface.as_deref()) {
        Err(error) if args.if_attached && error.is::<NotRunning>() => return print(&error.to_string()),
        chosen => chosen?,
    };
    for pins in chosen {
        // A killed controller leaves its socket behind.
        let socket = control::socket(&pins).ok();
        unload(&pins).await?;
        order_file::forget(state, bpffs, pins.interface())?;
        enable::forget(pins.interface())?;
        if let Some(socket) = socket {
            remove_if_there(&socket)?;
        }
        print(&format!("{}: unloaded", pins.full_name()))?;
    }
    Ok(())
}
