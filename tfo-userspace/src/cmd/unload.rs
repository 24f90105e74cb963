//! `tfo unload`.

use anyhow::Result;

use crate::{
    cli::{Select, Unload},
    pins::Bpffs,
};

/// Detaches the program and removes its state. A controller that runs there sees it and ends.
pub(super) fn run(args: &Unload, bpffs: &Bpffs) -> Result<()> {
    let select = Select { interface: args.interface.clone(), json: false };
    for pins in super::selected(&select, bpffs)? {
        pins.remove()?;
        println!("{}: unloaded", pins.interface());
    }
    Ok(())
}
