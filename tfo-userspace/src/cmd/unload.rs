//! `tfo unload`.

use anyhow::Result;

use crate::{cli::Unload, datapath::unload, output::print, pins::Bpffs};

/// Detaches the program and removes its state. A controller that runs there sees it and ends.
pub(super) async fn run(args: &Unload, bpffs: &Bpffs) -> Result<()> {
    for pins in super::choose(bpffs.all()?.into_iter(), args.interface.as_deref())? {
        unload(&pins).await?;
        print(&format!("{}: unloaded", pins.interface()))?;
    }
    Ok(())
}
